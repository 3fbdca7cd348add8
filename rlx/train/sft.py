"""Supervised fine-tuning: REINFORCE on demonstrations, each with the reward 1 and no baseline.

    objective = sum_bt mask_bt * logp_bt / sum_bt mask_bt

is the reinforcement step with A = 1. Model, sharding, microbatches, adapters, optimiser and
checkpoints are those of a run, and the result is a run directory that `model.path` accepts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rlx import flops
from rlx.config import SftConfig
from rlx.envs.base import Env
from rlx.envs.grading import Graders
from rlx.errors import InputError
from rlx.evaluate import evaluate
from rlx.models import lora
from rlx.record import RunRecord, said_of
from rlx.rollout.engine import make_generator
from rlx.rollout.generator import Weights, published
from rlx.train import start
from rlx.train.batch import demonstrated
from rlx.train.clock import Clock
from rlx.train.loop import Stop, drawn, never, supervise
from rlx.train.recorded import recorded
from rlx.train.spec import names, numbers
from rlx.train.state import init_state
from rlx.train.step import make_train_step
from rlx.types import TrainState


class Trace(NamedTuple):
    """A prompt and what to say to it, in token ids; the completion ends with the stop token."""

    prompt: list[int]
    completion: list[int]


def tokenized(env: Env, prompt: str, completion: str) -> Trace:
    ids = env.tokenizer
    return Trace(ids.encode_prompt(prompt), [*ids.encode(completion), ids.stop_id])


def read(path: str | Path, env: Env) -> list[Trace]:
    """Lines `{"prompt": TEXT, "completion": TEXT}`. InputError names the line that is not one."""
    if not Path(path).is_file():
        raise InputError("traces", path, "no file there", "give a file of JSON lines")
    with said_of("traces", Path(path), "give a file of JSON lines"):
        lines = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    traces, remedy = [], 'write {"prompt": TEXT, "completion": TEXT} on every line'
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            texts = row["prompt"], row["completion"]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("prompt or completion is no text")
            traces.append(tokenized(env, *texts))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"line {number}: {type(error).__name__}: {error}"
            raise InputError("traces", path, reason, remedy) from None
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
        if not all(isinstance(solution, str) for _, solution in solutions):
            reason = "its solutions are episodes, which only the warm start of a run learns"
            raise InputError("env.name", config.env.name, reason, "give a file of single answers")
        everything = [tokenized(env, *pair) for pair in solutions]
    limit, batch = config.rollout.max_new_tokens, config.rollout.prompts_per_step
    traces = [trace for trace in everything if len(trace.completion) <= limit]
    if len(traces) < batch:
        there = f"{len(traces)} of {len(everything)} traces are at most {limit} tokens long"
        remedy = "lower it, or raise rollout.max_new_tokens"
        raise InputError("rollout.prompts_per_step", batch, there, remedy)
    return traces, len(everything) - len(traces)


def sft(config: SftConfig, *, progress: bool = True, stop: Stop = never) -> dict[str, Any]:
    """Fine-tune to the end (or find it ended) and return the manifest; raises as `recorded`."""
    return recorded(run, config, progress, stop)


def run(
    config: SftConfig, graders: Graders, mesh: Mesh, record: RunRecord, clock: Clock,
    progress: bool, stop: Stop,
) -> None:  # fmt: skip
    """From the start, or the newest checkpoint, to the last update."""
    env = graders.env
    traces, too_long = demonstrations(config, env)
    record.update_manifest(traces=len(traces), traces_too_long=too_long)
    params, _ = start.load(config, env, mesh, record.path, progress)
    spec = names(config, mesh)
    state = init_state(spec, params, config.seed)
    step = make_train_step(spec, numbers(config), params)
    ledger, T, pad_id = flops.Ledger(), config.rollout.max_new_tokens, env.tokenizer.pad_id
    U = max(env.max_prompt_tokens, *(len(trace.prompt) for trace in traces))

    def update(state: TrainState, version: int):
        indices = drawn(len(traces), config.rollout.prompts_per_step, config.seed, version)
        some = [traces[i] for i in indices]
        state, metrics = step(state, demonstrated(*zip(*some, strict=True), U, T, pad_id))
        metrics = {name: float(x) for name, x in jax.device_get(metrics).items()}
        spend(ledger, config, env, some)
        return state, described(metrics)

    def measure(state: TrainState, version: int):
        policy = lora.whole(config.optim, params, state.params)
        said = published(policy, config.model, config.rollout.head_dtype, mesh, mesh)
        generator = make_generator(config, graders, mesh)
        return evaluate(generator, Weights(said, version), config, graders, ledger, mesh)

    supervise(config, record, clock, ledger, state, update, measure, progress, stop)


def described(metrics: dict[str, float]) -> dict[str, float]:
    """What a step says that means something without a policy that sampled."""
    names = ("tokens_trained", "grad_norm", "update/skipped", "policy/entropy")
    return {"nll": -metrics["objective"]} | {name: metrics[name] for name in names}


def spend(ledger: flops.Ledger, config: SftConfig, env: Env, traces: Sequence[Trace]) -> None:
    vocab = env.tokenizer.vocab_size
    for trace in traces:
        length = len(trace.completion)
        cost = flops.train_flops(config.model, vocab, len(trace.prompt), [length])
        ledger.train_flops += cost
        ledger.tokens_trained += length
        ledger.samples += 1
