"""Samples to start, as the sampler takes them, from the slots of each group."""

import numpy as np

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
