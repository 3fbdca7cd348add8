"""Graded groups between generation and learning, and the bound on their staleness.

Groups are started with serial numbers 0, 1, 2, ... and learned from in that order, P at a time,
so a batch is decided before any of its samples is: nothing is selected by length, and nothing
is dropped. A group that is started when `ahead` groups before it are still to be learned from will
be used ahead // P updates later (sooner if groups are passed over), so

    pipeline       staleness <= k      by starting a group only while fewer than (k + 1) P are out
    sync           staleness  = 0      the same with k = 0: a batch, then its update
    ppo_off_policy staleness <= k - 1  k P groups are started, all finish, then k updates are made

Whoever would break the bound waits: the generator for an update, the learner for its oldest group.
"""

from __future__ import annotations

from rlx.types import Group


class Buffer:
    def __init__(self, kind: str, k: int, prompts_per_step: int):
        self.kind, self.k, self.P = kind, k, prompts_per_step
        self.started = 0  # groups given a serial number
        self.retired = 0  # groups learned from
        self.waiting: dict[int, Group] = {}  # finished, not yet learned from

    @property
    def max_staleness_steps(self) -> int:
        return self.k - 1 if self.kind == "ppo_off_policy" else self.k

    def _may_start_up_to(self) -> int:
        if self.kind == "ppo_off_policy":
            phase = self.k * self.P
            return (self.retired // phase + 1) * phase
        return self.retired + (self.k + 1) * self.P

    def may_start(self) -> bool:
        """Whether one more group can be started without ever breaking the bound."""
        return self.started < self._may_start_up_to()

    def start(self) -> int:
        """The serial number of a new group."""
        if not self.may_start():
            raise RuntimeError(f"group {self.started} would be staler than the bound allows")
        self.started += 1
        return self.started - 1

    def put(self, group: Group) -> None:
        if not self.retired <= group.serial < self.started or group.serial in self.waiting:
            raise RuntimeError(f"group {group.serial} was not started, or was put before")
        self.waiting[group.serial] = group

    def ready(self) -> bool:
        """Whether the next update has all its groups (ppo_off_policy: every group of the phase)."""
        end = self.retired + self.P
        if self.kind == "ppo_off_policy":
            end = self._may_start_up_to()
        return all(serial in self.waiting for serial in range(self.retired, end))

    def take(self, version: int) -> list[Group]:
        """The P oldest groups, for the update of weights `version`, which must follow at once."""
        batch = [self.waiting.pop(serial) for serial in range(self.retired, self.retired + self.P)]
        self.retired += self.P
        staleness = version - min(group.first_version for group in batch)
        if staleness > self.max_staleness_steps:
            raise RuntimeError(f"staleness {staleness} exceeds {self.max_staleness_steps}")
        return batch
