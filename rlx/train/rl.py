"""The run: generation and learning interleaved, every evaluation carrying its compute.

One loop serves every pipeline and every schedule: let the generator go on until an update is due,
make it, publish the weights. `rlx.train.schedule` says how long that is and who waits.

A run that stops, for whatever reason, goes on from its newest checkpoint: its rows are cut back to
that moment and everything that follows is computed again, so the curve is that of a run which never
stopped, bit for bit unless threads decide its schedule.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from rlx import flops, processes
from rlx.checkpoint import Checkpoints
from rlx.config import Config
from rlx.envs.grading import Graders
from rlx.evaluate import evaluate
from rlx.mesh import generator_mesh
from rlx.models import lora
from rlx.record import RunRecord
from rlx.rollout.buffer import Buffer
from rlx.rollout.engine import Engine
from rlx.rollout.generator import Weights, published
from rlx.track import tracker
from rlx.train import schedule, start
from rlx.train.batch import collate
from rlx.train.clock import Clock
from rlx.train.health import Health
from rlx.train.loop import ROWS, Ended, Forecast, Interrupted, Stop, never, no_outlook
from rlx.train.recorded import recorded
from rlx.train.report import (
    note_lost_work,
    rollout_metrics,
    spend_update,
    verdict,
    waiting_metrics,
)
from rlx.train.spec import names, numbers
from rlx.train.state import init_state, placed
from rlx.train.step import make_train_step
from rlx.types import Params


def train(
    config: Config, *, progress: bool = True, stop: Stop = never,
    forecast: Forecast = no_outlook,
) -> dict[str, Any]:  # fmt: skip
    """Run to the end (or find it ended) and return the manifest; `recorded` says what it raises."""
    return recorded(partial(run, forecast=forecast), config, progress, stop)


class Run:
    """All that changes while a run goes on, and what changes it."""

    def __init__(
        self, config: Config, graders: Graders, mesh: Mesh, record: RunRecord, clock: Clock,
        params: Params, forecast: Forecast,
    ):  # fmt: skip
        self.config, self.mesh, self.record, self.clock = config, mesh, record, clock
        self.graders, self.env = graders, graders.env
        spec = names(config, mesh)
        self.state = init_state(spec, params, config.seed)
        needed = spec.reference or spec.lora_rank  # adapters change it, or a term compares with it
        self.start = placed(params, mesh) if needed else None
        self.train_step = make_train_step(spec, numbers(config), self.start)
        self.ledger, pipeline = flops.Ledger(), config.pipeline
        refill = config.algo.zero_variance == "refill"
        prompts = config.rollout.prompts_per_step
        self.health = Health(config.out, config.optim, quiet=not record.writes)
        self.buffer = Buffer(pipeline.kind, pipeline.k, prompts, refill, self.health.note)
        self.generators = generator_mesh(config.mesh, mesh)
        self.engine = Engine(config, graders, self.buffer, self.ledger, self.generators)
        self.version, self.measured = 0, -1
        self.forecast, self.outlook = forecast, no_outlook()
        self.spent = self.ledger.row()  # when the newest update ended
        self.track = tracker(config if record.writes else replace(config, tracker="none"))
        self.weights = Weights(self._published(), 0)

    def _published(self) -> Params:
        """The weights that are learned, adapters merged, as the generator reads them."""
        params = lora.whole(self.config.optim, self.start, self.state.params)
        head_dtype = self.config.rollout.head_dtype
        return published(params, self.config.model, head_dtype, self.mesh, self.generators)

    def update(self) -> None:
        """One update of the groups that are due; rows, ledger and weights follow."""
        version, groups = self.version, self.buffer.oldest()
        with self.clock.phase("train"):
            prompt_tokens, pad_id = self.env.max_prompt_tokens, self.env.tokenizer.pad_id
            batch = collate(groups, prompt_tokens, pad_id, self.config.optim.pack)
            self.state, metrics = self.train_step(self.state, batch)
            metrics = {name: float(x) for name, x in jax.device_get(metrics).items()}
            params = self._published()
        row = {"step": version, **metrics, **rollout_metrics(groups, version)}
        with self.engine.lock:
            self.buffer.take(version)
            spend_update(self.ledger, self.config, self.env, groups)
            row |= waiting_metrics(self.engine, self.buffer)
            row["schedule/events"], self.engine.events = self.engine.events, ""
            graded = self.ledger.samples + len(self.buffer.waiting) * self.engine.G
            self.spent = self.ledger.row()
            self.weights.params, self.weights.version = params, version + 1
        self.record.append("metrics.jsonl", row)
        self.track(version, row)
        self.version += 1
        self.health.sampled(row, self.version, graded, self.graders.reasons)
        self.health.updated(row, self.version)

    def measure(self) -> str:
        """Evaluate, with the compute spent when the update ended; a line for the progress bar."""
        with self.clock.phase("eval"):
            generator, config = self.engine.generator, self.config
            rows = evaluate(
                generator, self.weights, config, self.graders, self.ledger, self.generators
            )
        spent = self.spent | {"eval_flops": self.ledger.eval_flops}
        at = {"step": self.version, "version": self.version}
        for row in rows:
            self.record.append("evals.jsonl", at | row | spent)
            self.health.measured(at | row)
        named = {"eval" if row is rows[0] else f"eval_{row['eval_set']}": row for row in rows}
        self.outlook = self.forecast()
        self.track(self.version, {**named, "spent": spent, "forecast": self.outlook.numbers})
        replies = {"reply_s": generator.reply_s}
        self.record.append("clock.jsonl", self.clock.row(self.version) | replies)
        self.measured = self.version
        busy_s = self.clock.device_s["generate"] + self.clock.device_s["train"]
        rate = self.ledger.tokens_generated / max(busy_s, 1e-9)
        return f"pass {rows[0]['mean']:.3f}, {self.outlook.text}{rate:,.0f} tok/s"

    def save(self, checkpoints: Checkpoints) -> None:
        """Start a checkpoint of this moment, between two updates."""
        with self.clock.phase("checkpoint"):
            host = {
                "version": self.version,
                "health": self.health.state_dict(),
                "measured": self.measured,
                "ledger": dict(vars(self.ledger)),
                "buffer": self.buffer.state_dict(),
                "engine": self.engine.state_dict(),
                "clock": self.clock.state_dict(),
                **self.record.marks(ROWS),
            }
            checkpoints.save(self.version, self._device(), host)

    def _device(self) -> dict[str, Any]:
        return {"state": self.state, "slots": self.engine.generator.arrays()}

    def restore(self, checkpoints: Checkpoints) -> bool:
        """Go back to the newest checkpoint, if there is one; rows after it are cut off."""
        saved = checkpoints.restore(self._device())
        host = saved[2] if saved else {"version": 0, "offsets": dict.fromkeys(ROWS, 0)}
        self.record.refuse_changed(host)
        note_lost_work(self.record, host)
        self.record.truncate(host["offsets"])
        if not saved:
            return False
        device = saved[1]
        self.version, self.measured = host["version"], host["measured"]
        self.health.load(host["health"])
        vars(self.ledger).update(host["ledger"])
        self.spent = self.ledger.row()
        self.buffer.load(host["buffer"])
        self.engine.load(host["engine"], device["slots"])
        self.clock.load(host["clock"])
        self.state = device["state"]
        self.weights.params, self.weights.version = self._published(), self.version
        return True


def run(
    config: Config, graders: Graders, mesh: Mesh, record: RunRecord, clock: Clock,
    progress: bool, stop: Stop, forecast: Forecast,
) -> None:  # fmt: skip
    """From the warm start, or the newest checkpoint, to the last update."""
    params, spent = start.load(config, graders.env, mesh, record.path, progress)
    record.update_manifest(warm_start_flops=spent)
    if graders.scorer:
        record.update_manifest(reward_model_flops=graders.scorer.spent)
    it = Run(config, graders, mesh, record, clock, params, forecast)
    del params  # the state has copies
    turns = schedule.make(config.pipeline, it.engine, it.buffer, it.weights, clock)
    quiet = not progress or not record.writes
    last = min(config.until or config.steps, config.steps)
    bar = tqdm(total=config.steps, desc=record.path.name, disable=quiet, unit="step")
    where = record.path / "checkpoints"
    with closing(Checkpoints(where, config.checkpoint, config)) as checkpoints, bar:
        if not it.restore(checkpoints):
            bar.set_postfix_str(it.measure(), refresh=False)
        bar.update(it.version)
        with turns:
            while it.version < last and not it.outlook.stop and turns.advance():
                it.update()
                if it.version % config.eval.every_steps == 0 or it.version == config.steps:
                    with turns.at_rest():
                        bar.set_postfix_str(it.measure(), refresh=False)
                bar.update()
                stopping, due = processes.any_of(stop(), checkpoints.due(it.version))
                ends = it.version == last or bool(it.outlook.stop)
                if stopping or (due or ends) and it.version < config.steps:
                    with turns.at_rest():
                        it.save(checkpoints)
                if stopping:
                    raise Interrupted(f"after update {it.version}; the same command goes on")
        if (it.outlook.stop or it.version >= last) and it.version < config.steps:
            raise Ended(f"stopped: {it.outlook.stop}" if it.outlook.stop else "paused")
        if it.measured < it.version:
            it.measure()  # the last of a run that has no prompts left
        it.save(checkpoints)  # for rlx.checkpoint.load_params
    record.update_manifest(**verdict(config, record.rows("metrics.jsonl")))
