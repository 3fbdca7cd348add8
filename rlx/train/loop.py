"""The run: generation and learning interleaved, every evaluation carrying its compute.

One loop serves every pipeline and every schedule: let the generator go on until an update is due,
make it, publish the weights. `rlx.train.schedule` says how long that is and who waits.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from rlx import flops
from rlx.config import Config, ConfigError, run_sha
from rlx.envs import base
from rlx.envs.base import Env
from rlx.evaluate import evaluate
from rlx.mesh import generator_mesh, make_mesh, of_params
from rlx.models import transformer
from rlx.record import RunRecord, read_rows
from rlx.rollout.engine import Engine, Weights
from rlx.train import schedule, warm_start
from rlx.train.buffer import Buffer
from rlx.train.clock import Clock
from rlx.train.report import (
    describe,
    rollout_metrics,
    spend_update,
    verdict,
    waiting_metrics,
)
from rlx.train.step import collate, init_state, make_train_step
from rlx.types import Params


def make_env(config: Config) -> Env:
    c = config.env
    return base.make(
        c.name,
        train_prompts=c.train_prompts,
        heldout_prompts=c.heldout_prompts,
        seed=c.seed,
        kwargs=c.kwargs,
    )


def train(config: Config, *, progress: bool = True) -> dict[str, Any]:
    """Run to the end (or find it ended) and return the manifest.

    Raises ConfigError or ValueError, before anything is written, for a configuration that cannot
    work here or that is not the one `config.out` holds a run of.
    """
    record = RunRecord(config.out)
    before = record.manifest
    if before and before["config_sha"] != run_sha(config):
        reason = "holds a run of another configuration"
        raise ConfigError("out", config.out, reason, "choose another directory")
    if before.get("status") == "done":
        return before
    env = make_env(config)
    mesh = make_mesh(config.mesh, config.rollout.prompts_per_step // config.optim.microbatches)
    restart(record)
    record.update_manifest(**describe(config, env))
    try:
        with closing(Clock()) as clock:
            run(config, env, mesh, record, clock, progress)
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        record.update_manifest(status=status, error=f"{type(error).__name__}: {error}")
        raise
    record.update_manifest(status="done")
    return record.manifest


def published(mesh: Mesh, params: Params, version: int) -> Weights:
    """Weights where the generator wants them; a copy if its devices are not the learner's."""
    params = jax.device_put(params, of_params(mesh, params, transformer.logical_axes(params)))
    return Weights(params, version)


def make_schedule(config: Config, engine: Engine, buffer: Buffer, weights: Weights, clock: Clock):
    c = config.pipeline
    if c.replay:
        rows = read_rows(Path(c.replay) / "metrics.jsonl")
        if not rows:
            reason, remedy = "no metrics.jsonl with updates there", "give the directory of a run"
            raise ConfigError("pipeline.replay", c.replay, reason, remedy)
        return schedule.Replay(engine, weights, clock, [row["schedule/events"] for row in rows])
    if c.schedule == "threads":
        return schedule.Threads(engine, buffer, weights, clock)
    return schedule.VirtualClock(engine, buffer, weights, clock, c.decode_chunks_per_update)


class NotFinite(RuntimeError):
    """Too many updates in a row had an objective or a gradient that is not finite."""


def run(
    config: Config, env: Env, mesh: Mesh, record: RunRecord, clock: Clock, progress: bool
) -> None:
    """From the warm start to the last update."""
    directory = config.warm_start_dir or Path(config.out) / "warm_start"
    params, spent = warm_start.load_or_make(config, env, directory, progress)
    record.update_manifest(warm_start_flops=spent)
    state = init_state(config, mesh, params)
    train_step = make_train_step(config, mesh, params)
    ledger, pipeline = flops.Ledger(), config.pipeline
    refill = config.algo.zero_variance == "refill"
    buffer = Buffer(pipeline.kind, pipeline.k, config.rollout.prompts_per_step, refill)
    elsewhere = generator_mesh(config.mesh, mesh)
    engine = Engine(config, env, buffer, ledger, elsewhere)
    weights = published(elsewhere, state.params, 0)
    turns = make_schedule(config, engine, buffer, weights, clock)

    def measure(spent: dict[str, Any]) -> None:
        with clock.phase("eval"):
            row = evaluate(state.params, config, env, version, ledger, mesh)
        spent["eval_flops"] = ledger.eval_flops
        record.append("evals.jsonl", {"step": version, "version": version, **row, **spent})
        record.append("clock.jsonl", clock.row(version))
        busy_s = clock.device_s["generate"] + clock.device_s["train"]
        rate = ledger.tokens_generated / max(busy_s, 1e-9)
        bar.set_postfix_str(f"pass {row['mean']:.3f}, {rate:,.0f} tok/s", refresh=False)

    version, skipped, spent_now = 0, 0, ledger.row()
    bar = tqdm(total=config.steps, desc=record.path.name, disable=not progress, unit="step")
    with bar:
        measure(ledger.row())
        with turns:
            while version < config.steps and turns.advance():
                groups = buffer.oldest()
                with clock.phase("train"):
                    batch = collate(groups, env.max_prompt_tokens, env.tokenizer.pad_id)
                    state, metrics = train_step(state, batch)
                    metrics = {name: float(x) for name, x in jax.device_get(metrics).items()}
                    fresh = published(elsewhere, state.params, version + 1)
                row = {"step": version, **metrics, **rollout_metrics(groups, version)}
                with engine.lock:
                    buffer.take(version)
                    spend_update(ledger, config, env, groups)
                    row |= waiting_metrics(engine, buffer) | {"schedule/events": engine.events}
                    spent_now, engine.events = ledger.row(), ""
                    weights.params, weights.version = fresh.params, fresh.version
                record.append("metrics.jsonl", row)
                version += 1
                skipped = skipped + 1 if metrics["update/skipped"] else 0
                if skipped == config.optim.max_skipped_updates:
                    raise NotFinite(
                        f"optim.max_skipped_updates={skipped}: so many updates in a row, up to "
                        f"{version}, had an objective or a gradient that is not finite; "
                        "lower optim.learning_rate or look at policy/ratio_max in metrics.jsonl"
                    )
                if version % config.eval.every_steps == 0 or version == config.steps:
                    measure(spent_now)
                bar.update()
        if version < config.steps and version % config.eval.every_steps:
            measure(spent_now)  # the last of a run without prompts
    record.update_manifest(**verdict(config, record.rows("metrics.jsonl")))


def restart(record: RunRecord) -> None:
    """Begin an interrupted run again from its start, and keep a note of what that throws away."""
    evals, clocks = record.rows("evals.jsonl"), record.rows("clock.jsonl")
    if evals:
        lost = {"step": evals[-1]["step"], "compute": evals[-1]["compute"]}
        record.append("restarts.jsonl", {**lost, "wall_s": clocks[-1]["wall_s"] if clocks else 0.0})
    record.truncate({"evals.jsonl": 0, "metrics.jsonl": 0, "clock.jsonl": 0})
