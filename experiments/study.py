"""A sweep from end to end: its runs, their fits, a forecast of what was held out, one picture.

    python -m experiments.study [sweep=default] [out=runs/SWEEP] [fit=nuts|laplace|point]
                                [status=true] [KEY=VALUE ...]

The runs are the Hydra multirun `python -m experiments.train -m +sweep=SWEEP`, with any further
overrides passed on. Finished runs are left as they are, so the same command continues a study that
was interrupted. Then all runs are fitted on C <= C_max / 2 and judged on the rest, as
`python -m experiments.fit data=OUT out=OUT method=FIT` would.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

from experiments import fit
from rlx.record import read_rows, runs


def status(out: Path) -> pd.DataFrame:
    """One line per run directory: how far it is and how well it does."""
    table = []
    for path in runs(out):
        manifest = json.loads((path / "manifest.json").read_text())
        evals, metrics = read_rows(path / "evals.jsonl"), read_rows(path / "metrics.jsonl")
        last = evals[-1] if evals else {"mean": float("nan"), "compute": float("nan")}
        row = {"run": path.name, "status": manifest["status"]}
        row["step"] = f"{len(metrics)}/{manifest['config']['steps']}"
        row |= {"pass_rate": last["mean"], "ceiling": manifest["ceiling"]}
        table.append(row | {"compute": last["compute"]})
    return pd.DataFrame(table)


def main(argv: list[str]) -> int:
    try:
        return study(dict(map(split, argv)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def split(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise ValueError(f"{word}: no value; write KEY=VALUE")
    return key, value


def study(words: dict[str, str]) -> int:
    """Exit status of the sweep, then of its fits. Raises ValueError on what cannot be used."""
    sweep = words.pop("sweep", "default")
    out = Path(words.pop("out", f"runs/{sweep}"))
    method = words.pop("fit", "nuts")
    if method not in fit.CHOICES["method"]:
        known = "|".join(fit.CHOICES["method"])
        raise ValueError(f"fit={method}: not available; use fit={known}")
    if words.pop("status", "false").lower() != "true":
        overrides = [f"{key}={value}" for key, value in words.items()]
        command = [sys.executable, "-m", "experiments.train", "-m", f"+sweep={sweep}"]
        done = subprocess.run([*command, f"hydra.sweep.dir={out}", *overrides])
        if done.returncode:
            return done.returncode
        fit.run(out, out, holdout=0.5, method=method)
        print()
    table = status(out)
    if table.empty:
        raise ValueError(f"out={out}: no runs here; start them without status=true")
    print(table.to_string(index=False, float_format="{:.4g}".format))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
