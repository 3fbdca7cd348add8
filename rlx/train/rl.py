"""Reinforcement learning as a task of the loop: generation and training interleaved.

The generator runs until an update is due, the update is made, its weights are published.
`rlx.train.schedule` decides how long that takes and who waits; one task serves every pipeline.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from jax.sharding import Mesh

from rlx import processes
from rlx.config import Config
from rlx.envs.grading import Graders
from rlx.evaluate import evaluate
from rlx.mesh import generator_mesh
from rlx.models import lora
from rlx.rollout.buffer import Buffer
from rlx.rollout.engine import Engine
from rlx.rollout.generator import Weights, published
from rlx.train import report, schedule, start, teacher
from rlx.train.batch import collate
from rlx.train.guard import Guard
from rlx.train.loop import Place, Row, Task
from rlx.train.recorded import recorded
from rlx.train.spec import names, numbers
from rlx.train.state import init_state, placed
from rlx.train.step import make_train_step
from rlx.types import Group, Params


class ReinforcementLearning(Task):
    def __init__(self, config: Config, place: Place, graders: Graders, mesh: Mesh):
        record, clock, self.health, watch, _ = place
        params, spent = start.load(config, graders.env, mesh, record.path, watch)
        record.update_manifest(warm_start_flops=spent)
        if graders.scorer:
            record.update_manifest(reward_model_flops=graders.scorer.spent)
        if taught := teacher.load(config, graders.env, mesh):
            record.update_manifest(teacher_flops=taught.spent)
        self.config, self.mesh, self.graders, self.env = config, mesh, graders, graders.env
        self.spec = names(config, mesh, taught and taught.model)
        super().__init__(init_state(self.spec, params, config.seed))
        self.guard = Guard(config.guard)
        needed = self.spec.reference or self.spec.lora_rank
        self.start = placed(params, mesh) if needed else None
        theirs = taught and taught.params
        self.train_step = make_train_step(self.spec, numbers(config), self.start, theirs)
        pipeline, refill = config.pipeline, config.algo.zero_variance == "refill"
        prompts = config.rollout.prompts_per_step
        self.buffer = Buffer(pipeline.kind, pipeline.k, prompts, refill, self.health.note)
        self.generators = generator_mesh(config.mesh, mesh)
        self.engine = Engine(config, graders, self.buffer, self.ledger, self.generators)
        self.weights = Weights(self._published(), 0)
        parts = (self.engine, self.buffer, self.weights, clock)
        stop = lambda: processes.any_of(watch.stop())[0]  # noqa: E731
        self.turns = schedule.make(config, *parts, stop)
        self._spent = self.ledger.row()  # at the end of the latest update

    def _published(self) -> Params:
        """The current weights, adapters merged, in the generator's layout."""
        params = lora.policy_params(self.config.optim, self.start, self.state.params)
        head_dtype = self.config.rollout.head_dtype
        return published(params, self.config.model, head_dtype, self.mesh, self.generators)

    def working(self) -> AbstractContextManager:
        return self.turns

    def at_rest(self) -> AbstractContextManager:
        return self.turns.at_rest()

    def batch(self, version: int) -> list[Group] | None:
        return self.buffer.oldest() if self.turns.advance() else None

    def step(self, groups: list[Group]) -> Row:
        ids, pack = self.env.tokenizer, self.config.optim.pack
        batch = collate(groups, self.env.max_prompt_tokens, ids.pad_id, pack)
        self.state, metrics = self.train_step(self.state, batch, self.guard.rate)
        self.made = self._published()
        return metrics

    def spend(self, version: int, groups: list[Group]) -> Row:
        """Add the update to the ledger and publish its weights, under one lock."""
        row = report.rollout_metrics(groups, version)
        with self.engine.lock:
            self.buffer.take(version)
            report.spend_update(self.ledger, self.spec, self.env.tokenizer.vocab_size, groups)
            row |= report.waiting_metrics(self.engine, self.buffer)
            row["schedule/events"], self.engine.events = self.engine.events, ""
            graded = self.ledger.samples + len(self.buffer.waiting) * self.engine.G
            self._spent = self.ledger.row()
            self.weights.params, self.weights.version = self.made, version + 1
        del self.made
        self.health.sampled(row, version + 1, graded, self.graders.reasons)
        return row

    def spent(self) -> Row:
        return self._spent

    def measure(self, version: int) -> list[Row]:
        generator, where = self.engine.generator, self.generators
        return evaluate(generator, self.weights, self.config, self.graders, self.ledger, where)

    def clocks(self) -> Row:
        return {"reply_s": self.engine.generator.reply_s}

    def verdict(self, rows: list[Row]) -> Row:
        return report.verdict(self.config, rows)

    def arrays(self) -> dict[str, Any]:
        return {"state": self.state, "slots": self.engine.generator.arrays()}

    def host(self) -> dict[str, Any]:
        parts = {"buffer": self.buffer.state_dict(), "engine": self.engine.state_dict()}
        return parts | {"spent": self._spent}

    def load(self, arrays: dict[str, Any], host: dict[str, Any]) -> None:
        super().load(arrays, host)
        self._spent = host.get("spent", self.ledger.row())  # older checkpoints: after an update
        self.buffer.load(host["buffer"])
        self.engine.load(host["engine"], arrays["slots"])
        self.weights.params, self.weights.version = self._published(), host["version"]


train = partial(recorded, ReinforcementLearning)
