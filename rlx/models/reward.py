"""A reward model: the decoder with a value head, read at the last token of a completion.

    r(x, y) = value . hidden(last token of y)

The last token is the stop token, or the last sampled one if the length limit truncated the sample.
A prompt runs once for all its completions, as in `transformer.extend`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlx import mesh as meshes
from rlx.config import ModelConfig
from rlx.models import transformer
from rlx.types import right_padded


class Texts(NamedTuple):
    """P prompts and B / P completions of each, padded on the right."""

    prompt_PU: Any  # int32
    prompt_length_P: Any  # int32
    completion_BT: Any  # int32
    length_B: Any  # int32, at least 1


def padded(
    prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Sequence[int]]], U: int, T: int,
    pad_id: int, rows: int = 0,
) -> Texts:  # fmt: skip
    """Token ids of groups of equal size; padded up to `rows` prompts with one pad token each."""
    prompt_PU, prompt_length_P = right_padded(prompts, U, pad_id, rows)
    completions = [completion for group in groups for completion in group]
    B = len(prompt_PU) * len(groups[0])
    completion_BT = np.full((B, T), pad_id, np.int32)
    length_B = np.ones(B, np.int32)
    for b, completion in enumerate(completions):
        completion_BT[b, : len(completion)] = completion
        length_B[b] = len(completion)
    return Texts(prompt_PU, prompt_length_P, completion_BT, length_B)


def scores(params, config: ModelConfig, texts: Texts):
    """r of every completion, float32 [B]."""
    length_P, length_B = texts.prompt_length_P, texts.length_B
    _, context = transformer.prefill(params, config, texts.prompt_PU, length_P)
    hidden_BTD = transformer.extend(params, config, context, length_P, texts.completion_BT)
    last_BD = hidden_BTD[jnp.arange(len(length_B)), length_B - 1]
    return transformer.values(params, last_BD)


@partial(jax.jit, static_argnames=("config", "mesh"))
def scores_on(params, config: ModelConfig, texts: Texts, *, mesh: Mesh):
    """`scores`, compiled for the devices of a mesh."""
    return meshes.visible(mesh, scores)(params, transformer.chosen(config, mesh), texts)
