"""The loop of every run: batch, step, measure, from the newest checkpoint to the last update.

Reinforcement learning, supervised fine-tuning, reward models and warm starts are tasks of it. It
handles everything else that a run needs: rows, dashboard, checkpoints, restarts, signals, numbers
that are not finite, the progress bar.

A run that stops resumes from its newest checkpoint: its rows are truncated to that moment, and
everything after it is computed again. The result is that of a run that never stopped, bit for bit
unless threads determine its schedule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, NoReturn

import jax
from tqdm import tqdm

from rlx import flops, processes
from rlx.checkpoint import Checkpoints
from rlx.errors import InputError
from rlx.record import Busy, RunRecord
from rlx.train.clock import Clock
from rlx.train.guard import Guard
from rlx.train.health import Health
from rlx.types import StopAsked, TrainState

Row = dict[str, Any]
ROWS = ("evals.jsonl", "metrics.jsonl", "clock.jsonl")
Stop = Callable[[], bool]
Forecast = Callable[[], "Outlook"]  # called after every evaluation
Track = Callable[[int, Row], None]


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and has written a checkpoint."""


class Ended(Exception):
    """The run ends before its last update, with this status, and has written a checkpoint."""


class Outlook(NamedTuple):
    """A run's forecast of itself: as text, as numbers for the dashboard, and why to stop now."""

    text: str = ""  # ends with ", ": on the progress bar it is followed by the speed
    numbers: dict[str, float] = {}
    stop: str = ""


def never() -> bool:
    return False


def untracked(step: int, row: Row) -> None:
    pass


class Watch(NamedTuple):
    """Hooks of a running run."""

    progress: bool = False  # a bar at the terminal
    stop: Stop = never  # called after every update, and while there may never be one
    forecast: Forecast = Outlook
    track: Track = untracked  # the dashboard


UNWATCHED = Watch()


class Place(NamedTuple):
    """Where this process records a run."""

    record: RunRecord
    clock: Clock
    health: Health
    watch: Watch
    alone: bool = False  # no other process takes part


class Task(ABC):
    """What is trained, and on which batches. A task may report to `health` itself."""

    def __init__(self, state: TrainState):
        self.state, self.ledger, self.guard = state, flops.Ledger(), Guard()

    @abstractmethod
    def batch(self, version: int) -> Any:
        """The batch of the update of this version; None if there are no more."""

    @abstractmethod
    def step(self, batch: Any) -> Row:
        """Make the update; metrics of its row, which may still be on devices."""

    @abstractmethod
    def spend(self, version: int, batch: Any) -> Row:
        """Add the update to the ledger; the rest of its row."""

    @abstractmethod
    def measure(self, version: int) -> list[Row]:
        """Rows of an evaluation without the compute so far; adds its own to the ledger."""

    def spent(self) -> Row:
        """The compute of the updates so far, for evaluation rows."""
        return self.ledger.row()

    def clocks(self) -> Row:
        """Seconds measured by the task, for the rows of clocks."""
        return {}

    def working(self) -> AbstractContextManager:
        """A context around all calls of `batch`."""
        return nullcontext()

    def at_rest(self) -> AbstractContextManager:
        """A context in which no other thread works on the task."""
        return nullcontext()

    def verdict(self, rows: list[Row]) -> Row:
        """Fields of the manifest of a finished run, from the rows of its updates."""
        skipped = sum(row["update/skipped"] for row in rows)
        return {"steps_done": len(rows), "updates_skipped": int(skipped)}

    def arrays(self) -> dict[str, Any]:
        """The device part of a checkpoint."""
        return {"state": self.state}

    def host(self) -> dict[str, Any]:
        """The host part of a checkpoint."""
        return {}

    def load(self, arrays: dict[str, Any], host: dict[str, Any]) -> None:
        """Restore both; the ledger is restored already."""
        self.state = arrays["state"]


class Loop:
    """A run of a task: `steps` updates; evaluated before, after and every `every` updates."""

    def __init__(self, task: Task, place: Place, checkpoints: Checkpoints, steps: int, every: int):
        self.task, self.place, self.checkpoints = task, place, checkpoints
        self.steps, self.every = steps, every
        self.version, self.measured, self.outlook = 0, -1, Outlook()

    def run(self, name: str, until: int = 0) -> None:
        """From the start, or the newest checkpoint, to the last update, which is not saved.

        Raises Interrupted if the run was asked to stop, Ended if it pauses (`until`) or its
        outlook or guard ends it, NotFinite if numbers are not finite.
        """
        task, watch, last = self.task, self.place.watch, min(until or self.steps, self.steps)
        quiet = not (watch.progress and self.place.record.writes)
        with tqdm(total=self.steps, desc=name, disable=quiet, unit="step") as bar:
            if not self.restore():
                bar.set_postfix_str(self.measure(), refresh=False)
            bar.update(self.version)
            with task.working():
                while self.version < last and not self.stopped:
                    try:
                        batch = task.batch(self.version)
                    except StopAsked:
                        self.interrupt()
                    if batch is None:
                        break
                    self.update(batch)
                    if self.version % self.every == 0 or self.version == self.steps:
                        bar.set_postfix_str(self.measure(), refresh=False)
                    bar.update()
                    flags = watch.stop(), self.checkpoints.due(self.version)
                    stopping, due = flags if self.place.alone else processes.any_of(*flags)
                    ends = self.version == last or bool(self.stopped)
                    if stopping and self.version < self.steps:
                        self.interrupt()
                    if (due or ends) and self.version < self.steps:
                        self.save()
            if (self.stopped or self.version >= last) and self.version < self.steps:
                raise Ended(f"stopped: {self.stopped}" if self.stopped else "paused")
            if self.measured < self.version:
                self.measure()  # the last one, if the task has no more batches
        record = self.place.record
        record.update_manifest(**task.verdict(record.rows("metrics.jsonl")))

    @property
    def stopped(self) -> str:
        """Why the run ends before its last update; empty if it does not."""
        return self.outlook.stop or self.task.guard.stop

    def update(self, batch: Any) -> None:
        task, place, version = self.task, self.place, self.version
        with place.clock.phase("train"):
            metrics = task.step(batch)
            numbers = map(float, jax.device_get([*metrics.values()]))
        row = {"step": version, **dict(zip(metrics, numbers, strict=True))}
        row |= task.spend(version, batch)
        row |= (guarded := task.guard.after(row))
        if event := guarded.get("guard/event"):
            place.health.note(f"guard {version}", 1, f"update {version}: {event}")
        place.record.append("metrics.jsonl", row)
        place.watch.track(version, row)
        self.version += 1
        place.health.updated(row, self.version)

    def measure(self) -> str:
        """Evaluate, with the compute spent at the end of the update; a line for the bar."""
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
        record.append("clock.jsonl", clock.row(self.version) | task.clocks())
        self.measured = self.version
        busy_s = clock.device_s["generate"] + clock.device_s["train"]
        tokens = task.ledger.tokens_generated or task.ledger.tokens_trained
        rate = f"{self.outlook.text}{tokens / max(busy_s, 1e-9):,.0f} tok/s"
        return f"pass {rows[0]['mean']:.3f}, {rate}" if rows else rate

    def save(self) -> None:
        """Start a checkpoint between two updates."""
        task, place = self.task, self.place
        with task.at_rest(), place.clock.phase("checkpoint"):
            host = {
                "version": self.version,
                "measured": self.measured,
                "health": place.health.state_dict(),
                "ledger": dict(vars(task.ledger)),
                "guard": task.guard.state_dict(),
                "clock": place.clock.state_dict(),
                **task.host(),
                **place.record.marks(ROWS),
            }
            self.checkpoints.save(self.version, task.arrays(), host)

    def interrupt(self) -> NoReturn:
        self.save()
        raise Interrupted(f"after update {self.version}; repeat the command to resume")

    def restore(self) -> bool:
        """Restore the newest checkpoint, if there is one; rows after it are cut off."""
        task, (record, clock, health, *_) = self.task, self.place
        saved = self.checkpoints.restore(task.arrays())
        self.version, arrays, host = saved or (0, {}, {"offsets": dict.fromkeys(ROWS, 0)})
        record.refuse_changed(host)
        kept = flops.Ledger(**host.get("ledger", {})).compute
        note_lost_work(record, self.version, kept, host["clock"]["wall_s"] if saved else 0.0)
        record.truncate(host["offsets"])
        if not saved:
            return False
        self.measured = host.get("measured", self.version)
        health.load(host["health"])
        vars(task.ledger).update(host["ledger"])
        task.guard.load(host.get("guard", {}))
        clock.load(host["clock"])
        task.load(arrays, host)
        return True


def locked(record: RunRecord, key: str) -> AbstractContextManager:
    """A context in which no other process can write there. Raises InputError if one is writing."""
    try:
        return record.lock() if record.writes else nullcontext()
    except Busy as error:
        remedy = "wait until it ends, or choose another directory"
        raise InputError(key, record.path, str(error), remedy) from None


def note_lost_work(record: RunRecord, since: int, before: float, before_s: float) -> None:
    """Record the updates that are about to be repeated, with what is known of their cost.

    since: the updates that are kept, which took `before` FLOPs and `before_s` seconds. Cost is
    measured at evaluations: it is that up to the last one, and None if no lost update was followed
    by one.
    """
    if not record.writes:
        return
    evals, clocks = record.rows("evals.jsonl"), record.rows("clock.jsonl")
    reached = max([len(record.rows("metrics.jsonl")), *(row["step"] for row in evals[-1:])])
    if reached <= since:
        return
    compute = [row["compute"] for row in evals if row["step"] > since]
    seconds = [row["wall_s"] for row in clocks if row["step"] > since]
    lost = {
        "step": since,
        "updates_lost": reached - since,
        "compute_lost": compute[-1] - before if compute else None,
        "wall_s_lost": seconds[-1] - before_s if seconds else None,
    }
    record.append("restarts.jsonl", lost)
