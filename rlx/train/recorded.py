"""A run directory from the outside: opened by one process, and in its manifest how it went."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, nullcontext

from rlx import processes
from rlx.config import Config, another
from rlx.errors import InputError
from rlx.mesh import make_mesh
from rlx.record import Busy, RunRecord
from rlx.train import start
from rlx.train.clock import Clock
from rlx.train.loop import ROWS, Ended, Stop
from rlx.train.report import describe


def stopped_so(before: dict, config: Config) -> bool:
    """Whether the run has been ended by the condition that the configuration has too."""
    then = before.get("config", {}).get("forecast", {}).get("stop_when")
    return before.get("status", "").startswith("stopped") and then == config.forecast.stop_when


def recorded(work: Callable[..., None], config: Config, progress: bool, stop: Stop):
    """The manifest of `config.out` once `work` is done there, now or before.

    `stop` is asked after every update; once it says True a checkpoint is written and `Interrupted`
    raised. A run that pauses has status "paused" and goes on once `until` is later. Raises
    InputError, before anything is written, for a configuration that cannot work here, that is not
    the one `config.out` holds a run of, or whose directory another process is writing or none can
    write.
    """
    config = start.resolve(config)
    before = RunRecord(config.out, writes=False).manifest
    if before and (options := another(before, config)):
        reason = "holds a run of another configuration"
        reason += "" if options == "?" else f": {options}"
        raise InputError("out", config.out, reason, "choose another directory")
    if before.get("status") == "done" or stopped_so(before, config):
        RunRecord(config.out, writes=False).refuse_changed(before.get("rows", {"offsets": {}}))
        return before
    env = start.make_env(config)
    mesh = make_mesh(config.mesh, config.rollout.prompts_per_step // config.optim.microbatches)
    scorer = start.load_scorer(config, env, mesh)
    record = RunRecord(config.out, writes=processes.is_writer())
    try:
        lock = record.lock() if record.writes else nullcontext()
    except Busy as error:
        remedy = "wait for its end, or choose another directory"
        raise InputError("out", config.out, str(error), remedy) from None
    with lock:
        record.update_manifest(**describe(config, env))
        try:
            with (
                closing(Clock()) as clock,
                closing(start.make_graders(config, env, scorer)) as graders,
            ):
                work(config, graders, mesh, record, clock, progress, stop)
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
