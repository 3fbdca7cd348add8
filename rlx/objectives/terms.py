"""What stands beside a policy's ratio: corrections, KL to a reference, values.

Conventions are those of `rlx.objectives.losses`: shapes [B, T], nats, float32; masked entries are
exactly 0 in value and gradient, replaced before any arithmetic; sg = stop_gradient. Costs (kl,
value_loss) are to be subtracted from an objective.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlx.objectives.losses import _exp, _zero_masked


def correction(logp_BT, behavior_logp_BT, mask_BT, *, kind, cap):
    """(weight, clipped): sg(min(rho, cap)), or if masked sg(rho), 0 outside [1/cap, cap]

    rho = exp(logp - behavior_logp). For a loss whose own ratio is between the learner's weights
    before and after an update (with one update per batch, between logp and sg(logp)), this is what
    makes up for the weights that sampled. The weight is 1 where masked. Truncated: Espeholt et al.
    2018 (arXiv 1802.01561); masked: IcePop (arXiv 2510.18855), section 3.
    """
    _, logp_BT, behavior_logp_BT = _zero_masked(mask_BT, logp_BT, behavior_logp_BT)
    ratio_BT = jax.lax.stop_gradient(_exp(logp_BT - behavior_logp_BT))
    if kind == "truncated":
        return jnp.minimum(ratio_BT, cap), (ratio_BT > cap).astype(ratio_BT.dtype)
    if kind == "masked":
        outside_BT = (ratio_BT > cap) | (ratio_BT * cap < 1)
        return jnp.where(outside_BT, 0, ratio_BT), outside_BT.astype(ratio_BT.dtype)
    raise ValueError(f"kind={kind}: unknown correction")


def kl(logp_BT, ref_logp_BT, mask_BT, *, kind):
    """Estimates of KL(pi || ref) from a token that pi drew; d = logp - ref_logp

        k1 = d        k2 = d^2 / 2        k3 = exp(-d) - 1 + d

    k1 and k3 have the right mean under pi. As a loss, k1 has no gradient in expectation (it belongs
    into the reward), k2 has that of the reverse KL, and k3 that of the forward KL. Under stale
    samples all three are those of the policy that drew. Schulman 2020, "Approximating KL
    divergence"; GRPO (arXiv 2402.03300), Eq. 4, is k3.
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
    """max((V - R)^2, (clip(V, V_b - clip, V_b + clip) - R)^2) / 2, V_b the value when sampled

    Pessimistic, as the clipped policy objective is: a value that has left V_b by more than `clip`
    towards its return has no gradient. PPO's reference implementation (openai/baselines, ppo2).
    """
    _, value_BT, behavior_value_BT, return_BT = _zero_masked(
        mask_BT, value_BT, behavior_value_BT, return_BT
    )
    near_BT = jnp.clip(value_BT, behavior_value_BT - clip, behavior_value_BT + clip)
    return jnp.maximum((value_BT - return_BT) ** 2, (near_BT - return_BT) ** 2) / 2
