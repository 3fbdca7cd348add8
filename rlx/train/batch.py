"""Batches: graded groups or demonstrations as arrays, and their slices."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlx import mesh as meshes
from rlx.train import packing
from rlx.types import Batch, Group, right_padded


def collate(groups: Sequence[Group], prompt_tokens: int, pad_id: int, pack=False) -> Batch:
    """P graded groups as arrays; prompts padded on the right to `prompt_tokens`."""
    prompt_PU, length_P = right_padded([g.prompt_U for g in groups], prompt_tokens, pad_id)
    completion_BT = np.concatenate([group.completion_GT for group in groups])
    T = completion_BT.shape[1]
    pack = pack and T > 1  # of one token, nothing is fed
    return Batch(
        packed_PRt=packing.packed([group.length_G for group in groups], T) if pack else None,
        prompt_PU=prompt_PU,
        prompt_length_P=length_P,
        completion_BT=completion_BT.astype(np.int32),
        mask_BT=np.concatenate([group.sampled_GT for group in groups]).astype(np.float32),
        behavior_logp_BT=np.concatenate([group.behavior_logp_GT for group in groups]),
        behavior_value_BT=np.concatenate([group.behavior_value_GT for group in groups]),
        reward_PG=np.stack([group.reward_G for group in groups]).astype(np.float32),
        keep_P=np.ones(len(groups), np.float32),
        expert_BTLK=_experts(groups),
    )


def _experts(groups: Sequence[Group]) -> np.ndarray | None:
    routed = [group.expert_GTLK for group in groups if group.expert_GTLK is not None]
    return np.concatenate(routed) if routed else None


def demonstrated(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], prompt_tokens: int,
    T: int, pad_id: int, learned: Sequence[Sequence[int]] | None = None,
) -> Batch:  # fmt: skip
    """One sample per prompt, with reward 1; behavior_logp and behavior_value are 0.

    learned: 1 for the tokens of a completion to train on; None: all.
    """
    prompt_PU, prompt_length_P = right_padded(prompts, prompt_tokens, pad_id)
    completion_BT, length_B = right_padded(completions, T, pad_id)
    nothing_BT = np.zeros(completion_BT.shape, np.float32)
    mask_BT = np.arange(T)[None] < length_B[:, None]
    return Batch(
        prompt_PU=prompt_PU,
        prompt_length_P=prompt_length_P,
        completion_BT=completion_BT,
        mask_BT=(right_padded(learned, T, 0)[0] if learned else mask_BT).astype(np.float32),
        behavior_logp_BT=nothing_BT,
        behavior_value_BT=nothing_BT,
        reward_PG=np.ones((len(prompts), 1), np.float32),
        keep_P=np.ones(len(prompts), np.float32),
    )


def on_mesh(tree, mesh: Mesh):
    """Arrays whose first axis is prompts or samples, split over the mesh."""
    return jax.device_put(tree, jax.tree.map(lambda x: meshes.along(mesh, "prompts", x), tree))


def everywhere(tree, mesh: Mesh):
    """Python numbers as arrays on every device, also of several processes."""
    return jax.jit(lambda: tree, out_shardings=meshes.sharding(mesh, (), ()))()


def kept_first(batch: Batch, keep_P) -> Batch:
    """The batch with kept prompts first, and the tokens of the others masked."""
    order_P = jnp.argsort(1 - keep_P, stable=True)
    P, G = batch.reward_PG.shape

    def reorder(x):
        rows = x.reshape(P, -1, *x.shape[1:]) if x.shape[0] == P * G else x
        return rows[order_P].reshape(x.shape)

    batch = jax.tree.map(reorder, batch.replace(keep_P=keep_P))
    return batch.replace(mask_BT=batch.mask_BT * jnp.repeat(batch.keep_P, G)[:, None])


def in_slices(tree, prompts: int, microbatches: int, mesh: Mesh, group_slices: int = 1):
    """[slices, rows, ...] of arrays [P, ...] and [B, ...]; every slice is split over the mesh.

    A microbatch of prompts is cut into `group_slices` slices, each with all its prompts and a part
    of every group.
    """
    m, n = microbatches, group_slices

    def cut(x):
        if len(x) == prompts:
            rows = jnp.repeat(x.reshape(m, -1, *x.shape[1:]), n, axis=0)
        else:
            parts = x.reshape(m, prompts // m, n, -1, *x.shape[1:]).swapaxes(1, 2)
            rows = parts.reshape(m * n, -1, *x.shape[1:])
        return jax.lax.with_sharding_constraint(rows, meshes.along(mesh, "prompts", rows, 1))

    return jax.tree.map(cut, tree)
