"""Which prompts are asked: epochs, what is retired, what lies outside the band."""

import numpy as np
import pytest

from rlx.config import AlgoConfig
from rlx.rollout.prompts import Prompts, epoch_order

N = 10


def ask(prompts, n, pass_rate):
    """The next n problems, each graded at once."""
    asked = []
    for _ in range(n):
        asked.append(prompts.next())
        prompts.graded(asked[-1], pass_rate(asked[-1]))
    return asked


def test_uniform_sampling_is_epochs_of_permutations():
    prompts = Prompts(AlgoConfig(), N, seed=3)
    asked = ask(prompts, 3 * N, lambda i: 1.0)
    assert asked == [int(i) for epoch in range(3) for i in epoch_order(3, epoch, N)]
    assert prompts.retired == prompts.passed_over == 0


def test_a_prompt_that_passes_often_never_comes_back():
    prompts = Prompts(AlgoConfig(no_positive_resampling=True, retire_pass_rate=0.9), N, seed=0)
    rate = lambda i: 0.9 if i < 4 else 0.89  # noqa: E731
    first, second = ask(prompts, N, rate), ask(prompts, 6, rate)
    assert sorted(first) == list(range(N)) and sorted(second) == list(range(4, N))
    assert prompts.retired == 4 and not prompts.exhausted()
    order = [int(i) for i in epoch_order(0, 1, N) if i >= 4]
    assert second == order  # the order of the epoch is kept
    ask(prompts, 6, lambda i: 1.0)
    assert prompts.exhausted()
    with pytest.raises(RuntimeError, match="every training problem is retired"):
        prompts.next()


def test_a_band_asks_the_others_again_later():
    algo = AlgoConfig(band_low=0.2, band_high=0.8, band_retest_epochs=3)
    prompts = Prompts(algo, N, seed=0)
    rate = lambda i: [0.0, 0.5, 1.0][i % 3]  # noqa: E731
    inside = [i for i in range(N) if i % 3 == 1]
    assert sorted(ask(prompts, N, rate)) == list(range(N))  # epoch 0: all are new
    assert sorted(ask(prompts, len(inside), rate)) == inside  # epoch 1
    assert sorted(ask(prompts, len(inside), rate)) == inside  # epoch 2
    assert sorted(ask(prompts, N, rate)) == list(range(N))  # epoch 3: everyone again
    assert prompts.passed_over == 2 * (N - len(inside))


def test_a_restored_history_goes_on_as_if_nothing_happened():
    algo = AlgoConfig(no_positive_resampling=True)
    rate = lambda i: 1.0 if i % 2 else 0.3  # noqa: E731
    whole, first = Prompts(algo, N, 5), Prompts(algo, N, 5)
    asked = ask(whole, 17, rate)
    before = ask(first, 8, rate)
    second = Prompts(algo, N, 5)
    second.load(first.state_dict())
    assert before + ask(second, 9, rate) == asked
    np.testing.assert_array_equal(second.pass_rate_N, whole.pass_rate_N)
