"""Graded groups between generation and training, and the bound on their staleness.

Groups start with serial numbers 0, 1, 2, ... and are trained on in that order, P at a time. A batch
is therefore fixed before it is sampled: nothing is selected by length, and nothing is dropped. A
group that starts with `ahead` earlier groups still in the queue is used ahead // P updates later
(sooner if groups are refilled), so

    pipeline       staleness <= k      a group starts only if fewer than (k + 1) P are in the queue
    sync           staleness  = 0      the same with k = 0: a batch, then its update
    ppo_off_policy staleness <= k - 1  k P groups start, all finish, then k updates are made

The bound is enforced by waiting: the generator for an update, the learner for its oldest group.

With `refill`, a finished group with zero variance leaves the queue at once and another may start:
batches are full, and the bound still holds, since the queue before a group only shrinks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlx.types import Group, NotFinite

Note = Callable[[str, int, str], None]  # rlx.train.health


class Buffer:
    def __init__(
        self, kind: str, k: int, prompts_per_step: int, refill: bool = False,
        note: Note = lambda kind, count, text: None,
    ):  # fmt: skip
        self.kind, self.k, self.P, self.refill = kind, k, prompts_per_step, refill
        self.note, self.refilled_in_a_row = note, 0
        self.started = 0  # groups given a serial number
        self.queue: list[int] = []  # serial numbers of groups not yet used, oldest first
        self.waiting: dict[int, Group] = {}  # the finished ones among them
        self.refilled = 0  # finished groups that left the queue with zero variance
        self.used_of_phase = 0  # ppo_off_policy: groups of this phase used already

    def state_dict(self) -> dict[str, Any]:
        waiting = {str(serial): dict(vars(group)) for serial, group in self.waiting.items()}
        numbers = {name: getattr(self, name) for name in ("started", "refilled", "used_of_phase")}
        return {**numbers, "queue": list(self.queue), "waiting": waiting}

    def load(self, state: dict[str, Any]) -> None:
        for name in ("started", "refilled", "used_of_phase", "queue"):
            setattr(self, name, state[name])
        self.waiting = {int(serial): Group(**g) for serial, g in state["waiting"].items()}

    @property
    def max_staleness_steps(self) -> int:
        return self.k - 1 if self.kind == "ppo_off_policy" else self.k

    @property
    def stuck(self) -> bool:
        """Whether as many groups as an update needs were refilled in a row: there may be no end."""
        return self.refilled_in_a_row >= self.P

    def may_start(self) -> bool:
        """Whether one more group can start within the bound."""
        if self.kind == "ppo_off_policy":
            return self.used_of_phase + len(self.queue) < self.k * self.P
        return len(self.queue) < (self.k + 1) * self.P

    def start(self) -> int:
        """The serial number of a new group."""
        if not self.may_start():
            raise RuntimeError(f"group {self.started} would be staler than the bound allows")
        self.queue.append(self.started)
        self.started += 1
        return self.started - 1

    def put(self, group: Group) -> bool:
        """Whether the finished group is kept. Raises NotFinite if its numbers are not finite."""
        if group.serial not in self.queue or group.serial in self.waiting:
            raise RuntimeError(f"group {group.serial} was not started, or was put before")
        if group.not_finite:
            what = ", ".join(group.not_finite)
            raise NotFinite(
                f"{what} of group {group.serial}, problem {group.problem_id}: not finite"
            )
        if self.refill and group.zero_variance:
            self.queue.remove(group.serial)
            self.refilled += 1
            self.refilled_in_a_row += 1
            text = f"{self.refilled_in_a_row} groups in a row had zero variance and were refilled"
            self.note("refilled", self.refilled_in_a_row // self.P, text)
            return False
        self.refilled_in_a_row = 0
        self.waiting[group.serial] = group
        return True

    def ready(self) -> bool:
        """Whether all groups of the next update are finished (ppo_off_policy: of the phase)."""
        needed = self.queue[: self.P]
        if self.kind == "ppo_off_policy":
            needed = self.queue
            if self.may_start():
                return False
        return len(needed) >= self.P and all(serial in self.waiting for serial in needed)

    def oldest(self) -> list[Group]:
        """The groups of the next update."""
        return [self.waiting[serial] for serial in self.queue[: self.P]]

    def take(self, version: int) -> list[Group]:
        """Remove and return them, for the update of weights `version`."""
        batch = self.oldest()
        staleness = version - min(group.first_version for group in batch)
        if staleness > self.max_staleness_steps:
            raise RuntimeError(f"staleness {staleness} exceeds {self.max_staleness_steps}")
        for group in batch:
            del self.waiting[group.serial]
        self.queue = self.queue[self.P :]
        if self.kind == "ppo_off_policy":
            self.used_of_phase = (self.used_of_phase + self.P) % (self.k * self.P)
        return batch
