"""Your own task: a Python file with two or three functions, `env.name=path/to/task.py`.

    def problems(seed, **kwargs):             pairs of a prompt and an answer, as many as needed
        yield "2+3=", "5"

    def grade(answer, completion):            a score in [0, 1]; 1 is a pass
        return float(completion == answer)

`env.kwargs` are passed to `problems`. The first prompts are held out, duplicates are skipped. A
sample truncated by the length limit scores 0 without being graded. An answer that is text is also
the reference solution of a warm start.

    def reply(answer, turns):                 optional: text, or None to end the episode
        return None if turns[-1] == answer else "no"

`turns` is a tuple: the policy's turn, the reply, the policy's next turn, and so on. A task with
`reply` is graded on the turns too: `grade(answer, turns)`. Without env.tokenizer the vocabulary is
the characters of prompts and answers, and of a text CHARACTERS in the file; a reply with other
characters is a failure of the task.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import inspect
import pickle
import reprlib
import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice, repeat
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from rlx.envs import base, data
from rlx.errors import InputError
from rlx.problem import Problem

SLOW_S = 30
DRAWS_PER_PROMPT = 10  # before giving up on distinct ones


class OwnTask:
    """Raises InputError on a file without the two functions, or if it does not yield pairs."""

    def __init__(
        self, file: str, /, *, train_prompts: int, heldout_prompts: int, seed: int, **kwargs: Any
    ):
        self.file = file
        with _note_if_slow(file):
            self.module = _load(file)
            pairs = self._pairs(train_prompts, heldout_prompts, seed, kwargs)
        self.heldout = data.numbered(pairs[:heldout_prompts])
        self.train = data.numbered(pairs[heldout_prompts:])
        self.downstream: dict[str, list[Problem]] = {}
        texts = [text for pair in pairs for text in pair if isinstance(text, str)]
        texts.append(_characters(file, self.module))
        if hasattr(self.module, "reply"):
            _check_call(file, "reply", self.module.reply, "answer", ("turn",))
            self.reply = self._reply
        self.tokenizer: base.TextTokenizer = base.characters(texts)
        self.max_prompt_tokens = max(len(prompt) for prompt, _ in pairs)

    def _pairs(
        self, train_prompts: int, heldout_prompts: int, seed: int, kwargs: dict[str, Any]
    ) -> list[tuple[str, Any]]:
        """Distinct pairs, as many as needed. Raises InputError if there are too few."""
        _check_call(self.file, "grade", self.module.grade, "answer", "completion")
        _check_call(self.file, "problems", self.module.problems, seed, **kwargs)
        wanted = train_prompts + heldout_prompts
        pool: dict[str, Any] = {}
        for prompt, answer in islice(self._drawn(seed, kwargs), DRAWS_PER_PROMPT * wanted):
            pool.setdefault(prompt, answer)
            if len(pool) == wanted:
                return list(pool.items())
        reason = (
            f"{self.file} gave {len(pool)} distinct prompts, not {wanted} with "
            f"env.heldout_prompts={heldout_prompts}"
        )
        raise InputError("env.train_prompts", train_prompts, reason, "ask for fewer")

    def _drawn(self, seed: int, kwargs: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """The pairs of problems(), checked. Raises InputError if it fails."""
        try:
            yield from map(
                _checked, repeat(self.file), count(), self.module.problems(seed, **kwargs)
            )
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise _fault(self.file, error, "in problems()") from error

    def grade(self, problem: Problem, completion: Any, stopped: bool) -> float:
        """The file's score, given a copy of the answer; 0 if the sample was truncated."""
        return self.module.grade(copy.deepcopy(problem.answer), completion) if stopped else 0.0

    def _reply(self, problem: Problem, turns: tuple[str, ...]) -> str | None:
        return self.module.reply(copy.deepcopy(problem.answer), turns)

    def well_formed(self, completion: Any, stopped: bool) -> bool:
        """Whether it stopped and is not empty; of an episode, its last turn."""
        text = completion if isinstance(completion, str) else completion[-1]
        return stopped and text.strip() != ""

    def solution(self, problem: Problem, rng: np.random.Generator, worked: bool) -> str:
        """The answer, if it is text; `rng` and `worked` are not used. InputError otherwise."""
        if not isinstance(problem.answer, str):
            reason = "an answer is not text, and cannot be a solution"
            raise InputError("env.name", self.file, reason, "set warm_start.steps=0")
        return problem.answer

    def ceiling(self, problems: Sequence[Problem], max_new_tokens: int, **turns: int) -> None:
        """None: the best score within a length limit is unknown."""
        return None


@contextlib.contextmanager
def _note_if_slow(file: str) -> Iterator[None]:
    """Prints a note if it is not done after SLOW_S: the file may hang."""
    text = f"env.name={file}: still waiting for its problems after {SLOW_S:g} s"
    timer = threading.Timer(SLOW_S, print, [text], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _load(file: str) -> ModuleType:
    if not Path(file).is_file():
        raise InputError("env.name", file, "no such file", "give the path of a Python file")
    name = f"{Path(file).stem}_{zlib.crc32(file.encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that its classes can be pickled, or be dataclasses
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _fault(file, error) from error
    for function in ("problems", "grade"):
        if not callable(getattr(module, function, None)):
            reason = f"no function {function} in it"
            raise InputError("env.name", file, reason, "see rlx/envs/own.py")
    return module


def _fault(file: str, error: BaseException, where: str = "") -> InputError:
    """The error of the file, with the last line of it that was running."""
    lines = [s.lineno for s in traceback.extract_tb(error.__traceback__) if s.filename == file]
    reason = f"{type(error).__name__}: {base.first_line(error)}"
    reason = " ".join([reason, where, f"at line {lines[-1]}" if lines else ""])
    return InputError("env.name", file, " ".join(reason.split()), "fix the file")


def _check_call(file: str, name: str, function: Callable, *args: Any, **kwargs: Any) -> None:
    """Raises InputError if the function cannot be called with these arguments."""
    try:
        signature = inspect.signature(function)
        signature.bind(*args, **kwargs)
    except (TypeError, ValueError) as error:
        if name == "problems" and kwargs:
            takes = ", ".join(list(signature.parameters)[1:]) or "nothing"
            remedy = f"problems() of {file} takes, after the seed: {takes}"
            raise InputError("env.kwargs", kwargs, error, remedy) from None
        remedy = "write problems(seed, ...) and grade(answer, completion)"
        remedy = "write reply(answer, turns)" if name == "reply" else remedy
        raise InputError("env.name", file, f"{name}(): {error}", remedy) from None


def _characters(file: str, module: ModuleType) -> str:
    """Characters of the vocabulary besides those of prompts and answers."""
    more = getattr(module, "CHARACTERS", "")
    if not isinstance(more, str):
        reason = f"CHARACTERS is a {type(more).__name__}, not text"
        raise InputError("env.name", file, reason, 'write CHARACTERS = "..."')
    return more


def _checked(file: str, i: int, pair: Any) -> tuple[str, Any]:
    """A pair of a prompt that can be encoded and an answer that can be sent to a grader."""
    if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and pair[0]):
        reason = f"item {i} of problems() is {reprlib.repr(pair)}"
        raise InputError("env.name", file, reason, "yield (prompt, answer)")
    try:
        pair[0].encode()
        pickle.dumps(pair[1])
    except Exception as error:
        reason = f"item {i} of problems(): {type(error).__name__}: {base.first_line(error)}"
        remedy = "yield text that can be encoded, and an answer that can be pickled"
        raise InputError("env.name", file, reason, remedy) from None
    return pair
