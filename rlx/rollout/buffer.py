"""Graded groups between generation and learning, and the bound on their staleness.

Groups are started with serial numbers 0, 1, 2, ... and learned from in that order, P at a time,
so a batch is decided before any of its samples is: nothing is selected by length, and nothing
is dropped. A group that is started when `ahead` groups before it are still to be learned from will
be used ahead // P updates later (sooner if groups are passed over), so

    pipeline       staleness <= k      by starting a group only while fewer than (k + 1) P are out
    sync           staleness  = 0      the same with k = 0: a batch, then its update
    ppo_off_policy staleness <= k - 1  k P groups are started, all finish, then k updates are made

Whoever would break the bound waits: the generator for an update, the learner for its oldest group.

With `refill`, a finished group whose samples all score alike leaves the queue at once and another
may start in its place: batches are full, and the bound is the same, since what stands before a
group only ever gets less.
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
        self.queue: list[int] = []  # those still to be learned from, oldest first
        self.waiting: dict[int, Group] = {}  # of these, the finished ones
        self.refilled = 0  # finished groups that left the queue for want of variance
        self.used_of_phase = 0  # ppo_off_policy: groups of this phase learned from already

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

    def may_start(self) -> bool:
        """Whether one more group can be started without ever breaking the bound."""
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
            said = (
                f"{self.refilled_in_a_row} groups in a row were refilled: each was rewarded alike"
            )
            self.note("refilled", self.refilled_in_a_row // self.P, said)
            return False
        self.refilled_in_a_row = 0
        self.waiting[group.serial] = group
        return True

    def ready(self) -> bool:
        """Whether the next update has all its groups (ppo_off_policy: every group of the phase)."""
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
        """The same, and they leave the buffer; the update of weights `version` follows at once."""
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
