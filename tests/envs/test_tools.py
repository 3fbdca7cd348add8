"""Tools: the calculator's arithmetic, and an interpreter that lasts as long as its episode."""

import json
import os
import time

import pytest

from rlx.envs import base, sandbox, sessions
from rlx.envs.calculator import Calculator, calculated
from rlx.envs.python_tool import LOST, PythonTool, cells
from rlx.errors import InputError

walls = pytest.mark.skipif(bool(sandbox.why_not()), reason=f"no sandbox: {sandbox.why_not()}")


@pytest.mark.parametrize(
    "text, value",
    [
        ("47*83", 3901), ("1+2*3", 7), ("(1+2)*3", 9), ("-3-4", -7), ("0", 0), ("007", None),
        ("2**9", None), ("1/0", None), ("x", None), ("", None), ("1,2", None), ("9" * 41, None),
        ("__import__('os')", None), ("(" * 20 + "1", None), ("1.5", None), ("True", None),
    ],
)  # fmt: skip
def test_arithmetic(text, value):
    assert calculated(text) == value


def test_a_calculator_moves_the_ceiling():
    env = Calculator(train_prompts=50, heldout_prompts=20, seed=0)
    assert not {p.prompt for p in env.train} & {p.prompt for p in env.heldout}
    problem = env.heldout[0]
    worked, at_once = (env.solution(problem, None, way) for way in (True, False))
    assert worked == (f"{problem.prompt}=", problem.answer, problem.answer)
    assert env.reply(problem, worked[:1]) == problem.answer and env.grade(problem, worked, True)
    assert at_once == (problem.answer,) and env.reply(problem, at_once) is None
    assert env.reply(problem, ("47*=",)) == "!"
    longest = len(base.tokens_of(env.tokenizer, ("47*83=", "3901", "3901"))[0])
    of = lambda tokens, turns: env.ceiling(  # noqa: E731
        [p for p in env.heldout if len(p.answer) == 4], tokens, max_turns=turns, turn_tokens=7
    )
    assert (of(longest, 2), of(longest - 1, 2), of(longest, 1)) == (1, 0, None)
    with pytest.raises(InputError, match="^env.train_prompts=90: with env.heldout_prompts=9 more"):
        Calculator(train_prompts=90, heldout_prompts=9, seed=0, digits=1)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    pytest.importorskip("math_verify", reason="pip install 'rlx[math]'")
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{"problem": f"{i} squared?", "answer": str(i * i)} for i in range(12)]
    file.write_text("\n".join(map(json.dumps, rows)))
    sizes = {"train_prompts": 8, "heldout_prompts": 2, "seed": 0}
    return {"name": "python_tool", **sizes, "kwargs": {"path": str(file), "wall_s": 2.0}}


@pytest.fixture
def env(arguments):
    env = base.make(**arguments)
    yield env
    env.sessions.close()


def block(code):
    return f"Let me see.\n```python\n{code}\n```\n"


def played(env, *codes):
    """The turns of an episode that runs these cells."""
    turns = []
    for code in codes:
        turns.append(block(code))
        turns.append(env.reply(env.train[0], tuple(turns)))
    return turns


@walls
def test_a_session_keeps_its_variables_and_ends_with_its_episode(env):
    problem = env.train[0]
    turns = played(env, "x = 20\nprint('set')", "x + 1", "y", "import os; os.getpid()")
    assert turns[1:7:2] == ["set", "21", "NameError: name 'y' is not defined"]
    ((history, (session,)),) = env.sessions.kept.items()
    process = session.jail.process
    assert len(history[1]) == 4 and process.poll() is None
    end = (*turns, "\\boxed{" + problem.answer[0] + "}")
    assert env.reply(problem, end) is None
    assert env.grade(problem, end, True) == 1 and len(env.sessions) == 0
    assert process.wait(5) is not None


@walls
def test_two_episodes_do_not_share_what_differs(env):
    first = played(env, "x = 1")
    second = played(env, "x = 2")
    for turns, x in ((second, "2"), (first, "1")):
        assert env.reply(env.train[0], (*turns, block("x"))) == x
    assert env.reply(env.train[1], (block("x = 3"),)) == "[no output]"
    assert len(env.sessions) == 3


@walls
def test_a_lost_session_is_made_again(env):
    """Its process is gone, or the run was resumed elsewhere: its cells are run again."""
    turns = played(env, "x = [1]", "x.append(2)")
    env.sessions.close()
    assert env.reply(env.train[0], (*turns, block("x"))) == "[1, 2]"
    (kept,) = env.sessions.kept.values()
    os.killpg(kept[0].jail.process.pid, 9)
    time.sleep(0.1)
    shown = env.reply(env.train[0], (*turns, block("x"), "[1, 2]", block("x")))
    assert shown.startswith(LOST)


@walls
def test_limits_of_a_cell_end_the_interpreter_and_a_fresh_one_follows(env):
    start = time.monotonic()
    turns = played(env, "x = 1", "while True: pass", "print('x' in globals())", "'y' * 5000")
    assert time.monotonic() - start < 10
    assert turns[3] == f"{LOST}time]" and turns[5] == "False"
    assert turns[7].startswith("'yyy") and turns[7].endswith("\n[4003 more characters]")
    assert cells(turns[:5]) == ["print('x' in globals())\n"]
    for code in ("import os; os._exit(3)", "bytearray(2**31)", "import socket; socket.socket()"):
        shown = played(env, code)[1]
        assert shown.startswith((LOST, "MemoryError", "PermissionError")), shown


@walls
def test_what_a_cell_writes_elsewhere_reaches_nobody(env):
    spoof = "import os; os.write(int(os.environ['CHANNEL']), b'[1]\\n[2]\\n')"
    assert played(env, spoof)[1] == f"{LOST}it spoke out of turn]"
    assert played(env, "print('\\ud800')")[1] == "?"
    assert played(env, "raise SystemExit(5)")[1] == "SystemExit: 5"
    assert played(env, "9**9**5 % 7; print(10**5000)")[1].startswith("ValueError: Exceeds")


@walls
def test_only_so_many_are_open(env, monkeypatch):
    monkeypatch.setattr(sessions, "OPEN", 3)
    first = played(env, "x = 0")
    for i in range(1, 5):
        played(env, f"x = {i}")
    assert len(env.sessions) == 3
    assert env.reply(env.train[0], (*first, block("x"))) == "0"


def test_arguments_that_cannot_work(arguments):
    for kwargs, message in (
        ({"walls": 1}, "env.kwargs.walls=1: unknown argument"),
        ({"wall_s": 0.0}, "env.kwargs.wall_s=0.0: too little; give 0.1 or more"),
        ({"output_chars": 0}, "env.kwargs.output_chars=0: shows nothing; raise it"),
    ):
        with pytest.raises(InputError) as error:
            base.make(**{**arguments, "kwargs": {**arguments["kwargs"], **kwargs}})
        assert str(error.value).startswith(message)


def test_the_class_is_what_the_name_means():
    assert base.CONSTRUCTORS["python_tool"].endswith(PythonTool.__name__)
