"""Rewards by hand."""

import numpy as np
import pytest

from rlx.config import AlgoConfig
from rlx.errors import InputError
from rlx.rollout.rewards import length_penalty, rewards, shaped


def test_length_penalty_by_hand():
    length_G = np.array([1, 8, 9, 10, 11])
    penalty_G = length_penalty(length_G, longest=11, margin=2)
    np.testing.assert_allclose(penalty_G, [0, 0, 0, -0.5, -1])
    # the paper's numbers: L_max 14k, L_cache 2k
    penalty_G = length_penalty(np.array([12_000, 13_000, 14_000]), longest=14_000, margin=2_000)
    np.testing.assert_allclose(penalty_G, [0, -0.5, -1])


def test_sigmoid_shaping_keeps_the_ends_and_the_order():
    score_G = np.linspace(0, 1, 11)
    share_G = shaped(score_G, threshold=0.5, sharpness=10)
    assert share_G[0] == 0 and share_G[-1] == 1 and share_G[5] == pytest.approx(0.5)
    assert (np.diff(share_G) > 0).all()
    # (1 / (1 + e^3) - 1 / (1 + e^5)) / (1 / (1 + e^-5) - 1 / (1 + e^5))
    assert share_G[2] == pytest.approx((0.0474259 - 0.0066929) / (0.9933071 - 0.0066929), rel=1e-5)
    np.testing.assert_allclose(shaped(score_G, threshold=0.3, sharpness=1e-4), score_G, atol=1e-4)
    steep_G = shaped(score_G, threshold=0.55, sharpness=1e3)
    np.testing.assert_allclose(steep_G, score_G > 0.55, atol=1e-6)


def test_rewards_by_hand():
    score_G, length_G = np.float32([1, 1, 0, 0.5]), np.array([4, 10, 11, 3])
    plain = rewards(score_G, length_G, AlgoConfig(), 11)
    np.testing.assert_allclose(plain, [1, 1, -1, 0])
    assert plain.dtype == np.float32
    passes = AlgoConfig(length_control="penalty_passes", length_penalty_tokens=2)
    np.testing.assert_allclose(rewards(score_G, length_G, passes, 11), [1, 0.5, -1, 0])
    everyone = AlgoConfig(length_control="penalty_all", length_penalty_tokens=2)
    np.testing.assert_allclose(rewards(score_G, length_G, everyone, 11), [1, 0.5, -2, 0])
    sharp = AlgoConfig(reward_shape="sigmoid", reward_sharpness=100.0, reward_threshold=0.6)
    np.testing.assert_allclose(rewards(score_G, length_G, sharp, 11), [1, 1, -1, -1], atol=1e-3)


def test_a_models_reward_stands_as_it_is_but_for_the_length():
    score_G, length_G, model_G = np.float32([1, 1, 0]), np.array([4, 10, 11]), [7.5, -3.0, 0.25]
    plain = rewards(score_G, length_G, AlgoConfig(reward="model"), 11, np.float32(model_G))
    np.testing.assert_array_equal(plain, np.float32(model_G))
    algo = AlgoConfig(reward="model", length_control="penalty_passes", length_penalty_tokens=2)
    penalised = rewards(score_G, length_G, algo, 11, np.float32(model_G))
    np.testing.assert_allclose(penalised, [7.5, -3.5, 0.25])  # the third is no pass


@pytest.mark.parametrize(
    "name, value", [("threshold", -4.0), ("threshold", 100.0), ("sharpness", 1e-17)]
)
def test_a_shape_that_cannot_tell_scores_apart_is_refused(name, value):
    """1 / (1 + exp(-10 (0 + 4))) is 1 to seventeen digits, as it is at score 1: 0 / 0."""
    with pytest.raises(InputError, match=f"^algo.reward_{name}={value}: it maps scores of 0 and 1"):
        AlgoConfig(reward_shape="sigmoid", **{f"reward_{name}": value})
    AlgoConfig(**{f"reward_{name}": value})  # without effect on a linear shape
    outside = AlgoConfig(reward_shape="sigmoid", reward_threshold=1.5)
    np.testing.assert_allclose(rewards(np.float32([0, 1]), np.array([4, 4]), outside, 11), [-1, 1])
