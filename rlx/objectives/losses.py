"""Policy objectives of single tokens, before any averaging.

    loss(logp_BT, behavior_logp_BT, adv_BT, mask_BT, *, ...) -> (obj_BT, info)

Further inputs of a loss are its keyword parameters: numbers of the step, such as `is_cap`, and the
arrays ref_logp_BT (log-probs under the initial weights), reward_B (a sequence's reward) and
log_partition_B (log Z of the first sampled token's logits). `algo.loss` is the name of a function
here, or the import path MODULE:NAME of another.

`obj_BT` is to be *maximised*; `rlx.objectives.weights` defines the reduction, and every reduction
goes with every loss. Symbols: rho = exp(logp - behavior_logp), A = adv_BT, sg = stop_gradient;
log-probabilities in nats, shapes [B, T], float32. `adv_BT` is a constant of the objective, already
broadcast over tokens. `behavior_logp` is under the weights that sampled, so rho is 1 only
on-policy.

Masked entries (mask 0; holes allowed) are exactly 0 in value and in gradient, even where the arrays
hold inf or nan: they are replaced *before* any arithmetic. log rho is clipped to [-20, 20]; outside
that range rho is constant.

`info` holds two arrays for metrics: `ratio_BT`, the importance ratio (1 where masked), and
`clipped_BT`, 1 where the clip or cap decides the value (0 where masked).

`clips`: a bound can decide the value. `corrects`: the loss has no off-policy correction of its own,
so `rlx.objectives.terms.correction` may be combined with it. GRPO, DAPO and Dr. GRPO are `ppo_clip`
with different bounds, advantages and weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlx.objectives import named

MAX_LOG_RATIO = 20.0
LEAST_OTHER = 1e-8  # floor of the probability of all other tokens, which float32 may round to 0
LOSSES: dict[str, Callable] = {}


def loss(*, clips: bool = False, corrects: bool = False) -> Callable[[Callable], Callable]:
    """Registers a function under its name for `algo.loss`, with its two properties."""

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


def _mean(x_BT, sampled_BT):
    """Mean over the sampled tokens of a sequence, [B, 1]; x is 0 at the others."""
    tokens_B1 = jnp.maximum(jnp.sum(sampled_BT, axis=1, keepdims=True), 1).astype(x_BT.dtype)
    return jnp.sum(x_BT, axis=1, keepdims=True) / tokens_B1


def _pessimistic(ratio_BT, adv_BT, clip_low, clip_high):
    """min(rho A, clip(rho) A), and 1 where the clip decides; ties go to rho A."""
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
    on-policy size. `is_cap` bounds rho itself (where others write 1 + epsilon, it is the sum).
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

    One length-normalised ratio s per sequence, over its sampled tokens; each of them carries the
    objective of the sequence and shares its gradient. `ratio_BT` is s.
    GSPO (arXiv 2507.18071), Eq. 5 and 7.
    """
    sampled_BT, logp_BT, behavior_logp_BT, adv_BT = _zero_masked(
        mask_BT, logp_BT, behavior_logp_BT, adv_BT
    )
    log_ratio_B1 = _mean(logp_BT - behavior_logp_BT, sampled_BT)
    ratio_BT = jnp.where(sampled_BT, _exp(log_ratio_B1), 1)
    obj_BT, clipped_BT = _pessimistic(ratio_BT, adv_BT, clip_low, clip_high)
    return obj_BT, {"ratio_BT": ratio_BT, "clipped_BT": clipped_BT}


@loss(clips=True)
def gmpo(logp_BT, behavior_logp_BT, adv_BT, mask_BT, *, clip_low, clip_high):
    """obj = exp(mean_t(l_t)) mean_t(A_t),  l = min(log rho, clip_high) where A > 0,
                                         l = max(log rho, -clip_low) where A < 0

    The geometric mean of the ratios of a sequence, each clipped on the side towards which A moves
    it; the bounds are on log rho. Each sampled token carries the objective of the sequence; a
    token whose bound binds has no gradient. GMPO (arXiv 2507.20673).
    """
    sampled_BT, logp_BT, behavior_logp_BT, adv_BT = _zero_masked(
        mask_BT, logp_BT, behavior_logp_BT, adv_BT
    )
    log_ratio_BT = logp_BT - behavior_logp_BT
    high_BT = (adv_BT > 0) & (log_ratio_BT > clip_high)
    low_BT = (adv_BT < 0) & (log_ratio_BT < -clip_low)
    held_BT = jnp.where(high_BT, clip_high, jnp.where(low_BT, -clip_low, log_ratio_BT))
    obj_B1 = _exp(_mean(held_BT, sampled_BT)) * _mean(adv_BT, sampled_BT)
    clipped_BT = (high_BT | low_BT).astype(logp_BT.dtype)
    info = {"ratio_BT": _exp(log_ratio_BT), "clipped_BT": clipped_BT}
    return jnp.where(sampled_BT, obj_B1, 0), info


@loss()
def sapo(logp_BT, behavior_logp_BT, adv_BT, mask_BT, *, tau_positive, tau_negative):
    """obj = 4 / tau sigmoid(tau (rho - 1)) A,  tau = tau_positive where A > 0, else tau_negative

    A smooth gate instead of a hard clip: d obj / d rho is A at rho = 1 and falls to 0 on either
    side, faster for a larger tau. SAPO (arXiv 2511.20347).
    """
    _, logp_BT, behavior_logp_BT, adv_BT = _zero_masked(mask_BT, logp_BT, behavior_logp_BT, adv_BT)
    ratio_BT = _exp(logp_BT - behavior_logp_BT)
    tau_BT = jnp.where(adv_BT > 0, tau_positive, tau_negative)
    obj_BT = 4 / tau_BT * jax.nn.sigmoid(tau_BT * (ratio_BT - 1)) * adv_BT
    return obj_BT, {"ratio_BT": ratio_BT, "clipped_BT": jnp.zeros_like(ratio_BT)}


def _gated(logp_BT, ratio_BT, weight_BT, adv_BT, shut_BT):
    """sg(weight) A logp, 0 where the gate is shut."""
    weight_BT = jax.lax.stop_gradient(jnp.where(shut_BT, 0, weight_BT))
    info = {"ratio_BT": ratio_BT, "clipped_BT": shut_BT.astype(ratio_BT.dtype)}
    return weight_BT * adv_BT * logp_BT, info


@loss(clips=True)
def double_sided(logp_BT, behavior_logp_BT, adv_BT, mask_BT, *, clip_low, clip_high):
    """obj = sg(f(rho)) A logp,  f(rho) = rho inside (1 - clip_low, 1 + clip_high), else 0

    Masks a token outside the interval on either side, whatever the sign of A; PPO's clip depends
    on the sign. GLM-5 (arXiv 2602.15763), Eq. 3 to 5.
    """
    sampled_BT, logp_BT, behavior_logp_BT, adv_BT = _zero_masked(
        mask_BT, logp_BT, behavior_logp_BT, adv_BT
    )
    ratio_BT = _exp(logp_BT - behavior_logp_BT)
    shut_BT = (ratio_BT <= 1 - clip_low) | (ratio_BT >= 1 + clip_high)
    return _gated(logp_BT, ratio_BT, ratio_BT, adv_BT, shut_BT & sampled_BT)


@loss(clips=True)
def dppo_tv(logp_BT, behavior_logp_BT, adv_BT, mask_BT, *, clip_low, clip_high, is_cap):
    """obj = sg(min(rho, is_cap)) A logp, 0 where A > 0 and p - q > clip_high
                                       or where A < 0 and q - p > clip_low

    p = exp(logp) and q = exp(behavior_logp) of the sampled token: |p - q| is the total variation
    between the two policies with all other tokens merged into one. A token is masked where it has
    moved too far and A would move it further. A rare token may grow by a large factor, a common
    one cannot. DPPO with a binary divergence (arXiv 2602.04879); `is_cap` truncates the ratio, at
    20 in verl.
    """
    _, logp_BT, behavior_logp_BT, adv_BT = _zero_masked(mask_BT, logp_BT, behavior_logp_BT, adv_BT)
    ratio_BT = _exp(logp_BT - behavior_logp_BT)
    rise_BT = jnp.exp(logp_BT) - jnp.exp(behavior_logp_BT)
    shut_BT = ((adv_BT > 0) & (rise_BT > clip_high)) | ((adv_BT < 0) & (-rise_BT > clip_low))
    return _gated(logp_BT, ratio_BT, jnp.minimum(ratio_BT, is_cap), adv_BT, shut_BT)


@loss(clips=True)
def dppo_kl(logp_BT, behavior_logp_BT, adv_BT, mask_BT, *, clip_low, clip_high, is_cap):
    """As dppo_tv, with D in place of |p - q|:  D = q log(q / p) + (1 - q) log((1 - q) / (1 - p))

    D is KL(sampler || learner) with all other tokens merged into one. A token is masked where
    A > 0, p > q and D > clip_high, or where A < 0, p < q and D > clip_low.
    DPPO (arXiv 2602.04879).
    """
    _, logp_BT, behavior_logp_BT, adv_BT = _zero_masked(mask_BT, logp_BT, behavior_logp_BT, adv_BT)
    ratio_BT = _exp(logp_BT - behavior_logp_BT)
    q_BT = jnp.exp(behavior_logp_BT)
    other_p_BT, other_q_BT = (
        jnp.maximum(-jnp.expm1(x_BT), LEAST_OTHER) for x_BT in (logp_BT, behavior_logp_BT)
    )
    divergence_BT = q_BT * (behavior_logp_BT - logp_BT)
    divergence_BT += other_q_BT * jnp.log(other_q_BT / other_p_BT)
    rises_BT = logp_BT > behavior_logp_BT
    high_BT = (adv_BT > 0) & rises_BT & (divergence_BT > clip_high)
    low_BT = (adv_BT < 0) & ~rises_BT & (divergence_BT > clip_low)
    shut_BT = high_BT | low_BT
    return _gated(logp_BT, ratio_BT, jnp.minimum(ratio_BT, is_cap), adv_BT, shut_BT)


@loss()
def tbrm(
    logp_BT, behavior_logp_BT, adv_BT, mask_BT, *, log_partition_B, ref_logp_BT, reward_B, tbrm_beta
):
    """obj = -(log Z(s_1) + sum_t (logp_t - ref_logp_t) - reward / beta)^2, on each token of b

    With Q(s, a) = beta z(s, a) for the logits z, V(s) = beta log Z(s) = beta log sum_a exp z(s, a)
    and a reward r - beta log(pi / ref), the Bellman residuals of the tokens of a trajectory add up
    to beta times the squared bracket, since Q - V = beta logp telescopes. It holds for trajectories
    of any policy and uses no advantages; reward is that of the trajectory. Trajectory Bellman
    residual minimisation: arXiv 2505.15311.
    """
    info = reinforce(logp_BT, behavior_logp_BT, adv_BT, mask_BT)[1]
    sampled_BT, logp_BT, ref_logp_BT = _zero_masked(mask_BT, logp_BT, ref_logp_BT)
    policy_B = jnp.sum(logp_BT - ref_logp_BT, axis=1)
    residual_B = log_partition_B + policy_B - reward_B / tbrm_beta
    return jnp.where(sampled_BT, -(residual_B**2)[:, None], 0), info


def policy_objective(kind, logp_BT, behavior_logp_BT, adv_BT, mask_BT, **given):
    """The loss named `kind`, called with those of `given` that it takes; numbers may be traced."""
    function = named.find(LOSSES, kind)
    return named.call(function, logp_BT, behavior_logp_BT, adv_BT, mask_BT, **given)
