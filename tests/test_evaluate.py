"""Pass rates: the estimators by enumeration and simulation, the sampling by what it covers."""

from dataclasses import replace
from itertools import combinations

import jax
import numpy as np
import pytest

from rlx import flops
from rlx.envs.grading import Graders
from rlx.evaluate import evaluate, generate, pass_at_k, standard_error
from rlx.mesh import make_mesh
from rlx.rollout.engine import make_generator
from rlx.rollout.generator import Weights
from rlx.train import warm_start
from rlx.train.start import make_env


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(k):
    trials, passes = 6, [0, 1, 3, 6]
    shares = []
    for c in passes:
        subsets = list(combinations([1] * c + [0] * (trials - c), k))
        shares.append(sum(any(s) for s in subsets) / len(subsets))
    assert pass_at_k(trials, np.array(passes), k) == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("trials", [2, 4, 16])
def test_the_standard_error_is_unbiased(trials):
    """Its mean square over 20,000 evaluations of a fixed set is the variance of their means."""
    rng = np.random.default_rng(0)
    rate_N = np.array([0.05, 0.3, 0.5, 0.9, 1.0, 0.0])
    passes_XN = rng.binomial(trials, rate_N, (20_000, len(rate_N)))
    variance = np.var(passes_XN.mean(1) / trials)
    squares = [standard_error(trials, passes_N) ** 2 for passes_N in passes_XN]
    assert np.mean(squares) == pytest.approx(variance, rel=0.05)


def test_one_trial_has_the_binomial_standard_error():
    assert standard_error(1, np.array([1, 0, 0, 1, 1])) == pytest.approx((0.6 * 0.4 / 5) ** 0.5)


@pytest.fixture(scope="module")
def start(easy):
    """(params, env, mesh) of the warm start."""
    env = make_env(easy)
    params, _ = warm_start.load_or_make(easy, env, easy.warm_start_dir)
    return params, env, make_mesh(easy.mesh)


def drawn(config, start, samples, n):
    """The rows of tokens of every problem, cut at their lengths, by problem."""
    params, env, mesh = start
    problems = (env.heldout + env.train)[:n]
    policy = (make_generator(config, Graders(env, {}), mesh), Weights(params, 0))
    rows = generate(*policy, config, env, problems, samples, jax.random.key(0))
    got = [
        (x.problem, [t[:m].tolist() for t, m in zip(x.token_GT, x.length_G, strict=True)])
        for x in rows
    ]
    assert [p for p, _ in got] == problems  # every problem once, in order
    return [texts for _, texts in got]


def test_every_problem_is_covered_however_many_there_are(easy, start):
    whole = drawn(easy, start, 4, 12)
    assert drawn(easy, start, 4, 10) == whole[:10]
    assert drawn(easy, start, 4, 1) == whole[:1]
    assert all(len(texts) == 4 for texts in whole)
    assert len({str(texts) for texts in whole}) == 12  # no problem has another's samples


def test_slots_do_not_decide_what_is_drawn(easy, start):
    """Fewer slots than samples per problem still draw them all."""
    few = replace(easy, rollout=replace(easy.rollout, slots=4))
    assert drawn(few, start, 8, 5) == drawn(easy, start, 8, 5)


def test_an_evaluation_counts_what_was_drawn(easy, start):
    params, env, mesh = start
    config = replace(easy, eval=replace(easy.eval, samples_per_prompt=4, seed=9))
    ledger = flops.Ledger()
    policy = (make_generator(config, Graders(env, {}), mesh), Weights(params, 7))
    (row,) = evaluate(*policy, config, Graders(env, {}), ledger, mesh)
    key = jax.random.fold_in(jax.random.key(9), 7)
    passes, cut, spent = [], 0, 0.0
    for problem, token_GT, length_G, *_ in generate(*policy, config, env, env.heldout, 4, key):
        texts = [env.tokenizer.decode(t[:n]) for t, n in zip(token_GT, length_G, strict=True)]
        last_G = token_GT[np.arange(4), length_G - 1]
        stopped_G = last_G == env.tokenizer.stop_id
        right = [text.split(">")[-1] == problem.answer for text in texts]
        passes.append(
            sum(s and r and ">" in t for s, r, t in zip(stopped_G, right, texts, strict=True))
        )
        cut += sum(~stopped_G)
        spent += float(flops.prefill_flops(config.model, 14, 4))
        spent += float(flops.decode_flops(config.model, 14, 4, length_G).sum())
    assert row["passes_per_prompt"] == passes and 0 < sum(passes) < 32
    assert (row["passes"], row["trials"], row["mean"]) == (sum(passes), 32, sum(passes) / 32)
    assert row["truncated"] == cut / 32 and list(row["pass_at_k"]) == ["1", "2", "4"]
    assert row["pass_at_k"]["1"] == pytest.approx(row["mean"])
    assert row["pass_at_k"]["4"] == np.mean([c > 0 for c in passes])
    assert ledger.eval_flops == pytest.approx(spent) and ledger.compute == 0
