"""One directory per run: what it is, what it measured, and what that cost.

    manifest.json    run_id, study, recipe, seed, axes, config, versions, ceiling, status, ...
    evals.jsonl      one row per evaluation: counts, pass rate, and the compute spent so far
    metrics.jsonl    one row per update
    clock.jsonl      wall and device seconds at each evaluation
    restarts.jsonl   work that an interruption threw away

`evals.jsonl` and `metrics.jsonl` hold no clocks: they are the same, bit for bit, for every run of
the same configuration. Rows are flushed to disk one by one; readers tolerate a torn last line.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a last line that was cut short is left out."""
    if not path.exists():
        return []
    whole = path.read_text().split("\n")[:-1]  # a whole row ends with a newline
    return [json.loads(line) for line in whole]


def write_json(path: Path, value: Any) -> None:
    """Replace the file in one step: a reader sees the former content or the new one."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


class RunRecord:
    """The writer of one run directory."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    @property
    def manifest(self) -> dict[str, Any]:
        file = self.path / "manifest.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def update_manifest(self, **fields: Any) -> None:
        write_json(self.path / "manifest.json", {**self.manifest, **fields})

    def append(self, name: str, row: dict[str, Any]) -> None:
        with (self.path / name).open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rows(self, name: str) -> list[dict[str, Any]]:
        return read_rows(self.path / name)

    def truncate(self, offsets: dict[str, int]) -> None:
        """Cut files of rows back to an earlier size, in bytes."""
        for name, size in offsets.items():
            if (self.path / name).exists():
                os.truncate(self.path / name, size)


def runs(path: str | Path) -> list[Path]:
    """The run directories of a study, or the directory itself if it is a run."""
    path = Path(path)
    if (path / "manifest.json").exists():
        return [path]
    return sorted(manifest.parent for manifest in path.glob("runs/*/manifest.json"))
