"""Tensors on disk, under the names of `transformers`: folders of safetensors, and GGUF files.

Opening reads headers only; the data of a tensor are read on demand. A quantised GGUF tensor is read
as dequantised float32.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from rlx import jsonfile
from rlx.config import ModelConfig
from rlx.errors import InputError
from rlx.models.rope import frequencies

FLOATS = ("F64", "F32", "F16", "BF16")
GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"},
    **{f"attn_{x}_norm": f"self_attn.{x}_norm" for x in "qk"},
    "attn_output": "self_attn.o_proj",
    **{f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}


@dataclass(frozen=True)
class Tensor:
    file: Path
    shape: tuple[int, ...]
    read: Callable[[tuple[slice, ...]], np.ndarray]


def halves(tensor: Tensor) -> dict[str, Tensor]:
    """A tensor [.., 2 F] as `:gate` and `:up`, [.., F] each."""
    *lead, wide = tensor.shape

    def half(start: int) -> Tensor:
        def read(index):
            low, high, step = index[-1].indices(wide // 2)
            return tensor.read((*index[:-1], slice(start + low, start + high, step)))

        return Tensor(tensor.file, (*lead, wide // 2), read)

    return {":gate": half(0), ":up": half(wide // 2)}


def package(name: str, path: Path) -> Any:
    """An optional package; InputError names the extra that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        remedy = "pip install 'rlx[hf]'"
        raise InputError("model.path", path, f"needs the package {name}", remedy) from None


def unreadable(file: Path, error: BaseException | str) -> InputError:
    return InputError("model.path", file, f"unreadable ({error})", "copy it again")


def _shards(folder: Path) -> list[Path]:
    """model.safetensors, or the files named in its index; all must be in the folder."""
    one, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if one.is_file() or not index.is_file():
        return [one]
    where = jsonfile.read("model.path", index, "unreadable").get("weight_map")
    if not isinstance(where, dict) or not where:
        reason = "no object weight_map from tensors to files"
        raise InputError("model.path", index, reason, "give the checkpoint's own index")
    for tensor, name in where.items():
        path = PurePosixPath(name) if isinstance(name, str) else PurePosixPath("..")
        if path.is_absolute() or ".." in path.parts or not path.name or "\\" in name:
            reason = f"weight_map.{tensor}={name!r} is not a file of this folder"
            raise InputError("model.path", index, reason, "give the checkpoint's own index")
    return [folder / name for name in sorted(set(where.values()))]


def in_folder(folder: Path) -> dict[str, Tensor]:
    """Every tensor of model.safetensors, or of the files named in its index."""
    safetensors = package("safetensors", folder)
    tensors = {}
    for file in _shards(folder):
        try:
            if not file.is_file():
                remedy = "give a complete checkpoint in safetensors format"
                raise InputError("model.path", folder, f"no {file.name}", remedy)
            reader = safetensors.safe_open(file, "numpy")
            parts = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118
            found = {name: (x.get_dtype(), tuple(x.get_shape())) for name, x in parts.items()}
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise error if isinstance(error, InputError) else unreadable(file, error) from None
        for name, (dtype, shape) in found.items():
            if dtype not in FLOATS:
                reason = f"{name} has type {dtype}"
                raise InputError("model.path", file, reason, f"use {', '.join(FLOATS)}")
            if name in tensors:
                reason = f"{name} is also in {tensors[name].file.name}"
                raise InputError("model.path", file, reason, "remove one of the two")
            tensors[name] = Tensor(file, shape, parts[name].__getitem__)
    return tensors


def in_gguf(file: Path) -> dict[str, Tensor]:
    """Every tensor of a GGUF file.

    Llama's files interleave the pairs that RoPE rotates within a head, [H/2, 2]; queries and keys
    are reordered into halves, [2, H/2].
    """
    gguf = package("gguf", file)
    reader = _gguf_reader(file)
    value = _gguf_values(reader)
    heads = {"attn_q": value("attention.head_count"), "attn_k": value("attention.head_count_kv")}

    def tensor(stored, name: str) -> Tensor:
        shape = tuple(int(n) for n in stored.shape[::-1])
        n = heads.get(name) if value("") == "llama" else None
        if n and (len(shape) != 2 or shape[0] % (2 * n)):
            raise unreadable(file, f"{stored.name} {shape} does not fit {n} heads")

        def read(index):
            try:
                dense = gguf.quants.dequantize(stored.data, stored.tensor_type).reshape(shape)
            except (NotImplementedError, ValueError) as error:
                reason = f"{stored.name} is of type {stored.tensor_type.name} ({error})"
                remedy = "give a file in F16, BF16, Q8_0 or Q4_K"
                raise InputError("model.path", file, reason, remedy) from None
            if n:
                halves = dense.reshape(n, shape[0] // n // 2, 2, *shape[1:])
                dense = halves.swapaxes(1, 2).reshape(shape)
            return dense[index]

        return Tensor(file, shape, read)

    tensors = {}
    for stored in reader.tensors:
        parts = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", stored.name)
        if stored.name == "rope_freqs.weight":
            continue  # read by gguf_json
        name = stored.name
        if parts and parts[2] in GGUF_NAMES:
            layer = f"model.layers.{parts[1]}." if parts[1] else ""
            name = f"{layer}{GGUF_NAMES[parts[2]]}.{parts[3]}"
        tensors[name] = tensor(stored, parts[2] if parts else "")
    return tensors


def gguf_json(file: Path) -> dict:
    """The file's metadata as a config.json."""
    reader = _gguf_reader(file)
    value = _gguf_values(reader)
    shapes = {tensor.name: tensor.shape for tensor in reader.tensors}
    eps, model_type = value("attention.layer_norm_rms_epsilon"), value("")
    if type(eps) is not float or len(shapes.get("token_embd.weight", ())) != 2:
        return {"model_type": model_type}  # an unknown family, or keys are missing
    turned, width = value("rope.dimension_count"), value("attention.key_length")
    if None not in (turned, width) and turned != width:
        reason, remedy = f"rope.dimension_count={turned}", f"the decoder rotates all {width}"
        raise InputError("model.path", file, reason, remedy)
    json = {
        "model_type": model_type,
        "vocab_size": int(shapes["token_embd.weight"][1]),
        "hidden_size": value("embedding_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "head_dim": value("attention.key_length"),
        "intermediate_size": value("feed_forward_length"),
        "max_position_embeddings": value("context_length"),
        "rope_theta": value("rope.freq_base"),
        "rope_scaling": _gguf_rope(value, reader, file),
        "rms_norm_eps": float(np.float32(eps).astype(str)),
        "tie_word_embeddings": "output.weight" not in shapes,
    }
    if window := value("attention.sliding_window"):
        remedy = "use the safetensors: GGUF does not say which layers have it"
        raise InputError("model.path", file, f"attention.sliding_window={window}", remedy)
    return {key: value for key, value in json.items() if value is not None}


def _gguf_rope(value, reader, file: Path) -> dict | None:
    """`rope_scaling`. Llama 3's is one tensor, the stretch of every pair; its maximum is `factor`.

    The other three numbers of llama3 are those shared by Llama 3.1 and 3.2, and are checked.
    """
    stretch = [t.data for t in reader.tensors if t.name == "rope_freqs.weight"]
    original = value("rope.scaling.original_context_length")
    if not stretch:
        kind = value("rope.scaling.type") or "none"
        rope = {"type": kind, "factor": value("rope.scaling.factor")}
        return None if kind == "none" else {**rope, "original_max_position_embeddings": original}
    fields = {"rope_theta": value("rope.freq_base"), "rope_original_context": 8192}
    one, factor = ModelConfig(**fields), float(stretch[0].max())
    plain_h, _ = frequencies(one, 2 * len(stretch[0]))
    stretched = dataclasses.replace(one, rope_scaling="llama3", rope_factor=factor)
    if not np.allclose(plain_h / frequencies(stretched, 2 * len(stretch[0]))[0], stretch[0]):
        reason, remedy = "rope_freqs.weight is not Llama 3's", "use the safetensors"
        raise InputError("model.path", file, reason, remedy)
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": stretched.rope_low,
        "high_freq_factor": stretched.rope_high,
        "original_max_position_embeddings": stretched.rope_original_context,
    }


def _gguf_reader(file: Path):
    """Cached: the 50,000 entries of the vocabulary take seconds to read, and are needed twice."""
    there = file.stat()
    return _gguf_read(file, there.st_mtime_ns, there.st_size)


@functools.lru_cache(maxsize=1)
def _gguf_read(file: Path, *version: int):
    gguf = package("gguf", file)
    try:
        reader = gguf.GGUFReader(file)
        reader.fields["general.architecture"].contents()
    except Exception as error:  # the library does not validate the file
        raise unreadable(file, f"{type(error).__name__}: {error}") from None
    return reader


def _gguf_values(reader) -> Callable[[str], Any]:
    """value(key) of the architecture's metadata, None if absent; value("") is its name."""
    architecture = reader.fields["general.architecture"].contents()

    def value(key: str):
        field = reader.fields.get(f"{architecture}.{key}")
        return architecture if not key else field and field.contents()

    return value
