"""Log-probability of a token and entropy of its distribution, from logits or from hidden states.

Symbols: z = logits of one position over V words, lse = log sum_v exp(z_v), p_v = exp(z_v - lse).

    logp = z_token - lse        entropy = -sum_v p_v log p_v = lse - sum_v p_v z_v

Both in nats and float32 for inputs of any dtype. N: tokens of all sequences, flattened. Learner and
sampler share these functions, so their log-probabilities differ by numerics only. Logits are
finite: a token that must not be sampled gets a very negative one.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

NEVER = -1e30  # a logit of probability 0; its product with 0 is finite


def from_logits(logits_NV, token_N):
    """logp_N and entropy_N, both float32, of integer tokens under softmax(logits).

    N stands for any leading axes.
    """
    logits_NV = logits_NV.astype(jnp.float32)
    logp_NV = jax.nn.log_softmax(logits_NV, axis=-1)
    logp_N = jnp.take_along_axis(logp_NV, token_N[..., None], axis=-1)[..., 0]
    return logp_N, -jnp.sum(jnp.exp(logp_NV) * logp_NV, axis=-1)


def logits(hidden_ND, head_DV, *, temperature=1.0, head_dtype=jnp.float32):
    """z = hidden @ head / temperature, float32 [N, V]

    The factors of this product and of the two in its gradient are rounded to `head_dtype`, with
    float32 accumulation. Relative error: bfloat16 2e-3; float32 3e-7 on CPU, 4e-6 on GPU and TPU,
    where it is three bfloat16 products (the default there would give 3e-4). head_DV: an array, or
    for decoding the Parts made by `in_parts`.
    """
    shape, hidden_ND = hidden_ND.shape[:-1], hidden_ND.reshape(-1, hidden_ND.shape[-1])
    if isinstance(head_DV, Parts):
        parts = [x for x, _ in _pairs(_parts(hidden_ND), range(2))]
        z_NV = _dot(jnp.concatenate(parts, 1), head_DV.w, (1, 0))
    else:
        z_NV = product(hidden_ND, head_DV, jnp.dtype(head_dtype))
    return z_NV.reshape(*shape, -1) / temperature


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x_ND, w_DV, dtype):
    """x @ w, float32; all factors, forward and backward, are rounded to `dtype`."""
    return _dot(_rounded(x_ND, dtype), _rounded(w_DV, dtype), (1, 0))


def _product_forward(x_ND, w_DV, dtype):
    return product(x_ND, w_DV, dtype), (x_ND, w_DV)


def _product_backward(dtype, factors, gradient_NV):
    x_ND, w_DV = (_rounded(x, dtype) for x in factors)
    gradient_NV = gradient_NV.astype(dtype)
    x_gradient_ND = _dot(gradient_NV, w_DV, (1, 1))
    w_gradient_DV = _dot(x_ND, gradient_NV, (0, 0))
    return x_gradient_ND.astype(factors[0].dtype), w_gradient_DV.astype(factors[1].dtype)


product.defvjp(_product_forward, _product_backward)


def _rounded(x, dtype):
    """Narrower arrays stay as they are: they are exact in `dtype`."""
    return x if x.dtype.itemsize <= jnp.dtype(dtype).itemsize else x.astype(dtype)


def _dot(a, b, axes, precision=None):
    """The product over axis axes[0] of a and axes[1] of b, float32."""
    if precision is None and jnp.float32 in (a.dtype, b.dtype):
        exact = functools.partial(_dot, axes=axes, precision=jax.lax.Precision.HIGHEST)
        in_parts = functools.partial(dot_in_parts, axes=axes)
        return jax.lax.platform_dependent(a, b, cpu=exact, default=in_parts)
    if precision is not None:
        a, b = (x.astype(jnp.float32) for x in (a, b))
    contracted = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(a, b, contracted, precision, jnp.float32)


class Parts(NamedTuple):
    """A head [D, V] of float32 as its bfloat16 parts end to end, for more than one product."""

    w: jax.Array  # [n D, V]


def in_parts(head_DV: jax.Array, hidden_dtype):
    """The head as `logits` multiplies it by hidden states on a GPU, if that is in parts."""
    if head_DV.dtype != jnp.float32:
        return head_DV
    pairs = _pairs(_parts(jnp.zeros(0, hidden_dtype)), _parts(head_DV))
    return Parts(jnp.concatenate([w for _, w in pairs]))


def _pairs(a_parts, b_parts):
    """All pairs but that of the two small parts."""
    each = itertools.product(enumerate(a_parts), enumerate(b_parts))
    return [(x, y) for (i, x), (j, y) in each if i * j == 0]


def dot_in_parts(a, b, axes):
    """_dot by products of bfloat16 parts, leaving out that of the two small parts.

    A large result is one product over the parts laid end to end: a sum of products would write and
    read each of them.
    """
    pairs = _pairs(_parts(a), _parts(b))
    if a.shape[1 - axes[0]] * b.shape[1 - axes[1]] < max(a.size, b.size):
        return sum(_dot(x, y, axes) for x, y in pairs)
    ends = zip(zip(*pairs, strict=True), axes, strict=True)
    return _dot(*(jnp.concatenate(parts, axis) for parts, axis in ends), axes)


def _parts(x):
    """bfloat16 arrays that add up to x: one if x is bfloat16; the first 16 bits of a float32."""
    if x.dtype != jnp.float32:
        return (x,)
    large = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)  # XLA may drop a cast
    return large.astype(jnp.bfloat16), (x - large).astype(jnp.bfloat16)


def token_logprobs(
    hidden_ND, head_DV, token_N, *, temperature=1.0, vocab_chunk=0, head_dtype=jnp.float32
):
    """logp_N and entropy_N of integer tokens under softmax(hidden @ head / temperature).

    vocab_chunk: tokens of the vocabulary per chunk; V need not be a multiple of it; 0: one chunk.
    With chunks the [N, V] logits are never materialised: the largest arrays are [N, vocab_chunk]
    and [D, V], for one more matmul in the backward pass. temperature may be traced; vocab_chunk and
    head_dtype are static.
    """
    chunk_logits = functools.partial(logits, temperature=temperature, head_dtype=head_dtype)
    if not vocab_chunk:
        return from_logits(chunk_logits(hidden_ND, head_DV), token_N)
    return _chunked(chunk_logits, hidden_ND, head_DV, token_N, vocab_chunk)


def log_partition(hidden_ND, head_DV, *, temperature=1.0, head_dtype=jnp.float32):
    """log sum_v exp(z_v), float32 [N]."""
    z_NV = logits(hidden_ND, head_DV, temperature=temperature, head_dtype=head_dtype)
    return jax.nn.logsumexp(z_NV, axis=-1)


def _chunked(chunk_logits, hidden_ND, head_DV, token_N, vocab_chunk):
    """One pass over the vocabulary that keeps, for each position, over the tokens seen so far,

        m = max_v z_v,  s = sum_v exp(z_v - m),  u = sum_v exp(z_v - m) (z_v - m),  z_token

    so that lse = m + log s and entropy = log s - u / s. The results do not depend on m, which is
    therefore treated as a constant by the gradient. Milakov and Gimelshein 2018 (arXiv 1805.02867),
    algorithm 3, with u added. Of C chunks each holds every C-th token of the vocabulary, so that
    devices which share the vocabulary share every chunk. v: the tokens of one chunk.
    """
    D, V = head_DV.shape
    chunks = -(-V // vocab_chunk)
    head_DV = jnp.pad(head_DV, ((0, 0), (0, chunks * vocab_chunk - V)))
    head_CDv = head_DV.reshape(D, vocab_chunk, chunks).transpose(2, 0, 1)

    @jax.checkpoint
    def step(carry, chunk):
        m_N, s_N, u_N, z_N = carry
        head_Dv, first = chunk
        word_v = first + chunks * jnp.arange(vocab_chunk, dtype=first.dtype)
        z_Nv = jnp.where(word_v[None] < V, chunk_logits(hidden_ND, head_Dv), NEVER)
        new_m_N = jax.lax.stop_gradient(jnp.maximum(m_N, jnp.max(z_Nv, axis=-1)))
        fall_N = m_N - new_m_N
        over_Nv = z_Nv - new_m_N[:, None]
        exp_Nv = jnp.exp(over_Nv)
        u_N = jnp.exp(fall_N) * (u_N + s_N * fall_N) + jnp.sum(exp_Nv * over_Nv, axis=-1)
        s_N = jnp.exp(fall_N) * s_N + jnp.sum(exp_Nv, axis=-1)
        z_N = z_N + jnp.sum(jnp.where(word_v[None] == token_N[:, None], z_Nv, 0), axis=-1)
        return (new_m_N, s_N, u_N, z_N), None

    zero_N = jnp.zeros(token_N.shape, jnp.float32)
    first_C = jnp.arange(chunks, dtype=token_N.dtype)
    carry = (zero_N + NEVER, zero_N, zero_N, zero_N)
    (m_N, s_N, u_N, z_N), _ = jax.lax.scan(step, carry, (head_CDv, first_C))
    return z_N - m_N - jnp.log(s_N), jnp.log(s_N) - u_N / s_N
