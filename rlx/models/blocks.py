"""The sum of each token's experts by products of blocks of rows, for GPUs.

For a GPU XLA expands `jax.lax.ragged_dot` to the dense product, every expert for every token, with
transposed copies of all matrices. Here a block is C rows of one expert:

    the first blocks   one for each of E experts, multiplied at once: every matrix is read once
    the others         C further rows each of experts with more than C, E / 8 blocks at a time with
                       their matrices gathered, in a loop that ends with the last of them

No row is dropped. There are at most M / C other blocks, so even if all tokens take the same expert
the products have fewer than 2 M + C E 9 / 8 rows of the M = T K needed.

Rows move between tokens and blocks by gathers, forward and backward: sums have a fixed order.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp


def capacity(pairs: int, n_experts: int) -> int:
    """Rows C of a block, a multiple of 16.

    A quarter above the mean; if few, 8 times the mean, up to the 128 rows that take a GPU about as
    long to multiply as their matrix takes to read.
    """
    mean = pairs / n_experts
    return 16 * max(round(max(1.25 * mean, min(8 * mean, 128)) / 16), 1)


class Blocks(NamedTuple):
    """N blocks, or some n of them."""

    expert_N: jax.Array
    pair_NC: jax.Array  # the (token, choice) pair, of T K, of each row; T K: none
    row_TK: jax.Array  # the row, of N C, of each pair; N C: none
    used: jax.Array  # blocks with rows, the first ones among them whether they have rows or not

    def part(self, first, n: int) -> Blocks:
        """The n blocks from number `first`."""
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=first, slice_size=n)
        pair_nC = cut(self.pair_NC)
        row_TK = self.row_TK - first * pair_nC.shape[1]
        row_TK = jnp.where((row_TK >= 0) & (row_TK < pair_nC.size), row_TK, pair_nC.size)
        return Blocks(cut(self.expert_N), pair_nC, row_TK, self.used)

    def rows(self, x_TD, *scales_TK):
        """Inputs [N, C, D] and scales [N, C] of the rows; 0 where there is no pair."""
        x_NCD = _taken(x_TD, self.pair_NC // self.row_TK.shape[1])
        return x_NCD, *(_taken(scale_TK.reshape(-1), self.pair_NC) for scale_TK in scales_TK)

    def tokens(self, x_NCD, *scales_NC):
        """The transpose of `rows`: sums [T, D] over the rows of a token, and scales [T, K]."""
        x_TKD = _taken(x_NCD.reshape(-1, x_NCD.shape[-1]), self.row_TK)
        return jnp.sum(x_TKD, axis=1), *(_taken(x.reshape(-1), self.row_TK) for x in scales_NC)

    def others(self, E: int, step, carry):
        """carry after `step(blocks, carry)` for the blocks beyond the first E."""
        n = max(E // 8, 1)
        if len(self.expert_N) == E:
            return carry
        turn = lambda at: (at[0] + n, step(self.part(at[0], n), at[1]))  # noqa: E731
        return jax.lax.while_loop(lambda at: at[0] < self.used, turn, (jnp.int32(E), carry))[1]


def _taken(x, index):
    """x[index], 0 where the index is len(x)."""
    return x.at[index].get(mode="fill", fill_value=0)


def laid_out(expert_TK, E: int, C: int) -> Blocks:
    """Blocks of experts 0 .. E - 1; pairs with number E belong to another device's experts."""
    expert_M, M, n = expert_TK.reshape(-1), expert_TK.size, max(E // 8, 1)
    order_M = jnp.argsort(expert_M, stable=True)
    size_E = jnp.sum(expert_M[:, None] == jnp.arange(E)[None], axis=0, dtype=jnp.int32)
    start_E = jnp.cumsum(size_E) - size_E
    others_E = jnp.maximum(size_E - 1, 0) // C
    before_E = jnp.cumsum(others_E) - others_E
    most = -(-((M - 1) // C) // n) * n  # others, in full rounds
    late = jnp.repeat(jnp.arange(E), others_E, total_repeat_length=most)
    nth = 1 + jnp.arange(most) - before_E[late]  # beyond the last one it has no rows
    expert_N = jnp.concatenate([jnp.arange(E), late])
    nth_N = jnp.concatenate([jnp.zeros(E, nth.dtype), nth])
    rank_NC = nth_N[:, None] * C + jnp.arange(C)
    pair_NC = order_M.at[start_E[expert_N][:, None] + rank_NC].get(mode="clip")
    pair_NC = jnp.where(rank_NC < size_E[expert_N][:, None], pair_NC, M)
    row_M = jnp.full(M, pair_NC.size).at[pair_NC.reshape(-1)]
    row_M = row_M.set(jnp.arange(pair_NC.size), mode="drop", unique_indices=True)
    return Blocks(expert_N, pair_NC, row_M.reshape(expert_TK.shape), E + jnp.sum(others_E))


def _swiglu(w, x_NCD, inner_NC, outer_NC):
    """outer f(inner x) of rows; the outer scale, of a linear map, before its narrower side."""
    x_NCD *= inner_NC[..., None]
    gate_NCF = jax.nn.silu(jnp.einsum("ncd,ndf->ncf", x_NCD, w["gate"]))
    y_NCF = gate_NCF * jnp.einsum("ncd,ndf->ncf", x_NCD, w["up"]) * outer_NC[..., None]
    return jnp.einsum("ncf,nfd->ncd", y_NCF, w["down"])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def summed(C: int, w, x_TD, inner_TK, outer_TK, expert_TK):
    """y [T, D] = sum_k outer f(inner x) with w of E experts, for choices below E; C: see `capacity`.

    The backward pass keeps the first blocks' products, and computes the others' again.
    """
    return _forward(C, w, x_TD, inner_TK, outer_TK, expert_TK)[0]


def _forward(C, w, x_TD, inner_TK, outer_TK, expert_TK):
    E, inputs = len(w["gate"]), (x_TD, inner_TK, outer_TK)
    blocks = laid_out(expert_TK, E, C)
    first = blocks.part(0, E)
    y_ECD, pull = jax.vjp(_swiglu, w, *first.rows(*inputs))

    def add(at, y_TD):
        return y_TD + at.tokens(_swiglu(_gathered(w, at), *at.rows(*inputs)))[0]

    y_TD = blocks.others(E, add, first.tokens(y_ECD)[0])
    return y_TD, (pull, w, inputs, blocks)


def _backward(C, kept, dy_TD):
    pull, w, inputs, blocks = kept
    E = len(w["gate"])
    first = blocks.part(0, E)
    dw, *drows = pull(*first.rows(dy_TD))

    def add(at, total):
        dw, dinputs = total
        pull = jax.vjp(_swiglu, _gathered(w, at), *at.rows(*inputs))[1]
        dw_n, *drows = pull(*at.rows(dy_TD))
        dw = jax.lax.fori_loop(0, len(at.expert_N), partial(_added, at.expert_N, dw_n), dw)
        return dw, jax.tree.map(jnp.add, dinputs, at.tokens(*drows))

    dw, dinputs = blocks.others(E, add, (dw, first.tokens(*drows)))
    return dw, *dinputs, None


def _gathered(w, at: Blocks):
    return jax.tree.map(lambda x: x[at.expert_N], w)


def _added(expert_n, dw_n, i, dw):
    """dw with the i-th block's added to its expert's."""
    put = lambda dw, x, e: jax.lax.dynamic_update_index_in_dim(dw, dw[e] + x, e, 0)  # noqa: E731
    return jax.tree.map(lambda dw, x: put(dw, x[i], expert_n[i]), dw, dw_n)


summed.defvjp(_forward, _backward)
