"""The generator on the host: problems in, graded groups out.

Prompts come from the finite training set in epochs, each a permutation of its own; the problem of
a group follows from its serial number alone. A group waits until as many slots are free as it has
samples, then starts; a slot is free again as soon as its sample is finished, whatever the rest of
its group does.
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
    """A group in flight, and what the host has seen of its samples."""

    problem: Problem
    prompt_U: np.ndarray
    slot_G: np.ndarray
    open_G: np.ndarray  # bool, the sample still owns its slot
    length_G: np.ndarray  # tokens drawn, as entered into the ledger
    token_GT: np.ndarray
    logp_GT: np.ndarray
    version_GT: np.ndarray


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
            nothing_GT = np.zeros((self.G, self.T), np.int32)
            self.running[serial] = _Running(
                problem=problem,
                prompt_U=prompt_U,
                slot_G=slot_G,
                open_G=np.ones(self.G, bool),
                length_G=np.zeros(self.G, np.int32),
                token_GT=nothing_GT,
                logp_GT=nothing_GT.astype(np.float32),
                version_GT=nothing_GT.copy(),
            )
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
        """Look at the slots: ledger, free slots, groups that are complete."""
        s = self.slots
        seen = jax.device_get((s.count_W, s.active_W, s.token_WT, s.logp_WT, s.version_WT))
        for serial, group in list(self.running.items()):
            self._update(group, *seen)
            if not group.open_G.any():
                self.buffer.put(self._grade(serial, group))
                del self.running[serial]

    def _update(self, group: _Running, count_W, active_W, token_WT, logp_WT, version_WT) -> None:
        """Copy what the group's open samples have drawn; give back the slots of finished ones."""
        open_G, slots = group.open_G.copy(), group.slot_G[group.open_G]
        self._spend(group, open_G, count_W[slots])
        group.length_G[open_G] = count_W[slots]
        group.token_GT[open_G] = token_WT[slots]
        group.logp_GT[open_G] = logp_WT[slots]
        group.version_GT[open_G] = version_WT[slots]
        group.open_G[open_G] = active_W[slots]
        self.free = sorted([*self.free, *slots[~active_W[slots]].tolist()])

    def _spend(self, group: _Running, open_G: np.ndarray, count: np.ndarray) -> None:
        """Prefill (when the group has just started) and the tokens decoded since the last look."""
        model, vocab = self.config.model, self.env.tokenizer.vocab_size
        before, length = group.length_G[open_G], len(group.prompt_U)
        if not group.length_G.any():
            self.ledger.prefill_flops += float(flops.prefill_flops(model, vocab, length))
        decoded = flops.decode_flops(model, vocab, length, np.stack([count, before]))
        self.ledger.decode_flops += float(np.sum(decoded[0] - decoded[1]))
        self.ledger.tokens_generated += int(np.sum(count - before))

    def _grade(self, serial: int, group: _Running) -> Group:
        """reward = reward_fail + score * (reward_pass - reward_fail); nothing beyond the length."""
        length_G, token_GT = group.length_G, group.token_GT
        score_G, stopped_G = score(self.env, group.problem, token_GT, length_G)
        low, high = self.config.algo.reward_fail, self.config.algo.reward_pass
        sampled_GT = np.arange(self.T) < length_G[:, None]
        return Group(
            serial=serial,
            problem_id=group.problem.id,
            prompt_U=group.prompt_U,
            completion_GT=np.where(sampled_GT, token_GT, self.env.tokenizer.pad_id),
            length_G=length_G,
            behavior_logp_GT=np.where(sampled_GT, group.logp_GT, 0),
            version_GT=np.where(sampled_GT, group.version_GT, 0),
            reward_G=low + score_G * (high - low),
            score_G=score_G,
            stopped_G=stopped_G,
        )
