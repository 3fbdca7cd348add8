"""A problem of an environment. In a module of its own, so that graders need not load JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """A prompt as text, and what its environment needs to grade an answer."""

    id: int
    prompt: str
    answer: Any
