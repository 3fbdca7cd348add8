"""Parts of the blocks: the axes of their parameters, a matrix product, RMSNorm."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Logical axes of each parameter; rlx.mesh maps them to mesh axes.
AXES = {
    "embed": ("vocab", "model"),
    "head": ("model", "vocab"),
    "value": ("model",),
    "final_norm": ("norm",),
    "attn_norm": ("norm",),
    "mlp_norm": ("norm",),
    "q_norm": ("norm",),
    "k_norm": ("norm",),
    "q": ("model", "heads"),
    "k": ("model", "kv_heads"),
    "v": ("model", "kv_heads"),
    "qkv": ("model", "heads"),
    "q_bias": ("heads",),
    "k_bias": ("kv_heads",),
    "v_bias": ("kv_heads",),
    "qkv_bias": ("heads",),
    "o": ("heads", "model"),
    "gate": ("model", "ffn"),
    "up": ("model", "ffn"),
    "gate_up": ("model", "ffn"),
    "down": ("ffn", "model"),
    "router": ("model", "router"),
    "expert_gate": ("expert", "model", "ffn"),
    "expert_up": ("expert", "model", "ffn"),
    "expert_down": ("expert", "ffn", "model"),
    "shared_gate": ("model", "ffn"),
    "shared_up": ("model", "ffn"),
    "shared_down": ("ffn", "model"),
}


# Of a float32 product; by default an accelerator rounds its factors to 8 or 11 bits.
EXACT = jax.lax.Precision.HIGHEST


def matmul(x: jax.Array, w: jax.Array, precision=None) -> jax.Array:
    """x[..., D] @ w[D, F], on two axes: on CPU a weight gradient over [B, T] would copy."""
    y = jnp.matmul(x.reshape(-1, x.shape[-1]), w.astype(x.dtype), precision=precision)
    return y.reshape(*x.shape[:-1], -1)


def rms_norm(x: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale, in float32."""
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    scale = jnp.expand_dims(scale_D.astype(jnp.float32), range(x.ndim - 1))
    return (x32 * inverse * scale).astype(x.dtype)
