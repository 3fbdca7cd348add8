"""Files from outside, and what is in those of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlx.errors import InputError

LONGEST_BYTES = 1 << 28  # three times an index of 10^6 tensors


def is_file(path: Path) -> bool:
    """Whether a file exists; False also for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read(key: str, file: Path, broken: str = "not JSON") -> dict[str, Any]:
    """The object in a file, {} if there is no such file.

    Raises InputError under `key` if the file cannot be read or is not a JSON object.
    """
    try:
        with file.open("rb") as stream:
            raw = stream.read(LONGEST_BYTES + 1)
        found = json.loads(raw.decode("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(key, file, f"{broken} ({error})", "copy it again") from None
    if not isinstance(found, dict):
        reason = f"holds no object but {found!r}"
        raise InputError(key, file, reason, "give the file as the checkpoint has it")
    return found
