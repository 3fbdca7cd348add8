"""What runs that learn from a file have in common: updates, evaluations, checkpoints, resuming."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from rlx import flops, processes
from rlx.checkpoint import Checkpoints
from rlx.config import Config
from rlx.record import RunRecord
from rlx.train.clock import Clock
from rlx.train.health import Health
from rlx.types import TrainState

Row = dict[str, Any]
ROWS = ("evals.jsonl", "metrics.jsonl", "clock.jsonl")
Stop = Callable[[], bool]
Forecast = Callable[[], "Outlook"]  # asked after every evaluation


def never() -> bool:
    return False


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has written a checkpoint."""


class Ended(Exception):
    """The run ends before its last update, with this status, and has written a checkpoint."""


class Outlook(NamedTuple):
    """What a run expects of itself: in words, for the dashboard, and why it should end now."""

    text: str = ""  # ends with ", ", for the pass rate stands before it and the speed behind
    numbers: dict[str, float] = {}
    stop: str = ""


def no_outlook() -> Outlook:
    return Outlook()


def drawn(count: int, batch: int, seed: int, step: int) -> np.ndarray:
    """Indices of the items of a step: every epoch is a permutation, the rest of it is left out."""
    epoch, at = divmod(step, count // batch)
    return np.random.default_rng((seed, epoch)).permutation(count)[at * batch : (at + 1) * batch]


def supervise(
    config: Config, record: RunRecord, clock: Clock, ledger: flops.Ledger, state: TrainState,
    update: Callable[[TrainState, int], tuple[TrainState, Row]],
    measure: Callable[[TrainState, int], list[Row]],
    progress: bool, stop: Stop,
) -> None:  # fmt: skip
    """From `state`, or the newest checkpoint, to the last update; Interrupted if `stop` says so.

    `update` and `measure` are given the version and spend into the ledger; their rows are written
    here.
    """
    health = Health(config.out, config.optim, quiet=not record.writes)
    bar = tqdm(total=config.steps, desc=record.path.name, disable=not progress, unit="step")

    def evaluate(version: int) -> None:
        with clock.phase("eval"):
            rows = measure(state, version)
        at = {"step": version, "version": version}
        for row in rows:
            record.append("evals.jsonl", at | row | ledger.row())
            health.measured(at | row)
        record.append("clock.jsonl", clock.row(version))
        bar.set_postfix_str(f"pass {rows[0]['mean']:.3f}", refresh=False)

    where = record.path / "checkpoints"
    with closing(Checkpoints(where, config.checkpoint, config)) as checkpoints, bar:
        saved = checkpoints.restore({"state": state})
        version, device, host = saved or (0, {"state": state}, {"offsets": dict.fromkeys(ROWS, 0)})
        state = device["state"]
        record.refuse_changed(host)
        record.truncate(host["offsets"])
        if saved:
            vars(ledger).update(host["ledger"])
            clock.load(host["clock"])
            health.load(host["health"])
        else:
            evaluate(0)
        bar.update(version)
        stopping = False
        while version < config.steps and not stopping:
            with clock.phase("train"):
                state, row = update(state, version)
            record.append("metrics.jsonl", {"step": version} | row)
            version += 1
            health.updated(row, version)
            if version % config.eval.every_steps == 0 or version == config.steps:
                evaluate(version)
            bar.update()
            stopping, due = processes.any_of(stop(), checkpoints.due(version))
            if stopping or due or version == config.steps:
                host = {
                    "health": health.state_dict(),
                    "ledger": dict(vars(ledger)),
                    "clock": clock.state_dict(),
                    **record.marks(ROWS),
                }
                checkpoints.save(version, {"state": state}, host)
    if version < config.steps:
        raise Interrupted(f"after update {version}; the same command goes on")
