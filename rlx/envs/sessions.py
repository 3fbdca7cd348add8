"""What an environment keeps about episodes that are not over, found again by what has happened.

An environment is asked with all turns of an episode, so whatever it keeps beside is no more than a
saving: known by its history, it may be another episode's of the same history, and one that is lost
(its process was killed, the run was resumed elsewhere, too many are open) is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

OPEN = 64  # of one process; the oldest is ended


class Sessions:
    def __init__(self, end: Callable[[Any], None]):
        """end: is called with a session that nobody needs any more."""
        self.end = end
        self.kept: dict[Hashable, list[Any]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.kept.values()))

    def take(self, history: Hashable) -> Any | None:
        """One with this history, which is kept no longer."""
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
