"""Rotary position embeddings, and their extensions beyond the context of pretraining.

Pair i of a head's H/2 pairs is rotated by position * f_i, f_i = theta^(-2i/H). Stretched by s,

    f_i <- f_i (kept_i + (1 - kept_i) / s)

    linear   kept = 0: all positions are divided by s
    llama3   kept = clip((r_i - low) / (high - low), 0, 1), r_i = rotations of the pair over the
             original context: fast pairs are kept, slow ones stretched (Llama 3.1)
    yarn     the same limits, linear in i between the pairs with `high` and `low` rotations, rounded
             outwards; queries and keys are scaled by 0.1 ln s + 1 (arXiv 2309.00071)
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from rlx.config import ModelConfig


def kept_share(config: ModelConfig, frequency_h: jax.Array) -> jax.Array:
    """kept_i of every pair, in [0, 1]."""
    c, half = config, frequency_h.shape[0]
    if c.rope_scaling == "linear":
        return jnp.zeros(half)
    if c.rope_scaling == "llama3":
        turns_h = c.rope_original_context * frequency_h / (2 * math.pi)
        width = c.rope_high - c.rope_low or 1e-6  # low = high: a step
        return jnp.clip((turns_h - c.rope_low) / width, 0, 1)

    def pair(turns: float) -> float:
        return half * math.log(c.rope_original_context / (turns * 2 * math.pi), c.rope_theta)

    first, last = max(math.floor(pair(c.rope_high)), 0), math.ceil(pair(c.rope_low))
    last = min(last, 2 * half - 1)  # as published: bounded by the head size, not the pairs
    width = last - first or 0.001
    return 1 - jnp.clip((jnp.arange(half, dtype=jnp.float32) - first) / width, 0, 1)


def frequencies(config: ModelConfig, head_dim: int) -> tuple[jax.Array, float]:
    """(f_h in radians per token, the factor of queries and keys)."""
    half = head_dim // 2
    frequency_h = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if config.rope_scaling == "none":
        return frequency_h, 1.0
    kept_h = kept_share(config, frequency_h)
    grows = config.rope_scaling == "yarn" and config.rope_factor > 1
    growth = 0.1 * math.log(config.rope_factor) + 1 if grows else 1.0
    return frequency_h * (kept_h + (1 - kept_h) / config.rope_factor), growth


def rope(x_BTNH: jax.Array, position_BT: jax.Array, config: ModelConfig) -> jax.Array:
    """Rotate the pairs (x_i, x_{i + H/2}), or (x_2i, x_{2i + 1}), by position * f_i."""
    half = x_BTNH.shape[-1] // 2
    frequency_h, growth = frequencies(config, x_BTNH.shape[-1])
    angle_BT1h = position_BT[:, :, None, None] * frequency_h[None, None, None]
    cos, sin = jnp.cos(angle_BT1h) * growth, jnp.sin(angle_BT1h) * growth
    if config.rope_neighbours:
        a, b = x_BTNH[..., ::2], x_BTNH[..., 1::2]
        y_BTNh2 = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
        return y_BTNh2.reshape(x_BTNH.shape).astype(x_BTNH.dtype)
    a, b = x_BTNH[..., :half], x_BTNH[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)
