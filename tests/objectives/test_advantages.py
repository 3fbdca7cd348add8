"""Advantages, against figures of another implementation, hand-worked numbers and float64 loops."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rlx.objectives.advantages import (
    advantages,
    clipped_by_covariance,
    gae,
    towards_teacher,
    zero_variance,
)

DATA = Path(__file__).parents[1] / "data"
GOLDEN = dict(np.load(DATA / "expected.npz"))
GOLDEN_INPUTS = dict(np.load(DATA / "inputs.npz"))
KINDS = ("centered", "prompt_norm", "batch_norm", "leave_one_out")
REWARD = np.float32([[1, 0, 0, 1], [1, 1, 1, 0], [1, 1, 1, 1]])
KEEP = np.ones(3, np.float32)


@pytest.mark.parametrize("key", [key for key in GOLDEN if key.startswith("advantage/")])
def test_golden(key):
    kind = key.removeprefix("advantage/").removesuffix("_ddof1_eps1e-6")
    adv_PG = advantages(GOLDEN_INPUTS["reward_PG"], KEEP, kind=kind, eps=1e-6, ddof=1)
    assert_allclose(adv_PG, GOLDEN[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "kind, expected_PG",
    [
        # means 1/2, 3/4, 1
        ("centered", [[0.5, -0.5, -0.5, 0.5], [0.25, 0.25, 0.25, -0.75], [0, 0, 0, 0]]),
        # sums of squares 4 * 1/4 = 1 and 3 * 1/16 + 9/16 = 3/4, over 4 - 1: std = (1/3)^(1/2), 1/2
        (
            "prompt_norm",
            [[0.866025, -0.866025, -0.866025, 0.866025], [0.5, 0.5, 0.5, -1.5], [0, 0, 0, 0]],
        ),
        # sum of squares of all 12: 1 + 3/4 + 0 = 7/4, over 12 - 1: std = (7/44)^(1/2) = 0.398862
        (
            "batch_norm",
            [
                [1.253566, -1.253566, -1.253566, 1.253566],
                [0.626783, 0.626783, 0.626783, -1.880349],
                [0, 0, 0, 0],
            ],
        ),
        # against the mean of the other three: 1 - 1/3, 0 - 2/3; 1 - 2/3, 0 - 1
        (
            "leave_one_out",
            [[2 / 3, -2 / 3, -2 / 3, 2 / 3], [1 / 3, 1 / 3, 1 / 3, -1], [0, 0, 0, 0]],
        ),
    ],
)
def test_by_hand(kind, expected_PG):
    adv_PG = advantages(REWARD, KEEP, kind=kind, eps=1e-8)
    assert_allclose(adv_PG, expected_PG, rtol=1e-5, atol=1e-6)


def test_batch_norm_of_kept_prompts_by_hand():
    # prompt 2 dropped: sum of squares 7/4 over 8 - 1: std = (1/4)^(1/2) = 1/2; eps = 1/2 makes it 1
    adv_PG = advantages(REWARD, np.float32([1, 1, 0]), kind="batch_norm", eps=0.5)
    assert_allclose(adv_PG[:2], [[0.5, -0.5, -0.5, 0.5], [0.25, 0.25, 0.25, -0.75]], rtol=1e-6)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_loop(kind, ddof):
    rng = np.random.default_rng(0)
    P, G, eps = 5, 4, 0.1
    reward_PG = rng.normal(3, 2, (P, G)).astype(np.float32)
    keep_P = np.float32([1, 0, 1, 1, 0])
    reward = reward_PG.astype(np.float64)
    expected = np.zeros((P, G))
    for p in range(P):
        for g in range(G):
            mean = sum(reward[p]) / G
            others = [reward[p, h] for h in range(G) if h != g]
            if keep_P[p] and kind == "leave_one_out":
                expected[p, g] = reward[p, g] - sum(others) / (G - 1)
            elif keep_P[p]:
                expected[p, g] = reward[p, g] - mean
    kept = [expected[p, g] for p in range(P) for g in range(G) if keep_P[p]]
    for p in range(P):
        if keep_P[p] and kind == "prompt_norm":
            expected[p] /= np.std(reward[p], ddof=ddof) + eps
    if kind == "batch_norm":
        expected /= np.std(kept, ddof=ddof) + eps
    adv_PG = advantages(reward_PG, keep_P, kind=kind, eps=eps, ddof=ddof)
    assert_allclose(adv_PG, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
@pytest.mark.parametrize("kind", KINDS)
def test_zero_mean_shift_and_scale(kind, seed, shift, scale):
    """No advantage on average over a prompt; a prompt's baseline and the unit do not matter."""
    rng = np.random.default_rng(seed)
    reward_PG = rng.normal(size=(3, 4)).astype(np.float32)
    moved_PG = (scale * (reward_PG + shift * np.arange(3)[:, None])).astype(np.float32)
    adv_PG = np.asarray(advantages(reward_PG, KEEP, kind=kind, eps=0.0))
    moved_adv_PG = np.asarray(advantages(moved_PG, KEEP, kind=kind, eps=0.0))
    assert_allclose(adv_PG.sum(axis=1), 0, atol=1e-5)
    unit = 1 if kind.endswith("norm") else scale
    assert_allclose(moved_adv_PG, unit * adv_PG, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_prompts_do_not_count(kind):
    """Whatever their rewards; and with none kept, or none that varies, all is 0."""
    keep_P = np.float32([1, 1, 0])
    clean_PG = advantages(REWARD, keep_P, kind=kind, eps=1e-6)
    for rubbish in (np.nan, np.inf, 1e9):
        dirty_PG = np.where(keep_P[:, None] > 0, REWARD, np.float32(rubbish))
        assert_array_equal(advantages(dirty_PG, keep_P, kind=kind, eps=1e-6), clean_PG)
    assert_array_equal(clean_PG[2], np.zeros(4))
    assert_allclose(clean_PG[:2], advantages(REWARD[:2], KEEP[:2], kind=kind, eps=1e-6), rtol=1e-6)
    for reward_PG, keep_P in ((REWARD, 0 * KEEP), (REWARD[2:], KEEP[2:])):
        adv_PG = advantages(reward_PG, keep_P, kind=kind, eps=1e-6)
        assert_array_equal(adv_PG, np.zeros_like(reward_PG))


@pytest.mark.parametrize("kind", KINDS)
def test_jit_and_strict_dtypes(kind):
    plain_PG = advantages(REWARD, KEEP, kind=kind, eps=1e-6)
    with jax.numpy_dtype_promotion("strict"):
        jitted = jax.jit(partial(advantages, kind=kind))
        jitted_PG = jitted(jnp.asarray(REWARD), jnp.asarray(KEEP), eps=jnp.float32(1e-6))
    assert_allclose(jitted_PG, plain_PG, rtol=1e-6)
    assert jitted_PG.dtype == np.float32


def test_unknown_kind():
    with pytest.raises(ValueError, match="kind=best"):
        advantages(REWARD, KEEP, kind="best", eps=1e-6)


def test_without_a_baseline_the_advantage_is_the_reward():
    keep_P = np.float32([1, 0, 1])
    got = advantages(REWARD, keep_P, kind="none", eps=1e-6)
    np.testing.assert_array_equal(got, REWARD * keep_P[:, None])


def test_zero_variance():
    reward_PG = np.float32([[1, 0, 0, 1], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0.1] * 4])
    assert_array_equal(zero_variance(reward_PG), [False, False, True, True, True])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("G", [3, 8, 16])
def test_equal_rewards_have_no_advantage_whatever_their_rounding(kind, G):
    reward_PG = np.repeat(np.float32([[-4 / 3], [0.7], [13.7], [3.1]]), G, axis=1)
    got = advantages(reward_PG, np.ones(4, np.float32), kind=kind, eps=1e-6)
    assert_array_equal(got, np.zeros_like(reward_PG))


# --- gae ------------------------------------------------------------------------------------------


def test_gae_golden():
    x = GOLDEN_INPUTS
    mask_BT = x["prefix_mask_BT"]
    args = (x["values_BT"], x["token_reward_BT"], mask_BT)
    adv_BT, return_BT = gae(*args, gamma=0.99, lam=0.95)
    sampled = mask_BT > 0  # figures elsewhere are not results
    expected_adv_BT = GOLDEN["gae_0.99_0.95/adv_unwhitened_BT"]
    assert_allclose(adv_BT[sampled], expected_adv_BT[sampled], rtol=1e-5, atol=1e-6)
    expected_return_BT = GOLDEN["gae_0.99_0.95/returns_BT"]
    assert_allclose(return_BT[sampled], expected_return_BT[sampled], rtol=1e-5, atol=1e-6)
    assert (adv_BT[~sampled] == 0).all() and (return_BT[~sampled] == 0).all()


def test_gae_by_hand():
    value_BT = np.float32([[0.5, 9, 0.25, 7], [2, 1, 3, 4]])
    reward_BT = np.float32([[0, 9, 1, 7], [0, 0, 0, 1]])
    mask_BT = np.float32([[1, 0, 1, 0], [0, 0, 0, 0]])
    # gamma = lam = 1/2; tokens 0 and 2 of row 0, token 1 passed over:
    #   A_2 = 1 + 0 - 0.25 = 0.75;  A_0 = 0 + 0.5 * 0.25 - 0.5 + 0.25 * 0.75 = -0.1875
    #   returns 0.75 + 0.25 = 1 and -0.1875 + 0.5 = 0.3125
    adv_BT, return_BT = gae(value_BT, reward_BT, mask_BT, gamma=0.5, lam=0.5)
    assert_allclose(adv_BT, [[-0.1875, 0, 0.75, 0], [0, 0, 0, 0]], rtol=1e-6)
    assert_allclose(return_BT, [[0.3125, 0, 1, 0], [0, 0, 0, 0]], rtol=1e-6)


def test_gae_loop_with_holes():
    """The sum of (gamma lam)^l delta_{t+l} over the unmasked tokens from t on."""
    rng = np.random.default_rng(0)
    value_BT, reward_BT = rng.normal(size=(2, 6, 7)).astype(np.float32)
    mask_BT = rng.random((6, 7)) < 0.7
    gamma, lam = 0.9, 0.8
    expected_BT = np.zeros((6, 7))
    for b in range(6):
        ts = [t for t in range(7) if mask_BT[b, t]]
        value = [float(value_BT[b, t]) for t in ts] + [0.0]
        delta = [reward_BT[b, t] + gamma * value[i + 1] - value[i] for i, t in enumerate(ts)]
        for i, t in enumerate(ts):
            expected_BT[b, t] = sum((gamma * lam) ** (j - i) * delta[j] for j in range(i, len(ts)))
    value_BT[~mask_BT] = reward_BT[~mask_BT] = np.nan
    with jax.numpy_dtype_promotion("strict"):
        args = (jnp.asarray(value_BT), jnp.asarray(reward_BT), jnp.asarray(mask_BT))
        adv_BT, return_BT = jax.jit(gae)(*args, gamma=jnp.float32(gamma), lam=jnp.float32(lam))
    assert_allclose(adv_BT, expected_BT, rtol=1e-5, atol=1e-6)
    assert_allclose(return_BT, expected_BT + np.where(mask_BT, value_BT, 0), rtol=1e-5, atol=1e-6)


# --- a teacher ------------------------------------------------------------------------------------


def test_a_teacher_s_advantage_is_zero_where_masked():
    teacher_BT = np.float32([[-1, np.nan, -0.5]])
    behavior_BT, mask_BT = np.float32([[-2, -1, -0.25]]), np.float32([[1, 0, 1]])
    assert_allclose(towards_teacher(teacher_BT, behavior_BT, mask_BT), [[1, 0, -0.25]])
    assert_array_equal(advantages(REWARD, KEEP, kind="distill", eps=1e-6), np.zeros((3, 4)))


def test_its_policy_gradient_is_that_of_the_reverse_kl():
    """Exactly, over a vocabulary of 6. As an advantage the KL over the two likeliest words, which
    does not depend on what was drawn, has none: `algo.advantage=distill_top_k` is refused."""
    z_V, teacher_V = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
    pi_V, teacher_logp_V = jax.nn.softmax(z_V), jax.nn.log_softmax(teacher_V)
    behavior_V = jax.nn.log_softmax(z_V)

    def surrogate(z_V, adv_V):  # in expectation over the token that is drawn
        return jnp.sum(pi_V * adv_V * jax.nn.log_softmax(z_V))

    def reverse_kl(z_V):
        return jnp.sum(jax.nn.softmax(z_V) * (jax.nn.log_softmax(z_V) - teacher_logp_V))

    one_V1 = np.ones((6, 1), np.float32)
    adv_V = towards_teacher(teacher_logp_V[:, None], behavior_V[:, None], one_V1)[:, 0]
    slope_V = jax.grad(surrogate)(z_V, adv_V)
    assert_allclose(slope_V, -jax.grad(reverse_kl)(z_V), rtol=1e-4, atol=1e-6)
    top = np.argsort(-teacher_logp_V)[:2]
    top_k = jnp.sum(jnp.exp(teacher_logp_V[top]) * (teacher_logp_V[top] - behavior_V[top]))
    assert abs(top_k) > 0.1
    nothing_V = jax.grad(surrogate)(z_V, jnp.full(6, -top_k))
    assert_allclose(nothing_V, np.zeros(6), atol=1e-6)


# --- covariance -----------------------------------------------------------------------------------


def test_clipping_by_covariance_is_the_loop():
    """Which tokens may be left out, by float64; how many are; and each of them as often."""
    rng = np.random.default_rng(3)
    adv_BT, logp_BT = rng.normal(size=(2, 20, 10)).astype(np.float32)
    mask_BT = (rng.random((20, 10)) < 0.7).astype(np.float32)
    adv_BT = np.where(mask_BT > 0, adv_BT, np.nan).astype(np.float32)
    n, low, high = int(mask_BT.sum()), 0.5, 1.5
    counted = mask_BT > 0
    gaps = [np.float64(x) - np.mean(np.float64(x[counted])) for x in (logp_BT, adv_BT)]
    band = counted & (gaps[0] * gaps[1] > low) & (gaps[0] * gaps[1] < high)
    one = jax.jit(partial(clipped_by_covariance, low=low, high=high))
    left = np.zeros(adv_BT.shape)
    for i in range(300):
        got_BT = np.asarray(one(adv_BT, logp_BT, mask_BT, jax.random.key(i), share=0.03))
        out = counted & (got_BT != adv_BT)
        assert out.sum() == int(0.03 * n) and not (out & ~band).any()
        assert_array_equal(got_BT[out], 0)
        left += out
    expected = 300 * int(0.03 * n) / band.sum()
    assert np.abs(left[band] - expected).max() < 5 * expected**0.5
    whole = one(adv_BT, logp_BT, mask_BT, jax.random.key(0), share=0.99)  # more than there are
    assert_array_equal(np.asarray(whole)[band], 0)
    few = one(adv_BT, logp_BT, mask_BT, jax.random.key(0), share=1e-9)
    assert (counted & (np.asarray(few) != adv_BT)).sum() == 1
    assert not (
        np.asarray(one(adv_BT, logp_BT, 0 * mask_BT, jax.random.key(0), share=0.1)) == 0
    ).any()
