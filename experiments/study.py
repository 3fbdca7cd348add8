"""A sweep from end to end: its runs, their fits, a forecast of what was held out, one picture.

    python -m experiments.study [sweep=default] [out=runs/SWEEP] [fit=nuts|laplace|point]
                                [status=true] [hydra/launcher=processes|slurm|ray_cluster]
                                [KEY=VALUE ...]

The runs are the Hydra multirun `python -m experiments.train -m +sweep=SWEEP`, with any further
overrides passed on. Finished runs are left as they are, so the same command continues a study that
was interrupted. Then all runs are fitted on C <= C_max / 2 and judged on the rest, as
`python -m experiments.fit data=OUT out=OUT method=FIT` would.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments import fit
from experiments.cells import quoted
from rlx.errors import InputError
from rlx.record import RunRecord, read_rows, runs

CONF = Path(__file__).resolve().parents[1] / "conf"
LAUNCHER = ("hydra/launcher=", "hydra.launcher.")  # where cells run, not which there are


def planned(sweep: str, overrides: Sequence[str]) -> dict[str, list[str]]:
    """The overrides of each cell of a sweep by the name of its directory, in order of their start.

    Nothing but the sweep itself is composed, so a thousand cells take seconds.
    """
    from hydra import compose, initialize_config_dir  # after the arguments have been looked at
    from omegaconf import OmegaConf

    from experiments import cells, train  # which registers the schema

    words = [word for word in overrides if not word.startswith(LAUNCHER)]
    ours = [f"+sweep={sweep}", *(word for word in words if not word.startswith("hydra."))]
    rest = [word for word in words if word not in ours]
    with initialize_config_dir(train.CONF, version_base="1.3"):
        node = compose("config", [ours[0], *rest], return_hydra_config=True)
    made = {}
    for cell in cells.split(node.hydra.sweeper.params or {}, ours):
        given = dict(map(cells.parsed, cell))
        own = None if OmegaConf.is_interpolation(node, "recipe") else node.recipe
        recipe = given.get("recipe", own or given.get("algo", node.hydra.runtime.choices.algo))
        made[cells.name(recipe, cells.axes(cell), given.get("seed", node.seed))] = cell
    return made


def cells(sweep: str, overrides: Sequence[str]) -> list[str]:
    """Names of the run directories of a sweep, in the order in which they are started."""
    return list(planned(sweep, overrides))


def status(out: Path, planned: Sequence[str] = ()) -> pd.DataFrame:
    """One line per cell: how far it is, how well it does, and what its switches did.

    status is waiting, running, stopped (killed; the next start goes on), interrupted, failed or
    done. pass_rate and ceiling are those of the held-out set. eta_min: minutes to its end, at its
    pace so far. epochs of the prompts begun and prompts retired so far; shares of groups without
    variance and of samples interrupted and truncated, over all updates. note: why a run failed, or
    the switches of a finished run that are on and never did anything, about which it says nothing
    ("void").
    """
    table = []
    for path in runs(out):
        record = RunRecord(path)
        manifest = record.manifest
        rows, metrics = read_rows(path / "evals.jsonl"), read_rows(path / "metrics.jsonl")
        evals = [row for row in rows if row.get("eval_set", "heldout") == "heldout"]
        last = evals[-1] if evals else {"mean": float("nan"), "compute": float("nan")}
        steps, done = manifest["config"]["steps"], len(metrics)
        row = {"run": path.name, "status": manifest["status"], "step": f"{done}/{steps}"}
        if row["status"] == "running" and not record.busy():
            row["status"] = "stopped"
        clock = read_rows(path / "clock.jsonl")
        running = row["status"] == "running" and clock and clock[-1]["step"] > 0
        pace_s = clock[-1]["wall_s"] / clock[-1]["step"] if running else float("nan")
        row |= {"pass_rate": last["mean"], "ceiling": manifest["ceiling"]}
        row |= {"compute": last["compute"], "eta_min": pace_s * (steps - done) / 60}
        never = [name for name, times in manifest.get("fired", {}).items() if not times]
        failed = manifest.get("error", "") if row["status"] == "failed" else ""
        note = failed.splitlines()[0] if failed else f"void: {', '.join(never)}" if never else ""
        table.append(row | events(metrics) | {"note": note})
    there = {row["run"] for row in table}
    table += [{"run": name, "status": "waiting"} for name in planned if name not in there]
    return pd.DataFrame(table)


def events(metrics: list[dict]) -> dict[str, float]:
    """How often the switches of a run did something so far."""
    shares = {
        "dropped": "rollout/zero_variance_share",
        "interrupted": "rollout/interrupted_share",
        "truncated": "rollout/truncated_share",
    }
    counts = {"epochs": "prompts/epoch", "retired": "prompts/retired"}
    table = pd.DataFrame(metrics, columns=[*shares.values(), *counts.values()])
    last = table.iloc[-1] if len(table) else table.max()
    return {name: last[column] for name, column in counts.items()} | {
        name: table[column].mean() for name, column in shares.items()
    }


def main(argv: list[str]) -> int:
    try:
        return study(dict(map(split, argv)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def split(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise InputError(word, "", "no value", "write KEY=VALUE")
    return key, value


def study(words: dict[str, str]) -> int:
    """Exit status of the sweep, then of its fits. Raises InputError on what cannot be used."""
    only_status = words.pop("status", "false").lower() == "true"
    sweep = words.pop("sweep", "default")
    out = Path(words.pop("out", f"runs/{sweep}"))
    method = words.pop("fit", "nuts")
    overrides = [f"{key}={value}" for key, value in words.items()]
    if method not in fit.CHOICES["method"]:
        known = "|".join(fit.CHOICES["method"])
        raise InputError("fit", method, "not available", f"use fit={known}")
    failed = 0
    if not only_status:
        command = [sys.executable, "-m", "experiments.train", "-m", f"+sweep={sweep}"]
        failed = subprocess.run([*command, f"out={quoted(str(out))}", *overrides]).returncode
        if not failed:
            fit.run(out, out, holdout=0.5, method=method)
            print()
    started = runs(out)
    if only_status and not started:
        raise InputError("out", out, "no runs here", "start them without status=true")
    if started:
        name = RunRecord(started[0]).manifest["study"]
        planned = cells(name, overrides) if (CONF / "sweep" / f"{name}.yaml").exists() else []
        table = status(out, planned)
        print(table.to_string(index=False, float_format="{:.4g}".format, na_rep=""))
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
