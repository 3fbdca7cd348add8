"""Supervised fine-tuning: REINFORCE on demonstrations with reward 1 and no baseline.

    objective = sum_bt mask_bt * logp_bt / sum_bt mask_bt

is the RL step with A = 1. Model, sharding, microbatches, adapters, optimiser and checkpoints are
those of a run, and the result is a run directory that `model.path` accepts.
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
    """A prompt and its completion in token ids; the completion ends with the stop token."""

    prompt: list[int]
    completion: list[int]


def tokenized(env: Env, prompt: str, completion: str) -> Trace:
    ids = env.tokenizer
    return Trace(ids.encode_prompt(prompt), [*ids.encode(completion), ids.stop_id])


def read(config: SftConfig, env: Env) -> list[Trace]:
    """Traces of lines `{"prompt": TEXT, "completion": TEXT}`. InputError names a bad line."""
    traces = []
    for row in data.rows(config.traces, "traces"):
        texts = data.texts(row, Trace._fields)
        try:
            trace = tokenized(env, *texts)
        except ValueError as error:
            raise data.bad_row(row[0], f"cannot be read ({error})", "leave it out") from None
        if reason := beyond_context(config, *trace):
            raise data.bad_row(row[0], reason, "leave it out")
        traces.append(trace)
    return traces


def beyond_context(config: Config, prompt: list[int], completion: list[int]) -> str:
    """Why the model has no room for the two; empty if it has, or if the completion is left out."""
    tokens, room = len(prompt) + len(completion), config.model.context_tokens
    if not 0 < room < tokens or len(completion) > config.rollout.max_new_tokens:
        return ""
    return f"has {tokens} tokens, more than model.context_tokens={room}"


def demonstrations(config: SftConfig, env: Env) -> tuple[list[Trace], int]:
    """The traces that fit into `rollout.max_new_tokens`, and how many do not.

    Raises InputError if there are fewer than one batch.
    """
    if config.traces:
        everything = read(config, env)
    else:
        rng = np.random.default_rng(config.env.seed)
        solutions = [(p.prompt, env.solution(p, rng, worked=True)) for p in env.train]
        if not all(isinstance(solution, str) for _, solution in solutions):
            reason = "its solutions are episodes, which only a warm start can train on"
            raise InputError("env.name", config.env.name, reason, "give a file of single answers")
        everything = [tokenized(env, *pair) for pair in solutions]
    limit, batch = config.rollout.max_new_tokens, config.rollout.prompts_per_step
    traces = [trace for trace in everything if len(trace.completion) <= limit]
    if len(traces) < batch:
        there = f"{len(traces)} of {len(everything)} traces are at most {limit} tokens long"
        remedy = "lower it, or raise rollout.max_new_tokens"
        raise InputError("rollout.prompts_per_step", batch, there, remedy)
    return traces, len(everything) - len(traces)


class Supervised(Task):
    """Trains on batches from a list of items."""

    def __init__(self, config: Config, place: Place, graders: Graders, mesh: Mesh, head=False):
        """head: train a value head too."""
        self.config, self.graders, self.mesh, self.env = config, graders, mesh, graders.env
        self.items = self.read(place)
        self.start, _ = start.load(config, self.env, mesh, place.record.path, place.watch)
        self.spec, self.hyper = names(config, mesh), numbers(config)
        super().__init__(init_state(self.spec, self.start, config.seed, head))

    @abstractmethod
    def read(self, place: Place) -> list[Any]:
        """The items; records their number in the manifest."""

    def batch(self, version: int) -> list[Any]:
        """Every epoch is a permutation; an incomplete last batch is left out."""
        size, seed = self.config.rollout.prompts_per_step, self.config.seed
        return [self.items[i] for i in drawn(len(self.items), size, seed, version)]

    @property
    def policy(self) -> Params:
        """The current parameters, adapters merged."""
        return lora.policy_params(self.config.optim, self.start, self.state.params)


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
        """Metrics without those that compare with a sampling policy."""
        T, pad_id = self.config.rollout.max_new_tokens, self.env.tokenizer.pad_id
        batch = demonstrated(*zip(*traces, strict=True), self.prompt_tokens, T, pad_id)
        self.state, metrics = self.train_step(self.state, batch)
        names = ["tokens_trained", "grad_norm", "update/skipped", "policy/entropy"]
        names += ["update/loss_scale"] * self.spec.half
        nll = metrics["policy/logp_gap_mean"]  # |logp - 0|: the traces have no sampling policy
        return {"nll": nll} | {name: metrics[name] for name in names}

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
        params = published(self.policy, config.model, config.rollout.head_dtype, mesh, mesh)
        generator = make_generator(config, self.graders, mesh)
        weights = Weights(params, version)
        return evaluate(generator, weights, config, self.graders, self.ledger, mesh)


train = partial(recorded, SupervisedFineTuning)
