"""Attention: which keys a query sees, the layout of keys and values, and the kernels.

The only module that knows how keys and values are laid out and which kernel reads them. The token
at position s of a sequence has its key and value in column s; prompts are padded on the right. A
query at position p sees the positions first(p) .. p of its own prompt and sample:

    first(p) = 0;   with a window of w keys  p - w + 1;   in chunks of c positions  c floor(p / c)

A block calls one of three functions, `(q, k, v, past, seen, local, config) -> (y, past)`:

    prompts      attend to themselves; the past that they return is their cache
    completions  attend to the cache of their prompt and to themselves (the learner): samples of a
                 prompt share its keys and values, whose gradients add up
    cached       append one token per row to its cache and attend to that (the sampler)

`model.attention` names the kernel: `xla`, or a fused one that never materialises scores, for layers
without window or chunks, in bfloat16: `cudnn` on NVIDIA GPUs, where decoding reads no columns
beyond a row's length, and `splash` on TPUs (Pallas), where decoding uses XLA. With packed rows the
learner uses XLA: the fused kernels have no such bounds.

Letters as in rlx.types; r: the Q / K query heads that share one key/value head.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlx import mesh as meshes
from rlx.config import ModelConfig
from rlx.errors import InputError
from rlx.objectives.logprobs import NEVER

FUSED = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}
HEAD_DIMS = {"cudnn": range(8, 129, 8), "splash": (64, 128)}
TILE = {"cudnn": 64, "splash": 128}  # a fused kernel takes full tiles of columns


def of_platform(config: ModelConfig, platform: str) -> ModelConfig:
    """The configuration with `attention=auto` resolved for a platform of JAX."""
    if config.attention != "auto":
        return config
    kernel = FUSED.get(platform, "xla")
    breaks = kernel == "cudnn" and not config.scan_layers  # XLA of JAX 0.11.2 ends on an H200
    return replace(config, attention="xla" if breaks or _misfit(config, kernel) else kernel)


def check(config: ModelConfig) -> None:
    """Raises InputError if the kernel that the configuration names cannot compute its attention."""
    if reason := _misfit(config, config.attention):
        raise InputError("model.attention", config.attention, reason, "use auto or xla")


def _misfit(config: ModelConfig, kernel: str) -> str:
    """Why a kernel cannot compute the attention of a configuration; empty if it can."""
    if kernel not in HEAD_DIMS:
        return ""
    for name in ("sliding_window", "attention_chunk"):
        if bound := getattr(config, name):
            return f"it attends to all tokens, not within model.{name}={bound}"
    if config.compute_dtype != "bfloat16":
        return f"it computes in bfloat16, not in model.compute_dtype={config.compute_dtype}"
    fits = config.head_dim in HEAD_DIMS[kernel]
    return "" if fits else f"it has no model.head_dim={config.head_dim}"


class Seen(NamedTuple):
    """Which columns the queries [B, T] of a forward pass see."""

    position_BT: jax.Array  # int32, of the query in its sequence
    length_P: jax.Array  # int32, of the prompts before the completions
    start_BT: jax.Array | None = None  # int32, first column of the query's sample; None: column 0

    def first_BT(self, config: ModelConfig, local) -> jax.Array:
        """int32, the first position that the query sees in a layer; local: has window or chunks."""
        if config.sliding_window:
            near_BT = self.position_BT - config.sliding_window + 1
        elif config.attention_chunk:
            near_BT = self.position_BT // config.attention_chunk * config.attention_chunk
        else:
            return jnp.zeros_like(self.position_BT)
        return jnp.where(local, jnp.maximum(near_BT, 0), 0)


@struct.dataclass
class Cache:
    """Keys and values of a layer, S columns per row; in a scan, of all layers on a first axis.

    cudnn: [B, S, K, H]; others: [B, K, S, H], with the batch axes of both products first (on CPU
    XLA would copy operands in any other order).
    """

    k: jax.Array
    v: jax.Array
    kernel: str = struct.field(pytree_node=False)

    @property
    def axes(self) -> tuple[str | None, ...]:
        """Logical axes of the arrays."""
        return ("slots", None, "kv_heads") if self.kernel == "cudnn" else ("slots", "kv_heads")

    @property
    def columns(self) -> int:
        return self.k.shape[-3 if self.kernel == "cudnn" else -2]

    @property
    def by_column(self) -> tuple[jax.Array, jax.Array]:
        """k, v [B, S, K, H]."""
        if self.kernel == "cudnn":
            return self.k, self.v
        return self.k.swapaxes(1, 2), self.v.swapaxes(1, 2)

    def insert(self, prompt: Cache, row_W: jax.Array, new_W: jax.Array) -> Cache:
        """Where `new_W`, replace the first columns by those of row `row_W` of `prompt`."""
        U = prompt.columns
        here = (slice(None),) * (1 if self.kernel == "cudnn" else 2) + (slice(U),)

        def filled(mine, theirs):
            kept = jnp.expand_dims(new_W, range(1, mine.ndim))
            return mine.at[here].set(jnp.where(kept, theirs[row_W], mine[here]))

        return self.replace(k=filled(self.k, prompt.k), v=filled(self.v, prompt.v))

    def append(self, k_W1KH, v_W1KH, column_W) -> Cache:
        """With one more token per row; columns beyond the last are dropped."""

        @jax.vmap  # over slots, so that a mesh can split them
        def write(cache, x_1KH, column):
            if self.kernel == "cudnn":
                return cache.at[column].set(x_1KH[0], mode="drop")
            return cache.at[:, column].set(x_1KH[0], mode="drop")

        return self.replace(k=write(self.k, k_W1KH, column_W), v=write(self.v, v_W1KH, column_W))

    def attend(self, q_WTQH, first_WT, end_WT) -> jax.Array:
        """softmax(q k^T / sqrt(H)) v over the columns first .. end - 1, [W, T, Q H]."""
        if self.kernel == "cudnn":
            return _cudnn(q_WTQH, self.k, self.v, key_value_seq_lengths=end_WT[:, -1])
        return _xla(q_WTQH, (self.k, self.v, first_WT, end_WT), None, 0)


def of(k_BTKH, v_BTKH, kernel: str) -> Cache:
    """A cache of exactly these keys and values."""
    if kernel == "cudnn":
        return Cache(k_BTKH, v_BTKH, kernel)
    return Cache(k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2), kernel)


def empty(config: ModelConfig, batch: int, columns: int) -> list[Cache]:
    """One cache of zeros per layer."""
    shape = (batch, columns, config.n_kv_heads, config.head_dim)
    zeros = lambda: jnp.zeros(shape, config.compute_dtype)  # noqa: E731
    return [of(zeros(), zeros(), config.attention) for _ in range(config.n_layers)]


def prompts(q_PUQH, k_PUKH, v_PUKH, past: None, seen: Seen, local, config: ModelConfig):
    """(y [P, U, Q H], their cache). Padding is never attended to."""
    own = of(k_PUKH, v_PUKH, config.attention)
    if own.kernel in TILE:
        return _causal(q_PUQH, k_PUKH, v_PUKH, own.kernel), own
    keys = (own.k, own.v, seen.first_BT(config, local), seen.position_BT + 1)
    return _xla(q_PUQH, keys, None, config.query_chunk), own


def completions(q_BTQH, k_BTKH, v_BTKH, past: Cache, seen: Seen, local, config: ModelConfig):
    """(y [B, T, Q H], None); row b continues prompt b // (B / P) of the past."""
    if past.kernel in TILE and seen.start_BT is None:
        return _after_prompt(q_BTQH, k_BTKH, v_BTKH, past, seen.length_P), None
    if past.kernel == "cudnn":
        past = of(past.k, past.v, "xla")
    B, T = q_BTQH.shape[:2]
    first_BT, length_B1 = seen.first_BT(config, local), _per_row(seen.length_P, B)[:, None]
    start_BT = jnp.zeros((B, T), jnp.int32) if seen.start_BT is None else seen.start_BT
    own = of(k_BTKH, v_BTKH, "xla")
    first_own_BT = start_BT + jnp.maximum(first_BT - length_B1, 0)
    end_own_BT = jnp.broadcast_to(1 + jnp.arange(T)[None], (B, T))
    keys = (past.k, past.v, first_BT, jnp.broadcast_to(length_B1, (B, T)))
    y_BTD = _xla(q_BTQH, keys, (own.k, own.v, first_own_BT, end_own_BT), config.query_chunk)
    return y_BTD, None


def cached(q_W1QH, k_W1KH, v_W1KH, past: Cache, seen: Seen, local, config: ModelConfig):
    """(y [W, 1, Q H], the cache with this token)."""
    past = past.append(k_W1KH, v_W1KH, seen.position_BT[:, 0])
    end_W1 = jnp.minimum(seen.position_BT + 1, past.columns)
    return past.attend(q_W1QH, seen.first_BT(config, local), end_W1), past


def _per_row(x_P: jax.Array, rows: int) -> jax.Array:
    return jnp.repeat(x_P, rows // x_P.shape[0], axis=0)


def _xla(q_BTQH, keys, own, chunk: int) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v, in float32.

    keys: k, v [P, K, S, H], shared by G = B / P rows, and the columns first_BT .. end_BT - 1 that
    a query sees; own: the same with k, v [B, K, T, H], or None.
    chunk: queries whose scores [P, K, G, r, chunk, S + T] exist at once, forward and backward; 0:
    all T.
    """
    (B, T, Q, H), (P, K), dtype = q_BTQH.shape, keys[0].shape[:2], keys[0].dtype
    G = B // P
    q_PKGrTH = q_BTQH.reshape(P, G, T, K, Q // K, H).transpose(0, 3, 1, 4, 2, 5)
    S, bounds = keys[0].shape[2], [[tuple(x.reshape(P, G, T) for x in keys[2:])]]
    kv: list[tuple[jax.Array, ...]] = [keys[:2]]
    if own is not None:
        kv.append(tuple(x.reshape(P, G, K, T, H).swapaxes(1, 2) for x in own[:2]))
        bounds.append([tuple(x.reshape(P, G, T) for x in own[2:])])
        if 2 * S <= T:  # copies of few keys cost less than a second product
            kv, bounds = [_joined(*kv)], [[bounds[0][0], tuple(x + S for x in bounds[1][0])]]
    if not 0 < chunk < T:
        y_PKGrTH = _weighted(q_PKGrTH, kv, bounds)
    else:
        kv = jax.tree.map(lambda x: x.astype(jnp.float32), kv)  # gradients add up in float32
        sliced = lambda x, axis: _in_chunks(x, chunk, axis)  # noqa: E731
        parts = (sliced(q_PKGrTH, 4), jax.tree.map(lambda x: sliced(x, 2), bounds))
        one = jax.checkpoint(lambda at: _weighted(at[0], _cast(kv, dtype), at[1]))
        y_PKGrTH = jnp.moveaxis(jax.lax.map(one, parts), 0, 4)
        y_PKGrTH = y_PKGrTH.reshape(P, K, G, Q // K, -1, H)[..., :T, :]
    return y_PKGrTH.transpose(0, 2, 4, 1, 3, 5).reshape(B, T, Q * H)


def _joined(shared, own):
    """k, v [P, K, G, S + T, H]: each row's own, after a copy of those shared with its prompt."""
    copies = lambda x, like: jnp.broadcast_to(x[:, :, None], (*like.shape[:3], *x.shape[2:]))  # noqa: E731
    return tuple(jnp.concatenate([copies(x, y), y], 3) for x, y in zip(shared, own, strict=True))


def _cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def _in_chunks(x, chunk: int, axis: int):
    """[chunks, ..., chunk, ...] of an axis padded to full chunks."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % chunk)
    x = jnp.pad(x, widths)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, chunk, *x.shape[axis + 1 :]), axis, 0)


def _weighted(q_PKGrTH, kv, bounds) -> jax.Array:
    """One softmax over the columns of all blocks; a uniform average where no column is seen.

    kv: per block k, v [P, K, S, H], shared by the rows of a prompt, or [P, K, G, S, H].
    bounds: per block the ranges of columns, first .. end - 1 [P, G, T], that a query sees.
    """
    scale, dtype = q_PKGrTH.shape[-1] ** -0.5, kv[0][1].dtype
    rows = [{4: "pk", 5: "pkg"}[k.ndim] for k, _ in kv]
    scores = []
    for (k, _), ranges, row in zip(kv, bounds, rows, strict=True):
        column_S = jnp.arange(k.shape[-2])[None, None, None]
        within = [(column_S >= a[..., None]) & (column_S < b[..., None]) for a, b in ranges]
        seen_PGTS = functools.reduce(jnp.logical_or, within)
        product = f"pkgrth,{row}sh->pkgrts"
        score = jnp.einsum(product, q_PKGrTH, k, preferred_element_type=jnp.float32)
        scores.append(jnp.where(seen_PGTS[:, None, :, None], score * scale, NEVER))
    weight = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(dtype)
    ends = np.cumsum([score.shape[-1] for score in scores])
    y = 0.0
    for (_, v), row, w in zip(kv, rows, jnp.split(weight, ends[:-1], axis=-1), strict=True):
        y = y + jnp.einsum(f"pkgrts,{row}sh->pkgrth", w, v)
    return y


def _cudnn(q_BTQH, k_BSKH, v_BSKH, **bounds) -> jax.Array:
    y_BTQH = jax.nn.dot_product_attention(q_BTQH, k_BSKH, v_BSKH, implementation="cudnn", **bounds)
    return y_BTQH.reshape(*q_BTQH.shape[:2], -1)


def _causal(q_BSQH, k_BSKH, v_BSKH, kernel: str) -> jax.Array:
    """[B, S, Q H]; query s attends to columns 0 .. s."""
    S = q_BSQH.shape[1]
    padding = ((0, 0), (0, -S % TILE[kernel]), (0, 0), (0, 0))  # only padded queries attend to it
    padded = [jnp.pad(x, padding) for x in (q_BSQH, k_BSKH, v_BSKH)]
    y_BSD = _cudnn(*padded, is_causal=True) if kernel == "cudnn" else _splash(*padded)
    return y_BSD[:, :S]


def _splash(q_BSQH, k_BSKH, v_BSKH) -> jax.Array:
    """[B, S, Q H] by a TPU kernel (Pallas); each device of the visible mesh has its rows, heads."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # import: 0.5 s

    S = q_BSQH.shape[1]
    block = max(n for n in (128, 256, 384, 512) if S % n == 0)  # rows and columns at once
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes = splash.BlockSizes(**{f"block_{name}": block for name in names})

    def part(q_BSQH, k_BSKH, v_BSKH):
        q, k, v = (x.swapaxes(1, 2) for x in (q_BSQH * q_BSQH.shape[-1] ** -0.5, k_BSKH, v_BSKH))
        heads = splash.MultiHeadMask([splash.CausalMask((S, S))] * q.shape[1])
        attend = splash.make_splash_mha(heads, block_sizes=sizes, head_shards=1, q_seq_shards=1)
        y_BSQH = jax.vmap(attend)(q, k, v).swapaxes(1, 2)
        return y_BSQH.reshape(*y_BSQH.shape[:2], -1)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:  # 0: none is visible
        return part(q_BSQH, k_BSKH, v_BSKH)
    split = meshes.sharding(mesh, ("prompts", None, "kv_heads"), k_BSKH.shape).spec
    spread = jax.shard_map(part, mesh=mesh, in_specs=(split,) * 3, out_specs=split, check_vma=False)
    return spread(q_BSQH, k_BSKH, v_BSKH)


def _after_prompt(q_BTQH, k_BTKH, v_BTKH, past: Cache, length_P) -> jax.Array:
    """Completions after their prompts, by one causal kernel over U + T columns.

    Every row is laid out by position, the completion right after its prompt, so that causal
    masking is enough; columns without a completion token have no query.
    """
    (B, T), U = q_BTQH.shape[:2], past.columns
    length_B1 = _per_row(length_P, B)[:, None]
    S = U + T + -(U + T) % TILE[past.kernel]
    column_1S = jnp.arange(S)[None]
    own_BS = column_1S - length_B1  # index of the completion token in a column
    is_own_BS = (own_BS >= 0) & (own_BS < T)
    source_BS = jnp.where(is_own_BS, U + own_BS, jnp.where(own_BS < 0, column_1S, U + T))

    def placed(x, source_BS):  # sources are unique, so no gradients collide
        take = lambda x, at: x.at[at].get(mode="fill", fill_value=0, unique_indices=True)  # noqa: E731
        return jax.vmap(take)(x, source_BS)

    k_BSKH, v_BSKH = (
        placed(jnp.concatenate([_per_row(before, B), x], axis=1), source_BS)
        for before, x in zip(past.by_column, (k_BTKH, v_BTKH), strict=True)
    )
    q_BSQH = placed(q_BTQH, jnp.where(is_own_BS, own_BS, T))
    y_BSD = _causal(q_BSQH, k_BSKH, v_BSKH, past.kernel)
    return placed(y_BSD, length_B1 + jnp.arange(T)[None])
