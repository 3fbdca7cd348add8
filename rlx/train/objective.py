"""The objective of a slice of the batch: weighted sum over tokens of a loss and further terms."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlx.models import moe, transformer
from rlx.objectives import mismatch
from rlx.objectives.logprobs import log_partition
from rlx.objectives.losses import policy_objective
from rlx.objectives.terms import correction, kl, value_loss
from rlx.train import forward, recipe
from rlx.train.recipe import Hyper
from rlx.train.spec import Spec
from rlx.train.targets import Targets
from rlx.types import Batch

# Metrics of a slice: sums over its tokens, and maxima.
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


def nothing(batch: Batch, spec: Spec):
    """(sums, maxima) to start from."""
    has_routers = spec.model.n_experts and batch.completion_BT.shape[1] > 1
    replay = batch.expert_BTLK is not None
    balance = moe.zero_balance(spec.model, replay) if has_routers else {}
    return ZERO_SUMS | mismatch.zero_sums() | balance, dict(ZERO_MAXIMA)


def metrics_of(sums, maxima, spec: Spec):
    """Metrics from the sums and maxima over all slices; sums over tokens become means."""
    sums = dict(sums)
    tokens, value = sums.pop("tokens"), sums.pop("objective")
    metrics = {"objective": value, "tokens_trained": tokens, **mismatch.pop(sums, tokens)}
    if "router/load" in sums:
        metrics |= moe.pop_balance(sums, spec.model.experts_per_token)
    means = {name: total / jnp.maximum(tokens, 1) for name, total in sums.items()}
    return metrics | means | maxima


def _objective_BT(params, batch: Batch, targets: Targets, hyper: Hyper, spec: Spec):
    """(obj_BT, info): the policy loss and all other terms, per token."""
    logp_BT, entropy_BT, value_BT, first_BD, routed = forward.policy(
        params, batch, hyper.temperature, **spec.forward
    )
    mask_BT, behavior_logp_BT, adv_BT = batch.mask_BT, batch.behavior_logp_BT, targets.adv_BT
    given = hyper._asdict() | {"ref_logp_BT": targets.ref_logp_BT}
    given["reward_B"] = batch.reward_PG.reshape(-1)
    if "log_partition_B" in recipe.inputs(spec.loss):
        given["log_partition_B"] = log_partition(
            first_BD,
            transformer.head_matrix(params),
            temperature=hyper.temperature,
            head_dtype=jnp.dtype(spec.head_dtype),
        )
    zero_BT = jnp.zeros_like(logp_BT)
    info = {"logp_BT": logp_BT, "entropy_BT": entropy_BT, "kl_BT": zero_BT, "value_BT": zero_BT}

    if spec.correction == "none":
        obj_BT, ratio = policy_objective(
            spec.loss, logp_BT, behavior_logp_BT, adv_BT, mask_BT, **given
        )
    else:  # the loss relative to the learner's weights, times an off-policy correction
        now_BT = jax.lax.stop_gradient(logp_BT)
        obj_BT, _ = policy_objective(spec.loss, logp_BT, now_BT, adv_BT, mask_BT, **given)
        _, ratio = policy_objective("reinforce", logp_BT, behavior_logp_BT, adv_BT, mask_BT)
        weight_BT, ratio["clipped_BT"] = correction(
            logp_BT, behavior_logp_BT, mask_BT, kind=spec.correction, cap=hyper.correction_cap
        )
        obj_BT = weight_BT * obj_BT

    if spec.kl in ("k2", "k3"):
        info["kl_BT"] = kl(logp_BT, targets.ref_logp_BT, mask_BT, kind=spec.kl)
        obj_BT -= hyper.kl_coef * info["kl_BT"]
    elif spec.kl == "k1_reward":
        info["kl_BT"] = kl(logp_BT, targets.ref_logp_BT, mask_BT, kind="k1")
    if spec.entropy_bonus:
        obj_BT += hyper.entropy_coef * jnp.where(mask_BT > 0, entropy_BT, 0)
    if spec.critic:
        info["value_BT"] = value_loss(
            value_BT,
            batch.behavior_value_BT,
            targets.return_BT,
            mask_BT,
            clip=hyper.value_clip,
        )
        obj_BT -= hyper.value_coef * info["value_BT"]
    return obj_BT, info | ratio | {"routed": routed}


def objective(params, batch: Batch, targets: Targets, hyper: Hyper, spec: Spec):
    """The slice's part of the objective, and its sums and maxima for metrics."""
    obj_BT, info = _objective_BT(params, batch, targets, hyper, spec)
    mask_BT = batch.mask_BT
    gap_BT = jnp.where(mask_BT > 0, jnp.abs(info["logp_BT"] - batch.behavior_logp_BT), 0)
    sums = {
        "tokens": jnp.sum(mask_BT),
        "policy/entropy": jnp.sum(info["entropy_BT"] * mask_BT),
        "policy/logp_gap_mean": jnp.sum(gap_BT),
        "policy/clipped_share": jnp.sum(info["clipped_BT"]),
        "policy/kl": jnp.sum(info["kl_BT"]),
        "critic/loss": jnp.sum(info["value_BT"]),
        **mismatch.sums(info["logp_BT"], batch.behavior_logp_BT, mask_BT),
    }
    maxima = {
        "policy/logp_gap_max": jnp.max(gap_BT),
        "policy/ratio_max": jnp.max(info["ratio_BT"]),
        "policy/inverse_ratio_max": jnp.max(1 / info["ratio_BT"]),
    }
    objective = jnp.sum(targets.weight_BT * obj_BT)
    if info["routed"]:  # balance over the tokens whose successor is trained on
        aux_B, load_LE = moe.balance(info["routed"], mask_BT[:, 1:])
        sums |= {"router/aux": jnp.sum(targets.share_B * aux_B), "router/load": load_LE}
        if batch.expert_BTLK is not None:
            sums["router/moved"] = moe.moved(info["routed"], mask_BT[:, 1:])
        objective -= spec.model.router_aux_coef * sums["router/aux"]
    return objective, ({"objective": objective, **sums}, maxima)
