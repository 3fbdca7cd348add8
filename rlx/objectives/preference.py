"""The likelihood of preferences between two completions of a prompt."""

from __future__ import annotations

import jax


def bradley_terry(score_P2):
    """log P(chosen > rejected) = log sigmoid(r_chosen - r_rejected), in nats, of rows (r_c, r_r)

    To be maximised. Only differences within a prompt matter. Bradley and Terry 1952; for
    trajectories, Christiano et al. 2017 (arXiv 1706.03741), section 2.2.3.
    """
    return jax.nn.log_sigmoid(score_P2[:, 0] - score_P2[:, 1])
