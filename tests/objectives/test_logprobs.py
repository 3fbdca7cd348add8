"""Log-probabilities and entropies, against float64 NumPy; chunks of the vocabulary against none."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from rlx.objectives import logprobs
from rlx.objectives.logprobs import from_logits, token_logprobs

N, D, V = 24, 8, 37
CHUNKS = (0, 1, 16, 37, 64)  # none, one word, not a divisor, ..., all, more than all


def problem(seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    hidden_ND = scale * rng.normal(size=(N, D))
    head_DV = rng.normal(size=(D, V))
    token_N = rng.integers(0, V, N).astype(np.int32)
    token_N[:2] = 0, V - 1
    return hidden_ND.astype(np.float32), head_DV.astype(np.float32), token_N


def reference(hidden_ND, head_DV, token_N, temperature):
    """logp, entropy and d(sum(a logp + b entropy)) / d(hidden, head) in float64."""
    hidden, head = hidden_ND.astype(np.float64), head_DV.astype(np.float64)
    z = hidden @ head / temperature
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    entropy = -(p * np.log(p)).sum(axis=1)
    onehot = np.eye(V)[token_N]
    # d logp / dz = onehot - p;  d entropy / dz = -p (log p + entropy)
    a, b = cotangents()
    dz = a[:, None] * (onehot - p) - b[:, None] * p * (np.log(p) + entropy[:, None])
    logp = np.log(p[np.arange(N), token_N])
    return (logp, entropy), (dz @ head.T / temperature, hidden.T @ dz / temperature)


def cotangents():
    a, b = np.random.default_rng(1).normal(size=(2, N))
    return a, b


@partial(jax.jit, static_argnames=("vocab_chunk", "head_dtype"))
def results(hidden_ND, head_DV, token_N, **options):
    """Values, and gradients of the same sum as `reference`."""
    a, b = (jnp.asarray(x, jnp.float32) for x in cotangents())

    def total(hidden_ND, head_DV):
        logp_N, entropy_N = token_logprobs(hidden_ND, head_DV, token_N, **options)
        return jnp.sum(a * logp_N + b * entropy_N), (logp_N, entropy_N)

    grads, values = jax.grad(total, argnums=(0, 1), has_aux=True)(hidden_ND, head_DV)
    return values, grads


def test_from_logits_by_hand():
    # softmax of (ln 1, ln 2, ln 5) = 1/8, 2/8, 5/8
    # entropy = (3 ln 2)/8 + (2 ln 4)/8 + (5 ln 8/5)/8 = 0.259930 + 0.346574 + 0.293752
    logits_NV = np.log(np.float32([[1, 2, 5], [1, 2, 5]])) + np.float32([[0], [100]])
    logp_N, entropy_N = from_logits(logits_NV, np.int32([2, 0]))
    assert_allclose(logp_N, np.log([5 / 8, 1 / 8]), rtol=1e-5)
    assert_allclose(entropy_N, [0.900256, 0.900256], rtol=1e-4)


def test_from_logits_of_any_rank_and_dtype():
    logits_BTV = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, V)), jnp.bfloat16)
    token_BT = np.int32([[0, 1, 2], [34, 35, 36]])
    logp_BT, entropy_BT = from_logits(logits_BTV, token_BT)
    assert logp_BT.dtype == entropy_BT.dtype == np.float32
    z = np.asarray(logits_BTV, np.float64)
    logp_BTV = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    assert_allclose(logp_BT, [[logp_BTV[b, t, token_BT[b, t]] for t in range(3)] for b in range(2)])
    assert_allclose(entropy_BT, -(np.exp(logp_BTV) * logp_BTV).sum(axis=-1), rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 8.0])
@pytest.mark.parametrize("vocab_chunk", CHUNKS)
def test_values_and_gradients(vocab_chunk, scale):
    """Also where logits reach +-60 and some probabilities vanish."""
    args = problem(scale=scale)
    values, grads = results(*args, temperature=0.7, vocab_chunk=vocab_chunk)
    expected_values, expected_grads = reference(*args, temperature=0.7)
    for ours, expected in zip(values + grads, expected_values + expected_grads, strict=True):
        assert ours.dtype == np.float32
        assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * scale)


def test_far_offsets_lose_nothing():
    """Chunks whose logits are all far below, or above, those seen before."""
    head_DV = np.zeros((D, V), np.float32)
    head_DV[0] = np.repeat([-400.0, 0.0, 300.0, 299.0], [10, 10, 10, 7])
    hidden_ND, _, token_N = problem()
    hidden_ND[:, 0] = np.where(np.arange(N) % 2, 1, -1)  # rising and falling along the vocabulary
    whole = results(hidden_ND, head_DV, token_N)
    pieces = results(hidden_ND, head_DV, token_N, vocab_chunk=10)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(pieces))
    jax.tree.map(partial(assert_allclose, rtol=1e-4, atol=1e-3), pieces, whole)


@pytest.mark.parametrize("vocab_chunk", [0, 16])
def test_head_dtype(vocab_chunk):
    """bfloat16 rounds the factors, not the sum: it equals float32 on rounded factors."""
    hidden_ND, head_DV, token_N = problem()
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in (hidden_ND, head_DV)]
    options = {"vocab_chunk": vocab_chunk}
    ours, grads = results(hidden_ND, head_DV, token_N, head_dtype=jnp.bfloat16, **options)
    expected, _ = results(*rounded, token_N, **options)
    full, full_grads = results(hidden_ND, head_DV, token_N, **options)
    jax.tree.map(partial(assert_allclose, rtol=1e-4, atol=1e-5), ours, expected)
    assert np.abs(ours[0] - full[0]).max() > 1e-3
    jax.tree.map(partial(assert_allclose, atol=0.1), grads, full_grads)
    assert {x.dtype for x in (*ours, *grads)} == {np.dtype("float32")}


@pytest.mark.parametrize("vocab_chunk", [0, 16])
def test_strict_dtypes_and_traced_temperature(vocab_chunk):
    """Two temperatures, one compilation; and the same values without jit."""
    args = [jnp.asarray(x) for x in problem()]
    jitted = jax.jit(partial(token_logprobs, vocab_chunk=vocab_chunk))
    for temperature in (1.0, 0.5):
        plain = token_logprobs(*args, temperature=temperature, vocab_chunk=vocab_chunk)
        with jax.numpy_dtype_promotion("strict"):
            traced = jitted(*args, temperature=jnp.float32(temperature))
        jax.tree.map(partial(assert_allclose, rtol=1e-4, atol=1e-5), traced, plain)
    assert jitted._cache_size() == 1


def test_default_is_one_piece_at_temperature_1():
    hidden_ND, head_DV, token_N = problem()
    expected = from_logits(hidden_ND @ head_DV, token_N)
    ours = token_logprobs(hidden_ND, head_DV, token_N)
    jax.tree.map(partial(assert_allclose, rtol=1e-4, atol=1e-5), ours, expected)


def arrays_in(jaxpr):
    """Sizes of all arrays made in a jaxpr and in those inside it."""
    for eqn in jaxpr.eqns:
        yield from (var.aval.size for var in eqn.outvars)
        for param in eqn.params.values():
            for inner in param if isinstance(param, tuple | list) else [param]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from arrays_in(inner)


@pytest.mark.parametrize("vocab_chunk", [0, 64])
def test_chunks_never_hold_all_logits(vocab_chunk):
    """Forward and backward; the whole vocabulary at once does, so the count can tell."""
    n, d, v = 512, 4, 1024
    shapes = (
        jax.ShapeDtypeStruct((n, d), jnp.float32),
        jax.ShapeDtypeStruct((d, v), jnp.float32),
        jax.ShapeDtypeStruct((n,), jnp.int32),
    )

    def total(*args):
        return sum(jnp.sum(x_N) for x_N in token_logprobs(*args, vocab_chunk=vocab_chunk))

    largest = max(arrays_in(jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(*shapes).jaxpr))
    assert largest == n * (vocab_chunk or v)


@pytest.mark.parametrize("dtypes", [(jnp.float32, jnp.float32), (jnp.bfloat16, jnp.float32),
                                    (jnp.float32, jnp.bfloat16)])  # fmt: skip
@pytest.mark.parametrize("axes", [(1, 0), (1, 1), (0, 0)])
@pytest.mark.parametrize("rows, columns", [(40, 50), (3, 5)])  # large and small results
def test_products_by_parts(dtypes, axes, rows, columns):
    """What GPUs and TPUs do: no worse than 1e-5 of the largest entry; one float32 rounded: 2e-3."""
    rng = np.random.default_rng(0)
    shapes = [(rows, 20), (columns, 20)]
    a, b = (
        jnp.asarray(rng.normal(size=shape if axis else shape[::-1]), dtype)
        for shape, axis, dtype in zip(shapes, axes, dtypes, strict=True)
    )
    wide = [np.asarray(x, np.float64) for x in (a, b)]
    exact = np.tensordot(*wide, axes=axes)
    found = jax.jit(partial(logprobs.dot_in_parts, axes=axes))(a, b)
    assert found.dtype == jnp.float32
    error = np.abs(np.asarray(found, np.float64) - exact).max() / np.abs(exact).max()
    assert error < 1e-5
    rounded = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in (a, b)]
    assert np.abs(np.tensordot(*map(np.asarray, rounded), axes=axes) - exact).max() > 1e-3


@pytest.mark.parametrize("dtype, products", [(jnp.bfloat16, 2), (jnp.float32, 3)])
def test_a_head_in_parts(dtype, products):
    """What decoding on a GPU does: the parts are made once, each token is one product."""
    rng = np.random.default_rng(0)
    x_ND, w_DV = (jnp.asarray(rng.normal(size=n), jnp.float32) for n in ((3, 20), (20, 50)))
    x_ND = x_ND.astype(dtype)
    head = logprobs.in_parts(w_DV, dtype)
    assert head.w.shape == (20 * products, 50) and head.w.dtype == jnp.bfloat16
    found = partial(logprobs.logits, temperature=0.5)
    assert str(jax.make_jaxpr(found)(x_ND, head)).count("dot_general") == 1
    exact = np.asarray(x_ND, np.float64) @ np.asarray(w_DV, np.float64) / 0.5
    np.testing.assert_allclose(found(x_ND, head), exact, atol=1e-5 * np.abs(exact).max())
    narrow = w_DV.astype(jnp.bfloat16)
    assert logprobs.in_parts(narrow, dtype) is narrow


def test_narrow_hidden_states_cost_no_product():
    """bfloat16 hidden states are exact: two products forward, and two for the head's gradient."""
    x_ND, w_DV = jnp.ones((4, 8), jnp.bfloat16), jnp.ones((8, 16))

    def count(x_ND, w_DV):
        text = str(jax.make_jaxpr(partial(logprobs.dot_in_parts, axes=(1, 0)))(x_ND, w_DV))
        return text.count("dot_general"), text.count("concatenate")

    assert count(x_ND, w_DV) == (2, 0) and count(x_ND.astype(jnp.float32), w_DV) == (3, 0)
    assert count(jnp.ones((90, 8), jnp.bfloat16), jnp.ones((8, 90))) == (1, 2)
