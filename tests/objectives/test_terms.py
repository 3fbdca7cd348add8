"""Corrections, KL estimates, the value loss and the Bellman residual.

By hand, by float64 loops with central differences, and by what they must share with the losses.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rlx.objectives.losses import cispo, reinforce, tbrm
from rlx.objectives.terms import correction, kl, value_loss

MASK = np.array([[1, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], np.float32)


def random_logps(seed=0):
    rng = np.random.default_rng(seed)
    return -rng.exponential(1.0, (2, 3, 4)).astype(np.float32)


def bellman_residual(log_partition_B, logp_BT, ref_logp_BT, reward_B, mask_BT, *, beta):
    """The loss that stands for it, without what it makes no use of."""
    return tbrm(
        logp_BT, logp_BT, jnp.zeros_like(logp_BT), mask_BT, ref_logp_BT=ref_logp_BT,
        log_partition_B=log_partition_B, reward_B=reward_B, tbrm_beta=beta,
    )[0]  # fmt: skip


def slope(function, x):
    """d sum(function) / dx by central differences, in float64."""
    x = x.astype(np.float64)
    grad = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        h = np.zeros_like(x)
        h[index] = 1e-5
        grad[index] = (np.sum(function(x + h)) - np.sum(function(x - h))) / 2e-5
    return grad


# --- correction -----------------------------------------------------------------------------------


def test_correction_by_hand():
    logp_BT = np.log(np.float32([[0.6, 0.3, 0.1, 0.2]]))
    behavior_BT = np.log(np.float32([[0.2, 0.3, 0.4, 0.1]]))  # rho = 3, 1, 0.25, 2
    mask_BT = np.float32([[1, 1, 1, 0]])
    truncated = correction(logp_BT, behavior_BT, mask_BT, kind="truncated", cap=2.5)
    masked = correction(logp_BT, behavior_BT, mask_BT, kind="masked", cap=3.5)
    assert_allclose(truncated[0], [[2.5, 1, 0.25, 1]], rtol=1e-6)
    assert_array_equal(truncated[1], [[1, 0, 0, 0]])
    assert_allclose(masked[0], [[3, 1, 0, 1]], rtol=1e-6)  # 0.25 < 1 / 3.5
    assert_array_equal(masked[1], [[0, 0, 1, 0]])


@pytest.mark.parametrize("action", ["truncated", "masked"])
@pytest.mark.parametrize("level", ["sequence", "geometric"])
def test_correction_of_sequences_is_the_loop(level, action):
    """Products and geometric means of ratios over the unmasked tokens of a row, in float64."""
    logp_BT, behavior_BT = random_logps(2)
    cap = 1.3
    weight_BT, clipped_BT = correction(
        logp_BT, behavior_BT, MASK, kind=f"{level}_{action}", cap=cap
    )
    fired = 0
    for b in range(3):
        gaps = [float(logp_BT[b, t]) - float(behavior_BT[b, t]) for t in range(4) if MASK[b, t]]
        s = np.exp(np.sum(gaps) / (len(gaps) if level == "geometric" else 1)) if gaps else 1.0
        outside = s > cap if action == "truncated" else not 1 / cap <= s <= cap
        fired += outside
        weight = min(s, cap) if action == "truncated" else 0.0 if outside else s
        for t in range(4):
            expected = (weight, outside) if MASK[b, t] else (1.0, False)
            assert_allclose((weight_BT[b, t], clipped_BT[b, t]), expected, rtol=1e-5)
    assert fired


def test_a_correction_of_the_whole_product_is_unbiased():
    """Exactly, over all sequences of 3 tokens of 2 words: E_q[prod rho grad log pi r] is the
    gradient of E_pi[r]; by the ratios of single tokens it is not."""
    rng = np.random.default_rng(0)
    z_TV, q_TV = rng.normal(size=(2, 3, 2))
    q_TV = np.exp(q_TV) / np.exp(q_TV).sum(1, keepdims=True)
    words_BT = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    reward_B1, one_BT = rng.normal(size=(8, 1)), np.ones((8, 3))
    behavior_BT = np.log(q_TV[np.arange(3), words_BT])
    prob_B1 = np.exp(behavior_BT.sum(1, keepdims=True))

    def log_pi(z_TV):
        return jax.nn.log_softmax(z_TV)[jnp.arange(3), words_BT]

    def surrogate(z_TV, kind):
        logp_BT = log_pi(z_TV)
        weight_BT, _ = correction(logp_BT, behavior_BT, one_BT, kind=kind, cap=1e6)
        obj_BT, _ = reinforce(logp_BT, jax.lax.stop_gradient(logp_BT), reward_B1 * one_BT, one_BT)
        return jnp.sum(prob_B1 * weight_BT * obj_BT)

    true = jax.grad(lambda z: jnp.sum(jnp.exp(log_pi(z).sum(1, keepdims=True)) * reward_B1))(z_TV)
    assert_allclose(jax.grad(surrogate)(z_TV, "sequence_truncated"), true, rtol=1e-4, atol=1e-6)
    assert np.abs(jax.grad(surrogate)(z_TV, "truncated") - true).max() > 0.01


def test_truncated_reinforce_is_cispo():
    """The same gradient, element by element: the weight is a constant of the objective."""
    logp_BT, behavior_BT = random_logps()
    adv_BT = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)

    def corrected(logp_BT):
        weight_BT, _ = correction(logp_BT, behavior_BT, MASK, kind="truncated", cap=1.5)
        obj_BT, _ = reinforce(logp_BT, jax.lax.stop_gradient(logp_BT), adv_BT, MASK)
        return jnp.sum(weight_BT * obj_BT)

    def whole(logp_BT):
        return jnp.sum(cispo(logp_BT, behavior_BT, adv_BT, MASK, is_cap=1.5)[0])

    assert_allclose(jax.grad(corrected)(logp_BT), jax.grad(whole)(logp_BT), rtol=1e-6)


# --- KL -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_is_the_loop_and_its_slope(kind):
    logp_BT, ref_BT = random_logps()

    def loop(logp_BT):
        gap = (logp_BT - ref_BT.astype(np.float64)) * MASK
        return {"k1": gap, "k2": gap**2 / 2, "k3": np.exp(-gap) - 1 + gap}[kind]

    value_BT, pullback = jax.vjp(lambda x: kl(x, ref_BT, MASK, kind=kind), logp_BT)
    assert_allclose(value_BT, loop(logp_BT), rtol=1e-5, atol=1e-6)
    assert_allclose(pullback(jnp.ones((3, 4)))[0], slope(loop, logp_BT), rtol=1e-5, atol=1e-6)


def test_means_and_gradients_of_kl_are_what_the_docstring_says():
    """Exactly, over a vocabulary of 4: E_pi[k1] = E_pi[k3] = KL; E_pi[grad k1] = 0; E_pi[grad k2]
    is the gradient of KL(pi || ref), E_pi[grad k3] that of KL(ref || pi)."""
    rng = np.random.default_rng(0)
    z_V, ref_V = rng.normal(size=(2, 4)).astype(np.float32)
    ref_V = jax.nn.log_softmax(ref_V)
    one = np.ones((1, 4), np.float32)

    def estimates(z_V, kind):
        return kl(jax.nn.log_softmax(z_V)[None], ref_V[None], one, kind=kind)[0]

    pi_V = jax.nn.softmax(z_V)
    reverse = lambda z_V: jnp.sum(jax.nn.softmax(z_V) * (jax.nn.log_softmax(z_V) - ref_V))  # noqa: E731
    forward = lambda z_V: jnp.sum(jnp.exp(ref_V) * (ref_V - jax.nn.log_softmax(z_V)))  # noqa: E731
    for kind in ("k1", "k3"):
        assert_allclose(jnp.sum(pi_V * estimates(z_V, kind)), reverse(z_V), rtol=1e-5)
    expected_grad = lambda kind: pi_V @ jax.jacobian(estimates)(z_V, kind)  # noqa: E731
    assert_allclose(expected_grad("k1"), np.zeros(4), atol=1e-6)
    assert_allclose(expected_grad("k2"), jax.grad(reverse)(z_V), rtol=1e-4, atol=1e-6)
    assert_allclose(expected_grad("k3"), jax.grad(forward)(z_V), rtol=1e-4, atol=1e-6)


# --- value ----------------------------------------------------------------------------------------


def test_value_loss_by_hand():
    value_BT = np.float32([[1.0, 0.5, 0.05, -1.0]])
    behavior_BT, return_BT = np.float32([[0.0, 0.0, 0.0, 0.0]]), np.float32([[2.0, 0.0, 1.0, 0.0]])
    mask_BT = np.float32([[1, 1, 1, 0]])
    # clip 0.2: V near V_b -> 0.2, 0.2, 0.05
    # (1-2)^2 = 1 < (0.2-2)^2 = 3.24: clipped, no slope;  0.25 > 0.04: free, slope 0.5;  0.9025 both
    obj_BT, pullback = jax.vjp(
        lambda v: value_loss(v, behavior_BT, return_BT, mask_BT, clip=0.2), value_BT
    )
    assert_allclose(obj_BT, [[1.62, 0.125, 0.45125, 0]], rtol=1e-5)
    (grad_BT,) = pullback(jnp.ones((1, 4)))
    assert_allclose(grad_BT, [[0, 0.5, -0.95, 0]], rtol=1e-5)


# --- Bellman residual -----------------------------------------------------------------------------


def test_bellman_residual_is_the_loop_and_its_slope():
    logp_BT, ref_BT = random_logps()
    log_z_B, reward_B = np.float32([0.3, -0.2, 1.0]), np.float32([1, -1, 1])

    def loop(logp_BT):
        total = np.zeros_like(logp_BT, np.float64)
        for b in range(3):
            tokens = [t for t in range(4) if MASK[b, t]]
            nats = sum(logp_BT[b, t] - float(ref_BT[b, t]) for t in tokens)
            for t in tokens:
                total[b, t] = -((log_z_B[b] + nats - reward_B[b] / 0.5) ** 2)
        return total

    obj_BT, pullback = jax.vjp(
        lambda x: bellman_residual(log_z_B, x, ref_BT, reward_B, MASK, beta=0.5), logp_BT
    )
    assert_allclose(obj_BT, loop(logp_BT), rtol=1e-5)
    assert_allclose(pullback(jnp.ones((3, 4)))[0], slope(loop, logp_BT), rtol=1e-4, atol=1e-5)


def test_bellman_residuals_telescope():
    """The squared sum is that of the token-level residuals Q_t - r_t - V_{t+1} of soft Q-learning
    with reward r - beta log(1 / ref), worked out from logits in float64."""
    rng = np.random.default_rng(0)
    beta, reward, T, V = 0.3, 1.0, 4, 5
    z_TV, ref_T = rng.normal(size=(T, V)), -rng.exponential(size=T)
    token_T = rng.integers(V, size=T)
    value_T = beta * np.log(np.exp(z_TV).sum(1))
    residual = 0.0
    for t in range(T):
        r = beta * ref_T[t] + (reward if t == T - 1 else 0.0)
        following = value_T[t + 1] if t < T - 1 else 0.0
        residual += beta * z_TV[t, token_T[t]] - r - following
    logp_T = z_TV[np.arange(T), token_T] - value_T / beta
    obj_BT = bellman_residual(
        np.float32(value_T[:1] / beta), np.float32(logp_T)[None], np.float32(ref_T)[None],
        np.float32([reward]), np.ones((1, T), np.float32), beta=beta,
    )  # fmt: skip
    assert_allclose(obj_BT, np.full((1, T), -((residual / beta) ** 2)), rtol=1e-4)


def test_the_residual_is_zero_at_the_optimal_policy():
    """One step, pi* = ref exp(r / beta) / Z: logits log ref + r / beta have no slope."""
    ref_V, reward_V, beta = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.array([1.0, -1.0, 0.5]), 0.7

    def objective(z_V):
        logp_V, log_z = jax.nn.log_softmax(z_V), jax.nn.logsumexp(z_V)
        rows = [x[:, None] for x in (logp_V, ref_V)]
        return jnp.sum(
            bellman_residual(jnp.full(3, log_z), *rows, reward_V, jnp.ones((3, 1)), beta=beta)
        )

    best_V = ref_V + reward_V / beta
    assert_allclose(objective(best_V), 0, atol=1e-10)
    assert_allclose(jax.grad(objective)(best_V), np.zeros(3), atol=1e-5)
    assert objective(best_V + jnp.array([0.1, 0, 0])) < -1e-3


# --- masks ----------------------------------------------------------------------------------------

CALLS = {
    "correction": lambda a, b, m: correction(a, b, m, kind="masked", cap=2.0)[0] * a,
    "correction of sequences": lambda a, b, m: (
        correction(a, b, m, kind="geometric_truncated", cap=2.0)[0] * a
    ),
    "kl": partial(kl, kind="k3"),
    "value_loss": lambda a, b, m: value_loss(a, b, b, m, clip=0.1),
    "bellman": lambda a, b, m: bellman_residual(jnp.ones(3), a, b, jnp.ones(3), m, beta=1.0),
}


@pytest.mark.parametrize("rubbish", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", CALLS)
def test_masked_entries_neither_count_nor_leak(name, rubbish):
    a_BT, b_BT = random_logps()

    def total(a_BT, b_BT):
        out_BT = CALLS[name](a_BT, b_BT, MASK)
        return jnp.sum(jnp.where(MASK > 0, out_BT, 0))

    clean = jax.value_and_grad(total)(a_BT, b_BT)
    dirty = jax.value_and_grad(total)(
        *(np.where(MASK > 0, x, np.float32(rubbish)) for x in (a_BT, b_BT))
    )
    assert_array_equal(dirty[0], clean[0])
    assert_array_equal(np.where(MASK > 0, dirty[1], 0), np.where(MASK > 0, clean[1], 0))
    if "correction" not in name:  # multiplied by a masked value here, as no caller does
        assert_array_equal(dirty[1], clean[1])
