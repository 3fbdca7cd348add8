"""One directory per run: its configuration, its measurements and their cost.

    manifest.json    run_id, study, recipe, seed, axes, config, versions, ceiling, status, ...
    evals.jsonl      one row per evaluation: counts, pass rate, and the compute spent so far
    metrics.jsonl    one row per update
    clock.jsonl      wall and device seconds at each evaluation
    restarts.jsonl   work lost to interruptions
    checkpoints/     the whole state, newest last (rlx.checkpoint)

`evals.jsonl` and `metrics.jsonl` hold no clocks: runs of the same configuration write the same
bits. Rows are flushed to disk one by one; readers tolerate an incomplete last line.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import json
import os
import platform
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from rlx.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT)
WORDS = {  # clearer than the system's messages
    errno.EEXIST: "the name is taken by a file, a device or a broken link",
    errno.ENOTDIR: "a part of the path is a file",
}


WEIGHTS = ("model.", "algo.teacher", "algo.reward_model", "env.tokenizer")  # large, not data


def contents(options: Mapping[str, Any]) -> dict[str, int]:
    """CRC-32 of each file of data or code that an option names, by option; not of weights."""
    named = {key: x for key, x in options.items() if isinstance(x, str) and re.search("[./]", x)}
    module, colon, _ = str(options.get("algo.loss")).partition(":")
    with contextlib.suppress(ImportError, ValueError):  # refused where it is imported
        if colon and (spec := importlib.util.find_spec(module)) and spec.origin:
            named["algo.loss"] = spec.origin
    made = {}
    for key, name in named.items():
        with contextlib.suppress(OSError, ValueError):  # not a file, or no name of one
            if not key.startswith(WEIGHTS):
                now = os.stat(name)
                made[key] = _crc32(name, now.st_mtime_ns, now.st_size)
    return made


@functools.lru_cache
def _crc32(name: str, *_: int) -> int:
    """Of a file at that time and size: the cells of a sweep name the same ones."""
    crc = 0
    with open(name, "rb") as file:
        while block := file.read(2**24):
            crc = zlib.crc32(block, crc)
    return crc


def refuse_other_contents(
    before: Mapping[str, Any], now: Mapping[str, int], options: Mapping[str, Any], out: object
) -> None:
    """Raises InputError if a file that an option names is not as it was when `before` was made."""
    for key in [key for key, crc in now.items() if before.get(key, crc) != crc]:
        reason = f"the file has changed since the runs in {out} began"
        raise InputError(key, options[key], reason, "change it back, or give another out=DIR")


@contextlib.contextmanager
def os_errors(
    key: object, path: Path, remedy: str = "choose a directory that can be created and written"
) -> Iterator[None]:
    """Turns an OSError inside into an InputError, except for a full disk (see `needing_room`)."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise
        reason = WORDS.get(error.errno or 0) or error.strerror or str(error)
        raise InputError(key, path, reason, remedy) from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; an incomplete last line is ignored.

    Raises InputError naming any other line that is not a row.
    """
    if not path.exists():
        return []
    rows = []
    with os_errors("file", path, "make it a file that can be read"):
        lines = path.read_bytes().split(b"\n")[:-1]  # a complete row ends with a newline
    for number, line in enumerate(lines, 1):
        rows.append(_json_object(line, f"{path}:{number}", "fix or remove that line"))
    return rows


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError if there is none or it cannot be read."""
    remedy = "restore the file, or remove its directory"
    with os_errors("file", path, remedy):
        text = path.read_bytes()
    return _json_object(text, str(path), remedy)


def _json_object(text: bytes, where: str, remedy: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"not JSON ({error})"
    else:
        if isinstance(found, dict):
            return found
        reason = "not a JSON object"
    raise InputError(where, text[:40].decode(errors="replace"), reason, remedy)


def write_json(path: Path, value: Any) -> None:
    """Replace the file atomically."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("w") as file:
            json.dump(value, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


class Busy(RuntimeError):
    """Another process has the run directory open for writing."""


class RunRecord:
    """A run directory and its writer."""

    def __init__(self, path: str | Path, writes: bool = True):
        """writes=False: read only; another process writes the files."""
        self.path, self.writes = Path(path), writes
        self._size: dict[str, int] = {}  # bytes of the files that this process has written
        if writes:
            with os_errors("out", self.path):
                self.path.mkdir(parents=True, exist_ok=True)

    @property
    def manifest(self) -> dict[str, Any]:
        file = self.path / "manifest.json"
        return read_json(file) if file.exists() else {}

    def update_manifest(self, **fields: Any) -> None:
        """Raises InputError if the manifest that this process wrote has been removed."""
        if not self.writes:
            return
        file = self.path / "manifest.json"
        if "manifest.json" in self._size and not file.exists():
            self._refuse_changed("manifest.json")
        with os_errors("out", self.path):
            write_json(file, {**self.manifest, **fields})
        self._size["manifest.json"] = 0

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Append a row, or nothing if the disk is full.

        Raises InputError if another process has changed the file.
        """
        if not self.writes:
            return
        size = self.sizes([name])[name]
        if self._size.setdefault(name, size) != size:
            self._refuse_changed(name)
        with os_errors("out", self.path):
            try:
                with (self.path / name).open("a") as file:
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                    self._size[name] = file.tell()
            except OSError:
                self.truncate({name: size})
                raise

    def _refuse_changed(self, name: str) -> None:
        there = "was changed" if (self.path / name).exists() else "was removed"
        reason = f"{name} {there} by another process while this run was writing it"
        raise InputError("out", self.path, reason, "remove the directory, and start again")

    def rows(self, name: str) -> list[dict[str, Any]]:
        return read_rows(self.path / name)

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        """Sizes of files of rows in bytes, 0 if there is none yet."""
        files = {name: self.path / name for name in names}
        return {name: file.stat().st_size if file.exists() else 0 for name, file in files.items()}

    def lock(self) -> IO[str]:
        """An open file; no other process can write this run until it is closed. Raises Busy.

        The system releases the lock when the process ends, even if it is killed.
        """
        import fcntl  # not on every system, and readers do not need it

        with os_errors("out", self.path):
            file = (self.path / ".lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read() or "another process"
            file.close()
            raise Busy(f"{owner} is writing this run") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        return file

    def busy(self) -> bool:
        """Whether a process is writing this run now."""
        try:
            self.lock().close()
        except Busy:
            return True
        return False

    def truncate(self, offsets: dict[str, int]) -> None:
        """Cut files of rows back to an earlier size, in bytes."""
        for name, size in offsets.items():
            if self.writes and (self.path / name).exists():
                os.truncate(self.path / name, size)
                self._size[name] = size

    def marks(self, names: Sequence[str]) -> dict[str, Any]:
        """`offsets`, the sizes of the files of rows, and `crc32s`, their checksums up to there.

        Stored in checkpoints, and as `rows` in the manifest of a finished run.
        """
        sizes = self.sizes(names)
        return {"offsets": sizes, "crc32s": {n: self._crc32(n, size) for n, size in sizes.items()}}

    def refuse_changed(self, marks: dict[str, Any]) -> None:
        """Raises InputError if a file no longer begins with the bytes that `marks` describe."""
        written = marks.get("crc32s", {})
        for name, size in marks["offsets"].items():
            found = self._crc32(name, size)
            if found is None or found != written.get(name, found):
                reason = f"{'shorter than' if found is None else 'not'} what this run wrote"
                remedy = f"restore the file, or remove {self.path} to start again"
                raise InputError(self.path / name, "", reason, remedy)

    def _crc32(self, name: str, size: int) -> int | None:
        """Checksum of the first `size` bytes of a file; None if the file is shorter."""
        file = self.path / name
        start = file.read_bytes()[:size] if file.exists() else b""
        return zlib.crc32(start) if len(start) == size else None


def runs(path: str | Path) -> list[Path]:
    """The run directories of a study, or `path` itself if it is a run."""
    path = Path(path)
    if (path / "manifest.json").exists():
        return [path]
    return sorted(manifest.parent for manifest in path.glob("runs/*/manifest.json"))


class DiskFull(RuntimeError):
    """The disk is full; the run resumes once there is room."""


@contextlib.contextmanager
def needing_room(path: str | Path) -> Iterator[None]:
    """Raises DiskFull if something inside fails because the disk is full or a quota is used up."""
    try:
        yield
    except Exception as error:
        if not _says_full(error):
            raise
        free = shutil.disk_usage(path).free
        sizes = [_size(saved) for saved in Path(path).glob("checkpoints/*")]
        need = f" for checkpoints of {max(sizes) / 1e6:.2g} MB" if sizes else ""
        reason = f"out={path}: the disk is full or a quota used up ({free / 1e6:.2g} MB are free)"
        raise DiskFull(f"{reason}; make room{need}, then repeat the command to resume") from error


def _says_full(error: BaseException | None) -> bool:
    """Whether the error or one of its causes says so; checkpoint libraries keep only the text."""
    while error is not None:
        words = any(os.strerror(number) in str(error) for number in FULL)
        if words or getattr(error, "errno", None) in FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
