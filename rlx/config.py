"""Every option of a run, as frozen dataclasses that check their values.

Options that name a choice (`loss`, `advantage`, ...) select one function each. The numbers are
traced scalars of the jitted step, so runs that differ only in numbers share one compilation. A
value that cannot work raises `InputError`, printed as `key=value: reason; remedy`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, NoReturn

from rlx.errors import InputError

TYPES = {"int": int, "float": int | float, "bool": bool, "str": str, "dict": dict}
HELD = {  # numbers that the arrays of a step hold without rounding to 0 or infinity
    "int": lambda x: abs(x) < 2**32,
    "float": lambda x: x == 0 or 2.0**-126 <= abs(x) < 2.0**128,
}


class Section:
    """Options that are checked one by one, then against each other.

    `section`: prefix of their names in messages; `ranges`: the names of all numbers, by interval;
    `names`: allowed words; `remedies`: remedies in messages, if not derived from the interval.
    """

    section = ""
    ranges = {}
    names = {}
    remedies = {}

    def __post_init__(self):
        interval_of = {name: i for i, names in self.ranges.items() for name in names.split()}
        for option in fields(self):  # ty: ignore[invalid-argument-type]
            name, kind = option.name, str(option.type).split("[")[0]
            value = getattr(self, name)
            flag = isinstance(value, bool) and kind in HELD  # a number to Python
            if flag or not isinstance(value, TYPES.get(kind, object)):
                self.refuse(name, f"not of type {kind}", "give a value of that type")
            if name in self.names and value not in self.names[name]:
                self.refuse(name, "unknown name", f"use one of {', '.join(self.names[name])}")
            if kind in HELD and (wrong := _outside(value, interval_of[name], HELD[kind])):
                reason, remedy = wrong
                self.refuse(name, reason, self.remedies.get(name, remedy))
        self.check()

    def check(self) -> None:
        """Refuse options that do not go together."""

    def refuse(self, key: str, reason: str, remedy: str) -> NoReturn:
        """Raises InputError for a field, or for SECTION.FIELD of a section."""
        value = functools.reduce(getattr, key.split("."), self)
        raise InputError(f"{self.section}{key}", value, reason, remedy)


def _outside(value: float, interval: str, held: Callable[[float], bool]):
    """(reason, remedy) if a number is outside an interval such as [0, 1); else None."""
    low, high = map(float, interval[1:-1].split(","))
    above = value > low or interval[0] == "[" and value == low
    below = value < high or interval[-1] == "]" and value == high
    if above and below and held(value):
        return None
    if not abs(value) < math.inf or above and below:
        reason = "more than 32 bits can hold" if abs(value) < math.inf else "not finite"
        return reason, f"use a value in {interval}"
    known = {
        "(0, inf)": ("must be positive", "give a value above 0"),
        "[0, inf)": ("negative", "use 0 or more"),
    }
    return known.get(interval, (f"outside {interval}", f"use a value in {interval}"))


PIPELINES = ("sync", "pipeline", "ppo_off_policy")
SCHEDULES = ("deterministic", "threads")
CORRECTIONS = (
    *("none", "truncated", "masked"),
    *("sequence_truncated", "sequence_masked", "geometric_truncated", "geometric_masked"),
)
KLS = ("none", "k1_reward", "k2", "k3")
REWARDS = ("score", "format", "random", "model")
SHAPES = ("linear", "sigmoid")
LENGTH_CONTROLS = ("none", "interruption", "penalty_passes", "penalty_all")
ZERO_VARIANCE = ("keep", "drop", "refill")
TRACKERS = ("none", "tensorboard", "wandb")
DTYPES = ("float32", "bfloat16")
COMPUTE_DTYPES = (*DTYPES, "float16")
ATTENTIONS = ("auto", "xla", "cudnn", "splash")
ROPE_SCALINGS = ("none", "linear", "llama3", "yarn")
ENVS = (
    *("digit_chain", "reasoning_gym", "math", "code", "mixture", "preference"),
    *("guess", "calculator", "python_tool", "verifiers"),
)
ROUTERS = ("softmax", "sigmoid")
DISPATCHES = ("auto", "sorted", "blocks", "dense")
ON_GRADE_ERROR = ("zero", "stop")
GUARD_ACTIONS = ("none", "stop", "lower")
KERNELS = ("auto", "repeatable", "fastest")


@dataclass(frozen=True)
class ModelConfig(Section):
    """One decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU, optionally with experts."""

    d_model: int = 64
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 16
    d_ff: int = 192
    vocab_size: int = 0  # rows of the embedding, if more than the tokenizer's vocabulary
    rope_theta: float = 1000.0
    rope_scaling: str = "none"  # how RoPE is extended beyond the context of pretraining
    rope_factor: float = 1.0  # ... by at most this factor
    rope_original_context: int = 0  # llama3, yarn: context before the extension, in tokens
    rope_low: float = 1.0  # llama3, yarn: pairs with fewer rotations over it are stretched fully
    rope_high: float = 4.0  # ... those with more rotations are not
    rope_neighbours: bool = False  # pairs are (x_2i, x_2i+1) instead of (x_i, x_{i + head_dim / 2})
    no_rope_every: int = 0  # every n-th layer has no RoPE; 0: all layers have it
    context_tokens: int = 0  # the longest sequence that the weights support; 0: any
    sliding_window: int = 0  # keys that a query attends to, including its own; 0: all before it
    sliding_window_from: int = 0  # the first layer with that window
    attention_chunk: int = 0  # layers with RoPE attend within chunks of this many tokens; 0: to all
    far_query_scale: float = 0.0  # queries without RoPE grow by scale ln(1 + floor(t / tokens)) ...
    far_query_tokens: int = 8192  # ... with these tokens
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    qk_unit_norm: bool = False  # RMSNorm without weights, after RoPE
    n_experts: int = 0  # per sparse layer; 0: all layers are dense
    experts_per_token: int = 1
    d_ff_expert: int = 0
    d_ff_shared: int = 0  # of an expert that all tokens share; 0: none
    router: str = "softmax"  # over all experts, weights outputs; sigmoid: of each, scales inputs
    norm_topk: bool = False  # softmax: the weights of a token's experts sum to 1
    sparse_every: int = 1  # every n-th layer is sparse (layers n - 1, 2n - 1, ...) ...
    sparse_from: int = 0  # ... from this layer on
    tie_embeddings: bool = False
    path: str = ""  # folder or .gguf file of pretrained weights; it sets the fields above
    scan_layers: bool = False  # loop over one compiled layer: compiles sooner, moves more memory
    moe_dispatch: str = "auto"  # sorted by expert, GPU: in blocks; dense: all experts, all tokens
    router_aux_coef: float = 0.0  # weight of the sequence-wise balance loss
    remat: bool = False  # recompute a layer's activations in the backward pass
    query_chunk: int = 0  # queries whose attention scores exist at once; 0: all
    attention: str = "auto"  # xla; fused, bfloat16: cudnn (GPU, scan_layers), splash (TPU)
    param_dtype: str = "float32"  # parameters; bfloat16: only of those that are not trained
    compute_dtype: str = "float32"  # activations, keys and values; float16 uses loss scaling

    section = "model."
    ranges = {
        "(0, inf)": "d_model n_layers n_heads n_kv_heads head_dim d_ff rope_theta rope_factor "
        "rope_low rope_high far_query_tokens norm_eps experts_per_token sparse_every",
        "[0, inf)": "vocab_size rope_original_context no_rope_every context_tokens sliding_window "
        "sliding_window_from attention_chunk far_query_scale n_experts d_ff_expert d_ff_shared "
        "sparse_from router_aux_coef query_chunk",
    }
    names = {
        "rope_scaling": ROPE_SCALINGS, "router": ROUTERS, "moe_dispatch": DISPATCHES,
        "param_dtype": DTYPES, "compute_dtype": COMPUTE_DTYPES, "attention": ATTENTIONS,
    }  # fmt: skip

    def check(self):
        if self.n_heads % self.n_kv_heads:
            reason = f"not a multiple of model.n_kv_heads={self.n_kv_heads}"
            self.refuse("n_heads", reason, "query heads share key/value heads in equal numbers")
        if self.head_dim % 2:
            self.refuse("head_dim", "odd", "use an even number: RoPE rotates pairs of dimensions")
        if self.rope_scaling in ("llama3", "yarn"):
            if not self.rope_original_context:
                remedy = f"model.rope_scaling={self.rope_scaling} needs a value above 0"
                self.refuse("rope_original_context", "must be positive", remedy)
            if self.rope_low > self.rope_high:
                reason = f"below model.rope_low={self.rope_low}"
                self.refuse("rope_high", reason, "angles are blended between the two")
        if self.sliding_window and (self.attention_chunk or self.no_rope_every):
            reason = "together with model.attention_chunk or model.no_rope_every"
            self.refuse("sliding_window", reason, "local layers have one kind of bound: use one")
        if self.far_query_scale and not self.no_rope_every:
            self.refuse("far_query_scale", "every layer has RoPE", "set model.no_rope_every")
        self._check_experts()

    def _check_experts(self):
        if not self.n_experts:
            return
        if not self.d_ff_expert:
            self.refuse("d_ff_expert", "must be positive", "give a value above 0")
        if self.experts_per_token > self.n_experts:
            reason = f"above model.n_experts={self.n_experts}"
            self.refuse("experts_per_token", reason, "a token takes each expert at most once")
        if not self.sparse_layers:
            reason = f"no layer of model.n_layers={self.n_layers} has experts"
            remedy = "lower it or model.sparse_every, or set model.n_experts=0"
            self.refuse("sparse_from", reason, remedy)
        if self.scan_layers and len(self.sparse_layers) < self.n_layers:
            reason = "dense and sparse layers cannot share one compiled layer"
            self.refuse("scan_layers", reason, "set model.scan_layers=false")

    @property
    def local_layers(self) -> tuple[int, ...]:
        """Layers with bounded attention, or, where some layers have no RoPE, those with RoPE."""
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
class AlgoConfig(Section):
    """One field per ablation axis; a file of conf/algo is a recipe."""

    # Policy objective: names registered in rlx.objectives
    loss: str = "cispo"  # or the import path MODULE:FUNCTION of one
    advantage: str = "batch_norm"
    aggregation: str = "prompt_mean"
    clip_low: float = 0.2  # bounds on the importance ratio: 1 - clip_low ...
    clip_high: float = 0.28  # ... and 1 + clip_high; gmpo: on its log, dppo: on a divergence
    is_cap: float = 5.0  # cispo, dppo: absolute bound on the importance ratio
    tau_positive: float = 1.0  # sapo: how fast the gate closes for positive advantages
    tau_negative: float = 1.05  # sapo: and for negative ones
    advantage_eps: float = 1e-6  # added to the std that normalises advantages
    correction: str = "none"  # off-policy correction, for losses without one
    correction_cap: float = 2.0  # truncated: bound on the weight; masked: keep [1 / cap, cap]
    covariance_share: float = 0.0  # share of the tokens to mask, by their covariance (Clip-Cov) ...
    covariance_low: float = 1.0  # ... of log-prob and advantage, if it is above this
    covariance_high: float = 5.0  # ... and below this
    replay_routing: bool = False  # the learner uses the experts of the sampler's routing
    # Further terms
    kl: str = "none"  # to the initial policy: k2 and k3 in the loss, k1_reward in the reward
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    value_coef: float = 0.5  # gae: weight of the value loss
    value_clip: float = 0.2  # gae: clips the change of a value since sampling
    gamma: float = 1.0  # gae: discount per token
    gae_lambda: float = 0.95
    tbrm_beta: float = 0.1  # tbrm: reward per nat
    # Teacher: the token's log-ratio to it is added to the advantage, or is the advantage (distill)
    teacher: str = ""  # run, folder or .gguf file of a policy with the same tokenizer; empty: none
    teacher_coef: float = 1.0  # advantage per nat
    # Reward
    reward: str = "score"  # model: by reward_model; format, random: controls that ignore the answer
    reward_model: str = "runs/reward_model"  # run of experiments.reward_model; judge of preference
    reward_pass: float = 1.0  # reward of a pass ...
    reward_fail: float = -1.0  # ... and of a fail; linear in the score between them
    reward_shape: str = "linear"  # sigmoid: transforms scores first
    reward_threshold: float = 0.5  # sigmoid: the score with half the reward
    reward_sharpness: float = 10.0  # sigmoid: 4 times its slope there
    # Length
    length_control: str = "none"  # interruption, or a penalty on correct answers or on all (DAPO)
    length_penalty_tokens: int = 2  # it grows from 0 to 1 over the last tokens of max_new_tokens
    # Prompts
    zero_variance: str = "drop"  # groups with zero variance: keep, drop, or refill
    no_positive_resampling: bool = False  # never sample a prompt again once it passes often enough
    retire_pass_rate: float = 0.9  # ... which is this pass rate of its latest group
    band_low: float = 0.0  # curriculum: prompts whose latest pass rate lies outside the band ...
    band_high: float = 1.0
    band_retest_epochs: int = 4  # ... are sampled only in every n-th epoch

    section = "algo."
    ranges = {
        "(0, inf)": "is_cap tau_positive tau_negative teacher_coef advantage_eps tbrm_beta "
        "reward_sharpness length_penalty_tokens band_retest_epochs",
        "[0, inf)": "clip_high kl_coef entropy_coef value_coef value_clip",
        "[0, 1]": "gamma gae_lambda retire_pass_rate band_low band_high",
        "[0, 1)": "clip_low covariance_share",
        "(1, inf)": "correction_cap",
        "(-inf, inf)": "reward_pass reward_fail reward_threshold covariance_low covariance_high",
    }
    names = {
        "correction": CORRECTIONS, "kl": KLS, "reward": REWARDS, "reward_shape": SHAPES,
        "length_control": LENGTH_CONTROLS, "zero_variance": ZERO_VARIANCE,
    }  # fmt: skip
    remedies = {"kl": "use none, k1_reward, k2 or k3 (k1 in the loss has zero expected gradient)"}

    def check(self):
        if self.band_low >= self.band_high:
            reason = f"not below algo.band_high={self.band_high}"
            self.refuse("band_low", reason, "leave room between them for pass rates")
        if self.covariance_low >= self.covariance_high:
            reason = f"not below algo.covariance_high={self.covariance_high}"
            self.refuse("covariance_low", reason, "leave room between them for tokens")
        if self.kl != "none" and not self.kl_coef:
            remedy = "give a coefficient above 0, or set algo.kl=none"
            self.refuse("kl_coef", f"algo.kl={self.kl} would have no effect", remedy)
        if self.kl == "none" and self.kl_coef:
            reason = f"algo.kl_coef={self.kl_coef} would have no effect"
            self.refuse("kl", reason, "set algo.kl=k1_reward, k2 or k3")
        if self.reward == "model" and self.reward_shape != "linear":
            reason = "rewards of algo.reward=model are not scores in [0, 1]"
            self.refuse("reward_shape", reason, "set algo.reward_shape=linear")
        if self.reward_pass <= self.reward_fail:
            reason = f"not above algo.reward_fail={self.reward_fail}"
            self.refuse("reward_pass", reason, "a pass must pay more than a fail")
        middle, steepness = self.reward_threshold, self.reward_sharpness / 2
        apart = (math.tanh(steepness * (1 - middle)) + math.tanh(steepness * middle)) / 2
        if self.reward_shape == "sigmoid" and apart < 1e-5:  # float32 resolves 6e-8
            reason = f"it maps scores of 0 and 1 to values only {apart:.1g} apart"
            if 0 <= middle <= 1:
                remedy = "raise it, or set algo.reward_shape=linear"
                self.refuse("reward_sharpness", reason, remedy)
            self.refuse("reward_threshold", reason, "use a value in [0, 1]")


@dataclass(frozen=True)
class EnvConfig(Section):
    """The task. `kwargs` are arguments of the environment's constructor."""

    name: str = "digit_chain"  # or the path of a Python file: see rlx.envs.own
    kwargs: dict[str, Any] = field(default_factory=dict)
    train_prompts: int = 1024  # finite, so that epochs exist
    heldout_prompts: int = 256
    seed: int = 0  # of the prompt sets, not of the run
    tokenizer: str = ""  # folder or GGUF file of a checkpoint; empty: the task's characters
    chat: bool = False  # use the tokenizer's chat template
    system_prompt: str = ""
    prompt_template: str = "{prompt}"  # text of the prompt; {prompt} is the task's
    grade_timeout_s: float = 10.0  # for one answer; 0: grade in this process, without a limit
    grade_workers: int = 2  # grading processes
    on_grade_error: str = "zero"  # if a grader hangs or fails: score 0, or stop the run

    section = "env."
    ranges = {
        "(0, inf)": "train_prompts heldout_prompts grade_workers",
        "[0, inf)": "seed grade_timeout_s",
    }
    names = {"on_grade_error": ON_GRADE_ERROR}
    remedies = {"grade_timeout_s": "0 sets no limit"}

    def check(self):
        if not self.name.endswith(".py") and self.name not in ENVS:
            self.refuse("name", "unknown name", f"use one of {', '.join(ENVS)}, or a .py file")
        if self.system_prompt and not self.chat:
            reason = "it needs a chat template"
            self.refuse("system_prompt", reason, "set env.chat=true")


@dataclass(frozen=True)
class RolloutConfig(Section):
    prompts_per_step: int = 16  # P
    group_size: int = 16  # G
    max_new_tokens: int = 9  # T
    temperature: float = 1.0
    slots: int = 0  # sequences in flight; 0: prompts_per_step * group_size
    decode_chunk_tokens: int = 0  # decoded between two steps of the host; 0: sqrt(max_new_tokens)
    head_dtype: str = "float32"  # sampler: hidden states and head weights in the logits' matmul
    think_tokens_min: int = 5  # algo.length_control=interruption: each sample's thinking budget ...
    think_tokens_max: int = 6  # ... is drawn between these two, in tokens
    answer_tokens: int = 2  # tokens for the answer after the interruption
    interruption: str = ">"  # the phrase that is injected into the completion
    think_end: str = ">"  # the token with which the policy ends its thinking

    section = "rollout."
    ranges = {
        "(0, inf)": "prompts_per_step max_new_tokens temperature",
        "[0, inf)": "slots decode_chunk_tokens think_tokens_min think_tokens_max answer_tokens",
        "[2, inf)": "group_size",
    }
    names = {"head_dtype": DTYPES}
    remedies = {"group_size": "an advantage compares at least 2 samples of a prompt"}

    def check(self):
        if self.slots % self.group_size:
            reason = f"not a positive multiple of rollout.group_size={self.group_size}"
            self.refuse("slots", reason, "slots are filled group by group (0 chooses one batch)")

    @property
    def chunk_tokens(self) -> int:
        """Tokens decoded between two steps of the host.

        By default n = sqrt(T): what waits for the host, T / n steps, and slots that wait for a
        sequence, n / 2 tokens each, are then of one order.
        """
        return self.decode_chunk_tokens or math.isqrt(self.max_new_tokens)


@dataclass(frozen=True)
class EpisodeConfig(Section):
    """Multi-turn episodes: the policy and the environment alternate.

    All tokens of an episode after its prompt, including replies, are at most
    rollout.max_new_tokens.
    """

    max_turns: int = 1  # of the policy; 1: the environment does not reply
    turn_tokens: int = 0  # most tokens of one turn; 0: as many as are left
    reply_s: float = 10.0  # time limit of one reply; none if env.grade_timeout_s=0
    reply_chars: int = 4096  # a longer reply is a failure of the environment

    section = "episode."
    ranges = {"(0, inf)": "max_turns reply_s reply_chars", "[0, inf)": "turn_tokens"}
    remedies = {"turn_tokens": "0 sets no limit besides rollout.max_new_tokens"}


@dataclass(frozen=True)
class PipelineConfig(Section):
    """Staleness and schedule; rlx.rollout.buffer defines the bound that each kind guarantees."""

    kind: str = "sync"
    k: int = 0
    decode_chunks_per_update: int = 3  # virtual clock: duration of an update, in decode chunks
    schedule: str = "deterministic"  # by the virtual clock; threads: at hardware speed, two meshes
    replay: str = ""  # run directory whose recorded schedule to repeat

    section = "pipeline."
    ranges = {"(0, inf)": "decode_chunks_per_update", "[0, inf)": "k"}
    names = {"kind": PIPELINES, "schedule": SCHEDULES}

    def check(self):
        if self.replay and self.schedule != "deterministic":
            reason = "a recorded schedule runs in one thread"
            self.refuse("replay", reason, "set pipeline.schedule=deterministic")
        if self.kind == "sync" and self.k:
            remedy = "set pipeline.kind=pipeline or pipeline.k=0"
            self.refuse("k", "pipeline.kind=sync has no staleness", remedy)
        if self.kind == "ppo_off_policy" and not self.k:
            reason = "ppo_off_policy generates for k updates"
            self.refuse("k", reason, "use k >= 1 (k = 1 is synchronous)")


@dataclass(frozen=True)
class OptimConfig(Section):
    """AdamW with linear warm-up to a constant rate, after clipping the global norm."""

    learning_rate: float = 2e-4
    warmup_steps: int = 5
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    microbatches: int = 1  # slices whose gradients add; slices without a kept prompt are skipped
    group_slices: int = 1  # ... each with a part of its groups; the prompt runs in every part
    pack: bool = False  # short completions of a prompt share a row of the learner's forward pass
    vocab_chunk: int = 0  # vocabulary entries per chunk of the log-prob; 0: one chunk
    lora_rank: int = 0  # of adapters to train instead of the matrices; 0: train all parameters
    lora_alpha: float = 32.0  # adapters are scaled by alpha / rank
    head_dtype: str = "float32"  # learner: hidden states and head weights in the logits' matmul
    max_skipped_updates: int = 10  # in a row, with an objective or gradient that is not finite

    section = "optim."
    ranges = {
        "(0, inf)": "learning_rate eps max_grad_norm microbatches group_slices lora_alpha "
        "max_skipped_updates",
        "[0, inf)": "warmup_steps weight_decay vocab_chunk lora_rank",
        "[0, 1)": "beta1 beta2",
    }
    names = {"head_dtype": DTYPES}

    def check(self):
        if self.group_slices > 1 and self.pack:
            reason = "packed rows cannot be cut"
            self.refuse("group_slices", reason, "set optim.pack=false")


@dataclass(frozen=True)
class WarmStartConfig(Section):
    """Supervised training on the environment's own solutions before RL."""

    steps: int = 300
    batch_size: int = 128
    learning_rate: float = 4e-3
    worked_share_end: float = 0.05  # share of worked solutions, annealed linearly from 1 ...
    anneal: float = 0.8  # ... over this share of the steps
    seed: int = 0

    section = "warm_start."
    ranges = {
        "(0, inf)": "batch_size learning_rate anneal",
        "[0, inf)": "steps seed",
        "[0, 1]": "worked_share_end",
    }
    remedies = {"steps": "0 skips it"}


@dataclass(frozen=True)
class EvalConfig(Section):
    every_steps: int = 10
    samples_per_prompt: int = 4
    seed: int = 0

    section = "eval."
    ranges = {"(0, inf)": "every_steps samples_per_prompt", "[0, inf)": "seed"}


@dataclass(frozen=True)
class ForecastConfig(Section):
    """Forecasts of a run while it runs; they do not change what it computes."""

    every_evals: int = 0  # evaluations between forecasts; 0: no forecasts
    stop_when: str = ""  # a condition that ends the run: "gain_of_next_2x < 0.005 with 0.9"

    section = "forecast."
    ranges = {"[0, inf)": "every_evals"}

    def check(self):
        if self.stop_when and not self.condition:
            remedy = "write NAME < NUMBER with PROBABILITY, NAME end or gain_of_next_2x"
            self.refuse("stop_when", "not a condition", remedy)
        if self.stop_when and not self.every_evals:
            remedy = "forecast.stop_when needs a number above 0"
            self.refuse("every_evals", "no forecasts", remedy)

    @property
    def condition(self) -> tuple[str, str, float, float] | None:
        """(name, < or >, bound, required probability) of `stop_when`."""
        number = r"(\d*\.?\d+)"
        form = rf"(end|gain_of_next_2x)\s*([<>])\s*{number}\s+with\s+(0?\.\d+)"
        found = re.fullmatch(form, self.stop_when.strip())
        return (found[1], found[2], float(found[3]), float(found[4])) if found else None


@dataclass(frozen=True)
class GuardConfig(Section):
    """The guard against collapse: see rlx.train.guard."""

    action: str = "none"  # stop the run, or lower its learning rate
    updates: int = 10  # over which the metrics are averaged
    ess_min: float = 0.0  # effective sample size, as a share of the tokens; 0: off
    entropy_min: float = 0.0  # nats per token; 0: off
    unvaried_max: float = 1.0  # share of groups with zero variance; 1: off
    lower_by: float = 0.5  # lower: factor of the learning rate, at every event

    section = "guard."
    ranges = {
        "(0, inf)": "updates",
        "[0, inf)": "entropy_min",
        "[0, 1)": "ess_min",
        "[0, 1]": "unvaried_max",
        "(0, 1)": "lower_by",
    }
    names = {"action": GUARD_ACTIONS}

    def check(self):
        bounded = self.ess_min or self.entropy_min or self.unvaried_max < 1
        if self.action != "none" and not bounded:
            remedy = "set guard.ess_min, guard.entropy_min or guard.unvaried_max"
            self.refuse("action", "no bound is set", remedy)


@dataclass(frozen=True)
class MeshConfig(Section):
    data: int = 0  # devices that split the prompts of a batch; 0: the most that divide it
    fsdp: int = 1  # devices that split the parameters, and the prompts too
    expert: int = 1  # devices that split the experts
    tensor: int = 1  # devices that split heads and feed-forward
    generators: int = 0  # devices reserved for the generator, the last ones; 0: use the learner's

    section = "mesh."
    ranges = {"(0, inf)": "fsdp expert tensor", "[0, inf)": "data generators"}
    remedies = {"data": "0 uses all devices", "generators": "0 uses the learner's"}


@dataclass(frozen=True)
class CompileConfig(Section):
    """Kernels and the compilation cache; see rlx.compilation. No effect on results on a CPU."""

    kernels: str = "auto"  # of a GPU: repeatable bits, or fastest; auto: fastest only with threads
    cache: str = "auto"  # directory of programs; auto: ~/.cache/rlx (XDG_CACHE_HOME); or none

    section = "compile."
    names = {"kernels": KERNELS}

    def check(self):
        if not self.cache.strip():
            self.refuse("cache", "not a directory name", "give one, auto or none")


@dataclass(frozen=True)
class CheckpointConfig(Section):
    """When the whole state is saved; no effect on what a run computes."""

    every_steps: int = 100  # updates between two, or ...
    every_minutes: float = 10.0  # ... minutes, whichever comes first
    keep_last: int = 2
    keep_every_steps: int = 0  # keep also those whose step is a multiple of this; 0: none

    section = "checkpoint."
    ranges = {"(0, inf)": "every_steps every_minutes keep_last", "[0, inf)": "keep_every_steps"}
    remedies = {"keep_every_steps": "0 keeps none"}


@dataclass(frozen=True)
class Config(Section):
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    episode: EpisodeConfig = field(default_factory=EpisodeConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    compile: CompileConfig = field(default_factory=CompileConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    forecast: ForecastConfig = field(default_factory=ForecastConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    steps: int = 200
    until: int = 0  # update after which the run pauses, to be resumed; 0: it runs to its end
    seed: int = 0
    recipe: str = "cispo"  # the file of conf/algo
    study: str = ""  # name of the sweep, if the run belongs to one
    axes: dict[str, Any] = field(default_factory=dict)  # overrides that change what is computed
    out: str = "runs/run"  # directory of this run
    warm_start_dir: str = ""  # where warm starts are shared; empty: inside `out`
    tracker: str = "none"  # dashboard that mirrors the rows
    distributed: bool = False  # this process is one of several of the same run

    ranges = {"(0, inf)": "steps", "[0, inf)": "until seed"}
    names = {"tracker": TRACKERS}

    def check(self):
        for name in ("recipe", "study")[: 2 if self.study else 1]:
            if not re.fullmatch(r"\w[\w.+-]*", getattr(self, name), re.ASCII):
                reason = "cannot be part of a directory name"
                self.refuse(name, reason, "use letters, digits, _ . + -")
        rollout, optim = self.rollout, self.optim
        slices = max(self.mesh.data, 1) * self.mesh.fsdp * optim.microbatches
        if rollout.prompts_per_step % slices:
            reason = f"not divisible by mesh.data * mesh.fsdp * optim.microbatches = {slices}"
            remedy = "every device and microbatch needs the same number of whole groups"
            self.refuse("rollout.prompts_per_step", reason, remedy)
        if rollout.group_size % optim.group_slices:
            reason = f"does not divide rollout.group_size={rollout.group_size}"
            remedy = "every slice needs the same number of samples of a prompt"
            self.refuse("optim.group_slices", reason, remedy)
        if rollout.prompts_per_step > self.env.train_prompts:
            reason = f"more than env.train_prompts={self.env.train_prompts}"
            self.refuse("rollout.prompts_per_step", reason, "an epoch has each prompt once")
        if self.pipeline.schedule == "threads" and not self.mesh.generators:
            reason = "pipeline.schedule=threads needs separate devices for generation"
            self.refuse("mesh.generators", reason, "give a number of devices above 0")
        text = {"chat": False, "system_prompt": "", "prompt_template": "{prompt}"}
        for key, plain in text.items():
            if getattr(self.env, key) != plain and not (self.env.tokenizer or self.model.path):
                remedy = "set env.tokenizer or model.path too"
                self.refuse(f"env.{key}", "without a tokenizer it has no effect", remedy)
        if self.algo.replay_routing and optim.pack:
            reason = "it does not support packed rows"
            self.refuse("algo.replay_routing", reason, "set optim.pack=false")
        if self.distributed and self.forecast.every_evals:
            reason = "runs of several processes make no forecasts"
            self.refuse("forecast.every_evals", reason, "set it to 0")
        self._check_lengths()

    def _check_lengths(self):
        rollout, control, room = self.rollout, self.algo.length_control, self.model.context_tokens
        if 0 < room <= rollout.max_new_tokens:
            reason = f"no room for a prompt in model.context_tokens={room}"
            self.refuse("rollout.max_new_tokens", reason, "lower rollout.max_new_tokens")
        if control == "interruption":
            least, most = rollout.think_tokens_min, rollout.think_tokens_max
            answer = rollout.answer_tokens
            for name in ("think_tokens_min", "answer_tokens"):
                if not getattr(rollout, name):
                    self.refuse(f"rollout.{name}", "must be positive", "give a value above 0")
            if least > most:
                reason = f"below rollout.think_tokens_min={least}"
                remedy = "the budget is drawn between the two"
                self.refuse("rollout.think_tokens_max", reason, remedy)
            if most + answer >= self.turn_tokens:
                reason = f"no room for {most} tokens of thinking, an interruption and {answer} of "
                self.refuse(self.turn_limit, f"{reason}answer", "raise it")
        if control.startswith("penalty") and (
            self.algo.length_penalty_tokens >= rollout.max_new_tokens
        ):
            reason = f"not below rollout.max_new_tokens={rollout.max_new_tokens}"
            remedy = "the penalty grows over the last tokens of max_new_tokens"
            self.refuse("algo.length_penalty_tokens", reason, remedy)

    @property
    def needs_reward_model(self) -> bool:
        return self.algo.reward == "model" or self.env.name == "preference"

    @property
    def turn_tokens(self) -> int:
        """Most tokens of one turn."""
        limit = self.rollout.max_new_tokens
        return min(self.episode.turn_tokens or limit, limit)

    @property
    def turn_limit(self) -> str:
        """The option that limits it."""
        short = self.turn_tokens < self.rollout.max_new_tokens
        return "episode.turn_tokens" if short else "rollout.max_new_tokens"

    @property
    def slots(self) -> int:
        return self.rollout.slots or self.rollout.prompts_per_step * self.rollout.group_size


OF_RL = ("until", "forecast", "guard", "pipeline", "optim.group_slices", "optim.pack", "algo")


def _unused(
    config: Config, parts: Sequence[str], read: Mapping[str, Sequence[Any]] = {},
    reason: str = "only for reinforcement learning",
) -> None:  # fmt: skip
    """Refuse options of these sections or names that are not at their defaults.

    read: the options among them that count, with the values that do; none listed: any.
    """
    default, given = _flat(_defaults(type(config))), _flat(asdict(config))
    for part in parts:
        for key in [key for key in given if f"{key}.".startswith(f"{part}.")]:
            works = read.get(key, (default[key],))
            if works and given[key] not in works:
                remedy = f"use {' or '.join(works)}" if key in read else "leave it out"
                config.refuse(key, reason, remedy)


READ_BY_SFT = {
    **{f"algo.{name}": () for name in ("loss", "advantage", "aggregation", "reward_model")},
    "algo.zero_variance": ("keep",),  # a prompt has one sample
    "algo.reward": ("score", "model"),  # of evaluations, and ...
    "algo.length_control": ("none", "interruption"),  # ... how they sample
}


@dataclass(frozen=True)
class SftConfig(Config):
    """Supervised fine-tuning: a batch is `rollout.prompts_per_step` traces."""

    traces: str = ""  # JSON lines of prompt and completion; empty: the environment's own solutions

    def check(self):
        super().check()
        if (self.algo.loss, self.algo.advantage) != ("reinforce", "none"):
            reason = (
                f"with algo.advantage={self.algo.advantage} it is not the likelihood of the traces"
            )
            self.refuse("algo.loss", reason, "set algo=sft")
        _unused(self, OF_RL, READ_BY_SFT)


@dataclass(frozen=True)
class RewardModelConfig(Config):
    """A reward model: a batch is `rollout.prompts_per_step` pairs."""

    pairs: str = ""  # JSON lines of prompt, chosen, rejected; empty: those of env.name=preference

    def check(self):
        super().check()
        _unused(self, OF_RL)
        reason = "a reward model's objective does not contain it"
        objective = ("optim.vocab_chunk", "optim.head_dtype", "model.router_aux_coef")
        _unused(self, objective, reason=reason)
        if not self.pairs and self.env.name != "preference":
            reason = f"env.name={self.env.name} has no pairs"
            self.refuse("pairs", reason, "give a file of JSON lines")

    @property
    def needs_reward_model(self) -> bool:
        return False


WHERE = (
    *("out", "warm_start_dir", "tracker", "distributed", "checkpoint", "mesh", "compile"),
    *("until", "forecast"),  # how far it runs
)
LABELS = ("recipe", "study", "axes")  # names of a run

Options = dict[str, Any]  # values by name, such as "algo.loss"


def _dispatch_of_platform(made: Options) -> Options:
    """`sorted` meant blocks on a GPU, as `auto` does since 2026-11-27."""
    by_platform = made.get("model.moe_dispatch") == "sorted"
    return made | ({"model.moe_dispatch": "auto"} if by_platform else {})


def _chunk_of_length(made: Options) -> Options:
    """The default was 3 until 2026-11-28, as it is today for 9 to 15 tokens."""
    length, chunk = (made.get(f"rollout.{x}") for x in ("max_new_tokens", "decode_chunk_tokens"))
    same = chunk == 3 == math.isqrt(length or 9)
    return made | ({"rollout.decode_chunk_tokens": 0} if same else {})


# One function per option whose meaning has changed: from the options of an older manifest to those
# that compute the same today. A manifest records how many there were when it was written.
MIGRATIONS: tuple[Callable[[Options], Options], ...] = (_dispatch_of_platform, _chunk_of_length)


def config_sha(config: object) -> str:
    """Twelve hex digits that identify a configuration (any of the dataclasses above).

    They cover what differs from the defaults, so an option added later does not change them.
    """
    return _sha(_flat(asdict(config)), type(config))  # ty: ignore[invalid-argument-type]


def run_sha(config: Config) -> str:
    """Identifies what a run computes, whatever its name, place and devices.

    So a run can resume on another mesh: from the same state, with sums that differ in rounding.
    """
    return _sha(options(asdict(config), kind=type(config)), type(config))


def options(
    config: dict[str, Any], migrations: int = len(MIGRATIONS), kind: type[Config] = Config
) -> Options:
    """Everything that determines what a run computes, flat, from a configuration or a manifest.

    Missing options have their defaults, such as those newer than the manifest. migrations: the
    number of migrations that the manifest includes.
    """
    made = migrated(config, migrations)
    return {key: x for key, x in (_flat(_defaults(kind)) | made).items() if _computes(key)}


def migrated(config: dict[str, Any], migrations: int) -> Options:
    """The options, flat, that compute the same today."""
    made = _flat(json.loads(json.dumps(config, default=str)))  # as in a manifest
    for change in MIGRATIONS[migrations:]:
        made = change(made)
    return made


def difference(then: Options, now: Options) -> str:
    """ "steps=400, not 500" for the first options that differ; empty if none does."""
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    shown = [f"{key}={then.get(key)}, not {now.get(key)}" for key in keys[:3]]
    more = f", and {len(keys) - 3} more" if len(keys) > 3 else ""
    return "; ".join(shown) + more


def _computes(key: str) -> bool:
    return key.split(".")[0] not in (*WHERE, *LABELS)


def _defaults(kind: Any) -> dict[str, Any]:
    """The nested defaults of a configuration, which need not be runnable together."""
    made = {}
    for part in fields(kind):
        default: Any = part.default_factory if part.default is MISSING else part.default
        default = default() if part.default is MISSING else default
        made[part.name] = asdict(default) if is_dataclass(default) else default
    return made


def _flat(nested: dict[str, Any], prefix: str = "") -> Options:
    made = {}
    for name, value in nested.items():
        inside = isinstance(value, dict)
        made |= _flat(value, f"{prefix}{name}.") if inside else {f"{prefix}{name}": value}
    return made


def _sha(fields: Options, kind: type) -> str:
    default = _flat(_defaults(kind))
    changed = {key: x for key, x in fields.items() if key not in default or default[key] != x}
    text = json.dumps(changed, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def identity(config: Config) -> dict[str, Any]:
    """What a manifest or a checkpoint records about the configuration."""
    made = {"config": asdict(config), "config_sha": run_sha(config)}
    return made | {"migrations": len(MIGRATIONS)}


def another(run: dict[str, Any], config: Config, free: Sequence[str] = ()) -> str:
    """How the run with this `identity` differs from `config` in what it computes; empty if not.

    free: sections and options that may differ.
    """
    if not isinstance(run.get("config"), dict):
        return "it has no configuration"
    then = options(run["config"], run.get("migrations", 0), type(config))
    now = options(asdict(config), kind=type(config))
    bound = lambda key: not any(f"{key}.".startswith(f"{part}.") for part in free)  # noqa: E731
    then, now = ({key: x for key, x in made.items() if bound(key)} for made in (then, now))
    return difference(then, now)
