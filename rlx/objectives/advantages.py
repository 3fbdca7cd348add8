"""From rewards to advantages: how much better a sample is than its baseline.

Symbols: r = reward_PG, rewards of G >= 2 samples for each of P prompts; mean_g and std_g run over
the samples of one prompt. keep_P is 0 for prompts that are filtered out: they get advantage 0 and
do not enter the statistics of the batch. Advantages have the unit of the reward, or none once
divided by a standard deviation. std divides by count - ddof.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlx.objectives import named


def _std(x, count, axis, ddof):
    """Standard deviation of centred values padded with zeros."""
    return jnp.sqrt(jnp.sum(x**2, axis=axis, keepdims=True) / jnp.maximum(count - ddof, 1))


def centered(reward_PG):
    """A = r - mean_g(r); exactly 0 where all rewards of a prompt are equal

    Their mean may be rounded, and a rounding error divided by itself is an advantage.
    Dr. GRPO (arXiv 2503.20783), section 3.
    """
    adv_PG = reward_PG - jnp.mean(reward_PG, axis=1, keepdims=True)
    return jnp.where(zero_variance(reward_PG)[:, None], 0, adv_PG)


def prompt_norm(reward_PG, *, eps, ddof):
    """A = (r - mean_g(r)) / (std_g(r) + eps)

    GRPO (arXiv 2402.03300), section 4.1.2.
    """
    adv_PG = centered(reward_PG)
    return adv_PG / (_std(adv_PG, reward_PG.shape[1], 1, ddof) + eps)


def batch_norm(reward_PG, keep_P, *, eps, ddof):
    """A = (r - mean_g(r)) / (std_pg(r - mean_g(r)) + eps), std over the kept batch

    The std is over the *centred* advantages of all kept prompts, so the spread between easy and
    hard prompts does not enter it.
    ScaleRL (arXiv 2510.13786), section 4.
    """
    adv_PG = jnp.where(keep_P.astype(bool)[:, None], centered(reward_PG), 0)
    count = jnp.sum(keep_P.astype(adv_PG.dtype)) * reward_PG.shape[1]
    return adv_PG / (_std(adv_PG, count, (0, 1), ddof) + eps)


def leave_one_out(reward_PG):
    """A_g = r_g - mean_{h != g}(r_h) = G / (G - 1) * (r_g - mean_g(r))

    RLOO: Ahmadian et al. 2024 (arXiv 2402.14740).
    """
    G = reward_PG.shape[1]
    return G / (G - 1) * centered(reward_PG)


def none(reward_PG):
    """A = r: no baseline"""
    return reward_PG


def distill(reward_PG):
    """A = 0: the reward is only reported; the advantage is that of `towards_teacher` alone"""
    return jnp.zeros_like(reward_PG)


def towards_teacher(teacher_logp_BT, behavior_logp_BT, mask_BT):
    """A = log pi_teacher - log pi_behavior of the sampled token, [B, T]; 0 where masked

    Used alone or added to the advantage of a reward. On-policy its policy gradient is that of
    -KL(pi || pi_teacher) per token with discount 0: a token gets no credit for later ones. It must
    be of the sampled token: the KL itself, over the vocabulary or its top k, does not depend on the
    sample, and as an advantage has zero expected gradient.
    On-policy distillation: Agarwal et al. 2023 (arXiv 2306.13649); in this form Thinking Machines
    2025, "On-policy distillation".
    """
    return jnp.where(mask_BT.astype(bool), teacher_logp_BT - behavior_logp_BT, 0)


def clipped_by_covariance(adv_BT, behavior_logp_BT, mask_BT, key, *, share, low, high):
    """A, but 0 for max(floor(share n), 1) of the n tokens, drawn from those with low < cov < high

        cov = (logp - mean(logp)) (A - mean(A)),  means over the n unmasked tokens

    The covariance of log-probability and advantage lowers entropy, and most of it comes from few
    tokens; a random subset of them is left out (all, if there are fewer). logp is the sampler's, so
    that the choice is the same for any microbatch; the paper uses the learner's, which is the same
    on-policy. Clip-Cov (arXiv 2505.22617); share 2e-4, low 1 and high 5 in its code.
    """
    sampled_BT = mask_BT.astype(bool)
    count = jnp.sum(sampled_BT)

    def centred(x_BT):
        x_BT = jnp.where(sampled_BT, x_BT, 0)
        return x_BT - jnp.sum(x_BT) / jnp.maximum(count, 1)

    cov_BT = centred(behavior_logp_BT) * centred(adv_BT)
    may_BT = sampled_BT & (cov_BT > low) & (cov_BT < high)
    lot_BT = jnp.where(may_BT, jax.random.uniform(key, mask_BT.shape), 2.0)
    n = jnp.maximum(jnp.floor(share * count).astype(jnp.int32), 1)
    return jnp.where(may_BT & (lot_BT <= jnp.sort(lot_BT, axis=None)[n - 1]), 0, adv_BT)


def advantages(reward_PG, keep_P, *, kind, eps, ddof=1):
    """The advantage of each sample, [P, G], by the estimator named `kind`; 0 where keep_P is 0."""
    if kind not in ADVANTAGES:
        raise ValueError(f"kind={kind}: unknown advantage")
    reward_PG = jnp.where(keep_P.astype(bool)[:, None], reward_PG, 0)
    return named.call(ADVANTAGES[kind], reward_PG, keep_P=keep_P, eps=eps, ddof=ddof)


def zero_variance(reward_PG):
    """bool [P]: True where all rewards of a prompt are equal, so centred advantages are 0."""
    return jnp.max(reward_PG, axis=1) == jnp.min(reward_PG, axis=1)


def whitened(adv_BT, mask_BT, *, eps):
    """(A - mean(A)) / (std(A) + eps) over unmasked tokens; 0 where masked

    Implementations of PPO apply it to `gae`. std with ddof 1.
    """
    sampled_BT = mask_BT.astype(bool)
    count = jnp.sum(mask_BT)
    mean = jnp.sum(jnp.where(sampled_BT, adv_BT, 0)) / jnp.maximum(count, 1)
    adv_BT = jnp.where(sampled_BT, adv_BT - mean, 0)
    return adv_BT / (_std(adv_BT, count, (0, 1), 1) + eps)


def gae(value_BT, reward_BT, mask_BT, *, gamma, lam):
    """A_t = delta_t + gamma lam A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t, return_t = A_t + V_t

    Generalised advantage estimation over the tokens of a sequence; V = 0 and A = 0 after the last
    one. Masked tokens are skipped: t + 1 is the next unmasked token, a reward on a masked token is
    ignored, and both results are 0 there. All [B, T], in the unit of the reward.
    Schulman et al. 2016 (arXiv 1506.02438), Eq. 16.
    """
    sampled_BT = mask_BT.astype(bool)
    value_BT, reward_BT = (jnp.where(sampled_BT, x_BT, 0) for x_BT in (value_BT, reward_BT))

    def step(carry, token):
        next_adv_B, next_value_B = carry
        value_B, reward_B, sampled_B = token
        delta_B = reward_B + gamma * next_value_B - value_B
        adv_B = jnp.where(sampled_B, delta_B + gamma * lam * next_adv_B, next_adv_B)
        return (adv_B, jnp.where(sampled_B, value_B, next_value_B)), adv_B

    end_B = jnp.zeros_like(value_BT[:, 0])
    tokens_TB = (value_BT.T, reward_BT.T, sampled_BT.T)
    _, adv_TB = jax.lax.scan(step, (end_B, end_B), tokens_TB, reverse=True)
    adv_BT = jnp.where(sampled_BT, adv_TB.T, 0)
    return adv_BT, adv_BT + value_BT


# Those with a parameter value_BT need a critic; rlx.train.targets calls them directly.
ADVANTAGES = {
    f.__name__: f for f in (none, centered, prompt_norm, batch_norm, leave_one_out, distill, gae)
}
