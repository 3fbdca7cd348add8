"""Environments of the package verifiers, written against its own interface."""

import sys

import pytest

from rlx.envs import base
from rlx.envs.grading import Graders
from rlx.errors import InputError

vf = pytest.importorskip("verifiers.v1", reason="pip install 'rlx[verifiers]'")

TALKS = '''
"""Guess a number: the environment plays the user."""
import verifiers.v1 as vf

class Data(vf.TaskData):
    number: int

class Task(vf.Task[Data, vf.State, vf.TaskConfig]):
    @vf.reward(weight=0.75)
    async def found(self, task, trace) -> float:
        return float(trace.last_message.content == str(task.number))

    @vf.metric
    async def turns(self, trace) -> float:
        return float(trace.num_turns)

class Config(vf.TasksetConfig):
    numbers: int = 20

class Numbers(vf.Taskset[Task, Config]):
    def load(self):
        for n in range(self.config.numbers):
            data = Data(prompt=f"Number {n}?", system_prompt="Play.", number=n)
            yield Task(data, self.config.task)

class GameConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()

class Game(vf.Env[GameConfig]):
    async def run(self, task, agents):
        async with agents.player.interaction(task) as interaction:
            segment = await interaction.turn()
            while not segment.terminated and segment.last_reply != str(task.data.number):
                if segment.last_reply == "crash":
                    raise RuntimeError("the game is broken")
                word = "higher" if int(segment.last_reply) < task.data.number else "lower"
                segment = await interaction.turn(word)
        interaction.trace.record_reward("fast", float(interaction.trace.num_turns < 3), 0.25)

__all__ = ["Numbers", "Game"]
'''
ANSWERS = """
import verifiers.v1 as vf

class Data(vf.TaskData):
    answer: str

class Task(vf.Task[Data, vf.State, vf.TaskConfig]):
    @vf.reward
    async def right(self, task, trace) -> float:
        return float(trace.assistant_messages[-1].content == task.answer)

class Sums(vf.Taskset[Task, vf.TasksetConfig]):
    INFINITE = True
    def load(self):
        n = 0
        while True:
            yield Task(Data(prompt=f"{n}+1=", answer=str(n + 1)), self.config.task)
            n += 1

__all__ = ["Sums"]
"""
REFUSED = {
    "container": ('    NEEDS_CONTAINER = True', "it needs a container"),
    "setup": ('    async def setup(self, trace, runtime): pass', "it needs a runtime"),
    "tools": (
        '    @classmethod\n    def toolsets(cls, config): return [1]',
        "it needs tool servers",
    ),
    "reward": (
        '    @vf.reward\n    async def box(self, trace, runtime): return 1.0',
        "box() looks into a runtime",
    ),
}  # fmt: skip


@pytest.fixture
def package(tmp_path, monkeypatch):
    """package(name, source) -> an installed package, as far as an import can tell."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        sys.modules.pop(name, None)
        return name

    return install


@pytest.fixture
def make():
    """make(id, ...) -> the environment of a package; what is open at the end is closed."""
    made = []

    def one(id, train=8, heldout=4, **taskset):
        sizes = {"train_prompts": train, "heldout_prompts": heldout, "seed": 0}
        made.append(base.make("verifiers", **sizes, kwargs={"id": id, "taskset": taskset}))
        return made[-1]

    yield one
    for env in made:
        env.sessions.close()
        env.loop.close()


def number(problem):
    return int(problem.prompt.split()[-1].rstrip("?"))


def test_a_conversation(package, make):
    env = make(package("rlx_test_talks", TALKS))
    problem = next(p for p in env.train if 2 < number(p) < 18)
    n = number(problem)
    assert problem.prompt == f"Play.\n\nNumber {n}?"
    first = (str(n - 1),)
    assert env.reply(problem, first) == "higher"
    second = (*first, "higher", str(n + 2))
    assert env.reply(problem, second) == "lower" and len(env.sessions) == 1
    third = (*second, "lower", str(n))
    assert env.reply(problem, third) is None
    assert env.grade(problem, third, True) == 0.75  # found, and not fast
    assert env.grade(problem, (*first, "higher", str(n)), True) == 1  # never heard before
    assert env.grade(problem, second, True) == 0.25  # ended there by a limit on turns
    assert env.grade(problem, second, False) == 0
    assert len(env.sessions) == 0


def test_tasks_that_one_prompt_stands_for(package, make):
    """As in a game that says nothing of what is to be found."""
    same = TALKS.replace('f"Number {n}?"', '"Which number?"')
    env = make(package("rlx_test_same", same), numbers=12)
    found = [env.tasks[p.answer].data.number for p in (*env.heldout, *env.train)]
    assert sorted(found) == list(range(12)) and {p.prompt for p in env.train} == {
        "Play.\n\nWhich number?"
    }
    replies = {env.reply(p, ("5",)) for p in env.train}
    assert replies <= {"higher", "lower", None} and len(replies) > 1
    with pytest.raises(InputError, match="gave 12 different tasks; ask for fewer"):
        make("rlx_test_same", numbers=12, train=9)


def test_tasks_whose_data_are_missing(package, make):
    source = ANSWERS.replace(
        "        n = 0\n", '        raise LookupError("\\n*****\\n  no words here")\n'
    )
    with pytest.raises(InputError) as error:
        make(package("rlx_test_lacks", source))
    assert str(error.value) == (
        "env.kwargs.id=rlx_test_lacks: its tasks cannot be read (LookupError: no words here); "
        "provide what it needs, or give another environment"
    )


def test_a_lost_conversation_is_led_again(package, make):
    env = make(package("rlx_test_talks", TALKS), numbers=12)
    problem = next(p for p in env.train if 2 < number(p) < 10)
    n = number(problem)
    env.reply(problem, (str(n - 2),))
    env.sessions.close()
    turns = (str(n - 2), "higher", str(n - 1))
    assert env.reply(problem, turns) == "higher"
    graders = Graders(env, {"name": "verifiers"})
    (outcome,) = graders.reply([(problem, (*turns, "higher", "crash"), 99)], 1.0)
    assert outcome.reason == "error: RuntimeError: the game is broken"
    (outcome,) = graders.reply([(problem, ("no number",), 99)], 1.0)
    assert outcome.reason.startswith("error: ValueError: invalid literal for int()")


def test_a_single_answer(package, make):
    env = make(package("rlx_test_answers", ANSWERS))
    problem = env.heldout[1]
    a = int(problem.prompt.partition("+")[0])
    assert env.reply(problem, (str(a + 1),)) is None
    assert env.grade(problem, (str(a + 1),), True) == 1 and env.grade(problem, ("x",), True) == 0
    assert not {p.prompt for p in env.train} & {p.prompt for p in env.heldout}


@pytest.mark.parametrize("what", REFUSED)
def test_what_needs_more_than_a_policy_is_refused(package, make, what):
    method, reason = REFUSED[what]
    source = ANSWERS.replace("    @vf.reward\n", f"{method}\n\n    @vf.reward\n", 1)
    with pytest.raises(InputError) as error:
        make(package(f"rlx_test_{what}", source))
    assert str(error.value) == (
        f"env.kwargs.id=rlx_test_{what}: {reason}; give one with a single agent and no tools of "
        "its own"
    )


def test_what_is_not_there(package, make):
    with pytest.raises(
        InputError, match="^env.kwargs.id=rlx_no_such: ModuleNotFoundError: .*; give"
    ):
        make("rlx_no_such")
    with pytest.raises(InputError, match="^env.train_prompts=40: .* gave 20 different tasks"):
        make(package("rlx_test_talks", TALKS), train=30, heldout=10)
