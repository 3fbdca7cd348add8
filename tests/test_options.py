"""The one reader of KEY=VALUE words."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.options import check_choices, exit_status, own_options, read_options
from rlx.errors import InputError


@dataclass(frozen=True)
class Options:
    name: str = "a"
    count: int = 1
    share: float = 0.5
    on: bool = False
    maybe: str | None = None


def test_words_become_the_values_of_their_fields():
    words = ["name=b=c", "count=-3", "share=1e-3", "on=true", "maybe=x"]
    assert read_options(Options, words) == Options("b=c", -3, 1e-3, True, "x")
    assert own_options(Options, ["seed=1", "count=2", "-m"]) == (Options(count=2), ["seed=1", "-m"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("counts=2", "counts=2: unknown option; write KEY=VALUE with one of name, count, share, "),
        ("count", "count=: unknown option; write KEY=VALUE with one of name, "),
        ("count=x", "count=x: Value 'x' of type 'str' could not be converted to Integer; give a w"),
        ("count=1.5", "count=1.5: Value '1.5' of type 'float' could not be converted to Integer"),
        ("count=" + "9" * 5000, "count=999"),
        (
            "count=",
            "count=: empty; give a whole number",
        ),
        (
            "share=half",
            "share=half: Value 'half' of type 'str' could not be converted to Float; gi",
        ),
        ("on=maybe", "on=maybe: Value 'maybe' is not a valid bool (type str); give true or false"),
        ("name=null", "name=null: "),
        (
            "name=[a",
            "name=[a: while parsing a flow sequence; quote it, or give it as the docstring",
        ),
        (
            "name=${x}",
            "name=${x}: Interpolation key 'x' not found; quote it, or give it as the doc",
        ),
        ("name=${", "name=${: "),
        ("name=???", "name=???: Missing mandatory value: name; quote it, or give it as the docstr"),
    ],
)
def test_a_word_that_cannot_be_used_is_one_line(word, message, capsys):
    with pytest.raises(InputError) as error:
        read_options(Options, [word])
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert exit_status(lambda words: read_options(Options, words), [word]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@given(st.sampled_from(("name", "count", "share", "on", "maybe", "no")), st.text(max_size=12))
def test_any_word_gives_a_value_or_one_line(key, value):
    try:
        read_options(Options, [f"{key}={value}"])
    except InputError as error:
        assert "\n" not in str(error) and str(error).startswith(f"{key}=")


def test_choices():
    check_choices(Options(), {"name": ("a", "b")})
    with pytest.raises(InputError, match=r"^name=c: not available; use name=a\|b$"):
        check_choices(Options("c"), {"name": ("a", "b")})


def test_a_defect_is_no_bad_input():
    """A ValueError that no input is blamed for ends with its traceback and 1."""
    code = "from experiments.options import exit_status\nimport sys\n"
    code += "sys.exit(exit_status(lambda words: int('x'), []))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ValueError: invalid literal for int() with base 10: 'x'\n")
