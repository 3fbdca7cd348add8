from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rlx.envs import base
from rlx.envs.mixture import shares
from rlx.problem import Problem

RNG = np.random.default_rng(0)
SUMS = str(Path(__file__).parents[1] / "data/tasks/sums.py")
TASKS = {
    "digits": {"env": "digit_chain", "weight": 3, "kwargs": {"hi": 4}},
    "sums": {"env": SUMS, "weight": 1, "kwargs": {"top": 30}},
    "long": {"env": "digit_chain", "weight": 0, "kwargs": {"lo": 9, "hi": 9}, "heldout_prompts": 6},
}


def mixed(tasks=TASKS, train_prompts=40, heldout_prompts=8, seed=0):
    sizes = {"train_prompts": train_prompts, "heldout_prompts": heldout_prompts}
    return base.make("mixture", **sizes, seed=seed, kwargs={"tasks": tasks})


def tasks_of(problems):
    return Counter(p.answer[0] for p in problems)


def test_proportions_and_evaluation_sets():
    env = mixed()
    assert tasks_of(env.train) == {"digits": 30, "sums": 10}
    assert tasks_of(env.heldout) == {"digits": 6, "sums": 2}
    sets = base.eval_sets(env)
    assert list(sets) == ["heldout", "digits", "sums", "long"]
    assert {name: len(problems) for name, problems in sets.items()} == {
        "heldout": 8, "digits": 6, "sums": 2, "long": 6,
    }  # fmt: skip
    assert [p.prompt for p in env.heldout] == [
        p.prompt for name in ("digits", "sums") for p in sets[name]
    ]
    for problems in [env.train, *sets.values()]:
        assert [p.id for p in problems] == list(range(len(problems)))
    asked = {p.prompt for problems in sets.values() for p in problems}
    assert not asked & {p.prompt for p in env.train}


def test_every_problem_goes_to_its_own_grader():
    env = mixed()
    for problem in [*env.train, *env.heldout, *env.downstream["long"]]:
        task, inner = problem.answer
        text = env.solution(problem, RNG, worked=True)
        assert (">" in text) == (task != "sums") and inner.prompt == problem.prompt
        assert env.grade(problem, text, True) == 1 and env.grade(problem, text, False) == 0
        assert env.grade(problem, text[::-1] + "?", True) == 0
        assert env.tokenizer.encode_prompt(problem.prompt) and env.tokenizer.encode(text)
        assert len(problem.prompt) <= env.max_prompt_tokens
    assert env.well_formed(">1", True) and not env.well_formed("", True)


def test_ceiling_is_the_mean_over_tasks_or_unknown():
    env = mixed()
    digits = [p for p in env.heldout if p.answer[0] == "digits"]
    inner = [p.answer[1] for p in digits]
    assert env.ceiling(env.heldout, 6) is None  # of the sums
    assert env.ceiling(digits, 6) == env.parts["digits"].ceiling(inner, 6)
    both = digits + env.downstream["long"]
    assert env.ceiling(both, 99) == 1 and 0 < env.ceiling(both, 7) == 6 / 12


def test_another_tokenizer_reaches_the_tasks():
    class Twice(base.Tokenizer):
        def encode(self, text):
            return [i for i in super().encode(text) for _ in range(2)]

    sizes = {"train_prompts": 4, "heldout_prompts": 4, "seed": 0}
    tokenizer = Twice("0123456789=>+")
    env = base.make("mixture", **sizes, kwargs={"tasks": TASKS}, tokenizer=tokenizer)
    assert env.tokenizer is tokenizer and env.max_prompt_tokens == 20  # nine digits and "="
    digits = [p for p in env.heldout if p.answer[0] == "digits"]
    fits = [2 * (p.prompt.index("=") + 2) + 1 <= 11 for p in digits]
    assert env.ceiling(digits, 11) == sum(fits) / len(fits)


def test_a_prompt_that_is_evaluated_is_not_trained_on():
    tasks = {
        "a": {"env": SUMS, "weight": 1, "kwargs": {"top": 4}},
        "b": {"env": SUMS, "weight": 0, "kwargs": {"top": 4}, "heldout_prompts": 9},
    }
    env = mixed(tasks, 10, 4)
    asked = {p.prompt for problems in env.downstream.values() for p in problems}
    assert 0 < len(env.train) < 10 and not asked & {p.prompt for p in env.train}


def test_problems_depend_on_the_seed_alone():
    assert mixed(seed=1).train == mixed(seed=1).train
    assert mixed(seed=1).heldout != mixed(seed=2).heldout
    assert mixed(train_prompts=4).heldout == mixed().heldout


@pytest.mark.parametrize(
    "total, weights, expected",
    [
        (10, {"a": 1}, {"a": 10}),
        (10, {"a": 1, "b": 1, "c": 1}, {"a": 4, "b": 3, "c": 3}),
        (7, {"a": 0.5, "b": 0.25}, {"a": 5, "b": 2}),
        (1, {"a": 1, "b": 2}, {"a": 0, "b": 1}),
    ],
)
def test_shares(total, weights, expected):
    assert shares(total, weights) == expected


@pytest.mark.parametrize(
    "tasks, message",
    [
        ({"a": {"env": SUMS}}, "env.kwargs.tasks.a={'env': '" + SUMS + "'}: no weight; give one"),
        ({"a": {"weight": 1}}, "env.kwargs.tasks.a={'weight': 1}: no env; give one"),
        ({"a": {"env": SUMS, "weight": -1}}, "env.kwargs.tasks.a.weight=-1: negative; use 0 to ev"),
        ({"a": {"env": SUMS, "weight": 0}}, "env.kwargs.tasks=a: no weight above 0; set one"),
        ({}, "env.kwargs.tasks=: no weight above 0; set one"),
        (
            {"a": 5},
            "env.kwargs.tasks.a=5: not a task; write NAME: {...} with the keys env, weight, ",
        ),
        (
            {"a": {"env": SUMS, "weight": "2"}},
            "env.kwargs.tasks.a.weight=2: not a number; give a n",
        ),
        (
            {"a": {"env": SUMS, "weight": True}},
            "env.kwargs.tasks.a.weight=True: not a number; give",
        ),
        ({"a": {"env": SUMS, "weight": float("nan")}}, "env.kwargs.tasks.a.weight=nan: not fini"),
        ({"a": {"env": SUMS, "weight": float("inf")}}, "env.kwargs.tasks.a.weight=inf: not fini"),
        ({"a": {"env": 7, "weight": 1}}, "env.kwargs.tasks.a.env=7: not a name; give a name"),
        ({"a": {"env": SUMS, "weight": 1, "kwargs": None}}, "env.kwargs.tasks.a.kwargs=None: no"),
        (
            {"a": {"env": SUMS, "weight": 1, "seed": 1}},
            "env.kwargs.tasks.a.seed=1: unknown key; use env, weight, kwargs, heldout_prompts",
        ),
        (
            {"a": {"env": "digit_chain", "weight": 1, "kwargs": {"low": 1}}},
            "env.kwargs.tasks.a: env.kwargs.low=1: unknown argument; digit_chain takes lo, hi, ba",
        ),
        (
            {"a": {"env": SUMS, "weight": 1}, "b": {"env": SUMS, "weight": 0.01}},
            "env.heldout_prompts=8: too few: b gets none; ask for more",
        ),
        (
            {"a": {"env": SUMS, "weight": 1, "heldout_prompts": 3}},
            "env.kwargs.tasks.a.heldout_prompts=3: with a weight its share of env.heldout_prompts "
            "is fixed; set",
        ),
    ],
)
def test_errors(tasks, message):
    with pytest.raises(ValueError) as error:
        mixed(tasks)
    assert str(error.value).startswith(message)


# reasoning-gym's mixtures are such mixtures


@pytest.fixture
def gym():
    pytest.importorskip("reasoning_gym")

    def make(mixture, **kwargs):
        sizes = {"train_prompts": 12, "heldout_prompts": 4, "seed": 0}
        return base.make("reasoning_gym", **sizes, kwargs={"mixture": mixture, **kwargs})

    return make


def test_several_datasets_of_reasoning_gym(gym):
    env = gym(
        [
            {"dataset": "chain_sum", "weight": 2, "min_terms": 3, "max_terms": 3},
            {"dataset": "gcd"},
            {"dataset": "chain_sum", "max_terms": 2},
        ]
    )
    assert tasks_of(env.train) == {"chain_sum": 6, "gcd": 3, "chain_sum_": 3}
    assert list(base.eval_sets(env)) == ["heldout", "chain_sum", "gcd", "chain_sum_"]
    for problem in env.train:
        if problem.answer[0] == "chain_sum":
            assert len(problem.prompt.split(": ")[1].split()) == 6  # three terms, two signs, "="
        assert env.grade(problem, env.solution(problem, RNG, False), True) == 1


def test_errors_of_several_datasets(gym):
    line = "env.kwargs.min_terms=2: not allowed with a mixture; put it into"
    with pytest.raises(ValueError, match=line):
        gym([{"dataset": "gcd"}], min_terms=2)
    with pytest.raises(ValueError, match="tasks.gdc: env.kwargs.dataset=gdc: unknown dataset; try"):
        gym([{"dataset": "gdc"}])


def test_a_problem_of_no_task_is_a_mistake():
    with pytest.raises(KeyError):
        mixed().grade(Problem(0, "?", ("other", None)), "", True)
