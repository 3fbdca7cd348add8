"""Digit sums modulo `base`: a task with two ways to answer and a known ceiling.

    prompt   3872=====   3 to 8 digits, padded to a fixed width so that digit i sits at offset i
    direct   >0          short, but needs mental arithmetic
    worked   3180>0      running sums, then the answer: easy, but one token per digit longer

A warm start that knows the worked way but prefers the direct one leaves RL a strategy to discover.
The worked way needs tokens, so the token limit determines the best pass rate exactly (`ceiling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from rlx.envs.base import TextTokenizer, Tokenizer
from rlx.errors import InputError
from rlx.problem import Problem


class DigitChain:
    """Prompts of n digits below `base`, n uniform in lo..hi; the vocabulary is always the same.

    The held-out prompts depend on `seed`, `lo`, `hi` and `base` alone, not on the number of
    training prompts. Raises InputError on arguments that cannot work, and if a length has fewer
    distinct prompts than were drawn.
    """

    def __init__(
        self,
        *,
        train_prompts: int,
        heldout_prompts: int,
        seed: int,
        lo: int = 3,
        hi: int = 8,
        base: int = 10,
    ):
        _check_values(lo, hi, base)
        self.tokenizer: TextTokenizer = Tokenizer("0123456789=>")
        self.base = base
        self.max_prompt_tokens = hi + 1
        rng = np.random.default_rng(seed)
        unused = {n: base**n for n in range(lo, hi + 1)}  # prompts left, by number of digits
        taken: set[str] = set()
        self.heldout = self._draw(rng, "heldout_prompts", heldout_prompts, unused, taken)
        self.train = self._draw(rng, "train_prompts", train_prompts, unused, taken)
        self.downstream: dict[str, list[Problem]] = {}

    def _draw(
        self,
        rng: np.random.Generator,
        key: str,
        count: int,
        unused: dict[int, int],
        taken: set[str],
    ) -> list[Problem]:
        """`count` problems whose digits are not in `taken`; updates `taken` and `unused`."""
        problems = []
        lengths = list(unused)
        for i in range(count):
            n = lengths[rng.integers(len(lengths))]
            if unused[n] == 0:
                reason = f"all {self.base**n} prompts of {n} digits are used up"
                remedy = "ask for fewer prompts or raise env.kwargs.lo"
                raise InputError(f"env.{key}", count, reason, remedy)
            digits = self._draw_digits(rng, n)
            while digits in taken:
                digits = self._draw_digits(rng, n)
            taken.add(digits)
            unused[n] -= 1
            answer = str(sum(map(int, digits)) % self.base)
            problems.append(Problem(i, digits.ljust(self.max_prompt_tokens, "="), answer))
        return problems

    def _draw_digits(self, rng: np.random.Generator, n: int) -> str:
        return "".join(map(str, rng.integers(self.base, size=n)))

    def grade(self, problem: Problem, completion: str, stopped: bool) -> float:
        """1 if the sample stopped and the text after its last '>' is the answer, else 0."""
        _, mark, answer = completion.rpartition(">")
        return float(stopped and mark == ">" and answer == problem.answer)

    def well_formed(self, completion: str, stopped: bool) -> bool:
        """Whether it stopped after '>' and one digit."""
        _, mark, answer = completion.rpartition(">")
        return stopped and mark == ">" and len(answer) == 1

    def solution(self, problem: Problem, rng: np.random.Generator, worked: bool) -> str:
        """`>` and the answer, after the running sums if `worked`; `rng` is not used."""
        if not worked:
            return f">{problem.answer}"
        digits = map(int, problem.prompt.rstrip("="))
        steps = "".join(str(total % self.base) for total in accumulate(digits))
        return f"{steps}>{problem.answer}"

    def ceiling(self, problems: Sequence[Problem], max_new_tokens: int) -> float:
        """Share of `problems` whose worked solution and stop token fit in `max_new_tokens`.

        This is the exact ceiling of a policy without mental arithmetic; blind guesses on the other
        problems add 1/base of their share. Raises ValueError if there are no problems.
        """
        if not problems:
            raise ValueError("problems=[]: the share of nothing; give at least one problem")
        rng = np.random.default_rng(0)
        texts = [self.solution(problem, rng, worked=True) for problem in problems]
        fits = [len(self.tokenizer.encode(text)) + 1 <= max_new_tokens for text in texts]
        return sum(fits) / len(fits)


def _check_values(lo: int, hi: int, base: int) -> None:
    if lo < 1:
        raise InputError("env.kwargs.lo", lo, "no digits to sum", "use 1 or more")
    if hi < lo:
        raise InputError("env.kwargs.hi", hi, f"below env.kwargs.lo={lo}", "use lo <= hi")
    if not 2 <= base <= 10:
        raise InputError("env.kwargs.base", base, "outside 2..10", "a sum is written as one digit")
