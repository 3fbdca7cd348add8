"""One update of the policy: advantages -> objective -> weights -> gradient -> AdamW.

    objective(theta) = sum_bt  weight_bt * obj_bt(theta)

The weights and the advantages are computed once, on the whole batch, and the objective is linear
in the weights; so the gradient is the same for any microbatch, padding or mesh, and slices of the
batch simply add. Prompts that count are moved to the front and slices behind them are skipped:
a filtered prompt costs its generation, not its share of the update.

An update whose objective or gradient is not finite leaves parameters and moments as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from rlx import mesh as meshes
from rlx.config import Config, ModelConfig
from rlx.models import attention, lora, moe, transformer
from rlx.objectives.advantages import advantages, gae, whitened, zero_variance
from rlx.objectives.logprobs import log_partition
from rlx.objectives.losses import policy_objective
from rlx.objectives.terms import correction, kl, value_loss
from rlx.objectives.weights import weights
from rlx.train import forward, packing, recipe
from rlx.train.recipe import Hyper
from rlx.types import Batch, Group, Params, TrainState, right_padded

# What a slice reports: sums over its tokens, and maxima.
ZERO_SUMS = dict.fromkeys(
    (
        "objective",
        "tokens",
        "policy/entropy",
        "policy/logp_gap_mean",
        "policy/clipped_share",
        "policy/kl",
        "critic/loss",
    ),
    0.0,
)
ZERO_MAXIMA = dict.fromkeys(
    ("policy/logp_gap_max", "policy/ratio_max", "policy/inverse_ratio_max"), 0.0
)


@struct.dataclass
class Targets:
    """What the tokens of a batch are to be moved by; constants of the objective, [B, T] or [B]."""

    adv_BT: jax.Array
    weight_BT: jax.Array
    ref_logp_BT: jax.Array  # 0 without a reference
    return_BT: jax.Array  # what the critic should have said; 0 without one
    share_B: jax.Array  # of a sequence in the mean over those that count


class Spec(NamedTuple):
    """The static half of a step: names and shapes. Runs that share it share a compilation."""

    model: ModelConfig
    loss: str
    advantage: str
    critic: bool
    aggregation: str
    correction: str
    kl: str
    entropy_bonus: bool
    drop_zero_variance: bool
    microbatches: int
    group_slices: int
    vocab_chunk: int
    head_dtype: str
    mesh: Mesh


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
    optim = config.optim
    fields = {**vars(config.algo), **vars(optim), **vars(config.rollout)}
    fields["lora_scale"] = optim.lora_alpha / max(optim.lora_rank, 1)
    return Hyper(**{name: float(fields[name]) for name in Hyper._fields})


def names(config: Config, mesh: Mesh) -> Spec:
    fields = {**vars(config.optim), **vars(config.algo), "mesh": mesh}
    fields["model"] = attention.chosen(config.model, mesh)
    fields["critic"] = recipe.has_critic(config.algo)
    fields["entropy_bonus"] = config.algo.entropy_coef > 0
    fields["drop_zero_variance"] = config.algo.zero_variance == "drop"
    return Spec(**{name: fields[name] for name in Spec._fields})


def _place(state: TrainState, mesh: Mesh) -> TrainState:
    """Shardings of a state: moments like their parameters, scalars everywhere."""
    axes = lora.logical_axes(state.params)
    like_params = jax.tree.structure(state.params)

    def place(tree):
        if jax.tree.structure(tree) == like_params:
            return meshes.of_params(mesh, tree, axes)
        return jax.tree.map(lambda x: meshes.sharding(mesh, (), ()), tree)

    is_params = lambda tree: jax.tree.structure(tree) == like_params  # noqa: E731
    return jax.tree.map(place, state, is_leaf=is_params)


def init_state(config: Config, mesh: Mesh, params: Params, value_head: bool = False) -> TrainState:
    """Version 0, laid out on the mesh; the caller's arrays are copied, since the step donates.

    `state.params` is what is trained: all of `params`, or adapters to them, and a critic or
    another `value_head`.
    """

    layout = meshes.of_params(mesh, params, lora.logical_axes(params))
    params = jax.device_put(params, layout, may_alias=False)
    like = state_like(config, mesh, params, value_head)
    begin = jax.jit(
        functools.partial(_begin, config, value_head),
        out_shardings=jax.tree.map(lambda x: x.sharding, like),
    )
    return begin(params)


def _begin(config: Config, value_head: bool, params: Params) -> TrainState:
    key, rank = jax.random.key(config.seed), config.optim.lora_rank
    trained = lora.init(key, params, rank) if rank else params
    if value_head or recipe.has_critic(config.algo):
        trained = {**trained, "value": transformer.with_critic(params)["value"]}
    opt_state = optimizer(numbers(config), 0).init(trained)
    return TrainState(params=trained, opt_state=opt_state, version=jnp.zeros((), jnp.int32))


def state_like(config: Config, mesh: Mesh, params: Params, value_head=False) -> TrainState:
    """Shapes and shardings of `init_state`, of parameters that may be shapes too."""
    state = jax.eval_shape(functools.partial(_begin, config, value_head), params)
    return meshes.shapes(state, _place(state, mesh))


def ascend(state: TrainState, grads, objective, hyper: Hyper, mesh: Mesh, learns=True):
    """(state, norm of the gradient, whether all is finite): the next version.

    It is moved if objective and gradient are finite. If they are and it says no all the same, the
    move itself has spoilt parameters or moments, for good.
    """
    descent = jax.tree.map(jnp.negative, grads)  # the objective is maximised
    moving = optimizer(hyper, state.version, learns)
    updates, opt_state = moving.update(descent, state.opt_state, state.params)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(objective) & jnp.isfinite(grad_norm)
    moved = (optax.apply_updates(state.params, updates), opt_state)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), moved, (state.params, state.opt_state)
    )
    parts = jax.tree.leaves((params, opt_state))  # NaN and infinity survive a sum
    finite &= jnp.isfinite(sum(jnp.sum(x, dtype=jnp.float32) for x in parts))
    state = TrainState(params=params, opt_state=opt_state, version=state.version + 1)
    return jax.lax.with_sharding_constraint(state, _place(state, mesh)), grad_norm, finite


def collate(groups: Sequence[Group], prompt_tokens: int, pad_id: int, pack=False) -> Batch:
    """P graded groups as arrays; prompts padded on the left to `prompt_tokens`."""
    prompt_PU, length_P = right_padded([g.prompt_U for g in groups], prompt_tokens, pad_id)
    completion_BT = np.concatenate([group.completion_GT for group in groups])
    T = completion_BT.shape[1]
    return Batch(
        packed_PRW=packing.packed([group.length_G for group in groups], T) if pack else None,
        prompt_PU=prompt_PU,
        prompt_length_P=length_P,
        completion_BT=completion_BT.astype(np.int32),
        mask_BT=np.concatenate([group.sampled_GT for group in groups]).astype(np.float32),
        behavior_logp_BT=np.concatenate([group.behavior_logp_GT for group in groups]),
        behavior_value_BT=np.concatenate([group.behavior_value_GT for group in groups]),
        reward_PG=np.stack([group.reward_G for group in groups]).astype(np.float32),
        keep_P=np.ones(len(groups), np.float32),
    )


def _policy(params, batch: Batch, hyper: Hyper, spec: Spec):
    """rlx.train.forward.policy of the learner, or of a reference."""
    options = {name: getattr(spec, name) for name in ("model", "mesh", "vocab_chunk", "head_dtype")}
    return forward.policy(params, batch, hyper.temperature, **options)


def _objective_BT(params, batch: Batch, to: Targets, hyper: Hyper, spec: Spec):
    """(obj_BT, info): the policy's objective and every term beside it, token by token."""
    logp_BT, entropy_BT, value_BT, first_BD, routed = _policy(params, batch, hyper, spec)
    mask_BT, behavior_logp_BT, adv_BT = batch.mask_BT, batch.behavior_logp_BT, to.adv_BT
    there = hyper._asdict() | {"ref_logp_BT": to.ref_logp_BT}
    there["reward_B"] = batch.reward_PG.reshape(-1)
    if "log_partition_B" in recipe.asked(spec.loss):
        there["log_partition_B"] = log_partition(
            first_BD,
            transformer.head_matrix(params),
            temperature=hyper.temperature,
            head_dtype=jnp.dtype(spec.head_dtype),
        )
    zero_BT = jnp.zeros_like(logp_BT)
    info = {"logp_BT": logp_BT, "entropy_BT": entropy_BT, "kl_BT": zero_BT, "value_BT": zero_BT}

    if spec.correction == "none":
        obj_BT, ratio = policy_objective(
            spec.loss, logp_BT, behavior_logp_BT, adv_BT, mask_BT, **there
        )
    else:  # the loss between the learner's weights, times a weight for those that sampled
        now_BT = jax.lax.stop_gradient(logp_BT)
        obj_BT, _ = policy_objective(spec.loss, logp_BT, now_BT, adv_BT, mask_BT, **there)
        _, ratio = policy_objective("reinforce", logp_BT, behavior_logp_BT, adv_BT, mask_BT)
        weight_BT, ratio["clipped_BT"] = correction(
            logp_BT, behavior_logp_BT, mask_BT, kind=spec.correction, cap=hyper.correction_cap
        )
        obj_BT = weight_BT * obj_BT

    if spec.kl in ("k2", "k3"):
        info["kl_BT"] = kl(logp_BT, to.ref_logp_BT, mask_BT, kind=spec.kl)
        obj_BT -= hyper.kl_coef * info["kl_BT"]
    elif spec.kl == "k1_reward":
        info["kl_BT"] = kl(logp_BT, to.ref_logp_BT, mask_BT, kind="k1")
    if spec.entropy_bonus:
        obj_BT += hyper.entropy_coef * jnp.where(mask_BT > 0, entropy_BT, 0)
    if spec.critic:
        info["value_BT"] = value_loss(
            value_BT,
            batch.behavior_value_BT,
            to.return_BT,
            mask_BT,
            clip=hyper.value_clip,
        )
        obj_BT -= hyper.value_coef * info["value_BT"]
    return obj_BT, info | ratio | {"routed": routed}


def _slice_objective(params, batch: Batch, to: Targets, hyper: Hyper, spec: Spec):
    """The slice's part of the objective, and the sums and maxima that metrics are made of."""
    obj_BT, info = _objective_BT(params, batch, to, hyper, spec)
    mask_BT = batch.mask_BT
    gap_BT = jnp.where(mask_BT > 0, jnp.abs(info["logp_BT"] - batch.behavior_logp_BT), 0)
    sums = {
        "tokens": jnp.sum(mask_BT),
        "policy/entropy": jnp.sum(info["entropy_BT"] * mask_BT),
        "policy/logp_gap_mean": jnp.sum(gap_BT),
        "policy/clipped_share": jnp.sum(info["clipped_BT"]),
        "policy/kl": jnp.sum(info["kl_BT"]),
        "critic/loss": jnp.sum(info["value_BT"]),
    }
    maxima = {
        "policy/logp_gap_max": jnp.max(gap_BT),
        "policy/ratio_max": jnp.max(info["ratio_BT"]),
        "policy/inverse_ratio_max": jnp.max(1 / info["ratio_BT"]),
    }
    objective = jnp.sum(to.weight_BT * obj_BT)
    if info["routed"]:  # of the tokens whose successor is learned
        aux_B, load_LE = moe.balance(info["routed"], mask_BT[:, 1:])
        sums |= {"router/aux": jnp.sum(to.share_B * aux_B), "router/load": load_LE}
        objective -= spec.model.router_aux_coef * sums["router/aux"]
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


def _in_slices(tree, prompts: int, spec: Spec):
    """[slices, rows, ...] of arrays [P, ...] and [B, ...]: a slice is spread over the whole mesh.

    A slice of prompts is cut again into parts of each of its groups, to which the prompts go along.
    """
    M, K = spec.microbatches, spec.group_slices

    def cut(x):
        if len(x) == prompts:
            rows = jnp.repeat(x.reshape(M, -1, *x.shape[1:]), K, axis=0)
        else:
            parts = x.reshape(M, prompts // M, K, -1, *x.shape[1:]).swapaxes(1, 2)
            rows = parts.reshape(M * K, -1, *x.shape[1:])
        return jax.lax.with_sharding_constraint(rows, meshes.along(spec.mesh, "prompts", rows, 1))

    return jax.tree.map(cut, tree)


def _reference_logp(reference, batch: Batch, hyper: Hyper, spec: Spec):
    """ref_logp_BT, slice by slice; 0 without a reference."""
    shape, P = batch.behavior_logp_BT.shape, len(batch.keep_P)
    if reference is None:
        return jnp.zeros_like(batch.behavior_logp_BT)
    one = lambda part: _policy(reference, part, hyper, spec)[0]  # noqa: E731
    logp = jax.lax.map(one, _in_slices(batch, P, spec))
    cut = (spec.microbatches, spec.group_slices, P // spec.microbatches, -1, shape[1])
    return logp.reshape(cut).swapaxes(1, 2).reshape(shape)


def _targets(batch: Batch, ref_logp_BT, hyper: Hyper, spec: Spec) -> Targets:
    """Advantages, weights and returns, of the whole batch at once."""
    P, G = batch.reward_PG.shape
    B, T = mask_shape = batch.mask_BT.shape
    mask_BT, reward_PG = batch.mask_BT, batch.reward_PG
    penalty_BT = jnp.zeros(mask_shape)
    if spec.kl == "k1_reward":  # of the policy that sampled, as the samples are
        penalty_BT = -hyper.kl_coef * kl(batch.behavior_logp_BT, ref_logp_BT, mask_BT, kind="k1")
    if spec.critic:
        at_BT = jnp.arange(T)[None] * jnp.ones((B, 1), jnp.int32)
        last_B1 = jnp.max(jnp.where(mask_BT > 0, at_BT, -1), axis=1, keepdims=True)
        reward_BT = penalty_BT + jnp.where(at_BT == last_B1, reward_PG.reshape(B, 1), 0)
        adv_BT, return_BT = gae(
            batch.behavior_value_BT, reward_BT, mask_BT, gamma=hyper.gamma, lam=hyper.gae_lambda
        )
        adv_BT = whitened(adv_BT, mask_BT, eps=hyper.advantage_eps)
    else:
        reward_PG = reward_PG + jnp.sum(penalty_BT, axis=1).reshape(P, G)
        adv_PG = advantages(reward_PG, batch.keep_P, kind=spec.advantage, eps=hyper.advantage_eps)
        adv_BT = jnp.broadcast_to(adv_PG.reshape(B, 1), mask_shape)
        return_BT = jnp.zeros(mask_shape)
    prompt_B = jnp.repeat(jnp.arange(P), G)
    weight_BT = weights(
        mask_BT, prompt_B, kind=spec.aggregation, length=hyper.max_new_tokens, n_prompts=P
    )
    share_B = jnp.repeat(batch.keep_P / jnp.maximum(jnp.sum(batch.keep_P), 1), G) / G
    return Targets(adv_BT, weight_BT, ref_logp_BT, return_BT, share_B)


def _train_step(state: TrainState, batch: Batch, base, reference, hyper: Hyper, *, spec: Spec):
    """(state, batch) -> (state, metrics), pure."""
    whole = lambda params: lora.merged(base, params, hyper.lora_scale) if base else params  # noqa: E731
    keep_P = batch.keep_P
    if spec.drop_zero_variance:
        keep_P = keep_P * ~zero_variance(batch.reward_PG)
    batch = _kept_first(batch, keep_P)
    targets = _targets(batch, _reference_logp(reference, batch, hyper, spec), hyper, spec)
    P = len(batch.keep_P)
    by_sample = batch.replace(reward_PG=batch.reward_PG.reshape(-1))
    slices = _in_slices((by_sample, targets), P, spec)

    def add_slice(i, total):
        part = jax.tree.map(lambda x: x[i], slices)
        objective = lambda params: _slice_objective(whole(params), *part, hyper, spec)  # noqa: E731
        grads, (sums, maxima) = jax.grad(objective, has_aux=True)(state.params)
        grads, sums = jax.tree.map(jnp.add, total[:2], (grads, sums))
        return grads, sums, jax.tree.map(jnp.maximum, total[2], maxima)

    kept = jnp.sum(batch.keep_P)
    used = jnp.ceil(kept * spec.microbatches / P).astype(jnp.int32) * spec.group_slices
    has_routers = spec.model.n_experts and batch.completion_BT.shape[1] > 1
    zero_sums = ZERO_SUMS | (moe.zero_balance(spec.model) if has_routers else {})
    zeros = (jax.tree.map(jnp.zeros_like, state.params), zero_sums, dict(ZERO_MAXIMA))
    grads, sums, maxima = jax.lax.fori_loop(0, used, add_slice, zeros)

    tokens, objective = sums.pop("tokens"), sums.pop("objective")
    balance = moe.pop_balance(sums) if has_routers else {}
    state, grad_norm, finite = ascend(state, grads, objective, hyper, spec.mesh, learns=used > 0)
    metrics = {
        "objective": objective,
        "tokens_trained": tokens,
        "grad_norm": grad_norm,
        "prompts_kept": kept,
        "update/skipped": 1 - finite.astype(jnp.float32),
        **{name: total / jnp.maximum(tokens, 1) for name, total in sums.items()},
        **maxima,
        **balance,
    }
    return state, metrics


jitted_step = jax.jit(_train_step, static_argnames="spec", donate_argnames="state")


def make_train_step(config: Config, mesh: Mesh, start: Params | None = None):
    """The jitted (state, batch) -> (state, metrics) of a configuration.

    start: the parameters that adapters change, and that a KL term or the Bellman residual compares
    with; laid out on the mesh here. ValueError if they are needed and missing.
    """
    algo, optim, spec = config.algo, config.optim, names(config, mesh)
    hyper = numbers(config)
    if recipe.needs_reference(algo) or optim.lora_rank:
        if start is None:
            what = f"algo.kl={algo.kl}, algo.loss={algo.loss}, optim.lora_rank={optim.lora_rank}"
            raise ValueError(f"start=None: {what}; give params")
        layout = meshes.of_params(mesh, start, lora.logical_axes(start))
        start = jax.device_put(start, layout)
    base = start if optim.lora_rank else None
    reference = start if recipe.needs_reference(algo) else None

    def train_step(state: TrainState, batch: Batch):
        batch = jax.tree.map(lambda x: jax.device_put(x, meshes.along(mesh, "prompts", x)), batch)
        return jitted_step(state, batch, base, reference, hyper, spec=spec)

    return train_step
