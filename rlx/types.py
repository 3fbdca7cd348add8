"""Dimension letters, and the data that pass between modules.

Array names end in `_` and one letter per axis:

    P prompts in a batch       G samples per prompt       B sequences = P*G, group after group
    U prompt tokens (padded)   T completion tokens        S columns of a cache
    D model  Q query heads  K key/value heads  H head size  F feed-forward  V vocabulary  L layers
    E experts, of which a token takes K (after T or L)    C chunks of the vocabulary
    W slots of the sampler     R packed rows of a prompt  M, N, X counts local to a function

A small letter is a part of that dimension: t = T - 1 tokens that predict another, r = Q / K,
h = H / 2, v the tokens of a vocabulary chunk. rlx.scaling has its own key.

Prompts and completions are padded on the right. The token at position s of a sequence has its keys
and values in column s of a cache.

Version: the weights have version v after v updates; each sampled token stores the version that
sampled it. Staleness of a sequence at the update that uses it: v_learner - min(version of its
tokens); of a group, the maximum over its sequences. Policies are named by role: `logp` is under
the weights being trained, `behavior_logp` under the weights that sampled each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import struct

from rlx.problem import Problem as Problem

INJECTED = -1  # version of a token not sampled: an interruption, a reply, or padding
Params = Any  # a plain pytree of arrays: nested dicts and lists


class NotFinite(RuntimeError):
    """NaN or infinity ends the run: (reason, remedy)."""

    def __str__(self) -> str:
        return "; ".join(self.args)


class StopAsked(Exception):
    """The run was asked to stop while it waited for a batch."""


@struct.dataclass
class TrainState:
    params: Params
    opt_state: Any
    version: Any  # int32 scalar: updates made so far


@struct.dataclass
class Batch:
    """The data of one update. Sequence b belongs to prompt b // G."""

    prompt_PU: Any  # int32, padded on the right
    prompt_length_P: Any  # int32
    completion_BT: Any  # int32, padded on the right
    mask_BT: Any  # float32, 1 where the token was sampled (holes allowed)
    behavior_logp_BT: Any  # float32
    behavior_value_BT: Any  # float32, the critic's value at sampling time; 0 without a critic
    reward_PG: Any  # float32
    keep_P: Any  # float32, 0 for prompts that are filtered out or pad the batch
    expert_BTLK: Any = None  # int32, the sampler's routing, to be replayed; None: do not replay
    packed_PRt: Any = None  # int32, see rlx.train.packing; None: one row per sample


@dataclass(frozen=True)
class Group:
    """The graded samples of one prompt; the arrays are ragged rows padded on the right."""

    serial: int  # groups are numbered in the order they start
    problem_id: int
    prompt_U: np.ndarray  # int32, unpadded
    completion_GT: np.ndarray  # int32
    length_G: np.ndarray  # int32, tokens, including the stop token and injected tokens
    behavior_logp_GT: np.ndarray  # float32
    behavior_value_GT: np.ndarray  # float32, 0 without a critic
    version_GT: np.ndarray  # int32, of the weights that sampled the token, or INJECTED
    reward_G: np.ndarray  # float32, the training reward
    score_G: np.ndarray  # float32 in [0, 1]; 1 is a pass
    stopped_G: np.ndarray  # bool, False where the length limit cut the sample
    expert_GTLK: np.ndarray | None = None  # int32, the sampler's routing
    turns_G: np.ndarray | None = None  # int32, the policy's turns; None in older checkpoints

    @property
    def sampled_GT(self) -> np.ndarray:
        """bool, True where the policy sampled the token."""
        return self.version_GT != INJECTED

    @property
    def first_version(self) -> int:
        """The oldest version among the sampled tokens."""
        return int(self.version_GT[self.sampled_GT].min())

    @property
    def not_finite(self) -> list[str]:
        """Names of the arrays that hold NaN or infinity."""
        numbers = ("behavior_logp_GT", "behavior_value_GT", "reward_G", "score_G")
        return [name for name in numbers if not np.isfinite(getattr(self, name)).all()]

    @property
    def zero_variance(self) -> bool:
        return bool(np.ptp(self.reward_G) == 0)

    @property
    def interrupted_G(self) -> np.ndarray:
        """bool, True for completions with injected tokens: an interruption or a reply."""
        within_GT = np.arange(self.version_GT.shape[1]) < self.length_G[:, None]
        return (within_GT & ~self.sampled_GT).any(axis=1)


def right_padded(prompts: Sequence[Sequence[int]], width: int, pad_id: int, rows: int = 0):
    """(prompt_PU, length_P) of token lists, `width` columns; up to `rows` rows of one pad token."""
    rows = max(rows, len(prompts))
    prompt_PU = np.full((rows, width), pad_id, np.int32)
    length_P = np.ones(rows, np.int32)
    for p, prompt in enumerate(prompts):
        length_P[p] = len(prompt)
        prompt_PU[p, : len(prompt)] = prompt
    return prompt_PU, length_P
