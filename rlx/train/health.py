"""Warnings at the terminal during a run, and numbers that end it.

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
    """A kind of note is printed at its first occurrence, then when its count has grown tenfold.

    skipped: updates in a row, up to now, that were not finite, without those that halve the scale
    of float16's loss; unvaried: updates in which every group had zero variance.
    """

    def __init__(self, run: str, optim: OptimConfig, quiet: bool = False):
        self.run, self.optim, self.quiet = run, optim, quiet
        self.skipped = self.unvaried = 0
        self.noted: dict[str, int] = {}

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped, "unvaried": self.unvaried}

    def load(self, state: dict[str, int]) -> None:
        vars(self).update(state)

    def note(self, kind: str, count: int, text: str) -> None:
        if count >= 10 * self.noted.get(kind, 0.1):
            self.noted[kind] = count
            if not self.quiet:
                tqdm.write(f"note: {self.run}: {text}", file=sys.stderr)
                sys.stderr.flush()

    def sampled(
        self, row: dict[str, Any], version: int, graded: int, reasons: Mapping[str, str]
    ) -> None:
        """After the update that made the weights of `version`. graded: answers so far; reasons: the
        last one of each kind of failure to grade.
        """
        errors, timeouts = row["grading/errors"], row["grading/timeouts"]
        lost = errors + timeouts
        text = f"{lost} of {graded} answers so far have no score ({errors} errors, {timeouts} "
        last = "; ".join(" ".join(reason.split())[:200] for reason in reasons.values())
        self.note("ungraded", lost, f"{text}timeouts); they count as 0; the last: {last}")
        self.unvaried += row["rollout/zero_variance_share"] == 1
        text = f"in {self.unvaried} of {version} updates every group had zero variance: there was "
        score = f"nothing to learn (rollout/score_mean={row['rollout/score_mean']:.3g})"
        if self.unvaried == version or self.unvaried >= 10:  # a single update does not matter
            self.note("unvaried", self.unvaried, text + score)

    def measured(self, row: dict[str, Any]) -> None:
        """After an evaluation."""
        name, trials, lost = row["eval_set"], row["trials"], row["ungraded"]
        text = f"step {row['step']}: {lost} of {trials} answers to {name} have no score"
        self.note(f"ungraded {name}", lost, f"{text}; they count as 0")

    def updated(self, row: dict[str, Any], version: int) -> None:
        """Raises NotFinite if an update broke the weights, or too many in a row were skipped."""
        if not row["update/skipped"]:
            self.skipped = 0
            return
        if np.isfinite([row[x] for x in ("objective", "nll", "grad_norm") if x in row]).all():
            raise NotFinite(
                f"a finite gradient: update {version} made weights or moments that are not finite",
                "lower optim.learning_rate, optim.weight_decay or optim.max_grad_norm",
            )
        self.skipped += row.get("update/loss_scale", 1.0) <= 1
        if self.skipped == self.optim.max_skipped_updates:
            raise NotFinite(
                f"optim.max_skipped_updates={self.skipped}: the last {self.skipped} updates, up to "
                f"{version}, had an objective or a gradient that is not finite",
                "lower optim.learning_rate or look at policy/ratio_max in metrics.jsonl",
            )
