"""Mismatch between learner and sampler: sums over tokens, and the metrics made of them.

    gap = |log rho|,  log rho = logp - behavior_logp, of the sampled tokens

On-policy a gap is numerics alone; off-policy it includes staleness. All sums add over slices of a
batch, so no metric depends on microbatches or mesh. Conventions of `rlx.objectives.losses`.
"""

from __future__ import annotations

import jax.numpy as jnp

from rlx.objectives.losses import _exp, _zero_masked

EDGES = tuple(2.0 ** (i / 2) for i in range(-40, 10))  # nats; the possible values of a quantile
QUANTILES = {"q50": 0.5, "q99": 0.99, "q999": 0.999}
SUMS = ("mismatch/kl", "mismatch/ratio", "mismatch/ratio_squared", "mismatch/above")


def zero_sums():
    return dict.fromkeys(SUMS[:-1], 0.0) | {SUMS[-1]: jnp.zeros(len(EDGES))}


def sums(logp_BT, behavior_logp_BT, mask_BT):
    """Sums of rho - 1 - log rho, rho and rho^2, and the number of gaps above each of EDGES."""
    sampled_BT, logp_BT, behavior_logp_BT = _zero_masked(mask_BT, logp_BT, behavior_logp_BT)
    log_ratio_BT = logp_BT - behavior_logp_BT
    ratio_BT = _exp(log_ratio_BT)
    above_BTE = jnp.abs(log_ratio_BT)[..., None] > jnp.array(EDGES)[None, None]
    of = lambda x_BT: jnp.sum(jnp.where(sampled_BT, x_BT, 0))  # noqa: E731
    kl, squared = of(ratio_BT - 1 - log_ratio_BT), of(ratio_BT**2)
    parts = (kl, of(ratio_BT), squared, jnp.sum(above_BTE, axis=(0, 1), dtype=jnp.float32))
    return dict(zip(SUMS, parts, strict=True))


def pop(sums, tokens):
    """Metrics of a batch of `tokens` tokens; removes their sums from the dict. 0 without a token.

    policy/sampler_kl       mean(rho - 1 - log rho): an estimate of KL(sampler || learner), >= 0
    policy/ess              (sum rho)^2 / (tokens sum rho^2): effective sample size as a share of
                            the tokens; Kong 1992
    policy/logp_gap_q99     the smallest of EDGES that at most 1 % of the gaps exceed, infinite if
                            there is none; q50, q999
    """
    kl, ratio, squared, above_E = (sums.pop(name) for name in SUMS)
    n = jnp.maximum(tokens, 1)
    edges, above = jnp.array((*EDGES, jnp.inf)), jnp.append(above_E, 0)
    within = lambda q: above <= (1 - q) * n  # noqa: E731
    quantiles = {
        f"policy/logp_gap_{name}": edges[jnp.argmax(within(q))] * (tokens > 0)
        for name, q in QUANTILES.items()
    }
    ess = ratio**2 / jnp.maximum(n * squared, 1e-30)
    return {"policy/sampler_kl": kl / n, "policy/ess": ess, **quantiles}
