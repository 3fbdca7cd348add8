"""Score a policy: mean@k and pass@k on the held-out set and on every further set of a task.

    python -m experiments.evaluate model.path=runs/a [eval.samples_per_prompt=16] [json=FILE]
    python -m experiments.evaluate model.path=DIR env=math env.kwargs.path=FILE env.chat=true

`model.path` is a run (its newest checkpoint, or that of `runs/a/checkpoints/STEP`), a folder in the
format of `transformers`, or a .gguf file. Intervals are 90 %, over problems like these: the
bootstrap resamples problems, each with all its samples.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.policy import Policy, main
from rlx.errors import InputError

DRAWS = 2000


def interval(passes_n: np.ndarray, statistic: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """5 % and 95 % quantiles of the statistic over problems drawn with replacement."""
    rng = np.random.default_rng(0)
    n = len(passes_n)
    draws = [statistic(passes_n[rng.integers(n, size=n)]) for _ in range(DRAWS)]
    low, high = np.quantile(draws, [0.05, 0.95])
    return float(low), float(high)


def evaluate(policy: Policy, options: dict[str, str]) -> None:
    from rlx import evaluate, flops

    config, graders = policy.config, policy.graders
    k = config.eval.samples_per_prompt
    rows = evaluate.evaluate(*policy.sampled(), config, graders, flops.Ledger(), policy.mesh)
    for row in rows:
        passes_n = np.array(row["passes_per_prompt"])
        found = {f"mean@{k}": (row["mean"], interval(passes_n, lambda x: x.mean() / k))}
        for n, value in row["pass_at_k"].items():
            at = lambda x, n=int(n): evaluate.pass_at_k(k, x, n)  # noqa: E731
            found[f"pass@{n}"] = (value, interval(passes_n, at))
        row["interval"] = {name: ends for name, (_, ends) in found.items()}
        print(f"{row['eval_set']}: {len(passes_n)} problems, {k} samples each")
        for name, (value, (low, high)) in found.items():
            print(f"  {name:<9} {value:.4f}  [{low:.4f}, {high:.4f}]")
        print(f"  truncated {row['truncated']:.3f}, without a score {row['ungraded']}")
    if options["json"]:
        try:
            Path(options["json"]).write_text(json.dumps(rows, indent=1) + "\n")
        except OSError as error:
            remedy = "give a file that can be written"
            raise InputError("json", options["json"], error.strerror, remedy) from None


if __name__ == "__main__":
    sys.exit(main(evaluate, {"json": ""}))
