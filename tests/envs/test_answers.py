"""Graded answers of every kind that reports of graders name, and bounds on all others."""

import json
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.envs import answers

pytest.importorskip("math_verify", reason="pip install 'rlx[math]'")
FILE = Path(__file__).parents[1] / "data/answers.jsonl"
KINDS = [json.loads(line) for line in FILE.read_text().splitlines()]


def graded(form: str, gold: str, text: str, question: str) -> bool:
    said = answers.final_answer(text if form == "completion" else f"\\boxed{{{text}}}")
    return said is not None and answers.same(gold, said, question)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind['kind']}, {kind['form']}")
def test_verdicts(kind):
    asked = kind["form"], kind["question"]
    failed = [pair for pair in kind["right"] if not graded(asked[0], *pair, asked[1])]
    passed = [pair for pair in kind["wrong"] if graded(asked[0], *pair, asked[1])]
    assert (failed, passed) == ([], [])


def test_the_question_decides_about_per_cents_and_bases():
    for question, right in (("What per cent is blue?", True), ("How likely is it?", False)):
        assert answers.same("30", "30\\%", question) == right
        assert answers.same("30\\%", "30", question) == right
        assert answers.same("0.3", "30\\%", question) and answers.same("30\\%", "0.3", question)
    assert answers.same("2516", "2516_8", "Write 1358 in base 8.")
    assert not answers.same("2516", "2516_8", "What is the sum?")


NUMBERS = st.fractions(max_denominator=50).filter(lambda x: abs(x) < 10**9)


def decimal(value: Fraction) -> str:
    """With three places, exactly, in thousands: an integer part, grouped, and the rest."""
    whole, rest = divmod(abs(value.numerator) * 1000 // value.denominator, 1000)
    return f"{'-' if value < 0 else ''}{whole:,}.{rest:03}"


def forms(value: Fraction) -> list[str]:
    """Ways to write a number, by nothing that the reader uses."""
    sign, over, under = "-" if value < 0 else "", abs(value.numerator), value.denominator
    whole, rest = divmod(over, under)
    found = [f"{sign}{over}/{under}", f"{sign}\\frac{{{over}}}{{{under}}}"]
    found += [f"{sign}{over} / {under} cm", f"x = {sign}\\dfrac{{{over}}}{{{under}}}"]
    found += [f"{sign}\\frac{{{over * 100}}}{{{under}}}\\%"]
    if whole and rest:
        found += [f"{sign}{whole} {rest}/{under}", f"{sign}{whole}\\tfrac{{{rest}}}{{{under}}}"]
    if under == 1:
        found += [f"{sign}{over:,}", f"{sign}{over:_}", f"{sign}{over:,}".replace(",", "\\,")]
    if 1000 % under == 0:
        found += [decimal(value), decimal(value) + "0"]
    return found


@settings(max_examples=60, deadline=None)
@given(NUMBERS, NUMBERS)
def test_a_number_is_itself_however_it_is_written_and_no_other(one, other):
    for text in forms(one):
        for gold in (str(one), str(other)):
            assert answers.same(gold, text) == (Fraction(gold) == one), (gold, text)


ANSWERS = st.lists(
    st.sampled_from([*"0123456789xy+-*/^_(){}[],.:;<>=%$!| ", "\\frac", "\\sqrt", "{,}", "\\pm"])
    | st.sampled_from(["\\boxed{", "####", "\\text{", "\\cup", "\\le", "½", "²", "−", "\\infty"])
    | st.text(max_size=2),
    max_size=25,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(ANSWERS, ANSWERS, ANSWERS)
def test_any_text_is_right_or_wrong_and_soon(gold, text, question):
    start = time.monotonic()
    said = answers.final_answer(text)
    if said is not None:
        assert answers.same(gold, said, question) in (True, False)
    assert time.monotonic() - start < 20
