"""Targets of the objective: advantages, weights and returns, constants computed before it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from rlx.objectives.advantages import (
    advantages,
    clipped_by_covariance,
    gae,
    towards_teacher,
    whitened,
)
from rlx.objectives.terms import kl
from rlx.objectives.weights import weights
from rlx.train import forward
from rlx.train.batch import in_slices
from rlx.train.recipe import Hyper
from rlx.train.spec import Spec
from rlx.types import Batch, Params


@struct.dataclass
class Targets:
    """[B, T] or [B]."""

    adv_BT: jax.Array
    weight_BT: jax.Array
    ref_logp_BT: jax.Array  # 0 without a reference
    return_BT: jax.Array  # target of the critic; 0 without one
    share_B: jax.Array  # weight of a sequence in a mean over kept sequences


def logp_of(params: Params | None, batch: Batch, hyper: Hyper, spec: Spec):
    """logp_BT under a policy that is not trained, slice by slice; 0 if params is None."""
    shape, P = batch.behavior_logp_BT.shape, len(batch.keep_P)
    if params is None:
        return jnp.zeros_like(batch.behavior_logp_BT)
    batch = batch.replace(expert_BTLK=None)  # its own routing
    one = lambda part: forward.policy(params, part, hyper.temperature, **spec.forward)[0]  # noqa: E731
    slices = in_slices(batch, P, spec.microbatches, spec.mesh, spec.group_slices)
    logp = jax.lax.map(one, slices)
    cut = (spec.microbatches, spec.group_slices, P // spec.microbatches, -1, shape[1])
    return logp.reshape(cut).swapaxes(1, 2).reshape(shape)


def targets(
    batch: Batch,
    reference: Params | None,
    teacher: Params | None,
    version,
    hyper: Hyper,
    spec: Spec,
) -> Targets:
    """The targets of the whole batch."""
    ref_logp_BT = logp_of(reference, batch, hyper, spec)
    P, G = batch.reward_PG.shape
    B, T = mask_shape = batch.mask_BT.shape
    mask_BT, reward_PG = batch.mask_BT, batch.reward_PG
    penalty_BT = jnp.zeros(mask_shape)
    if spec.kl == "k1_reward":  # under the policy that sampled
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
    if spec.teacher:
        teacher_logp_BT = logp_of(teacher, batch, hyper, spec._replace(model=spec.teacher))
        teacher_adv_BT = towards_teacher(teacher_logp_BT, batch.behavior_logp_BT, mask_BT)
        adv_BT += hyper.teacher_coef * teacher_adv_BT
    if spec.covariance_clip:
        key = jax.random.key(jnp.asarray(hyper.seed).astype(jnp.uint32))
        key = jax.random.fold_in(key, version)
        bounds = {"low": hyper.covariance_low, "high": hyper.covariance_high}
        adv_BT = clipped_by_covariance(
            adv_BT, batch.behavior_logp_BT, mask_BT, key, share=hyper.covariance_share, **bounds
        )
    prompt_B = jnp.repeat(jnp.arange(P), G)
    weight_BT = weights(
        mask_BT, prompt_B, kind=spec.aggregation, length=hyper.max_new_tokens, n_prompts=P
    )
    share_B = jnp.repeat(batch.keep_P / jnp.maximum(jnp.sum(batch.keep_P), 1), G) / G
    return Targets(adv_BT, weight_BT, ref_logp_BT, return_BT, share_B)
