"""From scores and lengths to training rewards.

On the host, float32 NumPy, [G] for the samples of one prompt. Scores lie in [0, 1]; a pass is 1.
"""

from __future__ import annotations

import numpy as np

from rlx.config import AlgoConfig


def shaped(score_G: np.ndarray, *, threshold: float, sharpness: float) -> np.ndarray:
    """s(x) = 1 / (1 + exp(-sharpness (x - threshold))), rescaled to s(0) = 0 and s(1) = 1

    Near sharpness 0 it is linear; with a large sharpness, pass or fail at `threshold`.
    """
    s = lambda x: 1 / (1 + np.exp(-sharpness * (x - threshold)))  # noqa: E731
    low, high = s(0.0), s(1.0)
    return (s(score_G) - low) / (high - low)


def length_penalty(length_G: np.ndarray, *, longest: int, margin: int) -> np.ndarray:
    """clip((longest - length) / margin - 1, -1, 0), in tokens

    0 up to longest - margin, then falling linearly to -1 at `longest`. ScaleRL (arXiv 2510.13786),
    Eq. 9, adds it to correct answers; DAPO (arXiv 2503.14476), Eq. 13, to all.
    """
    return np.clip((longest - length_G) / margin - 1, -1, 0)


def rewards(
    score_G: np.ndarray, length_G: np.ndarray, algo: AlgoConfig, max_new_tokens: int,
    model_G: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """reward_fail + shape(score) (reward_pass - reward_fail) + penalty, float32 [G]

    model_G: rewards of a reward model, which replace the first two terms.
    """
    share_G = score_G
    if algo.reward_shape == "sigmoid":
        numbers = {"threshold": algo.reward_threshold, "sharpness": algo.reward_sharpness}
        share_G = shaped(score_G, **numbers)
    reward_G = algo.reward_fail + share_G * (algo.reward_pass - algo.reward_fail)
    if model_G is not None:
        reward_G = model_G
    if algo.length_control.startswith("penalty"):
        margin = algo.length_penalty_tokens
        penalty_G = length_penalty(length_G, longest=max_new_tokens, margin=margin)
        counts_G = (
            score_G == 1 if algo.length_control == "penalty_passes" else np.ones_like(score_G)
        )
        reward_G = reward_G + penalty_G * counts_G
    return reward_G.astype(np.float32)
