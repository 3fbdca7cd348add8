"""Train one run, or a sweep of runs.

    python -m experiments.train algo=grpo pipeline=pipeline_8 seed=0 steps=200 out=runs/a
    python -m experiments.train -m optim.learning_rate=1e-4,2e-4 algo.loss=cispo,gspo seed=0,1
    python -m experiments.train -m +sweep=default [hydra/launcher=processes|slurm|ray_cluster]

A run's overrides that change what it computes are its axes, and name its directory: runs/NAME, or
`out`. A sweep's runs are in runs/NAME, or OUT/runs/NAME (see experiments.cells).

Exit status: 0 done (also if `out` already holds the finished run), 1 a cell of a sweep failed (the
others ran), 75 interrupted (repeat the command to resume), 2 bad input, with one line on stderr:
`error: KEY=VALUE: reason; remedy`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments import cells
from rlx.config import Config, RewardModelConfig, SftConfig
from rlx.errors import InputError
from rlx.record import DiskFull, needing_room, read_rows

CONF = str(Path(__file__).resolve().parents[1] / "conf")
SHOW_KEYS = "`python -m experiments.train --cfg job` lists the keys"
BAD_INPUT = (InputError, HydraException, OmegaConfBaseException)
INTERRUPTED = 75  # EX_TEMPFAIL: schedulers requeue it
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def schema(kind: type[Config]) -> DictConfig:
    """A configuration as a schema for Hydra's groups; frozen classes would be read-only."""

    def thaw(node: DictConfig) -> None:
        OmegaConf.set_readonly(node, None)
        for value in node.values():
            if isinstance(value, DictConfig):
                thaw(value)

    node = OmegaConf.structured(kind)
    thaw(node)
    return node


ConfigStore.instance().store(name="schema", node=schema(Config))
ConfigStore.instance().store(name="sft_schema", node=schema(SftConfig))
ConfigStore.instance().store(name="reward_model_schema", node=schema(RewardModelConfig))
OmegaConf.register_new_resolver(  # ${without:KEY,VALUE} in conf: a default if KEY is not given
    "without", lambda other, value: value if other in (None, "") else None, replace=True
)


def to_config(node: DictConfig) -> Config:
    """The frozen configuration, checked. Raises InputError."""
    try:
        return OmegaConf.to_object(node)
    except FrozenInstanceError as error:  # `+key=` is not caught by the schema
        key = str(error).split("'")[1]
        raise InputError(key, "?", "unknown key", SHOW_KEYS) from None
    except OmegaConfBaseException as error:
        raise error.__cause__ if isinstance(error.__cause__, InputError) else error from None


def placed(config: Config) -> Config:
    """The configuration of a Hydra job, with its axes and directory."""
    job = HydraConfig.get()
    words, many = job.overrides.task, job.mode is RunMode.MULTIRUN
    levels = cells.axes(words)
    if "out" in dict(map(cells.parsed, words)) and not many:
        out = cells.directory(config.out)
    elif many or not config.out:
        name = cells.name(config.recipe, levels, config.seed)
        out = str(Path(job.sweep.dir) / "runs" / name)
    else:  # that of the command
        out = config.out
    return replace(config, axes={**config.axes, **levels}, out=out)


def node_of(words: Sequence[str]) -> DictConfig:
    """The configuration of these words, not yet checked, for commands that do not train."""
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        return hydra.compose("config", ["recipe=none", "out=none", *words])


def composed(words: Sequence[str]) -> Config:
    """The same, checked."""
    return to_config(node_of(words))


refused: list[Exception] = []  # bad input of a single run
signals: list[int] = []  # received requests to stop


def asked_to_stop() -> bool:
    return bool(signals)


def on_signal(number: int, _) -> None:
    """The first stops the run after its current update; a second Ctrl-C stops it at once."""
    if signals and number == signal.SIGINT:
        raise KeyboardInterrupt
    signals.append(number)
    print("stopping after this update; press Ctrl-C again to stop at once", file=sys.stderr)


def at_once(*_) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """A context in which signals ask the run to stop after its current update.

    A job that submitit started in Slurm is stopped before its time limit (SIGUSR2) or when it is
    preempted (SIGUSR2 or SIGTERM, depending on the cluster). Once its checkpoint is written,
    submitit's own handler of SIGUSR2 requeues it and ends the process.
    """
    before = {number: signal.signal(number, on_signal) for number in STOPS}
    try:
        yield
    except KeyboardInterrupt:
        if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
            raise
        requeue = before[signal.SIGUSR2]
        if callable(requeue) and may_go_on():
            requeue(signal.SIGUSR2, None)
        sys.exit(INTERRUPTED)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def may_go_on() -> bool:
    """Whether Slurm lets this job continue: not once it is cancelled or requeued."""
    import submitit  # it has started this process

    me = submitit.JobEnvironment().job_id
    ask = ["squeue", "--noheader", "--states=RUNNING", f"--jobs={me}"]
    return bool(subprocess.run(ask, capture_output=True, check=True).stdout.strip())


class CellFailed(RuntimeError):
    """A cell of a sweep failed; its error was printed when it happened."""


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def job(node: DictConfig) -> None:
    work(node, "rlx.train.rl:train")


def work(node: DictConfig, function: str) -> None:
    """Call MODULE:NAME, which makes a run, with the configuration of `node`."""
    try:
        config = placed(to_config(node))
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            cells.as_planned(Path(HydraConfig.get().sweep.dir), config)
        make_directory(config.out)
        from rlx import compilation, processes  # slow to load: after checking the configuration

        compilation.prepare(config)
        if config.distributed:
            processes.start()
        module, name = function.split(":")
        make = getattr(importlib.import_module(module), name)
        with listening(), needing_room(config.out):
            manifest = make(
                config, progress=sys.stderr.isatty(), stop=asked_to_stop, **looking_ahead(config)
            )
        if config.pipeline.schedule == "threads":
            print(overlap(config.out), file=sys.stderr)
        if void := [name for name, times in manifest.get("fired", {}).items() if not times]:
            print(f"note: {config.out}: never had an effect: {', '.join(void)}", file=sys.stderr)
    except BAD_INPUT as error:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            raise  # the launcher continues with the other jobs and reports at its end
        refused.append(error)
    except DiskFull:
        raise
    except Exception as error:
        if HydraConfig.get().mode is not RunMode.MULTIRUN:
            raise
        traceback.print_exc()  # here: launchers pass on only the exception
        raise CellFailed(f"{config.out}: {type(error).__name__}: {error}") from None


def looking_ahead(config: Config) -> dict[str, Any]:
    """The options of a run that forecasts itself."""
    if not config.forecast.every_evals:
        return {}
    from experiments.outlook import Forecaster  # slow to load

    return {"forecast": Forecaster(config)}


def overlap(out: str) -> str:
    """How much running generator and learner concurrently saved, for a finished run."""
    row = read_rows(Path(out) / "clock.jsonl")[-1]
    busy = row["device_s"]
    wall_s, both_s = row["modelled_device_s"], busy["generate"] + busy["train"]
    return (
        f"generator busy {busy['generate']:.1f} s, learner busy {busy['train']:.1f} s, wall "
        f"{wall_s:.1f} s without evaluation and compilation: {wall_s / both_s:.2f} of their sum"
    )


def make_directory(out: str) -> None:
    """Raises InputError if the directory cannot be created."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot be created: {error.strerror}"
        raise InputError("out", out, reason, "choose another directory") from None


def raised_by_hydra(error: Exception) -> bool:
    """Whether a plain ValueError is Hydra's error about an override, such as `algo=null`."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] in ("hydra", "omegaconf")


def as_input_error(error: Exception) -> InputError:
    """An exception of Hydra or OmegaConf as `KEY=VALUE: reason; remedy`."""
    if isinstance(error, InputError):
        return error
    cause = error.__cause__ or error
    text = f"{error}\n{cause}"
    word = getattr(error, "override", None)  # one that cannot be parsed
    for pattern in (r"argument '(.+)'\.?$", r"Error merging override (.+)", r" use \+(.+)$"):
        if found := re.search(pattern, text, re.M):
            word = found[1]
    key, _, value = (word or "").partition("=")
    key = str(getattr(cause, "full_key", None) or key.lstrip("+~"))
    if missing := re.search(r"Could not find '([^']+)'", text):
        group, _, name = missing[1].rpartition("/")
        names = ", ".join(dict.fromkeys(re.findall(r"^\t(\S+)$", text, re.M)))
        return InputError(group, name, "no such choice", f"use one of {names}")
    if unknown := re.search(r"Key '([^']+)' (?:is )?not in (struct|'\w+')", text):
        adds = unknown[2] == "struct" and "." in key
        remedy = f"use `+{key}=VALUE` to add an argument" if adds else SHOW_KEYS
        return InputError(key or unknown[1], value, "unknown key", remedy)
    if isinstance(error, OverrideParseException):
        quoted = f"""quote the value, "{key}={cells.quoted(value)}\""""
        if not value:
            quoted = "write KEY=VALUE"
        return InputError(key, value, f"cannot be parsed ({str(cause).splitlines()[0]})", quoted)
    if "Ambiguous value" in text:
        quoted = f"""-m makes a sweep of it; write one value as "{key}={cells.quoted(value)}\""""
        return InputError(key, value, "several values for one run", quoted)
    reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
    if wrong := re.search(r"Value '(.*)' of type '\w+' (.+)", reason):
        return InputError(key, wrong[1], wrong[2], "give a value of that type")
    if not key:
        return InputError("command", " ".join(sys.argv[1:]), reason, "change that word")
    return InputError(key, value, reason, "give a value of that type")


def main(job: Callable[[], None] = job) -> int:
    """Exit status of a Hydra job."""
    refused.clear()
    signals.clear()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors are raised here instead of reported by Hydra
    for number in STOPS:
        signal.signal(number, at_once)
    try:
        job()
        for error in refused:
            raise error
    except KeyboardInterrupt:
        print("interrupted: repeat the command to resume", file=sys.stderr)
        return INTERRUPTED
    except (*BAD_INPUT, ValueError) as error:
        if not isinstance(error, BAD_INPUT) and not raised_by_hydra(error):
            raise
        print(f"error: {as_input_error(error)}", file=sys.stderr)
        return 2
    except (CellFailed, DiskFull) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1 if isinstance(error, CellFailed) else INTERRUPTED
    return 0


if __name__ == "__main__":
    from experiments import train  # the name under which processes of a launcher import it

    sys.exit(train.main())
