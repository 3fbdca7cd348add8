"""A run's forecast of itself while it runs: `forecast.every_evals=N`, `forecast.stop_when=...`.

Every N evaluations a hierarchical fit (Laplace) of the run's evaluations, and of those of its
finished siblings, forecasts the pass rate at the run's end and the gain from twice the compute so
far, with 90 % intervals. Siblings are runs beside it that differ in the seed alone. If the ceiling
is not identified, or no fit is possible, the forecast is `not yet`.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from rlx.config import Config, options
from rlx.errors import InputError
from rlx.record import RunRecord, read_rows
from rlx.scaling import Evals, ScalingFit
from rlx.scaling import fit as posterior_of
from rlx.train.loop import Outlook

NOT_YET = Outlook("forecast: not yet, ")


class Forecaster:
    """Called after every evaluation of the run at `config.out`."""

    def __init__(self, config: Config):
        self.config, self.out = config, Path(config.out)

    def __call__(self) -> Outlook:
        steps = list(dict.fromkeys(row["step"] for row in read_rows(self.out / "evals.jsonl")))
        made = len(steps) - 1  # without the one before the first update
        if not made or made % self.config.forecast.every_evals:
            return Outlook()
        try:
            found = self._forecast(steps[-1])
        except InputError:  # too few evaluations, or no mode
            found = NOT_YET
        if not sys.stderr.isatty():  # otherwise it is on the progress bar
            print(
                f"{self.out.name}, update {steps[-1]}: {found.text.removesuffix(', ')}",
                file=sys.stderr,
            )
        return found

    def siblings(self) -> list[Path]:
        """Finished runs beside this one that differ in the seed alone."""
        mine, found = options(asdict(self.config)), []
        for file in sorted(self.out.parent.glob("*/manifest.json")):
            manifest = RunRecord(file.parent, writes=False).manifest
            if manifest.get("status") != "done" or file.parent == self.out:
                continue
            theirs = options(manifest["config"], manifest.get("migrations", 0))
            if {key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)} <= {"seed"}:
                found.append(file.parent)
        return found

    def _forecast(self, step: int) -> Outlook:
        config = self.config
        with contextlib.redirect_stdout(None):
            parts = [Evals.read(path) for path in (self.out, *self.siblings())]
            longest = config.steps // config.eval.every_steps + 2
            fit = posterior_of(Evals.concat(parts), method="laplace", pad_to=longest)
        return outlook(fit, self.out.name, config.steps / step, config)


def outlook(fit: ScalingFit, run: str, longer: float, config: Config) -> Outlook:
    """The forecast of a run that ends at `longer` times its compute so far."""
    if fit.status("run")[fit.runs.index(run)] != "ok":
        return NOT_YET
    now = fit.last_compute("run")[fit.runs.index(run)]
    draws = fit.curve(now * np.array([1.0, 2.0, longer]), by="run").sel(run=run)
    now_X, twice_X, end_X = draws.values.reshape(-1, 3).T
    answers = {"end": end_X, "gain_of_next_2x": twice_X - now_X}
    numbers, parts = {}, []
    for name, x_X in answers.items():
        low, middle, high = map(float, np.quantile(x_X, [0.05, 0.5, 0.95]))
        numbers |= {name: middle, f"{name}_q05": low, f"{name}_q95": high}
        parts.append(f"{name} {middle:.3f} [{low:.3f}, {high:.3f}]")
    stop = ""
    if condition := config.forecast.condition:
        name, sign, bound, needed = condition
        p = float(np.mean(answers[name] < bound if sign == "<" else answers[name] > bound))
        if p >= needed:
            stop = f"P({name} {sign} {bound:g}) = {p:.3f}"
    return Outlook("".join(f"{words}, " for words in parts), numbers, stop)
