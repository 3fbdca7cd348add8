"""Mixtures: by loops over tokens, dispatch against dispatch, on meshes, and in a whole update."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.flatten_util import ravel_pytree

from rlx import flops
from rlx import mesh as meshes
from rlx.config import Config, MeshConfig, ModelConfig, OptimConfig, RolloutConfig
from rlx.errors import InputError
from rlx.mesh import make_mesh
from rlx.models import blocks, lora, moe, transformer
from rlx.train import start
from rlx.train.spec import names, numbers
from rlx.train.state import init_state
from rlx.train.step import make_train_step
from rlx.types import Batch

SOFTMAX = ModelConfig(
    d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=24, n_experts=4,
    experts_per_token=2, d_ff_expert=12, norm_topk=True,
)  # fmt: skip
SIGMOID = replace(SOFTMAX, router="sigmoid", d_ff_shared=8, experts_per_token=1)
ROUTERS = {"softmax": SOFTMAX, "unnormed": replace(SOFTMAX, norm_topk=False), "sigmoid": SIGMOID}
V = 11
compiled = functools.partial(jax.jit, static_argnums=2)


@pytest.fixture(scope="module", autouse=True)
def blocks_of_four_rows():
    """So that experts of a few tokens have several."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch.setattr(blocks, "capacity", lambda *_: 4)


@functools.cache
def weights(config: ModelConfig):
    return transformer.init(jax.random.key(0), config, V)["layers"][0]


def mixed(config: ModelConfig):
    return {name: weights(config)[name] for name in moe.shapes(config)}


def token_states(B: int, T: int):
    return jnp.array(np.random.default_rng(1).normal(size=(B, T, 16)), jnp.float32)


def loss(w, x_BTD, config: ModelConfig):
    return jnp.sum(jnp.sin(moe.feed_forward(w, x_BTD, config)[0]))


@functools.cache
def dense_gradient(config: ModelConfig):
    """(loss, gradients of weights and inputs) without a mesh, every expert on every token."""
    one = replace(config, moe_dispatch="dense")
    return compiled(jax.value_and_grad(loss, (0, 1)))(mixed(config), token_states(4, 6), one)


def assert_close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), got, want)


@pytest.mark.parametrize("dispatch", ["dense", "sorted", "blocks"])
@pytest.mark.parametrize("config", ROUTERS.values(), ids=ROUTERS)
def test_a_token_is_the_sum_of_its_experts(config, dispatch):
    """Token by token, in NumPy."""
    w = jax.tree.map(np.float64, mixed(config))
    x_BTD = token_states(2, 3)
    one = replace(config, moe_dispatch=dispatch)
    got, routed = compiled(moe.feed_forward)(mixed(config), x_BTD, one)
    got, routed, x_BTD = jax.device_get((got, routed, x_BTD))

    def swiglu(x_D, *matrices):
        gate, up, down = matrices
        return (x_D @ gate / (1 + np.exp(-x_D @ gate)) * (x_D @ up)) @ down

    for b, t in np.ndindex(2, 3):
        x_D = np.float64(x_BTD[b, t])
        logit_E = x_D @ w["router"]
        chosen = np.argsort(-logit_E)[: config.experts_per_token]
        assert set(chosen) == set(np.asarray(routed.expert_BTK[b, t]))
        share_E = np.exp(logit_E) / np.exp(logit_E).sum()
        if config.norm_topk:
            share_E = share_E / share_E[chosen].sum()
        want = 0.0
        for e in chosen:
            expert = [w[f"expert_{name}"][e] for name in ("gate", "up", "down")]
            if config.router == "sigmoid":
                want += swiglu(x_D / (1 + np.exp(-logit_E[e])), *expert)
            else:
                want += share_E[e] * swiglu(x_D, *expert)
        if config.d_ff_shared:
            want += swiglu(x_D, *(w[f"shared_{name}"] for name in ("gate", "up", "down")))
        np.testing.assert_allclose(got[b, t], want, atol=2e-5)


@pytest.mark.parametrize("dispatch", ["sorted", "blocks"])
@pytest.mark.parametrize("config", ROUTERS.values(), ids=ROUTERS)
def test_all_dispatches_have_one_value_and_gradient(config, dispatch):
    one = replace(config, moe_dispatch=dispatch)
    got = compiled(jax.value_and_grad(loss, (0, 1)))(mixed(config), token_states(4, 6), one)
    assert_close(got, dense_gradient(config))


def test_no_token_is_dropped_when_all_want_one_expert():
    """A router that sends every token to expert 2, whose neighbours get nothing."""
    config = replace(SIGMOID, d_ff_shared=0)
    w = {**mixed(config), "router": jnp.zeros((16, 4)).at[:, 2].set(1.0)}
    x_BTD = jnp.abs(token_states(4, 6))
    got, routed = compiled(moe.feed_forward)(w, x_BTD, config)
    assert np.all(routed.expert_BTK == 2)
    want, _ = compiled(moe.feed_forward)(w, x_BTD, replace(config, moe_dispatch="dense"))
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.all(np.abs(got).max(-1) > 1e-3)


@pytest.mark.parametrize("dispatch", ["dense", "sorted", "blocks"])
@pytest.mark.parametrize(
    "layout",
    [MeshConfig(data=2, expert=4), MeshConfig(data=1, fsdp=2, expert=2, tensor=2)],
    ids=["data2_expert4", "fsdp2_expert2_tensor2"],
)
@pytest.mark.parametrize("config", [SOFTMAX, SIGMOID], ids=["softmax", "sigmoid"])
def test_experts_on_a_mesh_equal_one_device(config, layout, dispatch):
    mesh, w = make_mesh(layout), mixed(config)
    w = jax.device_put(w, meshes.of_params(mesh, w, {k: transformer.AXES[k] for k in w}))
    x_BTD = token_states(4, 6)
    x_BTD = jax.device_put(x_BTD, meshes.along(mesh, "prompts", x_BTD))
    assert w["expert_gate"].addressable_shards[0].data.shape[0] == 4 // layout.expert
    gradient = jax.value_and_grad(meshes.visible(mesh, loss), (0, 1))
    got = compiled(gradient)(w, x_BTD, replace(config, moe_dispatch=dispatch))
    assert_close(jax.device_get(got), dense_gradient(config))


@pytest.mark.parametrize("dispatch", ["dense", "sorted", "blocks"])
@pytest.mark.parametrize(
    "layout", [MeshConfig(data=4, expert=2), MeshConfig(data=1, fsdp=2, expert=2, tensor=2)],
    ids=["data4_expert2", "fsdp2_expert2_tensor2"],
)  # fmt: skip
@pytest.mark.parametrize("config", [SOFTMAX, SIGMOID], ids=["softmax", "sigmoid"])
def test_three_experts_on_two_devices_are_whole_on_both(config, layout, dispatch):
    """Their columns are split instead, and every device has all expert numbers."""
    config = replace(config, n_experts=3)
    mesh, w = make_mesh(layout), mixed(config)
    w = jax.device_put(w, meshes.of_params(mesh, w, {k: transformer.AXES[k] for k in w}))
    F = config.d_ff_expert // layout.expert // layout.tensor
    held = w["expert_gate"].addressable_shards[0].data.shape
    assert (held[0], held[2]) == (3, F)
    x_BTD = token_states(4, 6)
    gradient = jax.value_and_grad(meshes.visible(mesh, loss), (0, 1))
    got = compiled(gradient)(w, x_BTD, replace(config, moe_dispatch=dispatch))
    assert_close(jax.device_get(got), dense_gradient(config))


def test_the_balance_loss_and_load_by_hand():
    """Two sequences, three experts, K = 1; the second has one token that counts."""
    score = np.array([[[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.6, 0.2, 0.2]], np.eye(3)[::-1]])
    expert_BTK = np.array([[[0], [1], [0]], [[2], [1], [0]]])
    mask_BT = np.array([[1, 1, 1], [0, 1, 0]], np.float32)
    layer = moe.Routed(jnp.array(score[None], jnp.float32), jnp.array(expert_BTK[None]))
    aux_B, load_LE = moe.balance(layer, jnp.array(mask_BT))
    first = 3 * (2 / 3 * (0.5 + 0.2 + 0.6) / 3 + 1 / 3 * (0.3 + 0.6 + 0.2) / 3)
    np.testing.assert_allclose(aux_B, [first, 3.0], rtol=1e-6)
    np.testing.assert_array_equal(load_LE, [[2, 2, 0]])
    even = moe.Routed(jnp.full((1, 1, 3, 3), 0.7), jnp.arange(3)[None, None, :, None])
    np.testing.assert_allclose(moe.balance(even, jnp.ones((1, 3)))[0], [1.0], rtol=1e-6)
    assert moe.balance(even, jnp.zeros((1, 3)))[0] == 0
    metrics = moe.pop_balance({"router/aux": jnp.array(2.0), "router/load": load_LE})
    assert metrics["router/aux"] == 2 and metrics["router/load_max"] == 1.5


P, G, T, U = 4, 2, 5, 4
RUN = Config(
    model=replace(SOFTMAX, router_aux_coef=0.5),
    rollout=RolloutConfig(prompts_per_step=P, group_size=G, max_new_tokens=T),
    optim=OptimConfig(max_grad_norm=1e6),
    mesh=MeshConfig(data=1),
)


@pytest.fixture(scope="module")
def batch() -> Batch:
    rng = np.random.default_rng(3)
    B, length_B1 = P * G, rng.integers(2, T + 1, (P * G, 1))
    reward_PG = np.tile([0.0, 1.0], (P, 1)).astype(np.float32)
    reward_PG[1] = 1  # without variance: it is dropped
    return Batch(
        prompt_PU=rng.integers(0, V, (P, U)).astype(np.int32),
        prompt_length_P=np.array([4, 2, 3, 4], np.int32),
        completion_BT=rng.integers(0, V, (B, T)).astype(np.int32),
        mask_BT=(np.arange(T)[None] < length_B1).astype(np.float32),
        behavior_logp_BT=np.full((B, T), -2.0, np.float32),
        behavior_value_BT=np.zeros((B, T), np.float32),
        reward_PG=reward_PG,
        keep_P=np.ones(P, np.float32),
    )


def updated(config: Config, batch: Batch):
    """(first moments of AdamW, which are the gradient times 1 - beta1; metrics)."""
    mesh = make_mesh(config.mesh)
    params = transformer.init(jax.random.key(0), replace(config.model, scan_layers=False), V)
    if config.model.scan_layers:
        params["layers"] = transformer.stack_layers(params["layers"])
    spec = names(config, mesh)
    state, metrics = make_train_step(spec, numbers(config))(init_state(spec, params), batch)
    moments = [s.mu for s in jax.tree.leaves(state.opt_state, is_leaf=_has_mu) if _has_mu(s)][0]
    if config.model.scan_layers:
        layers = [jax.tree.map(lambda x, i=i: x[i], moments["layers"]) for i in range(2)]
        moments = {**moments, "layers": layers}
    return np.asarray(ravel_pytree(jax.device_get(moments))[0]), jax.device_get(metrics)


def _has_mu(x) -> bool:
    return hasattr(x, "mu")


@pytest.fixture(scope="module")
def base(batch):
    return updated(RUN, batch)


LAYOUTS = {
    "4_slices": {"optim": replace(RUN.optim, microbatches=4)},
    "fsdp2_expert2_tensor2": {"mesh": MeshConfig(data=1, fsdp=2, expert=2, tensor=2)},
    "blocks_scanned": {"model": replace(RUN.model, moe_dispatch="blocks", scan_layers=True)},
    "dense_scanned_remat": {
        "model": replace(RUN.model, moe_dispatch="dense", scan_layers=True, remat=True)
    },
}


@pytest.mark.parametrize("change", LAYOUTS.values(), ids=LAYOUTS)
def test_slices_meshes_and_dispatch_change_no_update(change, batch, base):
    """The balance loss included, whose mean is over the sequences of the whole batch."""
    moments, metrics = updated(replace(RUN, **change), batch)
    np.testing.assert_allclose(moments, base[0], atol=2e-6)
    for name in ("objective", "router/aux", "router/load_max"):
        np.testing.assert_allclose(metrics[name], base[1][name], rtol=1e-4, err_msg=name)
    assert np.abs(base[0]).max() > 1e-3


def test_the_balance_loss_is_the_mean_over_the_sequences_that_count(batch, base):
    """By a forward pass of the whole batch; a dropped prompt and padding are not in it."""
    params = transformer.init(jax.random.key(0), RUN.model, V)

    @compiled
    def forward(params, batch, model):
        length_P, tokens_BT = batch.prompt_length_P, batch.completion_BT[:, :-1]
        _, context = transformer.prefill(params, model, batch.prompt_PU, length_P)
        return transformer.extend(params, model, context, length_P, tokens_BT, routing=True)

    _, routed = forward(params, batch, RUN.model)
    aux_B, _ = moe.balance(routed, batch.mask_BT[:, 1:])
    kept_B = np.repeat([True, False, True, True], G)
    np.testing.assert_allclose(base[1]["router/aux"], np.mean(aux_B[kept_B]), rtol=1e-5)
    load_LE = moe.balance(routed, batch.mask_BT[:, 1:] * kept_B[:, None])[1]
    share = 4 * np.max(load_LE / np.sum(load_LE, axis=1, keepdims=True))
    np.testing.assert_allclose(base[1]["router/load_max"], share, rtol=1e-5)
    without, metrics = updated(replace(RUN, model=SOFTMAX), batch)
    np.testing.assert_allclose(
        metrics["objective"] - base[1]["objective"], 0.5 * base[1]["router/aux"], rtol=1e-4
    )
    assert np.abs(without - base[0]).max() > 1e-5


def test_padding_changes_nothing(batch, base):
    """Columns after prompts and after completions, filled with tokens that are routed too."""
    rows = np.random.default_rng(5).integers(0, V, (P * G, 3)).astype(np.int32)
    right = functools.partial(np.pad, pad_width=((0, 0), (0, 3)))
    wider = batch.replace(
        prompt_PU=np.concatenate([batch.prompt_PU, rows[:P]], axis=1),
        completion_BT=np.concatenate([batch.completion_BT, rows], axis=1),
        mask_BT=right(batch.mask_BT),
        behavior_logp_BT=right(batch.behavior_logp_BT),
        behavior_value_BT=right(batch.behavior_value_BT),
    )
    moments, metrics = updated(RUN, wider)
    np.testing.assert_allclose(moments, base[0], atol=2e-6)
    np.testing.assert_allclose(metrics["router/aux"], base[1]["router/aux"], rtol=1e-5)
    np.testing.assert_allclose(metrics["router/load_max"], base[1]["router/load_max"], rtol=1e-5)


def test_adapters_leave_routers_and_experts_alone():
    """They change attention, and the feed-forward of dense layers."""
    config = replace(SIGMOID, sparse_from=1)
    params = transformer.init(jax.random.key(0), config, V)
    first, second = lora.init(jax.random.key(1), params, 2)["layers"]
    assert set(first) == set(lora.MATRICES) and set(second) == set("qkvo")
    assert set(params["layers"][1]) >= {*moe.shapes(config)}
    whole = lora.merged(params, {"layers": [first, second]}, 1.0)
    jax.tree.map(np.testing.assert_array_equal, whole, params)


def products(jaxpr):
    """Every dot_general of a jaxpr and of those within it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


def test_routers_and_critic_are_float32_on_every_device():
    """Where all else is bfloat16: an accelerator's default rounds float32, which moves tokens."""
    model = replace(SOFTMAX, compute_dtype="bfloat16")
    params = transformer.with_critic(transformer.init(jax.random.key(0), model, V))
    tokens_BT, length_B = jnp.ones((2, 3), jnp.int32), jnp.full(2, 3)

    def loss(params):
        _, past = transformer.prefill(params, model, tokens_BT, length_B)
        hidden_BTD, routed = transformer.extend(
            params, model, past, length_B, tokens_BT, routing=True
        )
        return jnp.sum(transformer.values(params, hidden_BTD)) + jnp.sum(routed.score_BTE)

    found = list(products(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
    wide = [x for x in found if {v.aval.dtype.name for v in x.invars} == {"float32"}]
    exact = jax.lax.Precision.HIGHEST
    assert [x.params["precision"] for x in wide] == [(exact, exact)] * len(wide)
    assert 9 <= len(wide) < len(found)  # routers of 2 layers in 2 passes, the critic; backward


@pytest.mark.parametrize("sizes", [(100, 0, 33, 7), (0, 0, 0, 0), (600, 0, 0, 90)])
def test_the_kernel_of_a_tpu_sums_each_expert_s_rows(sizes):
    """Interpreted. Rows outside every run do not count, and 700 rows are not whole tiles."""
    keys = jax.random.split(jax.random.key(0))
    x_MD, dy_MF = (jax.random.normal(key, (700, n)) for key, n in zip(keys, (24, 40), strict=True))
    got = moe._summed_by_group(x_MD, dy_MF, jnp.array(sizes, jnp.int32), interpret=True)
    ends = np.cumsum(sizes)
    want = [
        x_MD[end - n : end].T @ dy_MF[end - n : end] for n, end in zip(sizes, ends, strict=True)
    ]
    np.testing.assert_allclose(got, np.stack(want), atol=1e-4, rtol=1e-5)


def test_a_gpu_has_blocks():
    for platform, dispatch in {"cpu": "sorted", "tpu": "sorted", "gpu": "blocks"}.items():
        assert transformer.of_platform(SOFTMAX, platform).moe_dispatch == dispatch
    for dispatch in ("sorted", "dense"):
        named = replace(SOFTMAX, moe_dispatch=dispatch)
        assert transformer.of_platform(named, "gpu") == replace(named, attention="xla")


def test_sparse_layers_are_every_so_manieth():
    config = replace(SOFTMAX, n_layers=6, sparse_every=2)
    assert config.sparse_layers == (1, 3, 5)
    assert replace(config, sparse_from=2).sparse_layers == (3, 5)
    assert replace(config, n_experts=0).sparse_layers == ()
    params = transformer.init(jax.random.key(0), config, V)
    assert ["router" in layer for layer in params["layers"]] == [False, True] * 3


@pytest.mark.parametrize("config", [SOFTMAX, replace(SIGMOID, sparse_from=1)])
def test_flops_count_the_experts_that_a_token_takes(config):
    params = transformer.init(jax.random.key(0), config, V)
    active = 0
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        share = config.experts_per_token / 4 if path[-1].key.startswith("expert_") else 1
        active += int(x.size * share) if x.ndim > 1 and path[-1].key != "embed" else 0
    assert sum(flops.matrix_weights(config, V).values()) == active


def test_keys_attended_in_chunks():
    config = replace(SOFTMAX, n_layers=6, attention_chunk=4, no_rope_every=3)
    keys = lambda n: 4 * sum(t % 4 + 1 for t in range(n)) + 2 * n * (n + 1) / 2  # noqa: E731
    assert [flops.attended_keys(config, n) for n in (1, 4, 5, 11)] == [*map(keys, (1, 4, 5, 11))]


@pytest.mark.parametrize(
    "key, change",
    [
        ("model.experts_per_token", {"experts_per_token": 5}),
        ("model.d_ff_expert", {"d_ff_expert": 0}),
        ("model.router", {"router": "hash"}),
        ("model.moe_dispatch", {"moe_dispatch": "capacity"}),
        ("model.scan_layers", {"scan_layers": True, "sparse_from": 1}),
        ("model.sparse_from", {"sparse_from": 2}),
        ("model.far_query_scale", {"far_query_scale": 0.1}),
        ("model.sliding_window", {"sliding_window": 4, "attention_chunk": 4}),
    ],
)
def test_what_cannot_work_is_named(key, change):
    with pytest.raises(InputError, match=f"^{key}="):
        replace(SOFTMAX, **change)


def test_experts_that_the_mesh_cannot_share_are_named():
    with pytest.raises(InputError, match="^mesh.expert=3: does not divide model.n_experts=4"):
        start.make_mesh(replace(RUN, mesh=MeshConfig(data=1, expert=3)), P)
    with pytest.raises(InputError, match="^mesh.expert=2: the model has no experts"):
        start.resolve(Config(mesh=MeshConfig(expert=2)))
