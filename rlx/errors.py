"""The one error of bad input: a file, key or value from outside that cannot be used.

Commands print it as `error: KEY=VALUE: reason; remedy` and end with exit status 2; any other
exception is a defect of the program and ends with a traceback and 1.
"""

from __future__ import annotations


class InputError(ValueError):
    """`key=value: reason; remedy`, on one line.

    key: the option, or the file (with `:line` where there is one), at fault; value: what it held,
    "" where there is nothing to show; remedy: what the user can do, with options that exist.
    """

    def __init__(self, key: object, value: object, reason: object, remedy: object):
        super().__init__(key, value, reason, remedy)  # as they are, so that it can be pickled

    def __str__(self) -> str:
        key, value, reason, remedy = (_one_line(part) for part in self.args)
        return f"{key}={value}: {reason}; {remedy}"


def _one_line(part: object, longest: int = 300) -> str:
    """Whitespace collapsed, unprintable characters escaped, cut in the middle where too long."""
    text = " ".join(str(part).split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} ... {text[-half:]}"
