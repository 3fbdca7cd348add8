"""One update of the policy: advantages -> objective -> weights -> gradient -> AdamW.

    objective(theta) = sum_bt  weight_bt * obj_bt(theta)

The weights and the advantages are computed once, on the whole batch, and the objective is linear
in the weights; so the gradient is the same for any microbatch, padding or mesh, and slices of the
batch simply add. Prompts that count are moved to the front and slices behind them are skipped:
a filtered prompt costs its generation, not its share of the update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from rlx import mesh as meshes
from rlx.config import Config, ModelConfig
from rlx.models import transformer
from rlx.objectives.advantages import advantages, zero_variance
from rlx.objectives.logprobs import token_logprobs
from rlx.objectives.losses import policy_objective
from rlx.objectives.weights import weights
from rlx.types import Batch, Group, Params, TrainState, left_padded

# What a slice reports: sums over its tokens, and maxima.
ZERO_SUMS = dict.fromkeys(
    ("objective", "tokens", "policy/entropy", "policy/logp_gap_mean", "policy/clipped_share"), 0.0
)
ZERO_MAXIMA = dict.fromkeys(
    ("policy/logp_gap_max", "policy/ratio_max", "policy/inverse_ratio_max"), 0.0
)


class Spec(NamedTuple):
    """The static half of a step: names and shapes. Runs that share it share a compilation."""

    model: ModelConfig
    loss: str
    advantage: str
    aggregation: str
    filter_zero_variance: bool
    microbatches: int
    vocab_chunk: int
    mesh: Mesh


class Hyper(NamedTuple):
    """The numeric half, traced."""

    clip_low: float
    clip_high: float
    is_cap: float
    advantage_eps: float
    temperature: float
    max_new_tokens: float
    learning_rate: float
    warmup_steps: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    max_grad_norm: float


def optimizer(hyper: Hyper, version, learns=True) -> optax.GradientTransformation:
    """Clip the global norm, then AdamW; rate = learning_rate * min(1, (version + 1) / warmup).

    The rate is 0 where there is nothing to learn from: momentum alone moves nothing.
    """
    warmup = jnp.maximum(hyper.warmup_steps, 1)
    rate = hyper.learning_rate * jnp.minimum(1.0, (version + 1) / warmup) * learns
    adamw = optax.adamw(
        rate, b1=hyper.beta1, b2=hyper.beta2, eps=hyper.eps, weight_decay=hyper.weight_decay
    )
    return optax.chain(optax.clip_by_global_norm(hyper.max_grad_norm), adamw)


def numbers(config: Config) -> Hyper:
    fields = {**vars(config.algo), **vars(config.optim), **vars(config.rollout)}
    return Hyper(**{name: float(fields[name]) for name in Hyper._fields})


def _place(state: TrainState, mesh: Mesh) -> TrainState:
    """Shardings of a state: moments like their parameters, scalars everywhere."""
    axes = transformer.logical_axes(state.params)
    like_params = jax.tree.structure(state.params)

    def place(tree):
        if jax.tree.structure(tree) == like_params:
            return meshes.of_params(mesh, tree, axes)
        return jax.tree.map(lambda x: meshes.sharding(mesh, (), ()), tree)

    is_params = lambda tree: jax.tree.structure(tree) == like_params  # noqa: E731
    return jax.tree.map(place, state, is_leaf=is_params)


def init_state(config: Config, mesh: Mesh, params: Params) -> TrainState:
    """Version 0, laid out on the mesh; the caller's arrays are copied, since the step donates."""
    opt_state = optimizer(numbers(config), 0).init(params)
    state = TrainState(params=params, opt_state=opt_state, version=jnp.zeros((), jnp.int32))
    return jax.device_put(state, _place(state, mesh), may_alias=False)


def collate(groups: Sequence[Group], prompt_tokens: int, pad_id: int) -> Batch:
    """P graded groups as arrays; prompts padded on the left to `prompt_tokens`."""
    prompt_PU, length_P = left_padded([g.prompt_U for g in groups], prompt_tokens, pad_id)
    length_B = np.concatenate([group.length_G for group in groups])
    completion_BT = np.concatenate([group.completion_GT for group in groups])
    mask_BT = np.arange(completion_BT.shape[1]) < length_B[:, None]
    return Batch(
        prompt_PU=prompt_PU,
        prompt_length_P=length_P,
        completion_BT=np.where(mask_BT, completion_BT, pad_id).astype(np.int32),
        mask_BT=mask_BT.astype(np.float32),
        behavior_logp_BT=np.concatenate([group.behavior_logp_GT for group in groups]),
        reward_PG=np.stack([group.reward_G for group in groups]).astype(np.float32),
        keep_P=np.ones(len(groups), np.float32),
    )


def completion_logprobs(params, batch: Batch, temperature, *, model: ModelConfig, vocab_chunk=0):
    """log pi(token) and entropy of every completion token, [B, T], in nats.

    The prompt runs once per group; token 0 is predicted by its last hidden state, token t by the
    hidden state of token t - 1.
    """
    B, T = batch.completion_BT.shape
    length_P = batch.prompt_length_P
    hidden_PD, context = transformer.prefill(params, model, batch.prompt_PU, length_P)
    hidden_BTD = jnp.repeat(hidden_PD, B // length_P.shape[0], axis=0)[:, None]
    if T > 1:
        later_BTD = transformer.extend(
            params, model, context, length_P, batch.completion_BT[:, :-1]
        )
        hidden_BTD = jnp.concatenate([hidden_BTD, later_BTD], axis=1)
    logp_N, entropy_N = token_logprobs(
        hidden_BTD.reshape(B * T, -1),
        transformer.head_matrix(params),
        batch.completion_BT.reshape(B * T),
        temperature=temperature,
        vocab_chunk=vocab_chunk,
        head_dtype=jnp.dtype(model.head_dtype),
    )
    return logp_N.reshape(B, T), entropy_N.reshape(B, T)


def _slice_objective(params, batch: Batch, adv_BT, weight_BT, hyper: Hyper, spec: Spec):
    """The slice's part of the objective, and the sums and maxima that metrics are made of."""
    logp_BT, entropy_BT = completion_logprobs(
        params, batch, hyper.temperature, model=spec.model, vocab_chunk=spec.vocab_chunk
    )
    clip = {name: getattr(hyper, name) for name in ("clip_low", "clip_high", "is_cap")}
    mask_BT = batch.mask_BT
    obj_BT, info = policy_objective(
        spec.loss, logp_BT, batch.behavior_logp_BT, adv_BT, mask_BT, **clip
    )
    gap_BT = jnp.where(mask_BT > 0, jnp.abs(logp_BT - batch.behavior_logp_BT), 0)
    sums = {
        "tokens": jnp.sum(mask_BT),
        "policy/entropy": jnp.sum(entropy_BT * mask_BT),
        "policy/logp_gap_mean": jnp.sum(gap_BT),
        "policy/clipped_share": jnp.sum(info["clipped_BT"]),
    }
    maxima = {
        "policy/logp_gap_max": jnp.max(gap_BT),
        "policy/ratio_max": jnp.max(info["ratio_BT"]),
        "policy/inverse_ratio_max": jnp.max(1 / info["ratio_BT"]),
    }
    objective = jnp.sum(weight_BT * obj_BT)
    return objective, ({"objective": objective, **sums}, maxima)


def _kept_first(batch: Batch, keep_P):
    """The batch with prompts that count in front, and everything else of the rest masked."""
    order_P = jnp.argsort(1 - keep_P, stable=True)
    P, G = batch.reward_PG.shape

    def reorder(x):
        rows = x.reshape(P, -1, *x.shape[1:]) if x.shape[0] == P * G else x
        return rows[order_P].reshape(x.shape)

    batch = jax.tree.map(reorder, batch.replace(keep_P=keep_P))
    return batch.replace(mask_BT=batch.mask_BT * jnp.repeat(batch.keep_P, G)[:, None])


def _train_step(state: TrainState, batch: Batch, hyper: Hyper, *, spec: Spec):
    """(state, batch) -> (state, metrics), pure."""
    P, G = batch.reward_PG.shape
    B, T = batch.completion_BT.shape
    keep_P = batch.keep_P
    if spec.filter_zero_variance:
        keep_P = keep_P * ~zero_variance(batch.reward_PG)
    batch = _kept_first(batch, keep_P)
    adv_PG = advantages(batch.reward_PG, batch.keep_P, kind=spec.advantage, eps=hyper.advantage_eps)
    adv_BT = jnp.broadcast_to(adv_PG.reshape(B, 1), (B, T))
    prompt_B = jnp.repeat(jnp.arange(P), G)
    weight_BT = weights(
        batch.mask_BT,
        prompt_B,
        kind=spec.aggregation,
        length=hyper.max_new_tokens,
        n_prompts=P,
    )

    def in_slices(x):  # [slices, rows, ...]: each slice is spread over the whole mesh
        rows = x.reshape(spec.microbatches, -1, *x.shape[1:])
        return jax.lax.with_sharding_constraint(rows, meshes.along(spec.mesh, "prompts", rows, 1))

    slices = jax.tree.map(in_slices, (batch, adv_BT, weight_BT))

    def add_slice(i, total):
        part = jax.tree.map(lambda x: x[i], slices)
        differentiate = jax.grad(_slice_objective, has_aux=True)
        grads, (sums, maxima) = differentiate(state.params, *part, hyper, spec)
        grads, sums = jax.tree.map(jnp.add, total[:2], (grads, sums))
        return grads, sums, jax.tree.map(jnp.maximum, total[2], maxima)

    used = jnp.ceil(jnp.sum(batch.keep_P) * spec.microbatches / P).astype(jnp.int32)
    zeros = (jax.tree.map(jnp.zeros_like, state.params), dict(ZERO_SUMS), dict(ZERO_MAXIMA))
    grads, sums, maxima = jax.lax.fori_loop(0, used, add_slice, zeros)

    descent = jax.tree.map(jnp.negative, grads)  # the objective is maximised
    moving = optimizer(hyper, state.version, learns=used > 0)
    updates, opt_state = moving.update(descent, state.opt_state, state.params)
    tokens = sums.pop("tokens")
    objective = sums.pop("objective")
    metrics = {
        "objective": objective,
        "tokens_trained": tokens,
        "grad_norm": optax.tree.norm(grads),
        "prompts_kept": jnp.sum(batch.keep_P),
        **{name: total / jnp.maximum(tokens, 1) for name, total in sums.items()},
        **maxima,
    }
    state = TrainState(
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        version=state.version + 1,
    )
    return jax.lax.with_sharding_constraint(state, _place(state, spec.mesh)), metrics


_jitted_step = jax.jit(_train_step, static_argnames="spec", donate_argnames="state")


def make_train_step(config: Config, mesh: Mesh):
    """The jitted (state, batch) -> (state, metrics) of a configuration."""
    algo, optim = config.algo, config.optim
    spec = Spec(
        model=config.model,
        loss=algo.loss,
        advantage=algo.advantage,
        aggregation=algo.aggregation,
        filter_zero_variance=algo.filter_zero_variance,
        microbatches=optim.microbatches,
        vocab_chunk=optim.vocab_chunk,
        mesh=mesh,
    )
    hyper = numbers(config)

    def train_step(state: TrainState, batch: Batch):
        batch = jax.tree.map(lambda x: jax.device_put(x, meshes.along(mesh, "prompts", x)), batch)
        return _jitted_step(state, batch, hyper, spec=spec)

    return train_step
