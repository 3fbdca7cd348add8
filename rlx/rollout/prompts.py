"""The order of problems: epochs of permutations, filtered by a history of pass rates.

Every epoch is a permutation of the training set, determined by (seed, epoch). A problem is skipped
because of the pass rate of its latest group:

    no_positive_resampling   it reached `retire_pass_rate`: never sampled again
                             (ScaleRL, arXiv 2510.13786, section 3: 0.9)
    band                     it lies outside [band_low, band_high]: sampled again only in epochs
                             that are multiples of `band_retest_epochs`, counted from 1

A problem without a group yet is never skipped. The order therefore follows from earlier grades, in
the order of the generator's steps.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from rlx.config import AlgoConfig

NEVER_ASKED = -1.0


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, problems: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(problems)


class Prompts:
    def __init__(self, algo: AlgoConfig, problems: int, seed: int):
        self.algo, self.problems, self.seed = algo, problems, seed
        self.asked = 0  # position in the sequence of epochs, skipped problems included
        self.passed_over = 0
        self.pass_rate_N = np.full(problems, NEVER_ASKED)  # of the latest group

    @property
    def epoch(self) -> int:
        return self.asked // self.problems

    @property
    def retired(self) -> int:
        """Number of problems that are never sampled again."""
        often_N = self.pass_rate_N >= self.algo.retire_pass_rate
        return int(often_N.sum()) if self.algo.no_positive_resampling else 0

    def due(self, index: int) -> bool:
        algo, rate = self.algo, self.pass_rate_N[index]
        if rate == NEVER_ASKED:
            return True
        if algo.no_positive_resampling and rate >= algo.retire_pass_rate:
            return False
        retest = self.epoch % algo.band_retest_epochs == 0
        return retest or algo.band_low <= rate <= algo.band_high

    def exhausted(self) -> bool:
        return self.retired == self.problems

    def next(self) -> int:
        """The index of the next problem. Not all problems may be retired."""
        if self.exhausted():
            raise RuntimeError("every training problem is retired")
        while True:
            epoch, place = divmod(self.asked, self.problems)
            index = int(epoch_order(self.seed, epoch, self.problems)[place])
            due = self.due(index)
            self.asked += 1
            if due:
                return index
            self.passed_over += 1

    def graded(self, index: int, pass_rate: float) -> None:
        self.pass_rate_N[index] = pass_rate

    def state_dict(self) -> dict[str, Any]:
        asked = {"asked": self.asked, "passed_over": self.passed_over}
        return {**asked, "pass_rate_N": self.pass_rate_N.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        self.asked, self.passed_over = state["asked"], state["passed_over"]
        self.pass_rate_N = np.array(state["pass_rate_N"])
