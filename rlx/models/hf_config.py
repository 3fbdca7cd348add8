"""config.json of `transformers` <-> ModelConfig, for Llama 2 to 4, SmolLM2, Mistral, Mixtral, Qwen2
and Qwen3.

Both versions of the file are read: `rope_theta` and `rope_scaling` beside the other keys, or all of
it inside `rope_parameters`. If a file has both, `rope_scaling` counts, as in `transformers`. A
setting that the decoder does not implement is an error that names the file and the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rlx.config import ModelConfig
from rlx.errors import InputError

# Defaults of each family's config.json, as in `transformers`.
QWEN = {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28}
DEFAULTS = {
    "llama": {"num_key_value_heads": None},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32, **QWEN},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128, **QWEN},
    "mixtral": {
        "num_key_value_heads": 8, "sliding_window": None, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
        "num_local_experts": 8, "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8, **QWEN,
        "moe_intermediate_size": 768, "norm_topk_prob": False, "decoder_sparse_step": 1,
        "mlp_only_layers": None,
    },
    "llama4_text": {
        "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
        "num_local_experts": 16, "num_experts_per_tok": 1, "intermediate_size_mlp": 16384,
        "interleave_moe_layer_step": 1, "moe_layers": None, "use_qk_norm": True,
        "no_rope_layers": None, "no_rope_layer_interval": 4, "attention_chunk_size": 8192,
        "attn_temperature_tuning": True, "attn_scale": 0.1, "floor_scale": 8192,
    },
}  # fmt: skip
CLASSES = {
    "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3",
    "mixtral": "Mixtral", "qwen3_moe": "Qwen3Moe", "llama4_text": "Llama4",
}  # fmt: skip
LLAMA4 = (  # fields that no other family has
    "rope_neighbours", "no_rope_every", "attention_chunk", "far_query_scale", "qk_unit_norm",
    "d_ff_shared",
)  # fmt: skip
SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
}
# Keys that change the computation, and the only value of each that the decoder implements.
FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "router_jitter_noise": 0.0,
    "quantization_config": None,
    "is_causal": True,
}
ROPE_KEYS = {
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings",
    "low_freq_factor", "high_freq_factor", "beta_slow", "beta_fast",
}  # fmt: skip
ROPE_FIXED = {"truncate": True, "partial_rotary_factor": 1.0}
# Keys, by parts of their names, with which other families change the computation.
CHANGES = re.compile(
    "softcap|multiplier|logits?_scal|scale_(emb|depth)|clip_qkv|alibi|qk_(layer)?norm|parallel_(re"
    "|attn)|sinks?$|qkv_bias|_head_bias|rotary|rope_(?!parameters|scaling|theta)|mrope|window"
    "|chunk_(size|attention)|experts|mlp_only|no_rope|per_layer|mup|dual_chunk|query_pre_attn"
)
NEUTRAL = (None, False, 0, 1.0, [], {})
# Upper bounds of integers; far smaller ones would already fill a machine.
LARGEST = {"num_hidden_layers": 1 << 12, "num_local_experts": 1 << 16, "num_experts": 1 << 16}
LARGEST |= dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), 1 << 24)


class Integer(NamedTuple):
    """Accepts integers between two bounds."""

    least: int
    most: int

    def __call__(self, value: Any) -> bool:
        return type(value) is int and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"an integer from {self.least} to {self.most}"


class Is(NamedTuple):
    """Accepts values of a type; numbers must be above 0."""

    name: str
    types: tuple[type, ...]

    def __call__(self, value: Any) -> bool:
        return type(value) in self.types and (self.types != NUMBER.types or 0 < value < 1e300)

    def __str__(self) -> str:
        return self.name


NUMBER = Is("a number above 0", (int, float))
SIZE_KEYS = (
    *SIZES.values(), "num_key_value_heads", "head_dim", "max_position_embeddings",
    "original_max_position_embeddings", "sliding_window", "num_local_experts", "num_experts",
    "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step",
    "intermediate_size_mlp", "interleave_moe_layer_step", "no_rope_layer_interval",
    "attention_chunk_size", "floor_scale",
)  # fmt: skip
FITS = {  # allowed values of a key
    **{key: Integer(1, LARGEST.get(key, 2**31 - 1)) for key in SIZE_KEYS},
    "max_window_layers": Integer(0, 2**31 - 1),
    **dict.fromkeys(
        ("rms_norm_eps", "rope_theta", "attn_scale", "factor", "low_freq_factor",
         "high_freq_factor", "beta_slow", "beta_fast"), NUMBER),
    **dict.fromkeys(
        ("tie_word_embeddings", "use_sliding_window", "norm_topk_prob", "use_qk_norm"),
        Is("true or false", (bool,))),
    **dict.fromkeys(
        ("layer_types", "mlp_only_layers", "moe_layers", "no_rope_layers"), Is("a list", (list,))),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), Is("an object", (dict,))),
}  # fmt: skip
# Keys that may be null, in `transformers` or because the shapes of the weights imply the value.
NULLABLE = {
    "num_key_value_heads", "head_dim", "sliding_window", "attention_chunk_size", "layer_types",
    "mlp_only_layers", "moe_layers", "no_rope_layers", "rope_parameters", "rope_scaling",
    "original_max_position_embeddings", "beta_slow", "beta_fast",
}  # fmt: skip


def unsupported(file: Path, key: str, value: object, remedy: str) -> InputError:
    return InputError("model.path", file, f"{key}={value} is not supported", remedy)


def _require(json: dict, keys: Iterable[str], file: Path) -> None:
    for key in keys:
        if json.get(key) is None:
            raise InputError("model.path", file, f"no key {key}", "complete the file")


def _check_kinds(json: dict, file: Path) -> None:
    """Raises InputError on the first key with a value that is not allowed."""
    for key in FITS.keys() & json.keys():
        value = json[key]
        if not FITS[key](value) and not (value is None and key in NULLABLE):
            reason = f"{key}={value!r} is not {FITS[key]}"
            raise InputError("model.path", file, reason, "correct the key")


def _check_known(json: dict, family: str, file: Path) -> None:
    """Raises InputError on keys for a computation that the decoder does not implement."""
    for key, value in FIXED.items():
        if json.get(key, value) != value and not (family == "qwen2" and key == "attention_bias"):
            raise unsupported(file, key, json[key], f"the decoder has {key}={value}")
    known = {*FITS, *DEFAULTS[family], *FIXED}
    for key, value in json.items():
        if key not in known and CHANGES.search(key) and value not in NEUTRAL:
            remedy = f"remove it, if the weights are those of a standard {family}"
            raise unsupported(file, key, value, remedy)


def from_json(json: dict, file: Path) -> ModelConfig:
    """The architecture in a config.json. Raises InputError naming `file` and key."""
    if json.get("model_type") == "llama4":  # its text model, without the vision model
        if not isinstance(json.get("text_config"), dict):
            raise InputError("model.path", file, "no key text_config", "complete the file")
        json = {**json["text_config"], "model_type": "llama4_text"}
    family = json.get("model_type")
    if not isinstance(family, str) or family not in DEFAULTS:
        raise unsupported(file, "model_type", family, f"use one of {', '.join(DEFAULTS)}")
    _require(json, SIZES.values(), file)
    _check_kinds(json, file)
    _check_known(json, family, file)
    json = {**DEFAULTS[family], **json}
    heads = json["num_attention_heads"]
    window, first = _window(json, family, file)
    experts = {"mixtral": _mixtral, "qwen3_moe": _qwen3_moe, "llama4_text": _llama4}
    sizes = {ours: json[theirs] for ours, theirs in SIZES.items()}
    sizes |= experts[family](json, file) if family in experts else {}
    rope = _rope(json, file)
    try:
        return ModelConfig(
            **sizes,
            **rope,
            n_kv_heads=json["num_key_value_heads"] or heads,
            head_dim=json.get("head_dim") or json["hidden_size"] // heads,
            context_tokens=json.get("max_position_embeddings") or 0,
            sliding_window=window,
            sliding_window_from=first,
            norm_eps=json.get("rms_norm_eps", 1e-6),
            qkv_bias=family == "qwen2",
            qk_norm=family.startswith("qwen3"),
            tie_embeddings=json.get("tie_word_embeddings", False),
        )
    except InputError as error:  # numbers that do not fit together
        key, value, reason, remedy = error.args
        raise InputError("model.path", file, f"as {key}={value}: {reason}", remedy) from None


def _window(json: dict, family: str, file: Path) -> tuple[int, int]:
    """(sliding_window, sliding_window_from); (0, 0) without a window."""
    if family == "llama4_text":
        return 0, 0
    n, window, first = json[SIZES["n_layers"]], json.get("sliding_window") or 0, 0
    if family == "llama" or (family.startswith("qwen") and not json["use_sliding_window"]):
        window = 0
    elif family in ("qwen2", "qwen3"):
        first = min(json["max_window_layers"], n)
    full, near = "full_attention", "sliding_attention"
    first = first if window else n
    kinds = json.get("layer_types") or [full] * first + [near] * (n - first)
    if family in ("qwen2", "qwen3"):
        first = kinds.count(full)
    if kinds != [full] * first + [near] * (n - first) or (first < n and not window):
        remedy = f"the decoder has full layers first, then windowed ones; {family} has one kind"
        raise unsupported(file, "layer_types", kinds, remedy)
    return (window, first) if first < n else (0, 0)


def _mixtral(json: dict, file: Path) -> dict:
    return {
        "n_experts": json["num_local_experts"],
        "experts_per_token": json["num_experts_per_tok"],
        "d_ff_expert": json["intermediate_size"],
        "norm_topk": True,
    }


def _qwen3_moe(json: dict, file: Path) -> dict:
    dense = json["mlp_only_layers"] or []
    if {repr(i) for i in dense} != set(map(repr, range(len(dense)))):
        raise unsupported(file, "mlp_only_layers", dense, "dense layers come first")
    return {
        "n_experts": json.get("num_local_experts") or json["num_experts"],
        "experts_per_token": json["num_experts_per_tok"],
        "d_ff_expert": json["moe_intermediate_size"],
        "norm_topk": json["norm_topk_prob"],
        "sparse_every": json["decoder_sparse_step"],
        "sparse_from": len(dense),
    }


def _llama4(json: dict, file: Path) -> dict:
    n, every = json["num_hidden_layers"], json["interleave_moe_layer_step"]
    sparse = list(range(every - 1, n, every))
    if (json["moe_layers"] or sparse) != sparse:
        remedy = "the decoder has experts in every interleave_moe_layer_step-th layer"
        raise unsupported(file, "moe_layers", json["moe_layers"], remedy)
    interval = json["no_rope_layer_interval"]
    turned = json["no_rope_layers"] or [int((i + 1) % interval != 0) for i in range(n)]
    no_rope_every = turned.index(0) + 1 if 0 in turned else 0
    if turned != [int(not no_rope_every or (i + 1) % no_rope_every != 0) for i in range(n)]:
        remedy = "the decoder leaves RoPE out of every n-th layer"
        raise unsupported(file, "no_rope_layers", turned, remedy)
    kinds = ["chunked_attention" if turns else "full_attention" for turns in turned]
    if (json.get("layer_types") or kinds) != kinds:
        remedy = "the decoder chunks exactly the layers with RoPE"
        raise unsupported(file, "layer_types", json["layer_types"], remedy)
    tuned = json["attn_temperature_tuning"] and no_rope_every
    return {
        "d_ff": json["intermediate_size_mlp"],
        "rope_neighbours": True,
        "no_rope_every": no_rope_every,
        "attention_chunk": json["attention_chunk_size"] or 0,
        "far_query_scale": float(json["attn_scale"]) if tuned else 0.0,
        "far_query_tokens": int(json["floor_scale"]),
        "qk_unit_norm": json["use_qk_norm"],
        "n_experts": json["num_local_experts"],
        "experts_per_token": json["num_experts_per_tok"],
        "d_ff_expert": json["intermediate_size"],
        "d_ff_shared": json["intermediate_size"],
        "router": "sigmoid",
        "sparse_every": every,
    }


def _rope(json: dict, file: Path) -> dict:
    """The rope_* fields."""
    name = "rope_scaling" if json.get("rope_scaling") else "rope_parameters"
    rope = {key: x for key, x in (json.get(name) or {}).items() if x is not None}
    _check_kinds(rope, file)
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = rope.get("rope_theta", json.get("rope_theta", 10000.0))
    for key, value in rope.items():
        if key not in ROPE_KEYS and (key not in ROPE_FIXED or value != ROPE_FIXED[key]):
            remedy = "the decoder has the same RoPE in all layers, by the published formula"
            raise unsupported(file, f"{name}.{key}", value, remedy)
    if kind == "default":
        return {"rope_theta": float(theta)}
    if kind not in ("linear", "llama3", "yarn"):
        raise unsupported(file, f"{name}.rope_type", kind, "use default, linear, llama3 or yarn")
    if kind == "yarn" and theta <= 1:
        raise unsupported(file, "rope_theta", theta, "yarn needs one above 1")
    low, high, original = "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
    if kind == "yarn":
        rope = rope | {low: rope.get("beta_slow", 1), high: rope.get("beta_fast", 32)}
    known = [json.get(original), rope.get(original), json.get("max_position_embeddings")]
    rope[original] = next((tokens for tokens in known if tokens), None)
    _require(rope, ["factor"] if kind == "linear" else ["factor", low, high, original], file)
    fields = {
        "rope_theta": float(theta),
        "rope_scaling": kind,
        "rope_factor": float(rope["factor"]),
    }
    if kind == "linear":
        return fields
    ends = {"rope_low": float(rope[low]), "rope_high": float(rope[high])}
    return {**fields, **ends, "rope_original_context": rope[original]}


def to_json(config: ModelConfig, dtype: str) -> dict:
    """The config.json of a model; InputError if no family of `transformers` matches."""
    c = config
    name = family(c)
    rope = {"rope_type": "default", "rope_theta": c.rope_theta}
    if c.rope_scaling != "none":
        rope |= {"rope_type": c.rope_scaling, "factor": c.rope_factor}
    if c.rope_scaling in ("llama3", "yarn"):
        names = ("low_freq_factor", "high_freq_factor")
        names = ("beta_slow", "beta_fast") if c.rope_scaling == "yarn" else names
        rope |= dict(zip(names, (c.rope_low, c.rope_high), strict=True))
        rope["original_max_position_embeddings"] = c.rope_original_context
    json = {
        "architectures": [f"{CLASSES[name]}ForCausalLM"],
        "model_type": name,
        **{theirs: getattr(c, ours) for ours, theirs in SIZES.items()},
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "rope_parameters": rope,
        "max_position_embeddings": c.context_tokens or 32768,
        "tie_word_embeddings": c.tie_embeddings,
        "dtype": dtype,
    }
    if c.n_experts:
        json |= _experts_json(c, name)
    if name in ("mistral", "mixtral"):
        return json | {"sliding_window": c.sliding_window or None}
    if name.startswith("qwen") and c.sliding_window:
        window = {"use_sliding_window": True, "sliding_window": c.sliding_window}
        return json | window | {"max_window_layers": c.sliding_window_from}
    return json


def _experts_json(c: ModelConfig, name: str) -> dict:
    json = {"num_local_experts": c.n_experts, "num_experts_per_tok": c.experts_per_token}
    if name == "mixtral":
        return json
    if name == "qwen3_moe":
        return json | {
            "moe_intermediate_size": c.d_ff_expert,
            "norm_topk_prob": c.norm_topk,
            "decoder_sparse_step": c.sparse_every,
            "mlp_only_layers": list(range(c.sparse_from)),
        }
    every = c.no_rope_every
    return json | {
        "intermediate_size": c.d_ff_expert,
        "intermediate_size_mlp": c.d_ff,
        "interleave_moe_layer_step": c.sparse_every,
        "use_qk_norm": c.qk_unit_norm,
        "no_rope_layers": [int(not every or (i + 1) % every != 0) for i in range(c.n_layers)],
        "attention_chunk_size": c.attention_chunk or None,
        "attn_temperature_tuning": c.far_query_scale > 0,
        "attn_scale": c.far_query_scale,
        "floor_scale": c.far_query_tokens,
    }


def family(c: ModelConfig) -> str:
    """The `model_type` of this configuration; InputError if there is none."""
    no_llama4 = dict.fromkeys(LLAMA4, 0)
    if not c.n_experts:
        _fitting(c, {"llama": no_llama4})
        return _dense_family(c)
    plain = {"qkv_bias": False, "sliding_window_from": 0}
    if c.router == "sigmoid":
        llama4 = {"sliding_window": 0, "qk_norm": False, "rope_neighbours": True}
        llama4 |= {"d_ff_shared": c.d_ff_expert, "sparse_from": 0}
        return _fitting(c, {"llama4_text": plain | llama4})
    plain |= no_llama4
    mixtral = {"qk_norm": False, "norm_topk": True, "sparse_every": 1, "sparse_from": 0}
    mixtral |= {"d_ff_expert": c.d_ff}
    return _fitting(c, {"mixtral": plain | mixtral, "qwen3_moe": plain | {"qk_norm": True}})


def _fitting(c: ModelConfig, families: dict[str, dict]) -> str:
    """The first of `families` whose fields the model has.

    Raises InputError naming those to train with if there is none: weights fit no others.
    """
    lacking = {
        name: {key: x for key, x in fields.items() if getattr(c, key) != x}
        for name, fields in families.items()
    }
    nearest = min(lacking, key=lambda name: len(lacking[name]))
    if not lacking[nearest]:
        return nearest
    key = next(iter(lacking[nearest]))
    words = {name: " ".join(f"model.{k}={x}" for k, x in lacking[name].items()) for name in lacking}
    ways = ", or ".join(f"{words[name]} ({name})" for name in words)
    reason = "no format of transformers has this architecture"
    raise InputError(f"model.{key}", getattr(c, key), reason, f"train with {ways}")


def _dense_family(c: ModelConfig) -> str:
    if c.qk_norm and c.qkv_bias:
        raise InputError("model.qkv_bias", True, "no family has it with qk_norm", "use only one")
    if c.qk_norm or c.qkv_bias:
        return "qwen3" if c.qk_norm else "qwen2"
    if c.sliding_window and c.sliding_window_from:
        key, remedy = "model.sliding_window_from", "use 0, or model.qk_norm or model.qkv_bias"
        raise InputError(key, c.sliding_window_from, "Mistral's window is in all layers", remedy)
    return "mistral" if c.sliding_window else "llama"
