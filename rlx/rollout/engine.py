"""The generator on the host: problems in, graded groups out.

A group waits until as many slots are free as it has samples, then starts; a slot is free again as
soon as its sample is finished, whatever the rest of its group does. A chunk of decoding lies
between two short moments on the host, which hold `lock`: `begin` starts groups and picks up the
newest weights, `collect` grades what finished. `events` says in which order they happened ("b",
"c"); with the updates between them that order decides everything, whichever threads were at work.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rlx import flops, processes
from rlx.errors import InputError
from rlx.config import Config
from rlx.envs.base import Env
from rlx.envs.grading import Graders
from rlx.rollout import sampler
from rlx.rollout.grades import grades, said
from rlx.rollout.prompts import Prompts
from rlx.rollout.rewards import rewards
from rlx.rollout.scorer import Answer
from rlx.train.buffer import Buffer
from rlx.types import INJECTED, Group, Params, Problem, left_padded


@dataclass
class Weights:
    """What the generator samples with: the newest that the learner has published."""

    params: Params
    version: int


@dataclass
class _Running:
    """A group in flight, and its finished samples."""

    problem_index: int
    problem: Problem
    prompt_U: np.ndarray
    slot_G: np.ndarray
    open_G: np.ndarray  # bool, the sample still owns its slot
    length_G: np.ndarray  # tokens drawn; this and what follows once the sample is finished
    token_GT: np.ndarray
    logp_GT: np.ndarray
    value_GT: np.ndarray
    version_GT: np.ndarray


def rules(config: Config, env: Env) -> sampler.Rules:
    """When samples end, in token ids. InputError where the interruption cannot be said."""
    rollout, ids = config.rollout, env.tokenizer
    if config.algo.length_control != "interruption":
        return sampler.Rules(ids.stop_ids, head_dtype=rollout.head_dtype)
    try:
        phrase, (think_end_id,) = ids.encode(rollout.interruption), ids.encode(rollout.think_end)
    except ValueError as error:
        said = f"{rollout.interruption!r}, {rollout.think_end!r}"
        remedy = "use words of the environment, think_end a single token"
        raise InputError("rollout.interruption", said, str(error), remedy) from None
    room = rollout.max_new_tokens - rollout.think_tokens_max - rollout.answer_tokens
    if not 0 < len(phrase) <= room:
        raise InputError(
            "rollout.interruption",
            rollout.interruption,
            f"{len(phrase)} tokens where 1 to {room} are left of rollout.max_new_tokens",
            "raise rollout.max_new_tokens",
        )
    return sampler.Rules(
        stop_ids=ids.stop_ids,
        phrase=tuple(phrase),
        think_end_id=think_end_id,
        think_min=rollout.think_tokens_min,
        think_max=rollout.think_tokens_max,
        answer_tokens=rollout.answer_tokens,
        head_dtype=rollout.head_dtype,
    )


class Engine:
    """Keeps the slots busy, as far as the buffer lets it; spends into the ledger."""

    def __init__(
        self, config: Config, graders: Graders, buffer: Buffer, ledger: flops.Ledger, mesh: Mesh
    ):
        self.config, self.graders, self.buffer, self.ledger = config, graders, buffer, ledger
        self.env, self.mesh = (env := graders.env), mesh
        self.G, self.T = config.rollout.group_size, config.rollout.max_new_tokens
        self.W, self.U = config.slots, env.max_prompt_tokens
        self.key = jax.random.key(config.seed)
        self.prompts = Prompts(config.algo, len(env.train), config.seed)
        self.lock = threading.RLock()
        self.events = ""
        self.ungraded = {"timeouts": 0, "errors": 0}
        self.running: dict[int, _Running] = {}
        self.free = list(range(self.W))
        self.prompt_length_W = np.zeros(self.W, np.int64)
        self.count_W = np.zeros(self.W, np.int64)  # tokens drawn, as entered into the ledger
        self.slots = sampler.empty(config.model, self.W, self.U, self.T, mesh)
        self.static = {"config": config.model, "rules": rules(config, env), "mesh": mesh}

    def state_dict(self) -> dict[str, Any]:
        """Everything on the host; the groups' problems follow from their indices."""
        running = {
            str(serial): {k: v for k, v in vars(group).items() if k != "problem"}
            for serial, group in self.running.items()
        }
        counts = {"prompt_length_W": self.prompt_length_W, "count_W": self.count_W}
        rest = {"free": list(self.free), "events": self.events, "running": running}
        rest["ungraded"] = dict(self.ungraded)
        return {**rest, **counts, "prompts": self.prompts.state_dict()}

    def load(self, state: dict[str, Any], slots: sampler.Slots) -> None:
        for name in ("free", "events", "ungraded", "prompt_length_W", "count_W"):
            setattr(self, name, state[name])
        self.prompts.load(state["prompts"])
        self.running = {
            int(serial): _Running(problem=self.env.train[group["problem_index"]], **group)
            for serial, group in state["running"].items()
        }
        self.slots = slots

    def has_work(self) -> bool:
        """Whether `step` would draw tokens: a sequence is in flight, or a group may start."""
        return bool(self.running) or self._may_start()

    def _may_start(self) -> bool:
        return self.buffer.may_start() and not self.prompts.exhausted()

    def step(self, weights: Weights) -> None:
        self.begin(weights)
        self.collect()

    def begin(self, weights: Weights) -> None:
        """Fill the free slots and decode one chunk."""
        temperature = self.config.rollout.temperature
        with self.lock:
            params, version = weights.params, weights.version
            new = self._start_groups()
            self.events += "b"
        if new:
            prompt_PU, length_P, slot_PG, serial_P = self._padded(new)
            self.slots = sampler.insert(
                params, self.slots, prompt_PU, length_P, slot_PG, serial_P, self.key, version,
                temperature, **self.static,
            )  # fmt: skip
        self.slots = sampler.decode(
            params, self.slots, version, temperature,
            self.config.rollout.decode_chunk_tokens, **self.static,
        )  # fmt: skip

    def collect(self) -> None:
        """Look at the slots: ledger, finished samples, groups that are complete."""
        s = self.slots
        count_W, active_W, *row_WTs = processes.to_host(
            (s.count_W, s.active_W, s.token_WT, s.logp_WT, s.value_WT, s.version_WT)
        )
        complete = self._collect(count_W, active_W, row_WTs)
        graded, spent = self._grade(complete)  # without the lock: a grader may take its time
        with self.lock:
            self._spend(count_W)
            self.ledger.reward_flops += spent
            for serial, group in graded.items():
                self._finish(group, self.running.pop(serial).problem_index)
            self.events += "c"

    def _start_groups(self) -> list[int]:
        """Serial numbers of the groups that start now; each takes G free slots."""
        new = []
        while len(self.free) >= self.G and self._may_start():
            index = self.prompts.next()
            serial = self.buffer.start()
            problem = self.env.train[index]
            prompt_U = np.array(self.env.tokenizer.encode_prompt(problem.prompt), np.int32)
            slot_G, self.free = np.array(self.free[: self.G]), self.free[self.G :]
            self.prompt_length_W[slot_G], self.count_W[slot_G] = len(prompt_U), 0
            cost = flops.prefill_flops(
                self.config.model, self.env.tokenizer.vocab_size, len(prompt_U)
            )
            self.ledger.prefill_flops += float(cost)
            nothing_GT = np.zeros((self.G, self.T), np.int32)
            self.running[serial] = _Running(
                problem_index=index,
                problem=problem,
                prompt_U=prompt_U,
                slot_G=slot_G,
                open_G=np.ones(self.G, bool),
                length_G=np.zeros(self.G, np.int32),
                token_GT=nothing_GT,
                logp_GT=nothing_GT.astype(np.float32),
                value_GT=nothing_GT.astype(np.float32),
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

    def _collect(self, count_W, active_W, row_WTs) -> dict[int, _Running]:
        """Take what finished out of the slots; the groups that are complete now."""
        for group in self.running.values():
            finished_G = group.open_G & ~active_W[group.slot_G]
            if finished_G.any():
                slots = group.slot_G[finished_G]
                group.open_G[finished_G] = False
                group.length_G[finished_G] = count_W[slots]
                mine = (group.token_GT, group.logp_GT, group.value_GT, group.version_GT)
                for mine_GT, row_WT in zip(mine, row_WTs, strict=True):
                    mine_GT[finished_G] = row_WT[slots]
                self.free += slots.tolist()
        self.free.sort()
        return {serial: g for serial, g in self.running.items() if not g.open_G.any()}

    def _grade(self, complete: dict[int, _Running]) -> tuple[dict[int, Group], float]:
        """Groups, and the FLOPs of a reward model."""
        if not complete:
            return {}, 0.0
        groups = complete.values()
        answers = [said(self.env, g.problem, g.token_GT, g.length_G) for g in groups]
        found = grades(self.graders, answers, self.mesh)
        for name, count in found.ungraded.items():
            self.ungraded[name] += count
        rows = zip(complete.items(), answers, found.score_PG, found.reward_PG, strict=True)
        graded = {
            serial: self._graded(serial, group, answer, score_G, model_G)
            for (serial, group), answer, score_G, model_G in rows
        }
        return graded, found.flops

    def _spend(self, count_W: np.ndarray) -> None:
        """Enter the tokens decoded since the last look."""
        model, vocab = self.config.model, self.env.tokenizer.vocab_size
        now_and_before = np.stack([count_W, self.count_W])
        spent = flops.decode_flops(model, vocab, self.prompt_length_W, now_and_before)
        self.ledger.decode_flops += float(np.sum(spent[0] - spent[1]))
        self.ledger.tokens_generated += int(np.sum(count_W - self.count_W))
        self.count_W = count_W.astype(np.int64)

    def _finish(self, group: Group, problem_index: int) -> None:
        """Into the history of its problem and into the buffer; what that drops was for nothing."""
        self.prompts.graded(problem_index, float(np.mean(group.score_G == 1)))
        if not self.buffer.put(group):
            model, vocab = self.config.model, self.env.tokenizer.vocab_size
            self.ledger.discard(model, vocab, len(group.prompt_U), group.length_G)
            self.ledger.samples += self.G

    def _graded(self, serial: int, group: _Running, answer: Answer, score_G, model_G) -> Group:
        """Scores, rewards, and nothing beyond the length."""
        length_G, token_GT = group.length_G, group.token_GT
        within_GT = np.arange(self.T) < length_G[:, None]
        version_GT = np.where(within_GT, group.version_GT, INJECTED)
        sampled_GT = version_GT != INJECTED
        return Group(
            serial=serial,
            problem_id=group.problem.id,
            prompt_U=group.prompt_U,
            completion_GT=np.where(within_GT, token_GT, self.env.tokenizer.pad_id),
            length_G=length_G,
            behavior_logp_GT=np.where(sampled_GT, group.logp_GT, 0),
            behavior_value_GT=np.where(sampled_GT, group.value_GT, 0),
            version_GT=version_GT,
            reward_G=self._rewards(serial, answer, score_G, model_G),
            score_G=score_G,
            stopped_G=np.array([stopped for _, stopped in answer.said_G]),
        )

    def _rewards(self, serial: int, answer: Answer, score_G, model_G) -> np.ndarray:
        """Of the scores, or of what the controls put in their place, or a model's."""
        algo = self.config.algo
        if algo.reward == "random":  # heads or tails, whatever was said
            coin = np.random.default_rng((self.config.seed, serial))
            score_G = coin.integers(0, 2, self.G).astype(np.float32)
        if algo.reward == "format":
            said_G = answer.said_G
            score_G = np.array([self.env.well_formed(*sample) for sample in said_G], np.float32)
        raw_G = model_G if algo.reward == "model" else None
        return rewards(score_G, answer.length_G, algo, self.T, raw_G)
