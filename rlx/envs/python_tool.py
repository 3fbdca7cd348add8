"""Mathematical questions, with a Python interpreter as a tool.

A turn whose last fenced block is Python (rlx.envs.code.last_block) is run, and what it prints is
the reply; a turn without one is the answer, graded as in rlx.envs.math. The interpreter keeps its
variables from turn to turn: each episode has one sandbox (rlx.envs.sandbox), which ends with it.

A session is identified by the cells that it has run (rlx.envs.sessions), and rebuilt by running
them again. If a cell ends the interpreter, the reply says so, and the next cell gets a new, empty
one.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlx.envs import base, sandbox
from rlx.envs.code import last_block
from rlx.envs.math import Math
from rlx.envs.sessions import Sessions
from rlx.errors import InputError
from rlx.problem import Problem

CONSOLE = Path(__file__).with_name("console.py")
HINT = (
    "You may compute: write a block of Python between ```python and ``` and end your turn, and you "
    "are shown what it prints. Give the answer in \\boxed{}.\n"
)
LOST = "[the interpreter was ended: "
SILENT = "[no output]"
CPU_S = 60  # of a whole session


class PythonTool(Math):
    """`wall_s` limits a cell, `memory_mb` an interpreter, `output_chars` the output that is shown
    of a cell; `hint` is added to the end of every question.

    The other arguments are those of rlx.envs.math. Raises InputError as that does, and if programs
    cannot be isolated; `unsafe=True` runs them without isolation, only with limits on resources.
    """

    def __init__(
        self,
        *,
        wall_s: float = 5.0,
        memory_mb: int = 256,
        output_chars: int = 1000,
        unsafe: bool = False,
        hint: str = HINT,
        **rows: Any,
    ):
        given = {"train_prompts", "heldout_prompts", "seed"}
        mine = {key: x for key, x in rows.items() if key not in given}
        base.check_arguments("python_tool", Math, mine, given)
        for key, value, least in (("wall_s", wall_s, 0.1), ("memory_mb", memory_mb, 64)):
            if value < least:
                raise InputError(f"env.kwargs.{key}", value, "too little", f"give {least} or more")
        if output_chars < 1:
            raise InputError("env.kwargs.output_chars", output_chars, "shows nothing", "raise it")
        if not unsafe:
            sandbox.require("python_tool")
        super().__init__(**rows)
        self.train, self.heldout = (
            [replace(problem, prompt=problem.prompt + hint) for problem in problems]
            for problems in (self.train, self.heldout)
        )
        seen = (self.tokenizer.chars, hint, string.printable)
        self.tokenizer = base.characters(seen)
        self.max_prompt_tokens += len(hint)
        self.limits = sandbox.Limits(wall_s=wall_s, cpu_s=CPU_S, memory_mb=memory_mb)
        self.isolate, self.output_chars = not unsafe, output_chars
        self.sessions = Sessions(sandbox.Session.end)

    def reply(self, problem: Problem, turns: tuple[str, ...]) -> str | None:
        """What the last turn's block prints; None if it has no block.

        Raises rlx.envs.sandbox.SandboxError if nothing could be run.
        """
        if last_block(turns[-1]) is None:
            return None
        *before, cell = cells(turns)
        session = self._session(problem.id, tuple(before))
        shown, over = self._run(session, cell)
        if over:
            session.end()
        else:
            self.sessions.keep((problem.id, (*before, cell)), session)
        return shown

    def _session(self, problem: int, before: tuple[str, ...]) -> sandbox.Session:
        """A session that has run these cells; a new one if none is kept."""
        if session := self.sessions.take((problem, before)):
            return session
        source = f"{CONSOLE.read_text()}\nserve({self.output_chars})\n"
        session = sandbox.Session(source, self.limits, self.isolate)
        for cell in before:
            self._run(session, cell)
        return session

    def _run(self, session: sandbox.Session, cell: str) -> tuple[str, bool]:
        """What a cell prints, and whether the session is over."""
        result = session.ask(json.dumps(cell))
        if not result.ok:
            return f"{LOST}{result.status}]", True
        try:
            text, n = json.loads(result.stdout)
            text = text.encode(errors="replace").decode()
        except (ValueError, TypeError, AttributeError):  # it wrote to the channel itself
            return f"{LOST}it spoke out of turn]", True
        more = f"\n[{n - len(text)} more characters]" if n > len(text) else ""
        return text.rstrip("\n") + more or SILENT, False

    def grade(self, problem: Problem, turns: tuple[str, ...], stopped: bool) -> float:
        """The score of the last turn; the episode's session is ended."""
        self.sessions.over((problem.id, tuple(cells(turns))))
        return super().grade(problem, turns[-1], stopped)

    def well_formed(self, turns: tuple[str, ...], stopped: bool) -> bool:
        return super().well_formed(turns[-1], stopped)

    def ceiling(self, problems: Sequence[Problem], max_new_tokens: int, **turns: int) -> None:
        """None: the best score is unknown."""
        return None


def cells(turns: Sequence[str]) -> list[str]:
    """The cells given to the current interpreter: all since the last one that was ended."""
    replies = [*turns[1::2], ""]
    ended = [i for i, reply in enumerate(replies) if reply.startswith(LOST)]
    blocks = map(last_block, turns[2 * (ended[-1] + 1) if ended else 0 :: 2])
    return [block for block in blocks if block is not None]
