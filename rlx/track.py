"""Rows of a run, mirrored to a dashboard; the files of the run stay authoritative.

    tracker=tensorboard   event files in the run directory
    tracker=wandb         a Weights & Biases run; WANDB_MODE=offline keeps it on this disk

After a restart, updates that are repeated are sent again, under the same step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlx.config import Config, run_sha
from rlx.errors import InputError


def tracker(config: Config) -> Callable[[int, dict[str, Any]], None]:
    """send(step, row): sends the numbers of a row to the dashboard that `config.tracker` names.

    Raises InputError if its package is not installed, or if logging in fails.
    """
    if config.tracker == "none":
        return lambda step, row: None
    try:
        connect = {"tensorboard": _tensorboard, "wandb": _wandb}[config.tracker]
        return connect(config)
    except ImportError as error:
        remedy = "pip install 'rlx[trackers]', or set tracker=none"
        raise InputError("tracker", config.tracker, str(error), remedy) from None


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row; nested ones as group/name."""
    flat = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{key}": x for key, x in numbers(value).items()}
        elif isinstance(value, int | float) and name not in ("step", "version"):
            flat[name] = float(value)
    return flat


def _tensorboard(config: Config):
    from tensorboard.summary import Writer

    writer = Writer(config.out)

    def send(step: int, row: dict[str, Any]) -> None:
        for name, value in numbers(row).items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return send


def _wandb(config: Config):
    import wandb

    sha = run_sha(config)
    try:
        run = wandb.init(
            project=config.study or "rlx", name=Path(config.out).name, group=config.recipe,
            id=f"{Path(config.out).name}-{sha}", resume="allow", dir=config.out,
        )  # fmt: skip
    except wandb.errors.Error as error:
        remedy = "log in with `wandb login`, or set WANDB_MODE=offline"
        raise InputError("tracker", "wandb", str(error), remedy) from None
    run.define_metric("*", step_metric="update")  # steps repeat after a restart

    def send(step: int, row: dict[str, Any]) -> None:
        run.log({**numbers(row), "update": step})

    return send
