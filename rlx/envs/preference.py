"""Prompts with pairs of completions, compared by people or by a model.

A file of JSON lines (or Parquet rows) {"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}; a prompt
may have several pairs. Prompts are divided into training and held-out ones, so a reward model and
a policy that read the same file with the same `env.seed` and sizes hold out the same prompts.

Grading needs a reward model: a completion passes if it stopped and the model of `algo.reward_model`
scores it above the prompt's reference, the `chosen` text of its first pair. Since the model reads
tokens, on devices, rlx.rollout.scorer makes this comparison for training and evaluation; `grade`
raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlx.envs import base, data
from rlx.errors import InputError
from rlx.problem import Problem

FIELDS = ("prompt", "chosen", "rejected")


class Pair(NamedTuple):
    """Two completions of one prompt; `where`: place in the file, for messages."""

    chosen: str
    rejected: str
    where: str


class Preference:
    """`Problem.answer` is the list of the prompt's pairs.

    Raises InputError naming a line that is not a pair.
    """

    def __init__(self, *, train_prompts: int, heldout_prompts: int, seed: int, path: str):
        pool: dict[str, list[Pair]] = {}
        for row in data.rows(path):
            prompt, chosen, rejected = data.texts(row, FIELDS)
            pool.setdefault(prompt, []).append(Pair(chosen, rejected, row[0]))
        self.train, self.heldout = data.divide(
            pool.items(),
            train_prompts=train_prompts,
            heldout_prompts=heldout_prompts,
            seed=seed,
            source=path,
        )
        self.downstream: dict[str, list[Problem]] = {}
        texts = [text for pairs in pool.values() for pair in pairs for text in pair[:2]]
        self.tokenizer: base.TextTokenizer = base.characters([*pool, *texts])
        self.max_prompt_tokens = max(len(p.prompt) for p in [*self.train, *self.heldout])

    def reference(self, problem: Problem) -> str:
        """The completion that others are compared with."""
        return problem.answer[0].chosen

    def grade(self, problem: Problem, completion: str, stopped: bool) -> float:
        """Raises InputError: see the module."""
        reason = "only a reward model can grade it"
        raise InputError("env.name", "preference", reason, "set algo.reward_model")

    def well_formed(self, completion: str, stopped: bool) -> bool:
        """Whether it stopped and is not empty."""
        return stopped and completion.strip() != ""

    def solution(self, problem: Problem, rng: np.random.Generator, worked: bool) -> str:
        """The reference; `rng` and `worked` are not used."""
        return self.reference(problem)

    def ceiling(self, problems: Sequence[Problem], max_new_tokens: int) -> None:
        """None: how often a policy can beat the reference is unknown."""
        return None
