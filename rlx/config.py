"""Every option of a run, as frozen dataclasses checked when they are made.

Words that name a choice (`loss`, `advantage`, ...) select one function each; the numbers beside
them reach the jitted step as traced scalars, so runs that differ only in numbers share one
compilation. A value that cannot work raises `ConfigError`, whose text is `key=value: reason;
remedy`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any


class ConfigError(ValueError):
    """`key=value: reason; remedy`, on one line."""

    def __init__(self, key: str, value: object, reason: str, remedy: str):
        super().__init__(f"{key}={value}: {reason}; {remedy}")


def _check(ok: bool, key: str, value: object, reason: str, remedy: str) -> None:
    if not ok:
        raise ConfigError(key, value, reason, remedy)


def _one_of(key: str, value: str, names: tuple[str, ...]) -> None:
    _check(value in names, key, value, "unknown name", f"use one of {', '.join(names)}")


def _positive(prefix: str, config: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(config, name)
        _check(value > 0, f"{prefix}.{name}", value, "must be positive", "give a value above 0")


LOSSES = ("reinforce", "ppo_clip", "cispo", "gspo")
ADVANTAGES = ("centered", "prompt_norm", "batch_norm", "leave_one_out")
AGGREGATIONS = ("token_mean", "sample_mean", "prompt_mean", "fixed_length")
PIPELINES = ("sync", "pipeline", "ppo_off_policy")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class ModelConfig:
    """One decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU."""

    d_model: int = 64
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 16
    d_ff: int = 192
    rope_theta: float = 1000.0
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    scan_layers: bool = False  # one compiled layer, looped; unrolled is faster at depth <= 4
    compute_dtype: str = "float32"  # activations; parameters stay float32
    head_dtype: str = "float32"  # hidden states and head weights in the logits' matmul

    def __post_init__(self):
        _positive(
            "model", self, ("d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff")
        )
        _check(
            self.n_heads % self.n_kv_heads == 0,
            "model.n_heads",
            self.n_heads,
            f"not a multiple of model.n_kv_heads={self.n_kv_heads}",
            "query heads share key/value heads in equal numbers",
        )
        _check(self.head_dim % 2 == 0, "model.head_dim", self.head_dim, "odd", "RoPE turns pairs")
        _one_of("model.compute_dtype", self.compute_dtype, DTYPES)
        _one_of("model.head_dtype", self.head_dtype, DTYPES)


@dataclass(frozen=True)
class AlgoConfig:
    """One field per ablation axis; a row of conf/algo is a recipe."""

    loss: str = "cispo"
    advantage: str = "batch_norm"
    aggregation: str = "prompt_mean"
    clip_low: float = 0.2  # ppo_clip, gspo: the ratio is kept above 1 - clip_low
    clip_high: float = 0.28  # ppo_clip, gspo: and below 1 + clip_high
    is_cap: float = 5.0  # cispo: absolute bound on the importance ratio
    advantage_eps: float = 1e-6  # added to the std that normalises advantages
    filter_zero_variance: bool = True  # prompts whose samples all score alike do not count
    reward_pass: float = 1.0  # reward of a pass ...
    reward_fail: float = -1.0  # ... and of a fail; scores between are interpolated

    def __post_init__(self):
        _one_of("algo.loss", self.loss, LOSSES)
        _one_of("algo.advantage", self.advantage, ADVANTAGES)
        _one_of("algo.aggregation", self.aggregation, AGGREGATIONS)
        _check(
            0 <= self.clip_low < 1,
            "algo.clip_low",
            self.clip_low,
            "outside [0, 1)",
            "the lower bound on the ratio is 1 - clip_low",
        )
        _check(self.clip_high >= 0, "algo.clip_high", self.clip_high, "negative", "use >= 0")
        _positive("algo", self, ("is_cap", "advantage_eps"))
        _check(
            self.reward_pass > self.reward_fail,
            "algo.reward_pass",
            self.reward_pass,
            f"not above algo.reward_fail={self.reward_fail}",
            "a pass must pay more than a fail",
        )


@dataclass(frozen=True)
class EnvConfig:
    """The task. `kwargs` go to the environment's constructor, which rejects what it lacks."""

    name: str = "digit_chain"
    kwargs: dict[str, Any] = field(default_factory=dict)
    train_prompts: int = 1024  # finite, so that epochs exist
    heldout_prompts: int = 256
    seed: int = 0  # of the prompt sets, not of the run

    def __post_init__(self):
        _one_of("env.name", self.name, ("digit_chain", "reasoning_gym"))
        _positive("env", self, ("train_prompts", "heldout_prompts"))


@dataclass(frozen=True)
class RolloutConfig:
    prompts_per_step: int = 16  # P
    group_size: int = 16  # G
    max_new_tokens: int = 9  # T
    temperature: float = 1.0
    slots: int = 0  # sequences in flight; 0 means prompts_per_step * group_size
    decode_chunk_tokens: int = 3  # tokens decoded between two looks of the host

    def __post_init__(self):
        _positive("rollout", self, ("prompts_per_step", "max_new_tokens", "temperature"))
        _positive("rollout", self, ("decode_chunk_tokens",))
        _check(
            self.group_size >= 2,
            "rollout.group_size",
            self.group_size,
            "no baseline",
            "an advantage compares at least 2 samples of a prompt",
        )
        _check(
            self.slots == 0 or self.slots >= self.group_size and self.slots % self.group_size == 0,
            "rollout.slots",
            self.slots,
            f"not a positive multiple of rollout.group_size={self.group_size}",
            "slots are filled group by group (0 chooses one batch)",
        )


@dataclass(frozen=True)
class PipelineConfig:
    """Who waits for whom. See rlx.train.buffer for the bound that each kind guarantees."""

    kind: str = "sync"
    k: int = 0
    decode_chunks_per_update: int = 3  # virtual clock: chunks that pass while one update is made

    def __post_init__(self):
        _one_of("pipeline.kind", self.kind, PIPELINES)
        _check(self.k >= 0, "pipeline.k", self.k, "negative", "k counts updates: use 0 or more")
        _check(
            self.kind != "sync" or self.k == 0,
            "pipeline.k",
            self.k,
            "pipeline.kind=sync is never stale",
            "set pipeline.kind=pipeline or pipeline.k=0",
        )
        _check(
            self.kind != "ppo_off_policy" or self.k >= 1,
            "pipeline.k",
            self.k,
            "ppo_off_policy generates for k updates",
            "use k >= 1 (k = 1 is synchronous)",
        )
        _positive("pipeline", self, ("decode_chunks_per_update",))


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up to a constant rate, after clipping the global norm."""

    learning_rate: float = 2e-4
    warmup_steps: int = 5
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    microbatches: int = 1  # slices whose gradients add; slices without a kept prompt are skipped
    vocab_chunk: int = 0  # vocabulary entries per piece of the log-prob; 0: one piece

    def __post_init__(self):
        _positive("optim", self, ("learning_rate", "eps", "max_grad_norm", "microbatches"))
        _check(self.vocab_chunk >= 0, "optim.vocab_chunk", self.vocab_chunk, "negative", "use 0")
        _check(self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, "negative", "use 0")


@dataclass(frozen=True)
class WarmStartConfig:
    """Supervised training on the environment's own solutions before RL starts."""

    steps: int = 300
    batch_size: int = 128
    learning_rate: float = 4e-3
    worked_share_end: float = 0.05  # share of worked solutions, annealed from 1 ...
    anneal: float = 0.8  # ... over this share of the steps
    seed: int = 0

    def __post_init__(self):
        _check(self.steps >= 0, "warm_start.steps", self.steps, "negative", "0 skips it")
        _positive("warm_start", self, ("batch_size", "learning_rate", "anneal"))
        _check(
            0 <= self.worked_share_end <= 1,
            "warm_start.worked_share_end",
            self.worked_share_end,
            "not a share",
            "use a value in [0, 1]",
        )


@dataclass(frozen=True)
class EvalConfig:
    every_steps: int = 10
    samples_per_prompt: int = 4
    seed: int = 0

    def __post_init__(self):
        _positive("eval", self, ("every_steps", "samples_per_prompt"))


@dataclass(frozen=True)
class MeshConfig:
    data: int = 0  # devices that split the prompts of a batch; 0: all that divide it
    fsdp: int = 1  # devices that split the parameters, and the prompts too
    tensor: int = 1  # devices that split heads and feed-forward

    def __post_init__(self):
        _check(self.data >= 0, "mesh.data", self.data, "negative", "0 takes all devices")
        _positive("mesh", self, ("fsdp", "tensor"))


@dataclass(frozen=True)
class Config:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    steps: int = 200
    seed: int = 0
    recipe: str = "scalerl"  # the row of conf/algo
    study: str = ""  # name of the sweep, if the run belongs to one
    axes: dict[str, Any] = field(default_factory=dict)  # what the sweep varies besides the recipe
    out: str = "runs/run"  # directory of this run
    warm_start_dir: str = ""  # where warm starts are shared; empty: inside `out`

    def __post_init__(self):
        _positive("config", self, ("steps",))
        devices = max(self.mesh.data, 1) * self.mesh.fsdp
        prompts = self.rollout.prompts_per_step
        slices = devices * self.optim.microbatches
        _check(
            prompts % slices == 0,
            "rollout.prompts_per_step",
            prompts,
            f"not divisible by mesh.data * mesh.fsdp * optim.microbatches = {slices}",
            "every device and microbatch takes the same number of whole groups",
        )
        _check(
            prompts <= self.env.train_prompts,
            "rollout.prompts_per_step",
            prompts,
            f"more than env.train_prompts={self.env.train_prompts}",
            "one batch holds different prompts",
        )

    @property
    def slots(self) -> int:
        return self.rollout.slots or self.rollout.prompts_per_step * self.rollout.group_size


def config_sha(config: object) -> str:
    """Twelve hex digits that name a configuration (any of the dataclasses above)."""
    text = json.dumps(asdict(config), sort_keys=True, default=str)  # ty: ignore[invalid-argument-type]
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_sha(config: Config) -> str:
    """The name of what a run computes, wherever it is kept."""
    return config_sha(replace(config, out="", warm_start_dir=""))
