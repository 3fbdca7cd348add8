"""Mixture of experts: a router sends each token to K of E feed-forward networks. None is dropped.

    softmax   y = sum_k w_k f_k(x),   w = softmax over all E of x . router, kept for the K largest,
              divided by their sum if `norm_topk`                          (Mixtral, Qwen3)
    sigmoid   y = sum_k f_k(s_k x),   s = sigmoid(x . router) of the K largest    (Llama 4)
    shared    + f_shared(x), for every token

`sorted` orders the (token, expert) pairs by expert and multiplies each run of rows by its expert's
matrices (jax.lax.ragged_dot), `blocks` does so in blocks of rows (rlx.models.blocks), and `dense`
runs every expert on every token and masks; `auto` is blocks on a GPU, else sorted. On a mesh each
device does this for its own tokens, experts and columns of F, and the results are summed over
devices. A token's output does not depend on other tokens or on padding.

Routing replay: the learner uses the experts that the sampler's router chose (arXiv 2510.11370),
with weights from its own scores, through which the gradient flows.

K is here the number of experts per token.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlx import mesh as meshes
from rlx.config import ModelConfig
from rlx.models import blocks
from rlx.models.layers import EXACT, matmul
from rlx.types import Params

TILE = 512, 1024, 1024  # rows and columns of x and dy that the TPU's kernel takes at once
EXPERT_AXES = {
    "gate": ("expert", None, "ffn"),
    "up": ("expert", None, "ffn"),
    "down": ("expert", "ffn", None),
}


def of_platform(config: ModelConfig, platform: str) -> ModelConfig:
    """The configuration with `moe_dispatch=auto` resolved for a platform of JAX."""
    if config.moe_dispatch != "auto":
        return config
    return replace(config, moe_dispatch="blocks" if platform in ("gpu", "cuda") else "sorted")


class Routed(NamedTuple):
    """The routing of a layer; stacked over the sparse layers, [L, B, T, ...]."""

    score_BTE: jax.Array  # float32: softmax or sigmoid
    expert_BTK: jax.Array
    moved_BT: jax.Array | None = None  # bool: its own choice differs from the replayed one


def swiglu_shapes(d_model: int, d_ff: int, prefix: str = "") -> dict[str, tuple[int, ...]]:
    wide, narrow = (d_model, d_ff), (d_ff, d_model)
    return {f"{prefix}gate": wide, f"{prefix}up": wide, f"{prefix}down": narrow}


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of a sparse layer's feed-forward."""
    c = config
    experts = swiglu_shapes(c.d_model, c.d_ff_expert, "expert_")
    stacked = {name: (c.n_experts, *shape) for name, shape in experts.items()}
    shared = swiglu_shapes(c.d_model, c.d_ff_shared, "shared_") if c.d_ff_shared else {}
    return {"router": (c.d_model, c.n_experts), **stacked, **shared}


def route(router_DE, x_BTD, config: ModelConfig, replay_BTK=None) -> tuple[Routed, jax.Array]:
    """(the routing, the weights or input scales [B, T, K] of the chosen experts), in float32.

    replay: experts to use instead of those with the largest logits.
    """
    logit_BTE = matmul(x_BTD.astype(jnp.float32), router_DE, EXACT)
    top_BTK, expert_BTK = jax.lax.top_k(logit_BTE, config.experts_per_token)
    moved_BT = None
    if replay_BTK is not None:
        same_BTKK = expert_BTK[..., None] == replay_BTK[..., None, :]
        moved_BT, expert_BTK = ~jnp.all(jnp.any(same_BTKK, axis=-1), axis=-1), replay_BTK
        top_BTK = jnp.take_along_axis(logit_BTE, replay_BTK, axis=-1)
    if config.router == "sigmoid":
        return Routed(jax.nn.sigmoid(logit_BTE), expert_BTK, moved_BT), jax.nn.sigmoid(top_BTK)
    score_BTE = jax.nn.softmax(logit_BTE, axis=-1)
    weight_BTK = jnp.take_along_axis(score_BTE, expert_BTK, axis=-1)
    if config.norm_topk:
        weight_BTK /= jnp.sum(weight_BTK, axis=-1, keepdims=True)
    return Routed(score_BTE, expert_BTK, moved_BT), weight_BTK


def feed_forward(
    weights: Params, x_BTD, config: ModelConfig, replay_BTK=None
) -> tuple[jax.Array, Routed]:
    """(y [B, T, D], the routing) of a layer with the parameters of `shapes`."""
    routed, scale_BTK = route(weights["router"], x_BTD, config, replay_BTK)
    scale_BTK = scale_BTK.astype(x_BTD.dtype)
    one_BTK = jnp.ones_like(scale_BTK)
    scales = (scale_BTK, one_BTK) if config.router == "sigmoid" else (one_BTK, scale_BTK)
    w = {name: weights[f"expert_{name}"].astype(x_BTD.dtype) for name in EXPERT_AXES}
    y_BTD = _over_mesh(w, x_BTD, routed.expert_BTK, *scales, config.moe_dispatch)
    if config.d_ff_shared:
        gate_BTF = jax.nn.silu(matmul(x_BTD, weights["shared_gate"]))
        y_BTD += matmul(gate_BTF * matmul(x_BTD, weights["shared_up"]), weights["shared_down"])
    return y_BTD, routed


def _over_mesh(w, x_BTD, expert_BTK, inner_BTK, outer_BTK, dispatch: str):
    """The experts' sum; on a visible mesh, the sum over devices of each device's part."""
    in_blocks = partial(_in_blocks, n_experts=len(w["gate"]))
    by_name = {"auto": _sorted, "sorted": _sorted, "blocks": in_blocks, "dense": _every_expert}
    compute = by_name[dispatch]
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:  # 0: none is visible
        return compute(w, x_BTD, expert_BTK, inner_BTK, outer_BTK, 0)
    split = lambda axes, x: meshes.sharding(mesh, axes, x.shape).spec  # noqa: E731
    token_spec = split(("prompts", None, None), x_BTD)
    specs = {name: split(EXPERT_AXES[name], x) for name, x in w.items()}
    reduced, E = tuple(jax.tree.leaves(tuple(specs["gate"]))), len(w["gate"])

    def part(w, x_BTD, *choices):
        n = len(w["gate"])  # n = E: the axis `expert` splits columns of F, if anything
        first = n * jax.lax.axis_index("expert") if n < E else 0
        return jax.lax.psum(compute(w, x_BTD, *choices, first), reduced)

    # check_vma gives the wrong transpose of a gather whose index alone differs between devices
    layout = {"in_specs": (specs, *[token_spec] * 4), "out_specs": token_spec}
    spread = jax.shard_map(part, mesh=mesh, **layout, check_vma=False)
    return spread(w, x_BTD, expert_BTK, inner_BTK, outer_BTK)


def _every_expert(w, x_BTD, expert_BTK, inner_BTK, outer_BTK, first):
    """This device's experts, from number `first`, on all tokens."""
    hot_BTKE = jax.nn.one_hot(expert_BTK - first, w["gate"].shape[0], dtype=x_BTD.dtype)
    inner_BTE1, outer_BTE1 = (
        jnp.einsum("btke,btk->bte", hot_BTKE, scale_BTK)[..., None]
        for scale_BTK in (inner_BTK, outer_BTK)
    )
    gate_BTEF = inner_BTE1 * jnp.einsum("btd,edf->btef", x_BTD, w["gate"])
    up_BTEF = inner_BTE1 * jnp.einsum("btd,edf->btef", x_BTD, w["up"])
    y_BTEF = outer_BTE1 * jax.nn.silu(gate_BTEF) * up_BTEF
    return jnp.einsum("btef,efd->btd", y_BTEF, w["down"])


def _sorted(w, x_BTD, expert_BTK, inner_BTK, outer_BTK, first):
    """Every (token, expert) pair of this device's experts once, in M = B T K rows.

    Pairs of other devices' experts come last, outside every group, and contribute 0.
    """
    (E, D, _), (*BT, K) = w["gate"].shape, expert_BTK.shape
    expert_M = expert_BTK.reshape(-1) - first
    expert_M = jnp.where((expert_M >= 0) & (expert_M < E), expert_M, E)
    order_M = jnp.argsort(expert_M, stable=True)
    size_E = jnp.sum(expert_M[:, None] == jnp.arange(E)[None], axis=0, dtype=jnp.int32)
    ours_M1 = (expert_M < E)[order_M][:, None]

    def pick(scale_BTK):
        return scale_BTK.reshape(-1).at[order_M].get(unique_indices=True)[:, None]

    x_MD = jnp.repeat(x_BTD.reshape(-1, D), K, axis=0).at[order_M].get(unique_indices=True)
    x_MD = jnp.where(ours_M1, x_MD * pick(inner_BTK), 0)
    gate_MF = jax.nn.silu(_grouped(x_MD, w["gate"], size_E))
    y_MF = gate_MF * _grouped(x_MD, w["up"], size_E)
    y_MD = _grouped(y_MF, w["down"], size_E)
    y_MD = jnp.where(ours_M1, y_MD * pick(outer_BTK), 0)
    y_MD = y_MD.at[jnp.argsort(order_M)].get(unique_indices=True)
    return jnp.sum(y_MD.reshape(*BT, K, D), axis=-2)


@jax.custom_vjp
def _grouped(x_MD, w_EDF, size_E):
    """Each run of size_E rows times its expert's matrix, [M, F] (jax.lax.ragged_dot).

    On a TPU the gradient of the matrices is a Pallas kernel's: XLA has one for the product, which
    skips rows outside every run, but would compute that gradient from all rows for every expert.
    """
    return jax.lax.ragged_dot(x_MD, w_EDF, size_E)


def _grouped_forward(x_MD, w_EDF, size_E):
    return _grouped(x_MD, w_EDF, size_E), (x_MD, w_EDF, size_E)


def _grouped_backward(kept, dy_MF):
    x_MD, w_EDF, size_E = kept

    def by_xla(x_MD, dy_MF, size_E):
        return jax.vjp(lambda w: jax.lax.ragged_dot(x_MD, w, size_E), w_EDF)[1](dy_MF)[0]

    dx_MD = jax.vjp(lambda x: jax.lax.ragged_dot(x, w_EDF, size_E), x_MD)[1](dy_MF)[0]
    kernels = {"tpu": _summed_by_group, "default": by_xla}
    return dx_MD, jax.lax.platform_dependent(x_MD, dy_MF, size_E, **kernels), None


_grouped.defvjp(_grouped_forward, _grouped_backward)


def _summed_by_group(x_MD, dy_MF, size_E, interpret=False):
    """x^T dy of each run of rows, [E, D, F]."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    x_MD, dy_MF = (jnp.pad(x, ((0, -len(x) % TILE[0]), (0, 0))) for x in (x_MD, dy_MF))
    widths = (min(x.shape[1], most) for x, most in zip((x_MD, dy_MF), TILE[1:], strict=True))
    tiling = (TILE[0], *widths)
    return tgmm(x_MD.T, dy_MF, size_E, x_MD.dtype, tiling, interpret=interpret)


def _in_blocks(w, x_BTD, expert_BTK, inner_BTK, outer_BTK, first, n_experts: int):
    """The sum of `_sorted` by rlx.models.blocks; n_experts: of all devices."""
    E, D, K = len(w["gate"]), x_BTD.shape[-1], expert_BTK.shape[-1]
    expert_TK, inner_TK, outer_TK = (x.reshape(-1, K) for x in (expert_BTK, inner_BTK, outer_BTK))
    expert_TK = jnp.where((expert_TK >= first) & (expert_TK < first + E), expert_TK - first, E)
    C = blocks.capacity(expert_TK.size, n_experts)
    y_TD = blocks.summed(C, w, x_BTD.reshape(-1, D), inner_TK, outer_TK, expert_TK)
    return y_TD.reshape(x_BTD.shape)


def balance(routed: Routed, mask_BT) -> tuple[jax.Array, jax.Array]:
    """(aux_B, load_LE): the sequence-wise balance loss, and the tokens routed to each expert.

        aux = sum_i f_i P_i,   f_i = E / (K n) sum_t [i chosen by t],
                               P_i = 1 / n sum_t score_ti / sum_j score_tj

    over the n tokens of a sequence with mask 1, averaged over layers: 1 at perfect balance, E / K
    if all tokens go to the same experts with certainty, 0 if n = 0. DeepSeek-V3 (arXiv 2412.19437),
    Eq. 17-20. It is a sum over sequences, so the gradient is the same for any microbatch.
    """
    score_LBTE, expert_LBTK = routed.score_BTE, routed.expert_BTK
    E, K = score_LBTE.shape[-1], expert_LBTK.shape[-1]
    mask_1BT1 = mask_BT[None, :, :, None]
    chosen_LBTE = jnp.sum(jax.nn.one_hot(expert_LBTK, E), axis=-2) * mask_1BT1
    share_LBTE = score_LBTE / jnp.sum(score_LBTE, axis=-1, keepdims=True) * mask_1BT1
    n_1B1 = jnp.maximum(jnp.sum(mask_BT, axis=1), 1)[None, :, None]
    f_LBE = E / K * jnp.sum(chosen_LBTE, axis=2) / n_1B1
    P_LBE = jnp.sum(share_LBTE, axis=2) / n_1B1
    aux_B = jnp.mean(jnp.sum(f_LBE * P_LBE, axis=-1), axis=0)
    return aux_B, jnp.sum(chosen_LBTE, axis=(1, 2))


def moved(routed: Routed, mask_BT) -> jax.Array:
    """[2]: tokens whose own routing differs from the replayed one, and their layers, summed."""
    moved_LBT = routed.moved_BT & mask_BT.astype(bool)[None]
    return jnp.stack([jnp.sum(jnp.any(moved_LBT, axis=0)), jnp.sum(moved_LBT)]).astype(jnp.float32)


def zero_balance(config: ModelConfig, replay: bool = False) -> dict[str, jax.Array]:
    """Initial sums over slices of a batch."""
    shape = (len(config.sparse_layers), config.n_experts)
    sums = {"router/aux": jnp.zeros(()), "router/load": jnp.zeros(shape)}
    return sums | ({"router/moved": jnp.zeros(2)} if replay else {})


def pop_balance(sums: dict[str, jax.Array], experts_per_token: int = 1) -> dict[str, jax.Array]:
    """Metrics of a batch: its mean loss, and E times the largest share of an expert; with routing
    replay, the shares of tokens, and of choices, that the learner's router would route differently.
    """
    load_LE = sums.pop("router/load")
    total_L1 = jnp.maximum(jnp.sum(load_LE, axis=1, keepdims=True), 1)
    share = jnp.max(load_LE / total_L1) * load_LE.shape[1]
    metrics = {"router/aux": sums.pop("router/aux"), "router/load_max": share}
    if "router/moved" in sums:
        tokens, choices = sums.pop("router/moved")
        n, layers = total_L1[0, 0] / experts_per_token, len(load_LE)
        metrics["router/moved_tokens_share"] = tokens / jnp.maximum(n, 1)
        metrics["router/moved_choices_share"] = choices / jnp.maximum(n * layers, 1)
    return metrics
