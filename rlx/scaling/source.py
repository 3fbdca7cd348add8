"""What readers and treatment of logs share: options, a source as found, notes, evaluation sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from rlx.errors import InputError

MIN_POINTS = 4  # evaluations that a curve of four parameters needs
COMPUTE_LABELS = {
    "compute": "training compute C (FLOPs)",
    "modelled_device_s": "modelled device time (s)",
    "wall_s": "wall-clock time (s)",
    "step": "training step",
    "wall_time": "wall-clock time (s)",
}
COLUMNS_ONLY = ("run", "recipe", "seed", "axes", "passes", "passes_per_prompt", "start")
OR_NUMBERS = ("trials", "samples_per_prompt", "stderr", "r0")  # options stated for any source
HELDOUT = "heldout"  # the evaluation set that every run has


class Notes(list[str]):
    """Lines about what was inferred and treated, printed as they come."""

    def say(self, line: str) -> None:
        print(line)
        self.append(line)


@dataclass(frozen=True)
class Options:
    """How a source is to be read. What is not named is inferred, and the inference is printed.

    Names are columns of a table, metrics of a W&B export, tags of TensorBoard, keys of
    trainer_state.json or numbers of evals.jsonl. What only tables have (run, recipe, seed, axes,
    passes, passes_per_prompt, start and columns of trials, stderr, r0) is refused elsewhere.
    """

    run: str | None = None  # left out where none fits: recipe, axes and seed make the run
    recipe: str | None = None
    seed: str | None = None
    axes: Sequence[str] = ()  # columns of design choices, never inferred
    compute: str | None = None
    value: str | None = None
    passes: str | None = None
    trials: str | float | None = None  # a column, or one number for every row
    passes_per_prompt: str | None = None  # lists, or their JSON text
    samples_per_prompt: str | float | None = None  # default trials / prompts
    stderr: str | float | None = None  # a column, or one number, in the unit of the values
    start: str | None = None  # default: runs with the same evaluation at C = 0 share a start
    scale: str | None = None  # "fraction" or "percent": the unit of values, stderr, truth and r0
    r0: str | float | None = None  # a column with each run's R0, or one number (in column "r0")
    eval_set: str | None = None  # of a study, or a table's column of that name; default heldout,
    #   else the only one
    min_points: int = MIN_POINTS  # shorter runs are left out

    def __post_init__(self):
        if self.scale not in (None, "fraction", "percent"):
            raise InputError("scale", self.scale, "unknown unit", "use fraction or percent")


@dataclass(frozen=True)
class Source:
    """What a reader found: a table of evaluations as they stand there, runs in any order.

    `table` has the columns run, row (where an evaluation stands, "row 7"), compute, value, the
    columns of `axes` and of r0, and any of COLUMNS, passes_per_prompt (lists) and
    samples_per_prompt.
    """

    name: str
    table: pd.DataFrame
    compute_label: str
    axes: tuple[str, ...] = ()
    value_label: str = "pass rate (held-out)"


def stated(option: str | float | None) -> float | None:
    """The number that an option states instead of a column; None where it names a column."""
    try:
        return None if option is None else float(option)
    except ValueError:
        return None


def r0_column(option: str | float | None) -> str | None:
    """The column of the frame that holds each run's R0."""
    return None if option is None else str(option) if stated(option) is None else "r0"


def refuse(options: Options, reason: str, but: str = "", also: str = "") -> None:
    """Refuse options that name columns of a table, `but` one, and the option `also`."""
    for key in (*COLUMNS_ONLY, *OR_NUMBERS, also):
        option = getattr(options, key) if key not in ("", but) else None
        if option and not (key in OR_NUMBERS and stated(option) is not None):
            shown = option if isinstance(option, str) else ",".join(option)
            raise InputError(key, shown, reason, f"leave out {key}=")


def chosen_set(sets: Iterable[str], where: object, options: Options) -> str:
    """The evaluation set that the options name; by default "heldout", or the only one there is."""
    names = sorted(set(sets))
    if options.eval_set is not None:
        if options.eval_set not in names:
            remedy = f"use one of {', '.join(names)}"
            raise InputError("eval_set", options.eval_set, f"not in {where}", remedy)
        return options.eval_set
    if len(names) > 1 and HELDOUT not in names:
        reason = f"mixes evaluation sets {', '.join(names)}"
        raise InputError("data", where, reason, "name one with eval_set=NAME")
    return HELDOUT if HELDOUT in names else names[0]


def value_label(sets: Iterable[str], k: str = "") -> str:
    names = ["held-out" if name == HELDOUT else name for name in sorted(set(sets))]
    return f"pass rate ({', '.join(names)}{k})"
