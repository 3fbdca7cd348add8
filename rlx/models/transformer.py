"""One decoder, configured: RMSNorm, RoPE, grouped-query attention, SwiGLU, a key/value cache.

Parameters are a plain pytree (nested dicts; `layers` is a list, or one stacked dict when
`scan_layers`), every matrix stored as [in, out]. Three pure functions share one block:

    prefill   prompts -> last hidden state and their keys/values
    extend    teacher-forced completions after a prompt's keys/values   (the learner)
    decode    one token per slot, appended to the slot's cache          (the sampler)

Prompts are padded on the right: the token at position s of a sequence has its keys/values in column
s. The learner runs a group's prompt once, as the sampler does. `published` makes the weights for
the sampler: a list of layers even if the learner scans them, in the dtype of its products.

The block is an nnx module only for its initialiser and its call: at the jit boundary everything
is a plain pytree, since dispatching an nnx module takes many times as long as a decode step.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from rlx.config import ModelConfig
from rlx.mesh import split
from rlx.models import attention, moe
from rlx.models.attention import Cache, Seen
from rlx.models.layers import AXES, EXACT, matmul, rms_norm
from rlx.models.rope import rope
from rlx.types import Params

# Between blocks a device holds a part of d_model; within, its own heads or columns of F.
RESIDUAL, WHOLE = ("prompts", None, "residual"), ("prompts", None, None)
# Matrices that are cast to the activations' dtype when used; the head has its own dtype.
CAST = ("q", "k", "v", "o", "gate", "up", "down", "q_bias", "k_bias", "v_bias")
CAST += tuple(f"{kind}_{name}" for kind in ("expert", "shared") for name in ("gate", "up", "down"))
# Matrices that read the same input, and the name under which `joined` lays them side by side.
JOINED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
JOINED["qkv_bias"] = tuple(f"{name}_bias" for name in JOINED["qkv"])


def chosen(config: ModelConfig, mesh: Mesh) -> ModelConfig:
    """`of_platform` for the devices of a mesh."""
    return of_platform(config, mesh.devices.flat[0].platform)


def of_platform(config: ModelConfig, platform: str) -> ModelConfig:
    """The configuration with the kernels of attention and experts chosen for a platform of JAX."""
    return moe.of_platform(attention.of_platform(config, platform), platform)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + swiglu(norm(x)); `sparse`: with experts."""

    def __init__(self, config: ModelConfig, sparse: bool, rngs: nnx.Rngs, side_by_side=False):
        c, init = config, nnx.initializers.lecun_normal()
        heads, kv_heads = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        shapes = {
            "q": (c.d_model, heads),
            "k": (c.d_model, kv_heads),
            "v": (c.d_model, kv_heads),
            "o": (heads, c.d_model),
        }
        shapes |= moe.shapes(c) if sparse else moe.swiglu_shapes(c.d_model, c.d_ff)
        biases = {f"{name}_bias": shapes[name][1:] for name in "qkv"} if c.qkv_bias else {}
        if side_by_side:
            wide = lambda parts: (*parts[0][:-1], sum(shape[-1] for shape in parts))  # noqa: E731
            shapes, biases = joined(shapes, wide), joined(biases, wide)
        expert_init = nnx.initializers.lecun_normal(batch_axis=0)
        for name, shape in shapes.items():
            make = init if len(shape) == 2 else expert_init
            setattr(self, name, nnx.Param(make(rngs.params(), shape)))
        self.attn_norm = nnx.Param(jnp.ones(c.d_model))
        self.mlp_norm = nnx.Param(jnp.ones(c.d_model))
        for name, shape in biases.items():
            setattr(self, name, nnx.Param(jnp.zeros(shape)))
        if c.qk_norm:
            self.q_norm = nnx.Param(jnp.ones(c.head_dim))
            self.k_norm = nnx.Param(jnp.ones(c.head_dim))
        self.config, self.side_by_side = config, side_by_side
        self.names = tuple(shapes) if sparse else ()

    def _linear(self, x_BTD, name: str):
        y = matmul(x_BTD, getattr(self, name)[...])
        bias = getattr(self, f"{name}_bias", None)
        return y if bias is None else y + bias[...].astype(y.dtype)[None, None]

    def _products(self, x_BTD, name: str):
        """Of each matrix of JOINED[name]."""
        if not self.side_by_side:
            return [self._linear(x_BTD, part) for part in JOINED[name]]
        c, y = self.config, self._linear(x_BTD, name)
        kv_width = c.n_kv_heads * c.head_dim
        ends = {"qkv": (-2 * kv_width, -kv_width), "gate_up": (c.d_ff,)}[name]
        return jnp.split(y, [end % y.shape[-1] for end in ends], axis=-1)

    def _heads(self, y, name: str):
        y = y.reshape(*y.shape[:2], -1, self.config.head_dim)
        if self.config.qk_norm and name in "qk":
            y = rms_norm(y, getattr(self, f"{name}_norm")[...], self.config.norm_eps)
        return y

    def _turned(self, x_BTNH, position_BT, local):
        """With RoPE applied, except in layers without it."""
        c, y_BTNH = self.config, rope(x_BTNH, position_BT, self.config)
        if c.qk_unit_norm:
            y_BTNH = rms_norm(y_BTNH, jnp.ones(c.head_dim), c.norm_eps)
        return jnp.where(local, y_BTNH, x_BTNH) if c.no_rope_every else y_BTNH

    def _mlp(self, y_BTD, replay_BTK):
        """(swiglu [B, T, D], the routing)."""
        if self.names:
            weights = {name: getattr(self, name)[...] for name in self.names}
            return moe.feed_forward(weights, y_BTD, self.config, replay_BTK)
        gate_BTF, up_BTF = self._products(y_BTD, "gate_up")
        return matmul(jax.nn.silu(gate_BTF) * up_BTF, self.down[...]), None

    def __call__(self, x_BTD, seen: Seen, local, past, attend, replay_BTK=None):
        """(x, (the past returned by `attend`, a function of rlx.models.attention; the routing))."""
        c, position_BT = self.config, seen.position_BT
        y_BTD = split(rms_norm(x_BTD, self.attn_norm[...], c.norm_eps), *WHOLE)
        q, k, v = self._products(y_BTD, "qkv")
        q_BTQH = self._turned(self._heads(q, "q"), position_BT, local)
        k_BTKH = self._turned(self._heads(k, "k"), position_BT, local)
        if c.far_query_scale:
            far_BT = jnp.log1p(jnp.floor((position_BT + 1.0) / c.far_query_tokens))
            growth_BT = jnp.where(local, 1.0, 1.0 + c.far_query_scale * far_BT)
            q_BTQH = (q_BTQH * growth_BT[..., None, None]).astype(q_BTQH.dtype)
        v_BTKH = self._heads(v, "v")
        y_BTD, past = attend(q_BTQH, k_BTKH, v_BTKH, past, seen, local, c)
        x_BTD = split(x_BTD + matmul(y_BTD, self.o[...]), *RESIDUAL)
        y_BTD = split(rms_norm(x_BTD, self.mlp_norm[...], c.norm_eps), *WHOLE)
        y_BTD, routed = self._mlp(y_BTD, replay_BTK)
        return split(x_BTD + y_BTD, *RESIDUAL), (past, routed)


@functools.lru_cache
def _block(config: ModelConfig, sparse: bool, side_by_side: bool):
    return nnx.split(nnx.eval_shape(lambda: Block(config, sparse, nnx.Rngs(0), side_by_side)))[0]


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
    """`params` with a value head [D], float32, initially 0: V = hidden . value."""
    return {**params, "value": jnp.zeros(params["final_norm"].shape)}


def values(params: Params, hidden_BD: jax.Array) -> jax.Array:
    """The critic's values, float32, of hidden states [..., D], each for the token it predicts."""
    dtype = jnp.float32
    return jnp.matmul(hidden_BD.astype(dtype), params["value"].astype(dtype), precision=EXACT)


def stack_layers(layers: list[Params]) -> Params:
    """[{name: [...]}] * L -> {name: [L, ...]}, the layout of `scan_layers`."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def unstack_layers(layers: Params) -> list[Params]:
    """The inverse of `stack_layers`."""
    leaves, structure = jax.tree.flatten(layers)
    return [structure.unflatten(one) for one in zip(*leaves, strict=True)]


def logical_axes(params: Params) -> Params:
    """The tuple of logical axis names of every parameter (stacked layers get "layer" first)."""

    def axes(path, leaf):
        names = AXES[path[-1].key]
        return ("layer",) * (leaf.ndim - len(names)) + names

    return jax.tree_util.tree_map_with_path(axes, params)


def head_matrix(params: Params) -> jax.Array:
    """The [D, V] matrix of the language-model head."""
    return params["head"] if "head" in params else params["embed"].T


def joined(layer, join):
    """A layer with the matrices of one input as one, made by `join` of a list, see JOINED."""
    there = {name: parts for name, parts in JOINED.items() if parts[0] in layer}
    whole = {name: join([layer[part] for part in parts]) for name, parts in there.items()}
    parts = {part for names in there.values() for part in names}
    return {name: x for name, x in layer.items() if name not in parts} | whole


def published(params: Params, config: ModelConfig, head_dtype: str, side_by_side=False) -> Params:
    """The weights as the sampler's `prefill` and `decode` read them, each cast once.

    The same values as in the learner's products: matrices in the compute dtype, the head in its
    own; norms, router and critic unchanged. A tied embedding has the wider of the two dtypes.
    side_by_side: `joined`, for GPUs, whose compiler otherwise does that for every token.
    """
    cast = dict.fromkeys(CAST, config.compute_dtype) | {"head": head_dtype}
    tied_apart = "head" not in params and head_dtype != config.compute_dtype
    cast["embed"] = "float32" if tied_apart else config.compute_dtype

    def narrowed(tree: Params) -> Params:
        fits = {name: jnp.dtype(cast.get(name, x.dtype)) for name, x in tree.items()}
        narrower = {name for name, x in tree.items() if fits[name].itemsize < x.dtype.itemsize}
        return {name: x.astype(fits[name]) if name in narrower else x for name, x in tree.items()}

    layers = params["layers"]
    if config.scan_layers:
        pick = lambda i: jax.tree.map(lambda x: x[i], layers)  # noqa: E731
        layers = [pick(i) for i in range(config.n_layers)]
    rest = {name: x for name, x in params.items() if name != "layers"}
    layers = [narrowed(layer) for layer in layers]
    if side_by_side:
        layers = [joined(layer, lambda parts: jnp.concatenate(parts, -1)) for layer in layers]
    return narrowed(rest) | {"layers": layers}


def _forward(params, config: ModelConfig, tokens_BT, seen: Seen, pasts, attend, replay_LBTK=None):
    """Embed, run the blocks, normalise: (hidden_BTD, the layers' pasts, the routing).

    replay: experts of the sparse layers; None: chosen by their routers.
    """
    embed_VD = params["embed"]
    if attend is not attention.cached:  # more tokens than vocabulary: gather the table instead
        embed_VD = split(embed_VD, None, "residual")
    x_BTD = jnp.take(embed_VD, tokens_BT, axis=0).astype(config.compute_dtype)
    x_BTD = split(x_BTD, *RESIDUAL)
    local = [np.bool_(i in config.local_layers) for i in range(config.n_layers)]

    def step(x_BTD, layer_past_local_replay):
        layer, past, local, replay_BTK = layer_past_local_replay
        block = _block(config, "router" in layer, "qkv" in layer)
        block = nnx.merge(block, _gathered(layer, config))
        return block(x_BTD, seen, local, past, attend, replay_BTK)

    if config.remat:
        step = jax.checkpoint(step, prevent_cse=not config.scan_layers)
    elif config.scan_layers and config.attention in attention.TILE and not config.query_chunk:
        step = jax.checkpoint(step, prevent_cse=False, policy=_costly)
    if isinstance(params["layers"], dict):  # stacked
        layers = (params["layers"], pasts, jnp.array(local), replay_LBTK)
        x_BTD, (pasts, routed) = jax.lax.scan(step, x_BTD, layers)
    else:
        pasts = pasts or [None] * config.n_layers
        experts = () if replay_LBTK is None else replay_LBTK
        replay = dict(zip(config.sparse_layers, experts, strict=False))
        replay = map(replay.get, range(config.n_layers))
        layers, outputs = zip(params["layers"], pasts, local, replay, strict=True), []
        for layer in layers:
            x_BTD, output = step(x_BTD, layer)
            outputs.append(output)
        pasts, routed = map(list, zip(*outputs, strict=True))
        routed = stack_layers([x for x in routed if x]) if config.n_experts else None
    x_BTD = rms_norm(x_BTD, params["final_norm"], config.norm_eps)
    return split(x_BTD, *WHOLE), pasts, routed


def _costly(primitive, *_, **__) -> bool:
    """What the backward pass of stacked layers reads from memory: products and fused attention.

    Norms, rotations and gates are computed again, in the kernels that need them. The stack then
    takes a third of the memory, and an update of Qwen3-0.6B moves 30 % fewer bytes a layer on an
    H200 (its compiler, 2026-11-27).
    """
    names = ("dot_general", "ragged_dot", "dot_product_attention_fwd", "pallas_call")
    return primitive.name.startswith(names)


def _gathered(layer: Params, config: ModelConfig) -> Params:
    """The layer's parameters gathered along d_model, on every device with tokens.

    XLA 0.10.2, left to gather them itself, adds up wrongly where it also scatters the output.
    """

    def gathered(name, w):
        if w.ndim > 1 and name != "router":
            w = w.astype(config.compute_dtype)
        return split(w, *(None if axis == "model" else axis for axis in AXES[name]))

    return {name: gathered(name, w) for name, w in layer.items()}


def prefill(params, config: ModelConfig, prompt_PU, length_P):
    """Run right-padded prompts: (the hidden state of the last token [P, D], the layers' caches)."""
    P, U = prompt_PU.shape
    position_PU = jnp.broadcast_to(jnp.arange(U)[None], (P, U))
    seen = Seen(position_PU, length_P)
    hidden_PUD, caches, _ = _forward(params, config, prompt_PU, seen, None, attention.prompts)
    last_P11 = jnp.maximum(length_P - 1, 0)[:, None, None]
    return jnp.take_along_axis(hidden_PUD, last_P11, axis=1)[:, 0], caches


def extend(
    params, config: ModelConfig, context, length_P, tokens_BT, offset_BT=None, routing=False,
    replay_LBTK=None,
):  # fmt: skip
    """Hidden states [B, T, D] of completions teacher-forced after their prompts' keys/values.

    `context` and `length_P` are those of P prompts; row b continues prompt b // (B / P). A row
    may hold several completions; `offset_BT` is then a token's position in its own.
    routing: return (hidden states, routing of the sparse layers); `replay_LBTK`: experts to use.
    """
    B, T = tokens_BT.shape
    column_BT = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
    start_BT = None if offset_BT is None else column_BT - offset_BT
    at_BT = column_BT if offset_BT is None else offset_BT
    seen = Seen(jnp.repeat(length_P, B // len(length_P))[:, None] + at_BT, length_P, start_BT)
    hidden_BTD, _, routed = _forward(
        params, config, tokens_BT, seen, context, attention.completions, replay_LBTK
    )
    return (hidden_BTD, routed) if routing else hidden_BTD


def decode(params, config: ModelConfig, caches: list[Cache], token_W, position_W, routing=False):
    """Feed one token per slot, at its position in its sequence: (hidden_WD, caches).

    routing: return also expert_WLK, the experts that it is routed to.
    """
    seen = Seen(position_W[:, None], position_W)
    hidden_W1D, caches, routed = _forward(
        params, config, token_W[:, None], seen, caches, attention.cached
    )
    if routing:
        return hidden_W1D[:, 0], caches, routed.expert_BTK[:, :, 0].swapaxes(0, 1)
    return hidden_W1D[:, 0], caches
