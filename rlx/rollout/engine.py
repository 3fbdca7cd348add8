"""The generator on the host: problems in, graded groups out.

A group starts once the generator has room for all its samples; each sample frees its place when it
finishes. Sampling runs between two short steps on the host, which hold `lock`: `begin` starts
groups and takes the newest weights, `collect` grades finished samples. `events` records their order
("b", "c"); together with the updates in between it determines the run, whatever the threads do.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rlx import flops
from rlx.config import Config
from rlx.envs.base import Env
from rlx.envs.grading import Graders
from rlx.errors import InputError
from rlx.rollout import sampler
from rlx.rollout.buffer import Buffer
from rlx.rollout.episodes import Episodes
from rlx.rollout.generator import (
    Drawn,
    Finished,
    Generator,
    Request,
    SlotGenerator,
    Transcript,
    Weights,
)
from rlx.rollout.grades import as_answer, grades
from rlx.rollout.prompts import Prompts
from rlx.rollout.rewards import rewards
from rlx.rollout.scorer import Answer
from rlx.types import INJECTED, Group, Problem


@dataclass
class _Running:
    """A group in flight, and its finished samples."""

    problem_index: int
    problem: Problem
    prompt_U: np.ndarray
    length_G: np.ndarray  # tokens of a sample; 0 until it is finished
    token_GT: np.ndarray
    logp_GT: np.ndarray
    value_GT: np.ndarray
    version_GT: np.ndarray
    expert_GTLK: np.ndarray | None = None
    said_G: list[Transcript | None] = field(default_factory=list)  # of episodes

    def take(self, samples: Finished) -> None:
        g_N = [g for _, g in samples.keys]
        self.length_G[g_N] = samples.length_N
        self.token_GT[g_N], self.logp_GT[g_N] = samples.token_NT, samples.logp_NT
        self.value_GT[g_N], self.version_GT[g_N] = samples.value_NT, samples.version_NT
        if samples.expert_NTLK is not None:
            if self.expert_GTLK is None:
                shape = (len(self.length_G), *samples.expert_NTLK.shape[1:])
                self.expert_GTLK = np.zeros(shape, np.int32)
            self.expert_GTLK[g_N] = samples.expert_NTLK
        for g, transcript in zip(g_N, samples.transcripts, strict=False):
            self.said_G = self.said_G or [None] * len(self.length_G)
            self.said_G[g] = transcript


def rules(config: Config, env: Env) -> sampler.Rules:
    """When samples end, in token ids. Raises InputError for an interruption that does not fit."""
    rollout, ids = config.rollout, env.tokenizer
    always = {"head_dtype": rollout.head_dtype, "routing": config.algo.replay_routing}
    if config.algo.length_control != "interruption":
        return sampler.Rules(**always)
    try:
        phrase, ends = ids.encode(rollout.interruption), ids.encode(rollout.think_end)
    except ValueError as error:
        phrases = f"{rollout.interruption!r}, {rollout.think_end!r}"
        remedy = "use the environment's vocabulary"
        raise InputError("rollout.interruption", phrases, str(error), remedy) from None
    if len(ends) != 1:
        remedy = "give a text that is one token"
        raise InputError("rollout.think_end", rollout.think_end, f"{len(ends)} tokens", remedy)
    room = config.turn_tokens - rollout.think_tokens_max - rollout.answer_tokens
    if not 0 < len(phrase) <= room:
        raise InputError(
            "rollout.interruption",
            rollout.interruption,
            f"{len(phrase)} tokens where 1 to {room} are left of {config.turn_limit}",
            f"raise {config.turn_limit}",
        )
    return sampler.Rules(
        phrase=tuple(phrase),
        think_end_id=ends[0],
        think_min=rollout.think_tokens_min,
        think_max=rollout.think_tokens_max,
        answer_tokens=rollout.answer_tokens,
        **always,
    )


def make_generator(config: Config, graders: Graders, mesh: Mesh) -> Generator:
    """The generator of a run, for training and evaluation; `graders` make replies."""
    env, ids = graders.env, graders.env.tokenizer
    single = SlotGenerator(
        config, rules(config, env), env.max_prompt_tokens, len(ids.stop_ids), ids.pad_id, mesh,
        jax.random.key(config.seed),
    )  # fmt: skip
    return single if config.episode.max_turns == 1 else Episodes(single, config, graders)


def _turns(text: str | tuple[str, ...]) -> int:
    """Number of the policy's turns; turns alternate between policy and environment."""
    return 1 if isinstance(text, str) else len(text) // 2 + 1


class Engine:
    """Keeps the generator busy as far as the buffer allows, and accounts for its compute."""

    def __init__(
        self, config: Config, graders: Graders, buffer: Buffer, ledger: flops.Ledger, mesh: Mesh
    ):
        self.config, self.graders, self.buffer, self.ledger = config, graders, buffer, ledger
        self.env, self.mesh = graders.env, mesh
        self.G, self.T = config.rollout.group_size, config.rollout.max_new_tokens
        self.prompts = Prompts(config.algo, len(self.env.train), config.seed)
        self.generator: Generator = make_generator(config, graders, mesh)
        self.lock = threading.RLock()
        self.events = ""
        self.ungraded = {"timeouts": 0, "errors": 0}
        self.running: dict[int, _Running] = {}

    def state_dict(self) -> dict[str, Any]:
        """Everything on the host; the groups' problems follow from their indices."""
        running = {
            str(serial): {k: v for k, v in vars(group).items() if k != "problem"}
            for serial, group in self.running.items()
        }
        rest = {"events": self.events, "ungraded": dict(self.ungraded), "running": running}
        parts = {"prompts": self.prompts.state_dict(), "generator": self.generator.state_dict()}
        return {**rest, **parts}

    def load(self, state: dict[str, Any], arrays: Any) -> None:
        self.events, self.ungraded = state["events"], state["ungraded"]
        self.prompts.load(state["prompts"])
        self.running = {
            int(serial): _Running(problem=self.env.train[group["problem_index"]], **group)
            for serial, group in state["running"].items()
        }
        for group in self.running.values():
            group.said_G = [one and Transcript(tuple(one[0]), *one[1:]) for one in group.said_G]
        self.generator.load(state["generator"], arrays)

    def has_work(self) -> bool:
        """Whether `step` would sample: a sequence is in flight, or a group may start."""
        return bool(self.running) or self._may_start()

    def _may_start(self) -> bool:
        return self.buffer.may_start() and not self.prompts.exhausted()

    def step(self, weights: Weights) -> None:
        self.begin(weights)
        self.collect()

    def begin(self, weights: Weights) -> None:
        """Start groups where there is room, and start sampling."""
        with self.lock:
            weights = Weights(weights.params, weights.version)
            while self.generator.free >= self.G and self._may_start():
                self.generator.submit(self._start_group())
            self.events += "b"
        self.generator.begin(weights, self.config.rollout.chunk_tokens)

    def collect(self) -> None:
        """Account for sampled tokens, and grade complete groups."""
        finished, drawn = self.generator.collect()
        for serial, samples in finished.by_group():
            self.running[serial].take(samples)
        complete = {serial: g for serial, g in self.running.items() if g.length_G.all()}
        graded, spent = self._grade(complete)  # without the lock: graders may be slow
        with self.lock:
            self._spend(drawn)
            self.ledger.reward_flops += spent
            for serial, group in graded.items():
                self._finish(group, self.running.pop(serial).problem_index)
            self.events += "c"

    def _start_group(self) -> list[Request]:
        """Requests for the samples of the next group."""
        index, serial = self.prompts.next(), self.buffer.start()
        problem, ids = self.env.train[index], self.env.tokenizer
        prompt_U = np.array(ids.encode_prompt(problem.prompt), np.int32)
        cost = flops.prefill_flops(self.config.model, ids.vocab_size, len(prompt_U))
        self.ledger.prefill_flops += float(cost)
        nothing_GT = np.zeros((self.G, self.T), np.int32)
        self.running[serial] = _Running(
            problem_index=index,
            problem=problem,
            prompt_U=prompt_U,
            length_G=np.zeros(self.G, np.int32),
            token_GT=nothing_GT,
            logp_GT=nothing_GT.astype(np.float32),
            value_GT=nothing_GT.astype(np.float32),
            version_GT=nothing_GT.copy(),
        )
        return [
            Request((serial, g), prompt_U, self.T, ids.stop_ids, problem=problem)
            for g in range(self.G)
        ]

    def _grade(self, complete: dict[int, _Running]) -> tuple[dict[int, Group], float]:
        """Groups, and the FLOPs of a reward model."""
        if not complete:
            return {}, 0.0
        groups = complete.values()
        answers = [as_answer(self.env, g.problem, g.token_GT, g.length_G, g.said_G) for g in groups]
        found = grades(self.graders, answers, self.mesh)
        for name, count in found.ungraded.items():
            self.ungraded[name] += count
        rows = zip(complete.items(), answers, found.score_PG, found.reward_PG, strict=True)
        graded = {
            serial: self._graded(serial, group, answer, score_G, model_G)
            for (serial, group), answer, score_G, model_G in rows
        }
        return graded, found.flops

    def _spend(self, drawn: Drawn) -> None:
        """Add the tokens sampled since the last call to the ledger."""
        model, vocab = self.config.model, self.env.tokenizer.vocab_size
        now_and_before = np.stack([drawn.now_W, drawn.before_W])
        spent = flops.decode_flops(model, vocab, drawn.prompt_length_W, now_and_before)
        self.ledger.decode_flops += float(np.sum(spent[0] - spent[1]))
        put_in = int(np.sum(drawn.put_in_W))
        self.ledger.tokens_generated += int(np.sum(drawn.now_W - drawn.before_W)) - put_in
        self.ledger.tokens_put_in += put_in

    def _finish(self, group: Group, problem_index: int) -> None:
        """Add it to its problem's history and the buffer; count a refilled group as discarded."""
        self.prompts.graded(problem_index, float(np.mean(group.score_G == 1)))
        if not self.buffer.put(group):
            model, vocab = self.config.model, self.env.tokenizer.vocab_size
            self.ledger.discard(model, vocab, len(group.prompt_U), group.length_G)
            self.ledger.samples += self.G

    def _graded(self, serial: int, group: _Running, answer: Answer, score_G, model_G) -> Group:
        """The group with scores and rewards, padded beyond the lengths."""
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
            stopped_G=np.array([stopped for _, stopped in answer.text_G]),
            expert_GTLK=group.expert_GTLK,
            turns_G=np.array([_turns(text) for text, _ in answer.text_G], np.int32),
        )

    def _rewards(self, serial: int, answer: Answer, score_G, model_G) -> np.ndarray:
        """Rewards from scores, from a control in their place, or from a reward model."""
        algo = self.config.algo
        if algo.reward == "random":  # a fair coin
            coin = np.random.default_rng((self.config.seed, serial))
            score_G = coin.integers(0, 2, self.G).astype(np.float32)
        if algo.reward == "format":
            formed = [self.env.well_formed(*sample) for sample in answer.text_G]
            score_G = np.array(formed, np.float32)
        raw_G = model_G if algo.reward == "model" else None
        return rewards(score_G, answer.length_G, algo, self.T, raw_G)
