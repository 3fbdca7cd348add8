"""Grades of samples: the environment's scores, or the verdict of a reward model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from rlx import processes
from rlx.envs.base import Env
from rlx.envs.grading import Failure, Graders, Item
from rlx.rollout.generator import Transcript
from rlx.rollout.scorer import Answer
from rlx.types import Problem


class Grades(NamedTuple):
    """Grades of every sample of P problems."""

    score_PG: list[np.ndarray]  # in [0, 1], 1 for a pass
    reward_PG: list[np.ndarray] | list[None]  # of a reward model, if there is one
    ungraded: dict[str, int]  # samples without a score, by reason; they score 0
    flops: float  # of the reward model


def as_answer(
    env: Env, problem: Problem, token_GT: np.ndarray, length_G: np.ndarray,
    episode_G: Sequence[Transcript] = (),
) -> Answer:  # fmt: skip
    """The samples with their text, and whether they stopped or were truncated.

    episode_G: transcripts, if they are episodes. For an environment that replies the text is a
    tuple of turns, even of a single answer.
    """
    if episode_G:
        text_G = [(episode.turns, episode.stopped) for episode in episode_G]
        return Answer(problem, token_GT, length_G, text_G, [e.failure for e in episode_G])
    decode, stop_ids = env.tokenizer.decode, env.tokenizer.stop_ids
    shown = (lambda text: (text,)) if hasattr(env, "reply") else lambda text: text
    rows = zip(token_GT.tolist(), length_G.tolist(), strict=True)
    text_G = [(shown(decode(row[:n])), row[n - 1] in stop_ids) for row, n in rows]
    return Answer(problem, token_GT, length_G, text_G)


def grades(graders: Graders, answers: Sequence[Answer], mesh: Mesh) -> Grades:
    """The graders' scores and the reward model's rewards; its verdict as scores if it judges."""
    if graders.scorer is None:
        score_PG, ungraded = graded(graders, answers)
        return Grades(score_PG, [None] * len(answers), ungraded, 0.0)
    reward_PG, score_PG, flops = graders.scorer(answers, mesh)
    ungraded = {failure.counter: 0 for failure in Failure}
    if score_PG is None:
        score_PG, ungraded = graded(graders, answers)
    return Grades(score_PG, reward_PG, ungraded, flops)


def graded(graders: Graders, answers: Sequence[Answer]):
    """(score_PG, ungraded) of the environment; the processes of a run share the work.

    An episode in which the environment failed is not graded.
    """

    def work(items: Sequence[Item]) -> list[float]:
        outcomes = graders.grade(items)
        return [o.score if o.failure is None else float(o.failure) for o in outcomes]

    items = [(answer.problem, *sample) for answer in answers for sample in answer.text_G]
    failures = [answer.failure_G or [0] * len(answer.text_G) for answer in answers]
    score_N = np.array(list(itertools.chain(*failures)), np.float32)
    open_N = score_N == 0
    score_N[open_N] = processes.shared(list(itertools.compress(items, open_N)), work)
    counts = {failure.counter: int(np.sum(score_N == failure)) for failure in Failure}
    ends = np.cumsum([len(answer.text_G) for answer in answers])[:-1]
    return np.split(np.maximum(score_N, 0), ends), counts
