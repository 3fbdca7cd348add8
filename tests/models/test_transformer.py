"""The decoder against `transformers` (golden arrays), against itself, and by its gradients."""

import functools
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.config import ModelConfig
from rlx.models import attention, transformer

V = 11
BASE = ModelConfig(d_model=16, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=24)
QWEN3 = replace(BASE, qkv_bias=True, qk_norm=True, tie_embeddings=True)
WINDOWED = replace(QWEN3, sliding_window=3, sliding_window_from=1)
GOLDEN = np.load(Path(__file__).parents[1] / "data" / "hf_models.npz")


@functools.partial(jax.jit, static_argnums=1)
def logits_of(params, config, prompt_PU, length_P, completion_BT):
    """Logits after the last prompt token and after every completion token, [B, 1 + T, V]."""
    hidden_PD, context = transformer.prefill(params, config, prompt_PU, length_P)
    hidden_BTD = transformer.extend(params, config, context, length_P, completion_BT)
    B = completion_BT.shape[0]
    first_B1D = jnp.repeat(hidden_PD, B // len(length_P), axis=0)[:, None]
    hidden_BTD = jnp.concatenate([first_B1D, hidden_BTD], axis=1)
    return hidden_BTD @ transformer.head_matrix(params)


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    prompt_PU = rng.integers(0, V, (2, 5)).astype(np.int32)
    return prompt_PU, np.array([5, 3], np.int32), rng.integers(0, V, (6, 4)).astype(np.int32)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_logits_equal_transformers(family):
    """Random models made by `transformers`; see tests/data/make_hf_models.py."""
    array = {k.split("/", 1)[1]: v for k, v in GOLDEN.items() if k.startswith(f"{family}/")}
    layers = [{} for _ in range(2)]
    params = {"layers": layers}
    for name in (name for name in array if name.startswith("params.")):
        *where, leaf = name.removeprefix("params.").split(".")
        (layers[int(where[1])] if where else params)[leaf] = jnp.array(array[name])
    config = ModelConfig(
        d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48, rope_theta=10000.0,
        norm_eps=1e-5, qkv_bias=family == "qwen2", qk_norm=family == "qwen3",
        tie_embeddings="head" not in params,
    )  # fmt: skip
    tokens_BT, expected = array["tokens_BT"], array["logits_BTV"]
    U = 4
    got = logits_of(params, config, tokens_BT[:, :U], np.full(2, U, np.int32), tokens_BT[:, U:])
    np.testing.assert_allclose(got, expected[:, U - 1 :], atol=2e-5)


CHUNKED = replace(BASE, attention_chunk=3, no_rope_every=2, scan_layers=True)


@pytest.mark.parametrize("config", [WINDOWED, CHUNKED], ids=["windowed", "chunked"])
def test_queries_in_chunks_have_the_value_and_gradient_of_all_at_once(config, example):
    """Seven tokens, three at a time; the second sample of a row begins at token 4."""
    prompt_PU, length_P, _ = example
    tokens_BT = np.random.default_rng(1).integers(0, V, (4, 7)).astype(np.int32)
    offset_BT = np.tile(np.array([0, 1, 2, 3, 0, 1, 2]), (4, 1))
    config = replace(config, n_layers=2)

    def loss(params, config):
        _, context = transformer.prefill(params, config, prompt_PU, length_P)
        hidden_BTD = transformer.extend(params, config, context, length_P, tokens_BT, offset_BT)
        return jnp.sum(jnp.sin(hidden_BTD * jnp.arange(7)[None, :, None]))

    params = transformer.init(jax.random.key(0), config, V)
    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    want, got = gradient(params, config), gradient(params, replace(config, query_chunk=3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)
    assert min(np.abs(x).max() for x in jax.tree.leaves(want[1]["layers"])) > 1e-2


@pytest.mark.parametrize("config", [BASE, QWEN3, WINDOWED], ids=["llama", "qwen3", "windowed"])
def test_scanned_layers_equal_unrolled(config, example):
    params = transformer.init(jax.random.key(0), config, V)
    stacked = {**params, "layers": transformer.stack_layers(params["layers"])}
    scanned = replace(config, scan_layers=True)
    np.testing.assert_allclose(
        logits_of(params, config, *example), logits_of(stacked, scanned, *example), atol=1e-5
    )
    shapes = lambda p: jax.tree.map(jnp.shape, p)  # noqa: E731
    assert shapes(stacked) == shapes(transformer.init(jax.random.key(0), scanned, V))


@pytest.mark.parametrize(
    "config",
    [QWEN3, replace(QWEN3, scan_layers=True), WINDOWED, replace(WINDOWED, scan_layers=True)],
    ids=["qwen3", "scanned", "windowed", "windowed-scanned"],
)
def test_decoding_token_by_token_equals_the_forward_pass(config, example):
    prompt_PU, length_P, completion_BT = example
    params = transformer.init(jax.random.key(0), config, V)
    expected = logits_of(params, config, *example)
    B, T = completion_BT.shape
    U, group = prompt_PU.shape[1], B // len(length_P)
    params = transformer.published(params, config, "float32")
    _, context = transformer.prefill(params, config, prompt_PU, length_P)
    row_B, position_B = np.repeat(np.arange(len(length_P)), group), np.repeat(length_P, group)
    caches = [
        cache.insert(prompt, row_B, np.ones(B, bool))
        for cache, prompt in zip(attention.empty(config, B, U + T), context, strict=True)
    ]
    for t in range(T):
        hidden_BD, caches = transformer.decode(
            params, config, caches, completion_BT[:, t], position_B + t
        )
        got = hidden_BD @ transformer.head_matrix(params)
        np.testing.assert_allclose(got, expected[:, t + 1], atol=1e-5)


SPARSE = replace(BASE, n_experts=4, experts_per_token=2, d_ff_expert=12, sparse_every=2)


@pytest.mark.parametrize("config", [BASE, QWEN3, SPARSE], ids=["llama", "qwen3", "sparse"])
def test_matrices_side_by_side_are_the_same_products(config, example):
    """As the sampler has them on a GPU."""
    params = transformer.init(jax.random.key(0), config, V)
    for i, layer in enumerate(params["layers"]):
        for name in layer.keys() & {"q_bias", "k_bias", "v_bias"}:
            layer[name] = jax.random.normal(jax.random.key(i), layer[name].shape)
    joined = transformer.published(params, config, "float32", side_by_side=True)
    assert all({"qkv", "o"} <= layer.keys() and "q" not in layer for layer in joined["layers"])
    assert sum("gate_up" in layer for layer in joined["layers"]) == sum(
        "gate" in layer for layer in params["layers"]
    )
    np.testing.assert_allclose(
        logits_of(joined, config, *example), logits_of(params, config, *example), atol=1e-5
    )
    axes = transformer.logical_axes(joined)
    assert axes["layers"][0]["qkv"] == ("model", "heads")


def test_padding_changes_nothing(example):
    prompt_PU, _, completion_BT = example
    params = transformer.init(jax.random.key(0), BASE, V)
    short = logits_of(params, BASE, prompt_PU[:, :3], np.array([3, 3]), completion_BT)
    junk = prompt_PU.copy()
    junk[:, 3:] = 7
    padded = logits_of(params, BASE, junk, np.array([3, 3]), completion_BT)
    np.testing.assert_allclose(short, padded, atol=1e-5)


def test_no_gradient_from_later_tokens(example):
    """d logits[t] / d embedding of a token fed at t' > t is exactly zero, and not so for t' = t."""
    prompt_PU, length_P, _ = example
    params = transformer.init(jax.random.key(0), BASE, V)
    completion_BT = np.array([[0, 1, 2, 3], [0, 1, 2, 3]], np.int32)  # each fed exactly once
    prompt_PU = np.full_like(prompt_PU, 9)

    @jax.jit
    @jax.grad
    def gradient(embed, t):
        p = {**params, "embed": embed}
        return jnp.sum(logits_of(p, BASE, prompt_PU, length_P, completion_BT)[:, t] ** 2)

    for t in range(4):  # logits[:, t] follow tokens 0 .. t-1
        grad_VD = gradient(params["embed"], t)
        assert np.all(grad_VD[t:4] == 0)
        assert t == 0 or np.all(np.any(grad_VD[:t] != 0, axis=1))


def test_no_gradient_from_tokens_before_the_windows():
    """Three layers that see three keys each reach six tokens back, and not a seventh."""
    prompt_PU, length_P = np.arange(9)[None], np.array([9], np.int32)
    config = replace(BASE, sliding_window=3)
    params = transformer.init(jax.random.key(0), config, V)

    def last_logits(embed):
        hidden_PD, _ = transformer.prefill({**params, "embed": embed}, config, prompt_PU, length_P)
        return jnp.sum(jnp.sin(hidden_PD))

    grad_VD = jax.jit(jax.grad(last_logits))(params["embed"])
    np.testing.assert_array_equal(np.any(grad_VD[:9] != 0, axis=1), np.arange(9) >= 8 - 6)


def test_a_shared_prompt_has_the_gradient_of_a_repeated_one(example):
    prompt_PU, length_P, completion_BT = example
    params = transformer.init(jax.random.key(0), BASE, V)

    @jax.jit
    @jax.grad
    def gradient(params, prompt_PU, length_P):
        return jnp.sum(jnp.sin(logits_of(params, BASE, prompt_PU, length_P, completion_BT)))

    shared = gradient(params, prompt_PU, length_P)
    repeated = gradient(params, np.repeat(prompt_PU, 3, 0), np.repeat(length_P, 3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), shared, repeated)


def test_bfloat16_activations_stay_close_and_parameters_stay_float32(example):
    params = transformer.init(jax.random.key(0), BASE, V)
    low = replace(BASE, compute_dtype="bfloat16")
    hidden_PD, context = transformer.prefill(params, low, *example[:2])
    assert hidden_PD.dtype == jnp.bfloat16 and context[0].k.dtype == jnp.bfloat16
    exact = logits_of(params, BASE, *example)
    assert 0 < np.max(np.abs(logits_of(params, low, *example) - exact)) < 0.2
