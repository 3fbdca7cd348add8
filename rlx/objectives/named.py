"""Functions by name: what a recipe's words stand for, each handed the numbers and arrays it asks
for by the names of its parameters.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping


def find(names: Mapping[str, Callable], kind: str) -> Callable:
    """The function of a name, or of an import path MODULE:NAME.

    Raises KeyError for another name, and what an import raises.
    """
    module, colon, name = kind.partition(":")
    return getattr(importlib.import_module(module), name) if colon else names[kind]


def asks(function: Callable, given: int) -> tuple[str, ...]:
    """Names of its parameters after the first `given`."""
    return tuple(inspect.signature(function).parameters)[given:]


def call(function: Callable, *arrays, **there):
    """function(*arrays, ...) with those of `there` that it asks for."""
    return function(*arrays, **{name: there[name] for name in asks(function, len(arrays))})
