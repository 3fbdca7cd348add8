"""Low-rank adapters: W' = W + (alpha / r) A B, with W fixed. Hu et al. 2021 (arXiv 2106.09685).

Adapters are a pytree shaped like the layers they adapt, with {"a": [in, r], "b": [r, out]} in place
of each matrix. Sampler and learner both run on the merged W', so they share one model. This saves
optimiser state and checkpoint size, but not the gradient of W', from which those of A and B are
computed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rlx.config import OptimConfig
from rlx.models import transformer
from rlx.types import Params

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


def init(key: jax.Array, params: Params, rank: int) -> Params:
    """A ~ N(0, 1/in), B = 0, in float32, so W' = W at first.

    For every matrix of attention and of dense feed-forwards: experts, shared experts, routers,
    embedding and head have none.
    """

    def adapters(key: jax.Array, w: jax.Array) -> dict[str, jax.Array]:
        *stacked, n_in, n_out = w.shape
        a = jax.random.normal(key, (*stacked, n_in, rank)) * n_in**-0.5
        return {"a": a, "b": jnp.zeros((*stacked, rank, n_out))}

    def of_layer(layer: Params) -> Params:
        return {name: layer[name] for name in MATRICES if name in layer}

    layers = params["layers"]
    chosen = of_layer(layers) if isinstance(layers, dict) else [of_layer(x) for x in layers]
    leaves, structure = jax.tree.flatten(chosen)
    keys = jax.random.split(key, len(leaves))
    return {"layers": structure.unflatten(map(adapters, keys, leaves))}


def merged(params: Params, adapters: Params, scale) -> Params:
    """The parameters with `adapters` merged; other entries of `adapters` (a critic) are added."""
    if isinstance(adapters, dict) and set(adapters) == {"a", "b"}:
        change = jnp.matmul(adapters["a"], adapters["b"])
        return (params + scale * change).astype(params.dtype)
    if isinstance(adapters, list):
        return [merged(p, a, scale) for p, a in zip(params, adapters, strict=True)]
    if isinstance(adapters, dict):
        return params | {k: merged(params.get(k), a, scale) for k, a in adapters.items()}
    return adapters


merge = jax.jit(merged)


def policy_params(config: OptimConfig, start: Params, trained: Params) -> Params:
    """The policy's parameters: `trained`, or `start` with the trained adapters merged."""
    if not config.lora_rank:
        return trained
    return merge(start, trained, config.lora_alpha / config.lora_rank)


def logical_axes(params: Params) -> Params:
    """As transformer.logical_axes; the rank of adapters is not split."""

    def axes(path: Any, leaf: jax.Array):
        name = path[-1].key
        if name not in ("a", "b"):
            names = transformer.AXES[name]
        else:
            n_in, n_out = transformer.AXES[path[-2].key]
            names = (n_in, None) if name == "a" else (None, n_out)
        return ("layer",) * (leaf.ndim - len(names)) + names

    return jax.tree_util.tree_map_with_path(axes, params)
