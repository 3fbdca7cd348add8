"""Programming problems with unit tests, from a file or a hub; answers run in a sandbox.

A row has a `prompt` and tests in one of these layouts:

    {"inputs": [...], "outputs": [...]}            standard input and output (APPS, DeepCoder), or
    [{"input": ..., "output": ...}, ...]           the same in pairs (LiveCodeBench)
    either with a `fn_name`, there or in the row   arguments and value of that function, as JSON
    ["assert f(1) == 2", ...]                      assertions (MBPP)
    "def check(candidate): ..." and `entry_point`  a function that asserts (HumanEval)

The completion's last fenced block of Python is the answer; it passes if all tests do. Printed text
is compared outside the sandbox, line by line without trailing white space. Functions are called
from a second sandbox, which holds the tests and compares, so an answer can neither see nor change
its tests; arguments and values must be plain data, and a function that has to modify its arguments
in place cannot pass.
"""

from __future__ import annotations

import ast
import builtins
import json
import keyword
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlx.envs import base, data, sandbox
from rlx.errors import InputError
from rlx.problem import Problem

PROMPTS = ("prompt", "question", "problem", "text")
TESTS = ("tests", "test_list", "test", "input_output")
SOLUTIONS = ("solution", "canonical_solution", "code")
LABELS = ("", "python", "py", "python3")
MALFORMED = (KeyError, TypeError, SyntaxError, ValueError, RecursionError, MemoryError)
WALL_S, MEMORY_MB = (0.1, 3600), (64, 1 << 20)  # bounds; least: enough to start an interpreter
HARNESS = Path(__file__).with_name("harness.py")


@dataclass(frozen=True)
class Tests:
    """Either `pairs` of standard input and output, or `source` that calls `names`."""

    pairs: tuple[tuple[str, str], ...] = ()
    source: str = ""
    names: tuple[str, ...] = ()


class Code:
    """`Problem.answer` is (tests, reference answer or None).

    `wall_s`: limit of one program, or of the assertions of one problem; `max_tests` above 0: use
    the first pairs only; `show_tests`: assertions to append to the prompt, if it does not name the
    function. `unsafe=True` runs answers without isolation, with resource limits alone. Raises
    InputError on data that cannot be used, and if programs cannot be isolated.
    """

    def __init__(
        self,
        *,
        train_prompts: int,
        heldout_prompts: int,
        seed: int,
        path: str | None = None,
        dataset: str | None = None,
        subset: str | None = None,
        split: str = "train",
        heldout_path: str | None = None,
        max_prompt_chars: int = 0,
        prompt_field: str | None = None,
        tests_field: str | None = None,
        max_tests: int = 0,
        show_tests: int = 0,
        wall_s: float = 6.0,
        memory_mb: int = 512,
        unsafe: bool = False,
    ):
        for key, value, (least, most) in (
            ("wall_s", wall_s, WALL_S),
            ("memory_mb", memory_mb, MEMORY_MB),
            ("max_tests", max_tests, (0, math.inf)),
            ("show_tests", show_tests, (0, math.inf)),
        ):
            if not least <= value <= most:
                remedy = (
                    f"give {least:g} to {most:g}" if most < math.inf else f"give {least} or more"
                )
                raise InputError(f"env.kwargs.{key}", value, "out of range", remedy)
        self.limits = sandbox.Limits(
            wall_s=wall_s, cpu_s=max(1, round(wall_s)), memory_mb=memory_mb
        )
        self.isolate = not unsafe
        if self.isolate:
            sandbox.require("code")
        fields = ([prompt_field] if prompt_field else PROMPTS,)
        fields += ([tests_field] if tests_field else TESTS,)
        rows = data.source_rows(path, dataset, subset, split)
        self.train, self.heldout = data.divide(
            [pair(row, *fields, max_tests, show_tests) for row in rows],
            train_prompts=train_prompts,
            heldout_prompts=heldout_prompts,
            seed=seed,
            source=str(path or dataset),
            longest=max_prompt_chars,
            heldout_pool=heldout_path
            and [
                pair(row, *fields, max_tests, show_tests)
                for row in data.rows(heldout_path, "env.kwargs.heldout_path")
            ],
        )
        self.downstream: dict[str, list[Problem]] = {}
        problems = self.heldout + self.train
        texts = [text for p in problems for text in (p.prompt, fenced(p.answer[1] or ""))]
        self.tokenizer: base.TextTokenizer = base.characters(texts)
        self.max_prompt_tokens = max(len(p.prompt) for p in problems)

    def grade(self, problem: Problem, completion: str, stopped: bool) -> float:
        """1 if the sample stopped and its program passes every test, else 0.

        Raises rlx.envs.sandbox.SandboxError if nothing can be run.
        """
        program = last_block(completion)
        if not stopped or program is None:
            return 0.0
        return float(passes(program, problem.answer[0], self.limits, self.isolate))

    def well_formed(self, completion: str, stopped: bool) -> bool:
        """Whether it stopped and has a block of valid Python."""
        program = last_block(completion)
        if not stopped or program is None:
            return False
        try:
            return bool(compile(program, "answer", "exec"))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False

    def solution(self, problem: Problem, rng: np.random.Generator, worked: bool) -> str:
        """The row's `solution` in a block; `rng` and `worked` are not used. InputError if none."""
        if problem.answer[1] is None:
            reason = "a row has no reference solution"
            raise InputError("env.name", "code", reason, "set warm_start.steps=0")
        return fenced(problem.answer[1])

    def ceiling(self, problems: Sequence[Problem], max_new_tokens: int) -> None:
        """None: the best score within a length limit is unknown."""
        return None


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


def last_block(completion: str) -> str | None:
    """The last fenced block labelled Python, or not labelled."""
    found, begin, label = None, -1, ""
    rows = completion.splitlines(keepends=True)
    for i, row in enumerate(rows):
        if not row.lstrip().startswith("```"):
            continue
        if begin < 0:
            begin, label = i + 1, row.strip().strip("`").strip()
        elif row.strip() == "```":
            if label in LABELS:
                found = "".join(rows[begin:i])
            begin = -1
    return found


def passes(program: str, tests: Tests, limits: sandbox.Limits, isolate: bool = True) -> bool:
    """Whether every test passes; stops at the first failure."""
    if tests.source:
        harness = HARNESS.read_text()
        server = f"{harness}\nserve({program!r})\n"
        client = f"{harness}\ncheck({tests.source!r}, {tests.names!r})\n"
        return sandbox.converse(server, client, limits, isolate).ok
    for stdin, expected in tests.pairs:
        room = replace(limits, output_kb=limits.output_kb + len(expected) // 256)
        result = sandbox.run(program, stdin, room, isolate)
        if not result.ok or lines(result.stdout.decode(errors="replace")) != lines(expected):
            return False
    return True


def lines(text: str) -> list[str]:
    """Lines without trailing white space, and without empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


def pair(row: data.Row, prompts: Sequence[str], fields: Sequence[str], most: int, shown: int):
    """(prompt, (tests, reference answer)) of a row. Raises InputError naming the row."""
    where, values = row
    prompt = data.text_field(row, prompts, "prompt_field")
    found = data.field(row, fields, "tests_field")
    if isinstance(found, str) and found.lstrip()[:1] in "[{":
        try:
            found = json.loads(found)
        except (ValueError, RecursionError) as error:
            raise data.bad_row(
                where, f"has tests that are not JSON ({error})", "fix them"
            ) from None
    try:
        tests = read_tests(found, values, most)
    except MALFORMED as error:
        raise data.bad_row(
            where,
            f"has tests of no known layout ({type(error).__name__}: {error})",
            "see rlx/envs/code.py for the layouts",
        ) from None
    if shown and isinstance(found, list) and isinstance(found[0], str):
        prompt = "\n".join([prompt, *found[:shown]])
    answer = next((values[name] for name in SOLUTIONS if values.get(name)), None)
    if not isinstance(answer, str | None):
        kind = type(answer).__name__
        raise data.bad_row(
            where, f"has a {kind} as its solution", "give a program, or leave it out"
        )
    return prompt + "\n", (tests, answer and data.encodable(where, answer))


def read_tests(found: Any, values: dict[str, Any], most: int) -> Tests:
    """Tests of a row with these values. Raises one of MALFORMED on anything else."""
    if isinstance(found, str):
        tests = assertions(f"{found}\ncheck({function_name(values['entry_point'])})\n")
        if "check" in tests.names:
            raise ValueError("they do not define a function check")
        return tests
    if isinstance(found, list) and found and isinstance(found[0], str):
        imports = values.get("test_imports") or []
        if not isinstance(imports, list):
            raise TypeError("test_imports is not a list")
        return assertions("\n".join([values.get("test_setup_code") or "\n".join(imports), *found]))
    if isinstance(found, dict):
        columns = found["inputs"], found["outputs"]
        if not all(isinstance(column, list) for column in columns):
            raise TypeError("inputs and outputs are not lists")
        pairs = list(zip(*columns, strict=True))
    elif isinstance(found, list) and all(isinstance(test, dict) for test in found):
        pairs = [(test["input"], test["output"]) for test in found]
    else:
        raise TypeError(f"neither text nor pairs but {type(found).__name__}")
    if not pairs:
        raise ValueError("there are no tests")
    pairs = plain(pairs[: most or None])
    name = values.get("fn_name") or (found if isinstance(found, dict) else found[0]).get("fn_name")
    if name:
        return functional(function_name(name), pairs)
    return Tests(pairs=tuple((as_text(given), as_text(wanted)) for given, wanted in pairs))


def function_name(name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{name!r} is not a function name")
    return name


def plain(values: Any) -> Any:
    """The values, if JSON can represent them: no other types, infinities or lone surrogates."""
    json.dumps(values, allow_nan=False, ensure_ascii=False).encode()
    return values


def as_text(value: Any) -> str:
    """Standard input or output, which some rows keep as a list of lines."""
    rows = value if isinstance(value, list) else [value]
    if not all(isinstance(row, str | int | float) for row in rows):
        raise TypeError("input or output is not text")
    return "\n".join(map(str, rows))


def assertions(source: str) -> Tests:
    """Tests whose functions of the answer are the names that they use and do not define."""
    tree = list(ast.walk(ast.parse(source)))
    names = [node for node in tree if isinstance(node, ast.Name)]
    bound = {node.id for node in names if not isinstance(node.ctx, ast.Load)} | set(dir(builtins))
    for node in tree:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
    wanted = tuple(sorted({node.id for node in names} - bound))
    if not wanted:
        raise ValueError("they do not call a function of the answer")
    return Tests(source=source, names=wanted)


def functional(name: str, pairs: Sequence[tuple[Any, Any]]) -> Tests:
    """Tests of arguments (a list, or one JSON value per line) and value; tuples become lists."""
    cases = plain([(given_arguments(given), one_value(wanted)) for given, wanted in pairs])
    source = (
        "def plain(x):\n"
        "    return [plain(y) for y in x] if isinstance(x, (list, tuple)) else x\n"
        f"for given, wanted in {cases!r}:\n"
        f"    assert plain({name}(*given)) == plain(wanted)\n"
    )
    return Tests(source=source, names=(name,))


def given_arguments(given: Any) -> list[Any]:
    if isinstance(given, dict):
        raise TypeError("arguments are a dict, not a list")
    if isinstance(given, str):
        return [json.loads(line) for line in given.splitlines() if line.strip()]
    return list(given)


def one_value(wanted: Any) -> Any:
    if isinstance(wanted, str):
        try:
            return json.loads(wanted)
        except json.JSONDecodeError:  # other errors propagate: a number may be too long for Python
            return wanted
    return wanted
