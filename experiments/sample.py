"""Print completions of a policy with their scores.

    python -m experiments.sample model.path=runs/a [problems=4] [samples=2] [KEY=VALUE ...]

The words are those of experiments.evaluate. Problems are the first of the held-out set.
"""

from __future__ import annotations

import sys
from typing import Any

from experiments.policy import Policy, main
from rlx.errors import InputError


def sample(policy: Policy, options: dict[str, Any]) -> None:
    for key in ("problems", "samples"):
        if options[key] < 1:
            raise InputError(key, options[key], "not positive", "give 1 or more")
    import jax

    from rlx.evaluate import generate
    from rlx.rollout.grades import grades

    config, graders = policy.config, policy.graders
    env, k = graders.env, options["samples"]
    problems = env.heldout[: options["problems"]]
    key = jax.random.key(config.seed)
    drawn = generate(*policy.sampled(), config, env, problems, k, key)
    for answer in drawn:
        (score_G,) = grades(graders, [answer], policy.mesh).score_PG
        print(f"--- problem {answer.problem.id}\n{answer.problem.prompt.rstrip()}")
        rows = zip(answer.text_G, score_G, answer.length_G, strict=True)
        for (text, stopped), score, n in rows:
            end = "" if stopped else ", cut"
            shown = text if isinstance(text, str) else " | ".join(text)
            print(f"[score {score:.2f}, {n} tokens{end}] {shown}")


if __name__ == "__main__":
    sys.exit(main(sample, {"problems": 4, "samples": 2}))
