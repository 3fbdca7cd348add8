"""Grading in separate processes, because a grader may hang, crash or exhaust memory.

Each worker builds the environment from the arguments of `rlx.envs.base.make`, does not load JAX,
grades in its main thread and dies with the process that started it. A worker that does not answer
within `timeout_s` is killed and replaced. An answer without a score counts as 0, with its reason.

The environment's replies are made in the same way. All requests of one episode go to one worker, so
state that the environment keeps about an episode is found again, unless that worker was replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import functools
import math
import os
import reprlib
import resource
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from rlx.envs import base
from rlx.errors import InputError
from rlx.problem import Problem

MEMORY_BYTES = 8 << 30  # address space of a worker
START_S = 600  # to import the task and create its problems
PR_SET_PDEATHSIG = 1

# A problem, the completion or the turns of an episode, and whether it stopped.
Item = tuple[Problem, str | tuple[str, ...], bool]
Asked = tuple[Problem, tuple[str, ...], int]  # a problem, its turns, most characters of a reply


class Failure(enum.IntEnum):
    """Why an answer has no score; negative, so that it can be sent in place of a score."""

    TIMEOUT = -1
    ERROR = -2

    @property
    def counter(self) -> str:
        """The name under which such answers are counted."""
        return f"{self.name.lower()}s"


class Outcome(NamedTuple):
    """A score; or 0, the kind of failure and its reason. `text`: a reply, if any."""

    score: float
    reason: str = ""
    failure: Failure | None = None
    text: str | None = None


def failed(reason: str) -> Outcome:
    return Outcome(0.0, f"error: {reason}"[:300], Failure.ERROR)


def guarded(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Turns any exception of the environment into an outcome."""

    @functools.wraps(function)
    def outcome(*args: Any) -> Outcome:
        try:
            return function(*args)
        except KeyboardInterrupt:  # the user's
            raise
        except BaseException as error:  # exit() in a grader must not end the run
            return failed(f"{type(error).__name__}: {base.first_line(error)}")

    return outcome


@guarded
def judge(env: base.Env, item: Item) -> Outcome:
    """The environment's score, which must be a number in [0, 1]."""
    score = env.grade(*item)
    if isinstance(score, str | bytes):
        return failed(f"score {score!r} is text, not a number")
    score = float(score)
    if not (math.isfinite(score) and 0 <= score <= 1):
        return failed(f"score {score} is outside [0, 1]")
    return Outcome(score)


@guarded
def respond(env: base.Env, asked: Asked) -> Outcome:
    """The environment's reply, which must be text of limited length, or None."""
    problem, turns, most = asked
    text = env.reply(problem, turns)
    if text is None:
        return Outcome(0.0)
    if not isinstance(text, str):
        return failed(f"reply {reprlib.repr(text)} is a {type(text).__name__}, not text")
    if len(text) > most:
        return failed(f"a reply of {len(text)} characters, more than episode.reply_chars={most}")
    text.encode()  # raises on a lone surrogate
    return Outcome(0.0, text=str.__str__(text))  # a plain str, even of a subclass


WORK = {"grade": judge, "reply": respond}


def home(item: Any, workers: int) -> int | None:
    """The worker of an episode, by a hash of its start; None for a single answer: any worker."""
    problem, turns = item[0], item[1]
    if isinstance(turns, str):
        return None
    return zlib.crc32(f"{problem.id} {turns[0]}".encode(errors="replace")) % workers


class _Worker:
    """A process and its pipe, the index of its current item and its deadline."""

    def __init__(self, arguments: dict[str, Any]):
        self.pipe, theirs = Pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rlx.envs.grading", str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
        theirs.close()
        self.pipe.send(arguments)
        self.index, self.deadline, self.ready = -1, time.monotonic() + START_S, False

    def give(self, index: int, kind: str, item: Any, timeout_s: float) -> None:
        self.index, self.timeout_s = index, timeout_s
        self.deadline = time.monotonic() + timeout_s
        with contextlib.suppress(BrokenPipeError):  # the process died: `_wait` handles it
            self.pipe.send((kind, item))

    def kill(self) -> int:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.pipe.close()
        return self.process.wait()


class Graders:
    """`grade` and `reply` for lists of items, in order.

    `ungraded` counts the items without a score by kind of failure, and `reasons` has the last
    reason of each kind; an episode whose environment fails to reply has no score. With
    `timeout_s=0` the environment grades in this process, without a limit. `on_error="stop"` raises
    InputError at the first item without a score. `scorer`: a reward model (rlx.rollout.scorer),
    which reads tokens.
    """

    def __init__(
        self,
        env: base.Env,
        arguments: dict[str, Any],
        *,
        timeout_s: float = 0.0,
        workers: int = 0,
        on_error: str = "zero",
        scorer: Any = None,
    ):
        self.env, self.arguments, self.timeout_s = env, arguments, timeout_s
        self.on_error, self.scorer = on_error, scorer
        self.ungraded = {failure.counter: 0 for failure in Failure}
        self.reasons: dict[str, str] = {}
        self._lock = threading.Lock()  # generator and learner both grade
        # The kernel ends a worker with the thread that started it, so that thread has to stay.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="graders")
        self._workers = [self._start() for _ in range(workers if timeout_s else 0)]

    def _start(self) -> _Worker:
        return self._starter.submit(_Worker, self.arguments).result()

    def grade(self, items: Sequence[Item]) -> list[Outcome]:
        """One outcome per item. Raises InputError with on_error="stop", or if no worker starts."""
        return self._settled("grade", items, self.timeout_s, "has no score for")

    def reply(self, asked: Sequence[Asked], timeout_s: float) -> list[Outcome]:
        """One reply per item, in `text`; raises as `grade`."""
        return self._settled("reply", asked, timeout_s, "does not reply to")

    def _settled(self, kind: str, items: Sequence[Any], timeout_s: float, lacks: str):
        with self._lock:
            if self.timeout_s:
                outcomes = self._hand_out(kind, items, timeout_s)
            else:
                outcomes = [WORK[kind](self.env, item) for item in items]
        for item, outcome in zip(items, outcomes, strict=True):
            if outcome.failure is not None:
                self.note(item[0], lacks, outcome)
        return outcomes

    def note(self, problem: Problem, lacks: str, outcome: Outcome) -> None:
        """Count a failure, or stop; lacks: what the environment did not do, for the message."""
        self.ungraded[outcome.failure.counter] += 1
        self.reasons[outcome.failure.counter] = outcome.reason
        if self.on_error == "stop":
            raise self._complaint(problem, lacks, outcome.reason)

    @property
    def timeouts(self) -> int:
        return self.ungraded[Failure.TIMEOUT.counter]

    @property
    def errors(self) -> int:
        return self.ungraded[Failure.ERROR.counter]

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.kill()
        self._workers = []
        self._starter.shutdown()

    def _complaint(self, problem: Problem, lacks: str, reason: str) -> InputError:
        name, prompt = self.arguments["name"], problem.prompt[:60]
        return InputError(
            "env.on_grade_error",
            "stop",
            f"{name} {lacks} an answer to problem {problem.id} ({prompt!r}): {reason}",
            "fix the grader, or set env.on_grade_error=zero",
        )

    def _hand_out(self, kind: str, items: Sequence[Any], timeout_s: float) -> list[Outcome]:
        """Each free worker takes the next item that does not belong to another worker."""
        outcomes: dict[int, Outcome] = {}
        todo = deque((i, home(item, len(self._workers))) for i, item in enumerate(items))
        try:
            while len(outcomes) < len(items):
                for n, worker in enumerate(self._workers):
                    if not worker.ready or worker.index >= 0:
                        continue
                    mine = next((job for job in todo if job[1] in (None, n)), None)
                    if mine is not None:
                        todo.remove(mine)
                        worker.give(mine[0], kind, items[mine[0]], timeout_s)
                outcomes |= self._wait()
        except BaseException:  # workers still hold items of this call, so they cannot be reused
            self.close()
            raise
        return [outcomes[i] for i in range(len(items))]

    def _wait(self) -> dict[int, Outcome]:
        """Wait until a worker answers, dies or times out; outcomes by item."""
        settled = {}
        first = min(worker.deadline for worker in self._workers)
        left = None if first == math.inf else max(first - time.monotonic(), 0)
        answered = wait([worker.pipe for worker in self._workers], left)
        for i, worker in enumerate(self._workers):
            late = worker.deadline <= time.monotonic()
            if worker.pipe in answered:
                settled[worker.index] = self._receive(worker)
            elif late and not worker.ready:
                raise self._no_start(f"no answer for {START_S:g} s")
            elif late:
                reason = f"timeout after {worker.timeout_s:g} s"
                settled[worker.index] = Outcome(0.0, reason, Failure.TIMEOUT)
                worker.kill()
            if worker.pipe.closed:
                self._workers[i] = self._start()
            elif worker.pipe in answered:
                worker.index, worker.deadline = -1, math.inf
        return {index: outcome for index, outcome in settled.items() if index >= 0}

    def _receive(self, worker: _Worker) -> Outcome:
        """The worker's outcome; closes the pipe if it died. InputError if it failed to start."""
        try:
            message = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            code = worker.kill()
            message = failed(f"the grader's process ended with {code}")
        if not worker.ready and isinstance(message, Outcome):
            raise self._no_start(message.reason or "it did not start")
        worker.ready = True
        return message if isinstance(message, Outcome) else Outcome(0.0)

    def _no_start(self, reason: str) -> InputError:
        remedy = "look at its output above, or set env.grade_timeout_s=0 to grade without one"
        name = self.arguments["name"]
        return InputError("env.name", name, f"{reason} in a grading process", remedy)


def serve(pipe: Connection, parent: int) -> None:
    """The main loop of a worker."""
    if sys.platform == "linux":  # elsewhere it ends after its current item
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # the parent died already
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        env = base.make(**pipe.recv())
    except Exception as error:
        pipe.send(failed(f"{type(error).__name__}: {error}"))
        return
    pipe.send("ready")
    while True:
        try:
            kind, item = pipe.recv()
        except EOFError:
            return
        pipe.send(WORK[kind](env, item))


if __name__ == "__main__":
    # The module name under which the parent unpickles outcomes.
    from rlx.envs import grading

    grading.serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
