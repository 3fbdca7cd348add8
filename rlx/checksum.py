"""Checksums of arrays, to detect files damaged on disk."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def crc32(array: Any) -> int:
    """CRC-32 of the dtype, shape and values of an array; of strings, whatever their dtype."""
    x = np.asarray(array)
    what = f"{x.dtype}{x.shape}"
    if x.dtype.kind in "OSUT":
        what, x = f"text{x.shape}", np.frombuffer("\0".join(map(str, x.flat)).encode(), np.uint8)
    return zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8), zlib.crc32(what.encode()))


def crc32s(arrays: Mapping[str, Any]) -> dict[str, int]:
    """The CRC-32 of every array, by name; stored beside them."""
    return {name: crc32(array) for name, array in arrays.items()}


def damaged(arrays: Mapping[str, Any], written: Mapping[str, int]) -> list[str]:
    """Names of the arrays that are missing, new, or differ from the checksums `written`."""
    found = crc32s(arrays)
    return [n for n in {**written, **found} if written.get(n) != found.get(n)]
