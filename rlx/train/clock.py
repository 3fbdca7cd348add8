"""Seconds by phase: generation, training, evaluation, compilation."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax


class Clock:
    """Compilation is subtracted from the phase of its thread.

    `modelled_device_s` is the makespan: the sum of phases where generator and learner alternate,
    the longer one where generation overlaps an update on the virtual clock, and, if they are
    `concurrent`, the wall time without evaluation, compilation and checkpoints.
    """

    def __init__(self):
        self.start, self._before_s = time.perf_counter(), 0.0
        self.device_s = dict.fromkeys(
            ("generate", "train", "idle", "compile", "checkpoint", "eval"), 0.0
        )
        self.concurrent = False
        self._modelled_s = 0.0
        self._overlapped_s = 0.0  # generation since the learner's groups were ready
        self._compiled_s: dict[int, float] = defaultdict(float)  # by thread
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, event: str, seconds: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile"):
            self._compiled_s[threading.get_ident()] += seconds
            self.device_s["compile"] += seconds

    @contextmanager
    def phase(self, name: str, overlaps: bool = False) -> Iterator[None]:
        """Charge the time inside to `name`. overlaps: generation during an update."""
        me = threading.get_ident()
        start, compiled_s = time.perf_counter(), self._compiled_s[me]
        yield
        seconds = time.perf_counter() - start - (self._compiled_s[me] - compiled_s)
        self.device_s[name] += seconds
        if name == "generate" and overlaps:
            self._overlapped_s += seconds
        elif name == "generate":
            self._modelled_s += seconds
        elif name == "train":
            self._modelled_s += max(seconds, self._overlapped_s)
            self._overlapped_s = 0.0

    def state_dict(self) -> dict[str, Any]:
        spent = {"wall_s": self.wall_s, "modelled_s": self._modelled_s}
        return {**spent, "device_s": dict(self.device_s)}

    def load(self, state: dict[str, Any]) -> None:
        """Resume, adding the seconds since this clock was started."""
        self._before_s = state["wall_s"]
        for name, seconds in state["device_s"].items():
            self.device_s[name] += seconds
        self._modelled_s = state["modelled_s"]

    @property
    def wall_s(self) -> float:
        return self._before_s + time.perf_counter() - self.start

    @property
    def modelled_device_s(self) -> float:
        if not self.concurrent:
            return self._modelled_s
        apart = ("eval", "compile", "checkpoint")
        return self.wall_s - sum(self.device_s[name] for name in apart)

    def row(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "wall_s": self.wall_s,
            "device_s": dict(self.device_s),
            "modelled_device_s": self.modelled_device_s,
        }

    def close(self) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_event)
