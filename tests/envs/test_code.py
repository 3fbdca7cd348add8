"""Every layout of tests, and answers that try to pass without being right."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.envs import base, code, grading, sandbox
from rlx.errors import InputError
from rlx.problem import Problem

EXAMPLE = Path(__file__).parents[1] / "data/code.jsonl"
RNG = np.random.default_rng(0)
WHY_NOT = sandbox.why_not()
isolated = pytest.mark.skipif(bool(WHY_NOT), reason=f"no isolation here: {WHY_NOT}")


def coding(path=EXAMPLE, train_prompts=4, heldout_prompts=1, **kwargs):
    sizes = {"train_prompts": train_prompts, "heldout_prompts": heldout_prompts}
    return base.make("code", **sizes, seed=0, kwargs={"path": str(path), **kwargs})


@pytest.fixture(scope="module")
def env():
    if WHY_NOT:
        pytest.skip(f"no isolation here: {WHY_NOT}")
    return coding(wall_s=10)


def test_reference_solutions_of_every_layout_pass(env):
    assert len(env.train + env.heldout) == 5
    for problem in env.train + env.heldout:
        text = f"Let me think.\n{env.solution(problem, RNG, True)}\nDone."
        assert env.well_formed(text, True) and env.grade(problem, text, True) == 1
        assert env.grade(problem, text, False) == 0
        assert env.tokenizer.decode(env.tokenizer.encode(problem.prompt)) == problem.prompt
    assert env.downstream == {} and env.ceiling(env.heldout, 9) is None


ADD = code.assertions("assert add(1, 2) == 3\nassert add(a=2, b=2) == 4")
RIGHT = "def add(a, b):\n    return a + b"
IO = code.Tests(pairs=(("1 2\n", "3\n"), ("5 5\n", "10")))
ALWAYS_EQUAL = "def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"


def passes(program, tests, wall_s=10.0):
    return code.passes(program, tests, sandbox.Limits(wall_s=wall_s))


@isolated
@pytest.mark.parametrize(
    "program",
    [
        RIGHT,
        "print('noise' * 9999)\n" + RIGHT,
        "class Solution:\n    def add(self, a, b):\n        return a + b",
        "if __name__ == '__main__':\n    raise SystemExit\n" + RIGHT,
    ],
)
def test_right_functions(program):
    assert passes(program, ADD)


@isolated
@pytest.mark.parametrize(
    "program",
    [
        "def add(a, b):\n    return a - b",
        "def add(a, b):\n    return str(a + b)",
        "",
        "def add(a, b:",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "def add(a, b):\n    raise SystemExit(0)",
        "def add(a, b):\n    import os; os._exit(0)",
        "def add(a, b):\n    raise AssertionError",
        f"class E:\n    {ALWAYS_EQUAL}\ndef add(a, b): return E()",
        f"class E(int):\n    {ALWAYS_EQUAL}\ndef add(a, b): return E()",
        "import builtins\nbuiltins.AssertionError = RuntimeError\nimport os, signal\n"
        "os.kill(os.getppid(), signal.SIGKILL)\ndef add(a, b): return 0",
        # in the process of the tests this would pass: there it has no effect
        "import sys\nsys.settrace(lambda *a: None)\n"
        "for f in list(sys._current_frames().values()):\n    f.f_globals['check'] = print\n"
        "def add(a, b): return None",
        # whatever it writes to the socket is the value of a call, no verdict
        "import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, b'[\"list\", []]\\n')\n"
        "    except OSError: pass\nos._exit(0)",
        "import os\nfor fd in range(3, 64):\n    try: os.close(fd)\n    except OSError: pass\n"
        + RIGHT,
    ],
)
def test_wrong_functions(program):
    assert not passes(program, ADD)


@isolated
def test_endless_answers_end():
    assert not passes("while True: pass", ADD, wall_s=1.5)
    assert not passes("def add(a, b):\n    while True: pass", ADD, wall_s=1.5)
    assert not passes("while True: pass", IO, wall_s=1.0)
    assert not passes("while True: print('3')", IO, wall_s=5.0)


@isolated
@pytest.mark.parametrize(
    "program, right",
    [
        ("print(sum(map(int, input().split())))", True),
        ("print(sum(map(int, input().split())), ' \\n\\n')", True),
        ("print(3)", False),  # passes the first alone
        ("print(sum(map(int, input().split())))\nraise SystemExit(1)", False),
        ("print(sum(map(int, input().split())), 'x')", False),
        ("", False),
    ],
)
def test_printed_answers(program, right):
    assert passes(program, IO) == right


@isolated
def test_values_keep_their_kind_and_errors_their_name():
    tests = code.assertions(
        "import math\n"
        "assert f((1, 2)) == ((1, 2), 'tuple')\n"
        "assert f({1: [2.5, None]}) == ({1: [2.5, None]}, 'dict')\n"
        "assert f({'x', 'y'}) == ({'y', 'x'}, 'set')\n"
        "assert f(b'\\0') == (b'\\0', 'bytes')\n"
        "assert f(True)[0] is True and f('é\\n') == ('é\\n', 'str')\n"
        "assert math.isinf(f(float('inf'))[0])\n"
        "try:\n    g(-1)\n    assert False\nexcept ValueError:\n    pass\n"
    )
    assert tests.names == ("f", "g")
    program = (
        "def f(x):\n    return (x, type(x).__name__)\ndef g(x):\n    raise ValueError('negative')"
    )
    assert passes(program, tests)
    assert not passes(program.replace("ValueError", "KeyError"), tests)


@isolated
def test_functions_called_with_json():
    tests = code.functional("f", [("[1, 2]\n3", "[[1, 2], 3]"), ([[], 0], [[], 0])])
    assert passes("def f(x, n): return (tuple(x), n)", tests)
    assert not passes("def f(x, n): return [n, x]", tests)
    assert passes("def g(s): return s + '!'", code.functional("g", [('"a"', "a!")]))


@pytest.mark.parametrize(
    "text, program",
    [
        ("```python\na\n```", "a\n"),
        ("```python\na\n```\nor\n```py\nb\n```\n", "b\n"),
        ("```\nc\n```", "c\n"),
        ("```python\na\n```\n```json\n{}\n```", "a\n"),
        ("```json\n{}\n```\ntext\n```python\na\n```", "a\n"),
        ("1.\n   ```python\n   a\n   ```", "   a\n"),
        ("```python\nx = '```'\n```", "x = '```'\n"),
        ("a = 1", None),
        ("```python\nnever closed", None),
        ("`" * 100_000, None),
        ("```python\n" * 20_000, None),
    ],
)
def test_the_last_block_is_the_answer(text, program):
    assert code.last_block(text) == program


@isolated
def test_max_tests_keeps_the_first(env):
    found = {"inputs": ["1", "2", "3"], "outputs": ["1", "2", "3"]}
    assert len(code.read_tests(found, {}, 2).pairs) == 2
    assert len(code.read_tests(found, {}, 0).pairs) == 3


@isolated
def test_rows_of_mbpp_name_the_function_by_a_test(tmp_path):
    row = {"text": "Add.", "code": "def add(a, b):\r\n  return a+b", "test_setup_code": "x = 2"}
    row["test_list"] = ["assert add(x, 3) == 5", "assert add(0, x) == 2"]
    path = tmp_path / "mbpp.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "text": "Sum."}))
    env = coding(path, 1, 1, show_tests=1)
    problem = env.train[0]
    assert problem.prompt[4:] == "\nassert add(x, 3) == 5\n"
    assert env.grade(problem, env.solution(problem, RNG, True), True) == 1
    wrong = "```python\ndef add(a, b): return 5\n```"
    assert env.grade(problem, wrong, True) == 0


@isolated
@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "p"}, "has no tests or test_list or test or input_output (fields: prompt); "),
        ({"tests": ["assert f()"]}, "has no prompt or question or problem or text (fields: tests)"),
        ({"prompt": "p", "tests": "[1,"}, "has tests that are not JSON ("),
        ({"prompt": "p", "tests": ["assert 1 =="]}, "has tests of no known layout (SyntaxError: "),
        ({"prompt": "p", "tests": ["assert 1"]}, "has tests of no known layout (ValueError: they "),
        ({"prompt": "p", "tests": {"inputs": [1]}}, "has tests of no known layout (KeyError: "),
        ({"prompt": "p", "tests": "def check(f): f"}, "has tests of no known layout (KeyError: "),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "tests": ["assert f()"]}) + "\n" + json.dumps(row))
    with pytest.raises(ValueError) as error:
        coding(path)
    assert str(error.value).startswith(f"env.kwargs.path={path}: line 2 {message}")


FUNCTION = {"inputs": [[1]], "outputs": [1], "fn_name": "f"}
HALF = "\ud800"


@pytest.mark.parametrize(
    "row, message",
    [
        ({"tests": 5}, "has tests of no known layout (TypeError: neither text nor pairs but int)"),
        ({"tests": True}, "has tests of no known layout (TypeError: neither text nor pairs but "),
        ({"tests": [None]}, "has tests of no known layout (TypeError: neither text nor pairs but "),
        ({"tests": [[]]}, "has tests of no known layout (TypeError: neither text nor pairs but l"),
        ({"tests": ["assert f()", 3]}, "has tests of no known layout (TypeError: "),
        ({"tests": [{"input": "1"}]}, "has tests of no known layout (KeyError: 'output')"),
        (
            {"tests": [{"input": None, "output": "1"}]},
            "has tests of no known layout (TypeError: in",
        ),
        ({"tests": [{"input": "1", "output": HALF}]}, "has tests of no known layout (UnicodeEncod"),
        ({"tests": {"inputs": "12", "outputs": "34"}}, "has tests of no known layout (TypeError: "),
        ({"tests": {"inputs": ["1"], "outputs": []}}, "has tests of no known layout (ValueError: "),
        ({"tests": {"inputs": [], "outputs": []}}, "has tests of no known layout (ValueError: the"),
        (
            {"tests": FUNCTION | {"fn_name": 3}},
            "has tests of no known layout (ValueError: 3 is not",
        ),
        ({"tests": FUNCTION | {"fn_name": "f(1)"}}, "has tests of no known layout (ValueError: 'f"),
        (
            {"tests": FUNCTION | {"inputs": [{"x": 1}]}},
            "has tests of no known layout (TypeError: a",
        ),
        ({"tests": FUNCTION | {"outputs": ["NaN"]}}, "has tests of no known layout (ValueError: "),
        ({"tests": FUNCTION | {"inputs": ["1e999"]}}, "has tests of no known layout (ValueError: "),
        (
            {"tests": FUNCTION | {"outputs": ["9" * 5000]}},
            "has tests of no known layout (ValueError",
        ),
        ({"tests": "[" * 99999}, "has tests that are not JSON ("),
        ({"tests": ["assert f(" + "-" * 99999 + "1)"]}, "has tests of no known layout ("),
        ({"tests": [f"assert f('{HALF}')"]}, "has tests of no known layout (UnicodeEncodeError: "),
        (
            {"tests": ["assert f()"], "test_imports": "os"},
            "has tests of no known layout (TypeError",
        ),
        (
            {"tests": "x = 1", "entry_point": "f"},
            "has tests of no known layout (ValueError: they d",
        ),
        (
            {"tests": "def check(f): f", "entry_point": 1},
            "has tests of no known layout (ValueError",
        ),
        (
            {"tests": ["assert f()"], "solution": [1]},
            "has a list as its solution; give a program, ",
        ),
        ({"tests": ["assert f()"], "solution": HALF}, "holds '\\ud800', a lone surrogate"),
    ],
)
def test_malformed_tests_are_named(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    good = {"prompt": "a", "tests": ["assert f()"]}
    path.write_text(json.dumps(good) + "\n" + json.dumps({"prompt": "p", **row}))
    with pytest.raises(InputError) as error:
        coding(path, unsafe=True)
    text = str(error.value)
    assert text.startswith(f"env.kwargs.path={path}: line 2 {message}") and "\n" not in text


@pytest.mark.parametrize(
    "key, value",
    [("wall_s", 0), ("wall_s", float("nan")), ("wall_s", float("inf")), ("memory_mb", 8),
     ("memory_mb", 1 << 40), ("max_tests", -1), ("show_tests", -2)],
)  # fmt: skip
def test_options_that_no_program_could_run_with(key, value):
    with pytest.raises(InputError, match=f"env.kwargs.{key}={value}: out of range; give "):
        coding(unsafe=True, **{key: value})


WORDS = st.sampled_from(["assert f(1) == 1", "f", "1", "[1]", "{", "def check(c): c", HALF, ""])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5)
KEYS = (
    "input",
    "output",
    "inputs",
    "outputs",
    "fn_name",
    "entry_point",
    "test_imports",
    "solution",
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from((*KEYS, "test_setup_code")), VALUES), VALUES)
def test_any_row_gives_tests_or_one_line(values, tests):
    row = ("env.kwargs.path=f: line 1", {"prompt": "p", "tests": tests, **values})
    try:
        prompt, (found, answer) = code.pair(row, code.PROMPTS, code.TESTS, 2, 1)
    except InputError as error:
        assert str(error).startswith("env.kwargs.path=f: line 1 ") and "\n" not in str(error)
        return
    assert bool(found.pairs) != bool(found.source)
    for text in (prompt, found.source, answer or "", *(x for p in found.pairs for x in p)):
        text.encode()


def test_without_isolation_it_refuses_or_is_told_to_trust(monkeypatch):
    def refuse(*arguments, **kwargs):
        raise sandbox.SandboxError("unshare: Operation not permitted")

    monkeypatch.setattr(sandbox, "run", refuse)
    with pytest.raises(ValueError) as error:
        coding()
    assert str(error.value) == (
        "env.name=code: answers cannot be isolated here (unshare: Operation not permitted); run as "
        "root or where user namespaces are allowed, or trust them with env.kwargs.unsafe=true"
    )
    monkeypatch.undo()
    trusting = coding(unsafe=True)
    assert not trusting.isolate
    problem = next(p for p in trusting.train if "largest" in p.prompt)
    assert trusting.grade(problem, trusting.solution(problem, RNG, True), True) == 1


def test_in_grading_processes(env):
    """Endless programs are the answer's fault, not the grader's: no time-out is counted."""
    arguments = {"name": "code", "train_prompts": 4, "heldout_prompts": 1, "seed": 0}
    arguments["kwargs"] = {"path": str(EXAMPLE), "wall_s": 2.0}
    graders = grading.Graders(env, arguments, timeout_s=30, workers=2)
    try:
        items = [(p, env.solution(p, RNG, True), True) for p in env.train]
        items += [(p, "```python\nwhile True: pass\n```", True) for p in env.train[:2]]
        outcomes = graders.grade(items)
        assert [o.score for o in outcomes] == [1] * 4 + [0] * 2
        assert (graders.timeouts, graders.errors) == (0, 0)
    finally:
        graders.close()


def test_a_row_without_a_solution_cannot_be_learnt(env):
    problem = Problem(0, "p", (ADD, None))
    with pytest.raises(ValueError, match="env.name=code: a row has no reference solution; set wa"):
        env.solution(problem, RNG, True)
    assert not env.well_formed("```python\nif\n```", True)
