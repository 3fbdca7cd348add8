"""Shared by readers and treatment of logs: options, a source, notes, evaluation sets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real

import pandas as pd

from rlx.errors import InputError

MIN_POINTS = 4  # evaluations needed by a curve of four parameters
COMPUTE_LABELS = {
    "compute": "training compute C (FLOPs)",
    "modelled_device_s": "modelled device time (s)",
    "wall_s": "wall-clock time (s)",
    "step": "training step",
    "wall_time": "wall-clock time (s)",
}
COLUMNS_ONLY = ("wide", "run", "recipe", "seed", "axes", "passes", "passes_per_prompt", "start")
OR_NUMBERS = ("trials", "samples_per_prompt", "stderr", "r0")  # may be numbers, for any source
HELDOUT = "heldout"  # the evaluation set of every run


class Notes(list[str]):
    """Lines about what was inferred and treated, printed as they are added."""

    def say(self, line: str) -> None:
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)  # names of runs
        print(line)
        self.append(line)

    def say_runs(self, name: str, counts: Mapping[str, int], text: str) -> None:
        """One line for all runs that `text` applies to, with {n} their counts; none without runs.

        counts: by run.
        """
        if counts:
            low, high = min(counts.values()), max(counts.values())
            many = f"{len(counts)} runs ({some(counts, most=3)})"
            runs = f"run {next(iter(counts))}" if len(counts) == 1 else many
            n = f"{low}" if low == high else f"{low} to {high}"
            self.say(f"{name}: {runs}: {text.replace('{n}', n)}")


def some(names: Iterable[object], most: int = 20) -> str:
    """The names with commas; after the first `most`, "and 25 more"."""
    names = list(map(str, names))
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


@dataclass(frozen=True)
class Options:
    """How to read a source. Options that are not given are inferred, and the inference is printed.

    Names are columns of a table, metrics of a W&B export, tags of TensorBoard, keys of
    trainer_state.json or numbers of evals.jsonl. Options for tables only (run, recipe, seed, axes,
    passes, passes_per_prompt, start and columns of trials, stderr, r0) are refused elsewhere.
    """

    run: str | None = None  # if no column fits, recipe, axes and seed identify the run
    recipe: str | None = None
    seed: str | None = None
    axes: tuple[str, ...] = ()  # columns of design choices, never inferred
    compute: str | None = None
    value: str | None = None
    passes: str | None = None
    trials: str | int | float | None = None  # a column, or one number for every row
    passes_per_prompt: str | None = None  # lists, or their JSON text
    samples_per_prompt: str | int | float | None = None  # default trials / prompts
    stderr: str | int | float | None = None  # a column, or one number, in the unit of the values
    start: str | None = None  # default: runs with the same evaluation at C = 0 share a start
    scale: str | None = None  # "fraction" or "percent": the unit of values, stderr, truth and r0
    r0: str | int | float | None = (
        None  # a column with each run's R0, or one number (in column "r0")
    )
    eval_set: str | None = None  # of a study, or in a table's column of that name; default heldout,
    #   else the only one
    min_points: int = MIN_POINTS  # shorter runs are left out
    wide: bool = False  # each column of a table except compute has the values of a run

    def __post_init__(self):
        axes = (self.axes,) if isinstance(self.axes, str) else tuple(self.axes or ())
        object.__setattr__(self, "axes", axes)
        for option in fields(Options):
            cell = getattr(self, option.name)
            if option.name != "axes" and not isinstance(cell, str | Real | None):
                reason = "neither a name nor a number"
                raise InputError(option.name, cell, reason, f"give one {option.name}=")
        if not isinstance(self.min_points, Integral) or self.min_points < 1:
            reason = "not a positive whole number"
            raise InputError("min_points", self.min_points, reason, "4 is the default")
        if self.scale not in (None, "fraction", "percent"):
            raise InputError("scale", self.scale, "unknown unit", "use fraction or percent")


@dataclass(frozen=True)
class Source:
    """The result of a reader: a table of evaluations as found, runs in any order.

    `table` has the columns run, row (the place of an evaluation, "row 7"), compute, value, the
    columns of `axes` and of r0, and any of COLUMNS, passes_per_prompt (lists), samples_per_prompt
    and evaluation (distinguishes evaluations of a run at one compute; NaN if nothing does).
    named_runs: whether the options run=, ... apply, as for a table.
    """

    name: str
    table: pd.DataFrame
    compute_label: str
    axes: tuple[str, ...] = ()
    value_label: str = "pass rate (held-out)"
    named_runs: bool = False


def stated(option: str | int | float | None) -> float | None:
    """The number given as an option; None if it names a column."""
    try:
        number = math.nan if option is None else float(option)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def r0_column(option: str | int | float | None) -> str | None:
    """The column of the frame with each run's R0."""
    return None if option is None else str(option) if stated(option) is None else "r0"


def refuse(options: Options, reason: str, but: str = "", also: str = "") -> None:
    """Refuse options that name columns of a table, except `but`, and the option `also`."""
    for key in (*COLUMNS_ONLY, *OR_NUMBERS, also):
        option = getattr(options, key) if key not in ("", but) else None
        if option and not (key in OR_NUMBERS and stated(option) is not None):
            shown = ",".join(option) if isinstance(option, tuple) else option
            raise InputError(key, shown, reason, f"leave out {key}=")


def chosen_set(sets: Iterable[str], where: object, options: Options) -> str:
    """The evaluation set in the options; by default "heldout", or the only one."""
    names = sorted(set(sets))
    if options.eval_set is not None:
        if options.eval_set not in names:
            remedy = f"use one of {some(names)}"
            raise InputError("eval_set", options.eval_set, f"not in {where}", remedy)
        return options.eval_set
    if len(names) > 1 and HELDOUT not in names:
        reason = f"mixes evaluation sets {some(names)}"
        raise InputError("data", where, reason, "name one with eval_set=NAME")
    return HELDOUT if HELDOUT in names else names[0]


def value_label(sets: Iterable[str], k: str = "") -> str:
    names = ["held-out" if name == HELDOUT else name for name in sorted(set(sets))]
    return f"pass rate ({', '.join(names)}{k})"
