"""KEY=VALUE words as a dataclass, for commands without configuration files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlx.errors import InputError

T = TypeVar("T")
REMEDIES = {
    "int": "give a whole number",
    "float": "give a number",
    "bool": "give true or false",
    "other": "quote it, or give it as the docstring shows",
}


def own_options(
    kind: type[T], argv: Sequence[str], remedies: Mapping[str, str] = {}
) -> tuple[T, list[str]]:
    """(The dataclass `kind` with the fields that words set, the other words).

    Raises:
        InputError: a value is missing or not of the field's type; the remedy is from `remedies`,
            or for the type.
    """
    options, rest = OmegaConf.structured(kind), []
    OmegaConf.set_readonly(options, False)  # a frozen dataclass makes a read-only node
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or key not in kind.__dataclass_fields__:
            rest.append(word)
            continue
        try:
            given = OmegaConf.from_cli([word])
            OmegaConf.to_container(given, resolve=True, throw_on_missing=True)
            options = OmegaConf.merge(options, given)
        except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
            kinds = kind.__dataclass_fields__[key].type
            usual = REMEDIES.get(getattr(kinds, "__name__", kinds), REMEDIES["other"])
            reason = str(error).partition("\n")[0] if value else "empty"
            raise InputError(key, value, reason, remedies.get(key, usual)) from error
    return OmegaConf.to_object(options), rest


def read_options(kind: type[T], argv: Sequence[str], remedies: Mapping[str, str] = {}) -> T:
    """The same without other words: InputError on one."""
    options, rest = own_options(kind, argv, remedies)
    for key, _, value in (word.partition("=") for word in rest):
        remedy = f"write KEY=VALUE with one of {', '.join(kind.__dataclass_fields__)}"
        raise InputError(key, value, "unknown option", remedy)
    return options


def check_choices(options: Any, choices: Mapping[str, Sequence[str]]) -> None:
    """Raises InputError on the first option that is not one of its choices."""
    for key, allowed in choices.items():
        value = getattr(options, key)
        if value not in allowed:
            raise InputError(key, value, "not available", f"use {key}={'|'.join(allowed)}")


def exit_status(command: Callable[[list[str]], Any], argv: list[str] | None = None) -> int:
    """0 once the command is done; 2, after printing one line, on bad input.

    Any other error is a bug, and propagates.
    """
    try:
        command(sys.argv[1:] if argv is None else argv)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
