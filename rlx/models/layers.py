"""What the blocks are made of: their parameters' axes, a matrix product, RMSNorm, attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

NEVER = -1e30  # finite, so that a fully masked row gives a uniform average and not NaN

# What each axis of a parameter stands for; rlx.mesh maps these names to mesh axes.
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
    "q_bias": ("heads",),
    "k_bias": ("kv_heads",),
    "v_bias": ("kv_heads",),
    "o": ("heads", "model"),
    "gate": ("model", "ffn"),
    "up": ("model", "ffn"),
    "down": ("ffn", "model"),
    "router": ("model", "router"),
    "expert_gate": ("expert", "model", "ffn"),
    "expert_up": ("expert", "model", "ffn"),
    "expert_down": ("expert", "ffn", "model"),
    "shared_gate": ("model", "ffn"),
    "shared_up": ("model", "ffn"),
    "shared_down": ("ffn", "model"),
}


def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """x[..., D] @ w[D, F], on two axes: a weight gradient over [B, T] costs XLA copies on CPU."""
    return (x.reshape(-1, x.shape[-1]) @ w.astype(x.dtype)).reshape(*x.shape[:-1], -1)


def rms_norm(x: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale, in float32."""
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    scale = jnp.expand_dims(scale_D.astype(jnp.float32), range(x.ndim - 1))
    return (x32 * inverse * scale).astype(x.dtype)


def attention(q_BTNH, k_BKSH, v_BKSH, seen: Callable[..., jax.Array], at: Any, chunk: int = 0):
    """softmax(q k^T / sqrt(H)) v, in float32; R = N / K query heads share each key/value head.

    seen: the keys [B, T, S] that the queries look at, from the arrays [B, T] in `at`.
    chunk: queries whose scores [B, N, chunk, S] exist at once, forward and backward; 0: all T.
    """
    (B, T, N, H), dtype = q_BTNH.shape, k_BKSH.dtype
    if not 0 < chunk < T:
        return _attended(q_BTNH, k_BKSH, v_BKSH, seen(*at))
    k_BKSH, v_BKSH = (x.astype(jnp.float32) for x in (k_BKSH, v_BKSH))  # their gradients add up

    def sliced(x_BT):
        x_BT = jnp.pad(x_BT, ((0, 0), (0, -T % chunk), *((0, 0),) * (x_BT.ndim - 2)))
        return x_BT.reshape(len(x_BT), -1, chunk, *x_BT.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def one(part):
        q_BTNH, at = part
        return _attended(q_BTNH, k_BKSH.astype(dtype), v_BKSH.astype(dtype), seen(*at))

    y = jax.lax.map(one, jax.tree.map(sliced, (q_BTNH, at)))
    return y.swapaxes(0, 1).reshape(B, -1, N * H)[:, :T]


def _attended(q_BTNH, k_BKSH, v_BKSH, mask_BTS) -> jax.Array:
    """Batch axes lead in both products: on CPU any other order makes XLA copy its operands."""
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    q_BKRTH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    score = jnp.einsum("bkrth,bksh->bkrts", q_BKRTH, k_BKSH, preferred_element_type=jnp.float32)
    score = jnp.where(mask_BTS[:, None, None], score * H**-0.5, NEVER)
    weight = jax.nn.softmax(score, axis=-1).astype(v_BKSH.dtype)
    y_BKRTH = jnp.einsum("bkrts,bksh->bkrth", weight, v_BKSH)
    return y_BKRTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N * H)
