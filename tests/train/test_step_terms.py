# ruff: noqa: F401, F811
"""What stands beside the ratio, in a whole step: gradients put together token by token.

As in test_step.py, log-probabilities and their gradients come from prefixes run one at a time, and
loops in float64 say with which coefficients they add up.
"""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from test_step import (
    PAD,
    TEMPERATURE,
    G,
    P,
    T,
    U,
    V,
    batch,
    config,
    params,
    tokens,
)

from rlx.config import AlgoConfig
from rlx.mesh import make_mesh
from rlx.models import transformer
from rlx.train.spec import names, numbers
from rlx.train.state import init_state
from rlx.train.step import make_train_step

CAP, COEF, BETA, GAMMA, LAM, EPS = 1.5, 0.3, 0.4, 0.9, 0.8, 1e-6
KEEP = {"zero_variance": "keep", "aggregation": "token_mean", "advantage_eps": EPS}


@pytest.fixture(scope="module")
def reference(params):
    rng = np.random.default_rng(11)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype("f"), params)


@pytest.fixture(scope="module")
def prefixes(config, batch):
    """prefixes(params) -> {(b, t): (log-probability, log partition, hidden)}."""

    @jax.jit
    def one(params, prefix_1S, length_1, token):
        hidden_1D, _ = transformer.prefill(params, config.model, prefix_1S, length_1)
        z_V = hidden_1D[0] @ params["head"] / TEMPERATURE
        return jax.nn.log_softmax(z_V)[token], jax.nn.logsumexp(z_V), hidden_1D[0]

    def table(params):
        got = {}
        for b, t in np.argwhere(batch.mask_BT):
            length = batch.prompt_length_P[b // G]
            prefix = [*batch.prompt_PU[b // G][:length], *batch.completion_BT[b, :t]]
            prefix_1S = np.array([prefix + [PAD] * (U + T - len(prefix))])
            x = one(params, prefix_1S, np.array([len(prefix)]), batch.completion_BT[b, t])
            got[int(b), int(t)] = tuple(np.asarray(y, np.float64) for y in x)
        return got

    return table


def one_step(config, params, batch, reference=None, **algo):
    """Gradient by parameter (of the objective, ascending), and the metrics."""
    config = replace(config, algo=AlgoConfig(**algo))
    spec = names(config, make_mesh(config.mesh))
    state = init_state(spec, params)
    state, metrics = make_train_step(spec, numbers(config), reference)(state, batch)
    mu = jax.device_get(optax.tree_utils.tree_get(state.opt_state, "mu"))
    grads = jax.tree.map(lambda x: -np.asarray(x) / (1 - config.optim.beta1), mu)
    value = grads.pop("value", None)
    return SimpleNamespace(
        grad=np.asarray(ravel_pytree(grads)[0]),
        value_grad=value,
        metrics={name: float(x) for name, x in metrics.items()},
        params=state.params,
    )


def added_up(tokens, coefficient):
    return sum(coefficient(int(b), int(t), logp) * grad for b, t, logp, grad in tokens)


def centred(batch, kl_B=None):
    """Rewards of sequences minus the mean of their prompt."""
    reward_PG = batch.reward_PG.astype(np.float64)
    if kl_B is not None:
        reward_PG = reward_PG - COEF * kl_B.reshape(P, G)
    return (reward_PG - reward_PG.mean(1, keepdims=True)).reshape(-1)


@pytest.mark.parametrize("kind", ["truncated", "masked"])
def test_correction(config, params, batch, tokens, kind):
    """ppo_clip between the learner's own weights never clips; the weight does the rest."""
    for loss in ("ppo_clip", "reinforce"):
        algo = dict(KEEP, loss=loss, advantage="centered", correction=kind, correction_cap=CAP)
        step = one_step(config, params, batch, **algo)
        adv_B, n = centred(batch), batch.mask_BT.sum()

        def coefficient(b, t, logp):
            rho = np.exp(logp - float(batch.behavior_logp_BT[b, t]))
            inside = 1 / CAP <= rho <= CAP
            weight = min(rho, CAP) if kind == "truncated" else rho * inside
            return adv_B[b] * weight / n  # noqa: B023

        np.testing.assert_allclose(step.grad, added_up(tokens, coefficient), atol=2e-6, rtol=0)
        assert 0.1 < step.metrics["policy/clipped_share"] < 0.9


@pytest.mark.parametrize("kind", ["k2", "k3", "k1_reward"])
def test_kl_to_a_reference(config, params, batch, tokens, prefixes, reference, kind):
    algo = dict(KEEP, loss="reinforce", advantage="centered", kl=kind, kl_coef=COEF)
    step = one_step(config, params, batch, reference, **algo)
    ref = {bt: logp for bt, (logp, *_) in prefixes(reference).items()}
    n = batch.mask_BT.sum()
    kl_B = np.zeros(P * G)
    for (b, t), ref_logp in ref.items():
        kl_B[b] += batch.behavior_logp_BT[b, t] - ref_logp
    adv_B = centred(batch, kl_B if kind == "k1_reward" else None)

    def coefficient(b, t, logp):
        gap = logp - ref[b, t]
        slope = {"k2": gap, "k3": 1 - np.exp(-gap), "k1_reward": 0.0}[kind]
        return (adv_B[b] - COEF * slope) / n

    np.testing.assert_allclose(step.grad, added_up(tokens, coefficient), atol=5e-6, rtol=0)
    mean = {
        "k2": np.mean([(logp - ref[int(b), int(t)]) ** 2 / 2 for b, t, logp, _ in tokens]),
        "k3": np.mean(
            [np.exp(-(d := logp - ref[int(b), int(t)])) - 1 + d for b, t, logp, _ in tokens]
        ),
        "k1_reward": np.mean([logp - ref[int(b), int(t)] for b, t, logp, _ in tokens]),
    }[kind]
    assert step.metrics["policy/kl"] == pytest.approx(mean, rel=1e-4)


def gae_loop(value_T, reward_T):
    adv_T, following = np.zeros(len(value_T)), (0.0, 0.0)
    for t in reversed(range(len(value_T))):
        delta = reward_T[t] + GAMMA * following[1] - value_T[t]
        adv_T[t] = delta + GAMMA * LAM * following[0]
        following = (adv_T[t], value_T[t])
    return adv_T


@pytest.fixture(scope="module")
def critic_batch(batch):
    rng = np.random.default_rng(5)
    value_BT = rng.normal(0, 0.5, (P * G, T)).astype("f") * batch.mask_BT
    return batch.replace(behavior_value_BT=value_BT)


def test_actor_and_critic(config, params, critic_batch, tokens, prefixes):
    """GAE on the sampler's values, whitened; the critic's slope on its own head."""
    batch, n = critic_batch, critic_batch.mask_BT.sum()
    algo = dict(KEEP, loss="reinforce", advantage="gae", gamma=GAMMA, gae_lambda=LAM)
    adv, target = {}, {}
    for b in range(P * G):
        ts = np.flatnonzero(batch.mask_BT[b])
        value_T = batch.behavior_value_BT[b, ts].astype(np.float64)
        reward_T = np.zeros(len(ts))
        reward_T[-1] = batch.reward_PG.reshape(-1)[b]
        for t, a, v in zip(ts, gae_loop(value_T, reward_T), value_T, strict=True):
            adv[b, int(t)], target[b, int(t)] = a, a + v
    every = np.array(list(adv.values()))
    mean, std = every.mean(), every.std(ddof=1)

    actor = one_step(config, params, batch, **algo, value_coef=0.0)
    want = added_up(tokens, lambda b, t, logp: (adv[b, t] - mean) / (std + EPS) / n)
    np.testing.assert_allclose(actor.grad, want, atol=5e-6, rtol=0)
    np.testing.assert_array_equal(actor.value_grad, np.zeros(16))

    # The head starts at 0, so V = 0; clip 0.3 leaves V free where V_b is within
    # 0.3, or on V's side.
    critic = one_step(config, params, batch, **algo, value_coef=2.0, value_clip=0.3)
    hidden = {bt: hidden for bt, (*_, hidden) in prefixes(params).items()}
    slope, loss = np.zeros(16), 0.0
    for bt, goal in target.items():
        before = float(batch.behavior_value_BT[bt])
        near = min(max(0.0, before - 0.3), before + 0.3)
        free = goal**2 >= (near - goal) ** 2
        slope += 2.0 * goal * hidden[bt] / n if free else 0.0
        loss += max(goal**2, (near - goal) ** 2) / 2 / n
    np.testing.assert_allclose(critic.value_grad, slope, atol=1e-5, rtol=0)
    assert critic.metrics["critic/loss"] == pytest.approx(loss, rel=1e-5)


def test_bellman(config, params, batch, tokens, prefixes, reference):
    """-(log Z + sum (logp - ref) - r / beta)^2: its slope by tokens, and by log Z of the prompt."""
    algo = dict(KEEP, loss="tbrm", tbrm_beta=BETA) | {"aggregation": "sample_mean"}
    step = one_step(config, params, batch, reference, **algo)
    mine, ref = prefixes(params), prefixes(reference)
    residual_B = np.array(
        [
            mine[b, 0][1]
            + sum(mine[bt][0] - ref[bt][0] for bt in mine if bt[0] == b)
            - batch.reward_PG.reshape(-1)[b] / BETA
            for b in range(P * G)
        ]
    )
    n_B = batch.mask_BT.sum(1)
    # every token of b carries -res^2 / n_b / (P G), so b as a whole -res^2 / (P G)
    want = added_up(tokens, lambda b, t, logp: -2 * residual_B[b] / (P * G))

    @jax.jit
    @jax.grad
    def log_z(params, prompt_1U, length_1):
        hidden_1D, _ = transformer.prefill(params, config.model, prompt_1U, length_1)
        return jax.nn.logsumexp(hidden_1D[0] @ params["head"] / TEMPERATURE)

    for p in range(P):
        grad = log_z(params, batch.prompt_PU[p : p + 1], batch.prompt_length_P[p : p + 1])
        share = np.sum(-2 * residual_B[p * G : (p + 1) * G]) / (P * G)
        want = want + share * np.asarray(ravel_pytree(grad)[0], np.float64)
    assert (n_B > 0).all()
    np.testing.assert_allclose(step.grad, want, atol=1e-5 * np.abs(want).max(), rtol=1e-4)
    assert step.metrics["objective"] == pytest.approx(-np.mean(residual_B**2), rel=1e-4)


def test_entropy_bonus(config, params, batch):
    """Adds coef * grad(mean entropy): the difference of two steps is linear in the coefficient."""
    algo = dict(KEEP, loss="reinforce", advantage="centered")
    grads = [one_step(config, params, batch, **algo, entropy_coef=c).grad for c in (0, 0.1, 0.2)]
    np.testing.assert_allclose(grads[2] - grads[0], 2 * (grads[1] - grads[0]), atol=1e-5)

    def mean_entropy(params):
        from rlx.train.forward import completion_hidden

        hidden_BTD, _ = completion_hidden(params, batch, config.model)
        logp_BTV = jax.nn.log_softmax(hidden_BTD @ params["head"] / TEMPERATURE)
        entropy_BT = -jnp.sum(jnp.exp(logp_BTV) * logp_BTV, axis=-1)
        return jnp.sum(entropy_BT * batch.mask_BT) / batch.mask_BT.sum()

    want = np.asarray(ravel_pytree(jax.jit(jax.grad(mean_entropy))(params))[0])
    np.testing.assert_allclose(grads[1] - grads[0], 0.1 * want, atol=1e-5)


@pytest.mark.parametrize(
    "algo",
    [
        {"kl": "k3", "kl_coef": COEF},
        {"kl": "k1_reward", "kl_coef": COEF},
        {"loss": "tbrm", "aggregation": "sample_mean", "zero_variance": "keep"},
        {"loss": "ppo_clip", "advantage": "gae", "zero_variance": "keep"},
    ],
    ids=["k3", "k1_reward", "tbrm", "gae"],
)
def test_slices_change_nothing(config, params, critic_batch, reference, algo):
    whole = one_step(config, params, critic_batch, reference, **algo)
    sliced = replace(config, optim=replace(config.optim, microbatches=4, group_slices=2))
    parts = one_step(sliced, params, critic_batch, reference, **algo)
    scale = np.abs(whole.grad).max()
    np.testing.assert_allclose(parts.grad, whole.grad, atol=1e-5 * max(scale, 1), rtol=0)
    assert whole.metrics["objective"] == pytest.approx(parts.metrics["objective"], rel=1e-4)


def test_an_update_that_is_not_finite_is_skipped(config, params, batch):
    """Parameters and moments stay; the version goes on, and the next batch is learned from."""
    spec = names(config, make_mesh(config.mesh))
    step, state = make_train_step(spec, numbers(config)), init_state(spec, params)
    state, good = step(state, batch)
    before = jax.device_get((state.params, state.opt_state))
    poisoned = batch.replace(behavior_logp_BT=np.full((P * G, T), np.nan, np.float32))
    state, metrics = step(state, poisoned)
    jax.tree.map(np.testing.assert_array_equal, before, (state.params, state.opt_state))
    assert (good["update/skipped"], metrics["update/skipped"]) == (0, 1)
    assert int(state.version) == 2
    state, metrics = step(state, batch)
    assert metrics["update/skipped"] == 0 and np.isfinite(metrics["grad_norm"])
    moved = ravel_pytree(jax.tree.map(lambda a, b: a - b, state.params, before[0]))[0]
    assert np.abs(moved).max() > 1e-4


def test_a_missing_reference_is_refused(config):
    kl = replace(config, algo=AlgoConfig(kl="k3", kl_coef=0.1))
    with pytest.raises(ValueError, match="start=None: algo.kl=k3"):
        make_train_step(names(kl, make_mesh(kl.mesh)), numbers(kl))


@pytest.mark.parametrize("head_dtype", ["float32", "bfloat16"])
def test_precision_of_the_learners_head(config, params, batch, head_dtype):
    """bfloat16 factors move log-probabilities by about 2^-8 of the logits; parameters stay."""
    low = replace(config, optim=replace(config.optim, head_dtype=head_dtype))
    exact, rounded = (one_step(c, params, batch, **KEEP) for c in (config, low))
    gap = np.abs(rounded.grad - exact.grad).max()
    assert gap == 0 if head_dtype == "float32" else 1e-5 < gap < 0.1
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(rounded.params))


def test_parameters_in_bfloat16(config, batch):
    model = replace(config.model, param_dtype="bfloat16", compute_dtype="bfloat16")
    low = replace(config, model=model, optim=replace(config.optim, learning_rate=0.1))
    start = transformer.init(jax.random.key(0), model, V)
    got = one_step(low, start, batch, **KEEP)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(got.params))
    assert np.isfinite(got.metrics["objective"]) and got.metrics["update/skipped"] == 0
    moved = [
        np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (start, got.params)), strict=True)
    ]
    assert all(moved)
