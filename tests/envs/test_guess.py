"""The game's ceilings against best play, searched for without knowing it is bisection."""

import functools

import numpy as np
import pytest

from rlx.envs import base
from rlx.envs.guess import Guess
from rlx.errors import InputError


def game(numbers, heldout=None):
    return Guess(train_prompts=40, heldout_prompts=heldout or 3 * numbers, seed=0, numbers=numbers)


@functools.cache
def best(low, high, guesses):
    """The most numbers of low .. high - 1 that are found, over all strategies."""
    if not guesses or low >= high:
        return 0
    return max(
        1 + best(low, g, guesses - 1) + best(g + 1, high, guesses - 1) for g in range(low, high)
    )


@pytest.mark.parametrize("numbers, turns", [(24, 2), (24, 4), (24, 8), (7, 1), (7, 3), (20, 4)])
def test_the_ceiling_is_the_best_that_any_strategy_reaches(numbers, turns):
    env = game(numbers)
    ceiling = env.ceiling(env.heldout, 31, max_turns=turns, turn_tokens=3)
    assert ceiling == pytest.approx(best(0, numbers, turns) / numbers)


def test_tokens_limit_guesses_too():
    env = game(24)
    of = lambda tokens, turn=3: env.ceiling(env.heldout, tokens, max_turns=8, turn_tokens=turn)  # noqa: E731
    assert [of(t) for t in (2, 3, 6, 7, 14, 15)] == pytest.approx(
        [0, 1 / 24, 1 / 24, 0.125, 7 / 24, 0.625]
    )
    assert of(31, 2) == 0
    with pytest.raises(ValueError, match="nothing"):
        env.ceiling([], 31, max_turns=8, turn_tokens=3)


def test_bisection_reaches_the_ceiling():
    """Played against the environment itself, over the numbers that a tree of guesses can hold."""
    env = game(24)
    for turns in (2, 4, 8):
        passed = 0
        for problem in env.heldout:
            low, high, said = 0, min(24, 2**turns - 1), []
            for _ in range(turns):
                said.append(f"{(low + high) // 2:02}")
                reply = env.reply(problem, tuple(said))
                if reply is None:
                    break
                middle = int(said[-1])
                low, high = (middle + 1, high) if reply == ">" else (low, middle)
                if low >= high:
                    low, high = 0, 1  # the number lies outside the tree
                said.append(reply)
            said = said if len(said) % 2 else said[:-1]
            passed += env.grade(problem, tuple(said), True)
        limits = {"max_turns": turns, "turn_tokens": 3}
        assert passed / len(env.heldout) == env.ceiling(env.heldout, 31, **limits)


def test_every_number_is_asked_equally_often():
    counts = np.bincount([int(p.answer) for p in game(24, heldout=50).heldout], minlength=24)
    assert set(counts.tolist()) == {2, 3}


@pytest.mark.parametrize(
    "guess, reply", [("07", ">"), ("12", "<"), ("5", "!"), ("99", "!"), ("", "!")]
)
def test_replies(guess, reply):
    env = game(24)
    problem = next(p for p in env.heldout if p.answer == "09")
    assert env.reply(problem, (guess,)) == reply and env.reply(problem, ("09",)) is None
    assert env.well_formed((guess,), True) == (reply != "!")
    assert env.grade(problem, ("09",), False) == 0


def test_solutions_follow_the_rules_and_hold_no_strategy():
    env, rng = game(24), np.random.default_rng(0)
    for problem in env.train:
        for worked in (False, True):
            turns = env.solution(problem, rng, worked)
            assert len(turns) % 2 and len(turns) <= 15
            for i in range(1, len(turns), 2):
                assert env.reply(problem, turns[:i]) == turns[i]
            ids, own = base.tokens_of(env.tokenizer, turns)
            assert len(ids) == 2 * len(turns) + 1  # 3 of a guess, 1 of a reply
            assert sum(own) == 3 * (len(turns) // 2 + 1)
    firsts = {env.solution(env.train[0], rng, True)[0] for _ in range(200)}
    assert len(firsts) > 20


def test_numbers_that_cannot_be_written():
    for numbers in (1, 101):
        with pytest.raises(InputError, match=f"^env.kwargs.numbers={numbers}: outside 2..100; use"):
            game(numbers)
