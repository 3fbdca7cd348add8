r"""Which answer a completion gives, and whether two mathematical answers agree.

The answer of a completion is its last `\boxed{}`, else what follows its last `####`, else the last
value in its text: one answer, so that listing several earns nothing.

What an answer *is* decides first: a value, a list (in any order), a set, a tuple, an interval, a
union, a relation. Values are compared exactly: no decimal is a third, or the root of two. Only
expressions go to the parser of math-verify, and only those with variables, relations and matrices
to its comparison, because it takes tuples for sets, 18 cm for 18 m, and tiny values for zero.

Conventions where notation is ambiguous: `2, 500` is a list and `2,500` a number; `1 000` and
`1_000` are numbers, `1 2` is none; `3 1/2` is a mixed number; `3{,}5` is a decimal and `3,5` a
list; `3%` is .03, or 3 where the question asks for per cent; 18 cm is 18, but not 18 m, and no unit
is converted; a reference in base 2 may be answered without the subscript, not in another base.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

from rlx.errors import InputError

LONGEST_ANSWER = 400  # characters; more is no short answer
DEEPEST_ANSWER = 20  # brackets; the parser takes exponential time
MOST_BITS = 100_000  # of a number that is written out: 10^{10^{10}} is compared as it stands
DIGITS = 50  # of irrational constants

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
FORMULA = re.compile(r"(?<![\\$])\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def final_answer(text: str, boxed: bool = False) -> str | None:
    """The one answer that a completion gives, or None; see the top of this file."""
    if BOX.search(text):
        said = last_box(text)
    elif boxed:
        return None
    elif "####" in text:
        said = text.rpartition("####")[2].strip().partition("\n")[0]
    else:
        said = _last_value(text)
    short = said and len(said) <= LONGEST_ANSWER and _depth(said) <= DEEPEST_ANSWER
    return said if short else None


def last_box(text: str) -> str | None:
    r"""What the last `\boxed{}` holds; None if its brace is never closed."""
    *_, opening = BOX.finditer(text)
    depth = 1
    for i in range(opening.end(), min(len(text), opening.end() + 2 * LONGEST_ANSWER)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[opening.end() : i].strip()
    return None


def _depth(text: str) -> int:
    """How deep its brackets are nested."""
    steps = ({"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(char, 0) for char in text)
    return max(itertools.accumulate(steps), default=0)


def _last_value(text: str) -> str | None:
    """The last formula or word with a digit in it, and what belongs to it."""
    tail = text[-LONGEST_ANSWER - 1 :]
    words = list(re.finditer(r"\S+", tail))
    if len(text) > len(tail) and not tail[0].isspace():
        words = words[1:]  # it is cut
    found = [i for i, word in enumerate(words) if any(map(str.isnumeric, word[0]))]
    if not found:
        return None
    i = found[-1]
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
    said = " ".join(word[first : last + 1]).lstrip("#*=:≈~\"'`").rstrip(".,;:!?*\"'`")
    for opening, closing in ("()", "[]", "{}"):
        if said.count(opening) != said.count(closing):
            said = said.strip(opening + closing)
    return said


# --- from text to LaTeX of one kind ---------------------------------------------------------------


def _joined(grouped: re.Match) -> str:
    return re.sub(r"\D", "", grouped[0])


SUPERSCRIPT = re.compile("[⁻⁰¹²³⁴-⁹]+")
CHARS = {
    **dict.fromkeys("−–—‐‑", "-"),
    **{"×": r"\times ", "÷": "/", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "√": r"\sqrt "},
    **{"∞": r"\infty ", "π": r"\pi ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\neq ", "∪": r"\cup "},
    **{"∈": r"\in ", "°": r"^\circ ", "±": r"\pm ", "∓": r"\mp ", "∅": r"\emptyset ", "⁄": "/"},
    **{"∕": "/", "≈": r"\approx ", "…": r"\ldots ", "ℝ": r"\mathbb{R}", "\u00a0": " "},
    **{"€": r" euro ", "£": " pound ", "¢": " cent ", "¥": " yen ", "’": "'"},
}
WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|operatorname)\*?\s*"
    r"\{([^{}]*)\}"
)
REWRITES = [  # in this order
    (r"\\!\s*", ""),
    (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits|cfrac(?=\[))(?![a-zA-Z])", ""),
    (r"(?<!\\)\\[()\[\]]", ""),
    (r"\\\$", " dollar "),
    (r"\$", ""),
    (r"(?<!\\)\\(?:[,;: ]|(?:q?quad|enspace|thinspace)(?![a-zA-Z]))|(?<!\\)~", " "),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\(?:geq|geqslant)(?![a-zA-Z])", r"\\ge "),
    (r"\\(?:leq|leqslant)(?![a-zA-Z])", r"\\le "),
    (r"\\ne(?![a-zA-Z])", r"\\neq "),
    (r"\\langle(?![a-zA-Z])", "("),
    (r"\\rangle(?![a-zA-Z])", ")"),
    (r"\\(?:dots|cdots)(?![a-zA-Z])|\.\.\.", r"\\ldots "),
    (r"\\varnothing|\\\{\s*\\\}|\b[nN]o (?:real )?solutions?\b", r"\\emptyset "),
    (r"\^\s*\{?\s*\\(?:circ|degree)(?![a-zA-Z])\s*\}?|\\degree(?![a-zA-Z])", " degree "),
    (r"\\?%|\bper\s?cent\b|\bpercentage\b", r"\\%"),
    (r"\*\*", "^"),
    (r"\*", r" \\cdot "),
    (r"(?<=\d)\s+x\s+(?=10\^)", r" \\cdot "),
    (r"(?<![\\a-zA-Z])(sqrt|pi|sin|cos|tan|ln|log|infinity)(?![a-zA-Z])", r"\\\1 "),
    (r"\\infinity", r"\\infty"),
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\\sqrt\s*(\d+)", r"\\sqrt{\1}"),
    (r"\^\s*\(([^()]*)\)", r"^{\1}"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    (r"\{?(\d+)\}?\s*\\over\s*\{?(\d+)\}?", r"\\frac{\1}{\2}"),
    (r"(?<![\d.])0\{,\}(?=\d)", "0."),
    (r"(?<=\d)\{,\}(?=\d{3}(?!\d))", ","),
    (r"(?<=\d)\{,\}(?=\d)", "."),
    (r"(?<=[\d.])[eE]([+-]?\d+)\b", r" \\cdot 10^{\1}"),
    (r"\{(\d+)\}\s*/\s*\{(\d+)\}", r"\1/\2"),
    (r"(?<=\d) ?thousand\b", r" \\cdot 10^{3}"),
    (r"(?<=\d) ?million\b", r" \\cdot 10^{6}"),
    (r"(?<=\d) ?billion\b", r" \\cdot 10^{9}"),
    (r"(?i)^\W*(?:so,? |thus,? )?(?:the )?(?:final |correct )?answer(?: is)?[\s:=]*", ""),
    (r"\s+", " "),
    (r"(?<![\w.,^{])[1-9]\d{0,2}(?:[ _']\d{3})+(?![\d/]| ?/| ?\\frac)", _joined),
]
REWRITE = [(re.compile(pattern), new) for pattern, new in REWRITES]


@functools.lru_cache(maxsize=4096)
def plain(text: str) -> str:
    """The answer without its fonts, spacing and dress, in LaTeX that the rest of the file reads."""
    text = SUPERSCRIPT.sub(lambda m: "^{" + unicodedata.normalize("NFKC", m[0]) + "}", text)
    text = "".join(_ascii(char) for char in text).strip("*`\"' \n")
    for _ in range(DEEPEST_ANSWER):
        text, count = WRAPPER.subn(r" \1 ", text)
        if not count:
            break
    for pattern, new in REWRITE:
        text = pattern.sub(new, text)
    text = text.strip(" ;").rstrip(".?, \\")
    return text if re.search(r"[(\[{]", text) else text.rstrip(")")


def _ascii(char: str) -> str:
    if char in CHARS:
        return CHARS[char]
    if unicodedata.category(char) in ("Cf", "Cs"):  # invisible
        return ""
    wide = unicodedata.normalize("NFKC", char)
    if "⁄" in wide:
        over, under = wide.split("⁄")  # one half
        return rf" \frac{{{over}}}{{{under or 1}}}"
    return str(unicodedata.decimal(char, wide if len(wide) == 1 else char))


# --- what an answer is ----------------------------------------------------------------------------

BRACKET = re.compile(r"\\[{}]|[()\[\]{}]")
LIST = re.compile(r"\s*(?:,\s*(?:and|or)\b|[,;]|\b(?:and|or)\b)\s*")
GROUPED = re.compile(r"(?<![\d,.])([1-9]\d{0,2}(?:,\d{3})+)(?![\d,])")
UNION = re.compile(r"\s*\\cup\s*")
RELATION = re.compile(r"\s*(\\(?:le|ge|neq|approx|in|equiv|sim)(?![a-zA-Z])|[=<>])\s*")
NAME = re.compile(
    r"[a-zA-Z]+(?:_\{?\w+\}?)?(?:\([\w, ]+\))?|\([a-zA-Z](?:, ?[a-zA-Z])+\)|\\(?!not|lim)[a-z]+"
)
NUMERIC = re.compile(r"[\d\s.+\-/^{}()]+|(?:[\d\s.+\-/^{}()]|\\(?:frac|cdot|times|sqrt))+")
UNORDERED, INTERVALS = (",", "{"), ("()", "[]", "(]", "[)")


class Part(NamedTuple):
    """`kind` "" is one value, in LaTeX; "," a list; "{" a set; "u" a union; else two brackets."""

    kind: str
    text: str
    parts: tuple[Part, ...] = ()
    name: str = ""  # of the variable that it is said to be


def read(text: str, inside: bool = False) -> Part:
    """The structure of an answer that `plain` has rewritten; `inside` brackets or not."""
    grouped = GROUPED if not inside or ", " in text else None
    pieces = [one for piece in _split(text, LIST, grouped) for one in _signs(piece)]
    if len(pieces) > 1:
        return Part(",", text, tuple(read(piece, inside=True) for piece in pieces))
    name, text = _assigned(pieces[0].strip())
    union = _split(text, UNION)
    if len(union) > 1:
        return Part("u", text, tuple(map(read, union)), name)
    ends, inner = _enclosed(text)
    if not ends:
        return _interval(text)._replace(name=name) if not name else Part("", text, (), name)
    within = read(inner, inside=True)
    if ends == "{}" or ends == "()" and within.kind != ",":
        return within._replace(name=name or within.name)
    if ends == r"\{\}":
        return Part("{", text, within.parts if within.kind == "," else (within,), name)
    if within.kind != ",":
        return Part("", text, (), name)
    return Part(ends, text, within.parts, name)


def _split(text: str, separator: re.Pattern, whole: re.Pattern | None = None) -> list[str]:
    """Cut at the separators outside all brackets, and outside what `whole` matches there."""
    depth, start, free, pieces = 0, 0, 0, []
    patterns = [BRACKET, separator, *([whole] if whole else [])]
    marks = [mark for pattern in patterns for mark in pattern.finditer(text)]
    for mark in sorted(marks, key=lambda m: m.start()):
        if mark.re is BRACKET:
            depth += 1 if mark[0][-1] in "([{" else -1
        elif depth == 0 and mark.re is whole:
            free = mark.end()
        elif depth == 0 and mark.start() >= free:
            pieces.append(text[start : mark.start()])
            start = mark.end()
    pieces.append(text[start:])
    return [piece for piece in pieces if piece.strip()] or [text]


def _signs(text: str) -> list[str]:
    if r"\pm" not in text:
        return [text]
    up, down = text.replace(r"\pm", "+").replace(r"\mp", "-"), text.replace(r"\pm", "-")
    return [up, down.replace(r"\mp", "+")]


def _enclosed(text: str) -> tuple[str, str]:
    """Its brackets and what they hold, if one pair holds everything; else two empty texts."""
    depth, first = 0, BRACKET.match(text)
    for mark in BRACKET.finditer(text):
        depth += 1 if mark[0][-1] in "([{" else -1
        if depth == 0:
            if first and mark.end() == len(text) and mark[0][-1] in ")]}":
                return first[0] + mark[0], text[first.end() : mark.start()]
            break
    return "", text


def _assigned(text: str) -> tuple[str, str]:
    """("x", "5") of x=5, 5=x, x=2+3=5 and x in 5; ("", text) where it is no assignment."""
    signs = [mark[1] for mark in RELATION.finditer(text)]
    sides = [side.strip() for side in _split(text, RELATION)]
    if len(sides) != len(signs) + 1 or not set(signs) <= {"=", r"\in"} or not signs:
        return "", text
    if signs == ["="] and NAME.fullmatch(sides[1]) and not NAME.fullmatch(sides[0]):
        sides.reverse()
    if NAME.fullmatch(sides[0]):
        return sides[0].replace(" ", ""), sides[-1]
    if all(map(NUMERIC.fullmatch, sides)):  # 2+3=5
        return "", sides[-1]
    return "", text


def _interval(text: str) -> Part:
    """x>2 and 1<x<2 as intervals of x; other text as it is."""
    signs = [mark[1] for mark in RELATION.finditer(text)]
    sides = [side.strip() for side in _split(text, RELATION)]
    if len(sides) != len(signs) + 1 or len(signs) not in (1, 2):
        return Part("", text)
    up, down = {"<": "()", r"\le": "[]"}, {">": "()", r"\ge": "[]"}
    if set(signs) <= set(down):
        signs = [{">": "<", r"\ge": r"\le"}[sign] for sign in reversed(signs)]
        sides.reverse()
    if not set(signs) <= set(up):
        return Part("", text)
    if len(signs) == 2 and NAME.fullmatch(sides[1]):
        low, name, high = sides
        ends = up[signs[0]][0] + up[signs[1]][1]
    elif len(signs) == 1 and NAME.fullmatch(sides[0]):
        (name, high), low, ends = sides, r"-\infty", "(" + up[signs[0]][1]
    elif len(signs) == 1 and NAME.fullmatch(sides[1]):
        (low, name), high, ends = sides, r"\infty", up[signs[0]][0] + ")"
    else:
        return Part("", text)
    return Part(ends, f"{ends[0]}{low},{high}{ends[1]}", (read(low), read(high)), name)


# --- whether two agree ----------------------------------------------------------------------------

PERCENT_ASKED = re.compile(r"per\s?cent|%", re.IGNORECASE)
BASE_ASKED = re.compile(r"\b(?:base|binary|octal|hexadecimal)\b", re.IGNORECASE)
BASE = re.compile(r"([0-9A-F]*\d[0-9A-F]*)\s*_\s*\{?\s*(\d+)\s*\}?")
SETS = re.compile(r"\\(?:mathbb|setminus|neq|infty)|\\cup")


def same(answer: str, said: str, question: str = "") -> bool:
    """Whether two answers agree. `question` tells whether per cent or a base is asked for.

    Raises InputError where math-verify is not installed and needed. May take long, on integrals for
    example: see rlx.envs.grading.
    """
    if said.strip("$ ") == answer:
        return True
    right, other = plain(answer), plain(said)
    parts = read(right), read(other)
    if _agree(*parts):
        return True
    if "=" in right and "=" in other and not (parts[0].name and parts[1].name):
        return _same_expression(_latex(right), _latex(other))  # y=2x+1 and y-2x=1
    if PERCENT_ASKED.search(question) and r"\%" in right + other:
        return _agree(read(right.replace(r"\%", "")), read(other.replace(r"\%", "")))
    if BASE_ASKED.search(question) and not BASE.fullmatch(right):
        return right == BASE.sub(r"\1", other)
    return False


def _agree(one: Part, other: Part) -> bool:
    if one.name and other.name and one.name != other.name:
        return False
    kinds = {one.kind, other.kind}
    if _bare(one.text) == _bare(other.text) != "":
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
    """Whether each part of either has its like in the other."""
    found = [[_agree(part, like) for like in other.parts] for part in one.parts]
    return all(map(any, found)) and all(map(any, zip(*found, strict=True)))


def _bare(text: str) -> str:
    """For comparison as text: no spaces, words in lower case."""
    text = re.sub(r"(?<=\d) (?=\d)", "_", text)
    text = re.sub(r"\s|\\cdot|(?<=\w)\.$", "", text)
    return text.lower() if re.search(r"[a-zA-Z]{2}", text) else text


UNITS = """mm millimeter millimetre|cm centimeter centimetre|m meter metre|km kilometer kilometre
|in inch inche|ft foot feet|yd yard|mi mile|mg milligram|g gram|kg kilogram kilo|lb pound|oz ounce
|s sec second|min minute|h hr hour|day|week|month|yr year|dollar usd|cent|yen|euro eur|degree deg
|rad radian|l liter litre|ml milliliter millilitre|mph|rpm"""
UNIT_KEYS = {word: row.split()[0] for row in UNITS.split("|") for word in row.split()}
UNIT = re.compile(
    r"(.*(?:[\d)}]|\\pi))(\s*[-/]?\s*)(?:(square|sq|cubic|cu)\.? )?([a-zA-Z]+)\.?"
    r"((?:[ /-]+[a-zA-Z]+\.?){0,3})\s*(?:\^ ?\{?([23])\}?)?"
)
CURRENCY = re.compile(r"(?:US ?)?(dollar|euro|pound|cent|yen|USD|EUR)\s*(?=[-+\d.(\\])")
NO_UNITS = set("or and more less least most than not about times dozen half mod factorial".split())
TIME = re.compile(r"(\d+(?: ?: ?\d+)+) ?([ap])?\.? ?(?:m\.?)?", re.IGNORECASE)
SIMPLE = r"(?:\d+\.?\d*|\.\d+)"
NUMBER = re.compile(
    rf"(?P<sign>[+-]? ?)(?:(?P<over>{SIMPLE})(?: ?/ ?(?P<under>{SIMPLE}))?"
    rf"|\\frac ?\{{(?P<top>[+-]?{SIMPLE})\}} ?\{{(?P<bottom>[+-]?{SIMPLE})\}})"
)
MIXED = re.compile(
    r"(?<![\w.^_/)}\\])(\d+)(?: ?\\frac ?\{(\d+)\} ?\{(\d+)\}| (\d+) ?/ ?(\d+))(?![\d.])"
)
REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot) ?\{?(\d+)\}?")
DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?![\d.])")
WORDS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
WORDS += " fifteen sixteen seventeen eighteen nineteen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
IN_WORDS = dict(zip(WORDS.split(), range(20), strict=True))
IN_WORDS |= dict(zip(TENS.split(), range(20, 100, 10), strict=True))
UNREADABLE = re.compile(
    r"(?<!_)\d +[\d.]"  # two numbers
    r"|\d ?\\frac ?\{\d+\} ?\{\d+\}"  # neither a mixed number nor a product
    r"|(?<![\\a-zA-Z{])[a-zA-Z]{4,}"  # a word
    r"|\\(?:ldots|approx|sim|equiv|emptyset|%)|:|\d{4}-\d\d-\d\d|/[^/]+/"
    r"|\\binom(?! ?\{\w{1,4}\} ?\{\w{1,4}\})|\\(?:gcd|lcm)[^a-z].*\^"  # evaluated as they are read
)


def _same_value(answer: str, said: str) -> bool:
    (one, unit), (other, other_unit) = _quantity(answer), _quantity(said)
    if unit and other_unit and unit != other_unit:
        return False
    times = TIME.fullmatch(one), TIME.fullmatch(other)
    if times[0] and times[1]:
        digits, halves = zip(*((t[1].replace(" ", ""), t[2] or "") for t in times), strict=True)
        return digits[0] == digits[1] and ("" in halves or halves[0].lower() == halves[1].lower())
    base, other_base = BASE.fullmatch(one), BASE.fullmatch(other)
    if base:
        return (other_base or {1: other, 2: base[2]})[1] == base[1] and (
            not other_base or other_base[2] == base[2]
        )
    if _bare(one) == _bare(other) != "":
        return True
    one, other = _latex(one), _latex(other)
    values = number(one), number(other)
    if None not in values:
        return values[0] == values[1]
    return bool(one and other) and _same_expression(one, other)


def _quantity(text: str) -> tuple[str, str]:
    """A value and the key of its unit, if it is a known one."""
    if prefix := CURRENCY.match(text):
        return text[prefix.end() :].strip(), f"{unit_key(prefix[1])}^1"
    found = UNIT.fullmatch(text)
    if not found:
        return text, ""
    value, gap, power, word, more, exponent = found.groups()
    key = unit_key(word)
    words = [word, *re.findall("[a-zA-Z]+", more)]
    if not (key and (gap or len(word) > 1) or gap and all(len(w) > 2 for w in words)):
        return text, ""
    if NO_UNITS & set(map(str.lower, words)) or more and not key and power:
        return text, ""
    exponent = {"s": "2", "c": "3"}.get((power or " ")[0], exponent or "1")
    return value, "" if more or not key else f"{key}^{exponent}"


def unit_key(word: str) -> str:
    """Of a word that measures something; the same for all its spellings."""
    word = word.lower() if len(word) > 1 else word
    return UNIT_KEYS.get(word) or UNIT_KEYS.get(word.removesuffix("s"), "")


def _latex(text: str) -> str:
    """What the parser may read: no per cent, base, word or mixed number; "" for what it may not."""
    if text.endswith(r"\%"):
        text = text[:-2].strip()
        inner = _latex(text)
        return inner and rf"\frac{{{inner}}}{{100}}"
    words = text.lower().replace("-", " ").split()
    if words and len(words) < 3 and all(word in IN_WORDS for word in words):
        return str(sum(IN_WORDS[word] for word in words))
    if base := BASE.fullmatch(text):
        with contextlib.suppress(ValueError):
            return str(int(base[1], int(base[2])))
        return ""
    text = GROUPED.sub(lambda m: m[1].replace(",", ""), text)
    text = REPEATING.sub(_repeating, MIXED.sub(_mixed, text))
    return "" if UNREADABLE.search(text) else text


def _mixed(found: re.Match) -> str:
    whole, over, under = found[1], found[2] or found[4], found[3] or found[5]
    return rf"({whole}+\frac{{{over}}}{{{under}}})" if int(over) < int(under) else found[0]


def _repeating(found: re.Match) -> str:
    whole, fixed, again = found[1], found[2], found[3]
    value = Fraction(int(again), 10 ** len(fixed) * (10 ** len(again) - 1))
    value += Fraction(int(whole + fixed or "0"), 10 ** len(fixed))
    return rf"(\frac{{{value.numerator}}}{{{value.denominator}}})"


def number(text: str) -> Fraction | None:
    """The value of an integer, a decimal or a fraction of two of them."""
    found = NUMBER.fullmatch(text)
    if not found:
        return None
    over, under = found["over"] or found["top"], found["under"] or found["bottom"] or "1"
    try:
        value = Fraction(over) / Fraction(under)
    except ZeroDivisionError:
        return None
    return -value if found["sign"].strip() == "-" else value


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
    verify = library()
    return bool(verify(a, b, timeout_seconds=None, allow_set_relation_comp=True))


def _equal(a: Any, b: Any) -> bool:
    """Whether two expressions are the same: exactly, but for DIGITS of irrational constants."""
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
    """About how many bits its value and its parts take when they are written out."""
    import sympy

    if isinstance(expression, sympy.Rational):
        return max(int(expression.p).bit_length(), int(expression.q).bit_length())
    parts = [_bits(part) for part in expression.args]
    if isinstance(expression, sympy.Sum | sympy.Product) and max(parts) > 10:
        return math.inf  # as many terms as it says
    if isinstance(expression, sympy.factorial | sympy.Pow | sympy.exp):
        *base, exponent = parts
        exponent = 2.0 ** min(exponent, 64) if expression.args[-1].is_number else exponent
        return max(*parts, exponent * (base[0] if base else min(parts[-1], 64)))
    return sum(parts) if parts else 2


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    """As sympy reads it, nothing evaluated; None where it is not one formula."""
    library()
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex

    exact = DECIMAL.sub(lambda m: rf"(\frac{{{m[1] or 0}{m[2]}}}{{1{'0' * len(m[2])}}})", text)
    config = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none",
        equations=False,
    )  # fmt: skip
    try:
        return latex2sympy(normalize_latex(exact, config=config))
    except Exception:  # of many kinds
        return None


@functools.cache
def library() -> Callable[..., bool]:
    """The comparison of math-verify. Raises InputError where it is not installed."""
    try:
        from math_verify import verify
    except ImportError as error:
        reason = f"cannot import it ({error})"
        raise InputError("env.name", "math", reason, "pip install 'rlx[math]'") from error
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of its limits' absence
    return verify
