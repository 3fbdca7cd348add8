"""Every option is checked by itself: the fields are found, not listed, so none is forgotten."""

import math
from dataclasses import fields, is_dataclass

import pytest

from rlx.config import Config, RewardModelConfig, Section, SftConfig
from rlx.errors import InputError

SECTIONS = [kind for kind in Section.__subclasses__() if kind is not Config]
OPTIONS = [(kind, f.name, f.type) for kind in [*SECTIONS, Config] for f in fields(kind)]
NUMBERS = [(kind, name, of) for kind, name, of in OPTIONS if of in ("int", "float")]
ids = [f"{kind.section}{name}" for kind, name, _ in NUMBERS]


def test_all_sections_of_a_run_are_found():
    made = Config()
    assert {type(getattr(made, f.name)) for f in fields(Config)} >= set(SECTIONS)
    assert all(is_dataclass(kind) for kind in SECTIONS) and len(NUMBERS) > 90


def outside(interval):
    """Numbers beyond both ends of an interval, and the ends that do not belong to it."""
    low, high = map(float, interval[1:-1].split(","))
    ends = [low] * (interval[0] == "(") + [high] * (interval[-1] == ")")
    return {x for x in [low - 1, high + 1, *ends] if math.isfinite(x)}


@pytest.mark.parametrize("kind, name, of", NUMBERS, ids=ids)
def test_a_number_is_finite_in_its_range_and_held_by_32_bits(kind, name, of):
    (interval,) = [i for i, names in kind.ranges.items() if name in names.split()]
    huge = 2**32 if of == "int" else 1e39
    wrong = {math.nan, math.inf, -math.inf, huge, -huge, 10**400, *outside(interval)}
    wrong |= set() if of == "int" else {1e-40}
    for value in wrong:
        value = int(value) if of == "int" and abs(value) < math.inf else value
        with pytest.raises(InputError) as refused:
            kind(**{name: value})
        assert refused.value.args[0] == f"{kind.section}{name}", (value, str(refused.value))


@pytest.mark.parametrize("kind, name, of", OPTIONS)
def test_an_option_has_its_type(kind, name, of):
    """Python takes True for a number, and compares no number with a word."""
    wrong = {"int": (True, "1", 1.5, None), "float": (True, "1", None), "bool": (1, "true")}
    wrong |= {"str": (1, None), "dict[str, Any]": ("{}", None)}
    for value in wrong.get(of, ()):
        with pytest.raises(InputError, match=f"^{kind.section}{name}=.*: not of type "):
            kind(**{name: value})


@pytest.mark.parametrize("kind", [SftConfig, RewardModelConfig])
def test_runs_that_learn_from_a_file_check_the_same(kind):
    with pytest.raises(InputError, match="^seed=-1: negative; use 0 or more$"):
        kind(seed=-1)


def test_names_and_ranges_are_of_fields_that_are_there():
    for kind in [*SECTIONS, Config]:
        known = {f.name for f in fields(kind)}
        ranged = [name for names in kind.ranges.values() for name in names.split()]
        assert {*ranged, *kind.names, *kind.remedies} <= known and len(ranged) == len(set(ranged))
