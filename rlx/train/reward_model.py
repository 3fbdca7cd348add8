"""A reward model: a value head on a decoder, trained on pairs of completions.

    objective = mean over pairs of log sigmoid(r(x, chosen) - r(x, rejected))

Model, sharding, microbatches, adapters, optimiser and checkpoints are those of a run. In its
evaluation, a held-out pair passes if the chosen completion scores higher, so accuracy has a scaling
curve. `algo.reward_model` takes the run directory, and so does `model.path`, for the decoder alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlx import flops, processes
from rlx import mesh as meshes
from rlx.config import ModelConfig, RewardModelConfig
from rlx.envs.base import Env
from rlx.envs.grading import Graders
from rlx.envs.preference import Preference
from rlx.errors import InputError
from rlx.evaluate import counted
from rlx.models import lora, reward
from rlx.objectives.preference import bradley_terry
from rlx.train import start
from rlx.train.batch import in_slices, on_mesh
from rlx.train.loop import Place, Row
from rlx.train.recipe import Hyper
from rlx.train.recorded import recorded
from rlx.train.sft import Supervised, beyond_context
from rlx.train.spec import Spec
from rlx.train.state import ascend, loss_scale, optimizer, placed
from rlx.types import Problem, TrainState


class Pair(NamedTuple):
    """A prompt and two completions in token ids, the preferred one first, with stop tokens."""

    prompt: list[int]
    completions: tuple[list[int], list[int]]


def read(config: RewardModelConfig, env: Env) -> tuple[list[Pair], list[Pair], int]:
    """(training pairs, held-out pairs, how many exceed `rollout.max_new_tokens`).

    Raises InputError for a line that is not a pair or that the tokenizer cannot encode, and if too
    few pairs are left.
    """
    c = config.env
    sizes = {"train_prompts": c.train_prompts, "heldout_prompts": c.heldout_prompts}
    own = not config.pairs and isinstance(env, Preference)
    source = env if own else Preference(**sizes, seed=c.seed, path=config.pairs)
    everything = [tokenized(problems, env, config) for problems in (source.train, source.heldout)]
    limit, batch = config.rollout.max_new_tokens, config.rollout.prompts_per_step
    fits = lambda pair: max(map(len, pair.completions)) <= limit  # noqa: E731
    learned, heldout = (list(filter(fits, pairs)) for pairs in everything)
    if len(learned) < batch or not heldout:
        there = f"{len(learned)} training pairs and {len(heldout)} held-out pairs are at most "
        remedy = "lower it, or raise rollout.max_new_tokens"
        reason = f"{there}{limit} tokens long"
        raise InputError("rollout.prompts_per_step", batch, reason, remedy)
    return learned, heldout, sum(map(len, everything)) - len(learned) - len(heldout)


def tokenized(problems: Sequence[Problem], env: Env, config: RewardModelConfig) -> list[Pair]:
    ids, found = env.tokenizer, []
    for problem in problems:
        for pair in problem.answer:
            try:
                prompt = ids.encode_prompt(problem.prompt)
                both = [[*ids.encode(text), ids.stop_id] for text in (pair.chosen, pair.rejected)]
            except ValueError as error:
                remedy = "leave it out, or set env.tokenizer"
                raise InputError("pairs", pair.where, str(error), remedy) from None
            if reason := beyond_context(config, prompt, max(both, key=len)):
                raise InputError("pairs", pair.where, reason, "leave it out")
            found.append(Pair(prompt, (both[0], both[1])))
    return found


class RewardModel(Supervised):
    def __init__(self, config: RewardModelConfig, place: Place, graders: Graders, mesh: Mesh):
        super().__init__(config, place, graders, mesh, head=True)
        self.base = placed(self.start, mesh) if self.spec.lora_rank else None
        U = max(len(pair.prompt) for pair in [*self.items, *self.heldout])
        T, pad_id = config.rollout.max_new_tokens, self.env.tokenizer.pad_id
        self.shape = {"U": U, "T": T, "pad_id": pad_id}

    def read(self, place: Place) -> list[Pair]:
        learned, self.heldout, too_long = read(self.config, self.env)
        place.record.update_manifest(
            pairs=len(learned), pairs_heldout=len(self.heldout), pairs_too_long=too_long,
            vocabulary=start.vocabulary(self.env.tokenizer),
        )  # fmt: skip
        return learned

    def step(self, pairs: list[Pair]) -> Row:
        texts = self._texts(pairs)
        self.state, metrics = _jitted_step(self.state, texts, self.base, self.hyper, spec=self.spec)
        return metrics

    def spend(self, version: int, pairs: list[Pair]) -> Row:
        tokens = sum(len(completion) for pair in pairs for completion in pair.completions)
        self.ledger.train_flops += 3 * _forward_flops(self.config.model, pairs)
        self.ledger.samples += 2 * len(pairs)
        self.ledger.tokens_trained += tokens
        return {"tokens_trained": tokens}

    def measure(self, version: int) -> list[Row]:
        P, model, pairs = self.config.rollout.prompts_per_step, self.config.model, self.heldout
        policy, on = self.policy, {"mesh": self.mesh}
        batches = [pairs[at : at + P] for at in range(0, len(pairs), P)]
        found = [reward.scores_on(policy, model, self._texts(b, P), **on) for b in batches]
        score_P2 = np.concatenate(processes.to_host(found)).reshape(-1, 2)[: len(pairs)]
        self.ledger.eval_flops += _forward_flops(model, pairs)
        return [accuracy(score_P2)]

    def _texts(self, pairs: Sequence[Pair], rows: int = 0) -> reward.Texts:
        prompts, completions = [p.prompt for p in pairs], [p.completions for p in pairs]
        return on_mesh(reward.padded(prompts, completions, **self.shape, rows=rows), self.mesh)


def accuracy(score_P2: np.ndarray) -> dict[str, Any]:
    """An evaluation row: every pair is a trial, and a pass if chosen scores above rejected.

    Every other tied pair passes, so that a head of zeros has an accuracy of 1/2.
    """
    tied_n = score_P2[:, 0] == score_P2[:, 1]
    luck_n = tied_n & (np.cumsum(tied_n) % 2 == 0)
    passes_n = ((score_P2[:, 0] > score_P2[:, 1]) | luck_n).astype(int)
    margin = float(np.mean(score_P2[:, 0] - score_P2[:, 1]))
    return counted("heldout", 1, passes_n, 0, 0) | {"margin_mean": margin}


def _forward_flops(model: ModelConfig, pairs: Sequence[Pair]) -> float:
    return sum(
        flops.reward_flops(model, len(p.prompt), list(map(len, p.completions))) for p in pairs
    )


def _step(state: TrainState, texts: reward.Texts, base, hyper: Hyper, *, spec: Spec):
    """(state, pairs) -> (state, metrics), pure; gradients of slices add up."""
    policy = lambda params: lora.merged(base, params, hyper.lora_scale) if base else params  # noqa: E731
    pairs, scale = len(texts.prompt_length_P), loss_scale(state)

    def objective(params, part):
        scores = meshes.visible(spec.mesh, reward.scores)
        score_P2 = scores(policy(params), spec.model, part).reshape(-1, 2)
        value, margin_P = jnp.sum(bradley_terry(score_P2)) / pairs, score_P2[:, 0] - score_P2[:, 1]
        return scale * value, (value, jnp.sum(margin_P) / pairs, jnp.sum(margin_P > 0) / pairs)

    def add_slice(total, part):
        grads, sums = jax.grad(objective, has_aux=True)(state.params, part)
        return jax.tree.map(jnp.add, total, grads), sums

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    grads, sums = jax.lax.scan(
        add_slice, zeros, in_slices(texts, pairs, spec.microbatches, spec.mesh)
    )
    objective_sum, margin, right = map(jnp.sum, sums)
    moving = optimizer(hyper, state.version, half=spec.half)
    state, grad_norm, finite = ascend(state, grads, objective_sum, moving, spec.mesh)
    skipped = 1 - finite.astype(jnp.float32)
    metrics = {"nll": -objective_sum, "accuracy": right, "margin_mean": margin}
    metrics |= {"grad_norm": grad_norm, "update/skipped": skipped}
    return state, metrics | ({"update/loss_scale": scale} if spec.half else {})


_jitted_step = jax.jit(_step, static_argnames="spec", donate_argnames="state")


def train(config: RewardModelConfig, **how: Any) -> dict[str, Any]:
    """Train to the end (or find it done) and return the manifest; raises as `recorded`."""
    if config.pairs and config.env.name == "preference":  # tokenise with the pairs' own words
        env = replace(config.env, kwargs={**config.env.kwargs, "path": config.pairs})
        config = replace(config, env=env)
    return recorded(RewardModel, config, **how)
