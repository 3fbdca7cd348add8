"""The one error for bad input: a file, key or value from outside that cannot be used.

Commands print `error: KEY=VALUE: reason; remedy` and exit with status 2; any other exception is a
bug and exits with a traceback and status 1.
"""

from __future__ import annotations


class InputError(ValueError):
    """`key=value: reason; remedy`, on one line.

    key: the option or file (with `:line` if known) at fault; value: its content, or ""; remedy:
    what the user can do, with options that exist.
    """

    def __init__(self, key: object, value: object, reason: object, remedy: object):
        super().__init__(key, value, reason, remedy)  # unformatted, so that it can be pickled

    def __str__(self) -> str:
        key, value, reason, remedy = (_one_line(part) for part in self.args)
        return f"{key}={value}: {reason}; {remedy}"


def _one_line(part: object, longest: int = 300) -> str:
    """Whitespace collapsed, unprintable characters escaped, the middle cut out of long text."""
    text = " ".join(str(part).split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} ... {text[-half:]}"
