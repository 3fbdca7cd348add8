r"""The answer that a completion gives, and whether two mathematical answers agree.

The answer of a completion is its last `\boxed{}`, else the text after its last `####`, else the
last value in its text. Only one answer counts, so listing several does not help.

Answers are first classified (rlx.envs.notation): a value, a list in any order, a set, a tuple, an
interval, a union, a relation. Values are compared exactly: no decimal equals a third, or the root
of two. Expressions are compared by math-verify's parser and sympy; only relations and unions of
sets by its comparison, because it takes tuples for sets, 18 cm for 18 m, and tiny values for zero.

Conventions where notation is ambiguous: `2, 500` is a list and `2,500` a number; `1 000` and
`1_000` are numbers, `1 2` is not; `3 1/2` is a mixed number; `3{,}5` is a decimal and `3,5` a list;
`3%` is 0.03, or 3 if the question asks for per cent; 18 cm equals 18 but not 18 m, and units are
not converted; a reference in base 2 matches without the subscript, but not in another base.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import re
from collections.abc import Callable
from typing import Any

from rlx.envs.notation import (
    BASE,
    DECIMAL,
    DEEPEST_ANSWER,
    INTERVALS,
    TIME,
    UNORDERED,
    Part,
    bare,
    latex,
    number,
    plain,
    quantity,
    read,
    unit_key,
)
from rlx.errors import InputError

LONGEST_ANSWER = 400  # characters; longer answers are ignored
MOST_BITS = 100_000  # of a number that is expanded: 10^{10^{10}} is compared as written
DIGITS = 50  # of irrational constants

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
FORMULA = re.compile(r"(?<![\\$])\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def final_answer(text: str, boxed: bool = False) -> str | None:
    """The one answer of a completion, or None; see the module."""
    if BOX.search(text):
        found = last_box(text)
    elif boxed:
        return None
    elif "####" in text:
        found = text.rpartition("####")[2].strip().partition("\n")[0]
    else:
        found = _last_value(text)
    short = found and len(found) <= LONGEST_ANSWER and _depth(found) <= DEEPEST_ANSWER
    return found if short else None


def last_box(text: str) -> str | None:
    r"""The content of the last `\boxed{}`; None if its brace is never closed."""
    *_, opening = BOX.finditer(text)
    depth = 1
    for i in range(opening.end(), min(len(text), opening.end() + 2 * LONGEST_ANSWER)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[opening.end() : i].strip()
    return None


def _depth(text: str) -> int:
    """The depth of its nested brackets."""
    steps = ({"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(char, 0) for char in text)
    return max(itertools.accumulate(steps), default=0)


def _last_value(text: str) -> str | None:
    """The last formula or word with a digit, together with its unit, factor or fraction."""
    tail = text[-LONGEST_ANSWER - 1 :]
    words = list(re.finditer(r"\S+", tail))
    if len(text) > len(tail) and not tail[0].isspace():
        words = words[1:]  # it may be cut
    from_last = reversed(range(len(words)))
    i = next((i for i in from_last if any(map(str.isnumeric, words[i][0]))), None)
    if i is None:
        return None
    for formula in FORMULA.finditer(tail):
        if formula.start() <= words[i].start() + len(words[i][0]) // 2 < formula.end():
            return formula[formula.lastindex or 0].strip()
    word = [w[0] for w in words]
    first = last = i
    if i and unit_key(re.sub(r"\^?\{?[23]\}?\W*$", "", word[i])):  # cm^2
        first = i - 1
    elif i and word[i - 1] in (*"×x*·", "\\times", "\\cdot"):
        first = max(i - 2, 0)
    elif i and re.fullmatch(r"-?\d+", word[i - 1]) and re.match(r"\d+/\d|[½-⅞]", word[i]):
        first = i - 1
    else:
        while first and re.match(r"\d{3}\b", word[first]) and word[first - 1].isdecimal():
            first -= 1
            if len(word[first]) < 3:
                break
    if last + 1 < len(word) and re.match(r"%|\\%|per\s?cent", word[last + 1]):
        last += 1
    value = " ".join(word[first : last + 1]).lstrip("#*=:≈~\"'`").rstrip(".,;:!?*\"'`")
    for opening, closing in ("()", "[]", "{}"):
        if value.count(opening) != value.count(closing):
            value = value.strip(opening + closing)
    return value


PERCENT_ASKED = re.compile(r"(?<!\d)(?<!\d[ \\])(?<!\d \\)(?:\\?%|per\s?cent)", re.IGNORECASE)
BASE_ASKED = re.compile(r"\b(?:base|binary|octal|hexadecimal)\b", re.IGNORECASE)
SETS = re.compile(r"\\(?:mathbb|setminus|neq|infty)|\\cup")


def same(answer: str, given: str, question: str = "") -> bool:
    """Whether two answers agree. `question`: to see whether it asks for per cent or a base.

    Raises InputError if math-verify is needed and not installed. May take long, for example on
    integrals: see rlx.envs.grading.
    """
    given = given.strip("$ ")
    if given == answer:
        return True
    values = number(answer), number(given)
    if None not in values:
        return values[0] == values[1]
    right, other = plain(answer), plain(given)
    parts = read(right), read(other)
    if _agree(*parts):
        return True
    if "=" in right and "=" in other and not (parts[0].name and parts[1].name):
        return _same_expression(latex(right), latex(other))  # y=2x+1 and y-2x=1
    if PERCENT_ASKED.search(question) and r"\%" in right + other:
        return _agree(read(right.replace(r"\%", "")), read(other.replace(r"\%", "")))
    if BASE_ASKED.search(question) and not BASE.fullmatch(right):
        return right == BASE.sub(r"\1", other)
    return False


def _agree(one: Part, other: Part) -> bool:
    if one.name and other.name and one.name != other.name:
        return False
    kinds = {one.kind, other.kind}
    if bare(one.text) == bare(other.text) != "":
        return len(kinds) == 1
    if kinds == {""}:
        return _same_value(one.text, other.text)
    if "" in kinds and "{" in kinds:  # {5} and 5
        group, single = (one, other) if one.kind else (other, one)
        return len(group.parts) == 1 and _agree(group.parts[0], single)
    if kinds == {"u", ","}:  # x<1 or x>2
        group = one if one.kind == "," else other
        return all(part.kind in INTERVALS for part in group.parts) and _covers(one, other)
    if kinds <= set(UNORDERED) or kinds == {"u"}:
        count = len(one.parts) == len(other.parts) or "," not in kinds
        if count and _covers(one, other):
            return True
    if len(kinds) == 1 and "u" not in kinds or kinds == {"()", ","}:
        pairs = zip(one.parts, other.parts, strict=False)
        return len(one.parts) == len(other.parts) and all(_agree(*pair) for pair in pairs)
    if not kinds & set(UNORDERED) and any(
        p.kind == "u" or not p.kind and SETS.search(p.text) for p in (one, other)
    ):
        return _same_expression(one.text, other.text)
    return False


def _covers(one: Part, other: Part) -> bool:
    """Whether each part of either agrees with a part of the other."""
    found = [[_agree(part, like) for like in other.parts] for part in one.parts]
    return all(map(any, found)) and all(map(any, zip(*found, strict=True)))


def _same_value(answer: str, given: str) -> bool:
    (one, unit), (other, other_unit) = quantity(answer), quantity(given)
    if unit and other_unit and unit != other_unit:
        return False
    times = TIME.fullmatch(one), TIME.fullmatch(other)
    if times[0] and times[1]:
        digits, halves = zip(*((t[1].replace(" ", ""), t[2] or "") for t in times), strict=True)
        return digits[0] == digits[1] and ("" in halves or halves[0].lower() == halves[1].lower())
    base, other_base = BASE.fullmatch(one), BASE.fullmatch(other)
    if base:
        return other_base.groups() == base.groups() if other_base else other == base[1]
    if bare(one) == bare(other) != "":
        return True
    one, other = latex(one), latex(other)
    values = number(one), number(other)
    if None not in values:
        return values[0] == values[1]
    return bool(one and other) and _same_expression(one, other)


def _same_expression(one: str, other: str) -> bool:
    import sympy

    a, b = _parsed(one), _parsed(other)
    if a is None or b is None:
        return False
    if isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase):
        return a.shape == b.shape and all(map(_equal, a.flat(), b.flat()))
    if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr):
        return _equal(a, b)
    if isinstance(a, sympy.Expr | sympy.MatrixBase) or isinstance(b, sympy.Expr | sympy.MatrixBase):
        return False
    if a == b or max(_bits(a), _bits(b)) > MOST_BITS:
        return bool(a == b)
    return bool(library()(a, b, timeout_seconds=None, allow_set_relation_comp=True))


def _equal(a: Any, b: Any) -> bool:
    """Whether two expressions are equal: exactly, or to DIGITS for irrational constants."""
    import sympy

    if a == b:
        return not a.has(sympy.nan, sympy.zoo)
    if max(_bits(a), _bits(b)) > MOST_BITS:
        return False
    try:
        if (a.free_symbols | b.free_symbols) == {sympy.Symbol("i")}:
            a, b = a.subs("i", sympy.I), b.subs("i", sympy.I)
        a, b = a.doit(), b.doit()
        if a.has(sympy.nan, sympy.zoo) or b.has(sympy.nan, sympy.zoo):
            return False
        if a.is_Rational and b.is_Rational or not (a.is_finite and b.is_finite) and a == b:
            return a == b
        if not (a.free_symbols or b.free_symbols):
            x, y = a.evalf(2 * DIGITS), b.evalf(2 * DIGITS)
            largest = max(abs(x), abs(y))
            if largest > 10**-DIGITS:
                return bool(abs(x - y) < largest / 10**DIGITS)
        return bool(sympy.simplify(a - b) == 0)
    except (TypeError, ValueError, ArithmeticError, AttributeError, RecursionError):
        return False  # sympy cannot compare them


def _bits(expression: Any) -> float:
    """Roughly how many bits its value and parts take when expanded."""
    import sympy

    if isinstance(expression, sympy.Rational):
        return max(int(expression.p).bit_length(), int(expression.q).bit_length())
    parts = [_bits(part) for part in expression.args]
    if isinstance(expression, sympy.Sum | sympy.Product) and max(parts) > 10:
        return math.inf  # possibly very many terms
    if isinstance(expression, sympy.factorial | sympy.Pow | sympy.exp):
        *base, exponent = parts
        exponent = 2.0 ** min(exponent, 64) if expression.args[-1].is_number else exponent
        return max(*parts, exponent * (base[0] if base else min(parts[-1], 64)))
    return sum(parts) if parts else 2


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    """As parsed by sympy, unevaluated; None if it is not one formula."""
    library()
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex

    exact = DECIMAL.sub(lambda m: rf"(\frac{{{m[1] or 0}{m[2]}}}{{1{'0' * len(m[2])}}})", text)
    config = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none",
        equations=False,
    )  # fmt: skip
    try:
        return latex2sympy(normalize_latex(exact, config=config))
    except Exception:  # the parser raises many kinds
        return None


@functools.cache
def library() -> Callable[..., bool]:
    """The comparison of math-verify. Raises InputError if it is not installed."""
    try:
        from math_verify import verify
    except ImportError as error:
        reason = f"cannot import it ({error})"
        raise InputError("env.name", "math", reason, "pip install 'rlx[math]'") from error
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its limits are off
    return verify
