"""A task in a run directory: locked against other processes, with its status in the manifest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

from jax.sharding import Mesh

from rlx import processes
from rlx.checkpoint import Checkpoints
from rlx.config import Config, another, options
from rlx.envs.grading import Graders
from rlx.errors import InputError
from rlx.record import RunRecord, contents, refuse_other_contents
from rlx.track import tracker
from rlx.train import start
from rlx.train.clock import Clock
from rlx.train.health import Health
from rlx.train.loop import (
    ROWS,
    Ended,
    Forecast,
    Loop,
    Outlook,
    Place,
    Stop,
    Task,
    Watch,
    locked,
    never,
)  # fmt: skip
from rlx.train.report import describe


def stopped_so(before: dict, config: Config) -> bool:
    """Whether the run was ended by the stopping condition of this configuration."""
    then = before.get("config", {}).get("forecast", {}).get("stop_when")
    return before.get("status", "").startswith("stopped") and then == config.forecast.stop_when


def recorded(
    task: Callable[[Any, Place, Graders, Mesh], Task], config: Config, *, progress: bool = True,
    stop: Stop = never, forecast: Forecast = Outlook,
) -> dict[str, Any]:  # fmt: skip
    """The manifest of `config.out` once the run of that task is done, now or earlier.

    `stop` is called after every update; once it returns True, a checkpoint is written and
    `Interrupted` raised. A run that pauses has status "paused" and resumes with a later `until`.
    Raises InputError, before anything is written, for a configuration that cannot work here or
    differs from that of the run in `config.out`, for a file of data or code that has changed since
    it began, or for a directory that cannot be written or that another process is writing.
    """
    config = start.resolve(config)
    before = RunRecord(config.out, writes=False).manifest
    if before and (other := another(before, config)):
        reason = f"holds a run of another configuration: {other}"
        raise InputError("out", config.out, reason, "choose another directory")
    given = options(asdict(config), kind=type(config))
    files = contents(given)
    refuse_other_contents(before.get("files", {}), files, given, config.out)
    if before.get("status") == "done" or stopped_so(before, config):
        RunRecord(config.out, writes=False).refuse_changed(before.get("rows", {"offsets": {}}))
        return before
    start.check_trained(config)
    env = start.make_env(config)
    mesh = start.make_mesh(config, config.rollout.prompts_per_step // config.optim.microbatches)
    fixed, sources = start.pinned(config, before.get("sources", {}))
    scorer = start.load_scorer(fixed, env, mesh)
    record = RunRecord(config.out, writes=processes.is_writer())
    with locked(record, "out"):
        record.update_manifest(**describe(config, env), files=files, sources=sources)
        try:
            track = tracker(config if record.writes else replace(config, tracker="none"))
            health = Health(config.out, config.optim, quiet=not record.writes)
            with (
                closing(Clock()) as clock,
                closing(start.make_graders(config.env, env, scorer)) as graders,
            ):
                place = Place(record, clock, health, Watch(progress, stop, forecast, track))
                carry_out(task(fixed, place, graders, mesh), config, place)
        except Ended as status:
            record.update_manifest(status=str(status), error="")
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            record.update_manifest(status=status, error=f"{type(error).__name__}: {error}")
            raise
        else:
            record.update_manifest(status="done", error="", rows=record.marks(ROWS))
    processes.wait("done")
    return record.manifest


def carry_out(task: Task, config: Config, place: Place) -> None:
    """Run the task to its end, and save its last checkpoint for rlx.checkpoint.load_params."""
    path, every = place.record.path, config.eval.every_steps
    with closing(Checkpoints(path / "checkpoints", config.checkpoint, config)) as kept:
        loop = Loop(task, place, kept, config.steps, every)
        loop.run(path.name, config.until)
        loop.save()
