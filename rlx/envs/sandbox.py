"""Run a foreign Python program in isolation and return its output. See rlx.envs.jail.

    run(source, stdin)             one program, its standard output
    converse(server, client)       two programs, isolated from each other, with a socket between
    Session(source)                one program that answers line by line

A program is judged from outside, by its output. Nothing of it outlives the call: the process that
holds its namespace is killed, and with it everything inside. Linux only.
"""

from __future__ import annotations

import contextlib
import glob
import marshal
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rlx.errors import InputError

JAIL = str(Path(__file__).with_name("jail.py"))
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
CHUNK = 65536
TICK_S = 0.02  # between two polls of a run's memory


class SandboxError(Exception):
    """Programs cannot be isolated here: nothing was run."""


@dataclass(frozen=True)
class Limits:
    """Limits of one program and all its processes.

    Memory: one process never maps more. The sum over processes is polled every TICK_S, and two
    polls above the limit end the run, so memory written in between comes on top (120 MB on two
    cores), as do buffers of the kernel (see rlx.envs.jail). Polling needs a kernel that lists
    children (CONFIG_PROC_CHILDREN, set by distributions); without it the sum is limited only by
    `processes` times memory.
    """

    wall_s: float = 10.0
    cpu_s: int = 10  # of one process
    memory_mb: int = 512
    processes: int = 8  # of a run, including threads
    file_mb: int = 16  # of a file, and of all files together
    output_kb: int = 1024


@dataclass(frozen=True)
class Result:
    """`status`: `exit N`, `signal N`, or the limit that ended it: `time`, `memory`, `output`."""

    status: str
    stdout: bytes

    @property
    def ok(self) -> bool:
        return self.status == "exit 0"


class _Jail:
    """A running program."""

    def __init__(self, source: str, limits: Limits, isolate: bool, channel: int, stdin, stdout):
        self.limits = limits
        self.above, self.next_look = False, 0.0
        python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
        self.scratch = (
            None
            if isolate
            else tempfile.TemporaryDirectory(prefix="rlx-unsafe-", ignore_cleanup_errors=True)
        )
        self.report, report = os.pipe()
        code = os.memfd_create("source")
        with os.fdopen(os.dup(code), "wb") as f:
            f.write(source.encode(errors="replace"))
        spec = {
            "isolate": isolate,
            "limits": asdict(limits) | ({} if isolate else {"processes": 4096}),
            "paths": [*SYSTEM, *DEVICES, os.path.realpath(sys.base_prefix)],
            "argv": [python, "-sBP", "-X", "utf8", "main.py"],
            "env": {"PYTHONHASHSEED": "0", "CHANNEL": str(channel), "PATH": "/usr/bin:/bin"},
            "source": code,
            "report": report,
            "channel": channel,
        }
        fds = (code, report, *([channel] if channel >= 0 else []))
        self.process = subprocess.Popen(
            [python, "-SEsB", JAIL, marshal.dumps(spec).hex()],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
            pass_fds=fds,
            cwd=self.scratch.name if self.scratch else "/",
            env={},
            start_new_session=True,
        )
        os.close(code)
        os.close(report)

    def over(self) -> bool:
        """Whether program and descendants exceeded the memory limit at two polls in a row.

        One poll is not enough: a process that is forking shares all its memory for a moment.
        """
        now, most = time.monotonic(), self.limits.memory_mb * 1024
        if now < self.next_look:
            return False
        pids = [*_below(self.process.pid)][1:]  # the first is PID 1 of the namespace
        above = (
            sum(_kb(pid, "status", "VmRSS", "VmSwap", "VmPTE") for pid in pids) > most
            and sum(_shared_kb(pid) for pid in pids) > most
        )
        over, self.above, self.next_look = above and self.above, above, now + TICK_S
        return over

    def end(self) -> str:
        """Kill what is left; returns the first line of the report. Raises SandboxError."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait()
        with os.fdopen(self.report, "rb") as f:  # at its end no process inside is left
            line = f.readline().decode(errors="replace").strip()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if self.scratch:
            self.scratch.cleanup()
        if line.startswith("refused"):
            raise SandboxError(line.removeprefix("refused: "))
        return line or "signal 9"


def _below(pid: int | str) -> Iterator[str]:
    """All descendants of a process, whichever thread started them."""
    for file in glob.glob(f"/proc/{pid}/task/*/children"):
        with contextlib.suppress(OSError):  # it has ended
            for child in Path(file).read_text().split():
                yield child
                yield from _below(child)


def _kb(pid: str, file: str, *names: str) -> int:
    """Sum of rows of a /proc file; maximum over threads, since the first may have ended."""
    most = 0
    for path in glob.glob(f"/proc/{pid}/task/*/{file}"):
        with contextlib.suppress(OSError):  # it has ended, or may not be read
            rows = map(str.split, Path(path).read_text().splitlines())
            most = max(most, sum(int(row[1]) for row in rows if row[0].rstrip(":") in names))
    return most


def _shared_kb(pid: str) -> int:
    """Memory and page tables, with shared pages divided among processes if that can be read."""
    pages = _kb(pid, "smaps_rollup", "Pss", "SwapPss") or _kb(pid, "status", "VmRSS", "VmSwap")
    return pages + _kb(pid, "status", "VmPTE")


def run(source: str, stdin: str = "", limits: Limits = Limits(), isolate: bool = True) -> Result:  # noqa: B008
    """Run `source` on `stdin`. Raises SandboxError if it cannot be isolated.

    `isolate=False` keeps only the resource limits and the private directory.
    """
    deadline = time.monotonic() + limits.wall_s
    jail = _Jail(source, limits, isolate, -1, subprocess.PIPE, subprocess.PIPE)
    out = bytearray()
    why = _exchange(jail, stdin.encode(errors="replace"), out, deadline)
    why = why or _wait([jail], deadline)
    line = jail.end()
    return Result(why or line, bytes(out[: limits.output_kb * 1024]))


def _exchange(jail: _Jail, data: bytes, out: bytearray, deadline: float) -> str:
    """Write `data` and read all of `out`; returns the limit that was reached, or ""."""
    process = jail.process
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        while not (why := _exceeded([jail], deadline)):
            for key, _ in selector.select(TICK_S):
                if key.fileobj is process.stdin:
                    data = _write(selector, process.stdin, data)
                elif chunk := os.read(process.stdout.fileno(), CHUNK):
                    out += chunk
                else:
                    return ""
            if len(out) > jail.limits.output_kb * 1024:
                return "output"
        return why


def _write(selector, stream, data: bytes) -> bytes:
    """The rest of `data`; closes the stream at its end, or if nobody reads."""
    try:
        data = data[os.write(stream.fileno(), data[:CHUNK]) :]
    except BrokenPipeError:
        data = b""
    if not data:
        selector.unregister(stream)
        stream.close()
    return data


def _wait(jails: Sequence[_Jail], deadline: float) -> str:
    """Wait for the last one to end; returns the limit that was reached, or ""."""
    while not (why := _exceeded(jails, deadline)):
        with contextlib.suppress(subprocess.TimeoutExpired):
            jails[-1].process.wait(TICK_S)
            return ""
    return why


def _exceeded(jails: Sequence[_Jail], deadline: float) -> str:
    if time.monotonic() >= deadline:
        return "time"
    return "memory" if any(jail.over() for jail in jails) else ""


def converse(
    server: str,
    client: str,
    limits: Limits = Limits(),  # noqa: B008
    isolate: bool = True,
) -> Result:
    """Run both, with a socket between them at the descriptor in $CHANNEL; the client's result.

    Each has its own limits, except for the time.
    """
    deadline = time.monotonic() + limits.wall_s
    quiet = (subprocess.DEVNULL, subprocess.DEVNULL)
    ends = socket.socketpair()
    jails: list[_Jail] = []
    try:
        for source, end in zip((server, client), ends, strict=True):
            jails.append(_Jail(source, limits, isolate, end.fileno(), *quiet))
            end.close()
        status = _wait(jails, deadline)
    finally:
        for end in ends:
            end.close()
        lines = [jail.end() for jail in jails]
    return Result(status or lines[1], b"")


class Session:
    """A program that reads a line from the descriptor in $CHANNEL and writes one back.

    `limits.cpu_s` is for the whole session, `wall_s` for each answer. The caller must call `end`.
    """

    def __init__(self, source: str, limits: Limits, isolate: bool = True):
        self.channel, theirs = socket.socketpair()
        quiet = (subprocess.DEVNULL, subprocess.DEVNULL)
        self.jail = _Jail(source, limits, isolate, theirs.fileno(), *quiet)
        theirs.close()
        self.channel.setblocking(False)
        self.kept = b""

    def ask(self, line: str) -> Result:
        """`ok` with the answer, or the reason why there is none, after which the caller ends it.

        Raises SandboxError if the program could not be isolated.
        """
        data = f"{line}\n".encode(errors="replace")
        deadline = time.monotonic() + self.jail.limits.wall_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.channel, selectors.EVENT_READ | selectors.EVENT_WRITE)
            while not (why := _exceeded([self.jail], deadline)):
                answer, found, rest = self.kept.partition(b"\n")
                if found:
                    self.kept = rest
                    return Result("exit 0", answer)
                if len(self.kept) > self.jail.limits.output_kb * 1024:
                    return Result("output", b"")
                for _, event in selector.select(TICK_S):
                    try:
                        if event & selectors.EVENT_WRITE:
                            data = data[self.channel.send(data) :] if data else data
                        if event & selectors.EVENT_READ:
                            chunk = self.channel.recv(CHUNK)
                            if not chunk:
                                return Result(self.end(), b"")
                            self.kept += chunk
                    except BlockingIOError:
                        pass
                    except OSError:  # it has ended
                        return Result(self.end(), b"")
                    if not data:
                        selector.modify(self.channel, selectors.EVENT_READ)
        return Result(why, b"")

    def end(self) -> str:
        """Kill what is left, once; returns its status. Raises SandboxError."""
        if self.channel.fileno() < 0:
            return "over"
        self.channel.close()
        return self.jail.end()


def why_not() -> str:
    """Why programs cannot be isolated here; empty if they can."""
    if sys.platform != "linux":
        return f"{sys.platform} has no namespaces"
    try:
        result = run("print('in')", limits=Limits(wall_s=60))
    except (OSError, SandboxError) as error:
        return str(error)
    return "" if result.stdout == b"in\n" else f"a test program ended with {result.status}"


def require(env: str) -> None:
    """Raises InputError if the programs of this environment cannot be isolated."""
    if reason := why_not():
        remedy = "run as root or where user namespaces are allowed, or trust them with "
        remedy += "env.kwargs.unsafe=true"
        raise InputError("env.name", env, f"answers cannot be isolated here ({reason})", remedy)
