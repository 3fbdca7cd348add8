"""The generator on the host: problems in, graded groups out.

Prompts come from the finite training set in epochs, each a permutation of its own; the problem of
a group follows from its serial number alone. A group waits until as many slots are free as it has
samples, then starts; its slots are refilled as soon as the whole group is finished and graded.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from rlx import flops
from rlx.config import Config
from rlx.envs.base import Env
from rlx.rollout import sampler
from rlx.train.buffer import Buffer
from rlx.types import Group, Problem


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, problems: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(problems)


def problem_of(serial: int, seed: int, problems: int) -> int:
    """Index of the training problem of a group: every epoch is a fresh permutation."""
    epoch, position = divmod(serial, problems)
    return int(_epoch_order(seed, epoch, problems)[position])


@dataclass
class _Running:
    problem: Problem
    prompt_U: np.ndarray
    slot_G: np.ndarray


def score(env: Env, problem: Problem, token_GT: np.ndarray, length_G: np.ndarray):
    """(score_G in [0, 1], stopped_G) of the samples of one problem."""
    stopped_G = token_GT[np.arange(len(length_G)), length_G - 1] == env.tokenizer.stop_id
    texts = [
        env.tokenizer.decode(row[:n].tolist()) for row, n in zip(token_GT, length_G, strict=True)
    ]
    pairs = zip(texts, stopped_G.tolist(), strict=True)
    return np.array([env.grade(problem, *pair) for pair in pairs], np.float32), stopped_G


class Engine:
    """Keeps the slots busy, as far as the buffer lets it; spends into the ledger."""

    def __init__(self, config: Config, env: Env, buffer: Buffer, ledger: flops.Ledger, mesh: Mesh):
        self.config, self.env, self.buffer, self.ledger = config, env, buffer, ledger
        self.G, self.T = config.rollout.group_size, config.rollout.max_new_tokens
        self.W, self.U = config.slots, env.max_prompt_tokens
        self.key = jax.random.key(config.seed)
        self.running: dict[int, _Running] = {}
        self.free = list(range(self.W))
        self.count_W = np.zeros(self.W, np.int64)  # tokens drawn, as the ledger knows them
        self.slots = sampler.empty(config.model, self.W, self.U, self.T, mesh)
        self.static = {"config": config.model, "stop_id": env.tokenizer.stop_id, "mesh": mesh}

    def has_work(self) -> bool:
        """Whether `step` would draw tokens: a sequence is in flight, or a group may start."""
        return bool(self.running) or self.buffer.may_start()

    def step(self, params, version: int) -> None:
        """Fill the free slots, decode one chunk, grade what finished."""
        temperature = self.config.rollout.temperature
        if new := self._start_groups():
            prompt_PU, length_P, slot_PG, serial_P = self._padded(new)
            self.slots = sampler.insert(
                params, self.slots, prompt_PU, length_P, slot_PG, serial_P, self.key, version,
                temperature, **self.static,
            )  # fmt: skip
        self.slots = sampler.decode(
            params, self.slots, version, temperature,
            self.config.rollout.decode_chunk_tokens, **self.static,
        )  # fmt: skip
        self._collect()

    def _start_groups(self) -> list[int]:
        """Serial numbers of the groups that start now; each takes G free slots."""
        new = []
        while len(self.free) >= self.G and self.buffer.may_start():
            serial = self.buffer.start()
            index = problem_of(serial, self.config.seed, len(self.env.train))
            problem = self.env.train[index]
            prompt_U = np.array(self.env.tokenizer.encode(problem.prompt), np.int32)
            slot_G, self.free = np.array(self.free[: self.G]), self.free[self.G :]
            self.running[serial] = _Running(problem, prompt_U, slot_G)
            self.count_W[slot_G] = 0
            new.append(serial)
        return new

    def _padded(self, serials: list[int]):
        """Arguments of `sampler.insert`, always for W / G groups; padding rows own no slot."""
        P = self.W // self.G
        prompt_PU = np.full((P, self.U), self.env.tokenizer.pad_id, np.int32)
        length_P = np.ones(P, np.int32)
        slot_PG = np.full((P, self.G), self.W, np.int32)
        for p, serial in enumerate(serials):
            group = self.running[serial]
            length_P[p] = len(group.prompt_U)
            prompt_PU[p, self.U - length_P[p] :] = group.prompt_U
            slot_PG[p] = group.slot_G
        serial_P = np.array(serials + [0] * (P - len(serials)), np.int32)
        return prompt_PU, length_P, slot_PG, serial_P

    def _collect(self) -> None:
        """Enter the tokens drawn into the ledger; grade the groups that finished."""
        s = self.slots
        count_W, active_W, token_WT, logp_WT, version_WT = jax.device_get(
            (s.count_W, s.active_W, s.token_WT, s.logp_WT, s.version_WT)
        )
        for serial, group in list(self.running.items()):
            self._spend(group, count_W[group.slot_G])
            if not active_W[group.slot_G].any():
                rows = (x[group.slot_G] for x in (count_W, token_WT, logp_WT, version_WT))
                self.buffer.put(self._grade(serial, group, *rows))
                self.free = sorted([*self.free, *group.slot_G.tolist()])
                del self.running[serial]

    def _grade(
        self, serial: int, group: _Running, length_G, token_GT, logp_GT, version_GT
    ) -> Group:
        """reward = reward_fail + score * (reward_pass - reward_fail); nothing beyond the length."""
        score_G, stopped_G = score(self.env, group.problem, token_GT, length_G)
        low, high = self.config.algo.reward_fail, self.config.algo.reward_pass
        sampled_GT = np.arange(self.T) < length_G[:, None]
        return Group(
            serial=serial,
            problem_id=group.problem.id,
            prompt_U=group.prompt_U,
            completion_GT=np.where(sampled_GT, token_GT, self.env.tokenizer.pad_id),
            length_G=length_G,
            behavior_logp_GT=np.where(sampled_GT, logp_GT, 0),
            version_GT=np.where(sampled_GT, version_GT, 0),
            reward_G=low + score_G * (high - low),
            score_G=score_G,
            stopped_G=stopped_G,
        )

    def _spend(self, group: _Running, count_G: np.ndarray) -> None:
        """Prefill (when the group has just started) and the tokens decoded since the last look."""
        model, vocab = self.config.model, self.env.tokenizer.vocab_size
        before_G, length = self.count_W[group.slot_G], len(group.prompt_U)
        cost = functools.partial(flops.decode_flops, model, vocab, length)
        if not before_G.any():
            self.ledger.prefill_flops += float(flops.prefill_flops(model, vocab, length))
        self.ledger.decode_flops += float(np.sum(cost(count_G) - cost(before_G)))
        self.ledger.tokens_generated += int(np.sum(count_G - before_G))
        self.count_W[group.slot_G] = count_G
