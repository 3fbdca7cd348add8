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
    """One line per run directory: how far it is, how well it does, and what its switches did.

    epochs of the prompts begun and prompts retired so far; shares of groups without variance and of
    samples interrupted and truncated, over all updates. `void` names the switches of a finished run
    that are on and never did anything: it says nothing about them.
    """
    table = []
    for path in runs(out):
        manifest = json.loads((path / "manifest.json").read_text())
        evals, metrics = read_rows(path / "evals.jsonl"), read_rows(path / "metrics.jsonl")
        last = evals[-1] if evals else {"mean": float("nan"), "compute": float("nan")}
        row = {"run": path.name, "status": manifest["status"]}
        row["step"] = f"{len(metrics)}/{manifest['config']['steps']}"
        row |= {"pass_rate": last["mean"], "ceiling": manifest["ceiling"]}
        row |= {"compute": last["compute"]} | events(metrics)
        never = [name for name, times in manifest.get("fired", {}).items() if not times]
        table.append(row | {"void": ", ".join(never)})
    return pd.DataFrame(table)


def events(metrics: list[dict]) -> dict[str, float]:
    """How often the switches of a run did something so far."""
    if not metrics:
        return dict.fromkeys(("epochs", "retired", "dropped", "interrupted", "truncated"), 0)
    share = lambda name: sum(row[name] for row in metrics) / len(metrics)  # noqa: E731
    last = metrics[-1]
    return {
        "epochs": last["prompts/epoch"],
        "retired": last["prompts/retired"],
        "dropped": share("rollout/zero_variance_share"),
        "interrupted": share("rollout/interrupted_share"),
        "truncated": share("rollout/truncated_share"),
    }


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
