"""Chat templates of checkpoints, rendered in a separate process.

A template is foreign code: it may raise anything, loop for ever or fill the memory. The process has
`CPU_S` seconds per prompt and `MEMORY_BYTES`; it ends with the Template object.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

from rlx.errors import InputError

CPU_S = 2.0
MEMORY_BYTES = 1 << 30
LONGEST = 1 << 20  # characters of a prompt


class Template:
    """Renders as `transformers` does, except for the date: a prompt is the same every day.

    Raises InputError, naming the file, if it is not a template or fails on a prompt.
    """

    def __init__(self, source: str, file: str | Path):
        self.source, self.file, self.lock, self.process = source, file, threading.Lock(), None
        with self.lock:
            self._start()

    def __call__(self, **values: Any) -> str:
        with self.lock:
            if self.process is None:
                self._start()
            return self._ask(values, "the chat template raised: {}", "change the prompt, or {}")

    def _start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        self.stop = weakref.finalize(self, _stop, self.process)
        self._ask(self.source, "the chat template is invalid ({})", "set env.chat=false, or {}")

    def _ask(self, request: Any, reason: str, remedy: str) -> str:
        """The text in the process's answer."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        except BaseException:  # an interrupt: the pending answer must not go to the next request
            self._end()
            raise
        kind, text = json.loads(answer) if answer.endswith("\n") else ("died", "")
        if kind == "text":
            return text
        if kind == "died":
            status = self.process.wait()
            late = status == -signal.SIGPROF
            text = f"more than {CPU_S:g} s" if late else f"its process ended with status {status}"
        self._end()
        remedy = remedy.format(f"correct {self.file}")
        raise InputError("env.chat", True, reason.format(text), remedy)

    def _end(self) -> None:
        self.stop()
        self.process = None


def _stop(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        try:
            pipe.close()
        except BrokenPipeError:  # unsent data
            pass


def compiled(source: str):
    """The template, compiled as in `transformers`."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks the assistant's text and does not change it."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str):
        raise TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        options = {"separators": separators, "sort_keys": sort_keys}
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = tojson
    return environment.from_string(source)


def rendered(template, values: dict[str, Any]) -> str:
    """Rendered in pieces, so that it stops early. ValueError beyond LONGEST characters."""
    pieces, room = [], LONGEST
    for piece in template.generate(**values):
        room -= len(piece)
        if room < 0:
            raise ValueError(f"it writes more than {LONGEST} characters")
        pieces.append(piece)
    return "".join(pieces)


def main() -> None:
    """First line: the template; then one line of values each. One answer per line."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    template = None
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, CPU_S)  # kills the process
        try:
            if template is None:
                template, text = compiled(json.loads(line)), ""
            else:
                text = rendered(template, json.loads(line))
            answer = ["text", text]
        except Exception as error:
            answer = ["error", str(error)[:1000] or type(error).__name__]
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
