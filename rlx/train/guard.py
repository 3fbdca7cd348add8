"""The guard against collapse: ends a run, or lowers its learning rate, if a metric leaves a bound.

Three metrics have bounds, each averaged over the last `guard.updates` updates:

    policy/ess                      below guard.ess_min: the samples are too far off-policy
    policy/entropy                  below guard.entropy_min: exploration has stopped
    rollout/zero_variance_share     above guard.unvaried_max: hardly any group has a gradient

The first two are over trained tokens: updates without any are left out of their averages.

An event is recorded in the row of its update (`guard/event`) and in the manifest, and printed. The
effective sample size as a sign of collapse: arXiv 2602.17616.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlx.config import GuardConfig

OFF = GuardConfig()
OF_TOKENS = ("policy/ess", "policy/entropy")


class Guard:
    """`rate`: factor of the learning rate; `stop`: why the run should end, or empty.

    After an event the average starts again, over the next `guard.updates` rows.
    """

    def __init__(self, config: GuardConfig = OFF):
        self.config, self.rate, self.stop = config, 1.0, ""
        self.window: list[list[float | None]] = []
        self.bounds = {  # name: (bound, the side of it that triggers an event)
            "policy/ess": (config.ess_min, "<"),
            "policy/entropy": (config.entropy_min, "<"),
            "rollout/zero_variance_share": (config.unvaried_max, ">"),
        }

    def after(self, row: dict[str, Any]) -> dict[str, Any]:
        """The guard's part of an update's row; empty if it is off."""
        if self.config.action == "none":
            return {}
        silent = () if row["prompts_kept"] else OF_TOKENS
        self.window.append([None if name in silent else float(row[name]) for name in self.bounds])
        event = self._event() if len(self.window) == self.config.updates else ""
        full = len(self.window) == self.config.updates
        self.window = [] if event else self.window[full:]
        return {"guard/event": event, "guard/rate": self.rate}

    def _event(self) -> str:
        columns = zip(*self.window, strict=True)
        for (name, (bound, side)), values in zip(self.bounds.items(), columns, strict=True):
            known = [x for x in values if x is not None]
            mean = np.mean(known) if known else bound
            if mean < bound if side == "<" else mean > bound:
                found = f"{name} {mean:.3g} {side} {bound:g} over {self.config.updates} updates"
                if self.config.action == "stop":
                    self.stop = found
                    return found
                self.rate *= self.config.lower_by
                return f"{found}: learning rate x {self.rate:g}"
        return ""

    def state_dict(self) -> dict[str, Any]:
        return {"rate": self.rate, "stop": self.stop, "window": self.window}

    def load(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
