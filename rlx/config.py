"""Every option of a run, as frozen dataclasses checked when they are made.

Words that name a choice (`loss`, `advantage`, ...) select one function each; the numbers beside
them reach the jitted step as traced scalars, so runs that differ only in numbers share one
compilation. A value that cannot work raises `InputError`, whose text is `key=value: reason;
remedy`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from rlx.errors import InputError


def _check(ok: bool, key: str, value: object, reason: str, remedy: str) -> None:
    if not ok:
        raise InputError(key, value, reason, remedy)


def _one_of(key: str, value: str, names: tuple[str, ...]) -> None:
    _check(value in names, key, value, "unknown name", f"use one of {', '.join(names)}")


def _positive(prefix: str, config: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(config, name)
        _check(value > 0, f"{prefix}.{name}", value, "must be positive", "give a value above 0")


LOSSES = ("reinforce", "ppo_clip", "cispo", "gspo", "tbrm")
ADVANTAGES = ("none", "centered", "prompt_norm", "batch_norm", "leave_one_out", "gae")
AGGREGATIONS = ("token_mean", "sample_mean", "prompt_mean", "fixed_length")
PIPELINES = ("sync", "pipeline", "ppo_off_policy")
SCHEDULES = ("deterministic", "threads")
CORRECTIONS = ("none", "truncated", "masked")
KLS = ("none", "k1_reward", "k2", "k3")
REWARDS = ("score", "format", "random", "model")
SHAPES = ("linear", "sigmoid")
LENGTH_CONTROLS = ("none", "interruption", "penalty_passes", "penalty_all")
ZERO_VARIANCE = ("keep", "drop", "refill")
TRACKERS = ("none", "tensorboard", "wandb")
DTYPES = ("float32", "bfloat16")
ATTENTIONS = ("auto", "xla", "cudnn")
ROPE_SCALINGS = ("none", "linear", "llama3", "yarn")
ENVS = ("digit_chain", "reasoning_gym", "math", "code", "mixture", "preference")
ROUTERS = ("softmax", "sigmoid")
DISPATCHES = ("sorted", "dense")
ON_GRADE_ERROR = ("zero", "stop")


@dataclass(frozen=True)
class ModelConfig:
    """One decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU, a mixture of them."""

    d_model: int = 64
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 16
    d_ff: int = 192
    vocab_size: int = 0  # rows of the embedding; 0: the tokenizer's words
    rope_theta: float = 1000.0
    rope_scaling: str = "none"  # how the angles are stretched to reach further
    rope_factor: float = 1.0  # ... by how much at most
    rope_original_context: int = 0  # llama3, yarn: tokens of the unstretched model
    rope_low: float = 1.0  # llama3, yarn: pairs that turn less often over those are stretched fully
    rope_high: float = 4.0  # ... those that turn more often are not
    rope_neighbours: bool = False  # the pairs are (x_2i, x_2i+1), not (x_i, x_{i + head_dim / 2})
    no_rope_every: int = 0  # every so-manieth layer has no RoPE; 0: all have it
    context_tokens: int = 0  # the longest sequence the weights are made for; 0: any
    sliding_window: int = 0  # keys that a query attends to, its own included; 0: all before it
    sliding_window_from: int = 0  # the first layer with that window
    attention_chunk: int = 0  # layers with RoPE see their own chunk of so many tokens; 0: all
    far_query_scale: float = 0.0  # queries without RoPE grow by scale ln(1 + floor(t / tokens)) ...
    far_query_tokens: int = 8192
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    qk_unit_norm: bool = False  # RMSNorm without weights, after RoPE
    n_experts: int = 0  # of a sparse layer; 0: all layers are dense
    experts_per_token: int = 1
    d_ff_expert: int = 0
    d_ff_shared: int = 0  # of the expert that every token takes besides; 0: none
    router: str = "softmax"  # over all experts, weighs outputs; sigmoid: of each, scales inputs
    norm_topk: bool = False  # softmax: the weights of a token's experts sum to 1
    sparse_every: int = 1  # every so-manieth layer is sparse, the last of each such run ...
    sparse_from: int = 0  # ... unless it comes before this one
    tie_embeddings: bool = False
    path: str = ""  # folder or .gguf file of pretrained weights, which give the fields above
    scan_layers: bool = False  # one compiled layer, looped; unrolled is faster at depth <= 4
    moe_dispatch: str = "sorted"  # tokens to their experts; dense: every expert runs every token
    router_aux_coef: float = 0.0  # weight of the sequence-wise balance loss
    remat: bool = False  # a layer's activations are computed again by the backward pass, not kept
    query_chunk: int = 0  # queries whose attention scores exist at once; 0: all
    attention: str = "auto"  # xla, or cudnn: fused, on NVIDIA GPUs in bfloat16
    param_dtype: str = "float32"  # parameters, and with them the optimiser's moments
    compute_dtype: str = "float32"  # activations, keys and values

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
        _one_of("model.rope_scaling", self.rope_scaling, ROPE_SCALINGS)
        _positive("model", self, ("rope_factor",))
        if self.rope_scaling in ("llama3", "yarn"):
            _positive("model", self, ("rope_original_context", "rope_low"))
            _check(
                self.rope_low <= self.rope_high,
                "model.rope_high",
                self.rope_high,
                f"below model.rope_low={self.rope_low}",
                "angles are blended between the two",
            )
        sizes = ("vocab_size", "context_tokens", "sliding_window", "sliding_window_from")
        for name in (*sizes, "query_chunk"):
            value = getattr(self, name)
            _check(value >= 0, f"model.{name}", value, "negative", "0 leaves it out")
        self._check_attention()
        self._check_experts()
        _one_of("model.attention", self.attention, ATTENTIONS)
        _one_of("model.param_dtype", self.param_dtype, DTYPES)
        _one_of("model.compute_dtype", self.compute_dtype, DTYPES)

    def _check_attention(self):
        for name in ("no_rope_every", "attention_chunk", "far_query_scale"):
            value = getattr(self, name)
            _check(value >= 0, f"model.{name}", value, "negative", "0 leaves it out")
        _positive("model", self, ("far_query_tokens",))
        _check(
            not self.sliding_window or not (self.attention_chunk or self.no_rope_every),
            "model.sliding_window",
            self.sliding_window,
            "beside model.attention_chunk or model.no_rope_every",
            "local layers have one kind of bound: leave one out",
        )
        _check(
            not self.far_query_scale or self.no_rope_every > 0,
            "model.far_query_scale",
            self.far_query_scale,
            "no layer is without RoPE",
            "set model.no_rope_every too",
        )

    def _check_experts(self):
        _one_of("model.router", self.router, ROUTERS)
        _one_of("model.moe_dispatch", self.moe_dispatch, DISPATCHES)
        for name in ("n_experts", "d_ff_shared", "sparse_from", "router_aux_coef"):
            value = getattr(self, name)
            _check(value >= 0, f"model.{name}", value, "negative", "0 leaves it out")
        _positive("model", self, ("experts_per_token", "sparse_every"))
        if not self.n_experts:
            aux = self.router_aux_coef
            _check(not aux, "model.router_aux_coef", aux, "no router", "set model.n_experts too")
            return
        _positive("model", self, ("d_ff_expert",))
        _check(
            self.experts_per_token <= self.n_experts,
            "model.experts_per_token",
            self.experts_per_token,
            f"above model.n_experts={self.n_experts}",
            "a token takes each expert at most once",
        )
        _check(
            len(self.sparse_layers) > 0,
            "model.sparse_from",
            self.sparse_from,
            f"no layer of model.n_layers={self.n_layers} has experts",
            "lower it or model.sparse_every, or set model.n_experts=0",
        )
        _check(
            not self.scan_layers or len(self.sparse_layers) == self.n_layers,
            "model.scan_layers",
            self.scan_layers,
            "dense layers and sparse ones are not one layer, looped",
            "set model.scan_layers=false",
        )

    @property
    def local_layers(self) -> tuple[int, ...]:
        """Layers whose attention is bounded, or that alone have RoPE."""
        layers = range(self.n_layers)
        if self.attention_chunk or self.no_rope_every:
            return tuple(
                i for i in layers if not self.no_rope_every or (i + 1) % self.no_rope_every
            )
        return tuple(layers[self.sliding_window_from :]) if self.sliding_window else ()

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        every, first = self.sparse_every, self.sparse_from
        layers = range(self.n_layers) if self.n_experts else ()
        return tuple(i for i in layers if i >= first and (i + 1) % every == 0)


@dataclass(frozen=True)
class AlgoConfig:
    """One field per ablation axis; a row of conf/algo is a recipe."""

    # Policy objective
    loss: str = "cispo"
    advantage: str = "batch_norm"
    aggregation: str = "prompt_mean"
    clip_low: float = 0.2  # ppo_clip, gspo: the ratio is kept above 1 - clip_low
    clip_high: float = 0.28  # ppo_clip, gspo: and below 1 + clip_high
    is_cap: float = 5.0  # cispo: absolute bound on the importance ratio
    advantage_eps: float = 1e-6  # added to the std that normalises advantages
    correction: str = "none"  # of the sampler's policy, for losses that do not correct themselves
    correction_cap: float = 2.0  # truncated: bound on the weight; masked: [1 / cap, cap] counts
    # Terms beside it
    kl: str = "none"  # to the warm start: k2 and k3 in the loss, k1_reward in the reward
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    value_coef: float = 0.5  # gae: weight of the value loss
    value_clip: float = 0.2  # gae: how far a value may leave the sampler's before it is clipped
    gamma: float = 1.0  # gae: discount per token
    gae_lambda: float = 0.95
    tbrm_beta: float = 0.1  # tbrm: reward per nat
    # Reward
    reward: str = "score"  # model: reward_model's; format and random know no answer: controls
    reward_model: str = "runs/reward_model"  # run of experiments.reward_model; judge of preference
    reward_pass: float = 1.0  # reward of a pass ...
    reward_fail: float = -1.0  # ... and of a fail; scores between are interpolated
    reward_shape: str = "linear"  # sigmoid: scores pass through it first
    reward_threshold: float = 0.5  # sigmoid: the score that pays half
    reward_sharpness: float = 10.0  # sigmoid: slope there, times 4
    # Length
    length_control: str = "none"  # interruption, or a penalty on right answers or on all (DAPO)
    length_penalty_tokens: int = 2  # it grows from 0 to 1 over the last tokens of max_new_tokens
    # Prompts
    zero_variance: str = "drop"  # prompts whose samples all score alike: keep, drop, or refill
    no_positive_resampling: bool = False  # a prompt that passes often enough never comes back
    retire_pass_rate: float = 0.9  # what is often enough, of its latest group
    band_low: float = 0.0  # curriculum: prompts whose latest pass rate lies outside the band ...
    band_high: float = 1.0
    band_retest_epochs: int = 4  # ... are asked in every so-manieth epoch only

    def __post_init__(self):
        _one_of("algo.loss", self.loss, LOSSES)
        _one_of("algo.advantage", self.advantage, ADVANTAGES)
        _one_of("algo.aggregation", self.aggregation, AGGREGATIONS)
        _one_of("algo.correction", self.correction, CORRECTIONS)
        _check(
            self.kl != "k1",
            "algo.kl",
            self.kl,
            "in a loss its expected gradient is zero",
            "use k1_reward, or k2 or k3 in the loss",
        )
        _one_of("algo.kl", self.kl, KLS)
        _one_of("algo.reward", self.reward, REWARDS)
        _one_of("algo.reward_shape", self.reward_shape, SHAPES)
        _one_of("algo.length_control", self.length_control, LENGTH_CONTROLS)
        _one_of("algo.zero_variance", self.zero_variance, ZERO_VARIANCE)
        _check(
            0 <= self.clip_low < 1,
            "algo.clip_low",
            self.clip_low,
            "outside [0, 1)",
            "the lower bound on the ratio is 1 - clip_low",
        )
        for name in ("clip_high", "kl_coef", "entropy_coef", "value_coef", "value_clip"):
            value = getattr(self, name)
            _check(value >= 0, f"algo.{name}", value, "negative", "use 0 or more")
        _positive("algo", self, ("is_cap", "advantage_eps", "tbrm_beta", "reward_sharpness"))
        _positive("algo", self, ("length_penalty_tokens", "band_retest_epochs"))
        _check(
            self.correction_cap > 1,
            "algo.correction_cap",
            self.correction_cap,
            "leaves out ratios of 1",
            "use a value above 1",
        )
        for name in ("gamma", "gae_lambda", "retire_pass_rate", "band_low", "band_high"):
            value = getattr(self, name)
            _check(0 <= value <= 1, f"algo.{name}", value, "not in [0, 1]", "use a share")
        _check(
            self.band_low < self.band_high,
            "algo.band_low",
            self.band_low,
            f"not below algo.band_high={self.band_high}",
            "the band must hold some pass rates",
        )
        _check(
            self.correction == "none" or self.loss in ("reinforce", "ppo_clip"),
            "algo.correction",
            self.correction,
            f"algo.loss={self.loss} carries its own ratio to the sampler, or needs none",
            "set algo.loss=reinforce or ppo_clip, or algo.correction=none",
        )
        _check(
            self.kl == "none" or self.kl_coef > 0,
            "algo.kl_coef",
            self.kl_coef,
            f"algo.kl={self.kl} would do nothing",
            "give a coefficient above 0, or set algo.kl=none",
        )
        _check(
            self.kl != "none" or self.kl_coef == 0,
            "algo.kl",
            self.kl,
            f"algo.kl_coef={self.kl_coef} would do nothing",
            "set algo.kl=k1_reward, k2 or k3",
        )
        _check(
            self.reward != "model" or self.reward_shape == "linear",
            "algo.reward_shape",
            self.reward_shape,
            "what algo.reward=model says is no score in [0, 1]",
            "set algo.reward_shape=linear",
        )
        _check(
            self.advantage != "gae" or self.zero_variance == "keep",
            "algo.zero_variance",
            self.zero_variance,
            "a critic learns from prompts without variance too",
            "set algo.zero_variance=keep",
        )
        _check(
            self.loss != "tbrm" or self.advantage != "gae" and self.kl == "none",
            "algo.loss",
            self.loss,
            "its residual holds the reward and the reference already",
            "leave algo.kl=none and algo.advantage as it is",
        )
        _check(
            self.reward_pass > self.reward_fail,
            "algo.reward_pass",
            self.reward_pass,
            f"not above algo.reward_fail={self.reward_fail}",
            "a pass must pay more than a fail",
        )

    @property
    def has_critic(self) -> bool:
        return self.advantage == "gae"

    @property
    def needs_reference(self) -> bool:
        return self.kl != "none" or self.loss == "tbrm"


@dataclass(frozen=True)
class EnvConfig:
    """The task. `kwargs` go to the environment's constructor, which rejects what it lacks."""

    name: str = "digit_chain"  # or the path of a Python file: see rlx.envs.own
    kwargs: dict[str, Any] = field(default_factory=dict)
    train_prompts: int = 1024  # finite, so that epochs exist
    heldout_prompts: int = 256
    seed: int = 0  # of the prompt sets, not of the run
    tokenizer: str = ""  # folder or GGUF file of a checkpoint; empty: the task's characters
    chat: bool = False  # ask by the tokenizer's chat template
    system_prompt: str = ""
    prompt_template: str = "{prompt}"  # what the policy is asked, with the task's prompt inside
    grade_timeout_s: float = 10.0  # for one answer; 0 grades in this process, without a limit
    grade_workers: int = 2  # processes that grade
    on_grade_error: str = "zero"  # a grader that hangs or fails: count it, or stop the run

    def __post_init__(self):
        if not self.name.endswith(".py"):
            _one_of("env.name", self.name, ENVS)
        _positive("env", self, ("train_prompts", "heldout_prompts", "grade_workers"))
        _one_of("env.on_grade_error", self.on_grade_error, ON_GRADE_ERROR)
        limit = self.grade_timeout_s
        _check(limit >= 0, "env.grade_timeout_s", limit, "negative", "0 sets no limit")
        _check(
            not self.system_prompt or self.chat,
            "env.system_prompt",
            self.system_prompt,
            "only a chat template has a place for it",
            "set env.chat=true",
        )


@dataclass(frozen=True)
class RolloutConfig:
    prompts_per_step: int = 16  # P
    group_size: int = 16  # G
    max_new_tokens: int = 9  # T
    temperature: float = 1.0
    slots: int = 0  # sequences in flight; 0 means prompts_per_step * group_size
    decode_chunk_tokens: int = 3  # tokens decoded between two looks of the host
    head_dtype: str = "float32"  # sampler: hidden states and head weights in the logits' matmul
    think_tokens_min: int = 5  # algo.length_control=interruption: thinking ends after a number ...
    think_tokens_max: int = 6  # ... of tokens drawn for each sample between these two
    answer_tokens: int = 2  # room for the answer after it
    interruption: str = ">"  # the phrase that is put into the mouth of the policy
    think_end: str = ">"  # the token by which the policy ends its thinking itself

    def __post_init__(self):
        _one_of("rollout.head_dtype", self.head_dtype, DTYPES)
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
    """Who waits for whom. See rlx.rollout.buffer for the bound that each kind guarantees."""

    kind: str = "sync"
    k: int = 0
    decode_chunks_per_update: int = 3  # virtual clock: chunks that pass while one update is made
    schedule: str = "deterministic"  # by that clock; threads: by the machine's, on two meshes
    replay: str = ""  # run directory whose schedule.jsonl to follow instead

    def __post_init__(self):
        _one_of("pipeline.kind", self.kind, PIPELINES)
        _one_of("pipeline.schedule", self.schedule, SCHEDULES)
        _check(
            not self.replay or self.schedule == "deterministic",
            "pipeline.replay",
            self.replay,
            "a recorded schedule is followed by one thread",
            "set pipeline.schedule=deterministic",
        )
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
    group_slices: int = 1  # ... each cut again into parts of its groups; prompts run in each part
    pack: bool = False  # short completions of a prompt share a row of the learner's forward pass
    vocab_chunk: int = 0  # vocabulary entries per piece of the log-prob; 0: one piece
    lora_rank: int = 0  # of adapters that are trained instead of the matrices; 0: all is trained
    lora_alpha: float = 32.0  # adapters count alpha / rank times
    head_dtype: str = "float32"  # learner: hidden states and head weights in the logits' matmul
    max_skipped_updates: int = 10  # updates in a row whose objective or gradient is not finite

    def __post_init__(self):
        _one_of("optim.head_dtype", self.head_dtype, DTYPES)
        _positive("optim", self, ("learning_rate", "eps", "max_grad_norm", "microbatches"))
        _positive("optim", self, ("max_skipped_updates", "group_slices"))
        _check(
            self.group_slices == 1 or not self.pack,
            "optim.group_slices",
            self.group_slices,
            "rows that samples share are not cut",
            "set optim.pack=false",
        )
        _check(self.lora_rank >= 0, "optim.lora_rank", self.lora_rank, "negative", "use 0 for none")
        _positive("optim", self, ("lora_alpha",))
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
    expert: int = 1  # devices that split the experts
    tensor: int = 1  # devices that split heads and feed-forward
    generators: int = 0  # devices of the generator alone, the last ones; 0: it shares the learner's

    def __post_init__(self):
        _check(self.data >= 0, "mesh.data", self.data, "negative", "0 takes all devices")
        _check(self.generators >= 0, "mesh.generators", self.generators, "negative", "use 0")
        _positive("mesh", self, ("fsdp", "expert", "tensor"))


@dataclass(frozen=True)
class CheckpointConfig:
    """When the whole state is written; it changes nothing of what a run computes."""

    every_steps: int = 100  # updates between two, or ...
    every_minutes: float = 10.0  # ... minutes, whichever comes first
    keep_last: int = 2
    keep_every_steps: int = 0  # besides, those of multiples of so many updates; 0: none

    def __post_init__(self):
        _positive("checkpoint", self, ("every_steps", "every_minutes", "keep_last"))
        every = self.keep_every_steps
        _check(every >= 0, "checkpoint.keep_every_steps", every, "negative", "use 0 for none")


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
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    steps: int = 200
    seed: int = 0
    recipe: str = "scalerl"  # the row of conf/algo
    study: str = ""  # name of the sweep, if the run belongs to one
    axes: dict[str, Any] = field(default_factory=dict)  # what the sweep varies besides the recipe
    out: str = "runs/run"  # directory of this run
    warm_start_dir: str = ""  # where warm starts are shared; empty: inside `out`
    tracker: str = "none"  # dashboard that mirrors the rows
    distributed: bool = False  # this process is one of several that make the run together

    def __post_init__(self):
        _positive("config", self, ("steps",))
        _one_of("tracker", self.tracker, TRACKERS)
        devices = max(self.mesh.data, 1) * self.mesh.fsdp
        _check(
            self.mesh.expert == 1
            or self.model.n_experts % self.mesh.expert == 0 < self.model.n_experts,
            "mesh.expert",
            self.mesh.expert,
            f"does not divide model.n_experts={self.model.n_experts}",
            "every device takes the same number of experts",
        )
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
            self.rollout.group_size % self.optim.group_slices == 0,
            "optim.group_slices",
            self.optim.group_slices,
            f"does not divide rollout.group_size={self.rollout.group_size}",
            "every slice takes as many samples of a prompt",
        )
        _check(
            prompts <= self.env.train_prompts,
            "rollout.prompts_per_step",
            prompts,
            f"more than env.train_prompts={self.env.train_prompts}",
            "one batch holds different prompts",
        )
        _check(
            self.pipeline.schedule != "threads" or self.mesh.generators > 0,
            "mesh.generators",
            self.mesh.generators,
            "pipeline.schedule=threads needs devices for generation alone",
            "give a number of devices above 0",
        )
        text = {"chat": False, "system_prompt": "", "prompt_template": "{prompt}"}
        for key, plain in text.items():
            value = getattr(self.env, key)
            _check(
                value == plain or bool(self.env.tokenizer or self.model.path),
                f"env.{key}",
                value,
                "characters are read as they are",
                "set env.tokenizer or model.path too",
            )
        rollout, length_control = self.rollout, self.algo.length_control
        _check(
            not self.model.context_tokens or rollout.max_new_tokens < self.model.context_tokens,
            "rollout.max_new_tokens",
            rollout.max_new_tokens,
            f"no room for a prompt in model.context_tokens={self.model.context_tokens}",
            "lower rollout.max_new_tokens",
        )
        if length_control == "interruption":
            _positive("rollout", rollout, ("think_tokens_min", "answer_tokens"))
            _check(
                rollout.think_tokens_min <= rollout.think_tokens_max,
                "rollout.think_tokens_max",
                rollout.think_tokens_max,
                f"below rollout.think_tokens_min={rollout.think_tokens_min}",
                "the budget is drawn between the two",
            )
            _check(
                rollout.think_tokens_max + rollout.answer_tokens < rollout.max_new_tokens,
                "rollout.max_new_tokens",
                rollout.max_new_tokens,
                f"no room for {rollout.think_tokens_max} tokens of thinking, an interruption and "
                f"{rollout.answer_tokens} of answer",
                "raise rollout.max_new_tokens",
            )
        _check(
            self.algo.length_penalty_tokens < rollout.max_new_tokens
            or not length_control.startswith("penalty"),
            "algo.length_penalty_tokens",
            self.algo.length_penalty_tokens,
            f"not below rollout.max_new_tokens={rollout.max_new_tokens}",
            "the penalty grows over the last tokens of an answer",
        )

    @property
    def needs_reward_model(self) -> bool:
        return self.algo.reward == "model" or self.env.name == "preference"

    @property
    def slots(self) -> int:
        return self.rollout.slots or self.rollout.prompts_per_step * self.rollout.group_size


def _no_groups(config: Config) -> None:
    slices = config.optim.group_slices
    _check(slices == 1, "optim.group_slices", slices, "no groups here", "use optim.microbatches")


@dataclass(frozen=True)
class SftConfig(Config):
    """Supervised fine-tuning: a batch is `rollout.prompts_per_step` traces."""

    traces: str = ""  # JSON lines of prompt and completion; empty: the environment's own solutions

    def __post_init__(self):
        super().__post_init__()
        _no_groups(self)
        objective = (self.algo.loss, self.algo.advantage)
        _check(
            objective == ("reinforce", "none"),
            "algo.loss",
            self.algo.loss,
            f"with algo.advantage={self.algo.advantage} is not the likelihood of the traces",
            "set algo=sft",
        )


@dataclass(frozen=True)
class RewardModelConfig(Config):
    """A reward model: a batch is `rollout.prompts_per_step` pairs."""

    pairs: str = ""  # JSON lines of prompt, chosen, rejected; empty: those of env.name=preference

    def __post_init__(self):
        super().__post_init__()
        _no_groups(self)
        _check(
            bool(self.pairs) or self.env.name == "preference",
            "pairs",
            self.pairs,
            f"env.name={self.env.name} has none",
            "give a file of JSON lines",
        )

    @property
    def needs_reward_model(self) -> bool:
        return False


WHERE = ("out", "warm_start_dir", "tracker", "distributed", "checkpoint", "mesh")


def config_sha(config: object) -> str:
    """Twelve hex digits that name a configuration (any of the dataclasses above)."""
    return _sha(asdict(config))  # ty: ignore[invalid-argument-type]


def run_sha(config: Config) -> str:
    """The name of what a run computes, wherever it is kept and on whichever devices.

    So a run may go on on another mesh: from the same state, with sums that differ in rounding.
    """
    return _sha({name: value for name, value in asdict(config).items() if name not in WHERE})


def _sha(fields: dict[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
