"""Manifest, metrics and final verdict of a run."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlx import compilation, flops
from rlx.config import Config, identity
from rlx.envs.base import Env, eval_sets
from rlx.rollout.buffer import Buffer
from rlx.rollout.engine import Engine
from rlx.train import recipe
from rlx.train.spec import Spec
from rlx.types import Group

UNSTABLE_TRUNCATION = 0.10  # truncated share above which ScaleRL reports instability


def ceilings(config: Config, env: Env) -> dict[str, float | None]:
    """The environment's ceiling of each evaluation set, averaged over completion lengths."""
    rollout = config.rollout
    lengths = [rollout.max_new_tokens]
    if config.algo.length_control == "interruption":
        forced = len(env.tokenizer.encode(rollout.interruption)) + rollout.answer_tokens
        budgets = range(rollout.think_tokens_min, rollout.think_tokens_max + 1)
        lengths = [budget + forced for budget in budgets]
    turns = {"max_turns": config.episode.max_turns, "turn_tokens": config.turn_tokens}
    turns = turns if hasattr(env, "reply") else {}
    bounds = {
        name: [env.ceiling(problems, length, **turns) for length in lengths]
        for name, problems in eval_sets(env).items()
    }
    return {name: None if None in each else float(np.mean(each)) for name, each in bounds.items()}


def commit() -> str:
    """Commit of the checkout of this code, "-dirty" with changes; empty outside of a checkout."""
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    where = Path(__file__).parent
    try:
        return subprocess.run(describe, cwd=where, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:  # no git here
        return ""


def describe(config: Config, env: Env) -> dict[str, Any]:
    """The manifest of a new run."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    best = ceilings(config, env)
    return {
        "run_id": Path(config.out).name,
        "study": config.study,
        "recipe": config.recipe,
        "seed": config.seed,
        "axes": config.axes,
        **identity(config),
        "git": commit(),
        "versions": {"python": platform.python_version()} | {p: version_of(p) for p in packages},
        "devices": [str(device) for device in jax.devices()],
        "kernels": compilation.described(config),
        "ceiling": best["heldout"],
        "ceilings": best,
        "status": "running",
        "error": "",
    }


def _turns(group: Group) -> np.ndarray:
    return np.ones(len(group.length_G)) if group.turns_G is None else group.turns_G


def rollout_metrics(groups: list[Group], version: int) -> dict[str, float]:
    """Metrics of the batch of update `version` before the update."""
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
        "rollout/turns_mean": float(np.mean([_turns(g).mean() for g in groups])),
        "rollout/interrupted_share": float(np.mean([g.interrupted_G.mean() for g in groups])),
        "rollout/zero_variance_share": float(np.mean([g.zero_variance for g in groups])),
        "rollout/staleness_mean": float(np.mean(version - oldest_B)),
        "rollout/staleness_max": int(np.max(version - oldest_B)),
        "rollout/mixed_versions_share": float(np.mean(newest_B > oldest_B)),
    }


def waiting_metrics(engine: Engine, buffer: Buffer) -> dict[str, float]:
    """Metrics of finished groups that wait in the buffer, of grading and of prompts."""
    waiting = [group.length_G.mean() for group in buffer.waiting.values()]
    return {
        "buffer/waiting_groups": len(waiting),
        "buffer/waiting_length_mean": float(np.mean(waiting)) if waiting else 0.0,
        "buffer/refilled_groups": buffer.refilled,
        "grading/timeouts": engine.ungraded["timeouts"],
        "grading/errors": engine.ungraded["errors"],
        "prompts/epoch": engine.prompts.epoch,
        "prompts/retired": engine.prompts.retired,
        "prompts/passed_over": engine.prompts.passed_over,
    }


def spend_update(ledger: flops.Ledger, spec: Spec, vocab: int, groups: list[Group]) -> None:
    """Add one update to the ledger: its FLOPs, and the FLOPs of filtered groups as discarded."""
    model = spec.model
    compared = [model] * spec.reference + [spec.teacher] * bool(spec.teacher)
    for group in groups:
        length, length_G = len(group.prompt_U), group.length_G
        parts = np.split(length_G, spec.group_slices)  # each runs the prompt
        ledger.samples += len(length_G)
        for other in compared:
            for part in parts:
                ledger.reference_flops += flops.reference_flops(other, vocab, length, part)
        if spec.critic:
            ledger.critic_flops += flops.critic_flops(model, length_G)
        if spec.drop_zero_variance and group.zero_variance:
            ledger.discard(model, vocab, length, length_G)
        else:
            for part in parts:
                ledger.train_flops += flops.train_flops(model, vocab, length, part)
            ledger.tokens_trained += int(group.sampled_GT.sum())


def verdict(config: Config, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """For readers of the run: which switches had an effect, and signs of instability."""
    algo, steps = config.algo, len(rows)
    total = lambda name: float(sum(row[name] for row in rows))  # noqa: E731
    at_end = lambda name: float(rows[-1][name]) if rows else 0.0  # noqa: E731
    low, high = algo.reward_fail, algo.reward_pass
    unpenalised = low * steps + total("rollout/score_mean") * (high - low)
    penalty = algo.length_control.startswith("penalty") and algo.reward_shape == "linear"
    switches = {  # name: (whether it is on, how often it had an effect)
        "zero_variance=drop": (algo.zero_variance == "drop", total("rollout/zero_variance_share")),
        "zero_variance=refill": (algo.zero_variance == "refill", at_end("buffer/refilled_groups")),
        "no_positive_resampling": (algo.no_positive_resampling, at_end("prompts/retired")),
        "band": (
            (algo.band_low, algo.band_high) != (0.0, 1.0) and not algo.no_positive_resampling,
            at_end("prompts/passed_over"),
        ),
        "interruption": (
            algo.length_control == "interruption",
            total("rollout/interrupted_share"),
        ),
        "length_penalty": (
            penalty and algo.reward == "score",
            round(unpenalised - total("rollout/reward_mean"), 6),
        ),
        "clip": (
            recipe.clips(algo) and algo.correction == "none",
            total("policy/clipped_share"),
        ),
        "correction": (algo.correction != "none", total("policy/clipped_share")),
        **{key: (key in config.axes, 0.0) for key in recipe.unread(algo.loss)},
    }
    truncated = np.array([row["rollout/truncated_share"] for row in rows])
    over = np.flatnonzero(truncated > UNSTABLE_TRUNCATION)
    early = "the replayed run" if config.pipeline.replay else "every training prompt is retired"
    return {
        "steps_done": steps,
        "ended": "all steps" if steps == config.steps else early,
        "fired": {name: fired for name, (on, fired) in switches.items() if on},
        "guard": {str(row["step"]): row["guard/event"] for row in rows if row.get("guard/event")},
        "updates_skipped": int(total("update/skipped")),
        "updates_unvaried": sum(row["rollout/zero_variance_share"] == 1 for row in rows),
        "ungraded": int(at_end("grading/errors") + at_end("grading/timeouts")),
        "truncation": {
            "limit": UNSTABLE_TRUNCATION,
            "share_of_steps_over": len(over) / max(steps, 1),
            "first_step_over": int(over[0]) if len(over) else None,
            "max": float(truncated.max(initial=0)),
        },
    }
