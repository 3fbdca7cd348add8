from pathlib import Path

import numpy as np
import pytest

from rlx.envs.base import make
from rlx.envs.grading import Graders, Outcome

SUMS = str(Path(__file__).parents[1] / "data/tasks/sums.py")


def own(file=SUMS, train_prompts=20, heldout_prompts=5, seed=0, **kwargs):
    sizes = {"train_prompts": train_prompts, "heldout_prompts": heldout_prompts}
    return make(str(file), **sizes, seed=seed, kwargs=kwargs)


def test_the_shipped_example():
    env = own(top=7)
    prompts = [p.prompt for p in env.train + env.heldout]
    assert len(set(prompts)) == 25 and [p.id for p in env.train] == list(range(20))
    for problem in env.train:
        a, b = map(int, problem.prompt.rstrip("=").split("+"))
        assert a < 7 and b < 7
        text = env.solution(problem, np.random.default_rng(0), worked=True)
        assert text == str(a + b) and env.grade(problem, text, True) == 1
        assert env.grade(problem, text, False) == 0 and env.grade(problem, "x", True) == 0
        assert env.tokenizer.decode(env.tokenizer.encode_prompt(problem.prompt)) == problem.prompt
    assert env.max_prompt_tokens == 4 and env.downstream == {}
    assert env.ceiling(env.heldout, 9) is None and not env.well_formed(" ", True)


def test_problems_depend_on_the_seed_and_heldout_not_on_the_size():
    assert own(seed=1).train == own(seed=1).train
    assert own(seed=1).heldout != own(seed=2).heldout
    assert own(train_prompts=3).heldout == own().heldout


BAD = {
    "def problems(seed): yield 'a', 1": "no function grade in it; see rlx/envs/own.py",
    "def grade(a, c): return 1": "no function problems in it; see rlx/envs/own.py",
    "import nowhere": "ModuleNotFoundError: No module named 'nowhere' at line 1; fix the file",
    "def f(:": "SyntaxError: invalid syntax (task.py, line 1); fix the file",
    "1\nexit()": "SystemExit: None at line 2; fix the file",
    "class E(Exception):\n  def __str__(self): raise self\nraise E": "E: at line 3; fix the file",
    "def problems(seed): return None\ndef grade(a, c): ...": (
        "TypeError: 'NoneType' object is not iterable in problems(); fix the file"
    ),
    "def problems(seed):\n  yield 'a', 1\n  1 / 0\ndef grade(a, c): ...": (
        "ZeroDivisionError: division by zero in problems() at line 3; fix the file"
    ),
    "def problems(seed): yield 'a', lambda: 1\ndef grade(a, c): ...": (
        "item 0 of problems(): *; yield text that can be encoded, and an answer that can be pickled"
    ),
    "def problems(seed): yield '\\ud800', 1\ndef grade(a, c): ...": (
        "item 0 of problems(): UnicodeEncodeError: *; yield text that can be encoded, and an "
        "answer that can be pickled"
    ),
    "def problems(seed): yield '', 1\ndef grade(a, c): ...": (
        "item 0 of problems() is ('', 1); yield (prompt, answer)"
    ),
    "def problems(seed): yield 'a', 1\ndef grade(c): ...": (
        "grade(): too many positional arguments; write problems(seed, ...) and grade(answer, "
        "completion)"
    ),
    "def problems(): yield 'a', 1\ndef grade(a, c): ...": (
        "problems(): too many positional arguments; write problems(seed, ...) and grade(answer, "
        "completion)"
    ),
    "def problems(seed): yield 'a'\ndef grade(a, c): return 1": (
        "item 0 of problems() is 'a'; yield (prompt, answer)"
    ),
}


@pytest.mark.parametrize("source, message", list(BAD.items()))
def test_errors_of_the_file(tmp_path, source, message):
    file = tmp_path / "task.py"
    file.write_text(source)
    with pytest.raises(ValueError) as error:
        own(file)
    start, _, end = message.partition("*")
    assert str(error.value).startswith(f"env.name={file}: {start}")
    assert str(error.value).endswith(end) and (end or str(error.value).endswith(start))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"top": 2}, f"env.train_prompts=20: {SUMS} gave 4 distinct prompts, not 25 with "),
        (
            {"bottom": 2},
            "env.kwargs={'bottom': 2}: got an unexpected keyword argument 'bottom'; "
            f"problems() of {SUMS} takes, after the seed: top",
        ),
        ({"file": "no.py"}, "env.name=no.py: no such file; give the path of a Python file"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError) as error:
        own(**changes)
    assert str(error.value).startswith(message)


def test_a_file_that_takes_long_is_named(tmp_path, monkeypatch, capfd):
    file = tmp_path / "task.py"
    file.write_text("import time\ntime.sleep(0.5)\n" + Path(SUMS).read_text())
    monkeypatch.setattr("rlx.envs.own.SLOW_S", 0.05)
    own(file)
    assert f"env.name={file}: still waiting for its problems after 0.05 s" in capfd.readouterr().err


LATE = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Answer:
    text: str
    tries: list

def problems(seed):
    for i in range(9): yield f"{i}", Answer(str(i), [])

def grade(answer, completion):
    answer.tries.append(completion)
    return len(answer.tries) == 1 and completion == answer.text
"""


def test_answers_of_a_class_of_the_file_reach_the_graders_and_stay_as_they_are(tmp_path):
    file = tmp_path / "task.py"
    file.write_text(LATE)
    arguments = {"name": str(file), "train_prompts": 3, "heldout_prompts": 3, "seed": 0}
    env = make(**arguments, kwargs={})
    graders = [Graders(env, arguments | {"kwargs": {}}, timeout_s=t, workers=1) for t in (0, 10)]
    for each in graders:
        item = (env.train[0], env.train[0].answer.text, True)
        assert each.grade([item] * 3) == [Outcome(1.0)] * 3
        each.close()
    assert env.train[0].answer.tries == []


def test_an_answer_that_is_no_text_cannot_be_learnt(tmp_path):
    file = tmp_path / "task.py"
    file.write_text("def problems(seed):\n  yield from [('a', 1), ('b', 2)]\ndef grade(a, c): ...")
    env = own(file, 1, 1)
    line = "an answer is not text, and cannot be a solution; set warm_start.steps=0"
    with pytest.raises(ValueError, match=line):
        env.solution(env.train[0], np.random.default_rng(0), worked=False)
