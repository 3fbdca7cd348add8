"""Pairs in a file: their division by prompt, and lines that are none."""

import json

import pytest

from rlx.envs import base
from rlx.envs.preference import Preference

ROWS = [
    {"prompt": f"{i}?", "chosen": "a" * (i + 1), "rejected": "b"} for i in range(6)
] + [{"prompt": "3?", "chosen": "c", "rejected": "", "by": "somebody"}]  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def written(*lines):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines))
        return str(path)

    return written


def made(path, train=4, heldout=2, seed=0):
    sizes = {"train_prompts": train, "heldout_prompts": heldout}
    return base.make("preference", **sizes, seed=seed, kwargs={"path": path})


def test_prompts_are_divided_and_keep_all_their_pairs(write):
    env = made(write(*map(json.dumps, ROWS)))
    problems = [*env.train, *env.heldout]
    assert (len(env.train), len(env.heldout)) == (4, 2)
    assert sorted(p.prompt for p in problems) == [f"{i}?" for i in range(6)]
    (several,) = [p for p in problems if p.prompt == "3?"]
    assert [pair[:2] for pair in several.answer] == [("aaaa", "b"), ("c", "")]
    assert all(len(p.answer) == 1 for p in problems if p is not several)
    assert env.tokenizer.chars == "012345?abc" and env.max_prompt_tokens == 2
    again = made(write(*map(json.dumps, ROWS)), train=2)
    assert again.heldout == env.heldout and again.train == env.train[:2]


def test_the_reference_is_the_chosen_text_of_the_first_pair(write):
    env = made(write(*map(json.dumps, ROWS)))
    assert isinstance(env, Preference)
    for problem in env.train:
        assert env.reference(problem) == "a" * (int(problem.prompt[:-1]) + 1)
        assert env.tokenizer.encode(env.solution(problem, None, True))
    assert env.ceiling(env.heldout, 9) is None
    with pytest.raises(ValueError, match="only a reward model can grade it; set algo.reward_model"):
        env.grade(env.train[0], "a", True)


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"prompt": "x", "chosen": "a"}', "line 2 has no text under rejected; write .*"),
        ('{"prompt": "x", "chosen": 1, "rejected": "b"}', "line 2 has no text under chosen; .*"),
        ('{"prompt": "", "chosen": "a", "rejected": "b"}', "line 2 has no text under prompt; .*"),
        ('["x", "a", "b"]', "line 2 is not a JSON object; .*"),
        ('{"prompt": ', "line 2 is not JSON .*"),
    ],
)
def test_a_line_that_is_no_pair_is_named(write, line, reason):
    with pytest.raises(ValueError, match=f"pairs.jsonl: {reason}"):
        made(write(json.dumps(ROWS[0]), line, json.dumps(ROWS[1])), 1, 1)


def test_a_mixture_takes_no_preferences(write):
    task = {"env": "preference", "weight": 1, "kwargs": {"path": write(json.dumps(ROWS[0]))}}
    sizes = {"train_prompts": 1, "heldout_prompts": 1, "seed": 0}
    with pytest.raises(ValueError, match="tasks.a.env=preference: .*; set env.name=preference"):
        base.make("mixture", **sizes, kwargs={"tasks": {"a": task}})
