"""The gap between sampler and learner, against float64 and order statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from rlx.objectives import mismatch


def batch(spread, seed=0, shape=(40, 60)):
    rng = np.random.default_rng(seed)
    behavior_BT = -rng.exponential(1.0, shape)
    logp_BT = behavior_BT + spread * rng.standard_t(3, shape)
    mask_BT = rng.random(shape) < 0.8
    return tuple(x.astype(np.float32) for x in (logp_BT, behavior_BT, mask_BT))


@pytest.mark.parametrize("spread", [1e-5, 1e-3, 0.1])
def test_metrics_are_those_of_the_tokens(spread):
    logp_BT, behavior_BT, mask_BT = batch(spread)
    sums = mismatch.sums(logp_BT, behavior_BT, mask_BT)
    got = mismatch.pop(sums, jnp.sum(mask_BT))
    assert not sums
    log_ratio = (logp_BT - behavior_BT)[mask_BT > 0].astype(np.float64)  # as float32 holds it
    ratio = np.exp(log_ratio)
    assert_allclose(got["policy/sampler_kl"], np.mean(ratio - 1 - log_ratio), rtol=1e-3, atol=1e-7)
    assert_allclose(got["policy/ess"], ratio.sum() ** 2 / len(ratio) / (ratio**2).sum(), rtol=1e-4)
    for name, q in mismatch.QUANTILES.items():
        edge, gap = float(got[f"policy/logp_gap_{name}"]), np.abs(log_ratio)
        assert np.mean(gap > edge) <= 1 - q + 1e-6 < np.mean(gap > edge / 2**0.5)


def test_slices_add_and_masked_tokens_do_not_count():
    logp_BT, behavior_BT, mask_BT = batch(0.1)
    whole = mismatch.sums(logp_BT, behavior_BT, mask_BT)
    dirty = np.where(mask_BT > 0, logp_BT, np.nan)
    parts = [mismatch.sums(dirty[i::4], behavior_BT[i::4], mask_BT[i::4]) for i in range(4)]
    added = jax.tree.map(lambda *x: sum(x), *parts)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5), added, whole)


def test_without_tokens_and_without_a_gap():
    nothing = mismatch.pop(mismatch.zero_sums(), jnp.zeros(()))
    assert all(float(x) == 0 for x in nothing.values())
    logp_BT, _, mask_BT = batch(0.1)
    same = mismatch.pop(mismatch.sums(logp_BT, logp_BT, mask_BT), jnp.sum(mask_BT))
    assert_allclose(same["policy/ess"], 1, rtol=1e-5)
    assert float(same["policy/sampler_kl"]) == 0
    assert float(same["policy/logp_gap_q999"]) == np.float32(mismatch.EDGES[0])


def test_gaps_beyond_the_last_edge_are_not_called_small():
    """One gap in ten is of 50 nats: more than 1 %, so no edge bounds the 99th percentile."""
    behavior_BT = np.zeros((10, 10), np.float32)
    logp_BT = np.where(np.arange(10) == 0, -50, -0.1) * np.ones((10, 1))
    sums = mismatch.sums(np.float32(logp_BT), behavior_BT, np.ones((10, 10), np.float32))
    got = mismatch.pop(sums, jnp.float32(100))
    assert 0.1 <= float(got["policy/logp_gap_q50"]) <= 0.1 * 2**0.5
    assert [float(got[f"policy/logp_gap_{q}"]) for q in ("q99", "q999")] == [np.inf] * 2
