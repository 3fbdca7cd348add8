"""Short completions of one prompt share a row of the learner's forward pass.

A row has t = T - 1 columns; `packed_PRt[p, r, column]` is the token of group p in that place, as
sample * T + position, or -1. A completion of n tokens has n - 1 inputs (its last token predicts
nothing), all in one row, which attend to its prompt and to each other. Rows hold samples of one
prompt, so the prompt's keys and values are computed once for all of them, as without packing.

Packing is confined to the forward pass: log-probabilities are [B, T] before the objective.
M: the R t places of a group's rows, flattened; X: the P R rows of all groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

SHAPES = 4  # rows are rounded up to G/4, 2G/4, ...: at most 4 compilations


def packed(length_PG: Sequence[Sequence[int]], T: int) -> np.ndarray:
    """packed_PRt of completions with these lengths: first fit, the longest first."""
    P, G = len(length_PG), len(length_PG[0])
    groups = [_rows([max(int(n) - 1, 0) for n in length_G], T - 1) for length_G in length_PG]
    most = max(len(rows) for rows in groups)
    R = -(-G * -(-most * SHAPES // G) // SHAPES)
    packed_PRt = np.full((P, R, T - 1), -1, np.int32)
    for p, rows in enumerate(groups):
        for r, row in enumerate(rows):
            at = [g * T + t for g, n in row for t in range(n)]
            packed_PRt[p, r, : len(at)] = at
    return packed_PRt


def _rows(inputs_G: list[int], width: int) -> list[list[tuple[int, int]]]:
    """Rows of (sample, number of its inputs)."""
    rows: list[list[tuple[int, int]]] = []
    for g in sorted(range(len(inputs_G)), key=lambda g: -inputs_G[g]):
        fits = (row for row in rows if sum(n for _, n in row) + inputs_G[g] <= width)
        row = next(fits, None)
        if row is None:
            rows.append(row := [])
        row.append((g, inputs_G[g]))
    return rows


def inputs(packed_PRt: jax.Array, completion_PGT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(tokens [P, R, t], their positions in their completions); token 0 in empty places."""
    P, _, T = completion_PGT.shape
    at_PM = jnp.maximum(packed_PRt, 0).reshape(P, -1)
    token_PM = jnp.take_along_axis(completion_PGT.reshape(P, -1), at_PM, axis=1)
    return token_PM.reshape(packed_PRt.shape), at_PM.reshape(packed_PRt.shape) % T


def predicted(packed_PRt: jax.Array, completion_PGT: jax.Array) -> jax.Array:
    """[P, G + R t]: the first token of every sample, then the token that each place predicts."""
    P = completion_PGT.shape[0]
    next_PM = (jnp.maximum(packed_PRt, 0) + 1).reshape(P, -1)
    after_PM = jnp.take_along_axis(completion_PGT.reshape(P, -1), next_PM, axis=1)
    return jnp.concatenate([completion_PGT[:, :, 0], after_PM], axis=1)


def unpacked(packed_PRt: jax.Array, x_PN: jax.Array, G: int) -> jax.Array:
    """x of `predicted`, [P, G + R t], as [P, G, T]; arbitrary where no token is predicted."""
    P, R, columns = packed_PRt.shape
    T = columns + 1
    at_PM = packed_PRt.reshape(P, R * columns)
    target_PM = jnp.where(at_PM >= 0, at_PM + 1, G * T)  # outside: dropped
    place_M = G + jnp.arange(R * columns)

    def one(target_M, x_N):
        place_GT = jnp.zeros(G * T, jnp.int32).at[target_M].set(place_M, mode="drop")
        place_GT = place_GT.reshape(G, T).at[:, 0].set(jnp.arange(G))
        return x_N[place_GT]

    return jax.vmap(one)(target_PM, x_PN)


def unpacked_inputs(packed_PRt: jax.Array, x_Xt: jax.Array, G: int) -> jax.Array:
    """x [P R, t, ...] of the inputs, as [P G, t, ...]: tokens 0 .. T - 2 of every sample.

    Ones where there is no input, so that a masked quotient stays finite.
    """
    P, R, columns = packed_PRt.shape
    x_PM = x_Xt.reshape(P, R * columns, *x_Xt.shape[2:])
    first_PG = jnp.ones((P, G, *x_PM.shape[2:]), x_PM.dtype)
    x_PGT = unpacked(packed_PRt, jnp.concatenate([first_PG, x_PM], axis=1), G)
    return x_PGT[:, :, 1:].reshape(P * G, columns, *x_PM.shape[2:])
