"""The run: generation and learning interleaved, every evaluation carrying its compute.

One loop serves every pipeline and every schedule: let the generator go on until an update is due,
make it, publish the weights. `rlx.train.schedule` says how long that is and who waits.
"""

from __future__ import annotations

import platform
from contextlib import closing
from dataclasses import asdict
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import jax
import numpy as np
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
from rlx.train.step import collate, init_state, make_train_step
from rlx.types import Group, Params

UNSTABLE_TRUNCATION = 0.10  # truncated share past which runs of ScaleRL's size used to destabilise


def make_env(config: Config) -> Env:
    c = config.env
    return base.make(
        c.name,
        train_prompts=c.train_prompts,
        heldout_prompts=c.heldout_prompts,
        seed=c.seed,
        kwargs=c.kwargs,
    )


def ceiling(config: Config, env: Env) -> float | None:
    """The environment's, on average over the lengths that samples may have."""
    rollout = config.rollout
    lengths = [rollout.max_new_tokens]
    if config.algo.length_control == "interruption":
        said = len(env.tokenizer.encode(rollout.interruption)) + rollout.answer_tokens
        budgets = range(rollout.think_tokens_min, rollout.think_tokens_max + 1)
        lengths = [budget + said for budget in budgets]
    bounds = [env.ceiling(env.heldout, length) for length in lengths]
    return None if None in bounds else float(np.mean(bounds))


def describe(config: Config, env: Env) -> dict[str, Any]:
    """The manifest of a new run."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "run_id": Path(config.out).name,
        "study": config.study,
        "recipe": config.recipe,
        "seed": config.seed,
        "axes": config.axes,
        "config": asdict(config),
        "config_sha": run_sha(config),
        "versions": {"python": platform.python_version()} | {p: version_of(p) for p in packages},
        "devices": [str(device) for device in jax.devices()],
        "ceiling": ceiling(config, env),
        "status": "running",
    }


def rollout_metrics(groups: list[Group], version: int) -> dict[str, float]:
    """What the batch of update `version` looks like before it is learned from."""
    sampled = [group.sampled_GT for group in groups]
    oldest_B = np.concatenate(
        [np.where(m, g.version_GT, version).min(1) for g, m in zip(groups, sampled, strict=True)]
    )
    newest_B = np.concatenate([g.version_GT.max(1) for g in groups])
    length_B = np.concatenate([g.length_G for g in groups])
    return {
        "rollout/score_mean": float(np.mean([g.score_G.mean() for g in groups])),
        "rollout/reward_mean": float(np.mean([g.reward_G.mean() for g in groups])),
        "rollout/length_mean": float(length_B.mean()),
        "rollout/truncated_share": float(1 - np.mean([g.stopped_G.mean() for g in groups])),
        "rollout/interrupted_share": float(np.mean([g.interrupted_G.mean() for g in groups])),
        "rollout/zero_variance_share": float(np.mean([g.zero_variance for g in groups])),
        "rollout/staleness_mean": float(np.mean(version - oldest_B)),
        "rollout/staleness_max": int(np.max(version - oldest_B)),
        "rollout/mixed_versions_share": float(np.mean(newest_B > oldest_B)),
    }


def waiting_metrics(engine: Engine, buffer: Buffer) -> dict[str, float]:
    """What is finished and waits for its turn, and what has become of the prompts."""
    waiting = [group.length_G.mean() for group in buffer.waiting.values()]
    return {
        "buffer/waiting_groups": len(waiting),
        "buffer/waiting_length_mean": float(np.mean(waiting)) if waiting else 0.0,
        "buffer/refilled_groups": buffer.refilled,
        "prompts/epoch": engine.prompts.epoch,
        "prompts/retired": engine.prompts.retired,
        "prompts/passed_over": engine.prompts.passed_over,
    }


def spend_update(ledger: flops.Ledger, config: Config, env: Env, groups: list[Group]) -> None:
    """Enter one update: its own FLOPs, and what the prompts it passed over had cost."""
    model, vocab, algo = config.model, env.tokenizer.vocab_size, config.algo
    for group in groups:
        length, length_G = len(group.prompt_U), group.length_G
        ledger.samples += len(length_G)
        if algo.needs_reference:
            ledger.reference_flops += flops.reference_flops(model, vocab, length, length_G)
        if algo.has_critic:
            ledger.critic_flops += flops.critic_flops(model, length_G)
        if algo.zero_variance == "drop" and group.zero_variance:
            ledger.discard(model, vocab, length, length_G)
        else:
            ledger.train_flops += flops.train_flops(model, vocab, length, length_G)
            ledger.tokens_trained += int(length_G.sum())


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


def verdict(config: Config, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a reader of the run should know: which switches fired, and what looked unstable."""
    algo, steps = config.algo, len(rows)
    total = lambda name: float(sum(row[name] for row in rows))  # noqa: E731
    last = rows[-1] if rows else {}
    switches = {  # whether it is on, how often it did something
        "zero_variance=drop": (algo.zero_variance == "drop", total("rollout/zero_variance_share")),
        "zero_variance=refill": (algo.zero_variance == "refill", last["buffer/refilled_groups"]),
        "no_positive_resampling": (algo.no_positive_resampling, last["prompts/retired"]),
        "band": (
            (algo.band_low, algo.band_high) != (0.0, 1.0) and not algo.no_positive_resampling,
            last["prompts/passed_over"],
        ),
        "interruption": (
            algo.length_control == "interruption",
            total("rollout/interrupted_share"),
        ),
        "clip": (
            algo.loss in ("ppo_clip", "cispo", "gspo") and algo.correction == "none",
            total("policy/clipped_share"),
        ),
        "correction": (algo.correction != "none", total("policy/clipped_share")),
    }
    truncated = np.array([row["rollout/truncated_share"] for row in rows])
    over = np.flatnonzero(truncated > UNSTABLE_TRUNCATION)
    return {
        "steps_done": steps,
        "ended": "all steps" if steps == config.steps else "every training prompt is retired",
        "fired": {name: fired for name, (on, fired) in switches.items() if on},
        "updates_skipped": int(total("update/skipped")),
        "truncation": {
            "limit": UNSTABLE_TRUNCATION,
            "share_of_steps_over": len(over) / max(steps, 1),
            "first_step_over": int(over[0]) if len(over) else None,
            "max": float(truncated.max(initial=0)),
        },
    }


def restart(record: RunRecord) -> None:
    """Begin an interrupted run again from its start, and keep a note of what that throws away."""
    evals, clocks = record.rows("evals.jsonl"), record.rows("clock.jsonl")
    if evals:
        lost = {"step": evals[-1]["step"], "compute": evals[-1]["compute"]}
        record.append("restarts.jsonl", {**lost, "wall_s": clocks[-1]["wall_s"] if clocks else 0.0})
    record.truncate({"evals.jsonl": 0, "metrics.jsonl": 0, "clock.jsonl": 0})
