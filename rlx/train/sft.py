"""Supervised fine-tuning: REINFORCE on demonstrations, each with the reward 1 and no baseline.

    objective = sum_bt mask_bt * logp_bt / sum_bt mask_bt

is the reinforcement step with A = 1. Model, sharding, microbatches, adapters, optimiser and
checkpoints are those of a run, and the result is a run directory that `model.path` accepts.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from rlx import flops
from rlx.config import Config, SftConfig
from rlx.envs import data
from rlx.envs.base import Env
from rlx.envs.grading import Graders
from rlx.errors import InputError
from rlx.evaluate import evaluate
from rlx.models import lora
from rlx.rollout.engine import make_generator
from rlx.rollout.generator import Weights, published
from rlx.train import start
from rlx.train.batch import demonstrated
from rlx.train.loop import Place, Row, Task
from rlx.train.recorded import recorded
from rlx.train.spec import names, numbers
from rlx.train.state import init_state
from rlx.train.step import make_train_step
from rlx.types import Params


class Trace(NamedTuple):
    """A prompt and what to say to it, in token ids; the completion ends with the stop token."""

    prompt: list[int]
    completion: list[int]


def tokenized(env: Env, prompt: str, completion: str) -> Trace:
    ids = env.tokenizer
    return Trace(ids.encode_prompt(prompt), [*ids.encode(completion), ids.stop_id])


def read(path: str, env: Env) -> list[Trace]:
    """Lines `{"prompt": TEXT, "completion": TEXT}`. InputError names the line that is not one."""
    traces = []
    for row in data.rows(path, "traces"):
        texts = data.texts(row, Trace._fields)
        try:
            traces.append(tokenized(env, *texts))
        except ValueError as error:
            raise data.bad_row(row[0], f"cannot be read ({error})", "leave it out") from None
    return traces


def demonstrations(config: SftConfig, env: Env) -> tuple[list[Trace], int]:
    """The traces that fit into `rollout.max_new_tokens`, and how many do not.

    InputError if no batch can be filled with different ones.
    """
    if config.traces:
        everything = read(config.traces, env)
    else:
        rng = np.random.default_rng(config.env.seed)
        solutions = [(p.prompt, env.solution(p, rng, worked=True)) for p in env.train]
        everything = [tokenized(env, *pair) for pair in solutions]
    limit, batch = config.rollout.max_new_tokens, config.rollout.prompts_per_step
    traces = [trace for trace in everything if len(trace.completion) <= limit]
    if len(traces) < batch:
        there = f"{len(traces)} of {len(everything)} traces are at most {limit} tokens long"
        remedy = "lower it, or raise rollout.max_new_tokens"
        raise InputError("rollout.prompts_per_step", batch, there, remedy)
    return traces, len(everything) - len(traces)


class Supervised(Task):
    """Learns from a list of items, of which every update takes some."""

    def __init__(self, config: Config, place: Place, graders: Graders, mesh: Mesh, head=False):
        """head: a value head is learned too."""
        self.config, self.graders, self.mesh, self.env = config, graders, mesh, graders.env
        self.items = self.read(place)
        self.start, _ = start.load(config, self.env, mesh, place.record.path, place.watch)
        self.spec, self.hyper = names(config, mesh), numbers(config)
        super().__init__(init_state(self.spec, self.start, config.seed, head))

    @abstractmethod
    def read(self, place: Place) -> list[Any]:
        """What is learned from; the manifest says how much there is."""

    def batch(self, version: int) -> list[Any]:
        """Every epoch is a permutation; what is left over at its end is left out."""
        size, seed = self.config.rollout.prompts_per_step, self.config.seed
        return [self.items[i] for i in drawn(len(self.items), size, seed, version)]

    @property
    def policy(self) -> Params:
        """The parameters now, adapters merged."""
        return lora.whole(self.config.optim, self.start, self.state.params)


def drawn(count: int, batch: int, seed: int, step: int) -> np.ndarray:
    """Indices of the items of a step."""
    epoch, at = divmod(step, count // batch)
    return np.random.default_rng((seed, epoch)).permutation(count)[at * batch : (at + 1) * batch]


class SupervisedFineTuning(Supervised):
    def __init__(self, config: SftConfig, place: Place, graders: Graders, mesh: Mesh):
        super().__init__(config, place, graders, mesh)
        self.train_step = make_train_step(self.spec, self.hyper, self.start)
        longest = max(len(trace.prompt) for trace in self.items)
        self.prompt_tokens = max(self.env.max_prompt_tokens, longest)

    def read(self, place: Place) -> list[Trace]:
        traces, too_long = demonstrations(self.config, self.env)
        place.record.update_manifest(traces=len(traces), traces_too_long=too_long)
        return traces

    def step(self, traces: list[Trace]) -> Row:
        """What a step says that means something without a policy that sampled."""
        T, pad_id = self.config.rollout.max_new_tokens, self.env.tokenizer.pad_id
        batch = demonstrated(*zip(*traces, strict=True), self.prompt_tokens, T, pad_id)
        self.state, metrics = self.train_step(self.state, batch)
        names = ("tokens_trained", "grad_norm", "update/skipped", "policy/entropy")
        return {"nll": -metrics["objective"]} | {name: metrics[name] for name in names}

    def spend(self, version: int, traces: list[Trace]) -> Row:
        ledger, model, vocab = self.ledger, self.config.model, self.env.tokenizer.vocab_size
        for prompt, completion in traces:
            cost = flops.train_flops(model, vocab, len(prompt), [len(completion)])
            ledger.train_flops += cost
            ledger.tokens_trained += len(completion)
            ledger.samples += 1
        return {}

    def measure(self, version: int) -> list[Row]:
        config, mesh = self.config, self.mesh
        said = published(self.policy, config.model, config.rollout.head_dtype, mesh, mesh)
        generator = make_generator(config, self.env, mesh)
        weights = Weights(said, version)
        return evaluate(generator, weights, config, self.graders, self.ledger, mesh)


train = partial(recorded, SupervisedFineTuning)
