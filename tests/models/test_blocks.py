"""Products of blocks of rows: which rows they hold, and sums and gradients against all experts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.models import blocks, moe, transformer

E, K, T, D, F = 16, 2, 40, 8, 6
rng = np.random.default_rng(0)
EVEN = (np.arange(T)[:, None] * K + np.arange(K)) % E
ROUTINGS = {  # expert of each choice of each token; E and beyond: of another device
    "even": EVEN,
    "random": np.argsort(rng.random((T, E)))[:, :K],
    "skewed": np.argsort(rng.gumbel(size=(T, E)) + 2 * rng.normal(size=E))[:, -K:],
    "one_expert": np.tile([5, E], (T, 1)),
    "first_and_last": np.tile([E - 1, 0], (T, 1)),
    "twice_the_same": np.full((T, K), 3),
    "some_elsewhere": np.where(EVEN % 3 == 0, E, EVEN),
    "all_elsewhere": np.full((T, K), E),
}


laid_out = jax.jit(blocks.laid_out, static_argnums=(1, 2))


@pytest.mark.parametrize("C", [1, 4, 7, 64, T * K])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_every_pair_has_one_row_of_its_expert(routing, C):
    """And no more blocks are used than its experts' rows fill; the first E always."""
    expert_TK = ROUTINGS[routing]
    laid = jax.device_get(laid_out(jnp.array(expert_TK), E, C))
    size_E = np.bincount(expert_TK.reshape(-1), minlength=E + 1)[:E]
    assert laid.used == np.sum(np.maximum(-(-size_E // C), 1)) <= len(laid.expert_N)
    assert laid.pair_NC.shape == (len(laid.expert_N), C)
    (has,) = np.nonzero(laid.pair_NC.reshape(-1) < T * K)
    assert np.all(has < laid.used * C)
    pair = laid.pair_NC.reshape(-1)[has]
    here = np.flatnonzero(expert_TK.reshape(-1) < E)
    np.testing.assert_array_equal(np.sort(pair), here)
    np.testing.assert_array_equal(expert_TK.reshape(-1)[pair], laid.expert_N[has // C])
    np.testing.assert_array_equal(laid.row_TK.reshape(-1)[pair], has)
    assert np.all(np.delete(laid.row_TK.reshape(-1), here) == laid.pair_NC.size)


def random(*shape):
    return jnp.array(rng.normal(size=shape) / np.sqrt(shape[-2]))


@pytest.fixture(scope="module")
def inputs():
    with jax.enable_x64(True):
        w = {"gate": random(E, D, F), "up": random(E, D, F), "down": random(E, F, D)}
        yield w, random(2, T // 2, D), random(2, T // 2, K), random(2, T // 2, K)


def in_blocks(C, w, x_BTD, inner_BTK, outer_BTK, expert_BTK):
    """moe._in_blocks with C rows in a block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "capacity", lambda *_: C)
        return moe._in_blocks(w, x_BTD, expert_BTK, inner_BTK, outer_BTK, 0, E)


def one_by_one(w, x_BTD, *choices_BTK):
    """Every expert on every token, for each choice of a token apart: two may be the same."""
    apart = [[x[..., k : k + 1] for x in choices_BTK] for k in range(K)]
    return sum(moe._every_expert(w, x_BTD, e, inner, outer, 0) for inner, outer, e in apart)


@functools.cache
def sums(C: int | None):
    """The value, and the gradients of weights, inputs and both scales, of a sum of sines."""
    product = functools.partial(in_blocks, C) if C else one_by_one
    return jax.jit(jax.value_and_grad(lambda *x: jnp.sum(jnp.sin(product(*x))), range(4)))


@pytest.mark.parametrize("C", [1, 7, 64])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_sums_and_gradients_are_those_of_every_expert(inputs, routing, C):
    """In float64: by no block beyond the first ones, by some, and by many."""
    with jax.enable_x64(True):
        expert_BTK = jnp.array(ROUTINGS[routing].reshape(2, T // 2, K))
        want, got = (sums(product)(*inputs, expert_BTK) for product in (None, C))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), got, want)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_narrower_numbers_are_rounded_alone(inputs, dtype, tolerance):
    with jax.enable_x64(True):
        expert_BTK = jnp.array(ROUTINGS["skewed"].reshape(2, T // 2, K))
        exact = sums(None)(*inputs, expert_BTK)
        rounded = sums(7)(*jax.tree.map(lambda x: x.astype(dtype), inputs), expert_BTK)
    assert all(x.dtype == dtype for x in jax.tree.leaves(rounded))
    for got, want in zip(jax.tree.leaves(rounded[1]), jax.tree.leaves(exact[1]), strict=True):
        error = np.linalg.norm(np.float64(got) - want) / np.linalg.norm(want)
        assert error < tolerance


@pytest.mark.parametrize("policy", [None, transformer._costly], ids=["nothing", "products"])
def test_stacked_layers_keep_what_a_policy_says(inputs, policy):
    """Two layers in a scan under jax.checkpoint: the gradients of two without either."""
    with jax.enable_x64(True):
        w, x_BTD, *scales = inputs
        w_L = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x[::-1]]), w)
        expert_BTK = jnp.array(ROUTINGS["skewed"].reshape(2, T // 2, K))

        def step(x_BTD, w):
            return x_BTD + in_blocks(7, w, x_BTD, *scales, expert_BTK), None

        def scanned(w_L, x_BTD):
            kept = jax.checkpoint(step, prevent_cse=False, policy=policy)
            return jnp.sum(jnp.sin(jax.lax.scan(kept, x_BTD, w_L)[0]))

        def unrolled(w_L, x_BTD):
            for i in range(2):
                w = jax.tree.map(lambda x, i=i: x[i], w_L)
                x_BTD += one_by_one(w, x_BTD, *scales, expert_BTK)
            return jnp.sum(jnp.sin(x_BTD))

        got, want = (jax.jit(jax.grad(f, (0, 1)))(w_L, x_BTD) for f in (scanned, unrolled))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), got, want)


@pytest.mark.parametrize(
    "pairs, n_experts, C",
    [(8, 128, 64), (1024, 128, 64), (4096, 128, 128), (12800, 128, 128), (65536, 128, 640)],
)
def test_rows_of_a_block(pairs, n_experts, C):
    assert blocks.capacity(pairs, n_experts) == C
