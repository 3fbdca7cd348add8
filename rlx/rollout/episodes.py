"""Episodes: the policy and the environment take turns in one sequence.

    prompt | what the policy draws, its stop token | what the environment replies | the next turn

`Episodes` makes them of the turns that another generator draws, and is a generator itself. Tokens
in, tokens out: what was drawn stays as it was drawn, and is decoded for the environment's eyes
alone; a reply is encoded once and enters as tokens that no policy drew (version INJECTED), in a
chat with the template's text from the end of one answer to the beginning of the next. A sequence
goes on in its own cache, so no token is ever computed twice.

An episode is over when the environment says nothing more, or after `episode.max_turns`; a turn at
its limit of tokens, or a reply that leaves no room to answer, cuts it (it has not `stopped`). An
environment that fails to reply (rlx.envs.grading) ends it too, without a score.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax

from rlx import processes
from rlx.config import Config
from rlx.envs.grading import Failure, Graders, Outcome, failed
from rlx.errors import InputError
from rlx.rollout.generator import Drawn, Finished, Generator, Key, Request, Said, Weights
from rlx.types import Problem


@dataclass
class _Open:
    """An episode that is not over."""

    problem: Problem
    turns: list[str] = field(default_factory=list)
    start: int = 0  # tokens before the turn that is drawn


class Episodes:
    def __init__(self, single: Generator, config: Config, graders: Graders):
        """single: draws turns."""
        self.single, self.graders, self.limits = single, graders, config.episode
        self.ids, self.T = graders.env.tokenizer, config.rollout.max_new_tokens
        self.turn_tokens = config.turn_tokens
        self.open: dict[Key, _Open] = {}
        self.next: list[Request] = []  # turns that begin at the next `begin`
        self.reply_s = 0.0

    @property
    def free(self) -> int:
        return self.single.free

    @property
    def nbytes(self) -> int:
        return self.single.nbytes

    def submit(self, requests: Sequence[Request]) -> None:
        """Each with its problem."""
        for request in requests:
            assert request.problem is not None
            self.open[request.key] = _Open(request.problem)
            limit = min(self.turn_tokens, request.limit)
            self.single.submit([request._replace(limit=limit, holds=True)])

    def begin(self, weights: Weights, tokens: int) -> None:
        self.single.submit(self.next)
        self.next = []
        self.single.begin(weights, tokens)

    def collect(self) -> tuple[list[Finished], Drawn]:
        """Episodes that are over; the environment replies to the others meanwhile."""
        turns, drawn = self.single.collect()
        over = {sample.key: self._ended(sample) for sample in turns}
        asked = [sample for sample in turns if over[sample.key] is None]
        for sample, reply in zip(asked, self._replies(asked), strict=True):
            over[sample.key] = self._went_on(sample, reply)
        ended = [turn._replace(said=said) for turn in turns if (said := over[turn.key])]
        self.single.release([sample.key for sample in ended])
        for sample in ended:
            del self.open[sample.key]
        return ended, drawn

    def _ended(self, sample: Finished) -> Said | None:
        """The episode, if this turn is the last whatever the environment says."""
        it = self.open[sample.key]
        it.turns.append(self.ids.decode(sample.token_T[it.start :].tolist()))
        stopped = int(sample.token_T[-1]) in self.ids.stop_ids
        last = len(it.turns) // 2 + 1 == self.limits.max_turns
        return Said(tuple(it.turns), stopped) if last or not stopped else None

    def _replies(self, asked: Sequence[Finished]) -> list[Outcome]:
        """Of the environment; the processes of a run share the work."""
        limits, before = self.limits, time.perf_counter()
        episodes = [self.open[sample.key] for sample in asked]
        items = [(it.problem, tuple(it.turns), limits.reply_chars) for it in episodes]
        replies = processes.gathered(items, lambda some: self.graders.reply(some, limits.reply_s))
        self.reply_s += time.perf_counter() - before
        return replies

    def _went_on(self, sample: Finished, reply: Outcome) -> Said | None:
        """None if another turn begins; else the episode."""
        it, n = self.open[sample.key], len(sample.token_T)
        if reply.failure is not None:
            return Said(tuple(it.turns), True, int(reply.failure))
        if reply.text is None:
            return Said(tuple(it.turns), True)
        ids, unsaid = self._encoded(reply.text)
        if unsaid is not None:
            self.graders.note(it.problem, "does not reply to", unsaid)
            return Said(tuple(it.turns), True, int(Failure.ERROR))
        it.start = n + len(ids)
        if it.start >= self.T:
            return Said(tuple(it.turns), False)
        it.turns.append(reply.text)
        limit = min(it.start + self.turn_tokens, self.T)
        self.next.append(Request(sample.key, ids, limit, (), holds=True, continues=True))
        return None

    def _encoded(self, text: str) -> tuple[list[int], Outcome | None]:
        """Tokens of a reply, or why there are none."""
        try:
            ids = self.ids.encode_reply(text)
        except InputError as error:
            return [], failed(f"reply {text[:40]!r}: {error}")
        return ids, None if ids else failed("an empty reply")

    def release(self, keys: Sequence[Key]) -> None:
        """None is held."""
        assert not keys

    @contextmanager
    def aside(self, key: jax.Array) -> Iterator[None]:
        before = dict(vars(self))
        self.open, self.next = {}, []
        with self.single.aside(key):
            try:
                yield
            finally:
                vars(self).update(before)

    def state_dict(self) -> dict[str, Any]:
        episodes = [[*key, it.problem.id, it.turns, it.start] for key, it in self.open.items()]
        turns = [[*turn.key, list(map(int, turn.ids)), turn.limit] for turn in self.next]
        own = {"open": episodes, "next": turns, "reply_s": self.reply_s}
        return {**own, "single": self.single.state_dict()}

    def arrays(self) -> Any:
        return self.single.arrays()

    def load(self, state: dict[str, Any], arrays: Any) -> None:
        """Those of training: problems are found again by their ids."""
        train, self.reply_s = self.graders.env.train, state["reply_s"]
        self.open = {(s, g): _Open(train[i], turns, n) for s, g, i, turns, n in state["open"]}
        self.next = [
            Request((s, g), ids, limit, (), holds=True, continues=True)
            for s, g, ids, limit in state["next"]
        ]
        self.single.load(state["single"], arrays)
