"""Whether arrays that come back from a disk are those that were written."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def crc32(array: Any) -> int:
    """Of the type, shape and values of an array; texts count as what they say."""
    x = np.asarray(array)
    what = f"{x.dtype}{x.shape}"
    if x.dtype.kind in "OSUT":
        what, x = f"text{x.shape}", np.frombuffer("\0".join(map(str, x.flat)).encode(), np.uint8)
    return zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8), zlib.crc32(what.encode()))


def crc32s(arrays: Mapping[str, Any]) -> dict[str, int]:
    """Of every array, by name; to be kept beside them."""
    return {name: crc32(array) for name, array in arrays.items()}


def damaged(arrays: Mapping[str, Any], written: Mapping[str, int]) -> list[str]:
    """Names of the arrays that are missing, new or other than `crc32s` found when they were
    written.
    """
    found = crc32s(arrays)
    return [n for n in {**written, **found} if written.get(n) != found.get(n)]
