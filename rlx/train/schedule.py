"""The order of generation and updates: three schedules.

`advance` returns True when the next update is due, and False if there will be none, because every
training prompt is retired. While refilled groups keep it waiting, it asks `stop` between chunks,
and raises StopAsked. The order of events is in `Engine.events`; the loop records it with each
update, so a run can be replayed.

    VirtualClock  generator and learner alternate, on a clock that counts decode chunks. An update
                  takes `decode_chunks_per_update` chunks, during which generation continues with
                  the old weights; if the staleness bound leaves the generator nothing to do, the
                  update ends at once. The clock does not measure time, so runs repeat bit for bit.
    Threads       they run concurrently, on separate devices, at hardware speed.
    Replay        one thread repeats the recorded order of another run: of a run by threads, bit for
                  bit. When groups are complete depends on every token, so the configuration must
                  be that run's. What may differ: the number of updates, evaluations and what
                  else decides the order (`FREE`), a run's names, and where it runs.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax

from rlx.config import Config, another
from rlx.record import RunRecord
from rlx.rollout.buffer import Buffer
from rlx.rollout.engine import Engine
from rlx.rollout.generator import Weights
from rlx.train.clock import Clock
from rlx.types import StopAsked

Stop = Callable[[], bool]
OF_SCHEDULE = ("schedule", "replay", "decode_chunks_per_update")
FREE = ("steps", "eval", *(f"pipeline.{name}" for name in OF_SCHEDULE))


class OneThread(AbstractContextManager):
    def at_rest(self) -> AbstractContextManager:
        """A context in which nothing is generated, for checkpoints."""
        return nullcontext()

    def __exit__(self, *_) -> None:
        pass


class VirtualClock(OneThread):
    def __init__(
        self,
        engine: Engine,
        buffer: Buffer,
        weights: Weights,
        clock: Clock,
        stop: Stop,
        chunks: int,
    ):
        self.engine, self.buffer, self.weights = engine, buffer, weights
        self.clock, self.stop, self.chunks_per_update = clock, stop, chunks

    def advance(self) -> bool:
        overlapping = 0
        while True:
            ready = self.buffer.ready()
            if not self.engine.has_work() or ready and overlapping >= self.chunks_per_update:
                return ready
            if self.buffer.stuck and not ready and self.stop():
                raise StopAsked
            with self.clock.phase("generate", overlaps=ready):
                self.engine.step(self.weights)
            overlapping += ready


class Threads(AbstractContextManager):
    def __init__(self, engine: Engine, buffer: Buffer, weights: Weights, clock: Clock, stop: Stop):
        self.engine, self.buffer, self.weights, self.clock = engine, buffer, weights, clock
        self.stop = stop
        self.changed = threading.Condition(engine.lock)  # notified of updates and finished chunks
        self.over, self.error = False, None
        self.resting, self.working = False, False
        self.thread = threading.Thread(target=self._generate, name="generator", daemon=True)
        clock.concurrent = True

    def __enter__(self) -> Threads:
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        with self.changed:
            self.over = True
            self.changed.notify_all()
        self.thread.join()

    def _generate(self) -> None:
        try:
            while self._wait_for_work():
                with self.clock.phase("generate"):
                    self.engine.step(self.weights)
                with self.changed:
                    self.working = False
                    self.changed.notify_all()
        except BaseException as error:  # raised again by the learner's thread
            with self.changed:
                self.error = error
                self.changed.notify_all()

    def _wait_for_work(self) -> bool:
        """False once the run is over."""
        with self.changed:
            self.changed.wait_for(lambda: self.over or not self.resting and self.engine.has_work())
            self.working = not self.over
            return self.working

    @contextmanager
    def at_rest(self):
        with self.changed:
            self.resting = True
            self.changed.wait_for(lambda: self.error or not self.working)
        try:
            yield
        finally:
            with self.changed:
                self.resting = False
                self.changed.notify_all()

    def advance(self) -> bool:
        with self.changed:
            self.changed.notify_all()  # an update may have given the generator work
            idle = lambda: self.error or not self.engine.has_work()  # noqa: E731
            stops = lambda: self.buffer.stuck and self.stop()  # noqa: E731
            self.changed.wait_for(lambda: self.buffer.ready() or idle() or stops())
            if self.error:
                raise self.error
            if not self.buffer.ready() and not idle():
                raise StopAsked
            return self.buffer.ready()


class Replay(OneThread):
    def __init__(self, engine: Engine, weights: Weights, clock: Clock, events: Sequence[str]):
        """`events[v]`: the events between the updates of versions v - 1 and v."""
        self.engine, self.weights, self.clock, self.events = engine, weights, clock, events

    def advance(self) -> bool:
        if self.weights.version >= len(self.events):
            return False
        for event in self.events[self.weights.version]:
            with self.clock.phase("generate"):
                if event == "b":
                    self.engine.begin(self.weights)
                else:
                    self.engine.collect()
        if not self.engine.buffer.ready():
            reason = f"its events leave groups of update {self.weights.version} incomplete"
            remedy = "repeat it on the same devices, with the same versions of packages"
            self.engine.config.refuse("pipeline.replay", reason, remedy)
        return True


def events_of(config: Config) -> list[str]:
    """The events before each update of the run to replay.

    Raises InputError if it recorded none, or has another configuration.
    """
    record = RunRecord(config.pipeline.replay, writes=False)
    events = [row.get("schedule/events") for row in record.rows("metrics.jsonl")]
    if not events:
        reason, remedy = "it has no metrics.jsonl with updates", "give the directory of a run"
        config.refuse("pipeline.replay", reason, remedy)
    if any(not isinstance(done, str) for done in events):
        reason = "its metrics.jsonl has no schedule/events"
        config.refuse("pipeline.replay", reason, "replay another run")
    if other := another(begun(record.manifest), config, FREE):
        reason = f"a run of another configuration: {other}"
        config.refuse("pipeline.replay", reason, "set these as in that run")
    return events


def begun(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest whose configuration names the checkpoints of other runs that it began with."""
    made = copy.deepcopy(manifest)
    for key, step in made.get("sources", {}).items():
        section, name = key.split(".")
        made["config"][section][name] += f"/checkpoints/{step}"
    return made


def make(
    config: Config,
    engine: Engine,
    buffer: Buffer,
    weights: Weights,
    clock: Clock,
    stop: Stop = lambda: False,
) -> VirtualClock | Threads | Replay:
    """The schedule of the configuration. Raises InputError if there is nothing to replay."""
    pipeline = config.pipeline
    if pipeline.replay:
        return Replay(engine, weights, clock, events_of(config))
    if pipeline.schedule == "threads" and jax.process_count() > 1:
        reason = "threads of several processes would run in different orders"
        remedy = "set pipeline.schedule=deterministic"
        config.refuse("pipeline.schedule", reason, remedy)
    if pipeline.schedule == "threads":
        return Threads(engine, buffer, weights, clock, stop)
    return VirtualClock(engine, buffer, weights, clock, stop, pipeline.decode_chunks_per_update)
