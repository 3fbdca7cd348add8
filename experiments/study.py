"""A sweep from end to end: its runs, their fits, forecasts of the held-out part, a figure.

    python -m experiments.study [sweep=default] [out=runs/SWEEP] [fit=nuts|laplace|point]
                                [status=true] [cell=N] [hydra/launcher=processes|slurm|ray_cluster]
                                [budget=0.5 [unit=share|flops|device_s] [baseline=RECIPE]
                                [policy=equal|halving|fixed]] [KEY=VALUE ...]

The runs are the Hydra multirun `python -m experiments.train -m +sweep=SWEEP`, with any further
overrides passed on. Finished runs are kept, so the same command resumes an interrupted study. Then
all runs are fitted on C <= C_max / 2 and scored on the rest, as
`python -m experiments.fit data=OUT out=OUT method=FIT` would.

With a budget cells stop once the study's questions about them are answered, see experiments.budget.

`cell=N` runs only the N-th cell, from 0, without fits: for schedulers that start a job per cell,
which may be stopped and restarted. Afterwards the command without `cell` fits the finished runs.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from experiments import budget, fit
from experiments import cells as naming
from experiments.cells import PLAN, directory, quoted
from rlx.errors import InputError
from rlx.record import RunRecord, read_rows, runs

OF_BUDGET = ("unit", "policy", "baseline")
LAUNCHER = ("hydra/launcher=", "hydra.launcher.")  # where cells run; not part of the sweep


def planned(sweep: str, overrides: Sequence[str]) -> dict[str, list[str]]:
    """The overrides of each cell of a sweep by the name of its directory, in starting order.

    Only the sweep itself is composed, so a thousand cells take seconds.
    """
    made = _named(sweep, overrides)
    return {naming.name(recipe, levels, seed): cell for cell, recipe, levels, seed in made}


def seeds_of(sweep: str, overrides: Sequence[str]) -> dict[str, list[str]]:
    """Names of the run directories by "RECIPE, KEY=VALUE, ...", of the axes that differ.

    The runs of one name differ in seed.
    """
    made: dict[str, list[str]] = {}
    there = list(_named(sweep, overrides))
    levels_of: dict[str, set[str]] = {}
    for _, _, levels, _ in there:
        for key, x in levels.items():
            levels_of.setdefault(key, set()).add(str(x))
    for _, recipe, levels, seed in there:
        apart = [f"{key}={x}" for key, x in levels.items() if len(levels_of[key]) > 1]
        cell = ", ".join([recipe, *apart])
        made.setdefault(cell, []).append(naming.name(recipe, levels, seed))
    return made


def _named(sweep: str, overrides: Sequence[str]) -> Iterator[tuple[list[str], str, dict, int]]:
    """(overrides, recipe, levels of the axes, seed) of each cell."""
    from hydra import compose, initialize_config_dir  # slow to load: after checking arguments
    from omegaconf import OmegaConf

    from experiments import train  # which registers the schema

    words = [word for word in overrides if not word.startswith(LAUNCHER)]
    ours = [f"+sweep={sweep}", *(word for word in words if not word.startswith("hydra."))]
    rest = [word for word in words if word not in ours]
    with initialize_config_dir(train.CONF, version_base="1.3"):
        node = compose("config", [ours[0], *rest], return_hydra_config=True)
    for cell in naming.split(node.hydra.sweeper.params or {}, ours):
        given = dict(map(naming.parsed, cell))
        own = None if OmegaConf.is_interpolation(node, "recipe") else node.recipe
        recipe = given.get("recipe", own or given.get("algo", node.hydra.runtime.choices.algo))
        yield cell, recipe, naming.axes(cell), given.get("seed", node.seed)


def cells(sweep: str, overrides: Sequence[str]) -> list[str]:
    """Names of the run directories of a sweep, in starting order."""
    return list(planned(sweep, overrides))


def one_cell(sweep: str, out: Path, number: str, overrides: Sequence[str]) -> list[str]:
    """The words after `python` that run one cell, in its directory of the sweep."""
    there = list(planned(sweep, overrides).values())
    if not number.isdecimal() or int(number) >= len(there):
        remedy = f"use 0 to {len(there) - 1}"
        raise InputError("cell", number, f"sweep={sweep} has {len(there)} cells", remedy)
    where = ["hydra.mode=RUN", f"hydra.sweep.dir={quoted(str(out))}"]
    hydras = [word for word in overrides if word.startswith("hydra.")]
    return ["-m", "experiments.train", *there[int(number)], *hydras, *where]


def status(out: Path, planned: Sequence[str] = ()) -> pd.DataFrame:
    """One line per cell: its progress, its pass rate, and the effect of its switches.

    status is waiting, running, stopped (killed; it resumes at the next start), interrupted, failed
    or done. pass_rate and ceiling are of the held-out set. eta_min: minutes to its end, at its pace
    so far. Epochs of prompts begun and prompts retired so far; shares of groups with zero variance
    and of samples interrupted and truncated, over all updates. note: why a run failed, or the
    switches of a finished run that are on and never had an effect, which it therefore cannot test
    ("void").
    """
    table = []
    for path in runs(out):
        record = RunRecord(path, writes=False)
        manifest, metrics = record.manifest, whole_lines(path / "metrics.jsonl")
        sets = map(json.loads, reversed(whole_lines(path / "evals.jsonl").splitlines()))
        evals = (row for row in sets if row.get("eval_set", "heldout") == "heldout")
        last = next(evals, {"mean": float("nan"), "compute": float("nan")})
        steps, done = manifest["config"]["steps"], metrics.count(b"\n")
        row = {"run": path.name, "status": manifest["status"], "step": f"{done}/{steps}"}
        if row["status"] == "running" and not record.busy():
            row["status"] = "stopped"
        pace_s = float("nan")
        if row["status"] == "running" and (clock := read_rows(path / "clock.jsonl")):
            pace_s = clock[-1]["wall_s"] / (clock[-1]["step"] or float("nan"))
        row |= {"pass_rate": last["mean"], "ceiling": manifest["ceiling"]}
        row |= {"compute": last["compute"], "eta_min": pace_s * (steps - done) / 60}
        never = [name for name, times in manifest.get("fired", {}).items() if not times]
        failed = manifest.get("error", "") if row["status"] == "failed" else ""
        note = failed.splitlines()[0] if failed else f"void: {', '.join(never)}" if never else ""
        table.append(row | events(metrics) | {"note": note})
    there = {row["run"] for row in table}
    table += [{"run": name, "status": "waiting"} for name in planned if name not in there]
    return pd.DataFrame(table)


def whole_lines(file: Path) -> bytes:
    """The rows of a file, without an incomplete last line."""
    text = file.read_bytes() if file.exists() else b""
    return text[: text.rfind(b"\n") + 1]


def events(metrics: bytes) -> dict[str, float]:
    """How often the switches of a run had an effect so far, from the text of its metrics.jsonl.

    For a thousand runs these are hundreds of megabytes, of which five numbers per row are needed.
    """
    shares = {
        "dropped": "rollout/zero_variance_share",
        "interrupted": "rollout/interrupted_share",
        "truncated": "rollout/truncated_share",
    }
    counts = {"epochs": "prompts/epoch", "retired": "prompts/retired"}
    last = json.loads(metrics[metrics.rfind(b"\n", 0, -1) + 1 :] or b"{}")
    made = {name: last.get(key, float("nan")) for name, key in counts.items()}
    for name, key in shares.items():
        after = metrics.split(f'"{key}": '.encode())[1:]
        values = [float(re.match(rb"[^,}]+", text)[0]) for text in after]
        made[name] = sum(values) / len(values) if values else float("nan")
    return made


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
    out = Path(directory(words.pop("out", f"runs/{sweep}")))
    cell = words.pop("cell", None)
    method = words.pop("fit", "nuts")
    limits = {key: words.pop(key) for key in ("budget", *OF_BUDGET) if key in words}
    overrides = [f"{key}={value}" for key, value in words.items()]
    if method not in fit.CHOICES["method"]:
        known = "|".join(fit.CHOICES["method"])
        raise InputError("fit", method, "not available", f"use fit={known}")
    if limits and "budget" not in limits:
        key, value = next(iter(limits.items()))
        raise InputError(key, value, "there is no budget", "give budget=0.5, or leave it out")
    if cell is not None:
        os.execv(sys.executable, [sys.executable, *one_cell(sweep, out, cell, overrides)])
    failed = 0
    if not only_status:
        command = [sys.executable, "-m", "experiments.train", "-m", f"+sweep={sweep}"]
        command += [f"out={quoted(str(out))}", *overrides]
        if limits:
            groups = seeds_of(sweep, overrides)
            failed = budget.conduct(out, command, groups, limits, method)
        else:
            failed = naming.exit_status_of(command)
        if not failed and not limits:
            fit.run(out, out, holdout=0.5, method=method)
            print()
    started = runs(out)
    if only_status and not started:
        raise InputError("out", out, "no runs here", "start them without status=true")
    if started:
        plan = out / "runs" / PLAN
        table = status(out, list(json.loads(plan.read_text())) if plan.exists() else [])
        if (out / budget.DECISIONS).exists():
            table = budget.status(out, table)
        print(table.to_string(index=False, float_format="{:.4g}".format, na_rep=""))
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
