"""The interface of an environment: problems as text, a tokenizer, and a grader.

Environments do not handle device arrays; the sampler does not handle text. `Problem.id` is the
position of the problem in its list (`train`, `heldout` or one of `downstream`).
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from rlx.errors import InputError
from rlx.problem import Problem


@dataclass(frozen=True)
class Tokenizer:
    """One token per character: `chars[i]` has id i, followed by the stop and pad tokens.

    rows: of the embedding; ids beyond the pad token are unused, and add nothing to a text.
    """

    chars: str
    rows: int = 0

    def __post_init__(self):
        if len(set(self.chars)) < len(self.chars):
            raise InputError("chars", repr(self.chars), "a character is repeated", "list each once")

    @cached_property
    def stop_id(self) -> int:
        return len(self.chars)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        return (self.stop_id,)

    @property
    def pad_id(self) -> int:
        return len(self.chars) + 1

    @cached_property
    def vocab_size(self) -> int:
        return max(len(self.chars) + 2, self.rows)

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {char: i for i, char in enumerate(self.chars)}

    def encode(self, text: str) -> list[int]:
        """Ids of the characters, no stop token. Raises InputError on a character it lacks."""
        try:
            return [self._id_of[char] for char in text]
        except KeyError as error:
            char = error.args[0]
            remedy = f"use {self.chars!r}"
            raise InputError("char", repr(char), "not in the vocabulary", remedy) from None

    def encode_prompt(self, text: str) -> list[int]:
        return self.encode(text)

    def encode_reply(self, text: str) -> list[int]:
        return self.encode(text)

    @cached_property
    def _text_of(self) -> dict[int, str]:
        nothing = dict.fromkeys(range(self.vocab_size), "")
        return nothing | dict(enumerate(self.chars))

    def decode(self, ids: Iterable[int]) -> str:
        """Text before the first stop token, pads skipped. Raises ValueError on an unknown id."""
        ids = list(ids)
        if self.stop_id in ids:
            ids = ids[: ids.index(self.stop_id)]
        try:
            return "".join([self._text_of[i] for i in ids])
        except KeyError as error:
            ids_are = f"ids are 0..{self.vocab_size - 1}"
            raise ValueError(f"id={error.args[0]}: not a token; {ids_are}") from None


def characters(texts: Iterable[str]) -> Tokenizer:
    """One token for each character of the texts, in sorted order."""
    return Tokenizer("".join(sorted(set("".join(texts)))))


class TextTokenizer(Protocol):
    """The interface of a tokenizer; rlx.envs.text has those of checkpoints."""

    @property
    def stop_id(self) -> int: ...  # supervised traces end with it

    @property
    def stop_ids(self) -> tuple[int, ...]: ...  # any of these ends a sample

    @property
    def pad_id(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...  # rows of the embedding

    def encode(self, text: str) -> list[int]: ...

    def encode_prompt(self, text: str) -> list[int]: ...  # with a chat template, if there is one

    def encode_reply(self, text: str) -> list[int]: ...  # from the end of an answer to the next

    def decode(self, ids: Iterable[int]) -> str: ...  # text before the first of `stop_ids`


class Env(Protocol):
    tokenizer: TextTokenizer
    train: list[Problem]
    heldout: list[Problem]  # no prompt of `heldout` is in `train`
    downstream: dict[str, list[Problem]]  # further evaluation sets, by name
    max_prompt_tokens: int  # over all lists

    def grade(self, problem: Problem, completion: str, stopped: bool) -> float:
        """Score in [0, 1], 1 for a pass; 0 if the length limit truncated it (not `stopped`)."""
        ...

    def well_formed(self, completion: str, stopped: bool) -> bool:
        """Whether it has the form of an answer, right or wrong; reward of a control."""
        ...

    def solution(self, problem: Problem, rng: np.random.Generator, worked: bool) -> str:
        """A correct completion without the stop token; `worked`: including the steps."""
        ...

    def ceiling(self, problems: Sequence[Problem], max_new_tokens: int) -> float | None:
        """Best mean score within the length limit, stop token included; None if unknown."""
        ...


class Replying(Env, Protocol):
    """An environment that may reply, in episodes of up to `episode.max_turns` turns.

    In place of a completion's text it gets the turns: a tuple of the policy's turn, the reply, the
    policy's next turn, and so on; a single answer is a tuple of one.
    """

    def reply(self, problem: Problem, turns: tuple[str, ...]) -> str | None:
        """The reply to the policy's last turn; None ends the episode."""
        ...

    def grade(self, problem: Problem, turns: tuple[str, ...], stopped: bool) -> float: ...

    def well_formed(self, turns: tuple[str, ...], stopped: bool) -> bool: ...

    def solution(
        self, problem: Problem, rng: np.random.Generator, worked: bool
    ) -> str | tuple[str, ...]: ...

    def ceiling(
        self, problems: Sequence[Problem], max_new_tokens: int, *, max_turns: int, turn_tokens: int
    ) -> float | None: ...


def tokens_of(ids: TextTokenizer, solution: str | Sequence[str]) -> tuple[list[int], list[int]]:
    """Tokens of an answer, or of the turns of an episode, and 1 for the policy's tokens.

    Each of the policy's turns ends with the stop token.
    """
    tokens, learned = [], []
    for i, text in enumerate([solution] if isinstance(solution, str) else solution):
        turn = ids.encode_reply(text) if i % 2 else [*ids.encode(text), ids.stop_id]
        tokens += turn
        learned += [1 - i % 2] * len(turn)
    return tokens, learned


def eval_sets(env: Env) -> dict[str, list[Problem]]:
    """All evaluation sets, `heldout` first."""
    return {"heldout": env.heldout, **env.downstream}


def make(
    name: str,
    *,
    train_prompts: int,
    heldout_prompts: int,
    seed: int,
    kwargs: dict[str, Any],
    tokenizer: TextTokenizer | None = None,
    rows: int = 0,
) -> Env:
    """The environment `name`, with the given numbers of distinct prompts, drawn from `seed`.

    `name` is a key of `CONSTRUCTORS` or the path of a Python file with a task (rlx.envs.own).
    Without a `tokenizer`, tokens are the characters of the environment, padded to `rows`. Raises
    InputError on a name, argument or value that cannot work.
    """
    sizes = {"train_prompts": train_prompts, "heldout_prompts": heldout_prompts}
    for key, value in sizes.items():
        if value < 1:
            raise InputError(f"env.{key}", value, "must be positive", "give a value above 0")
    if seed < 0:
        raise InputError("env.seed", seed, "negative", "give a seed of 0 or more")
    env = build(name, seed=seed, kwargs=kwargs, **sizes)
    if tokenizer is None and isinstance(env.tokenizer, Tokenizer) and rows:
        tokenizer = replace(env.tokenizer, rows=rows)
    return env if tokenizer is None else _read_by(env, tokenizer)


def build(name: str, *, seed: int, kwargs: dict[str, Any], **sizes: int) -> Env:
    """`make` without checking sizes: tasks that are only evaluated have no training prompts."""
    constructor = _constructor(name)
    for key in set(kwargs) & {"seed", "size", *sizes}:
        remedy = (
            f"set env.{key}" if key != "size" else f"set {' and '.join(f'env.{k}' for k in sizes)}"
        )
        raise InputError(f"env.kwargs.{key}", kwargs[key], "not set here", remedy)
    check_arguments(name, constructor, kwargs, given={"seed", *sizes})
    return constructor(**sizes, seed=seed, **kwargs)


# name -> import path; imported on demand, because some load large libraries
CONSTRUCTORS = {
    "digit_chain": "rlx.envs.digit_chain:DigitChain",
    "reasoning_gym": "rlx.envs.reasoning_gym:reasoning_gym",
    "math": "rlx.envs.math:Math",
    "code": "rlx.envs.code:Code",
    "mixture": "rlx.envs.mixture:mixture",
    "preference": "rlx.envs.preference:Preference",
    "guess": "rlx.envs.guess:Guess",
    "calculator": "rlx.envs.calculator:Calculator",
    "python_tool": "rlx.envs.python_tool:PythonTool",
    "verifiers": "rlx.envs.verifiers:Verifiers",
}


def _constructor(name: str) -> Callable[..., Env]:
    if name.endswith(".py"):
        from rlx.envs.own import OwnTask

        return functools.partial(OwnTask, name)
    if name not in CONSTRUCTORS:
        names = ", ".join(CONSTRUCTORS)
        remedy = f"use one of {names}, or the path of a .py file"
        raise InputError("env.name", name, "unknown name", remedy)
    module, _, attribute = CONSTRUCTORS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _read_by(env: Env, tokenizer: TextTokenizer) -> Env:
    """`env` with the tokenizer of a checkpoint."""
    for part in (env, *getattr(env, "parts", {}).values()):  # parts: of a mixture
        part.tokenizer = tokenizer
    problems = itertools.chain(env.train, *eval_sets(env).values())
    env.max_prompt_tokens = max(len(tokenizer.encode_prompt(p.prompt)) for p in problems)
    return env


def check_arguments(name: str, constructor: Any, kwargs: dict[str, Any], given: set[str]) -> None:
    """Raises InputError on the first of `kwargs` that the constructor does not accept."""
    for key in kwargs:
        if not isinstance(key, str):
            raise InputError(f"env.kwargs.{key}", kwargs[key], "its name is not text", "name it")
    parameters = inspect.signature(constructor).parameters.values()
    takes = {p.name: p for p in parameters if p.name not in given and p.kind is p.KEYWORD_ONLY}
    free = any(p.kind is p.VAR_KEYWORD for p in parameters)  # it checks the rest itself
    for key, value in kwargs.items():
        if key in takes:
            _check_type(key, value, str(takes[key].annotation))
        elif not free:
            remedy = f"{name} takes {', '.join(takes)}"
            raise InputError(f"env.kwargs.{key}", value, "unknown argument", remedy)
    missing = [p.name for p in takes.values() if p.default is p.empty and p.name not in kwargs]
    if missing:
        remedy = f"set it; {name} takes {', '.join(takes)}"
        raise InputError(f"env.kwargs.{missing[0]}", "", "not given", remedy)


TYPES = {  # type of an argument: (Python type, reason, remedy)
    "str": (str, "not text", "quote it"),
    "int": (int, "not an integer", "give an integer"),
    "float": (int | float, "not a number", "give a number"),
    "bool": (bool, "neither true nor false", "give true or false"),
    "dict": (dict, "not a mapping", "write {NAME: VALUE}"),
    "list": (list, "not a list", "write [VALUE]"),
}


def _check_type(key: str, value: Any, annotation: str) -> None:
    """`annotation`: one of TYPES, possibly with [...] and `| None`."""
    kinds = [kind.partition("[")[0] for kind in annotation.split(" | ")]
    kinds, optional = [kind for kind in kinds if kind != "None"], "None" in kinds
    if set(kinds) <= set(TYPES) and not (optional and value is None):
        if not any(_is(value, kind) for kind in kinds):
            raise InputError(f"env.kwargs.{key}", value, *TYPES[kinds[0]][1:])


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, TYPES[kind][0]) and isinstance(value, bool) == (kind == "bool")


def first_line(error: BaseException) -> str:
    """First line of its message with a letter or digit, else ""; the message may not print."""
    try:
        lines = (line.strip() for line in str(error).splitlines())
        return next((line for line in lines if any(map(str.isalnum, line))), "")
    except Exception:  # errors of foreign code may not print
        return ""
