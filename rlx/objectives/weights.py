"""Reductions over tokens: objective = sum(weight_BT * obj_BT).

Each reduction is linear, with weights computed once from the mask of the *whole* batch; so slices
of the batch simply add, and the gradient is the same for any microbatch, padding or mesh.

Symbols: m = mask_BT (0 where masked, holes allowed), n_b = sum_t m_bt the tokens of a sequence, n_p
the tokens of all sequences of prompt p. Sequences and prompts without a token are not counted;
filtered ones have mask 0 everywhere. Weights are float32, 0 where masked.
"""

from __future__ import annotations

import jax.numpy as jnp

from rlx.objectives import named


def _over(numerator, count):
    """numerator / count; 0 where the count, and so the numerator, is 0."""
    return numerator / jnp.maximum(count, 1)


def _counts(tokens):
    """1 where there is a token, else 0."""
    return jnp.minimum(tokens, 1)


def token_mean(mask_BT):
    """weight = m / sum_b n_b

    Every token of the batch has the same weight: DAPO (arXiv 2503.14476), Eq. 8.
    """
    return _over(mask_BT, jnp.sum(mask_BT))


def sample_mean(mask_BT):
    """weight = m / n_b / #{b: n_b > 0}

    Every sequence has the same weight: GRPO (arXiv 2402.03300), Eq. 3.
    """
    tokens_B1 = jnp.sum(mask_BT, axis=1, keepdims=True)
    return _over(_over(mask_BT, tokens_B1), jnp.sum(_counts(tokens_B1)))


def prompt_mean(mask_BT, prompt_B, n_prompts):
    """weight = m / n_p / #{p: n_p > 0}

    The tokens of a prompt's completions are pooled, and every prompt has the same weight: ScaleRL
    (arXiv 2510.13786), Eq. 4 with T the tokens of a prompt, as defined in its appendix A.2.
    """
    tokens_P = jnp.zeros(n_prompts, mask_BT.dtype).at[prompt_B].add(jnp.sum(mask_BT, axis=1))
    return _over(_over(mask_BT, tokens_P[prompt_B][:, None]), jnp.sum(_counts(tokens_P)))


def fixed_length(mask_BT, length):
    """weight = m / length / #{b: n_b > 0}

    The same divisor for every sequence, so long ones have more weight: Dr. GRPO (arXiv 2503.20783),
    with length the maximum completion length.
    """
    if length is None:
        raise ValueError("kind=fixed_length: length is missing; give the most tokens allowed")
    tokens_B = jnp.sum(mask_BT, axis=1)
    return _over(mask_BT / length, jnp.sum(_counts(tokens_B)))


def weights(mask_BT, prompt_B, *, kind, length=None, n_prompts=None):
    """The weight of each token, float32 [B, T], under the reduction named `kind`.

    prompt_B: integers in [0, n_prompts), which prompt a sequence answers; used by `prompt_mean`.
    n_prompts: a static bound on them, B unless given.
    length: tokens, required by `fixed_length`; may be traced.
    """
    if kind not in AGGREGATIONS:
        raise ValueError(f"kind={kind}: unknown reduction")
    mask_BT = mask_BT.astype(jnp.float32)
    given = {"prompt_B": prompt_B, "n_prompts": n_prompts or mask_BT.shape[0], "length": length}
    return named.call(AGGREGATIONS[kind], mask_BT, **given)


AGGREGATIONS = {f.__name__: f for f in (token_mean, sample_mean, prompt_mean, fixed_length)}
