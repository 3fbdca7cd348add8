"""KEY=VALUE words as a dataclass, for the commands that compose no configuration files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlx.errors import InputError

T = TypeVar("T")


def read_options(kind: type[T], argv: Sequence[str], remedies: Mapping[str, str] = {}) -> T:
    """The dataclass `kind` with the fields that the words name.

    Raises:
        InputError: a word names no field, or its value is not of the field's type; the remedy is
            that of `remedies`, or the docstring's.
    """
    known = kind.__dataclass_fields__
    options = OmegaConf.structured(kind)
    OmegaConf.set_readonly(options, False)  # a frozen dataclass makes a read-only node
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            remedy = f"write KEY=VALUE with one of {', '.join(known)}"
            raise InputError(key, value, "unknown option", remedy)
        try:
            options = OmegaConf.merge(options, OmegaConf.from_cli([word]))
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0]
            remedy = remedies.get(key, "quote it, or give it as the docstring shows")
            raise InputError(key, value, reason, remedy) from error
    return OmegaConf.to_object(options)


def exit_status(command: Callable[[list[str]], Any]) -> int:
    """0 once the command has done what the words ask for; 2, with one line, if it cannot."""
    try:
        command(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
