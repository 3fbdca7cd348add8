"""One update against a gradient put together token by token, and what must not change it.

The independent implementation knows only how to run a prompt. Token t of a sequence is predicted by
the last hidden state of prompt + completion[:t], each such prefix a prompt of its own, so nothing
is shared, cached or masked. The gradients of the log-probabilities are then added up in float64
with coefficients that plain loops over sequences work out. Adam's first moment after one step from
zero is (1 - beta1) times the gradient, which is how a step shows what it computed.
"""

import functools
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from rlx.config import AlgoConfig, Config, MeshConfig, OptimConfig
from rlx.mesh import make_mesh
from rlx.models import lora, transformer
from rlx.train.spec import names, numbers
from rlx.train.state import init_state, optimizer
from rlx.train.step import jitted_step, make_train_step
from rlx.train.targets import targets
from rlx.types import Batch

P, G, U, T, V, PAD = 8, 4, 5, 6, 14, 13
TEMPERATURE = 0.8
CONSTANT = (2, 5)  # prompts whose samples all score alike


@pytest.fixture(scope="module")
def config(tiny) -> Config:
    """A large eps keeps Adam's step a smooth function of the gradient; the clip never binds."""
    return replace(
        tiny,
        rollout=replace(tiny.rollout, prompts_per_step=P, temperature=TEMPERATURE),
        algo=AlgoConfig(is_cap=1.2, clip_low=0.2, clip_high=0.3),
        optim=OptimConfig(learning_rate=0.01, warmup_steps=0, eps=1e-3, max_grad_norm=1e9),
        mesh=MeshConfig(data=1),
    )


@pytest.fixture(scope="module")
def params(config):
    """From numpy, so that the golden step does not depend on an initialiser."""
    shapes = jax.eval_shape(lambda: transformer.init(jax.random.key(0), config.model, V))
    rng = np.random.default_rng(7)
    return jax.tree.map(
        lambda x: (rng.normal(size=x.shape) * x.shape[0] ** -0.5 + (x.ndim == 1)).astype("f"),
        shapes,
    )


def test_each_seed_clips_tokens_of_its_own(config, batch):
    """Clip-Cov draws some tokens; another seed, or another update, draws others."""
    algo = replace(
        config.algo, covariance_share=0.3, covariance_low=-1e9, covariance_high=1e9,
        zero_variance="keep",
    )  # fmt: skip
    mesh = make_mesh(config.mesh)

    def clipped(seed, version):
        run = replace(config, algo=algo, seed=seed)
        found = targets(batch, None, None, version, numbers(run), names(run, mesh))
        return found.adv_BT == 0

    first, again, other, later = (clipped(*x) for x in ((0, 0), (0, 0), (1, 0), (0, 1)))
    assert (first == again).all() and (first != other).any() and (first != later).any()


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Ragged prompts and completions, a hole in a mask, off-policy behaviour."""
    rng = np.random.default_rng(3)
    length_P = rng.integers(2, U + 1, P).astype(np.int32)
    prompt_PU = rng.integers(0, PAD, (P, U)).astype(np.int32)
    for prompt_U, n in zip(prompt_PU, length_P, strict=True):
        prompt_U[:] = [*prompt_U[U - n :], *[PAD] * (U - n)]
    completion_BT = rng.integers(0, PAD, (P * G, T)).astype(np.int32)
    mask_BT = (np.arange(T) < rng.integers(1, T + 1, P * G)[:, None]).astype(np.float32)
    mask_BT[1, :3] = [1, 0, 1]
    reward_PG = np.stack([rng.permutation([-1, -1, 1, rng.choice([-1, 1])]) for _ in range(P)])
    reward_PG[list(CONSTANT)] = [[1], [-1]]
    return Batch(
        prompt_PU=prompt_PU,
        prompt_length_P=length_P,
        completion_BT=np.where(mask_BT > 0, completion_BT, PAD),
        mask_BT=mask_BT,
        behavior_logp_BT=np.where(mask_BT > 0, rng.normal(-3.5, 0.8, (P * G, T)), 0).astype("f"),
        behavior_value_BT=np.zeros((P * G, T), np.float32),
        reward_PG=reward_PG.astype(np.float32),
        keep_P=np.ones(P, np.float32),
    )


def one_step(config: Config, params, batch: Batch, version: int = 0):
    """The gradient (of the objective, ascending), the new parameters and the metrics of a step."""
    spec = names(config, make_mesh(config.mesh))
    state = init_state(spec, params)
    state = state.replace(version=jax.device_put(np.int32(version), state.version.sharding))
    state, metrics = make_train_step(spec, numbers(config))(state, batch)
    mu = ravel_pytree(jax.device_get(optax.tree_utils.tree_get(state.opt_state, "mu")))[0]
    return SimpleNamespace(
        grad=-np.asarray(mu) / (1 - config.optim.beta1),
        params=np.asarray(ravel_pytree(jax.device_get(state.params))[0]),
        metrics={name: float(x) for name, x in metrics.items()},
    )


@pytest.fixture(scope="module")
def base(config, params, batch):
    return one_step(config, params, batch)


def assert_same_step(a, b):
    np.testing.assert_allclose(a.grad, b.grad, atol=1e-5, rtol=0)
    np.testing.assert_allclose(a.params, b.params, atol=1e-5, rtol=0)
    for name in a.metrics:
        assert a.metrics[name] == pytest.approx(b.metrics[name], rel=1e-4, abs=1e-6), name


@pytest.fixture(scope="module")
def tokens(config, params, batch):
    """[(b, t, log-probability, its gradient)] of every unmasked token, one prefix at a time."""

    @jax.jit
    @jax.value_and_grad
    def logp(params, prefix_1S, length_1, token):
        hidden_1D, _ = transformer.prefill(params, config.model, prefix_1S, length_1)
        return jax.nn.log_softmax(hidden_1D[0] @ params["head"] / TEMPERATURE)[token]

    table = []
    for b, t in np.argwhere(batch.mask_BT):
        length = batch.prompt_length_P[b // G]
        prefix = [*batch.prompt_PU[b // G][:length], *batch.completion_BT[b, :t]]
        prefix_1S = np.array([prefix + [PAD] * (U + T - len(prefix))])
        value, grad = logp(params, prefix_1S, np.array([len(prefix)]), batch.completion_BT[b, t])
        table.append((b, t, float(value), np.asarray(ravel_pytree(grad)[0], np.float64)))
    return table


def coefficients(batch: Batch, tokens, algo: AlgoConfig):
    """d objective / d logp of every token, by loops: batch_norm advantages, filter on."""
    kept = [p for p in range(P) if len(set(batch.reward_PG[p].tolist())) > 1]
    centred = {p: batch.reward_PG[p].astype(float) - batch.reward_PG[p].mean() for p in kept}
    n = len(kept) * G
    std = (sum(x**2 for p in kept for x in centred[p]) / (n - 1)) ** 0.5
    tokens_of = {p: batch.mask_BT[p * G : (p + 1) * G].sum() for p in kept}
    for b, t, logp, _ in tokens:
        p, g = divmod(int(b), G)
        if p not in kept:
            yield 0.0
            continue
        advantage = centred[p][g] / (std + algo.advantage_eps)
        weight = {
            "prompt_mean": 1 / tokens_of[p] / len(kept),
            "token_mean": 1 / sum(tokens_of.values()),
            "fixed_length": 1 / T / n,
        }[algo.aggregation]
        ratio = np.exp(logp - float(batch.behavior_logp_BT[b, t]))
        if algo.loss == "cispo":
            yield weight * advantage * min(ratio, algo.is_cap)
        elif advantage > 0:
            yield weight * advantage * ratio * (ratio <= 1 + algo.clip_high)
        else:
            yield weight * advantage * ratio * (ratio >= 1 - algo.clip_low)


def expected(batch: Batch, tokens, algo: AlgoConfig):
    pairs = zip(coefficients(batch, tokens, algo), tokens, strict=True)
    return sum(c * grad for c, (*_, grad) in pairs)


@pytest.mark.parametrize(
    "loss, aggregation", [("cispo", "prompt_mean"), ("ppo_clip", "token_mean")]
)
def test_the_gradient_is_that_of_tokens_added_up_one_by_one(
    config, params, batch, tokens, loss, aggregation
):
    config = replace(config, algo=replace(config.algo, loss=loss, aggregation=aggregation))
    step, grad = one_step(config, params, batch), expected(batch, tokens, config.algo)
    np.testing.assert_allclose(step.grad, grad, atol=1e-6, rtol=0)
    assert step.metrics["grad_norm"] == pytest.approx(np.linalg.norm(grad), rel=1e-5)
    assert np.abs(grad).max() > 0.02
    clipped = step.metrics["policy/clipped_share"]
    assert 0.05 < clipped < 0.95  # both sides of the cap or the clip are in the batch


LAYOUTS = {
    "4_slices": (MeshConfig(data=1), 4, 1),
    "2_slices_of_4_parts": (MeshConfig(data=1), 2, 4),
    "8_devices": (MeshConfig(data=8), 1, 1),
    "2x2x2_devices_and_2_slices_of_2_parts": (MeshConfig(data=2, fsdp=2, tensor=2), 2, 2),
}


@pytest.mark.parametrize("mesh, slices, parts", LAYOUTS.values(), ids=LAYOUTS)
def test_microbatches_and_mesh_change_nothing(config, params, batch, base, mesh, slices, parts):
    optim = replace(config.optim, microbatches=slices, group_slices=parts)
    assert_same_step(one_step(replace(config, mesh=mesh, optim=optim), params, batch), base)


def test_padding_of_prompts_and_completions_changes_nothing(config, params, batch, tokens):
    """Under fixed_length, whose weights are not to notice how many columns there are."""
    right = functools.partial(np.pad, pad_width=((0, 0), (0, 2)))
    wider = batch.replace(
        prompt_PU=np.pad(batch.prompt_PU, ((0, 0), (0, 3)), constant_values=PAD),
        completion_BT=right(batch.completion_BT, constant_values=PAD),
        mask_BT=right(batch.mask_BT),
        behavior_logp_BT=right(batch.behavior_logp_BT),
        behavior_value_BT=right(batch.behavior_value_BT),
    )
    config = replace(config, algo=replace(config.algo, aggregation="fixed_length"))
    step = one_step(config, params, wider)
    np.testing.assert_allclose(step.grad, expected(batch, tokens, config.algo), atol=1e-6, rtol=0)


def test_prompts_without_variance_are_as_if_not_there(config, params, batch, base):
    """Neither the std of the batch nor the mean over prompts counts them."""
    left = [p for p in range(P) if p not in CONSTANT][:4]
    keep_P = np.isin(np.arange(P), [*left, *CONSTANT]).astype(np.float32)
    among = one_step(config, params, batch.replace(keep_P=keep_P))
    row_B = np.concatenate([np.arange(p * G, (p + 1) * G) for p in left])
    alone = one_step(
        replace(config, rollout=replace(config.rollout, prompts_per_step=4)),
        params,
        jax.tree.map(lambda x: x[left] if len(x) == P else x[row_B], batch),
    )
    assert_same_step(among, alone)
    assert np.abs(among.grad - base.grad).max() > 1e-3  # two prompts with variance are missing


def test_a_batch_without_variance_moves_nothing(config, params, batch, base):
    """Not even by the momentum of the updates before it; the version counts all the same."""
    spec = names(config, make_mesh(config.mesh))
    step = make_train_step(spec, numbers(config))
    state, _ = step(init_state(spec, params), batch)
    state, metrics = step(state, batch.replace(reward_PG=np.ones((P, G), np.float32)))
    np.testing.assert_array_equal(ravel_pytree(state.params)[0], base.params)
    assert int(state.version) == 2 and metrics["prompts_kept"] == metrics["objective"] == 0


def test_the_golden_step(base):
    """If this fails and the update was meant to change, put the printed dictionary here and say in
    the commit what changed; the token-by-token test above must pass in any case."""
    golden = {
        "objective": 0.34217387,
        "grad_norm": 1.82388377,
        "tokens_trained": 85.0,
        "prompts_kept": 6.0,
        "policy/entropy": 2.10806656,
        "policy/logp_gap_mean": 1.08625531,
        "policy/logp_gap_max": 3.96277237,
        "policy/clipped_share": 0.58823532,
        "policy/ratio_max": 16.7666283,
        "policy/inverse_ratio_max": 52.602959,
        "policy/kl": 0.0,
        "critic/loss": 0.0,
        "update/skipped": 0.0,
        "update/loss_scale": 1.0,
        "policy/sampler_kl": 1.45609309,
        "policy/ess": 0.39181429,
        "policy/logp_gap_q50": 1.0,
        "policy/logp_gap_q99": 4.0,
        "policy/logp_gap_q999": 4.0,
    }
    assert base.metrics == pytest.approx(golden, rel=1e-4), f"now it is {base.metrics}"


def test_neither_numbers_nor_further_updates_compile_again(config, params, batch, base):
    before = jitted_step._cache_size()
    other = replace(
        config,
        algo=replace(config.algo, is_cap=3.0, clip_low=0.1, clip_high=0.4, advantage_eps=1e-3),
        optim=replace(config.optim, learning_rate=0.5, weight_decay=0.1, max_grad_norm=2.0),
        rollout=replace(config.rollout, temperature=1.1),
    )
    spec = names(other, make_mesh(config.mesh))
    step, state = make_train_step(spec, numbers(other)), init_state(spec, params)
    for _ in range(3):
        state, _ = step(state, batch)
    assert jitted_step._cache_size() == before
    assert np.abs(ravel_pytree(state.params)[0] - base.params).max() > 0.1  # yet they count


def test_adapters_learn_from_the_gradient_of_their_matrices(config, params, batch, base):
    """dB = (alpha / r) A^T dW where B = 0; A does not move yet, and nothing else has a gradient."""
    optim = replace(config.optim, lora_rank=2, lora_alpha=3.0)
    changed = replace(config, optim=optim)
    spec = names(changed, make_mesh(config.mesh))
    state = init_state(spec, params)
    first = jax.device_get(state.params["layers"])
    state, metrics = make_train_step(spec, numbers(changed), params)(state, batch)
    mu = optax.tree_utils.tree_get(state.opt_state, "mu")["layers"]
    whole = ravel_pytree(params)[1](base.grad)["layers"]
    for got, dW, start in zip(mu, whole, first, strict=True):
        for name in lora.MATRICES:
            want = 1.5 * np.float64(start[name]["a"]).T @ np.float64(dW[name])
            dB = -np.asarray(got[name]["b"]) / (1 - optim.beta1)
            np.testing.assert_allclose(dB, want, rtol=1e-3, atol=1e-6)
            assert not np.any(got[name]["a"])
    assert float(metrics["objective"]) == pytest.approx(base.metrics["objective"], rel=1e-5)


def test_warm_up_scales_the_first_updates(config, params, batch, base):
    """rate = learning_rate * min(1, (version + 1) / warmup_steps)."""
    warm = replace(config, optim=replace(config.optim, warmup_steps=4))
    start = np.asarray(ravel_pytree(params)[0])
    full = base.params - start
    assert np.abs(full).max() > 5e-3
    for version, share in ((0, 1 / 4), (1, 2 / 4), (3, 1), (40, 1)):
        moved = one_step(warm, params, batch, version).params - start
        np.testing.assert_allclose(moved, share * full, atol=1e-6)


def adamw(c: OptimConfig, params, grads):
    """Decoupled weight decay after clipping the global norm, in float64."""
    m, v = np.zeros_like(params), np.zeros_like(params)
    for i, g in enumerate(grads):
        g = g * min(1, c.max_grad_norm / np.linalg.norm(g))
        m, v = c.beta1 * m + (1 - c.beta1) * g, c.beta2 * v + (1 - c.beta2) * g**2
        direction = m / (1 - c.beta1 ** (i + 1)) / (np.sqrt(v / (1 - c.beta2 ** (i + 1))) + c.eps)
        rate = c.learning_rate * min(1, (i + 1) / max(c.warmup_steps, 1))
        params = params - rate * (direction + c.weight_decay * params)
    return params


PAPER = OptimConfig(5e-7, 100, 0.9, 0.999, 1e-15, 0.01, 1.0)  # as in conf/optim/paper.yaml


@pytest.mark.parametrize("scale", [3.0, 1e-16], ids=["clipped", "near_eps"])
@pytest.mark.parametrize("optim", [PAPER, OptimConfig(), replace(PAPER, learning_rate=0.5)])
def test_the_optimizer_is_adamw(optim, scale):
    """Gradients above the clip, and gradients so small that eps decides."""
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=20), scale * rng.normal(size=(3, 20))
    hyper = numbers(Config(optim=optim))
    x = {"w": jnp.array(start, jnp.float32)}
    opt_state = optimizer(hyper, 0).init(x)
    for version, g in enumerate(grads):
        tx = optimizer(hyper, version)
        updates, opt_state = tx.update({"w": jnp.array(g, jnp.float32)}, opt_state, x)
        x = optax.apply_updates(x, updates)
    moved, want = np.asarray(x["w"], np.float64) - start, adamw(optim, start, grads) - start
    np.testing.assert_allclose(moved, want, atol=2e-7, rtol=1e-3)
