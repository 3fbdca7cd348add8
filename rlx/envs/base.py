"""What an environment is: problems as text, a tokenizer, and a grader.

Environments know nothing of arrays on devices; the sampler knows nothing of text. A `Problem.id` is
the position of the problem in its own list (`train` or `heldout`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from rlx.types import Problem


@dataclass(frozen=True)
class Tokenizer:
    """One token per character: `chars[i]` has id i, then come the stop token and the pad token."""

    chars: str

    def __post_init__(self):
        if len(set(self.chars)) < len(self.chars):
            raise ValueError(f"chars={self.chars!r}: a character is repeated; list each once")

    @property
    def stop_id(self) -> int:
        return len(self.chars)

    @property
    def pad_id(self) -> int:
        return len(self.chars) + 1

    @property
    def vocab_size(self) -> int:
        return len(self.chars) + 2

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {char: i for i, char in enumerate(self.chars)}

    def encode(self, text: str) -> list[int]:
        """Ids of the characters, no stop token. Raises ValueError on a character it lacks."""
        try:
            return [self._id_of[char] for char in text]
        except KeyError as error:
            char = error.args[0]
            raise ValueError(f"char={char!r}: not in the vocabulary; use {self.chars!r}") from None

    @cached_property
    def _text_of(self) -> list[str]:
        return [*self.chars, "", ""]  # the stop token ends a text, the pad token adds nothing

    def decode(self, ids: Iterable[int]) -> str:
        """Text before the first stop token, pads skipped. Raises ValueError on an unknown id."""
        ids = list(ids)
        if self.stop_id in ids:
            ids = ids[: ids.index(self.stop_id)]
        if ids and not (0 <= min(ids) and max(ids) < self.vocab_size):
            unknown = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise ValueError(f"id={unknown}: not a token; ids are 0..{self.vocab_size - 1}")
        return "".join([self._text_of[i] for i in ids])


class Env(Protocol):
    tokenizer: Tokenizer
    train: list[Problem]
    heldout: list[Problem]  # no prompt of `heldout` is in `train`
    max_prompt_tokens: int  # over both lists

    def grade(self, problem: Problem, completion: str, stopped: bool) -> float:
        """Score in [0, 1], 1 for a pass; 0 if the length limit cut the sample (not `stopped`)."""
        ...

    def well_formed(self, completion: str, stopped: bool) -> bool:
        """Whether it looks like an answer, right or wrong: the reward of a control."""
        ...

    def solution(self, problem: Problem, rng: np.random.Generator, worked: bool) -> str:
        """A right completion, without the stop token; `worked` asks for the steps too."""
        ...

    def ceiling(self, problems: Sequence[Problem], max_new_tokens: int) -> float | None:
        """Best mean score within the length limit, stop token included; None where unknown."""
        ...


def make(
    name: str, *, train_prompts: int, heldout_prompts: int, seed: int, kwargs: dict[str, Any]
) -> Env:
    """The environment `name`, with as many distinct prompts as asked for, drawn from `seed`.

    Raises ValueError, `key=value: reason; remedy`, on a name, argument or value that cannot work.
    """
    from rlx.envs.digit_chain import DigitChain  # here, because they import this module
    from rlx.envs.reasoning_gym import ReasoningGym

    constructors = {"digit_chain": DigitChain, "reasoning_gym": ReasoningGym}
    if name not in constructors:
        raise ValueError(f"env.name={name}: unknown name; use one of {', '.join(constructors)}")
    sizes = {"train_prompts": train_prompts, "heldout_prompts": heldout_prompts}
    for key, value in sizes.items():
        if value < 1:
            raise ValueError(f"env.{key}={value}: must be positive; give a value above 0")
    if seed < 0:
        raise ValueError(f"env.seed={seed}: negative; give a seed of 0 or more")
    for key in set(kwargs) & {"seed", "size", *sizes}:
        remedy = (
            f"set env.{key}" if key != "size" else f"set {' and '.join(f'env.{k}' for k in sizes)}"
        )
        raise ValueError(f"env.kwargs.{key}={kwargs[key]}: not set here; {remedy}")
    _check_arguments(name, constructors[name], kwargs, given={"seed", *sizes})
    return constructors[name](**sizes, seed=seed, **kwargs)


def _check_arguments(name: str, constructor: Any, kwargs: dict[str, Any], given: set[str]) -> None:
    """Raises ValueError on the first of `kwargs` that the constructor does not take."""
    parameters = inspect.signature(constructor).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return  # the constructor checks by itself
    takes = [p.name for p in parameters if p.name not in given]
    for key, value in kwargs.items():
        if key not in takes:
            raise ValueError(
                f"env.kwargs.{key}={value}: unknown argument; {name} takes {', '.join(takes)}"
            )
