"""Datasets of the reasoning-gym library, one by name or several, graded by the library.

    env.name=reasoning_gym  env.kwargs={dataset: chain_sum, min_terms: 2, max_terms: 3}
    env.name=reasoning_gym  env.kwargs.mixture=[{dataset: chain_sum, weight: 2, max_terms: 3},
                                                {dataset: gcd, weight: 1}]

The prompt is the question and a newline. Scores are the library's: many datasets give partial
credit, such as 0.01 for any text or a share for an answer with words around it, so only a score
of 1 is a pass. Without env.tokenizer the vocabulary is the characters of the drawn questions and
reference answers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import os
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from rlx.envs.base import Env, TextTokenizer, characters
from rlx.envs.mixture import mixture as mix
from rlx.errors import InputError
from rlx.problem import Problem

DRAWS_PER_PROMPT = 10  # draws per distinct question before giving up

# These iterate over sets, whose order differs between processes.
HASH_ORDERED = (
    "isomorphic_strings",
    "knight_swap",
    "polynomial_multiplication",
    "ransom_note",
    "word_ladder",
)


def reasoning_gym(*, mixture: list[dict[str, Any]] | None = None, **kwargs: Any) -> Env:
    """One dataset, or several as the tasks of a mixture, named after them."""
    if mixture is None:
        return ReasoningGym(**kwargs)
    sizes = ("train_prompts", "heldout_prompts", "seed")
    for key in set(kwargs) - set(sizes):
        remedy = "put it into one of its rows"
        raise InputError(f"env.kwargs.{key}", kwargs[key], "not allowed with a mixture", remedy)
    return mix(**kwargs, tasks=tasks_of(mixture))


def tasks_of(mixture: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Its rows as the tasks of rlx.envs.mixture, by name."""
    tasks: dict[str, dict[str, Any]] = {}
    for row in mixture:
        if not isinstance(row, dict):
            raise InputError(
                "env.kwargs.mixture", row, "not a row", "write {dataset: NAME, weight: 1}"
            )
        inner = {key: value for key, value in row.items() if key != "weight"}
        name = str(row.get("dataset"))
        while name in tasks:  # the same dataset at another difficulty
            name += "_"
        tasks[name] = {"env": "reasoning_gym", "weight": row.get("weight", 1), "kwargs": inner}
    return tasks


class ReasoningGym:
    """Questions of one dataset, distinct by text. `Problem.answer` is the library's entry.

    `config`: parameters of the dataset. Raises InputError if the library is missing, on an unknown
    dataset or parameter, and if there are too few distinct questions.
    """

    def __init__(
        self,
        *,
        train_prompts: int,
        heldout_prompts: int,
        seed: int,
        dataset: str | None = None,
        **config: Any,
    ):
        wanted = heldout_prompts + train_prompts
        # Entry i of the library depends on seed + i, so neighbouring seeds are spread far apart.
        library_seed = int(np.random.default_rng(seed).integers(2**31))
        size = DRAWS_PER_PROMPT * wanted
        self._dataset = _create(dataset, config, seed=library_seed, size=size)
        entries = _distinct(self._dataset, wanted)
        if len(entries) < wanted:
            reason = (
                f"{size} draws of {dataset} hold {len(entries)} distinct questions, not {wanted} "
                f"with env.heldout_prompts={heldout_prompts}"
            )
            remedy = "ask for fewer or widen the dataset's parameters"
            raise InputError("env.train_prompts", train_prompts, reason, remedy)
        self._try_grader(entries[0])
        self.heldout = _problems(entries[:heldout_prompts])
        self.train = _problems(entries[heldout_prompts:])
        problems = self.heldout + self.train
        self.downstream: dict[str, list[Problem]] = {}
        texts = [p.prompt + (p.answer["answer"] or "") for p in problems]
        self.tokenizer: TextTokenizer = characters(texts)
        self.max_prompt_tokens = max(len(p.prompt) for p in problems)

    def _try_grader(self, entry: dict[str, Any]) -> None:
        """Raises InputError if the grader fails on the reference; `grade` would score it 0."""
        if entry["answer"] is not None:
            with _blamed("dataset", entry["metadata"].get("source_dataset")):
                self._dataset.score_answer(entry["answer"], entry)

    def grade(self, problem: Problem, completion: str, stopped: bool) -> float:
        """The library's score of the stripped completion, clipped to [0, 1]; 0 if truncated.

        Some of the library's graders raise on text that they cannot parse: this, or a score that is
        not finite, scores 0. Graders that evaluate arithmetic can be slow on text such as 9**9**9:
        env.grade_timeout_s limits them.
        """
        if not stopped:
            return 0.0
        try:
            score = float(self._dataset.score_answer(completion.strip(), problem.answer))
        except Exception:
            return 0.0
        return min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0

    def well_formed(self, completion: str, stopped: bool) -> bool:
        """Whether it stopped and is not empty."""
        return stopped and completion.strip() != ""

    def solution(self, problem: Problem, rng: np.random.Generator, worked: bool) -> str:
        """The reference answer; there are no worked ones, and `rng` is not used.

        Raises InputError if the dataset has no reference answers.
        """
        entry = problem.answer
        if entry["answer"] is None:
            name = entry["metadata"].get("source_dataset")
            reason = "it has no reference answers"
            raise InputError("env.kwargs.dataset", name, reason, "set warm_start.steps=0")
        return entry["answer"]

    def ceiling(self, problems: Sequence[Problem], max_new_tokens: int) -> None:
        """None: the best score within a length limit is unknown."""
        return None


def _import_library() -> ModuleType:
    try:
        with warnings.catch_warnings():  # a dependency compares a literal with `is`
            warnings.filterwarnings("ignore", category=SyntaxWarning)
            import reasoning_gym
    except ImportError as error:
        reason = f"cannot import it ({error})"
        raise InputError("env.name", "reasoning_gym", reason, "pip install 'rlx[gym]'") from error
    return reasoning_gym


def _create(name: str | None, config: dict[str, Any], *, seed: int, size: int) -> Any:
    """The library's dataset; its name and parameters are checked first."""
    library = _import_library()
    known = library.factory.DATASETS
    if not isinstance(name, str) or name not in known:
        hint = _closest(str(name), known) or "for example chain_sum"
        raise InputError("env.kwargs.dataset", name, "unknown dataset", f"try {hint}")
    if name in HASH_ORDERED and os.environ.get("PYTHONHASHSEED", "random") == "random":
        reason = "its entries depend on Python's hash seed"
        remedy = "set PYTHONHASHSEED=0 in the environment"
        raise InputError("env.kwargs.dataset", name, reason, remedy)
    parameters = {f.name for f in dataclasses.fields(known[name][1])} - {"seed", "size"}
    for key, value in config.items():
        if key not in parameters:
            hint = _closest(key, parameters) or ", ".join(sorted(parameters))
            raise InputError(f"env.kwargs.{key}", value, f"unknown to {name}", f"try {hint}")
    with _blamed("", config, f"{name} needs other values"):
        return library.create_dataset(name, seed=seed, size=size, **config)


@contextlib.contextmanager
def _blamed(key: str, value: Any, remedy: str = "choose another dataset or other parameters"):
    """Turns any exception of the library into an InputError of env.kwargs."""
    try:
        yield
    except Exception as error:
        raise InputError(f"env.kwargs.{key}".rstrip("."), value, error, remedy) from error


def _closest(word: str, words: Any) -> str:
    return ", ".join(difflib.get_close_matches(word, sorted(words)))


def _distinct(dataset: Any, wanted: int) -> list[dict[str, Any]]:
    """The first `wanted` entries whose questions differ, or fewer if the draws run out."""
    entries: dict[str, dict[str, Any]] = {}
    for i in range(len(dataset)):
        if len(entries) == wanted:
            break
        with _blamed("dataset", type(dataset).__name__):
            entry = dataset[i]
        entries.setdefault(entry["question"], entry)
    return list(entries.values())


def _problems(entries: list[dict[str, Any]]) -> list[Problem]:
    return [Problem(i, entry["question"] + "\n", entry) for i, entry in enumerate(entries)]
