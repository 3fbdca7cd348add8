"""Reductions, against hand-worked weights, a loop over prompts, and the properties of a mean."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

from rlx.objectives.weights import weights

MEANS = ("token_mean", "sample_mean", "prompt_mean")
KINDS = (*MEANS, "fixed_length")
PROMPT_B = np.array([0, 0, 1, 1, 2, 2])
MASK_BT = np.float32([[1, 1, 1], [1, 0, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]])
masks = arrays(np.bool_, (6, 3))


@pytest.mark.parametrize(
    "kind, row_weights",
    [
        # 6 tokens in the batch
        ("token_mean", [1 / 6, 1 / 6, 1 / 6]),
        # 3 sequences have tokens: 3, 2 and 1 of them
        ("sample_mean", [1 / 3 / 3, 1 / 2 / 3, 1 / 1 / 3]),
        # 2 prompts have tokens: 3 + 2 = 5, and 1; prompt 2 is dropped
        ("prompt_mean", [1 / 5 / 2, 1 / 5 / 2, 1 / 1 / 2]),
        # 3 sequences have tokens, length 4
        ("fixed_length", [1 / 12, 1 / 12, 1 / 12]),
    ],
)
def test_by_hand(kind, row_weights):
    weight_BT = weights(MASK_BT, PROMPT_B, kind=kind, length=4)
    expected_B = np.array([*row_weights, 0, 0, 0])
    assert_allclose(weight_BT, expected_B[:, None] * MASK_BT, rtol=1e-6)
    assert weight_BT.dtype == np.float32


@settings(max_examples=25, deadline=None)
@given(mask_BT=masks, prompt_B=arrays(np.int32, 6, elements=st.integers(0, 5)))
def test_prompt_mean_pools_then_averages(mask_BT, prompt_B):
    """sum(weight x) is the mean over kept prompts of the mean over the prompt's tokens."""
    x_BT = np.random.default_rng(0).normal(size=mask_BT.shape)
    pools = [
        [x_BT[b, t] for b in range(6) for t in range(3) if prompt_B[b] == p and mask_BT[b, t]]
        for p in range(6)
    ]
    means = [np.mean(pool) for pool in pools if pool]
    weight_BT = np.asarray(weights(mask_BT, prompt_B, kind="prompt_mean"))
    assert_allclose(np.sum(weight_BT * x_BT), np.mean(means) if means else 0, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(mask_BT=masks)
@pytest.mark.parametrize("kind", KINDS)
def test_a_mean_of_the_unmasked(kind, mask_BT):
    weight_BT = np.asarray(weights(mask_BT, PROMPT_B, kind=kind, length=3))
    assert (weight_BT[mask_BT] > 0).all() and (weight_BT[~mask_BT] == 0).all()
    if kind in MEANS:
        assert_allclose(weight_BT.sum(), mask_BT.any(), rtol=1e-6)

    order_B = np.array([3, 0, 5, 1, 4, 2])  # rows carry their weights with them
    shuffled_BT = weights(mask_BT[order_B], PROMPT_B[order_B], kind=kind, length=3)
    assert_allclose(shuffled_BT, weight_BT[order_B], rtol=1e-6)
    padded_mask_BT = np.pad(mask_BT, ((0, 2), (0, 4)))
    padded_BT = weights(padded_mask_BT, np.append(PROMPT_B, [6, 6]), kind=kind, length=3)
    assert_allclose(padded_BT, np.pad(weight_BT, ((0, 2), (0, 4))), rtol=1e-6)


def test_reductions_coincide_at_equal_lengths():
    """Every row has 2 of 3 tokens, in different places; length is 2."""
    mask_BT = np.float32([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 1], [1, 1, 0]])
    for kind in KINDS:
        weight_BT = weights(mask_BT, PROMPT_B, kind=kind, length=2)
        assert_allclose(weight_BT, mask_BT / 12, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_learn_from(kind):
    weight_BT = weights(np.zeros((6, 3), np.float32), PROMPT_B, kind=kind, length=3)
    assert_array_equal(weight_BT, np.zeros((6, 3)))


@pytest.mark.parametrize("kind", KINDS)
def test_jit_and_strict_dtypes(kind):
    plain_BT = weights(MASK_BT, PROMPT_B, kind=kind, length=4)
    with jax.numpy_dtype_promotion("strict"):
        jitted = jax.jit(partial(weights, kind=kind, n_prompts=3))
        jitted_BT = jitted(jnp.asarray(MASK_BT), jnp.asarray(PROMPT_B), length=jnp.float32(4))
    assert_allclose(jitted_BT, plain_BT, rtol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="length is missing"):
        weights(MASK_BT, PROMPT_B, kind="fixed_length")
    with pytest.raises(ValueError, match="kind=median"):
        weights(MASK_BT, PROMPT_B, kind="median")
