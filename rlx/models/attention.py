"""Attention: what a query sees, and the keys and values that it looks at.

The one place that knows how keys and values are laid out and which kernel reads them. Key and value
of the token at position s of a sequence stand in column s; prompts are padded on the right. A query
at position p sees the positions first(p) .. p of its own prompt and sample:

    first(p) = 0;   with a window of w keys  p - w + 1;   in chunks of c positions  c floor(p / c)

Three functions with one signature, `(q, k, v, past, seen, local, config) -> (y, past)`, are what a
block may do with the keys and values of its tokens:

    prompts      look at themselves; the past that they leave is their cache
    completions  look at the cache of their prompt and at themselves (the learner): samples of a
                 prompt share its keys and values, whose gradients add up
    cached       one token per row is appended to its cache and looks at that (the sampler)

`model.attention` names the kernel: `xla`, or a fused one, whose scores never exist, for layers
without window or chunks, in bfloat16: `cudnn` on NVIDIA GPUs, where decoding does not read columns
beyond a sequence's length either, and `splash` on TPUs (Pallas), where decoding is XLA's. Where
rows hold several samples (packing) the learner uses XLA: the fused kernels know no such bounds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from rlx import mesh as meshes
from rlx.config import ModelConfig

FUSED = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}
HEAD_DIMS = {"cudnn": range(8, 129, 8), "splash": (64, 128)}
TILE = {"cudnn": 64, "splash": 128}  # columns of a fused kernel come in whole tiles
NEVER = -1e30  # finite, so that a fully masked row gives a uniform average and not NaN


def chosen(config: ModelConfig, mesh: Mesh) -> ModelConfig:
    """The configuration with the kernel that `attention=auto` means on the devices of a mesh."""
    return of_platform(config, mesh.devices.flat[0].platform)


def of_platform(config: ModelConfig, platform: str) -> ModelConfig:
    if config.attention != "auto":
        return config
    kernel = FUSED.get(platform, "xla")
    fits = config.compute_dtype == "bfloat16" and config.head_dim in HEAD_DIMS.get(kernel, ())
    bounded = config.sliding_window or config.attention_chunk
    return replace(config, attention=kernel if fits and not bounded else "xla")


class Seen(NamedTuple):
    """What the queries [B, T] of a forward pass see, as data."""

    position_BT: jax.Array  # int32, of the query in its sequence
    length_P: jax.Array  # int32, tokens of the prompts that completions follow
    start_BT: jax.Array | None = None  # int32, column in which its sample starts; None: column 0

    def first_BT(self, config: ModelConfig, local) -> jax.Array:
        """int32, the first position that the query sees in a layer that is `local` or is not."""
        if config.sliding_window:
            near_BT = self.position_BT - config.sliding_window + 1
        elif config.attention_chunk:
            near_BT = self.position_BT // config.attention_chunk * config.attention_chunk
        else:
            return jnp.zeros_like(self.position_BT)
        return jnp.where(local, jnp.maximum(near_BT, 0), 0)


@struct.dataclass
class Cache:
    """Keys and values of a layer, S columns a row; in a scan those of all layers, on a first axis.

    cudnn: [B, S, K, H]; others: [B, K, S, H], whose batch axes lead in both products (on CPU any
    other order makes XLA copy its operands).
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
        """Where `new_W`, the columns of a prompt are those of row `row_W` of `prompt`."""
        U = prompt.columns
        here = (slice(None),) * (1 if self.kernel == "cudnn" else 2) + (slice(U),)

        def filled(mine, theirs):
            kept = jnp.expand_dims(new_W, range(1, mine.ndim))
            return mine.at[here].set(jnp.where(kept, theirs[row_W], mine[here]))

        return self.replace(k=filled(self.k, prompt.k), v=filled(self.v, prompt.v))

    def append(self, k_W1KH, v_W1KH, column_W) -> Cache:
        """With one more token a row; columns beyond the last are dropped."""

        @jax.vmap  # over slots, so that a mesh can split them
        def write(cache, x_1KH, column):
            if self.kernel == "cudnn":
                return cache.at[column].set(x_1KH[0], mode="drop")
            return cache.at[:, column].set(x_1KH[0], mode="drop")

        return self.replace(k=write(self.k, k_W1KH, column_W), v=write(self.v, v_W1KH, column_W))

    def attend(self, q_WTNH, first_WT, end_WT) -> jax.Array:
        """softmax(q k^T / sqrt(H)) v over the columns first .. end - 1, [W, T, N H]."""
        if self.kernel == "cudnn":
            return _cudnn(q_WTNH, self.k, self.v, key_value_seq_lengths=end_WT[:, -1])
        return _xla(q_WTNH, (self.k, self.v, first_WT, end_WT), None, 0)


def of(k_BTKH, v_BTKH, kernel: str) -> Cache:
    """A cache that holds these and no more."""
    if kernel == "cudnn":
        return Cache(k_BTKH, v_BTKH, kernel)
    return Cache(k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2), kernel)


def empty(config: ModelConfig, batch: int, columns: int) -> list[Cache]:
    """One cache a layer, zeros."""
    shape = (batch, columns, config.n_kv_heads, config.head_dim)
    zeros = lambda: jnp.zeros(shape, config.compute_dtype)  # noqa: E731
    return [of(zeros(), zeros(), config.attention) for _ in range(config.n_layers)]


def prompts(q_PUNH, k_PUKH, v_PUKH, past: None, seen: Seen, local, config: ModelConfig):
    """(y [P, U, N H], their cache); what stands behind a prompt's end is never looked at."""
    own = of(k_PUKH, v_PUKH, config.attention)
    if own.kernel != "xla":
        return _causal(q_PUNH, k_PUKH, v_PUKH, own.kernel), own
    keys = (own.k, own.v, seen.first_BT(config, local), seen.position_BT + 1)
    return _xla(q_PUNH, keys, None, config.query_chunk), own


def completions(q_BTNH, k_BTKH, v_BTKH, past: Cache, seen: Seen, local, config: ModelConfig):
    """(y [B, T, N H], None); row b continues prompt b // (B / P) of the past."""
    if past.kernel != "xla" and seen.start_BT is None:
        return _after_prompt(q_BTNH, k_BTKH, v_BTKH, past, seen.length_P), None
    if past.kernel == "cudnn":
        past = of(past.k, past.v, "xla")
    B, T = q_BTNH.shape[:2]
    first_BT, length_B1 = seen.first_BT(config, local), _per_row(seen.length_P, B)[:, None]
    start_BT = jnp.zeros((B, T), jnp.int32) if seen.start_BT is None else seen.start_BT
    own = of(k_BTKH, v_BTKH, "xla")
    first_own_BT = start_BT + jnp.maximum(first_BT - length_B1, 0)
    end_own_BT = jnp.broadcast_to(1 + jnp.arange(T)[None], (B, T))
    keys = (past.k, past.v, first_BT, jnp.broadcast_to(length_B1, (B, T)))
    y_BTD = _xla(q_BTNH, keys, (own.k, own.v, first_own_BT, end_own_BT), config.query_chunk)
    return y_BTD, None


def cached(q_W1NH, k_W1KH, v_W1KH, past: Cache, seen: Seen, local, config: ModelConfig):
    """(y [W, 1, N H], the cache with this token)."""
    past = past.append(k_W1KH, v_W1KH, seen.position_BT[:, 0])
    end_W1 = jnp.minimum(seen.position_BT + 1, past.columns)
    return past.attend(q_W1NH, seen.first_BT(config, local), end_W1), past


def _per_row(x_P: jax.Array, rows: int) -> jax.Array:
    return jnp.repeat(x_P, rows // x_P.shape[0], axis=0)


def _xla(q_BTNH, keys, own, chunk: int) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v, in float32; R = N / K query heads share each key/value head.

    keys: k, v [P, K, S, H] that G = B / P rows share, and the columns first_BT .. end_BT - 1 that
    a query sees; own: the same with k, v [B, K, T, H], or None.
    chunk: queries whose scores [P, K, G, R, chunk, S + T] exist at once, forward and backward; 0:
    all T.
    """
    (B, T, N, H), (P, K), dtype = q_BTNH.shape, keys[0].shape[:2], keys[0].dtype
    G = B // P
    q_PKGRTH = q_BTNH.reshape(P, G, T, K, N // K, H).transpose(0, 3, 1, 4, 2, 5)
    blocks = [(*keys[:2], *(x.reshape(P, G, T) for x in keys[2:]))]
    if own is not None:
        k_PKGTH, v_PKGTH = (x.reshape(P, G, K, T, H).swapaxes(1, 2) for x in own[:2])
        blocks.append((k_PKGTH, v_PKGTH, *(x.reshape(P, G, T) for x in own[2:])))
    kv = [block[:2] for block in blocks]
    bounds = [block[2:] for block in blocks]
    if not 0 < chunk < T:
        y_PKGRTH = _weighed(q_PKGRTH, kv, bounds)
    else:
        kv = jax.tree.map(lambda x: x.astype(jnp.float32), kv)  # their gradients add up
        sliced = lambda x, axis: _in_chunks(x, chunk, axis)  # noqa: E731
        parts = (sliced(q_PKGRTH, 4), jax.tree.map(lambda x: sliced(x, 2), bounds))
        one = jax.checkpoint(lambda at: _weighed(at[0], _cast(kv, dtype), at[1]))
        y_PKGRTH = jnp.moveaxis(jax.lax.map(one, parts), 0, 4)
        y_PKGRTH = y_PKGRTH.reshape(P, K, G, N // K, -1, H)[..., :T, :]
    return y_PKGRTH.transpose(0, 2, 4, 1, 3, 5).reshape(B, T, N * H)


def _cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def _in_chunks(x, chunk: int, axis: int):
    """[chunks, ..., chunk, ...] of an axis that is padded to whole chunks."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % chunk)
    x = jnp.pad(x, widths)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, chunk, *x.shape[axis + 1 :]), axis, 0)


def _weighed(q_PKGRTH, kv, bounds) -> jax.Array:
    """The softmax runs over the columns of all blocks."""
    scale, dtype = q_PKGRTH.shape[-1] ** -0.5, kv[0][1].dtype
    products = ("pkgrth,pksh->pkgrts", "pkgrth,pkgsh->pkgrts")
    scores = []
    for (k, _), (first_PGT, end_PGT), product in zip(kv, bounds, products, strict=False):
        column_S = jnp.arange(k.shape[-2])[None, None, None]
        seen_PGTS = (column_S >= first_PGT[..., None]) & (column_S < end_PGT[..., None])
        score = jnp.einsum(product, q_PKGRTH, k, preferred_element_type=jnp.float32)
        scores.append(jnp.where(seen_PGTS[:, None, :, None], score * scale, NEVER))
    weight = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(dtype)
    S = kv[0][0].shape[-2]
    y = jnp.einsum("pkgrts,pksh->pkgrth", weight[..., :S], kv[0][1])
    for _, v_PKGSH in kv[1:]:
        y += jnp.einsum("pkgrts,pkgsh->pkgrth", weight[..., S:], v_PKGSH)
    return y


def _cudnn(q_BTNH, k_BSKH, v_BSKH, **bounds) -> jax.Array:
    y_BTNH = jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, implementation="cudnn", **bounds)
    return y_BTNH.reshape(*q_BTNH.shape[:2], -1)


def _causal(q_BSNH, k_BSKH, v_BSKH, kernel: str) -> jax.Array:
    """[B, S, N H]; column s is seen by the queries s .. S - 1."""
    if kernel == "cudnn":
        return _cudnn(q_BSNH, k_BSKH, v_BSKH, is_causal=True)
    S = q_BSNH.shape[1]
    behind = ((0, 0), (0, -S % TILE[kernel]), (0, 0), (0, 0))  # seen by no query that is kept
    y_BSNH = _splash(*(jnp.pad(x, behind) for x in (q_BSNH, k_BSKH, v_BSKH)))
    return y_BSNH[:, :S].reshape(*q_BSNH.shape[:2], -1)


def _splash(q_BSNH, k_BSKH, v_BSKH) -> jax.Array:
    """The Pallas kernel of TPUs on whole tiles; every device of the visible mesh has its rows and
    heads.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # half a second

    S = q_BSNH.shape[1]
    block = max(n for n in (128, 256, 384, 512) if S % n == 0)  # rows and columns at once
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes = splash.BlockSizes(**{f"block_{name}": block for name in names})

    def part(q_BSNH, k_BSKH, v_BSKH):
        q, k, v = (x.swapaxes(1, 2) for x in (q_BSNH * q_BSNH.shape[-1] ** -0.5, k_BSKH, v_BSKH))
        heads = splash.MultiHeadMask([splash.CausalMask((S, S))] * q.shape[1])
        attend = splash.make_splash_mha(heads, block_sizes=sizes, head_shards=1, q_seq_shards=1)
        return jax.vmap(attend)(q, k, v).swapaxes(1, 2)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:  # 0: none is visible
        return part(q_BSNH, k_BSKH, v_BSKH)
    split = meshes.sharding(mesh, ("prompts", None, "kv_heads"), k_BSKH.shape).spec
    spread = jax.shard_map(part, mesh=mesh, in_specs=(split,) * 3, out_specs=split, check_vma=False)
    return spread(q_BSNH, k_BSKH, v_BSKH)


def _after_prompt(q_BTNH, k_BTKH, v_BTKH, past: Cache, length_P) -> jax.Array:
    """Completions behind their prompts, by one causal kernel over U + T columns.

    Every row is laid out by position, the completion where the prompt ends, so that a query sees
    all that stands before it; columns that hold no completion have no query.
    """
    (B, T), U = q_BTNH.shape[:2], past.columns
    length_B1 = _per_row(length_P, B)[:, None]
    S = U + T + -(U + T) % TILE[past.kernel]
    column_1S = jnp.arange(S)[None]
    own_BS = column_1S - length_B1  # the completion's token that stands in a column
    is_own_BS = (own_BS >= 0) & (own_BS < T)
    source_BS = jnp.where(is_own_BS, U + own_BS, jnp.where(own_BS < 0, column_1S, U + T))

    def placed(x, source_BS):  # each column comes from one place, so gradients never meet
        take = lambda x, at: x.at[at].get(mode="fill", fill_value=0, unique_indices=True)  # noqa: E731
        return jax.vmap(take)(x, source_BS)

    k_BSKH, v_BSKH = (
        placed(jnp.concatenate([_per_row(before, B), x], axis=1), source_BS)
        for before, x in zip(past.by_column, (k_BTKH, v_BTKH), strict=True)
    )
    q_BSNH = placed(q_BTNH, jnp.where(is_own_BS, own_BS, T))
    y_BSD = _causal(q_BSNH, k_BSKH, v_BSKH, past.kernel)
    return placed(y_BSD, length_B1 + jnp.arange(T)[None])
