"""The run: generation and learning interleaved, every evaluation carrying its compute.

One loop serves every pipeline. A virtual clock, counted in decode chunks, decides what happens
next: an update whose groups are all there takes as long as `decode_chunks_per_update` chunks, and
the generator goes on meanwhile with the weights it has. When the staleness bound leaves it nothing
to do, the update ends at once; so with k = 0 the loop is generate, learn, generate, learn.
The clock counts, it does not measure: a run is the same, bit for bit, on a busy machine.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
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
from rlx.mesh import make_mesh
from rlx.record import RunRecord
from rlx.rollout.engine import Engine
from rlx.train import warm_start
from rlx.train.buffer import Buffer
from rlx.train.step import collate, init_state, make_train_step
from rlx.types import Group


class Clock:
    """Seconds by phase; compilation is taken out of the phase in which it happens."""

    def __init__(self):
        self.start = time.perf_counter()
        self.device_s = dict.fromkeys(
            ("generate", "train", "idle", "compile", "checkpoint", "eval"), 0.0
        )
        self.modelled_device_s = 0.0
        self._overlapped_s = 0.0  # generation since the learner's groups were ready
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, event: str, seconds: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile"):
            self.device_s["compile"] += seconds

    @contextmanager
    def phase(self, name: str, overlaps: bool = False) -> Iterator[None]:
        """Charge the time inside to `name`. Generation that `overlaps` runs beside an update."""
        start, compiled = time.perf_counter(), self.device_s["compile"]
        yield
        seconds = time.perf_counter() - start - (self.device_s["compile"] - compiled)
        self.device_s[name] += seconds
        if name == "generate" and overlaps:
            self._overlapped_s += seconds
        elif name == "generate":
            self.modelled_device_s += seconds
        elif name == "train":
            self.modelled_device_s += max(seconds, self._overlapped_s)
            self._overlapped_s = 0.0

    def row(self, step: int) -> dict[str, Any]:
        wall_s = time.perf_counter() - self.start
        return {
            "step": step,
            "wall_s": wall_s,
            "device_s": dict(self.device_s),
            "modelled_device_s": self.modelled_device_s,
        }

    def close(self) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_event)


def make_env(config: Config) -> Env:
    c = config.env
    return base.make(
        c.name,
        train_prompts=c.train_prompts,
        heldout_prompts=c.heldout_prompts,
        seed=c.seed,
        kwargs=c.kwargs,
    )


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
        "ceiling": env.ceiling(env.heldout, config.rollout.max_new_tokens),
        "status": "running",
    }


def rollout_metrics(groups: list[Group], version: int) -> dict[str, float]:
    """What the batch of update `version` looks like before it is learned from."""
    sampled = [np.arange(g.version_GT.shape[1]) < g.length_G[:, None] for g in groups]
    oldest_B = np.concatenate(
        [np.where(m, g.version_GT, version).min(1) for g, m in zip(groups, sampled, strict=True)]
    )
    newest_B = np.concatenate(
        [np.where(m, g.version_GT, 0).max(1) for g, m in zip(groups, sampled, strict=True)]
    )
    length_B = np.concatenate([g.length_G for g in groups])
    return {
        "rollout/score_mean": float(np.mean([g.score_G.mean() for g in groups])),
        "rollout/length_mean": float(length_B.mean()),
        "rollout/truncated_share": float(1 - np.mean([g.stopped_G.mean() for g in groups])),
        "rollout/staleness_mean": float(np.mean(version - oldest_B)),
        "rollout/staleness_max": int(np.max(version - oldest_B)),
        "rollout/mixed_versions_share": float(np.mean(newest_B > oldest_B)),
    }


def spend_update(ledger: flops.Ledger, config: Config, env: Env, groups: list[Group]) -> None:
    """Enter one update: its own FLOPs, and what the prompts it passed over had cost."""
    model, vocab = config.model, env.tokenizer.vocab_size
    for group in groups:
        length, length_G = len(group.prompt_U), group.length_G
        ledger.samples += len(length_G)
        if config.algo.filter_zero_variance and np.ptp(group.reward_G) == 0:
            ledger.discarded_flops += float(
                flops.prefill_flops(model, vocab, length)
                + np.sum(flops.decode_flops(model, vocab, length, length_G))
            )
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


def run(
    config: Config, env: Env, mesh: Mesh, record: RunRecord, clock: Clock, progress: bool
) -> None:
    """From the warm start to the last update."""
    directory = config.warm_start_dir or Path(config.out) / "warm_start"
    params, spent = warm_start.load_or_make(config, env, directory, progress)
    record.update_manifest(warm_start_flops=spent)
    state = init_state(config, mesh, params)
    train_step = make_train_step(config, mesh)
    ledger = flops.Ledger()
    buffer = Buffer(config.pipeline.kind, config.pipeline.k, config.rollout.prompts_per_step)
    engine = Engine(config, env, buffer, ledger, mesh)

    def measure(version: int) -> None:
        with clock.phase("eval"):
            row = evaluate(state.params, config, env, version, ledger, mesh)
        record.append("evals.jsonl", {"step": version, "version": version, **row, **ledger.row()})
        record.append("clock.jsonl", clock.row(version))
        busy_s = clock.device_s["generate"] + clock.device_s["train"]
        rate = ledger.tokens_generated / max(busy_s, 1e-9)
        bar.set_postfix_str(f"pass {row['mean']:.3f}, {rate:,.0f} tok/s", refresh=False)

    version, chunks_since_ready = 0, 0
    with tqdm(total=config.steps, desc=record.path.name, disable=not progress, unit="step") as bar:
        measure(0)
        while version < config.steps:
            ready = buffer.ready()
            update_over = chunks_since_ready >= config.pipeline.decode_chunks_per_update
            if not ready or (engine.has_work() and not update_over):
                with clock.phase("generate", overlaps=ready):
                    engine.step(state.params, version)
                chunks_since_ready += ready
                continue
            groups = buffer.take(version)
            with clock.phase("train"):
                batch = collate(groups, env.max_prompt_tokens, env.tokenizer.pad_id)
                state, metrics = train_step(state, batch)
                metrics = {name: float(x) for name, x in jax.device_get(metrics).items()}
            spend_update(ledger, config, env, groups)
            row = {"step": version, **metrics, **rollout_metrics(groups, version)}
            record.append("metrics.jsonl", row)
            version, chunks_since_ready = version + 1, 0
            if version % config.eval.every_steps == 0 or version == config.steps:
                measure(version)
            bar.update()


def restart(record: RunRecord) -> None:
    """Begin an interrupted run again from its start, and keep a note of what that throws away."""
    evals, clocks = record.rows("evals.jsonl"), record.rows("clock.jsonl")
    if evals:
        lost = {"step": evals[-1]["step"], "compute": evals[-1]["compute"]}
        record.append("restarts.jsonl", {**lost, "wall_s": clocks[-1]["wall_s"] if clocks else 0.0})
    record.truncate({"evals.jsonl": 0, "metrics.jsonl": 0, "clock.jsonl": 0})
