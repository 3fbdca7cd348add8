"""Products that need a calculator: measures what a tool is worth to a policy of any size.

    prompt  47*83
    turns   47*83=  3901  3901     a turn that ends in "=" calls the calculator, any other answers

Factors have `digits` digits. A small model can copy but not multiply: with one turn it can only
guess, with two or more every question can be answered (`ceiling`). Solutions for a warm start give
the answer at once, or, if `worked`, call the calculator first; RL has to find out which pays.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Sequence

import numpy as np

from rlx.envs import data
from rlx.envs.base import TextTokenizer, Tokenizer
from rlx.errors import InputError
from rlx.problem import Problem

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
LONGEST = 40  # characters of an expression
UNREADABLE = "!"


class Calculator:
    """Raises InputError on `digits` outside 1..4, and if there are too few products."""

    def __init__(self, *, train_prompts: int, heldout_prompts: int, seed: int, digits: int = 2):
        if not 1 <= digits <= 4:
            raise InputError("env.kwargs.digits", digits, "outside 1..4", "use 1 to 4")
        least, most = 10 ** (digits - 1), 10**digits
        room, wanted = (most - least) ** 2, train_prompts + heldout_prompts
        if wanted > room:
            reason = f"with env.heldout_prompts={heldout_prompts} more than the {room} products"
            raise InputError("env.train_prompts", train_prompts, reason, "ask for fewer")
        rng = np.random.default_rng(seed)
        places = rng.choice(room, size=wanted, replace=False).tolist()
        pairs = [(least + i // (most - least), least + i % (most - least)) for i in places]
        problems = [(f"{a}*{b}", str(a * b)) for a, b in pairs]
        self.heldout = data.numbered(problems[:heldout_prompts])
        self.train = data.numbered(problems[heldout_prompts:])
        self.downstream: dict[str, list[Problem]] = {}
        self.tokenizer: TextTokenizer = Tokenizer(f"0123456789+-*()={UNREADABLE}")
        self.max_prompt_tokens = 2 * digits + 1

    def reply(self, problem: Problem, turns: tuple[str, ...]) -> str | None:
        """The value of the expression before "=", or "!" if it cannot be read."""
        if not turns[-1].endswith("="):
            return None
        value = calculated(turns[-1][:-1])
        return UNREADABLE if value is None else str(value)

    def grade(self, problem: Problem, turns: tuple[str, ...], stopped: bool) -> float:
        """1 if the last turn is the product, else 0."""
        return float(stopped and turns[-1] == problem.answer)

    def well_formed(self, turns: tuple[str, ...], stopped: bool) -> bool:
        """Whether it ends with a number."""
        return stopped and turns[-1].isdecimal()

    def solution(self, problem: Problem, rng: np.random.Generator, worked: bool) -> tuple[str, ...]:
        """The answer, after calling the calculator if `worked`; `rng` is not used."""
        asked = (f"{problem.prompt}=", problem.answer) if worked else ()
        return (*asked, problem.answer)

    def ceiling(
        self, problems: Sequence[Problem], max_new_tokens: int, *, max_turns: int, turn_tokens: int
    ) -> float | None:
        """Share of `problems` whose worked solution fits into the limits; None for one turn, which
        takes mental arithmetic. Raises ValueError if there are no problems.
        """
        if not problems:
            raise ValueError("problems=[]: the share of nothing; give at least one problem")
        if max_turns == 1:
            return None
        asks = [len(problem.prompt) + 2 for problem in problems]  # with the stop token
        says = [len(problem.answer) + 1 for problem in problems]
        fits = [
            max(ask, say) <= turn_tokens and ask + 2 * say - 1 <= max_new_tokens
            for ask, say in zip(asks, says, strict=True)
        ]
        return sum(fits) / len(fits)


def calculated(expression: str) -> int | None:
    """The value of sums, differences and products of integers; None of anything else."""
    try:
        if len(expression) > LONGEST:
            return None
        return _value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _value(node: ast.AST) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("no arithmetic")
