"""The fused kernels' way through prompts, completions and the cache, against the plain one.

On a GPU cudnn's kernel is its own; elsewhere XLA's attention stands in for that one call, so that
all around it is tested: where each key stands, what a query sees, what is summed into the gradient.
The TPU's kernel is interpreted: its own arithmetic, on a CPU.
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention

from rlx.config import MeshConfig, ModelConfig
from rlx.errors import InputError
from rlx.mesh import along, make_mesh, visible
from rlx.models import attention, transformer

GPU = jax.default_backend() == "gpu"
V, U, T = 13, 6, 5
PLAIN = ModelConfig(
    d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=64, d_ff=48,
    compute_dtype="bfloat16" if GPU else "float32", attention="xla",
)  # fmt: skip
FUSED = {name: replace(PLAIN, attention=name) for name in ("cudnn", "splash")}
ATOL = 0.1 if GPU else 2e-5  # bfloat16 rounds each way differently


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    if not GPU:

        def plain(q, k, v, **bounds):
            assert "is_causal" not in bounds or q.shape[1] % 2 == 0  # else JAX has no gradient
            y = jax.nn.dot_product_attention(q, k, v, implementation="xla", **bounds)
            return y.reshape(*q.shape[:2], -1)

        monkeypatch.setattr(attention, "_cudnn", plain)
    made = functools.partial(splash_attention.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha", made)


@pytest.fixture(params=FUSED)
def fused(request):
    return FUSED[request.param]


@pytest.fixture(scope="module")
def params():
    return transformer.init(jax.random.key(0), PLAIN, V)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return (
        rng.integers(0, V, (2, U)).astype(np.int32),
        np.array([6, 3], np.int32),
        rng.integers(0, V, (6, T)).astype(np.int32),
    )


@functools.partial(jax.jit, static_argnums=(1, 5))
def hidden(params, config, prompt_PU, length_P, completion_BT, packed=False):
    hidden_PD, context = transformer.prefill(params, config, prompt_PU, length_P)
    offset_BT = jnp.array([[0, 1, 2, 0, 1]] * 6) if packed else None
    later = transformer.extend(params, config, context, length_P, completion_BT, offset_BT)
    return jnp.concatenate([hidden_PD.reshape(-1), later.reshape(-1)]).astype(jnp.float32)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_value_and_gradient_are_those_of_the_plain_path(params, inputs, fused, packed, scan):
    if scan:
        params = {**params, "layers": transformer.stack_layers(params["layers"])}
    weight = np.random.default_rng(1).normal(
        size=hidden(params, replace(PLAIN, scan_layers=scan), *inputs).shape
    )

    def loss(params, config):
        x = hidden(params, replace(config, scan_layers=scan), *inputs, packed)
        return jnp.mean(weight * x), x

    (_, want), want_grad = jax.value_and_grad(loss, has_aux=True)(params, PLAIN)
    (_, got), got_grad = jax.value_and_grad(loss, has_aux=True)(params, fused)
    np.testing.assert_allclose(got, want, atol=ATOL)
    for a, b in zip(jax.tree.leaves(got_grad), jax.tree.leaves(want_grad), strict=True):
        np.testing.assert_allclose(a, b, atol=ATOL * max(float(np.abs(b).max()), 1e-3))


def test_stacked_layers_keep_products_and_attention(params, inputs, monkeypatch):
    """For the backward pass, less than two thirds of what they would keep of everything."""
    stacked = {**params, "layers": transformer.stack_layers(params["layers"])}
    model = replace(FUSED["cudnn"], scan_layers=True)

    def kept():
        hidden.clear_cache()
        _, backward = jax.vjp(lambda params: hidden(params, model, *inputs), stacked)
        return sum(x.size for x in jax.tree.leaves(backward))

    few = kept()
    monkeypatch.setattr(transformer, "_costly", lambda *_, **__: True)
    assert few < kept() / 1.5


def test_sample_boundaries_change_the_answer(params, inputs, fused):
    """A kernel that ignored them would go unnoticed otherwise."""
    apart, together = (
        np.asarray(hidden(params, fused, *inputs, packed)) for packed in (True, False)
    )
    assert np.abs(apart - together).max() > 10 * ATOL


def test_decoding_reads_what_the_learner_reads(params, inputs, fused):
    prompt_PU, length_P, completion_BT = inputs
    want = np.asarray(hidden(params, PLAIN, *inputs)).reshape(-1)[2 * 64 :].reshape(6, T, 64)
    row_B = np.repeat(np.arange(2), 3)
    published = transformer.published(params, fused, "float32")
    _, context = transformer.prefill(published, fused, prompt_PU, length_P)
    caches = [
        cache.insert(prompt, row_B, np.ones(6, bool))
        for cache, prompt in zip(attention.empty(fused, 6, U + T), context, strict=True)
    ]
    assert caches[0].kernel == fused.attention and caches[0].columns == U + T
    decode = jax.jit(transformer.decode, static_argnums=1)
    for t in range(T):
        hidden_BD, caches = decode(
            published, fused, caches, completion_BT[:, t], length_P[row_B] + t
        )
        np.testing.assert_allclose(hidden_BD.astype(np.float32), want[:, t], atol=ATOL)


@pytest.mark.parametrize("shape", [(2, 1, 1, 2), (1, 1, 1, 4)])  # the latter splits no K = 2 heads
def test_every_device_has_its_rows_and_heads(shape):
    """The TPU's kernel over a mesh, against one device: values and gradients."""
    rng = np.random.default_rng(0)
    q, k, v, weight = (rng.normal(size=(2, 9, n, 64)).astype(np.float32) for n in (4, 2, 2, 4))
    mesh = make_mesh(MeshConfig(*shape))
    spread = [jax.device_put(x, along(mesh, "prompts", x)) for x in (q, k, v)]

    def loss(*qkv):
        y = attention._causal(*qkv, "splash")
        return jnp.mean(weight.reshape(y.shape) * y), y

    value = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    for got, want in zip(
        jax.tree.leaves(jax.jit(visible(mesh, value))(*spread)),
        jax.tree.leaves(jax.jit(value)(q, k, v)),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_the_kernel_is_chosen_by_what_it_can_do():
    model = replace(
        PLAIN, attention="auto", compute_dtype="bfloat16", head_dim=128, scan_layers=True
    )
    assert attention.of_platform(model, "gpu").attention == "cudnn"
    assert attention.of_platform(model, "tpu").attention == "splash"
    for platform, change in [
        ("cpu", {}), ("tpu", {"head_dim": 32}), ("tpu", {"attention_chunk": 8}),
        ("gpu", {"compute_dtype": "float32"}), ("gpu", {"head_dim": 256}),
        ("gpu", {"scan_layers": False}),
        ("gpu", {"head_dim": 20}), ("gpu", {"sliding_window": 8}), ("gpu", {"attention_chunk": 8}),
    ]:  # fmt: skip
        assert attention.of_platform(replace(model, **change), platform).attention == "xla"
    assert attention.of_platform(replace(model, attention="xla"), "gpu").attention == "xla"


@pytest.mark.parametrize("kernel", ["cudnn", "splash"])
@pytest.mark.parametrize(
    "change, option",
    [
        ({"sliding_window": 8}, "sliding_window=8"),
        ({"attention_chunk": 8}, "attention_chunk=8"),
        ({"compute_dtype": "float32"}, "compute_dtype=float32"),
        ({"head_dim": 132}, "head_dim=132"),
    ],
)
def test_a_kernel_that_cannot_compute_it_is_refused(kernel, change, option):
    model = replace(PLAIN, attention=kernel, compute_dtype="bfloat16", head_dim=128)
    attention.check(model)
    with pytest.raises(InputError, match=f"^model.attention={kernel}: .* model.{option}; use auto"):
        attention.check(replace(model, **change))
    attention.check(replace(model, attention="xla", **change))


def spelt_out(q_BTQH, k_BTKH, v_BTKH, k_PSKH, v_PSKH, length_P, start_BT, config):
    """Every query on its own: softmax over the keys of its prompt and of its own sample."""
    B, T, Q, H = q_BTQH.shape
    rows = []
    for b, t in np.ndindex(B, T):
        p, first = b // (B // len(length_P)), int(start_BT[b, t])
        n = int(length_P[p])
        k = jnp.concatenate([k_PSKH[p, :n], k_BTKH[b, first : t + 1]])
        v = jnp.concatenate([v_PSKH[p, :n], v_BTKH[b, first : t + 1]])
        at, near = n + t - first, config.sliding_window or 1000
        if config.attention_chunk:
            near = at % config.attention_chunk + 1
        k, v = (jnp.repeat(x[-near:], Q // x.shape[1], axis=1) for x in (k, v))
        weight_QS = jax.nn.softmax(jnp.einsum("qh,sqh->qs", q_BTQH[b, t], k) / H**0.5)
        rows.append(jnp.einsum("qs,sqh->qh", weight_QS, v).reshape(-1))
    return jnp.stack(rows).reshape(B, T, Q * H)


@pytest.mark.parametrize("tokens", [3, 8])  # at 8 each row has a copy of its prompt's 4 keys
@pytest.mark.parametrize(
    "options",
    [{}, {"sliding_window": 3}, {"attention_chunk": 4}, {"query_chunk": 3}],
    ids=lambda options: next(iter(options), "all"),
)
@pytest.mark.parametrize("packed", [False, True])
def test_completions_by_hand(tokens, options, packed):
    config = replace(PLAIN, head_dim=8, compute_dtype="float32", **options)
    rng, (P, G, S, Q, K, H) = np.random.default_rng(1), (2, 2, 4, 4, 2, 8)
    drawn = [(P * G, tokens, Q, H), *[(P * G, tokens, K, H)] * 2, *[(P, S, K, H)] * 2]
    arrays = [jnp.array(rng.normal(size=shape), jnp.float32) for shape in drawn]
    length_P = jnp.array([4, 2], jnp.int32)
    column_BT = np.tile(np.arange(tokens), (P * G, 1))
    start_BT = column_BT // 2 * 2 if packed else 0 * column_BT  # samples of two tokens
    position_BT = np.repeat(length_P, G)[:, None] + column_BT - start_BT
    seen = attention.Seen(position_BT, length_P, jnp.array(start_BT) if packed else None)

    def made(q, k, v, k_PSKH, v_PSKH):
        past = attention.of(k_PSKH, v_PSKH, "xla")
        return attention.completions(q, k, v, past, seen, np.bool_(True), config)[0]

    def wanted(*arrays):
        return spelt_out(*arrays, length_P, start_BT, config)

    weight = jnp.array(rng.normal(size=made(*arrays).shape), jnp.float32)
    np.testing.assert_allclose(made(*arrays), wanted(*arrays), atol=1e-5)
    gradients = (
        jax.grad(lambda *x, f=f: (weight * f(*x)).sum(), range(5))(*arrays) for f in (made, wanted)
    )
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
