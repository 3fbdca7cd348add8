"""The guard against collapse: it ends a run, or lowers its step, where a number crosses a bound.

Three numbers of an update's row are watched, each on average over the last `guard.updates`:

    policy/ess                      below guard.ess_min: stale samples no longer tell of the policy
    policy/entropy                  below guard.entropy_min: nothing is tried any more
    rollout/zero_variance_share     above guard.unvaried_max: groups have nothing to teach

The first two are of tokens that are trained on: an update without any says nothing of them.

An event stands in the row of its update, `guard/event`, in the manifest and at the terminal. The
effective sample size as a sign of collapse: arXiv 2602.17616.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlx.config import GuardConfig

OFF = GuardConfig()
OF_TOKENS = ("policy/ess", "policy/entropy")


class Guard:
    """`rate`: by what the learning rate is multiplied; `stop`: why the run is to end, if it is.

    After an event it waits for `guard.updates` new rows before the next.
    """

    def __init__(self, config: GuardConfig = OFF):
        self.config, self.rate, self.stop = config, 1.0, ""
        self.window: list[list[float | None]] = []
        self.bounds = {  # name: (bound, which side of it is wrong)
            "policy/ess": (config.ess_min, "<"),
            "policy/entropy": (config.entropy_min, "<"),
            "rollout/zero_variance_share": (config.unvaried_max, ">"),
        }

    def after(self, row: dict[str, Any]) -> dict[str, Any]:
        """What an update's row says of it: nothing if it is off."""
        if self.config.action == "none":
            return {}
        silent = () if row["prompts_kept"] else OF_TOKENS
        self.window.append([None if name in silent else float(row[name]) for name in self.bounds])
        event = self._event() if len(self.window) == self.config.updates else ""
        full = len(self.window) == self.config.updates
        self.window = [] if event else self.window[full:]
        return {"guard/event": event, "guard/rate": self.rate}

    def _event(self) -> str:
        told = zip(*self.window, strict=True)
        for (name, (bound, side)), values in zip(self.bounds.items(), told, strict=True):
            said = [x for x in values if x is not None]
            mean = np.mean(said) if said else bound
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
