"""Who acts when: three ways to keep the generator going while the learner makes updates.

`advance` returns when the learner is to make its next update, or says False where none can come
any more because every training prompt is retired. The order of what happened is in
`Engine.events`; the loop writes it beside each update, so a run can be replayed.

    VirtualClock  they take turns; a clock counted in decode chunks says for how long. An update
                  takes `decode_chunks_per_update` chunks, during which the generator goes on with
                  the weights it has; where the staleness bound leaves it nothing to do, the update
                  ends at once. The clock counts, it does not measure: runs repeat bit for bit.
    Threads       they work at the same time, each on devices of its own, at the machine's pace.
    Replay        one thread does what another run did, in the same order.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import jax

from rlx.config import PipelineConfig
from rlx.errors import InputError
from rlx.record import read_rows
from rlx.rollout.buffer import Buffer
from rlx.rollout.engine import Engine
from rlx.rollout.generator import Weights
from rlx.train.clock import Clock


class OneThread(AbstractContextManager):
    def at_rest(self) -> AbstractContextManager:
        """While inside, nothing is generated: what a checkpoint needs."""
        return nullcontext()

    def __exit__(self, *_) -> None:
        pass


class VirtualClock(OneThread):
    def __init__(self, engine: Engine, buffer: Buffer, weights: Weights, clock: Clock, chunks: int):
        self.engine, self.buffer, self.weights = engine, buffer, weights
        self.clock, self.chunks_per_update = clock, chunks

    def advance(self) -> bool:
        overlapping = 0
        while True:
            ready = self.buffer.ready()
            if not self.engine.has_work() or ready and overlapping >= self.chunks_per_update:
                return ready
            with self.clock.phase("generate", overlaps=ready):
                self.engine.step(self.weights)
            overlapping += ready


class Threads(AbstractContextManager):
    def __init__(self, engine: Engine, buffer: Buffer, weights: Weights, clock: Clock):
        self.engine, self.buffer, self.weights, self.clock = engine, buffer, weights, clock
        self.changed = threading.Condition(engine.lock)  # by an update or a finished chunk
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
        except BaseException as error:  # the learner raises it
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
            self.changed.wait_for(
                lambda: self.buffer.ready() or self.error or not self.engine.has_work()
            )
            if self.error:
                raise self.error
            return self.buffer.ready()


class Replay(OneThread):
    def __init__(self, engine: Engine, weights: Weights, clock: Clock, events: Sequence[str]):
        """`events[v]`: what happened between the updates of versions v - 1 and v."""
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
        return True


def make(
    config: PipelineConfig, engine: Engine, buffer: Buffer, weights: Weights, clock: Clock
) -> VirtualClock | Threads | Replay:
    """The schedule that the configuration names. InputError if there is nothing to replay."""
    if config.replay:
        rows = read_rows(Path(config.replay) / "metrics.jsonl")
        if not rows:
            reason, remedy = "no metrics.jsonl with updates there", "give the directory of a run"
            raise InputError("pipeline.replay", config.replay, reason, remedy)
        events = [row.get("schedule/events") for row in rows]
        if any(not isinstance(done, str) for done in events):
            reason, remedy = "its metrics.jsonl says no schedule/events", "replay another run"
            raise InputError("pipeline.replay", config.replay, reason, remedy)
        return Replay(engine, weights, clock, events)
    if config.schedule == "threads" and jax.process_count() > 1:
        reason = "the threads of several processes would not agree on an order"
        remedy = "set pipeline.schedule=deterministic"
        raise InputError("pipeline.schedule", config.schedule, reason, remedy)
    if config.schedule == "threads":
        return Threads(engine, buffer, weights, clock)
    return VirtualClock(engine, buffer, weights, clock, config.decode_chunks_per_update)
