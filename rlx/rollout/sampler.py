"""The sampler: prefill and chunked decode over slots. It knows token ids and nothing else.

A slot holds one sequence in flight. `insert` runs the prompts of some groups once each, copies
their keys/values into the slots of their samples and draws every first token; `decode` feeds the
last tokens back until `max_steps` tokens were drawn or no slot is active. Slots move
independently: a finished one can be refilled while the others go on. Weights may change between
calls: the keys/values of the earlier weights stay, and each token stores the version that drew it.

The key of a token is fold_in(fold_in(fold_in(key, serial), sample), token index), so what is
sampled depends neither on the slot, nor on the chunks, nor on the neighbours.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from rlx import mesh as meshes
from rlx.config import ModelConfig
from rlx.models import transformer
from rlx.objectives import logprobs


@struct.dataclass
class Slots:
    """Everything a sequence in flight needs, one row per slot."""

    cache: Any
    key_W: jax.Array  # of (group serial, sample)
    pad_W: jax.Array  # int32, cache columns before the prompt
    count_W: jax.Array  # int32, tokens drawn so far
    active_W: jax.Array  # bool, neither stopped nor at the length limit
    token_WT: jax.Array  # int32
    logp_WT: jax.Array  # float32, of the distribution that was sampled
    version_WT: jax.Array  # int32, of the weights that drew the token


def _shardings(slots: Slots, config: ModelConfig, mesh: Mesh) -> Slots:
    """Every array is split over the mesh along its slots."""

    def along(tree, axis=0):
        return jax.tree.map(lambda x: meshes.along(mesh, "slots", x, axis), tree)

    return along(slots).replace(cache=along(slots.cache, axis=int(config.scan_layers)))


def empty(
    config: ModelConfig, slots: int, prompt_tokens: int, max_new_tokens: int, mesh: Mesh
) -> Slots:
    """No sequence in flight. The last token drawn is never fed back, so S = U + T - 1."""
    shape = (slots, max_new_tokens)
    state = Slots(
        cache=transformer.empty_cache(config, slots, prompt_tokens + max_new_tokens - 1),
        key_W=jax.random.split(jax.random.key(0), slots),
        pad_W=jnp.zeros(slots, jnp.int32),
        count_W=jnp.zeros(slots, jnp.int32),
        active_W=jnp.zeros(slots, bool),
        token_WT=jnp.zeros(shape, jnp.int32),
        logp_WT=jnp.zeros(shape, jnp.float32),
        version_WT=jnp.zeros(shape, jnp.int32),
    )
    return jax.device_put(state, _shardings(state, config, mesh), may_alias=False)


def _logits(params, config: ModelConfig, hidden_BD, temperature):
    head_DV = transformer.head_matrix(params)
    head_dtype = jnp.dtype(config.head_dtype)
    return logprobs.logits(hidden_BD, head_DV, temperature=temperature, head_dtype=head_dtype)


def _draw(logits_BV, key_B):
    """One token per row from softmax(logits), and its log-probability."""
    token_B = jax.vmap(jax.random.categorical)(key_B, logits_BV).astype(jnp.int32)
    return token_B, logprobs.from_logits(logits_BV, token_B)[0]


@functools.partial(jax.jit, static_argnames=("config", "stop_id", "mesh"), donate_argnames="slots")
def insert(
    params, slots: Slots, prompt_PU, length_P, slot_PG, serial_P, key, version, temperature,
    *, config: ModelConfig, stop_id: int, mesh: Mesh,
) -> Slots:  # fmt: skip
    """Start one group per row: its sample g goes to slot `slot_PG[p, g]`.

    Rows whose slots lie outside the W slots are padding: they cost a prefill and write nothing.
    """
    P, G = slot_PG.shape
    U, (W, T) = prompt_PU.shape[1], slots.token_WT.shape
    hidden_PD, context = transformer.prefill(params, config, prompt_PU, length_P)
    logits_PV = _logits(params, config, hidden_PD, temperature)

    # Every slot looks up its new sample, if it has one, so that a mesh can split the slots.
    sample_B = jnp.arange(P * G)
    sample_W = jnp.full(W, P * G).at[slot_PG.reshape(P * G)].set(sample_B, mode="drop")
    new_W, p_W = sample_W < P * G, jnp.minimum(sample_W // G, P - 1)
    group_key_W = jax.vmap(jax.random.fold_in, (None, 0))(key, serial_P[p_W])
    key_W = jax.vmap(jax.random.fold_in)(group_key_W, sample_W % G)
    first_key_W = jax.vmap(jax.random.fold_in, (0, None))(key_W, 0)
    token_W, logp_W = _draw(logits_PV[p_W], first_key_W)

    def fill(x, value):
        return jnp.where(jnp.expand_dims(new_W, range(1, x.ndim)), value, x)

    def fill_cache(cache, prompt):
        kv = {name: fill(cache[name][:, :, :U], prompt[name][p_W]) for name in "kv"}
        return {name: cache[name].at[:, :, :U].set(kv[name]) for name in "kv"}

    def fill_first(x_WT, value_W):
        return x_WT.at[:, 0].set(fill(x_WT[:, 0], value_W))

    started = Slots(
        cache=transformer.over_layers(config, fill_cache, slots.cache, context),
        key_W=fill(slots.key_W, key_W),
        pad_W=fill(slots.pad_W, U - length_P[p_W]),
        count_W=fill(slots.count_W, 1),
        active_W=fill(slots.active_W, (token_W != stop_id) & (T > 1)),
        token_WT=fill_first(slots.token_WT, token_W),
        logp_WT=fill_first(slots.logp_WT, logp_W),
        version_WT=fill_first(slots.version_WT, jnp.full(W, version, jnp.int32)),
    )
    return jax.lax.with_sharding_constraint(started, _shardings(slots, config, mesh))


@functools.partial(jax.jit, static_argnames=("config", "stop_id", "mesh"), donate_argnames="slots")
def decode(
    params, slots: Slots, version, temperature, max_steps,
    *, config: ModelConfig, stop_id: int, mesh: Mesh,
) -> Slots:  # fmt: skip
    """Draw up to `max_steps` tokens in every active slot."""
    W, T = slots.token_WT.shape
    S = (slots.cache if config.scan_layers else slots.cache[0])["k"].shape[-2]
    U = S - T + 1
    write = jax.vmap(lambda row_T, at, value: row_T.at[at].set(value, mode="drop"))
    version_W = jnp.full(W, version, jnp.int32)

    def one_token(carry):
        step, s = carry
        last_W1 = jnp.take_along_axis(s.token_WT, jnp.maximum(s.count_W - 1, 0)[:, None], axis=1)
        column_W = U + s.count_W - 1  # of an idle slot it may be S: that write is dropped
        hidden_WD, cache = transformer.decode(
            params, config, s.cache, last_W1[:, 0], column_W, s.pad_W
        )
        key_W = jax.vmap(jax.random.fold_in)(s.key_W, s.count_W)
        token_W, logp_W = _draw(_logits(params, config, hidden_WD, temperature), key_W)
        at_W = jnp.where(s.active_W, s.count_W, T)  # T is outside: idle slots keep what they have
        count_W = s.count_W + s.active_W
        return step + 1, s.replace(
            cache=cache,
            count_W=count_W,
            active_W=s.active_W & (token_W != stop_id) & (count_W < T),
            token_WT=write(s.token_WT, at_W, token_W),
            logp_WT=write(s.logp_WT, at_W, logp_W),
            version_WT=write(s.version_WT, at_W, version_W),
        )

    def go_on(carry):
        step, s = carry
        return (step < max_steps) & jnp.any(s.active_W)

    decoded = jax.lax.while_loop(go_on, one_token, (jnp.int32(0), slots))[1]
    return jax.lax.with_sharding_constraint(decoded, _shardings(slots, config, mesh))
