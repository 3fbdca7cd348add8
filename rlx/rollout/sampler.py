"""The sampler's programs: prefill and chunked decode over slots, on token ids.

A slot holds one sequence in flight. `insert` runs P prompts once each, copies their keys/values
into the slots of their samples and samples every first token; `decode` feeds the last tokens back
until `max_steps` tokens are sampled or no slot is active; `rows` extracts finished sequences;
`resume` continues sequences after injected tokens. Slots are independent: a finished one can be
refilled while the others continue. Weights may change between calls: the keys/values of earlier
weights are kept, and each token stores the version that sampled it.

The key of a token is fold_in(fold_in(fold_in(key, serial), sample), token index), so samples do not
depend on slots, chunks or other sequences.

Forced interruption: a sample still thinking at the end of its token budget, drawn from
[think_min, think_max] by the key of token T, gets a phrase injected into its completion; these
tokens have version INJECTED and log-probability 0. `answer_tokens` tokens are left after it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from rlx import mesh as meshes
from rlx.config import ModelConfig
from rlx.models import attention, transformer
from rlx.objectives import logprobs
from rlx.types import INJECTED


class Rules(NamedTuple):
    """Settings common to all samples of a run. With an empty `phrase`, nothing is interrupted."""

    phrase: tuple[int, ...] = ()
    think_end_id: int = -1  # the token with which the policy ends its thinking
    think_min: int = 0
    think_max: int = 0
    answer_tokens: int = 0
    head_dtype: str = "float32"
    routing: bool = False  # record the experts of every token that is fed


class New(NamedTuple):
    """The samples that `insert` starts, by slot; `row_W` is -1 for slots without a new one."""

    row_W: jax.Array  # int32, the prompt of the slot's sample
    serial_W: jax.Array  # int32, of its group
    sample_W: jax.Array  # int32, its index in the group
    limit_W: jax.Array  # int32, most tokens of the completion
    stop_WN: jax.Array  # int32, stop tokens, padded with -1


UNREACHED = 2**30  # a token index that no sample reaches
BLOCK = 128  # words of the vocabulary
# On a GPU: products of few rows by cuBLAS, which also adds the residual. With XLA's own, picked
# without timing, decoding SmolLM2-135M on an H200 takes 10 % longer (docs/results.md). Products of
# one input are not merged: for that, cuBLAS's would copy all experts for every token.
CUBLAS = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_dot_merger_threshold_mb": 0}
CUBLAS_COLUMNS = 8  # it multiplies bfloat16 keys and values in groups of 8 columns


@struct.dataclass
class Slots:
    """The state of the sequences in flight, one row per slot."""

    cache: list[attention.Cache]
    key_W: jax.Array  # of (group serial, sample)
    prompt_W: jax.Array  # int32, tokens of the prompt
    count_W: jax.Array  # int32, tokens sampled or injected so far
    given_W: jax.Array  # int32, end of the injected tokens in token_WT; 0: none
    limit_W: jax.Array  # int32, as in New
    stop_WN: jax.Array  # int32, as in New
    active_W: jax.Array  # bool, neither stopped nor at the length limit
    think_W: jax.Array  # int32, thinking is interrupted after this many tokens
    answer_W: jax.Array  # int32, where the answer starts; UNREACHED while the sample thinks
    token_WT: jax.Array  # int32
    logp_WT: jax.Array  # float32, of the distribution that was sampled
    value_WT: jax.Array  # float32, of the critic before the token; 0 without one
    version_WT: jax.Array  # int32, of the weights that sampled the token
    expert_WTLK: jax.Array | None = None  # int32, routing of the tokens fed; with `routing`


def shardings(slots: Slots, mesh: Mesh) -> Slots:
    """Every array is split over the mesh along its slots, keys and values also along heads."""
    cache = [
        jax.tree.map(lambda x, axes=layer.axes: meshes.sharding(mesh, axes, x.shape), layer)
        for layer in slots.cache
    ]
    layout = jax.tree.map(lambda x: meshes.along(mesh, "slots", x), slots)
    return layout.replace(cache=cache)


def empty(
    config: ModelConfig, slots: int, prompt_tokens: int, max_new_tokens: int, stop_ids: int,
    mesh: Mesh, routing: bool = False,
) -> Slots:  # fmt: skip
    """Slots without sequences. The last sampled token is never fed back, so S = U + T - 1.

    On GPUs S is rounded up, or XLA would pad a copy of the cache for every token.
    stop_ids: number of stop tokens per sample.
    """
    shape, columns = (slots, max_new_tokens), prompt_tokens + max_new_tokens - 1
    if meshes.on_gpus(mesh):
        columns += -columns % CUBLAS_COLUMNS
    chosen = (*shape, len(config.sparse_layers), config.experts_per_token)
    integers_W = functools.partial(jnp.zeros, slots, jnp.int32)

    def nothing() -> Slots:
        return Slots(
            cache=attention.empty(config, slots, columns),
            key_W=jax.random.split(jax.random.key(0), slots),
            prompt_W=integers_W(),
            count_W=integers_W(),
            given_W=integers_W(),
            limit_W=integers_W(),
            stop_WN=jnp.zeros((slots, stop_ids), jnp.int32),
            active_W=jnp.zeros(slots, bool),
            think_W=integers_W(),
            answer_W=integers_W(),
            token_WT=jnp.zeros(shape, jnp.int32),
            logp_WT=jnp.zeros(shape, jnp.float32),
            value_WT=jnp.zeros(shape, jnp.float32),
            version_WT=jnp.zeros(shape, jnp.int32),
            expert_WTLK=jnp.zeros(chosen, jnp.int32) if routing else None,
        )

    layout = shardings(jax.eval_shape(nothing), mesh)
    return jax.jit(nothing, out_shardings=layout)()


def to_arrays(slots: Slots) -> Slots:
    """The same with random keys as integers, for a checkpoint."""
    return slots.replace(key_W=jax.random.key_data(slots.key_W))


def from_arrays(slots: Slots) -> Slots:
    return slots.replace(key_W=jax.random.wrap_key_data(slots.key_W))


def _logits_and_values(params, head_DV, hidden_BD, temperature, rules: Rules):
    head_dtype = jnp.dtype(rules.head_dtype)
    z_BV = logprobs.logits(hidden_BD, head_DV, temperature=temperature, head_dtype=head_dtype)
    has_critic = "value" in params
    return z_BV, transformer.values(params, hidden_BD) if has_critic else jnp.zeros_like(z_BV[:, 0])


def _draw(logits_BV, key_B, in_blocks=False):
    """One token per row from softmax(logits), and its log-probability.

    in_blocks: first a block of BLOCK words, by the blocks' sums of exp(logits), then one of its
    words. That takes V / BLOCK + BLOCK random numbers a row instead of V, and draws other tokens
    of the same distribution.
    """
    choose = jax.vmap(jax.random.categorical)
    if not in_blocks:
        token_B = choose(key_B, logits_BV).astype(jnp.int32)
        return token_B, logprobs.from_logits(logits_BV, token_B)[0]
    B, V = logits_BV.shape
    fill = {"mode": "constant", "constant_values": logprobs.NEVER}
    z_BNv = jnp.pad(logits_BV, ((0, 0), (0, -V % BLOCK)), **fill).reshape(B, -1, BLOCK)
    sum_BN = jax.nn.logsumexp(z_BNv, axis=-1)
    key_B2 = jax.vmap(jax.random.split)(key_B)
    block_B = choose(key_B2[:, 0], sum_BN)
    z_Bv = jnp.take_along_axis(z_BNv, block_B[:, None, None], axis=1)[:, 0]
    word_B = choose(key_B2[:, 1], z_Bv)
    z_B = jnp.take_along_axis(z_Bv, word_B[:, None], axis=1)[:, 0]
    token_B = (block_B * BLOCK + word_B).astype(jnp.int32)
    return token_B, z_B - jax.nn.logsumexp(sum_BN, axis=-1)


def _stops(stop_WN, token_W):
    return jnp.any(token_W[:, None] == stop_WN, axis=1)


def _force(rules: Rules, think_W, answer_W, count_W, given_W, token_W):
    """(token_W, injected_W, answer_W, limit_W) after token `count_W` is sampled or injected.

    Injected tokens before `given_W` neither end thinking nor count as thinking.
    """
    if not rules.phrase:
        return token_W, jnp.zeros(token_W.shape, bool), answer_W, jnp.full_like(count_W, UNREACHED)
    phrase = jnp.array(rules.phrase, jnp.int32)
    out_of_time_W = (answer_W == UNREACHED) & (count_W >= think_W)
    answer_W = jnp.where(out_of_time_W, count_W + len(rules.phrase), answer_W)
    injected_W = (answer_W != UNREACHED) & (count_W < answer_W)
    place_W = jnp.clip(count_W - (answer_W - len(rules.phrase)), 0, len(rules.phrase) - 1)
    token_W = jnp.where(injected_W, phrase[place_W], token_W)
    drawn_W = count_W >= given_W
    ended_W = (answer_W == UNREACHED) & (token_W == rules.think_end_id) & drawn_W
    answer_W = jnp.where(ended_W, count_W + 1, answer_W)
    return token_W, injected_W, answer_W, answer_W + rules.answer_tokens


@functools.partial(jax.jit, static_argnames=("config", "rules", "mesh"), donate_argnames="slots")
def insert(
    params, slots: Slots, prompt_PU, length_P, new: New, key, version, temperature,
    *, config: ModelConfig, rules: Rules, mesh: Mesh,
) -> Slots:  # fmt: skip
    """Start samples of P prompts in the slots of `new`; params: from `published`."""
    T = slots.token_WT.shape[1]
    prefill = meshes.visible(mesh, transformer.prefill)
    hidden_PD, context = prefill(params, config, prompt_PU, length_P)
    head_DV = transformer.head_matrix(params)
    logits_PV, value_P = _logits_and_values(params, head_DV, hidden_PD, temperature, rules)

    # Every slot gathers its new sample, if it has one, so that a mesh can split the slots.
    new_W, p_W = new.row_W >= 0, jnp.maximum(new.row_W, 0)
    group_key_W = jax.vmap(jax.random.fold_in, (None, 0))(key, new.serial_W)
    key_W = jax.vmap(jax.random.fold_in)(group_key_W, new.sample_W)
    first_key_W = jax.vmap(jax.random.fold_in, (0, None))(key_W, 0)
    token_W, logp_W = _draw(logits_PV[p_W], first_key_W, meshes.on_one_gpu(mesh))
    budget_key_W = jax.vmap(jax.random.fold_in, (0, None))(key_W, T)
    draw = lambda key: jax.random.randint(key, (), rules.think_min, rules.think_max + 1)  # noqa: E731
    think_W = jax.vmap(draw)(budget_key_W) if rules.phrase else jnp.zeros_like(token_W)
    thinks_W, zero_W = jnp.full_like(token_W, UNREACHED), jnp.zeros_like(token_W)
    _, _, answer_W, answered_W = _force(rules, think_W, thinks_W, zero_W, zero_W, token_W)
    limit_W = jnp.minimum(answered_W, new.limit_W)

    def fill(x, value):
        return jnp.where(jnp.expand_dims(new_W, range(1, x.ndim)), value, x)

    def fill_first(x_WT, value_W):
        return x_WT.at[:, 0].set(fill(x_WT[:, 0], value_W))

    started = Slots(
        cache=[
            mine.insert(prompt, p_W, new_W)
            for mine, prompt in zip(slots.cache, context, strict=True)
        ],
        key_W=fill(slots.key_W, key_W),
        prompt_W=fill(slots.prompt_W, length_P[p_W]),
        count_W=fill(slots.count_W, 1),
        given_W=fill(slots.given_W, 0),
        limit_W=fill(slots.limit_W, new.limit_W),
        stop_WN=fill(slots.stop_WN, new.stop_WN),
        active_W=fill(slots.active_W, ~_stops(new.stop_WN, token_W) & (limit_W > 1)),
        think_W=fill(slots.think_W, think_W),
        answer_W=fill(slots.answer_W, answer_W),
        token_WT=fill_first(slots.token_WT, token_W),
        logp_WT=fill_first(slots.logp_WT, logp_W),
        value_WT=fill_first(slots.value_WT, value_P[p_W]),
        version_WT=fill_first(slots.version_WT, jnp.full(len(new_W), version, jnp.int32)),
        expert_WTLK=slots.expert_WTLK,
    )
    return jax.lax.with_sharding_constraint(started, shardings(slots, mesh))


@functools.partial(
    jax.jit, static_argnames=("config", "rules", "mesh"), donate_argnames="slots",
    compiler_options=CUBLAS,
)  # fmt: skip
def decode(
    params, slots: Slots, version, temperature, max_steps,
    *, config: ModelConfig, rules: Rules, mesh: Mesh,
) -> Slots:  # fmt: skip
    """Sample up to `max_steps` tokens in every active slot; params: from `published`."""
    W, T = slots.token_WT.shape
    write = jax.vmap(lambda row_T, at, value: row_T.at[at].set(value, mode="drop"))
    version_W = jnp.full(W, version, jnp.int32)
    head_DV = transformer.head_matrix(params)
    if meshes.on_one_gpu(mesh):  # once, not for every token
        head_DV = logprobs.in_parts(head_DV, config.compute_dtype)

    def at_index(x_WT, index_W):
        return jnp.take_along_axis(x_WT, jnp.clip(index_W, 0, T - 1)[:, None], axis=1)[:, 0]

    def one_token(carry):
        step, s = carry
        position_W = s.prompt_W + s.count_W - 1  # dropped if there is no column for it
        run = meshes.visible(mesh, transformer.decode)
        last_W = at_index(s.token_WT, s.count_W - 1)
        at = (s.cache, last_W, position_W, rules.routing)
        hidden_WD, cache, *expert_WLK = run(params, config, *at)
        key_W = jax.vmap(jax.random.fold_in)(s.key_W, s.count_W)
        logits_WV, value_W = _logits_and_values(params, head_DV, hidden_WD, temperature, rules)
        token_W, logp_W = _draw(logits_WV, key_W, meshes.on_one_gpu(mesh))
        token_W, injected_W, answer_W, limit_W = _force(
            rules, s.think_W, s.answer_W, s.count_W, s.given_W, token_W
        )
        given_W = s.count_W < s.given_W
        token_W = jnp.where(given_W, at_index(s.token_WT, s.count_W), token_W)
        injected_W |= given_W
        at_W = jnp.where(s.active_W, s.count_W, T)  # T is outside: idle slots are unchanged
        fed_W = jnp.where(s.active_W, s.count_W - 1, T)
        count_W = s.count_W + s.active_W
        goes_on_W = ~_stops(s.stop_WN, token_W) | injected_W
        return step + 1, s.replace(
            cache=cache,
            count_W=count_W,
            active_W=s.active_W & goes_on_W & (count_W < jnp.minimum(limit_W, s.limit_W)),
            answer_W=jnp.where(s.active_W, answer_W, s.answer_W),
            token_WT=write(s.token_WT, at_W, token_W),
            logp_WT=write(s.logp_WT, at_W, jnp.where(injected_W, 0, logp_W)),
            value_WT=write(s.value_WT, at_W, jnp.where(injected_W, 0, value_W)),
            version_WT=write(s.version_WT, at_W, jnp.where(injected_W, INJECTED, version_W)),
            expert_WTLK=write(s.expert_WTLK, fed_W, *expert_WLK) if rules.routing else None,
        )

    def work_left(carry):
        step, s = carry
        return (step < max_steps) & jnp.any(s.active_W)

    decoded = jax.lax.while_loop(work_left, one_token, (jnp.int32(0), slots))[1]
    return jax.lax.with_sharding_constraint(decoded, shardings(slots, mesh))


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="slots")
def resume(slots: Slots, given_WT, n_W, limit_W, *, mesh: Mesh) -> Slots:
    """Continue sequences after the first n_W tokens of given_WT, which are injected.

    A slot with n_W = 0 is unchanged. Nothing is recomputed. Each turn has the thinking budget of
    the first.
    """
    W, T = slots.token_WT.shape
    on_W, index_WT = n_W > 0, jnp.broadcast_to(jnp.arange(T)[None], (W, T)) - slots.count_W[:, None]
    put_WT = (index_WT >= 0) & (index_WT < n_W[:, None])
    moved_WT = jnp.take_along_axis(given_WT, jnp.clip(index_WT, 0, T - 1), axis=1)
    given_W = slots.count_W + n_W
    on = slots.replace(
        given_W=jnp.where(on_W, given_W, slots.given_W),
        think_W=jnp.where(on_W, given_W + slots.think_W - slots.given_W, slots.think_W),
        answer_W=jnp.where(on_W, UNREACHED, slots.answer_W),
        limit_W=jnp.where(on_W, limit_W, slots.limit_W),
        active_W=slots.active_W | on_W,
        token_WT=jnp.where(put_WT, moved_WT, slots.token_WT),
    )
    return jax.lax.with_sharding_constraint(on, shardings(slots, mesh))


def arrays(slots: Slots) -> tuple[jax.Array, ...]:
    """(tokens, log-probabilities, values, versions), [W, T] each, and the routing if recorded."""
    always = slots.token_WT, slots.logp_WT, slots.value_WT, slots.version_WT
    return always if slots.expert_WTLK is None else (*always, slots.expert_WTLK)


@jax.jit
def rows(slots: Slots, slot_N) -> tuple[jax.Array, ...]:
    """The same of the given slots, [N, T, ...] each."""
    return tuple(x_WT[slot_N] for x_WT in arrays(slots))
