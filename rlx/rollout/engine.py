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
from rlx.types import Group, Problem, left_padded


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, problems: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(problems)


def problem_of(serial: int, seed: int, problems: int) -> int:
    """Index of the training problem of a group: every epoch is a fresh permutation."""
    epoch, position = divmod(serial, problems)
    return int(_epoch_order(seed, epoch, problems)[position])


@dataclass
class _Running:
    """A group in flight, and its finished samples."""

    problem: Problem
    prompt_U: np.ndarray
    slot_G: np.ndarray
    open_G: np.ndarray  # bool, the sample still owns its slot
    length_G: np.ndarray  # tokens drawn; this and what follows once the sample is finished
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
        self.prompt_length_W = np.zeros(self.W, np.int64)
        self.count_W = np.zeros(self.W, np.int64)  # tokens drawn, as entered into the ledger
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
            self.prompt_length_W[slot_G], self.count_W[slot_G] = len(prompt_U), 0
            cost = flops.prefill_flops(
                self.config.model, self.env.tokenizer.vocab_size, len(prompt_U)
            )
            self.ledger.prefill_flops += float(cost)
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
        groups = [self.running[serial] for serial in serials]
        prompts = [group.prompt_U for group in groups]
        prompt_PU, length_P = left_padded(prompts, self.U, self.env.tokenizer.pad_id, rows=P)
        slot_PG = np.full((P, self.G), self.W, np.int32)
        slot_PG[: len(groups)] = [group.slot_G for group in groups]
        serial_P = np.array(serials + [0] * (P - len(serials)), np.int32)
        return prompt_PU, length_P, slot_PG, serial_P

    def _collect(self) -> None:
        """Look at the slots: ledger, finished samples, groups that are complete."""
        s = self.slots
        count_W, active_W, *rows = jax.device_get(
            (s.count_W, s.active_W, s.token_WT, s.logp_WT, s.version_WT)
        )
        self._spend(count_W)
        for serial, group in list(self.running.items()):
            finished_G = group.open_G & ~active_W[group.slot_G]
            if finished_G.any():
                slots = group.slot_G[finished_G]
                group.open_G[finished_G] = False
                group.length_G[finished_G] = count_W[slots]
                for mine_GT, row_WT in zip(
                    (group.token_GT, group.logp_GT, group.version_GT), rows, strict=True
                ):
                    mine_GT[finished_G] = row_WT[slots]
                self.free += slots.tolist()
            if not group.open_G.any():
                self.buffer.put(self._grade(serial, group))
                del self.running[serial]
        self.free.sort()

    def _spend(self, count_W: np.ndarray) -> None:
        """Enter the tokens decoded since the last look."""
        model, vocab = self.config.model, self.env.tokenizer.vocab_size
        now_and_before = np.stack([count_W, self.count_W])
        spent = flops.decode_flops(model, vocab, self.prompt_length_W, now_and_before)
        self.ledger.decode_flops += float(np.sum(spent[0] - spent[1]))
        self.ledger.tokens_generated += int(np.sum(count_W - self.count_W))
        self.count_W = count_W.astype(np.int64)

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
