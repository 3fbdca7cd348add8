"""The loop of every run: batch, step, measure, from the newest checkpoint to the last update.

Reinforcement learning, supervised fine-tuning, a reward model and a warm start are tasks of it. All
that a run needs besides is here, once: rows, dashboard, checkpoints and restarts, signals, the
guard against numbers that are not finite, the bar.

A run that stops, for whatever reason, goes on from its newest checkpoint: its rows are cut back to
that moment and everything that follows is computed again, so the curve is that of a run which never
stopped, bit for bit unless threads decide its schedule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from rlx import flops, processes
from rlx.checkpoint import Checkpoints
from rlx.errors import InputError
from rlx.record import Busy, RunRecord
from rlx.train.clock import Clock
from rlx.train.health import Health
from rlx.types import TrainState

Row = dict[str, Any]
ROWS = ("evals.jsonl", "metrics.jsonl", "clock.jsonl")
Stop = Callable[[], bool]
Forecast = Callable[[], "Outlook"]  # asked after every evaluation
Track = Callable[[int, Row], None]


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has written a checkpoint."""


class Ended(Exception):
    """The run ends before its last update, with this status, and has written a checkpoint."""


class Outlook(NamedTuple):
    """What a run expects of itself: in words, for the dashboard, and why it should end now."""

    text: str = ""  # ends with ", ", for the pass rate stands before it and the speed behind
    numbers: dict[str, float] = {}
    stop: str = ""


def never() -> bool:
    return False


def untracked(step: int, row: Row) -> None:
    pass


class Watch(NamedTuple):
    """Who looks at a run while it goes on, and may end it."""

    progress: bool = False  # a bar at the terminal
    stop: Stop = never  # asked after every update
    forecast: Forecast = Outlook
    track: Track = untracked  # the dashboard


UNWATCHED = Watch()


class Place(NamedTuple):
    """Where a run is written, by this process."""

    record: RunRecord
    clock: Clock
    health: Health
    watch: Watch
    alone: bool = False  # no other process has a part in it


class Task(ABC):
    """What is learned, and from what. `health` may be told more than the loop tells it."""

    def __init__(self, state: TrainState):
        self.state, self.ledger = state, flops.Ledger()

    @abstractmethod
    def batch(self, version: int) -> Any:
        """What the update of this version learns from; None where nothing is left."""

    @abstractmethod
    def step(self, batch: Any) -> Row:
        """Make the update; numbers of its row, which may still be on devices."""

    @abstractmethod
    def spend(self, version: int, batch: Any) -> Row:
        """Enter the update into the ledger; the rest of its row."""

    @abstractmethod
    def measure(self, version: int) -> list[Row]:
        """Rows of an evaluation, without the compute before it; it spends into the ledger too."""

    def spent(self) -> Row:
        """The compute of the updates made, as evaluation rows say it."""
        return self.ledger.row()

    def working(self) -> AbstractContextManager:
        """A context in which `batch` is asked."""
        return nullcontext()

    def at_rest(self) -> AbstractContextManager:
        """A context in which nothing but the loop is at work."""
        return nullcontext()

    def verdict(self, rows: list[Row]) -> Row:
        """What the manifest says of a run that is over, from the rows of its updates."""
        skipped = sum(row["update/skipped"] for row in rows)
        return {"steps_done": len(rows), "updates_skipped": int(skipped)}

    def arrays(self) -> dict[str, Any]:
        """What a checkpoint keeps of the devices ..."""
        return {"state": self.state}

    def host(self) -> dict[str, Any]:
        """... and of the host."""
        return {}

    def load(self, arrays: dict[str, Any], host: dict[str, Any]) -> None:
        """Go on from there; the ledger is loaded already."""
        self.state = arrays["state"]


class Loop:
    """One run of a task: `steps` updates, with an evaluation before, after and in between."""

    def __init__(self, task: Task, place: Place, checkpoints: Checkpoints, steps: int, every: int):
        self.task, self.place, self.checkpoints = task, place, checkpoints
        self.steps, self.every = steps, every
        self.version, self.measured, self.outlook = 0, -1, Outlook()

    def run(self, name: str, until: int = 0) -> None:
        """From the start, or the newest checkpoint, to the last update, which nothing saves.

        Raises Interrupted if the run was asked to stop, Ended if it pauses (`until`) or its outlook
        says so, NotFinite if numbers have spoilt it.
        """
        task, watch, last = self.task, self.place.watch, min(until or self.steps, self.steps)
        quiet = not (watch.progress and self.place.record.writes)
        with tqdm(total=self.steps, desc=name, disable=quiet, unit="step") as bar:
            if not self.restore():
                bar.set_postfix_str(self.measure(), refresh=False)
            bar.update(self.version)
            with task.working():
                while self.version < last and not self.outlook.stop:
                    if (batch := task.batch(self.version)) is None:
                        break
                    self.update(batch)
                    if self.version % self.every == 0 or self.version == self.steps:
                        bar.set_postfix_str(self.measure(), refresh=False)
                    bar.update()
                    flags = watch.stop(), self.checkpoints.due(self.version)
                    stopping, due = flags if self.place.alone else processes.any_of(*flags)
                    ends = self.version == last or bool(self.outlook.stop)
                    if (stopping or due or ends) and self.version < self.steps:
                        self.save()
                        if stopping:
                            reason = f"after update {self.version}; the same command goes on"
                            raise Interrupted(reason)
            if (self.outlook.stop or self.version >= last) and self.version < self.steps:
                raise Ended(f"stopped: {self.outlook.stop}" if self.outlook.stop else "paused")
            if self.measured < self.version:
                self.measure()  # the last of a run that has nothing left to learn from
        record = self.place.record
        record.update_manifest(**task.verdict(record.rows("metrics.jsonl")))

    def update(self, batch: Any) -> None:
        task, place, version = self.task, self.place, self.version
        with place.clock.phase("train"):
            metrics = task.step(batch)
            numbers = map(float, jax.device_get([*metrics.values()]))
        row = {"step": version, **dict(zip(metrics, numbers, strict=True))}
        row |= task.spend(version, batch)
        place.record.append("metrics.jsonl", row)
        place.watch.track(version, row)
        self.version += 1
        place.health.updated(row, self.version)

    def measure(self) -> str:
        """Evaluate, with the compute spent when the update ended; a line for the bar."""
        task, (record, clock, health, watch, _) = self.task, self.place
        with task.at_rest(), clock.phase("eval"):
            rows = task.measure(self.version)
        spent = task.spent() | {"eval_flops": task.ledger.eval_flops}
        at = {"step": self.version, "version": self.version}
        for row in rows:
            record.append("evals.jsonl", at | row | spent)
            health.measured(at | row)
        named = {"eval" if row is rows[0] else f"eval_{row['eval_set']}": row for row in rows}
        self.outlook = watch.forecast()
        watch.track(self.version, {**named, "spent": spent, "forecast": self.outlook.numbers})
        record.append("clock.jsonl", clock.row(self.version))
        self.measured = self.version
        busy_s = clock.device_s["generate"] + clock.device_s["train"]
        tokens = task.ledger.tokens_generated or task.ledger.tokens_trained
        rate = f"{self.outlook.text}{tokens / max(busy_s, 1e-9):,.0f} tok/s"
        return f"pass {rows[0]['mean']:.3f}, {rate}" if rows else rate

    def save(self) -> None:
        """Start a checkpoint of this moment, between two updates."""
        task, place = self.task, self.place
        with task.at_rest(), place.clock.phase("checkpoint"):
            host = {
                "version": self.version,
                "measured": self.measured,
                "health": place.health.state_dict(),
                "ledger": dict(vars(task.ledger)),
                "clock": place.clock.state_dict(),
                **task.host(),
                **place.record.marks(ROWS),
            }
            self.checkpoints.save(self.version, task.arrays(), host)

    def restore(self) -> bool:
        """Go back to the newest checkpoint, if there is one; rows after it are cut off."""
        task, (record, clock, health, *_) = self.task, self.place
        saved = self.checkpoints.restore(task.arrays())
        self.version, arrays, host = saved or (0, {}, {"offsets": dict.fromkeys(ROWS, 0)})
        record.refuse_changed(host)
        note_lost_work(record, self.version, host["clock"]["wall_s"] if saved else 0.0)
        record.truncate(host["offsets"])
        if not saved:
            return False
        self.measured = host.get("measured", self.version)
        health.load(host["health"])
        vars(task.ledger).update(host["ledger"])
        clock.load(host["clock"])
        task.load(arrays, host)
        return True


def locked(record: RunRecord, key: str) -> AbstractContextManager:
    """A context in which no other process may write there. InputError if one does now."""
    try:
        return record.lock() if record.writes else nullcontext()
    except Busy as error:
        remedy = "wait for its end, or choose another directory"
        raise InputError(key, record.path, str(error), remedy) from None


def note_lost_work(record: RunRecord, since: int, before_s: float) -> None:
    """Keep a note of the updates, FLOPs and seconds that are about to be done again.

    since: the updates that are kept, which took `before_s`. The rows of one evaluation, a row per
    evaluation set, share their step and their compute.
    """
    if not record.writes:
        return
    evals, clocks = record.rows("evals.jsonl"), record.rows("clock.jsonl")
    reached = max([len(record.rows("metrics.jsonl")), *(row["step"] for row in evals[-1:])])
    if reached <= since:
        return
    compute = [row["compute"] for row in evals]
    kept = [row["compute"] for row in evals if since and row["step"] <= since]
    lost = {
        "step": since,
        "updates_lost": reached - since,
        "compute_lost": (compute or [0.0])[-1] - (kept or [0.0])[-1],
        "wall_s_lost": max(clocks[-1]["wall_s"] - before_s, 0.0) if clocks else 0.0,
    }
    record.append("restarts.jsonl", lost)
