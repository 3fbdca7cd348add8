"""Environments that reply, and all that they may do instead: counted, and nothing else is lost."""

from dataclasses import dataclass

import jax
import numpy as np
import pytest

from rlx import flops
from rlx.config import Config, EnvConfig, EpisodeConfig, MeshConfig, ModelConfig, RolloutConfig
from rlx.envs import base
from rlx.envs.grading import Failure, Graders, home
from rlx.errors import InputError
from rlx.mesh import make_mesh
from rlx.models import transformer
from rlx.rollout.buffer import Buffer
from rlx.rollout.engine import Engine
from rlx.rollout.generator import Weights

TASK = """
import os, sys, time

FAULTS = "{faults}".split()
CHARACTERS = "0123456789 !"

def problems(seed):
    for fault in FAULTS:
        yield fault, {{"fault": fault, "asked": 0}}

def grade(answer, turns):
    assert answer["asked"] == 0 and type(turns) is tuple
    return 0.5

class Loud(str):
    def __str__(self): raise RuntimeError("no")
    def __len__(self): return 3
    def __reduce__(self): return (exit, (7,))

def reply(answer, turns):
    fault = answer["fault"]
    answer["asked"] += 1  # the problem stays as it is
    if fault == "raises": raise RuntimeError("no\\nway")
    if fault == "hangs": time.sleep(1000)
    if fault == "computes": 9**9**9**9
    if fault == "floods": return "1" * 10_000_000
    if fault == "half": return "1\\ud800"
    if fault == "int": return 5
    if fault == "bytes": return b"5"
    if fault == "list": return ["5"] * 10**6
    if fault == "empty": return ""
    if fault == "strange": return "\\u00e9"
    if fault == "exits": os._exit(7)
    if fault == "quits": sys.exit(3)
    if fault == "killed": os.kill(os.getpid(), 9)
    if fault == "memory": bytes(1 << 44)
    if fault == "recursion": reply(answer, turns)
    if fault == "turns": turns[0] = "5"
    if fault == "noise": print("noise"); sys.stdout.flush()
    if fault == "loud": return Loud("12")
    return None if len(turns) > 1 else "7"
"""
FAILS = {  # in the words of the reason
    "raises": "error: RuntimeError: no",
    "hangs": "timeout after 1 s",
    "computes": "timeout after 1 s",
    "floods": "error: a reply of 10000000 characters, more than episode.reply_chars=100",
    "half": "error: UnicodeEncodeError: 'utf-8' codec can't encode character '\\ud800'*",
    "int": "error: reply 5 is a int, not text",
    "bytes": "error: reply b'5' is a bytes, not text",
    "list": "error: reply ['5', '5', '5', '5', '5', '5', ...] is a list, not text",
    "exits": "error: the grader's process ended with 7",
    "quits": "error: SystemExit: 3",
    "killed": "error: the grader's process ended with -9",
    "memory": "error: MemoryError: ",
    "recursion": "error: RecursionError: maximum recursion depth exceeded*",
    "turns": "error: TypeError: 'tuple' object does not support item assignment",
}
ENGINE_FAILS = ("empty", "strange")  # of a reply that is text
FINE = ("changes", "noise", "loud", "fine")  # the problem changes, and so on: to no effect
NAMES = [*FAILS, *ENGINE_FAILS, *FINE]


@dataclass(frozen=True)
class Brief(base.Tokenizer):
    """Two of three tokens end a turn."""

    @property
    def stop_ids(self):
        return (self.stop_id, *range(0, 2 * len(self.chars) // 3))

    def decode(self, ids):
        ids = list(ids)
        return super().decode(
            ids[: next((i for i, x in enumerate(ids) if x in self.stop_ids), None)]
        )


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    file = tmp_path_factory.mktemp("task") / "task.py"
    file.write_text(TASK.format(faults=" ".join(["held", *NAMES])))
    sizes = {"train_prompts": len(NAMES), "heldout_prompts": 1}
    return {"name": str(file), **sizes, "seed": 0, "kwargs": {}}


@pytest.fixture
def graders(arguments):
    graders = Graders(base.make(**arguments), arguments, timeout_s=5.0, workers=2)
    yield graders
    graders.close()


def asked(env, *faults):
    by_name = {problem.prompt: problem for problem in env.train}
    return [(by_name[fault], ("1",), 100) for fault in faults]


def test_what_is_no_reply_is_counted_with_its_reason(graders):
    outcomes = graders.reply(asked(graders.env, *FAILS), 1.0)
    for (fault, reason), outcome in zip(FAILS.items(), outcomes, strict=True):
        start, _, _ = reason.partition("*")
        assert outcome.reason.startswith(start) and outcome.text is None, fault
        assert len(outcome.reason) <= 300 and "\n" not in outcome.reason
    assert graders.timeouts == 2 and graders.errors == len(FAILS) - 2
    fine = graders.reply(asked(graders.env, *FINE), 1.0)
    assert [(o.text, o.reason) for o in fine] == [("7", "")] * 2 + [("12", ""), ("7", "")]
    assert type(fine[2].text) is str
    assert graders.timeouts + graders.errors == len(FAILS)


def test_an_episode_stays_with_one_worker(graders):
    """What the environment keeps about it in its process is found again."""
    env = graders.env
    pids = []
    for turns in (("1",), ("1", "7", "2")):
        workers = [w.process.pid for w in graders._workers]
        pids.append([workers[home((p, turns, 100), 2)] for p in env.train])
    assert pids[0] == pids[1] and len(set(pids[0])) == 2


def test_stop_names_the_problem_and_the_reason(arguments):
    graders = Graders(base.make(**arguments), arguments, on_error="stop")
    with pytest.raises(InputError) as error:
        graders.reply(asked(graders.env, "int"), 1.0)
    assert str(error.value).endswith(
        "does not reply to an answer to problem 5 ('int'): error: reply 5 is a int, not text; "
        "fix the grader, or set env.on_grade_error=zero"
    )


def test_a_run_loses_nothing_to_its_environment(graders):
    """Every group comes out; whatever was asked of a broken environment scores 0 and is counted."""
    env, G = graders.env, 4
    env.tokenizer = Brief(env.tokenizer.chars)
    model = ModelConfig(d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=24)
    config = Config(
        model=model, rollout=RolloutConfig(len(NAMES), G, 24), mesh=MeshConfig(data=1),
        env=EnvConfig(train_prompts=len(NAMES)),
        episode=EpisodeConfig(max_turns=3, turn_tokens=6, reply_s=1.0, reply_chars=100),
    )  # fmt: skip
    buffer = Buffer("sync", 0, len(NAMES))
    engine = Engine(config, graders, buffer, flops.Ledger(), make_mesh(config.mesh))
    weights = Weights(transformer.init(jax.random.key(1), model, env.tokenizer.vocab_size), 0)
    while not buffer.ready():
        engine.step(weights)
    groups, lost = {}, 0
    for group in buffer.take(0):
        groups[env.train[group.problem_id].prompt] = group
    assert set(groups) == set(NAMES)
    for name, group in groups.items():
        if name in FINE:  # 0.5, unless a limit cut it
            assert set(group.score_G[group.stopped_G].tolist()) == {0.5}, name
            assert group.turns_G.max() >= 2
        else:  # it ends with the turn whose reply failed
            assert (group.score_G == 0).all() and (group.turns_G == 1).all(), name
            lost += int(group.stopped_G.sum())
    counted = engine.ungraded
    assert counted["errors"] + counted["timeouts"] == lost > len(FAILS)
    assert counted["timeouts"] == sum(
        int(groups[name].stopped_G.sum()) for name in ("hangs", "computes")
    )
    assert (
        "reply" in graders.reasons[Failure.ERROR.counter] and engine.generator.free == buffer.P * G
    )
    assert np.isfinite(engine.generator.reply_s)


OWN = "def problems(seed):\n    for i in range(9): yield str(i), str(i)\n"


@pytest.mark.parametrize(
    "more, message",
    [
        ("def reply(answer): return None", "reply(): too many positional arguments; write reply("),
        ("reply = 5", "reply(): 5 is not a callable object; write reply(answer, turns)"),
        ("CHARACTERS = 5", "CHARACTERS is a int, not text; write CHARACTERS ="),
    ],
)
def test_a_file_whose_reply_cannot_be_called(tmp_path, more, message):
    file = tmp_path / "task.py"
    file.write_text(f"{OWN}def grade(answer, turns): return 1.0\n{more}\n")
    with pytest.raises(InputError) as error:
        base.make(str(file), train_prompts=4, heldout_prompts=2, seed=0, kwargs={})
    assert str(error.value).startswith(f"env.name={file}: {message}")


def test_a_mixture_asks_the_task_that_replies():
    tasks = {
        "game": {"env": "guess", "weight": 1, "kwargs": {"numbers": 4}},
        "sums": {"env": "digit_chain", "weight": 1, "kwargs": {"hi": 4}},
    }
    env = base.make("mixture", train_prompts=8, heldout_prompts=8, seed=0, kwargs={"tasks": tasks})
    limits = {"max_turns": 2, "turn_tokens": 5}
    assert env.ceiling(env.heldout, 7, **limits) == pytest.approx((0.75 + 1) / 2)
    for problem in env.heldout:
        task, inner = problem.answer
        if task == "game":
            wrong = "00" if inner.answer != "00" else "01"
            assert env.reply(problem, (wrong,)) in ("<", ">")
            assert env.grade(problem, (wrong, ">", inner.answer), True) == 1
        else:
            answer = env.solution(problem, None, False)
            assert env.reply(problem, (answer,)) is None and env.grade(problem, (answer,), True)
