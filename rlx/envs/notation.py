r"""The notation of short answers: one form of LaTeX, the kind of an answer, values and units.

`plain` rewrites text and many forms of LaTeX to one; `read` distinguishes values, lists, sets,
tuples, intervals, unions and assignments; `quantity`, `latex` and `number` parse a value.
Conventions where notation is ambiguous are those of rlx.envs.answers.
"""

from __future__ import annotations

import contextlib
import functools
import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

DEEPEST_ANSWER = 20  # nested brackets; the parser takes exponential time


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
    (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![a-zA-Z])", ""),
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
    (r"(\\(?:sin|cos|tan|cot|sec|csc)[ ({]*)(\d+) degree", r"\1(\\frac{\2\\pi}{180})"),
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
    """The answer without fonts, spacing and wrappers, in the LaTeX that this module reads."""
    text = SUPERSCRIPT.sub(lambda m: "^{" + unicodedata.normalize("NFKC", m[0]) + "}", text)
    text = "".join(_ascii(char) for char in text).strip("*`\"' \n")
    for _ in range(DEEPEST_ANSWER):
        text, count = WRAPPER.subn(r" \1 ", text)
        if not count:
            break
    for pattern, new in REWRITE:
        text = pattern.sub(new, text)
    text = text.strip(" ;=").rstrip(".?, \\")
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


BRACKET = re.compile(r"\\[{}]|[()\[\]{}]")
LIST = re.compile(r"\s*(?:,\s*(?:and|or)\b|[,;]|\b(?:and|or)\b)\s*")
GROUPED = re.compile(r"(?<![\d,.])([1-9]\d{0,2}(?:,\d{3})+)(?![\d,])")
UNION = re.compile(r"\s*\\cup\s*")
RELATION = re.compile(r"\s*(\\(?:le|ge|neq|approx|in|equiv|sim)(?![a-zA-Z])|[=<>])\s*")
NAME = re.compile(
    r"[a-zA-Z]+(?:_\{?\w+\}?)?(?:\([\w, ]+\))?|\([a-zA-Z](?:, ?[a-zA-Z])+\)"
    r"|\\(?!not|lim)[a-z]+(?: ?[A-Z]{1,3})?"
)
NUMERIC = re.compile(r"[\d\s.+\-/^{}()]+|(?:[\d\s.+\-/^{}()]|\\(?:frac|cdot|times|sqrt))+")
UNORDERED, INTERVALS = (",", "{"), ("()", "[]", "(]", "[)")


class Part(NamedTuple):
    """`kind`: "" one value, in LaTeX; "," a list; "{" a set; "u" a union; else two brackets."""

    kind: str
    text: str
    parts: tuple[Part, ...] = ()
    name: str = ""  # of the variable that it is assigned to


def read(text: str, inside: bool = False) -> Part:
    """The structure of an answer rewritten by `plain`; inside: within brackets."""
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
    """Cut at separators outside all brackets and outside matches of `whole`."""
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
    """Its brackets and their content, if one pair encloses everything; else two empty texts."""
    depth, first = 0, BRACKET.match(text)
    for mark in BRACKET.finditer(text):
        depth += 1 if mark[0][-1] in "([{" else -1
        if depth == 0:
            if first and mark.end() == len(text) and mark[0][-1] in ")]}":
                return first[0] + mark[0], text[first.end() : mark.start()]
            break
    return "", text


def _assigned(text: str) -> tuple[str, str]:
    """("x", "5") of x=5, 5=x, x=2+3=5 and x in 5; ("", text) if it is not an assignment."""
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
    """x>2 and 1<x<2 as intervals of x; other text unchanged."""
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
RATIO = re.compile(r"(\d+) ?: ?(\d+)")
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
BASE = re.compile(r"([0-9A-F]*\d[0-9A-F]*)\s*_\s*\{?\s*(\d+)\s*\}?")
UNREADABLE = re.compile(
    r"(?<!_)\d +[\d.]"  # two numbers
    r"|\d ?\\frac ?\{\d+\} ?\{\d+\}"  # neither a mixed number nor a product
    r"|(?<![\\a-zA-Z{])[a-zA-Z]{4,}"  # a word
    r"|\\(?:ldots|approx|sim|equiv|emptyset|%)|:|\d{4}-\d\d-\d\d|/[^/]+/"
    r"|\\binom(?! ?\{\w{1,4}\} ?\{\w{1,4}\})|\\(?:gcd|lcm)[^a-z].*\^"  # evaluated while parsing
)


def quantity(text: str) -> tuple[str, str]:
    """A value and the key of its unit, if the unit is known."""
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
    """The key of a unit, the same for all its spellings; "" of other words."""
    word = word.lower() if len(word) > 1 else word
    return UNIT_KEYS.get(word) or UNIT_KEYS.get(word.removesuffix("s"), "")


def latex(text: str) -> str:
    """LaTeX for the parser, without per cent, base, words or mixed numbers; "" if unreadable."""
    if text.endswith(r"\%"):
        text = text[:-2].strip()
        inner = latex(text)
        return inner and rf"\frac{{{inner}}}{{100}}"
    words = text.lower().replace("-", " ").split()
    if words and len(words) < 3 and all(word in IN_WORDS for word in words):
        return str(sum(IN_WORDS[word] for word in words))
    if base := BASE.fullmatch(text):
        with contextlib.suppress(ValueError):
            return str(int(base[1], int(base[2])))
        return ""
    if ratio := RATIO.fullmatch(text):
        return rf"\frac{{{ratio[1]}}}{{{ratio[2]}}}"
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


def bare(text: str) -> str:
    """For comparison as text: without spaces, words in lower case."""
    text = re.sub(r"(?<=\d) (?=\d)", "_", text)
    text = re.sub(r"\s|\\cdot|(?<=\w)\.$", "", text)
    return text.lower() if re.search(r"[a-zA-Z]{2}", text) else text
