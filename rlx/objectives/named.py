"""Functions looked up by name, and called with the arguments that their parameters name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping


def find(names: Mapping[str, Callable], kind: str) -> Callable:
    """The function of that name, or at the import path MODULE:NAME.

    Raises KeyError for an unknown name, and whatever the import raises.
    """
    module, colon, name = kind.partition(":")
    return getattr(importlib.import_module(module), name) if colon else names[kind]


def asks(function: Callable, given: int) -> tuple[str, ...]:
    """Names of the parameters after the first `given`."""
    return tuple(inspect.signature(function).parameters)[given:]


def call(function: Callable, *arrays, **there):
    """function(*arrays, ...) with those of `there` that are parameters of it."""
    return function(*arrays, **{name: there[name] for name in asks(function, len(arrays))})
