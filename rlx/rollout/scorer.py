"""A frozen reward model: the reward of a policy, and the judge of env.name=preference.

It reads the policy's token ids, so both must have the same vocabulary. Every process of a run calls
it with the same samples, and the mesh divides them. As a judge it also scores the reference
completion of each prompt: a sample passes if it stopped and r exceeds that of the reference.

Every mesh of the run has a copy of the parameters: with separate generator devices, scoring happens
there, in the generator's thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rlx import flops, processes
from rlx import mesh as meshes
from rlx.config import ModelConfig
from rlx.envs.base import Env
from rlx.envs.preference import Preference
from rlx.models import lora, reward
from rlx.types import Params, Problem


class Answer(NamedTuple):
    """The samples of one problem, as tokens and as text."""

    problem: Problem
    token_GT: np.ndarray
    length_G: np.ndarray
    text_G: list[tuple[Any, bool]]  # (text, or turns of an episode; whether it stopped)
    failure_G: Sequence[int] = ()  # of an episode's environment, 0: none


class Scores(NamedTuple):
    reward_PG: list[np.ndarray]  # r, float32
    win_PG: list[np.ndarray] | None  # float32, 1 for a pass, where the model is the judge
    flops: float


class Scorer:
    """spent: FLOPs of the model's training."""

    def __init__(
        self, env: Env, model: ModelConfig, params: Params, longest: int, on: Sequence[Mesh],
        spent: float = 0.0,
    ):  # fmt: skip
        """longest: most tokens of a sample; on: the meshes that score."""
        self.env, self.model, self.spent = env, model, spent
        axes = lora.logical_axes(params)
        self.params = {
            mesh: jax.device_put(params, meshes.of_params(mesh, params, axes)) for mesh in on
        }
        everything = [*env.train, *env.heldout] if isinstance(env, Preference) else []
        self.T = max([longest, *(len(self._reference(problem)[0]) for problem in everything)])

    def __call__(self, answers: Sequence[Answer], mesh: Mesh) -> Scores:
        """Scores of problems with the same number of samples each."""
        prompts = [self.env.tokenizer.encode_prompt(a.problem.prompt) for a in answers]
        groups = [_completions(a) + self._reference(a.problem) for a in answers]
        reward_PN = self._rewards(prompts, groups, mesh)
        lengths = [list(map(len, group)) for group in groups]
        pairs = zip(prompts, lengths, strict=True)
        spent = sum(flops.reward_flops(self.model, len(prompt), n_N) for prompt, n_N in pairs)
        if not isinstance(self.env, Preference):
            return Scores(reward_PN, None, spent)
        win_PG = [_wins(a, reward_N) for a, reward_N in zip(answers, reward_PN, strict=True)]
        return Scores([reward_N[:-1] for reward_N in reward_PN], win_PG, spent)

    def _reference(self, problem: Problem) -> list[list[int]]:
        """The completion that the samples are compared with, if the model judges."""
        if not isinstance(self.env, Preference):
            return []
        ids = self.env.tokenizer
        return [[*ids.encode(self.env.reference(problem)), ids.stop_id]]

    def _rewards(self, prompts, groups, mesh: Mesh) -> list[np.ndarray]:
        """One prompt per device at a time, so that there is a single compilation."""
        P = math.prod(mesh.shape[name] for name in meshes.RULES["prompts"])
        U, pad_id = self.env.max_prompt_tokens, self.env.tokenizer.pad_id
        found = []
        for at in range(0, len(prompts), P):
            texts = reward.padded(prompts[at : at + P], groups[at : at + P], U, self.T, pad_id, P)
            texts = jax.tree.map(
                lambda x: jax.device_put(x, meshes.along(mesh, "prompts", x)), texts
            )
            found.append(reward.scores_on(self.params[mesh], self.model, texts, mesh=mesh))
        reward_PN = np.concatenate(processes.to_host(found)).reshape(len(found) * P, -1)
        return list(reward_PN[: len(prompts)])


def _completions(answer: Answer) -> list[list[int]]:
    rows = zip(answer.token_GT, answer.length_G, strict=True)
    return [token_T[:length].tolist() for token_T, length in rows]


def _wins(answer: Answer, reward_N: np.ndarray) -> np.ndarray:
    stopped_G = np.array([stopped for _, stopped in answer.text_G])
    return (stopped_G & (reward_N[:-1] > reward_N[-1])).astype(np.float32)
