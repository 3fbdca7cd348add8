"""The sum of each token's experts by products of blocks of rows, exact for any routing.

For GPUs, for which XLA expands `jax.lax.ragged_dot` to the dense product, every expert for every
row, with transposed copies of all matrices. A block is C rows of one expert:

    first    one for each of the E experts, multiplied at once: every matrix is read once
    others   further rows of the experts with more than C, E / 8 blocks at a time with gathered
             matrices, in a loop that ends with the last of them

Of M = T K rows needed the others are at most M / C blocks: even if all tokens take one expert,
products have fewer than M + 9 / 8 E C rows. Rows move by gathers, backward too, so that every sum
has a fixed order.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp


def capacity(pairs: int, n_experts: int) -> int:
    """Rows C of a block, a multiple of 64; pairs: (token, expert), over the experts of all devices.

    A quarter above the mean. If that is few, 8 times the mean, up to 128 rows, which a GPU
    multiplies in about the time that it takes to read their matrices.
    """
    mean = pairs / n_experts
    return 64 * max(round(max(1.25 * mean, min(8 * mean, 128)) / 64), 1)


class Blocks(NamedTuple):
    """N blocks: the first ones and room for all others, or a part of them."""

    expert_N: jax.Array
    pair_NC: jax.Array  # the (token, choice) pair of each row; T K: none
    row_TK: jax.Array  # the row, of N C, of each pair; N C: none
    used: jax.Array  # blocks, of all

    def part(self, start, n: int) -> Blocks:
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=n)
        pair_nC = cut(self.pair_NC)
        row_TK = self.row_TK - start * pair_nC.shape[1]
        row_TK = jnp.where((row_TK >= 0) & (row_TK < pair_nC.size), row_TK, pair_nC.size)
        return Blocks(cut(self.expert_N), pair_nC, row_TK, self.used)

    def rows(self, x_TD, *scales_TK):
        """x [N, C, D] and scales [N, C] of the rows, 0 without a pair."""
        x_NCD = _taken(x_TD, self.pair_NC // self.row_TK.shape[1])
        return x_NCD, *(_taken(scale_TK.reshape(-1), self.pair_NC) for scale_TK in scales_TK)

    def tokens(self, x_NCD, *scales_NC):
        """The transpose of `rows`: the sum [T, D] of the rows of each token, and scales [T, K]."""
        x_TKD = _taken(x_NCD.reshape(-1, x_NCD.shape[-1]), self.row_TK)
        return jnp.sum(x_TKD, axis=1), *(_taken(x.reshape(-1), self.row_TK) for x in scales_NC)

    def others(self, E: int, add, total):
        """total after `add(part, total)` for all parts of the blocks after the first E."""
        n = _at_once(E)
        if len(self.expert_N) == E:
            return total
        turn = lambda at: (at[0] + n, add(self.part(at[0], n), at[1]))  # noqa: E731
        return jax.lax.while_loop(lambda at: at[0] < self.used, turn, (jnp.int32(E), total))[1]


def _at_once(E: int) -> int:
    return max(E // 8, 1)


def _taken(x, index):
    """x[index], 0 where the index is len(x)."""
    return x.at[index].get(mode="fill", fill_value=0)


def laid_out(expert_TK, E: int, C: int) -> Blocks:
    """The blocks of experts 0 .. E - 1; a pair with number E has none."""
    expert_M, M = expert_TK.reshape(-1), expert_TK.size
    order_M = jnp.argsort(expert_M, stable=True)
    size_E = jnp.sum(expert_M[:, None] == jnp.arange(E)[None], axis=0, dtype=jnp.int32)
    start_E = jnp.cumsum(size_E) - size_E
    others_E = jnp.maximum(size_E - 1, 0) // C
    before_E = jnp.cumsum(others_E) - others_E
    room = -(-((M - 1) // C) // _at_once(E)) * _at_once(E)
    other = jnp.repeat(jnp.arange(E), others_E, total_repeat_length=room)
    nth = 1 + jnp.arange(room) - before_E[other]  # of its expert; beyond its last: no rows
    expert_N = jnp.concatenate([jnp.arange(E), other])
    rank_NC = jnp.concatenate([jnp.zeros_like(start_E), nth])[:, None] * C + jnp.arange(C)[None]
    pair_NC = order_M.at[start_E[expert_N][:, None] + rank_NC].get(mode="clip")
    pair_NC = jnp.where(rank_NC < size_E[expert_N][:, None], pair_NC, M)
    row_M = jnp.full(M, pair_NC.size).at[pair_NC.reshape(-1)]
    row_M = row_M.set(jnp.arange(pair_NC.size), mode="drop", unique_indices=True)
    return Blocks(expert_N, pair_NC, row_M.reshape(expert_TK.shape), E + jnp.sum(others_E))


def _swiglu(w, x_NCD, inner_NC, outer_NC):
    """outer f(inner x) of rows; the outer scale, of a linear map, on its narrow side."""
    x_NCD *= inner_NC[..., None]
    gate_NCF = jax.nn.silu(jnp.einsum("ncd,ndf->ncf", x_NCD, w["gate"]))
    y_NCF = gate_NCF * jnp.einsum("ncd,ndf->ncf", x_NCD, w["up"]) * outer_NC[..., None]
    return jnp.einsum("ncf,nfd->ncd", y_NCF, w["down"])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def summed(C: int, w, x_TD, inner_TK, outer_TK, expert_TK):
    """y_t = sum_k outer_tk f_e(inner_tk x_t), e = expert_tk, over the choices below E; w: of E
    experts; C: see `capacity`.

    For the backward pass it keeps the first blocks' products, and computes the others' again. The
    gradient of a matrix is rounded to its dtype after every block of its expert.
    """
    return _forward(C, w, x_TD, inner_TK, outer_TK, expert_TK)[0]


def _forward(C, w, x_TD, inner_TK, outer_TK, expert_TK):
    E, inputs = len(w["gate"]), (x_TD, inner_TK, outer_TK)
    blocks = laid_out(expert_TK, E, C)
    first = blocks.part(0, E)
    y_ECD, pull = jax.vjp(_swiglu, w, *first.rows(*inputs))

    def add(part, y_TD):
        return y_TD + part.tokens(_swiglu(_gathered(w, part), *part.rows(*inputs)))[0]

    y_TD = blocks.others(E, add, first.tokens(y_ECD)[0])
    return y_TD, (pull, w, inputs, blocks)


def _backward(C, kept, dy_TD):
    pull, w, inputs, blocks = kept
    E = len(w["gate"])
    first = blocks.part(0, E)
    dw, *drows = pull(*first.rows(dy_TD))

    def add(part, total):
        dw, dinputs = total
        pull = jax.vjp(_swiglu, _gathered(w, part), *part.rows(*inputs))[1]
        dw_n, *drows = pull(*part.rows(dy_TD))
        add_one = partial(_added, part.expert_N, dw_n)
        dw = jax.lax.fori_loop(0, len(part.expert_N), add_one, dw)
        return dw, jax.tree.map(jnp.add, dinputs, part.tokens(*drows))

    dw, dinputs = blocks.others(E, add, (dw, first.tokens(*drows)))
    return dw, *dinputs, None


def _gathered(w, blocks: Blocks):
    return jax.tree.map(lambda x: x[blocks.expert_N], w)


def _added(expert_n, dw_n, i, dw):
    """dw with that of the i-th block added to its expert's."""
    e, put = expert_n[i], jax.lax.dynamic_update_index_in_dim
    return jax.tree.map(lambda x, x_n: put(x, x[e] + x_n[i], e, 0), dw, dw_n)


summed.defvjp(_forward, _backward)
