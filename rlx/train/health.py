"""What is wrong with a run: said at the terminal while it goes on, or the end of it.

note: runs/a: 64 of 64 answers so far have no score (64 errors, 0 timeouts); they count as 0
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from rlx.config import OptimConfig
from rlx.types import NotFinite


class Health:
    """Each kind of note comes when it counts 1, then whenever it counts ten times as much.

    skipped: updates in a row, up to now, that were not finite; unvaried: updates in which no reward
    of a group differed from another of it.
    """

    def __init__(self, run: str, optim: OptimConfig, quiet: bool = False):
        self.run, self.optim, self.quiet = run, optim, quiet
        self.skipped = self.unvaried = 0
        self.said: dict[str, int] = {}

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped, "unvaried": self.unvaried}

    def load(self, state: dict[str, int]) -> None:
        vars(self).update(state)

    def note(self, kind: str, count: int, text: str) -> None:
        if count >= 10 * self.said.get(kind, 0.1):
            self.said[kind] = count
            if not self.quiet:
                tqdm.write(f"note: {self.run}: {text}", file=sys.stderr)
                sys.stderr.flush()

    def sampled(
        self, row: dict[str, Any], version: int, graded: int, reasons: Mapping[str, str]
    ) -> None:
        """After the update that made the weights of `version`; graded: answers so far; reasons:
        of each kind of answer without a score, the last one's.
        """
        errors, timeouts = row["grading/errors"], row["grading/timeouts"]
        lost = errors + timeouts
        said = f"{lost} of {graded} answers so far have no score ({errors} errors, {timeouts} "
        last = "; ".join(" ".join(reason.split())[:200] for reason in reasons.values())
        how = f"timeouts); they count as 0; the last: {last}"
        self.note("ungraded", lost, said + how)
        self.unvaried += row["rollout/zero_variance_share"] == 1
        said = f"in {self.unvaried} of {version} updates every group was rewarded alike: there was "
        how = f"nothing to learn (rollout/score_mean={row['rollout/score_mean']:.3g})"
        if self.unvaried == version or self.unvaried >= 10:  # one of many is no matter
            self.note("unvaried", self.unvaried, said + how)

    def measured(self, row: dict[str, Any]) -> None:
        """After an evaluation."""
        name, trials, lost = row["eval_set"], row["trials"], row["ungraded"]
        said = f"step {row['step']}: {lost} of {trials} answers to {name} have no score"
        self.note(f"ungraded {name}", lost, f"{said}; they count as 0")

    def updated(self, row: dict[str, Any], version: int) -> None:
        """Raises NotFinite if an update spoilt the weights, or too many in a row were skipped."""
        if not row["update/skipped"]:
            self.skipped = 0
            return
        if np.isfinite([row[x] for x in ("objective", "nll", "grad_norm") if x in row]).all():
            raise NotFinite(
                f"a finite gradient: update {version} made weights or moments that are not finite",
                "lower optim.learning_rate, optim.weight_decay or optim.max_grad_norm",
            )
        self.skipped += 1
        if self.skipped == self.optim.max_skipped_updates:
            raise NotFinite(
                f"optim.max_skipped_updates={self.skipped}: so many updates in a row, up to "
                f"{version}, had an objective or a gradient that is not finite",
                "lower optim.learning_rate or look at policy/ratio_max in metrics.jsonl",
            )
