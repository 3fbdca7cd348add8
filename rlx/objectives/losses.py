"""Policy objectives, token by token: what one sampled token adds before any averaging.

    loss(logp_BT, behavior_logp_BT, adv_BT, mask_BT, *, ...) -> (obj_BT, info)

A loss asks for what else it needs by the names of its keywords: numbers of the step, such as
`is_cap`, and the arrays ref_logp_BT (log-probs of the start), reward_B (a sequence's reward) and
log_partition_B (log Z of the first sampled token's logits). `algo.loss` is the name of a function
here, or the import path MODULE:NAME of one elsewhere.

`obj_BT` is to be *maximised*; `rlx.objectives.weights` says how its tokens add up, so every
reduction goes with every loss. Symbols: rho = exp(logp - behavior_logp), A = adv_BT, sg =
stop_gradient; log-probabilities in nats, shapes [B, T], float32. `adv_BT` is a constant of the
objective, already spread over the tokens. `behavior_logp` belongs to the weights that sampled, so
rho is 1 only on-policy.

Masked entries (mask 0; holes allowed) are exactly 0 in value and in gradient, whatever the arrays
hold there, inf and nan included: they are replaced *before* any arithmetic. log rho is held in
[-20, 20]; beyond that rho is constant.

`info` holds two arrays for the caller to reduce: `ratio_BT`, the importance ratio (1 where masked,
the neutral value), and `clipped_BT`, 1 where the clip or cap decides the value (0 where masked).

`clips` says that a bound can decide the value; `corrects`, that the loss knows nothing of stale
samples, so that `rlx.objectives.terms.correction` goes with it. GRPO, DAPO and Dr. GRPO are
`ppo_clip` with different bounds, advantages and weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlx.objectives import named

MAX_LOG_RATIO = 20.0
LOSSES: dict[str, Callable] = {}


def loss(*, clips: bool = False, corrects: bool = False) -> Callable[[Callable], Callable]:
    """Gives a function its name in `algo.loss`, and says what goes with it."""

    def known(function: Any) -> Any:
        function.clips, function.corrects = clips, corrects
        return LOSSES.setdefault(function.__name__, function)

    return known


def _zero_masked(mask_BT, *arrays):
    """The mask as bool, then each array with 0 where the mask is 0."""
    sampled_BT = mask_BT.astype(bool)
    return sampled_BT, *(jnp.where(sampled_BT, x_BT, 0) for x_BT in arrays)


def _exp(log_ratio):
    return jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def _pessimistic(ratio_BT, adv_BT, clip_low, clip_high):
    """min(rho A, clip(rho) A) and where the clip is the smaller; ties go to rho A."""
    free_BT = ratio_BT * adv_BT
    bound_BT = jnp.clip(ratio_BT, 1 - clip_low, 1 + clip_high) * adv_BT
    clipped_BT = bound_BT < free_BT
    return jnp.where(clipped_BT, bound_BT, free_BT), clipped_BT.astype(ratio_BT.dtype)


@loss(corrects=True)
def reinforce(logp_BT, behavior_logp_BT, adv_BT, mask_BT):
    """obj = A logp

    The likelihood-ratio estimator without off-policy correction; rho is only reported.
    Williams 1992, "Simple statistical gradient-following algorithms".
    """
    _, logp_BT, behavior_logp_BT, adv_BT = _zero_masked(mask_BT, logp_BT, behavior_logp_BT, adv_BT)
    ratio_BT = _exp(logp_BT - behavior_logp_BT)
    return adv_BT * logp_BT, {"ratio_BT": ratio_BT, "clipped_BT": jnp.zeros_like(ratio_BT)}


@loss(clips=True, corrects=True)
def ppo_clip(logp_BT, behavior_logp_BT, adv_BT, mask_BT, *, clip_low, clip_high):
    """obj = min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)

    A lower bound of rho A for either sign of A: a token whose clip binds has no gradient.
    Schulman et al. 2017 (arXiv 1707.06347), Eq. 7, where clip_low = clip_high; two bounds as in
    DAPO (arXiv 2503.14476), Eq. 10.
    """
    _, logp_BT, behavior_logp_BT, adv_BT = _zero_masked(mask_BT, logp_BT, behavior_logp_BT, adv_BT)
    ratio_BT = _exp(logp_BT - behavior_logp_BT)
    obj_BT, clipped_BT = _pessimistic(ratio_BT, adv_BT, clip_low, clip_high)
    return obj_BT, {"ratio_BT": ratio_BT, "clipped_BT": clipped_BT}


@loss(clips=True)
def cispo(logp_BT, behavior_logp_BT, adv_BT, mask_BT, *, is_cap):
    """obj = sg(min(rho, is_cap)) A logp

    Truncated importance sampling: every token keeps a gradient, of at most is_cap times its
    on-policy size. `is_cap` bounds rho itself: what others write 1 + epsilon is is_cap, whole.
    MiniMax-M1 (arXiv 2506.13585), Eq. 4 and 5; ScaleRL (arXiv 2510.13786), Eq. 4.
    """
    _, logp_BT, behavior_logp_BT, adv_BT = _zero_masked(mask_BT, logp_BT, behavior_logp_BT, adv_BT)
    ratio_BT = _exp(logp_BT - behavior_logp_BT)
    obj_BT = jax.lax.stop_gradient(jnp.minimum(ratio_BT, is_cap)) * adv_BT * logp_BT
    clipped_BT = (ratio_BT > is_cap).astype(ratio_BT.dtype)
    return obj_BT, {"ratio_BT": ratio_BT, "clipped_BT": clipped_BT}


@loss(clips=True)
def gspo(logp_BT, behavior_logp_BT, adv_BT, mask_BT, *, clip_low, clip_high):
    """obj = min(s A, clip(s, 1 - clip_low, 1 + clip_high) A),  s = exp(mean_t(log rho_t))

    One length-normalised ratio s per sequence, the mean over its unmasked tokens; each of these
    tokens carries the sequence's objective, and its gradient is shared among them. `ratio_BT` is s.
    GSPO (arXiv 2507.18071), Eq. 5 and 7.
    """
    sampled_BT, logp_BT, behavior_logp_BT, adv_BT = _zero_masked(
        mask_BT, logp_BT, behavior_logp_BT, adv_BT
    )
    tokens_B1 = jnp.maximum(jnp.sum(sampled_BT, axis=1, keepdims=True), 1).astype(logp_BT.dtype)
    log_ratio_B1 = jnp.sum(logp_BT - behavior_logp_BT, axis=1, keepdims=True) / tokens_B1
    ratio_BT = jnp.where(sampled_BT, _exp(log_ratio_B1), 1)
    obj_BT, clipped_BT = _pessimistic(ratio_BT, adv_BT, clip_low, clip_high)
    return obj_BT, {"ratio_BT": ratio_BT, "clipped_BT": clipped_BT}


@loss()
def tbrm(
    logp_BT, behavior_logp_BT, adv_BT, mask_BT, *, log_partition_B, ref_logp_BT, reward_B, tbrm_beta
):
    """obj = -(log Z(s_1) + sum_t (logp_t - ref_logp_t) - reward / beta)^2, on each token of b

    With Q(s, a) = beta z(s, a) for the logits z, V(s) = beta log Z(s) = beta log sum_a exp z(s, a)
    and a reward r - beta log(pi / ref), the Bellman residuals of the tokens of a trajectory add up
    to beta times what is squared, for Q - V = beta logp telescopes. It asks nothing of who drew the
    trajectory, and nothing of advantages. reward is the whole trajectory's. Trajectory Bellman
    residual minimisation: arXiv 2505.15311.
    """
    info = reinforce(logp_BT, behavior_logp_BT, adv_BT, mask_BT)[1]
    sampled_BT, logp_BT, ref_logp_BT = _zero_masked(mask_BT, logp_BT, ref_logp_BT)
    policy_B = jnp.sum(logp_BT - ref_logp_BT, axis=1)
    residual_B = log_partition_B + policy_B - reward_B / tbrm_beta
    return jnp.where(sampled_BT, -(residual_B**2)[:, None], 0), info


def policy_objective(kind, logp_BT, behavior_logp_BT, adv_BT, mask_BT, **given):
    """The loss of that name, handed what it asks for of what is `given`; numbers may be traced."""
    function = named.find(LOSSES, kind)
    return named.call(function, logp_BT, behavior_logp_BT, adv_BT, mask_BT, **given)
