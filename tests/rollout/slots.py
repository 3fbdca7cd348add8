"""Samples to start, as the sampler takes them, and finished ones, one by one."""

from typing import NamedTuple

import numpy as np

from rlx.rollout.generator import Finished, Key
from rlx.rollout.sampler import New, Slots


def new(slots: Slots, slot_PG, serial_P, stop_ids, limit: int = 0) -> New:
    """Sample g of prompt p goes to slot slot_PG[p][g]; slots beyond the last are left out."""
    (W, N), T = slots.stop_WN.shape, slots.token_WT.shape[1]
    assert len(stop_ids) == N
    row_W, serial_W, sample_W = np.full(W, -1, np.int32), *np.zeros((2, W), np.int32)
    for p, slot_G in enumerate(np.asarray(slot_PG).tolist()):
        for g, slot in enumerate(slot_G):
            if slot < W:
                row_W[slot], serial_W[slot], sample_W[slot] = p, serial_P[p], g
    stop_WN = np.tile(np.array(stop_ids, np.int32), (W, 1))
    return New(row_W, serial_W, sample_W, np.full(W, limit or T, np.int32), stop_WN)


class Sample(NamedTuple):
    token_T: np.ndarray
    logp_T: np.ndarray
    value_T: np.ndarray
    version_T: np.ndarray


def by_key(found: Finished) -> dict[Key, Sample]:
    """Each sample, without the zeros after its last token."""
    beyond_NT = np.arange(found.token_NT.shape[1]) >= found.length_N[:, None]
    assert not any(x_NT[beyond_NT].any() for x_NT in found[2:6])
    rows = zip(found.keys, found.length_N, *found[2:6], strict=True)
    return {key: Sample(*(x_T[:n] for x_T in row)) for key, n, *row in rows}
