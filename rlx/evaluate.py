"""Pass rates on held-out problems, with the counts that determine their noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rlx import flops
from rlx.config import Config
from rlx.envs.base import Env, eval_sets
from rlx.envs.grading import Graders
from rlx.rollout.generator import Generator, Key, Request, Transcript, Weights
from rlx.rollout.grades import as_answer, grades
from rlx.rollout.scorer import Answer
from rlx.types import Problem


def pass_at_k(trials: int, passes_n: np.ndarray, k: int) -> float:
    """mean_n 1 - C(trials - c_n, k) / C(trials, k), unbiased for k <= trials.

    c_n passes in `trials` samples of problem n. Chen et al. 2021 (arXiv 2107.03374), Eq. 1.
    """
    subsets = math.comb(trials, k)
    return float(np.mean([1 - math.comb(trials - int(c), k) / subsets for c in passes_n]))


def standard_error(trials: int, passes_n: np.ndarray) -> float:
    """Standard error of the mean pass rate on this fixed set of problems: sampling noise only.

    sqrt(sum_n p_n (1 - p_n) / (n^2 (k - 1))), p_n = c_n / k; for k = 1, where the variance of a
    problem is unknown, the binomial sqrt(p (1 - p) / n).
    """
    p_n = passes_n / trials
    if trials == 1:
        return float(np.sqrt(p_n.mean() * (1 - p_n.mean()) / len(p_n)))
    return float(np.sqrt(np.sum(p_n * (1 - p_n)) / (len(p_n) ** 2 * (trials - 1))))


def generate(
    generator: Generator, weights: Weights, config: Config, env: Env, problems: Sequence[Problem],
    samples: int, key: jax.Array,
) -> list[Answer]:  # fmt: skip
    """`samples` completions of every problem.

    Problem i samples under group serial i; a freed slot is refilled with the next sample.
    """
    T, stop_ids = config.rollout.max_new_tokens, env.tokenizer.stop_ids
    prompts = [env.tokenizer.encode_prompt(problem.prompt) for problem in problems]
    keys = [(i, g) for i in range(len(problems)) for g in range(samples)]
    waiting = [Request((i, g), prompts[i], T, stop_ids, problem=problems[i]) for i, g in keys]
    token_PGT = np.full((len(problems), samples, T), env.tokenizer.pad_id, np.int32)
    length_PG = np.zeros((len(problems), samples), np.int32)
    episodes: dict[Key, Transcript] = {}
    with generator.aside(key):
        while not length_PG.all():
            room = generator.free
            generator.submit(waiting[:room])
            waiting = waiting[room:]
            generator.begin(weights, config.rollout.chunk_tokens if waiting else T)
            found, _ = generator.collect()
            for key, n, token_T in zip(found.keys, found.length_N, found.token_NT, strict=True):
                length_PG[key], token_PGT[key][:n] = n, token_T[:n]
            episodes |= zip(found.keys, found.transcripts, strict=False)
    episode_PG = [
        [episodes[i, g] for g in range(samples) if episodes] for i in range(len(problems))
    ]
    return list(map(as_answer, itertools.repeat(env), problems, token_PGT, length_PG, episode_PG))


def evaluate(
    generator: Generator, weights: Weights, config: Config, graders: Graders, ledger: flops.Ledger,
    mesh: Mesh,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row of `measure` for every evaluation set, `heldout` first.

    mesh: of the reward model.
    """
    return [
        measure(generator, weights, config, graders, name, ledger, mesh)
        for name in eval_sets(graders.env)
    ]


def measure(
    generator: Generator, weights: Weights, config: Config, graders: Graders, eval_set: str,
    ledger: flops.Ledger, mesh: Mesh,
) -> dict[str, Any]:  # fmt: skip
    """One evaluation row without its compute; adds to `ledger.eval_flops`.

    The random key depends on eval.seed and the version alone, so runs that share a warm start
    share their evaluation at version 0.
    """
    env = graders.env
    k, vocab = config.eval.samples_per_prompt, env.tokenizer.vocab_size
    problems = eval_sets(env)[eval_set]
    key = jax.random.fold_in(jax.random.key(config.eval.seed), weights.version)
    answers = generate(generator, weights, config, env, problems, k, key)
    for answer in answers:
        length = len(env.tokenizer.encode_prompt(answer.problem.prompt))
        ledger.eval_flops += float(flops.prefill_flops(config.model, vocab, length))
        ledger.eval_flops += float(
            np.sum(flops.decode_flops(config.model, vocab, length, answer.length_G))
        )
    found = grades(graders, answers, mesh)
    ledger.eval_flops += found.flops
    passes_n = np.array([int(np.sum(score_G == 1)) for score_G in found.score_PG])
    cut = sum(not stopped for answer in answers for _, stopped in answer.text_G)
    row = counted(eval_set, k, passes_n, cut, sum(found.ungraded.values()))
    if graders.scorer:
        row["reward_mean"] = float(np.mean(found.reward_PG))
    return row


def counted(eval_set: str, k: int, passes_n: np.ndarray, cut: int, ungraded: int) -> dict[str, Any]:
    """The row of an evaluation in which problem n passed passes_n[n] of its k trials."""
    trials = k * len(passes_n)
    powers = [2**i for i in range(k.bit_length()) if 2**i <= k]
    return {
        "eval_set": eval_set,
        "trials": trials,
        "passes": int(passes_n.sum()),
        "passes_per_prompt": passes_n.tolist(),
        "mean": float(passes_n.sum() / trials),
        "stderr": standard_error(k, passes_n),
        "pass_at_k": {str(n): pass_at_k(k, passes_n, n) for n in powers},
        "truncated": cut / trials,
        "ungraded": ungraded,
    }
