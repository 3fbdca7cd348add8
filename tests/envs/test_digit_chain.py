import numpy as np
import pytest

from rlx.envs.base import make
from rlx.types import Problem

RNG = np.random.default_rng(0)


def chain(train_prompts=64, heldout_prompts=256, seed=0, **kwargs):
    return make(
        "digit_chain",
        train_prompts=train_prompts,
        heldout_prompts=heldout_prompts,
        seed=seed,
        kwargs=kwargs,
    )


def brute_force(prompt, base):
    """Running sums and answer by repeated counting; the prompt's digits end at the first '='."""
    total, sums = 0, ""
    for char in prompt[: prompt.index("=")]:
        for _ in range("0123456789".index(char)):
            total = total + 1 if total + 1 < base else 0
        sums += "0123456789"[total]
    return sums, sums[-1]


def test_hand_example():
    # 3; 3 + 8 = 11; 11 + 7 = 18; 18 + 2 = 20
    problem = Problem(0, "3872=====", "0")
    assert chain().solution(problem, RNG, worked=True) == "3180>0"
    assert chain().solution(problem, RNG, worked=False) == ">0"


@pytest.mark.parametrize("kwargs", [{}, {"base": 2, "lo": 9, "hi": 12}, {"base": 7}])
def test_problems_and_solutions_match_brute_force(kwargs):
    env = chain(**kwargs)
    base, lo, hi = kwargs.get("base", 10), kwargs.get("lo", 3), kwargs.get("hi", 8)
    for problems in (env.train, env.heldout):
        assert [p.id for p in problems] == list(range(len(problems)))
        for problem in problems:
            digits = problem.prompt.rstrip("=")
            assert lo <= len(digits) <= hi and set(digits) <= set("0123456789"[:base])
            assert len(problem.prompt) == env.max_prompt_tokens == hi + 1
            sums, answer = brute_force(problem.prompt, base)
            assert problem.answer == answer
            assert env.solution(problem, RNG, worked=True) == f"{sums}>{answer}"
            assert env.solution(problem, RNG, worked=False) == f">{answer}"
    assert env.tokenizer.vocab_size == 14


@pytest.mark.parametrize(
    "completion, stopped, score",
    [
        ("3180>0", True, 1),
        (">0", True, 1),
        ("9999>0", True, 1),  # the steps do not count
        (">5>0", True, 1),  # only the last mark counts
        ("3180>0", False, 0),  # cut by the limit
        (">0>5", True, 0),
        (">1", True, 0),
        (">00", True, 0),
        (">0=", True, 0),
        (">", True, 0),
        ("0", True, 0),  # no mark
        ("", True, 0),
    ],
)
def test_grade(completion, stopped, score):
    assert chain().grade(Problem(0, "3872=====", "0"), completion, stopped) == score


def test_ceiling_counted_by_hand():
    env = chain()
    lengths = [3, 4, 4, 6, 8]  # worked solutions and stop token take 6, 7, 7, 9 and 11 tokens
    problems = [Problem(i, ("1" * n).ljust(9, "="), str(n)) for i, n in enumerate(lengths)]
    shares = {5: 0.0, 6: 0.2, 7: 0.6, 8: 0.6, 9: 0.8, 10: 0.8, 11: 1.0, 99: 1.0}
    assert {limit: env.ceiling(problems, limit) for limit in shares} == shares


@pytest.mark.parametrize("limit, share", [(7, 1 / 3), (9, 2 / 3), (11, 1.0)])
def test_ceiling_of_drawn_prompts_is_near_the_population(limit, share):
    env = chain()
    drawn = np.mean([p.prompt.index("=") + 3 <= limit for p in env.heldout])
    assert env.ceiling(env.heldout, limit) == drawn
    assert abs(drawn - share) <= 3 * np.sqrt(share * (1 - share) / 256)


def test_number_of_digits_is_uniform():
    counts = np.bincount([p.prompt.index("=") for p in chain(train_prompts=3000).train])
    assert counts[:3].sum() == 0 and len(counts) == 9
    assert np.all(np.abs(counts[3:] - 500) < 4 * np.sqrt(3000 * 1 / 6 * 5 / 6))


def test_prompts_are_distinct_and_heldout_is_not_trained_on():
    # about 4 of the 8 prompts of 3 binary digits are drawn: repeats are likely
    env = chain(train_prompts=8, heldout_prompts=8, lo=3, hi=6, base=2)
    prompts = [p.prompt for p in env.train + env.heldout]
    assert len(set(prompts)) == len(prompts) == 16


def test_prompts_depend_on_the_seed_alone():
    assert chain(seed=1).train == chain(seed=1).train
    assert chain(seed=1).heldout != chain(seed=2).heldout
    assert chain(train_prompts=8).heldout == chain(train_prompts=80).heldout


def test_a_length_can_be_used_up_entirely():
    env = chain(train_prompts=50, heldout_prompts=50, lo=2, hi=2)
    assert {p.prompt for p in env.train + env.heldout} == {f"{i:02d}=" for i in range(100)}


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"lo": 0}, "env.kwargs.lo=0: no digits to sum; use 1 or more"),
        ({"lo": 5, "hi": 4}, "env.kwargs.hi=4: below env.kwargs.lo=5; use lo <= hi"),
        ({"base": 11}, "env.kwargs.base=11: outside 2..10; a sum is written as one digit"),
        ({"base": 1}, "env.kwargs.base=1: outside 2..10; a sum is written as one digit"),
        ({"lo": "3"}, "env.kwargs.lo=3: not an integer; give an integer"),
        ({"hi": 8.5}, "env.kwargs.hi=8.5: not an integer; give an integer"),
        (
            {"lo": 2, "hi": 2, "heldout_prompts": 60, "train_prompts": 41},
            "env.train_prompts=41: all 100 prompts of 2 digits are used up; "
            "ask for fewer prompts or raise env.kwargs.lo",
        ),
        (
            {"lo": 1, "hi": 1, "heldout_prompts": 11},
            "env.heldout_prompts=11: all 10 prompts of 1 digits are used up; "
            "ask for fewer prompts or raise env.kwargs.lo",
        ),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError) as error:
        chain(**kwargs)
    assert str(error.value) == message


def test_ceiling_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="problems=\\[\\]"):
        chain().ceiling([], 9)
