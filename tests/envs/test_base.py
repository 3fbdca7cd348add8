import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlx.envs.base import Tokenizer, make
from rlx.errors import InputError


def test_ids_follow_the_characters_then_stop_then_pad():
    tokenizer = Tokenizer("ab")
    assert tokenizer.encode("bab") == [1, 0, 1]
    assert (tokenizer.stop_id, tokenizer.pad_id, tokenizer.vocab_size) == (2, 3, 4)


@pytest.mark.parametrize(
    "ids, text",
    [([0, 1], "ab"), ([0, 2, 1], "a"), ([2], ""), ([3, 0, 3, 1, 2, 3], "ab"), ([], "")],
)
def test_decode_ends_at_the_stop_token_and_skips_pads(ids, text):
    assert Tokenizer("ab").decode(ids) == text


def test_rows_beyond_the_pad_are_unused():
    assert Tokenizer("ab", rows=3).vocab_size == 4
    padded = Tokenizer("ab", rows=7)
    assert padded.vocab_size == 7 and padded.decode([5, 0, 6, 1, 2, 0]) == "ab"
    with pytest.raises(ValueError, match="id=7: not a token; ids are 0..6"):
        padded.decode([7])


@given(st.data())
def test_decode_inverts_encode(data):
    chars = data.draw(st.lists(st.characters(), unique=True, min_size=1, max_size=20))
    text = data.draw(st.text(st.sampled_from(chars)))
    tokenizer = Tokenizer("".join(chars))
    ids = tokenizer.encode(text)
    assert len(ids) == len(text) and all(0 <= i < tokenizer.stop_id for i in ids)
    assert tokenizer.decode([*ids, tokenizer.stop_id, 0, tokenizer.pad_id]) == text


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Tokenizer("ab").encode("axb"), "char='x': not in the vocabulary; use 'ab'"),
        (lambda: Tokenizer("ab").decode([4]), "id=4: not a token; ids are 0..3"),
        (lambda: Tokenizer("ab").decode([-1]), "id=-1: not a token; ids are 0..3"),
        (lambda: Tokenizer("aba"), "chars='aba': a character is repeated; list each once"),
    ],
)
def test_tokenizer_errors(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message


BOTH = "env.train_prompts and env.heldout_prompts"


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"name": "chess"},
            "env.name=chess: unknown name; use one of digit_chain, reasoning_gym, math, code, "
            "mixture, preference, guess, calculator, python_tool, verifiers, or the path of a .py "
            "file",
        ),
        ({"seed": -1}, "env.seed=-1: negative; give a seed of 0 or more"),
        (
            {"train_prompts": 0},
            "env.train_prompts=0: must be positive; give a value above 0",
        ),
        (
            {"heldout_prompts": -2},
            "env.heldout_prompts=-2: must be positive; give a value above 0",
        ),
        (
            {"kwargs": {"foo": 1}},
            "env.kwargs.foo=1: unknown argument; digit_chain takes lo, hi, base",
        ),
        ({"kwargs": {"seed": 3}}, "env.kwargs.seed=3: not set here; set env.seed"),
        (
            {"name": "reasoning_gym", "kwargs": {"size": 9}},
            f"env.kwargs.size=9: not set here; set {BOTH}",
        ),
    ],
)
def test_make_errors(changes, message):
    arguments = {"name": "digit_chain", "train_prompts": 4, "heldout_prompts": 4, "seed": 0}
    with pytest.raises(ValueError) as error:
        make(**{**arguments, "kwargs": {}, **changes})
    assert str(error.value) == message


@pytest.mark.parametrize(
    "name, kwargs, message",
    [
        ("math", {"path": 5}, "env.kwargs.path=5: not text; quote it"),
        ("math", {"path": ["a.jsonl"]}, "env.kwargs.path=['a.jsonl']: not text; quote it"),
        ("math", {"boxed": "yes"}, "env.kwargs.boxed=yes: neither true nor false; give true"),
        ("math", {"max_prompt_chars": 1.5}, "env.kwargs.max_prompt_chars=1.5: not an integer; "),
        ("math", {"max_prompt_chars": True}, "env.kwargs.max_prompt_chars=True: not an integer"),
        ("math", {1: 2}, "env.kwargs.1=2: its name is not text; name it"),
        ("math", {"file": "a"}, "env.kwargs.file=a: unknown argument; math takes path, dataset, "),
        ("preference", {}, "env.kwargs.path=: not given; set it; preference takes path"),
        ("preference", {"path": None}, "env.kwargs.path=None: not text; quote it"),
        ("mixture", {"tasks": [1]}, "env.kwargs.tasks=[1]: not a mapping; write {NAME: VALUE}"),
        ("digit_chain", {"lo": "3"}, "env.kwargs.lo=3: not an integer; give an integer"),
        ("reasoning_gym", {"mixture": {"a": 1}}, "env.kwargs.mixture={'a': 1}: not a list; write"),
        ("reasoning_gym", {"mixture": ["a"]}, "env.kwargs.mixture=a: not a row; write {dataset: "),
    ],
)
def test_arguments_are_checked_by_name_and_type(name, kwargs, message):
    with pytest.raises(InputError) as error:
        make(name, train_prompts=1, heldout_prompts=1, seed=0, kwargs=kwargs)
    assert str(error.value).startswith(message)
