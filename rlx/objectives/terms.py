"""Terms beside the policy loss: off-policy corrections, KL to a reference, value loss.

Conventions are those of `rlx.objectives.losses`: shapes [B, T], nats, float32; masked entries are
exactly 0 in value and gradient, replaced before any arithmetic; sg = stop_gradient. Costs (kl,
value_loss) are to be subtracted from an objective.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlx.objectives.losses import _exp, _mean, _zero_masked


def correction(logp_BT, behavior_logp_BT, mask_BT, *, kind, cap):
    """(weight, clipped): sg(min(s, cap)), or if masked sg(s), 0 outside [1/cap, cap]

        s = rho of each token                     truncated, masked
        s = prod_t rho_t of its sequence          sequence_truncated, sequence_masked
        s = (prod_t rho_t)^(1 / tokens)           geometric_truncated, geometric_masked

    rho = exp(logp - behavior_logp). It goes with a loss whose own ratio is between the learner's
    weights before and after an update (with one update per batch, between logp and sg(logp)), and
    corrects for the weights that sampled. The product over a sequence is unbiased, but its variance
    grows with length. The weight is 1 where masked. Truncated: Espeholt et al. 2018 (arXiv
    1802.01561); masked: IcePop (arXiv 2510.18855), section 3; per sequence: Liu, Li et al. 2025,
    "When speed kills stability", and verl 0.6 (`rollout_is_level`; later versions mask by the
    geometric mean without weighting by it).
    """
    level, _, action = kind.rpartition("_")
    if level not in ("", "sequence", "geometric") or action not in ("truncated", "masked"):
        raise ValueError(f"kind={kind}: unknown correction")
    sampled_BT, logp_BT, behavior_logp_BT = _zero_masked(mask_BT, logp_BT, behavior_logp_BT)
    log_ratio_BT = logp_BT - behavior_logp_BT
    if level == "sequence":
        log_ratio_BT = jnp.sum(log_ratio_BT, axis=1, keepdims=True)
    if level == "geometric":
        log_ratio_BT = _mean(log_ratio_BT, sampled_BT)
    ratio_BT = jax.lax.stop_gradient(jnp.where(sampled_BT, _exp(log_ratio_BT), 1))
    if action == "truncated":
        return jnp.minimum(ratio_BT, cap), (ratio_BT > cap).astype(ratio_BT.dtype)
    outside_BT = (ratio_BT > cap) | (ratio_BT * cap < 1)
    return jnp.where(outside_BT, 0, ratio_BT), outside_BT.astype(ratio_BT.dtype)


def kl(logp_BT, ref_logp_BT, mask_BT, *, kind):
    """Estimates of KL(pi || ref) from a token sampled by pi; d = logp - ref_logp

        k1 = d        k2 = d^2 / 2        k3 = exp(-d) - 1 + d

    k1 and k3 are unbiased under pi. As a loss, k1 has zero expected gradient (it belongs in the
    reward), k2 has the gradient of the reverse KL, and k3 that of the forward KL. With stale
    samples the expectations are under the policy that sampled. Schulman 2020, "Approximating KL
    divergence"; k3 is Eq. 4 of GRPO (arXiv 2402.03300).
    """
    _, logp_BT, ref_logp_BT = _zero_masked(mask_BT, logp_BT, ref_logp_BT)
    gap_BT = logp_BT - ref_logp_BT
    if kind == "k1":
        return gap_BT
    if kind == "k2":
        return gap_BT**2 / 2
    if kind == "k3":
        return _exp(-gap_BT) - 1 + gap_BT
    raise ValueError(f"kind={kind}: unknown estimate")


def value_loss(value_BT, behavior_value_BT, return_BT, mask_BT, *, clip):
    """max((V - R)^2, (clip(V, V_b - clip, V_b + clip) - R)^2) / 2, V_b the value at sampling time

    Pessimistic like the clipped policy objective: a value that has moved from V_b towards its
    return by more than `clip` has no gradient. PPO's reference implementation (openai/baselines,
    ppo2).
    """
    _, value_BT, behavior_value_BT, return_BT = _zero_masked(
        mask_BT, value_BT, behavior_value_BT, return_BT
    )
    near_BT = jnp.clip(value_BT, behavior_value_BT - clip, behavior_value_BT + clip)
    return jnp.maximum((value_BT - return_BT) ** 2, (near_BT - return_BT) ** 2) / 2
