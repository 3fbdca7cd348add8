"""The cells of a sweep: their axes, the names of their directories, and checks before training.

The axes of a run are its overrides that change what it computes, by name and value, wherever they
are written: `{"ablation": "prompt_norm", "optim.learning_rate": 0.0002}`. Recipe, axes and seed
make the name of its directory, so a cell has the same name in a sweep and alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from rlx.config import WHERE, Config, Options, difference, options
from rlx.errors import InputError
from rlx.record import Busy, RunRecord, contents, refuse_other_contents, write_json

NO_AXES = ("seed", "sweep", "recipe", "study")  # nor keys that begin with one of these:
NO_SECTIONS = (*WHERE, "axes", "hydra")
LONGEST = 100  # characters of a directory name
PLAN = ".sweep.json"  # configurations of the cells of the latest sweep, beside their directories,
FILES = "files"  # ... and the contents of the files that they name


@functools.lru_cache(maxsize=10_000)
def parsed(word: str) -> tuple[str, Any]:
    """(key, value) of an override. Raises HydraException."""
    override = OverridesParser.create().parse_override(word)
    if override.is_sweep_override():
        return override.key_or_group, word.partition("=")[2].split(",")
    value = override.value()
    whole = isinstance(value, float) and value.is_integer()
    return override.key_or_group, int(value) if whole else value


def directory(out: object) -> str:
    """`out`, if it can be the name of a directory. Raises InputError."""
    if not isinstance(out, str | int | float) or not str(out).strip() or "\0" in str(out):
        raise InputError("out", out, "not a directory name", "give one, or leave it out")
    return str(out)


def quoted(value: str) -> str:
    """A value that Hydra parses as exactly this text."""
    inside = re.sub(r"(\\*)('|$)", lambda end: 2 * end[1] + (r"\'" if end[2] else ""), value)
    return f"'{inside}'"


def axes(words: Sequence[str]) -> dict[str, Any]:
    """The levels of a run's axes, from its overrides; if `recipe` is given, `algo` is an axis."""
    given = dict(map(parsed, words))
    label = NO_AXES if "recipe" in given else (*NO_AXES, "algo")
    seen = {key: x for key, x in sorted(given.items()) if key not in label}
    return {key: x for key, x in seen.items() if key.split(".")[0] not in NO_SECTIONS}


def name(recipe: str, levels: Mapping[str, Any], seed: int) -> str:
    """Name of a run's directory: `cispo-optim.learning_rate_0.0002-s0`.

    Lower-case letters, digits and `_ . -` only, at most LONGEST characters. If anything had to be
    left out or rewritten for that, a hash at the end keeps names distinct.
    """
    pairs = [f"{key}_{_word(levels[key])}" for key in sorted(levels)]
    plain = "-".join([recipe, *pairs])
    head, end = re.sub(r"[^a-z0-9_.-]+", "_", plain.lower()).strip(".-"), f"-s{seed}"
    exact = [recipe, *(x for x in levels.values() if not isinstance(x, bool | int | float | None))]
    if head == plain and len(head + end) <= LONGEST and all(map(_is_plain, exact)):
        return head + end
    text = json.dumps([recipe, dict(levels), seed], sort_keys=True, default=str)
    end += f"-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    return head[: LONGEST - len(end)] + end


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _is_plain(value: Any) -> bool:
    """Whether a word is unambiguous: no other value has the same text."""
    known = ("true", "false", "null", "nan", "inf")
    return isinstance(value, str) and bool(re.fullmatch("[a-z_][a-z0-9_.]*", value)) and (
        value not in known
    )  # fmt: skip


def split(params: Mapping[str, Any], words: Sequence[str]) -> list[list[str]]:
    """The overrides of every cell of a sweep: its file's `params` and the words of the command,
    which take precedence. The sweep's own file comes first, so that cells override it.
    """
    given = [f"{key}={value}" for key, value in params.items()]
    overrides = OverridesParser.create().parse_overrides([*given, *words])
    kept = [override for override in overrides if override.key_or_group != "out"]
    (batch,) = BasicSweeper.split_arguments(kept, None)
    return [sorted(cell, key=lambda word: not word.startswith("+sweep=")) for cell in batch]


def exit_status_of(command: Sequence[str]) -> int:
    """Of the process of a sweep. Ctrl-C in a terminal reaches it too; it is waited for meanwhile,
    since it saves its state before it ends (`subprocess.run` would kill it after 0.25 s).
    """
    with subprocess.Popen(command) as sweep:
        while sweep.returncode is None:
            with suppress(KeyboardInterrupt):
                sweep.wait()
    return sweep.returncode


def last_update(steps: int, every: int, share: float) -> int:
    """The update at a share of a run, rounded to an evaluation."""
    return min(steps, every * math.ceil(round(share * steps / every, 6)))


# ------------------------------------------------------------------ before anything is trained


@contextmanager
def claimed(
    out: Path, words: Sequence[Sequence[str]], make: Callable[[Sequence[str]], Config]
) -> Iterator[list[Config]]:
    """A context in which no other process runs a sweep in `out`; yields the cells' configurations.

    words: the overrides of each cell; make: makes its configuration from them, and may raise.

    Raises:
        InputError: another process does; a configuration cannot be used; two cells have the same
            directory or compute the same, also if they differ in what their loss does not read; or
            a directory holds a run that differs from its cell.
    """
    from rlx.train import recipe  # slow to load

    plan: dict[str, Options] = {}
    seen: dict[str, tuple[Sequence[str], Options]] = {}
    configs = [make(cell) for cell in words]
    for cell, config in zip(words, configs, strict=True):
        path, now = Path(config.out), options(asdict(config))
        unread = recipe.unread(config.algo.loss)
        read = {key: x for key, x in now.items() if key not in unread}
        run = json.dumps(read, sort_keys=True, default=str)
        for same, what in ((path.name, "would have this directory"), (run, "are this run")):
            if same in seen:
                other, then = seen[same]
                apart = set(cell) ^ set(other)
                both = f"with {' and '.join(sorted(apart))}" if apart else "with the same words"
                idle = [key for key in unread if same == run and then[key] != now[key]]
                if idle:
                    both += f": algo.loss={config.algo.loss} does not read {', '.join(idle)}"
                remedy = "leave one out, or sweep them separately with out=DIR"
                raise InputError("out", path, f"two cells {what}, {both}", remedy)
        seen[path.name] = seen[run] = cell, now
        plan[path.name] = now | {FILES: contents(now)}
        same_as_before(path, config, now)
    try:
        lock = RunRecord(out / "runs").lock()
    except Busy:
        reason = "another process runs a sweep here"
        raise InputError("out", out, reason, "wait for it, or give another out=DIR") from None
    with lock:
        write_json(out / "runs" / PLAN, plan)
        yield configs


def same_as_before(path: Path, config: Config, now: Options) -> None:
    """Raises InputError if the run at `path` computes something else than the configuration."""
    file = path / "manifest.json"
    before = RunRecord(path, writes=False).manifest if file.exists() else {}
    if "config" not in before:
        return
    refuse_other_contents(before.get("files", {}), contents(now), now, path)
    then = options(before["config"], before.get("migrations", 0))
    if config.model.path:  # the manifest has its architecture and tokenizer
        kept = lambda key: not key.startswith("model.") and key != "env.tokenizer"  # noqa: E731
        then, now = ({k: x for k, x in part.items() if kept(k)} for part in (then, now))
    if other := difference(then, now):
        remedy = "change the sweep back, or give another out=DIR"
        raise InputError("out", path, f"holds a run with {other}", remedy)


def as_planned(out: Path, config: Config) -> None:
    """Raises InputError if a cell of the sweep in `out` has changed since the sweep began."""
    file = out / "runs" / PLAN
    plan = json.loads(file.read_text()) if file.exists() else {}
    then, now = plan.get(Path(config.out).name, {}), options(asdict(config))
    refuse_other_contents(then.pop(FILES, {}), contents(now), now, out)
    if then and (other := difference(then, now)):
        reason = f"its sweep was changed while it ran: {other}"
        raise InputError("out", config.out, reason, "change it back and start the sweep again")
