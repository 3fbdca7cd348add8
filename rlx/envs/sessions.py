"""State that an environment keeps about open episodes, found again by their history.

An environment is called with all turns of an episode, so kept state is only a cache: it is keyed by
history, may belong to another episode with the same history, and is rebuilt if it is lost (its
process was killed, the run was resumed elsewhere, too many are open).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

OPEN = 64  # sessions per process; beyond that the oldest is ended


class Sessions:
    def __init__(self, end: Callable[[Any], None]):
        """end: called with a session that is not needed any more."""
        self.end = end
        self.kept: dict[Hashable, list[Any]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.kept.values()))

    def take(self, history: Hashable) -> Any | None:
        """Remove and return a session with this history."""
        kept = self.kept.get(history)
        if not kept:
            return None
        session = kept.pop()
        if not kept:
            del self.kept[history]
        return session

    def keep(self, history: Hashable, session: Any) -> None:
        self.kept.setdefault(history, []).append(session)
        if len(self) > OPEN:
            self.over(next(iter(self.kept)))

    def over(self, history: Hashable) -> None:
        """The episode of this history has ended."""
        if (session := self.take(history)) is not None:
            self.end(session)

    def close(self) -> None:
        while self.kept:
            self.over(next(iter(self.kept)))
