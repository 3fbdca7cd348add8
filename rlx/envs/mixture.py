"""Several tasks in one run, each graded by its own environment.

    env.name=mixture  env.kwargs.tasks={math: {env: math, weight: 2, kwargs: {path: a.jsonl}},
                                        code: {env: code, weight: 1, kwargs: {path: b.jsonl}},
                                        aime: {env: math, weight: 0, kwargs: {path: c.jsonl},
                                               heldout_prompts: 30}}

Training problems are in proportion to the weights, and so is `heldout`, which concatenates the
held-out sets of the tasks with a weight. Every task also has its own evaluation set under its name;
a task of weight 0 is only evaluated. Training prompts that occur in an evaluation set are excluded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlx.envs import base, data
from rlx.errors import InputError
from rlx.problem import Problem

TASK_TYPES = {
    "env": (str, "name"),
    "weight": (int | float, "number"),
    "kwargs": (dict, "mapping"),
    "heldout_prompts": (int, "whole number"),
}


class Mixture:
    """`Problem.answer` is (task, the task's problem)."""

    def __init__(self, parts: dict[str, base.Env], weighted: Sequence[str]):
        self.parts = parts
        own = {task: _tagged(task, env.heldout) for task, env in parts.items()}
        further = {
            f"{task}.{name}": _tagged(task, problems)
            for task, env in parts.items()
            for name, problems in env.downstream.items()
        }
        self.downstream = {name: data.numbered(pairs) for name, pairs in (own | further).items()}
        self.heldout = data.numbered(pair for task in weighted for pair in own[task])
        asked = {p.prompt for problems in self.downstream.values() for p in problems}
        train = [pair for task in weighted for pair in _tagged(task, parts[task].train)]
        self.train = data.numbered(pair for pair in train if pair[0] not in asked)
        chars = [getattr(env.tokenizer, "chars", "") for env in parts.values()]
        self.tokenizer: base.TextTokenizer = base.characters(chars)
        self.max_prompt_tokens = max(env.max_prompt_tokens for env in parts.values())
        if any(hasattr(env, "reply") for env in parts.values()):
            self.reply = self._reply

    def grade(self, problem: Problem, completion: Any, stopped: bool) -> float:
        """The score by the problem's task."""
        task, inner = problem.answer
        return self.parts[task].grade(inner, _shown(self.parts[task], completion), stopped)

    def _reply(self, problem: Problem, turns: tuple[str, ...]) -> str | None:
        """The reply of the problem's task, if it replies."""
        task, inner = problem.answer
        env = self.parts[task]
        return env.reply(inner, turns) if hasattr(env, "reply") else None

    def well_formed(self, completion: Any, stopped: bool) -> bool:
        """Whether it has the form of an answer to any of the tasks."""
        parts = self.parts.values()
        return any(env.well_formed(_shown(env, completion), stopped) for env in parts)

    def solution(self, problem: Problem, rng: np.random.Generator, worked: bool) -> str:
        """The solution by the problem's task."""
        task, inner = problem.answer
        return self.parts[task].solution(inner, rng, worked)

    def ceiling(
        self, problems: Sequence[Problem], max_new_tokens: int, **turns: int
    ) -> float | None:
        """Mean of the tasks' ceilings over their problems; None if one is unknown.

        turns: limits of an episode, for tasks that reply.
        """
        total = 0.0
        for task, env in self.parts.items():
            mine = [p.answer[1] for p in problems if p.answer[0] == task]
            more = turns if hasattr(env, "reply") else {}
            best = env.ceiling(mine, max_new_tokens, **more) if mine else 0.0
            if best is None:
                return None
            total += best * len(mine)
        return total / len(problems)


def _shown(env: base.Env, completion: Any) -> Any:
    """The completion as the environment expects it: turns if it replies, else the single turn."""
    return completion if hasattr(env, "reply") or isinstance(completion, str) else completion[0]


def _tagged(task: str, problems: Sequence[Problem]) -> list[tuple[str, Any]]:
    return [(p.prompt, (task, p)) for p in problems]


def mixture(
    *, train_prompts: int, heldout_prompts: int, seed: int, tasks: dict[str, dict[str, Any]]
) -> Mixture:
    """Raises InputError on tasks that cannot be mixed, and as their environments do."""
    for task, row in tasks.items():
        _check_task(task, row)
    weights = {task: row["weight"] for task, row in tasks.items() if row["weight"] > 0}
    if not weights:
        names = ", ".join(map(str, tasks))
        raise InputError("env.kwargs.tasks", names, "no weight above 0", "set one")
    train = shares(train_prompts, weights)
    heldout = shares(heldout_prompts, weights)
    parts = {}
    for task, row in tasks.items():
        count = heldout.get(task, row.get("heldout_prompts", heldout_prompts))
        if count < 1:
            reason = f"too few: {task} gets none"
            raise InputError("env.heldout_prompts", heldout_prompts, reason, "ask for more")
        parts[task] = _part(task, row, train.get(task, 0), count, seed)
    mixed = Mixture(parts, list(weights))
    if not mixed.train:
        reason = "all of them occur in an evaluation set"
        raise InputError("env.train_prompts", train_prompts, reason, "ask for more")
    return mixed


def _part(task: str, row: dict[str, Any], train: int, heldout: int, seed: int) -> base.Env:
    try:
        return base.build(
            row["env"],
            train_prompts=train,
            heldout_prompts=heldout,
            seed=seed,
            kwargs=row.get("kwargs", {}),
        )
    except InputError as error:
        key, *rest = error.args
        raise InputError(f"env.kwargs.tasks.{task}: {key}", *rest) from error


def _check_task(task: str, row: dict[str, Any]) -> None:
    where = f"env.kwargs.tasks.{task}"
    if not isinstance(task, str) or not isinstance(row, dict):
        keys = ", ".join(TASK_TYPES)
        raise InputError(where, row, "not a task", f"write NAME: {{...}} with the keys {keys}")
    for key, value in row.items():
        if key not in TASK_TYPES:
            raise InputError(f"{where}.{key}", value, "unknown key", f"use {', '.join(TASK_TYPES)}")
    for key in ("env", "weight"):
        if key not in row:
            raise InputError(where, row, f"no {key}", "give one")
    for key, value in row.items():
        kind, words = TASK_TYPES[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{where}.{key}", value, f"not a {words}", f"give a {words}")
    if row["env"] == "preference":
        reason = "only a reward model can grade it, and not in a mixture"
        raise InputError(f"{where}.env", "preference", reason, "set env.name=preference")
    weight = row["weight"]
    if not 0 <= weight < math.inf:
        reason = "negative" if weight < 0 else "not finite"
        raise InputError(f"{where}.weight", weight, reason, "use 0 to evaluate it only")
    if "heldout_prompts" in row and weight > 0:
        reason = "with a weight its share of env.heldout_prompts is fixed"
        remedy = "set it only for tasks of weight 0"
        raise InputError(f"{where}.heldout_prompts", row["heldout_prompts"], reason, remedy)
    if row.get("heldout_prompts", 1) < 1:
        value = row["heldout_prompts"]
        raise InputError(f"{where}.heldout_prompts", value, "below 1", "give 1 or more")


def shares(total: int, weights: dict[str, float]) -> dict[str, int]:
    """`total` in proportion to the weights, by largest remainders."""
    exact = {task: total * weight / sum(weights.values()) for task, weight in weights.items()}
    counts = {task: int(share) for task, share in exact.items()}
    by_remainder = sorted(exact, key=lambda task: counts[task] - exact[task])
    for task in by_remainder[: total - sum(counts.values())]:
        counts[task] += 1
    return counts
