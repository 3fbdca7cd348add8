"""Episodes: the policy and the environment take turns in one sequence.

    prompt | what the policy draws, its stop token | what the environment replies | the next turn

`Episodes` builds them from the turns that another generator samples, and is a generator itself.
Sampled tokens are decoded for the environment, but never encoded again. A reply is encoded once and
added to the sequence (version INJECTED); in a chat, the template's text between two answers is
added with it. A sequence continues in its cache, so no token is computed twice.

An episode ends when the environment gives no reply, or after `episode.max_turns`. A turn at its
token limit, or a reply that leaves no room to answer, truncates it (`stopped` is False). An
environment that fails to reply (rlx.envs.grading) ends it without a score.
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
from rlx.rollout.generator import Drawn, Finished, Generator, Key, Request, Transcript, Weights
from rlx.types import Problem


@dataclass
class _Open:
    """An episode in progress."""

    problem: Problem
    turns: list[str] = field(default_factory=list)
    start: int = 0  # tokens before the current turn


class Episodes:
    def __init__(self, single: Generator, config: Config, graders: Graders):
        """single: the generator that samples the turns."""
        self.single, self.graders, self.limits = single, graders, config.episode
        self.ids, self.T = graders.env.tokenizer, config.rollout.max_new_tokens
        self.turn_tokens = config.turn_tokens
        self.open: dict[Key, _Open] = {}
        self.next: list[Request] = []  # turns that start at the next `begin`
        self.reply_s = 0.0

    @property
    def free(self) -> int:
        return self.single.free

    @property
    def nbytes(self) -> int:
        return self.single.nbytes

    def submit(self, requests: Sequence[Request]) -> None:
        """Every request must have a problem."""
        for request in requests:
            assert request.problem is not None
            self.open[request.key] = _Open(request.problem)
            limit = min(self.turn_tokens, request.limit)
            self.single.submit([request._replace(limit=limit, holds=True)])

    def begin(self, weights: Weights, tokens: int) -> None:
        self.single.submit(self.next)
        self.next = []
        self.single.begin(weights, tokens)

    def collect(self) -> tuple[Finished, Drawn]:
        """Finished episodes; the environment replies to the others."""
        turns, drawn = self.single.collect()
        length_N = turns.length_N.tolist()
        tokens = (x[:n].tolist() for x, n in zip(turns.token_NT, length_N, strict=True))
        over = list(map(self._ended, turns.keys, tokens))
        asked = [i for i, done in enumerate(over) if done is None]
        replies = self._replies([turns.keys[i] for i in asked])
        for i, reply in zip(asked, replies, strict=True):
            over[i] = self._continued(turns.keys[i], length_N[i], reply)
        ended = [i for i, done in enumerate(over) if done]
        keys = [turns.keys[i] for i in ended]
        self.single.release(keys)
        for key in keys:
            del self.open[key]
        arrays = (x if x is None else x[ended] for x in turns[1:-1])
        return Finished(keys, *arrays, [over[i] for i in ended]), drawn

    def _ended(self, key: Key, tokens: list[int]) -> Transcript | None:
        """The episode, if it ends with this turn and needs no reply."""
        episode = self.open[key]
        episode.turns.append(self.ids.decode(tokens[episode.start :]))
        stopped = tokens[-1] in self.ids.stop_ids
        last = len(episode.turns) // 2 + 1 == self.limits.max_turns
        return Transcript(tuple(episode.turns), stopped) if last or not stopped else None

    def _replies(self, asked: Sequence[Key]) -> list[Outcome]:
        """The environment's replies; the processes of a run share the work."""
        limits, before = self.limits, time.perf_counter()
        episodes = [self.open[key] for key in asked]
        items = [(e.problem, tuple(e.turns), limits.reply_chars) for e in episodes]
        replies = processes.gathered(items, lambda part: self.graders.reply(part, limits.reply_s))
        self.reply_s += time.perf_counter() - before
        return replies

    def _continued(self, key: Key, n: int, reply: Outcome) -> Transcript | None:
        """None if another turn starts after n tokens; otherwise the finished episode."""
        episode = self.open[key]
        if reply.failure is not None:
            return Transcript(tuple(episode.turns), True, int(reply.failure))
        if reply.text is None:
            return Transcript(tuple(episode.turns), True)
        ids, failure = self._encoded(reply.text)
        if failure is not None:
            self.graders.note(episode.problem, "does not reply to", failure)
            return Transcript(tuple(episode.turns), True, int(Failure.ERROR))
        episode.start = n + len(ids)
        if episode.start >= self.T:
            return Transcript(tuple(episode.turns), False)
        episode.turns.append(reply.text)
        limit = min(episode.start + self.turn_tokens, self.T)
        self.next.append(Request(key, ids, limit, (), holds=True, continues=True))
        return None

    def _encoded(self, text: str) -> tuple[list[int], Outcome | None]:
        """Tokens of a reply, or why there are none."""
        try:
            ids = self.ids.encode_reply(text)
        except InputError as error:
            return [], failed(f"reply {text[:40]!r}: {error}")
        return ids, None if ids else failed("an empty reply")

    def release(self, keys: Sequence[Key]) -> None:
        """Finished episodes are not held, so there is nothing to release."""
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
        episodes = [[*key, e.problem.id, e.turns, e.start] for key, e in self.open.items()]
        turns = [[*turn.key, list(map(int, turn.ids)), turn.limit] for turn in self.next]
        state = {"open": episodes, "next": turns, "reply_s": self.reply_s}
        return {**state, "single": self.single.state_dict()}

    def arrays(self) -> Any:
        return self.single.arrays()

    def load(self, state: dict[str, Any], arrays: Any) -> None:
        """Restore training episodes; problems are looked up by id."""
        train, self.reply_s = self.graders.env.train, state["reply_s"]
        self.open = {(s, g): _Open(train[i], turns, n) for s, g, i, turns, n in state["open"]}
        self.next = [
            Request((s, g), ids, limit, (), holds=True, continues=True)
            for s, g, ids, limit in state["next"]
        ]
        self.single.load(state["single"], arrays)
