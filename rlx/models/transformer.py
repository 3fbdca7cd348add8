"""One decoder, configured: RMSNorm, RoPE, grouped-query attention, SwiGLU, a key/value cache.

Parameters are a plain pytree (nested dicts; `layers` is a list, or one stacked dict when
`scan_layers`), every matrix stored as [in, out]. Three pure functions share one block:

    prefill   prompts -> last hidden state and their keys/values
    extend    teacher-forced completions after a prompt's keys/values   (the learner)
    decode    one token per slot, written into the slot's cache         (the sampler)

A prompt is padded on the left, so that completion token t sits in cache column U + t. The
learner runs a group's prompt once, as the sampler does: its keys/values are repeated over the
group's samples, and their gradients add up in the transpose of that repetition.

The block is an nnx module only for its initialiser and its call: at the jit boundary everything
is a plain pytree, since dispatching an nnx module costs many times a decode step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rlx.config import ModelConfig
from rlx.mesh import split
from rlx.models import moe
from rlx.models.layers import AXES, attention, matmul, rms_norm
from rlx.models.rope import rope
from rlx.types import Params

# Between blocks a device keeps a part of the model's width; within, its own heads or columns of F.
RESIDUAL, WHOLE = ("prompts", None, "residual"), ("prompts", None, None)
Cache = Any  # {"k", "v"}: [B, K, S, H] per layer; a list over layers, or stacked on axis 0
Remember = Callable[[Any, jax.Array, jax.Array], dict[str, jax.Array]]


class Block(nnx.Module):
    """x + attention(norm(x)), then x + swiglu(norm(x)); `sparse`: that of the token's experts."""

    def __init__(self, config: ModelConfig, sparse: bool, rngs: nnx.Rngs):
        c, init = config, nnx.initializers.lecun_normal()
        heads, kv_heads = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        shapes = {
            "q": (c.d_model, heads),
            "k": (c.d_model, kv_heads),
            "v": (c.d_model, kv_heads),
            "o": (heads, c.d_model),
        }
        shapes |= moe.shapes(c) if sparse else moe.swiglu_shapes(c.d_model, c.d_ff)
        expert_init = nnx.initializers.lecun_normal(batch_axis=0)
        for name, shape in shapes.items():
            make = init if len(shape) == 2 else expert_init
            setattr(self, name, nnx.Param(make(rngs.params(), shape)))
        self.attn_norm = nnx.Param(jnp.ones(c.d_model))
        self.mlp_norm = nnx.Param(jnp.ones(c.d_model))
        if c.qkv_bias:
            for name in "qkv":
                setattr(self, f"{name}_bias", nnx.Param(jnp.zeros(shapes[name][1])))
        if c.qk_norm:
            self.q_norm = nnx.Param(jnp.ones(c.head_dim))
            self.k_norm = nnx.Param(jnp.ones(c.head_dim))
        self.config, self.names = config, tuple(shapes) if sparse else ()

    def _heads(self, x_BTD, name: str, n_heads: int):
        y = matmul(x_BTD, getattr(self, name)[...])
        if self.config.qkv_bias:
            y = y + getattr(self, f"{name}_bias")[...].astype(y.dtype)[None, None]
        y = y.reshape(*x_BTD.shape[:2], n_heads, self.config.head_dim)
        if self.config.qk_norm and name in "qk":
            y = rms_norm(y, getattr(self, f"{name}_norm")[...], self.config.norm_eps)
        return y

    def _turned(self, x_BTNH, position_BT, local):
        """With RoPE; in layers without it, as it is."""
        c, y_BTNH = self.config, rope(x_BTNH, position_BT, self.config)
        if c.qk_unit_norm:
            y_BTNH = rms_norm(y_BTNH, jnp.ones(c.head_dim), c.norm_eps)
        return jnp.where(local, y_BTNH, x_BTNH) if c.no_rope_every else y_BTNH

    def _mlp(self, y_BTD):
        """(swiglu [B, T, D], what the router did)."""
        if self.names:
            weights = {name: getattr(self, name)[...] for name in self.names}
            return moe.feed_forward(weights, y_BTD, self.config)
        y_BTF = jax.nn.silu(matmul(y_BTD, self.gate[...])) * matmul(y_BTD, self.up[...])
        return matmul(y_BTF, self.down[...]), None

    def __call__(self, x_BTD, position_BT, seen, at, local, cache, remember: Remember):
        c = self.config
        y_BTD = split(rms_norm(x_BTD, self.attn_norm[...], c.norm_eps), *WHOLE)
        q_BTNH = self._turned(self._heads(y_BTD, "q", c.n_heads), position_BT, local)
        k_BTKH = self._turned(self._heads(y_BTD, "k", c.n_kv_heads), position_BT, local)
        if c.far_query_scale:
            far_BT = jnp.log1p(jnp.floor((position_BT + 1.0) / c.far_query_tokens))
            growth_BT = jnp.where(local, 1.0, 1.0 + c.far_query_scale * far_BT)
            q_BTNH = (q_BTNH * growth_BT[..., None, None]).astype(q_BTNH.dtype)
        v_BTKH = self._heads(y_BTD, "v", c.n_kv_heads)
        cache = remember(cache, k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2))
        seen = functools.partial(seen, local)
        y_BTD = attention(q_BTNH, cache["k"], cache["v"], seen, at, c.query_chunk)
        x_BTD = split(x_BTD + matmul(y_BTD, self.o[...]), *RESIDUAL)
        y_BTD = split(rms_norm(x_BTD, self.mlp_norm[...], c.norm_eps), *WHOLE)
        y_BTD, routed = self._mlp(y_BTD)
        return split(x_BTD + y_BTD, *RESIDUAL), (cache, routed)


@functools.lru_cache
def _block(config: ModelConfig, sparse: bool):
    return nnx.split(nnx.eval_shape(lambda: Block(config, sparse, nnx.Rngs(0))))[0]


def init(key: jax.Array, config: ModelConfig, vocab_size: int) -> Params:
    """Fresh parameters: matrices N(0, 1/fan_in), embedding N(0, 1/D), norms at one."""
    rngs = nnx.Rngs(params=key)
    blocks = [Block(config, i in config.sparse_layers, rngs) for i in range(config.n_layers)]
    layers = [nnx.to_pure_dict(nnx.state(block)) for block in blocks]
    params = {
        "embed": jax.random.normal(rngs.params(), (vocab_size, config.d_model))
        * config.d_model**-0.5,
        "final_norm": jnp.ones(config.d_model),
        "layers": stack_layers(layers) if config.scan_layers else layers,
    }
    if not config.tie_embeddings:
        shape = (config.d_model, vocab_size)
        params["head"] = nnx.initializers.lecun_normal()(rngs.params(), shape)
    return jax.tree.map(lambda x: x.astype(config.param_dtype), params)


def with_critic(params: Params) -> Params:
    """The same with a value head [D] that starts at 0: V = hidden . value."""
    return {**params, "value": jnp.zeros_like(params["final_norm"])}


def values(params: Params, hidden_BD: jax.Array) -> jax.Array:
    """The critic's values, float32, of hidden states [..., D]; V of the token they predict."""
    dtype = jnp.float32
    return jnp.matmul(hidden_BD.astype(dtype), params["value"].astype(dtype))


def stack_layers(layers: list[Params]) -> Params:
    """[{name: [...]}] * L -> {name: [L, ...]}, the layout that `scan_layers` loops over."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def logical_axes(params: Params) -> Params:
    """The tuple of logical axis names of every parameter (stacked layers get "layer" first)."""

    def axes(path, leaf):
        names = AXES[path[-1].key]
        return ("layer",) * (leaf.ndim - len(names)) + names

    return jax.tree_util.tree_map_with_path(axes, params)


def head_matrix(params: Params) -> jax.Array:
    """The [D, V] matrix of the language-model head."""
    return params["head"] if "head" in params else params["embed"].T


def empty_cache(config: ModelConfig, batch: int, length: int) -> Cache:
    shape = (batch, config.n_kv_heads, length, config.head_dim)
    if config.scan_layers:
        shape = (config.n_layers, *shape)
    one = lambda: {name: jnp.zeros(shape, config.compute_dtype) for name in "kv"}  # noqa: E731
    return one() if config.scan_layers else [one() for _ in range(config.n_layers)]


def over_layers(config: ModelConfig, function, cache: Cache, other: Cache) -> Cache:
    """The cache with every layer's become function(its own, that of `other`)."""
    if not config.scan_layers:
        return list(map(function, cache, other))

    def one(i, cache):
        layer = function(*(jax.tree.map(lambda x: x[i], x) for x in (cache, other)))
        return jax.tree.map(lambda x, new: x.at[i].set(new), cache, layer)

    return jax.lax.fori_loop(0, config.n_layers, one, cache)  # in place, a layer at a time


def _forward(
    params, config: ModelConfig, tokens_BT, column_BT, pad_B, S, caches, remember, start_BT=None,
    decoding=False,
):  # fmt: skip
    """Embed, run the blocks, normalise: (hidden_BTD, caches, what the routers did).

    A token in cache column c has position c - pad; it attends to the columns pad .. c of S, in
    local layers to the last `sliding_window` of them, or to those of its chunk of positions. Where
    rows hold several samples, token b, t belongs to one that starts in column `start_BT`: it sees
    no other, and its position goes on from the prompt's, which ends where the first sample starts.
    """
    embed_VD = params["embed"]
    if not decoding:  # tokens outnumber words: the table goes to them
        embed_VD = split(embed_VD, None, "residual")
    x_BTD = jnp.take(embed_VD, tokens_BT, axis=0).astype(config.compute_dtype)
    x_BTD = split(x_BTD, *RESIDUAL)
    position_BT, key_11S = column_BT - pad_B[:, None], jnp.arange(S)[None, None]
    if start_BT is not None:
        U = S - tokens_BT.shape[1]
        position_BT -= start_BT - U
    at = (column_BT, position_BT := jnp.maximum(position_BT, 0), start_BT)

    def seen(local, column_BT, position_BT, start_BT):
        back_BTS = column_BT[..., None] - key_11S  # how far back a key is
        mask_BTS = (key_11S >= pad_B[:, None, None]) & (back_BTS >= 0)
        if start_BT is not None:
            others_BT1 = (start_BT - U)[..., None]  # columns of other samples in between
            back_BTS -= jnp.where(key_11S < U, others_BT1, 0)
            mask_BTS &= (key_11S < U) | (key_11S >= start_BT[..., None])
        if config.sliding_window:
            return mask_BTS & ((back_BTS < config.sliding_window) | ~local)
        if chunk := config.attention_chunk:
            at_BT1 = position_BT[..., None]
            return mask_BTS & (((at_BT1 - back_BTS) // chunk == at_BT1 // chunk) | ~local)
        return mask_BTS

    local = [np.bool_(i in config.local_layers) for i in range(config.n_layers)]

    def step(x_BTD, layer_cache_local):
        layer, cache, local = layer_cache_local
        block = nnx.merge(_block(config, "router" in layer), _gathered(layer, config))
        return block(x_BTD, position_BT, seen, at, local, cache, remember)

    if config.remat:
        step = jax.checkpoint(step, prevent_cse=not config.scan_layers)
    if config.scan_layers and decoding:
        x_BTD, caches, routed = _scanned_in_place(step, x_BTD, params["layers"], caches, local)
    elif config.scan_layers:
        layers = (params["layers"], caches, jnp.array(local))
        x_BTD, (caches, routed) = jax.lax.scan(step, x_BTD, layers)
    else:
        caches = caches or [None] * config.n_layers
        layers, outputs = zip(params["layers"], caches, local, strict=True), []
        for layer in layers:
            x_BTD, output = step(x_BTD, layer)
            outputs.append(output)
        caches, routed = map(list, zip(*outputs, strict=True))
        routed = stack_layers([x for x in routed if x]) if config.n_experts else None
    x_BTD = rms_norm(x_BTD, params["final_norm"], config.norm_eps)
    return split(x_BTD, *WHOLE), caches, routed


def _gathered(layer: Params, config: ModelConfig) -> Params:
    """The layer's parameters, whole along the model's width: they come to where the tokens are.

    XLA 0.10.2, left to gather them itself, adds up wrongly where it also scatters the output.
    """

    def gathered(name, w):
        if w.ndim > 1 and name != "router":
            w = w.astype(config.compute_dtype)
        return split(w, *(None if axis == "model" else axis for axis in AXES[name]))

    return {name: gathered(name, w) for name, w in layer.items()}


def _scanned_in_place(step, x_BTD, layers, caches, local):
    """As a scan over the layers' caches, which would hold the old ones and the new ones at once."""

    def one(carry, layer_local_i):
        (x_BTD, caches), (layer, local, i) = carry, layer_local_i
        cache = jax.tree.map(lambda all: all[i], caches)
        x_BTD, (cache, routed) = step(x_BTD, (layer, cache, local))
        return (x_BTD, jax.tree.map(lambda all, new: all.at[i].set(new), caches, cache)), routed

    layers = (layers, jnp.array(local), jnp.arange(len(local)))
    (x_BTD, caches), routed = jax.lax.scan(one, (x_BTD, caches), layers)
    return x_BTD, caches, routed


def prefill(params, config: ModelConfig, prompt_PU, length_P) -> tuple[jax.Array, Cache]:
    """Run left-padded prompts: the hidden state of the last token [P, D], keys/values [P, U]."""
    U = prompt_PU.shape[1]
    remember = lambda cache, k, v: {"k": k, "v": v}  # noqa: E731
    hidden_PUD, cache, _ = _forward(
        params, config, prompt_PU, jnp.arange(U)[None], U - length_P, U, None, remember
    )
    return hidden_PUD[:, -1], cache


def extend(
    params, config: ModelConfig, context: Cache, length_P, tokens_BT, offset_BT=None, routing=False
):
    """Hidden states [B, T, D] of completions teacher-forced after their prompts' keys/values.

    `context` and `length_P` are those of P prompts; row b continues prompt b // (B / P). A row
    may hold several completions: `offset_BT` is then a token's position in its own.
    routing: give (hidden states, what rlx.models.moe.route did in every layer with experts).
    """
    B, T = tokens_BT.shape
    group = B // length_P.shape[0]
    U = context["k"].shape[3] if config.scan_layers else context[0]["k"].shape[2]

    def remember(context, k_BKTH, v_BKTH):
        repeated = {name: jnp.repeat(context[name], group, axis=0) for name in "kv"}
        return {
            "k": jnp.concatenate([repeated["k"], k_BKTH], axis=2),
            "v": jnp.concatenate([repeated["v"], v_BKTH], axis=2),
        }

    column_1T, pad_B = U + jnp.arange(T)[None], U - jnp.repeat(length_P, group)
    start_BT = None if offset_BT is None else column_1T - offset_BT
    hidden_BTD, _, routed = _forward(
        params, config, tokens_BT, column_1T, pad_B, U + T, context, remember, start_BT
    )
    return (hidden_BTD, routed) if routing else hidden_BTD


def decode(params, config: ModelConfig, cache: Cache, token_W, column_W, pad_W):
    """Feed one token per slot into cache column `column_W`: (hidden_WD, cache).

    `pad_W` counts the columns before the slot's prompt; a token's position is column - pad.
    """
    S = cache["k"].shape[3] if config.scan_layers else cache[0]["k"].shape[2]

    @jax.vmap  # over slots, so that a mesh can split them
    def write(cache_KSH, x_K1H, column):
        return cache_KSH.at[:, column].set(x_K1H[:, 0], mode="drop")

    def remember(cache, k_WK1H, v_WK1H):
        k_WKSH = write(cache["k"], k_WK1H, column_W)
        return {"k": k_WKSH, "v": write(cache["v"], v_WK1H, column_W)}

    hidden_W1D, cache, _ = _forward(
        params, config, token_W[:, None], column_W[:, None], pad_W, S, cache, remember,
        decoding=True,
    )  # fmt: skip
    return hidden_W1D[:, 0], cache
