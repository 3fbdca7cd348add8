"""Find a number in few guesses: a game whose optimal play is known.

    prompt  ?
    turns   11  >  17  <  14       guesses of two digits; the number is greater (>) or smaller (<)

The environment draws one of 0 .. numbers - 1 and gives no reply once it is found. The prompt says
nothing about the number, so held-out problems are like those of training. With k guesses a strategy
can find 2^k - 1 numbers and no more: a wrong guess has one of two replies, so k guesses are a
binary tree of that many nodes (`ceiling`).

Solutions for a warm start guess at random; `worked` ones guess within the bounds of the replies. So
a policy trained on them knows the rules, and RL has to discover bisection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rlx.envs.base import TextTokenizer, Tokenizer
from rlx.errors import InputError
from rlx.problem import Problem

PROMPT, GREATER, SMALLER, UNREADABLE = "?", ">", "<", "!"
SOLUTION_TURNS = 8  # a solution ends there, even if the number is not found


class Guess:
    """Numbers are equally frequent, up to one. Raises InputError on `numbers` outside 2..100."""

    def __init__(self, *, train_prompts: int, heldout_prompts: int, seed: int, numbers: int = 24):
        if not 2 <= numbers <= 100:
            raise InputError("env.kwargs.numbers", numbers, "outside 2..100", "use two digits")
        self.numbers = numbers
        self.tokenizer: TextTokenizer = Tokenizer(
            f"0123456789{PROMPT}{GREATER}{SMALLER}{UNREADABLE}"
        )
        self.max_prompt_tokens = len(PROMPT)
        rng = np.random.default_rng(seed)
        self.heldout = self._draw(rng, heldout_prompts)
        self.train = self._draw(rng, train_prompts)
        self.downstream: dict[str, list[Problem]] = {}

    def _draw(self, rng: np.random.Generator, count: int) -> list[Problem]:
        numbers = rng.permutation(np.arange(count) % self.numbers)
        return [Problem(i, PROMPT, f"{n:02}") for i, n in enumerate(numbers)]

    def reply(self, problem: Problem, turns: tuple[str, ...]) -> str | None:
        """Whether the number is greater or smaller; None once it is found."""
        guess = turns[-1]
        if guess == problem.answer:
            return None
        if not self._readable(guess):
            return UNREADABLE
        return GREATER if problem.answer > guess else SMALLER  # two digits each, so as numbers

    def _readable(self, guess: str) -> bool:
        return len(guess) == 2 and guess.isdecimal() and int(guess) < self.numbers

    def grade(self, problem: Problem, turns: tuple[str, ...], stopped: bool) -> float:
        """1 if the last guess is the number, else 0."""
        return float(stopped and turns[-1] == problem.answer)

    def well_formed(self, turns: tuple[str, ...], stopped: bool) -> bool:
        """Whether every guess is one of the numbers."""
        return stopped and all(map(self._readable, turns[::2]))

    def solution(self, problem: Problem, rng: np.random.Generator, worked: bool) -> tuple[str, ...]:
        """Random guesses and their replies."""
        turns, low, high = [], 0, self.numbers
        while True:
            turns.append(f"{rng.integers(low, high):02}")
            reply = self.reply(problem, tuple(turns))
            if reply is None or len(turns) // 2 + 1 == SOLUTION_TURNS:
                return tuple(turns)
            turns.append(reply)
            if worked:
                guess = int(turns[-2])
                low, high = (guess + 1, high) if reply == GREATER else (low, guess)

    def ceiling(
        self, problems: Sequence[Problem], max_new_tokens: int, *, max_turns: int, turn_tokens: int
    ) -> float:
        """Share of `problems` that have one of the 2^k - 1 most frequent numbers, which is exact.

        k: guesses within the limits; each takes 3 tokens and its reply one. Raises ValueError if
        there are no problems.
        """
        if not problems:
            raise ValueError("problems=[]: the share of nothing; give at least one problem")
        guesses = min(max_turns, (max_new_tokens + 1) // 4) if turn_tokens >= 3 else 0
        asked = Counter(problem.answer for problem in problems).most_common(2**guesses - 1)
        return sum(count for _, count in asked) / len(problems)
