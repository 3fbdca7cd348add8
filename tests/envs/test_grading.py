import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlx.envs import base
from rlx.envs.grading import Failure, Graders, Outcome
from rlx.errors import InputError

ROOT = Path(__file__).parents[2]
TASK = """
import os, sys, threading, time

def problems(seed, n=20):
    for i in range(n):
        yield f"{i}+1=", str(i + 1)

def grade(answer, completion):
    if completion == "power": 9**9**9**9
    if completion == "sleep": time.sleep(1000)
    if completion == "exit": os._exit(7)
    if completion == "kill": os.kill(os.getpid(), 9)
    if completion == "nan": return float("nan")
    if completion == "two": return 2
    if completion == "none": return None
    if completion == "raise": raise RuntimeError("no\\nway")
    if completion == "memory": bytes(1 << 44)
    if completion == "jax": return "jax" in sys.modules or "flax" in sys.modules
    if completion == "main": return threading.current_thread() is threading.main_thread()
    if completion == "text": return "1"
    if completion == "quit": exit(3)
    if completion == "strange": raise type("Odd", (BaseException,), {"__str__": lambda self: 1 / 0})
    if completion == "print": print("noise")
    if completion == "slow": time.sleep(0.3)
    if completion == "half": return 0.5
    if completion.startswith("pid"): open(completion[4:], "w").write(str(os.getpid())); 9**9**9**9
    return float(completion == answer)
"""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    file = tmp_path_factory.mktemp("task") / "task.py"
    file.write_text(TASK)
    sizes = {"train_prompts": 10, "heldout_prompts": 5}
    return {"name": str(file), **sizes, "seed": 0, "kwargs": {}}


@pytest.fixture(scope="module")
def env(arguments):
    return base.make(**arguments)


@pytest.fixture(scope="module")
def graders(env, arguments):
    graders = Graders(env, arguments, timeout_s=1.0, workers=2)
    yield graders
    graders.close()


@pytest.fixture(scope="module")
def inline(env, arguments):
    return Graders(env, arguments, timeout_s=0, workers=2)


def items(env, *completions):
    return [(env.train[0], completion, True) for completion in completions]


def test_scores_come_in_order_whoever_graded_them(graders, inline, env):
    asked = []
    for i in range(200):
        problem = env.train[i % 10]
        text = problem.answer if i % 3 == 0 else "slow" if i == 1 else "half" if i % 3 == 1 else ""
        asked.append((problem, text, i % 7 != 0))
    expected = [Outcome(env.grade(*item)) for item in asked]
    assert {o.score for o in expected} == {0.0, 0.5, 1.0}
    assert graders.grade(asked) == inline.grade(asked) == expected
    assert graders.grade([]) == []


def test_what_hangs_or_dies_scores_zero_and_the_rest_is_graded(graders, env):
    timeouts, errors = graders.timeouts, graders.errors
    right = env.train[0].answer
    words = ["power", right, "sleep", right, "exit", right, "kill", right, "memory", right]
    start = time.monotonic()
    outcomes = graders.grade(items(env, *words))
    assert time.monotonic() - start < 20
    assert [o.score for o in outcomes] == [0, 1] * 5
    assert [o.reason for o in outcomes[1::2]] == [""] * 5
    assert [o.reason for o in outcomes[::2]] == [
        "timeout after 1 s",
        "timeout after 1 s",
        "error: the grader's process ended with 7",
        "error: the grader's process ended with -9",
        "error: MemoryError: ",
    ]
    assert (graders.timeouts - timeouts, graders.errors - errors) == (2, 3)


@pytest.mark.parametrize("where", ["graders", "inline"])
def test_what_is_no_score_counts_as_an_error(where, env, request):
    graders = request.getfixturevalue(where)
    errors = graders.errors
    outcomes = graders.grade(items(env, "nan", "two", "none", "raise", "print"))
    assert [o.score for o in outcomes] == [0] * 5
    assert [o.reason for o in outcomes] == [
        "error: score nan is outside [0, 1]",
        "error: score 2.0 is outside [0, 1]",
        "error: TypeError: float() argument must be a string or a real number, not 'NoneType'",
        "error: RuntimeError: no",
        "",
    ]
    assert graders.errors == errors + 4
    outcomes = graders.grade(items(env, "text", "quit", "strange"))
    assert [o.reason for o in outcomes] == [
        "error: score '1' is text, not a number",
        "error: SystemExit: 3",
        "error: Odd: ",
    ]
    assert {o.failure for o in outcomes} == {Failure.ERROR}
    assert graders.reasons["errors"] == "error: Odd: "


def test_a_grader_that_fails_on_every_answer_is_counted_by_kind(graders, env):
    """Up to what the loop reads: rlx.rollout.grades."""
    from rlx.rollout import grades
    from rlx.rollout.scorer import Answer

    said = [("raise", True), ("sleep", True), ("half", True)]
    answers = [Answer(problem, None, None, said) for problem in env.train[:2]]
    found = grades.grades(graders, answers, None)
    assert found.ungraded == {"timeouts": 2, "errors": 2}
    assert [score_G.tolist() for score_G in found.score_PG] == [[0, 0, 0.5]] * 2
    assert graders.reasons == {"timeouts": "timeout after 1 s", "errors": "error: RuntimeError: no"}


def test_workers_load_no_jax_and_grade_in_their_main_thread(graders, env):
    assert [o.score for o in graders.grade(items(env, "jax", "main"))] == [0, 1]


def test_two_threads_may_grade_at_once(graders, env):
    results = {}

    def ask(name, text, score):
        results[name] = [o.score for o in graders.grade(items(env, *[text] * 50))] == [score] * 50

    threads = [
        threading.Thread(target=ask, args=row)
        for row in [("a", "half", 0.5), ("b", env.train[0].answer, 1), ("c", "x", 0)]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {"a": True, "b": True, "c": True}


def test_workers_outlive_the_thread_that_needed_a_new_one(graders, env):
    thread = threading.Thread(target=graders.grade, args=(items(env, "exit", "exit"),))
    thread.start()
    thread.join()
    errors = graders.errors
    assert [o.score for o in graders.grade(items(env, *["half"] * 4))] == [0.5] * 4
    assert graders.errors == errors


def test_stop_names_the_task_the_problem_and_the_reason(env, arguments):
    graders = Graders(env, arguments, timeout_s=0, workers=1, on_error="stop")
    assert graders.grade(items(env, "half"))[0].score == 0.5
    with pytest.raises(InputError) as error:
        graders.grade(items(env, "half", "raise"))
    problem = env.train[0]
    assert str(error.value) == (
        f"env.on_grade_error=stop: {arguments['name']} has no score for an answer to problem 0 "
        f"({problem.prompt!r}): error: RuntimeError: no; fix the grader, or set "
        "env.on_grade_error=zero"
    )


def test_a_task_that_cannot_be_made_in_a_worker_is_one_error(env, arguments):
    graders = Graders(env, {**arguments, "name": "nowhere.py"}, timeout_s=1, workers=1)
    with pytest.raises(InputError) as error:
        graders.grade(items(env, "half"))
    assert "env.name=nowhere.py: no such file" in str(error.value)
    assert "\n" not in str(error.value)
    graders.close()


def test_a_worker_that_hangs_while_it_starts_is_an_error_in_time(tmp_path, monkeypatch):
    file = tmp_path / "task.py"
    lines = ["import pathlib, time", f"mark = pathlib.Path({str(tmp_path)!r}, 'mark')"]
    lines += ["if mark.exists(): time.sleep(1000)", "mark.touch()"]
    file.write_text("\n".join(lines) + TASK)
    sizes = {"train_prompts": 1, "heldout_prompts": 1}
    arguments = {"name": str(file), **sizes, "seed": 0, "kwargs": {}}
    env = base.make(**arguments)
    monkeypatch.setattr("rlx.envs.grading.START_S", 1)
    graders = Graders(env, arguments, timeout_s=10, workers=1)
    with pytest.raises(InputError, match="task.py: no answer for 1 s in a grading process; look"):
        graders.grade(items(env, "half"))
    assert graders._workers == []


def running(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_workers_die_with_a_parent_that_is_killed_even_while_they_hang(arguments, tmp_path):
    code = f"""
from rlx.envs import base, grading
arguments = {arguments!r}
env = base.make(**arguments)
graders = grading.Graders(env, arguments, timeout_s=100, workers=2)
graders.grade([(env.train[0], "pid " + {str(tmp_path)!r} + f"/{{i}}", True) for i in range(2)])
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    files = [tmp_path / "0", tmp_path / "1"]
    until = time.monotonic() + 30
    while time.monotonic() < until and not all(f.exists() and f.read_text() for f in files):
        time.sleep(0.05)
    pids = [int(file.read_text()) for file in files]
    assert all(running(pid) for pid in pids)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 10
    while any(running(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(running(pid) for pid in pids)


def test_close_leaves_no_process(env, arguments):
    graders = Graders(env, arguments, timeout_s=1.0, workers=2)
    pids = [worker.process.pid for worker in graders._workers]
    graders.close()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
