"""Folders of strangers: what `transformers` 5.24 makes of a config.json, or one InputError.

The values of `AS_TRANSFORMERS` were read off its configuration classes and rotary embeddings.
"""

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rlx.config import MeshConfig, ModelConfig
from rlx.errors import InputError
from rlx.mesh import make_mesh
from rlx.models import hf, hf_config, hf_files, rope
from rlx.train import start

safetensors = pytest.importorskip("safetensors.numpy", reason="needs the extra rlx[hf]")
gguf = pytest.importorskip("gguf", reason="needs the extra rlx[hf]")

DATA = Path(__file__).parent / "data" / "hf"
FILE = Path("config.json")
PLAIN = {
    "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "model_type": "llama",
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
OTHER = {"rope_type": "default", "rope_theta": 300.0}
FULL, NEAR = ["full_attention"], ["sliding_attention"]
AS_TRANSFORMERS = [  # what config.json says, what is computed
    ({"rope_parameters": OTHER, "rope_scaling": YARN},
     {"rope_scaling": "yarn", "rope_theta": 1e4, "rope_original_context": 64}),
    ({"rope_parameters": OTHER, "rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 7},
     {"rope_scaling": "linear", "rope_theta": 7.0, "rope_factor": 4.0}),
    ({"rope_parameters": OTHER, "rope_theta": 7.0}, {"rope_theta": 300.0}),
    ({"rope_parameters": OTHER, "rope_scaling": None}, {"rope_theta": 300.0}),
    ({"rope_parameters": OTHER, "rope_scaling": {}}, {"rope_theta": 300.0}),
    ({"rope_parameters": {}, "rope_theta": 7.0}, {"rope_theta": 7.0, "rope_scaling": "none"}),
    ({"rope_scaling": YARN, "original_max_position_embeddings": 32}, {"rope_original_context": 32}),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, {"rope_original_context": 256}),
    ({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 3.0}},
     {"rope_scaling": "linear", "rope_factor": 3.0}),
    ({"rope_scaling": {**YARN, "truncate": True, "mscale": None}}, {"rope_scaling": "yarn"}),
    ({"model_type": "mixtral"}, {"rope_theta": 1e6, "norm_eps": 1e-5, "sliding_window": 0}),
    ({"num_key_value_heads": None}, {"n_kv_heads": 4}),
    ({"head_dim": None}, {"head_dim": 16}),
    ({"model_type": "qwen3"}, {"head_dim": 128, "tie_embeddings": False}),
    ({"dtype": "bfloat16", "torch_dtype": "float16"}, {"param_dtype": "float32"}),
    ({"sliding_window": 7}, {"sliding_window": 0}),
    ({"model_type": "mistral"}, {"sliding_window": 4096, "sliding_window_from": 0}),
    ({"model_type": "mistral", "sliding_window": None}, {"sliding_window": 0}),
    # Mistral has no key use_sliding_window
    ({"model_type": "mistral", "use_sliding_window": False}, {"sliding_window": 4096}),
    ({"model_type": "qwen2", "sliding_window": 7}, {"sliding_window": 0}),
    ({"model_type": "qwen2", "sliding_window": 7, "use_sliding_window": True,
      "max_window_layers": 1}, {"sliding_window": 7, "sliding_window_from": 1}),
    ({"model_type": "qwen3", "sliding_window": 7, "use_sliding_window": True,
      "layer_types": FULL * 2 + NEAR * 2}, {"sliding_window": 7, "sliding_window_from": 2}),
    ({"model_type": "qwen2", "sliding_window": 7, "layer_types": FULL * 4}, {"sliding_window": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("said", "computed"), AS_TRANSFORMERS)
def test_config_json_is_read_as_transformers_reads_it(said, computed):
    config = hf_config.from_json(PLAIN | said, FILE)
    assert {key: getattr(config, key) for key in computed} == computed


def test_yarn_beside_rope_parameters_turns_as_in_transformers():
    config = hf_config.from_json(PLAIN | {"rope_parameters": OTHER, "rope_scaling": YARN}, FILE)
    frequency_h, growth = rope.frequencies(config, 16)
    theirs = [1.0, 0.23717082, 0.05, 0.0079056939, 0.0025, 7.9056941e-4, 2.5e-4, 7.9056941e-5]
    np.testing.assert_allclose(frequency_h, theirs, rtol=1e-6)
    assert growth == pytest.approx(1.1386294)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"rope_parameters": {"full_attention": OTHER}}, "rope_parameters.full_attention"),
        ({"rope_scaling": {**YARN, "attention_factor": 1.5}}, "rope_scaling.attention_factor=1.5"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type=dynamic"),
        ({"rope_scaling": [2.0]}, r"rope_scaling=\[2.0\] is not an object"),
        ({"rope_theta": None}, "rope_theta=None is not a number above 0"),
        ({"rope_theta": 1.0, "rope_scaling": YARN}, "rope_theta=1.0"),
        ({"hidden_size": 64.0}, "hidden_size=64.0 is not an integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers=True"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 is not .* to 4096"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps='1e-6'"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings=None is not true or false"),
        ({"model_type": ["llama"]}, r"model_type=\['llama'\]"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window=0"),
        ({"layer_types": NEAR * 4}, "layer_types=.*sliding_attention"),
        ({"model_type": "mistral", "layer_types": FULL * 4}, "layer_types="),
        ({"model_type": "qwen2", "layer_types": FULL * 3}, "layer_types="),
        ({"num_key_value_heads": 3}, "as model.n_heads=4: not a multiple of model.n_kv_heads=3"),
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping=30.0 .* standard llama"),
        ({"residual_multiplier": 0.22}, "residual_multiplier=0.22"),
        ({"num_experts": 8, "clip_qkv": 8.0}, "clip_qkv=8.0"),
        ({"is_causal": False}, "is_causal=False"),
        ({"model_type": "llama4", "text_config": 3}, "no key text_config"),
    ],
)
def test_what_is_not_computed_is_named(said, named):
    with pytest.raises(InputError, match=f"model.path=config.json: .*{named}"):
        hf_config.from_json(PLAIN | said, FILE)


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)
KEY = st.sampled_from(sorted({*hf_config.FITS, *hf_config.FIXED, "model_type", "text_config"}))
WILD = st.sampled_from([0, -1, 1, 2, 10**30, 1e308, [0, 0], ["full_attention"], {"factor": 0}])
ROPE = st.dictionaries(
    st.sampled_from(sorted({*hf_config.ROPE_KEYS, *hf_config.ROPE_FIXED, "mscale"})),
    VALUE | WILD | st.sampled_from(["yarn", "llama3", "linear", 4.0, 64]),
)
SOME = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SOME
@given(
    st.sampled_from(sorted(hf_config.DEFAULTS)),
    st.dictionaries(KEY | st.text(max_size=9), VALUE | WILD | ROPE, max_size=4),
)
def test_any_value_of_any_key_gives_a_model_or_one_error(family, change):
    try:
        config = hf_config.from_json(PLAIN | {"model_type": family} | change, FILE)
    except InputError as error:
        assert str(error).startswith("model.path=config.json: ")
    else:
        assert isinstance(config, ModelConfig)
        frequency_h, growth = rope.frequencies(config, 16)
        assert np.isfinite(frequency_h).all() and np.isfinite(growth)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=1))


@pytest.fixture
def folder(tmp_path):
    """The tensors in two shards."""
    shutil.copytree(DATA / "llama", tmp_path / "model")
    folder = tmp_path / "model"
    tensors = safetensors.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, some in halves.items():
        safetensors.save_file({name: tensors[name] for name in some}, folder / file)
    where = {name: file for file, some in halves.items() for name in some}
    write_index(folder, {"weight_map": where})
    return folder


def write_index(folder, index):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def refused(folder, mesh) -> str:
    with pytest.raises(InputError) as error:
        hf.load(folder, hf.config_of(folder), mesh)
    return str(error.value)


def test_shards_are_one_checkpoint_and_a_single_file_counts_first(folder, mesh):
    config = hf.config_of(folder)
    ours, theirs = (hf.load(path, config, mesh) for path in (folder, DATA / "llama"))
    np.testing.assert_array_equal(ours["embed"], theirs["embed"])
    shutil.copy(DATA / "llama" / "model.safetensors", folder)
    write_index(folder, {"weight_map": {"x": "missing.safetensors"}})
    hf.load(folder, config, mesh)  # as transformers: the index is not looked at


@pytest.mark.parametrize(
    "name", ["../out.safetensors", "/etc/passwd", "a/../../b", "..", "", "a\\b", None, 3, ["a"]]
)
def test_shards_lie_in_the_folder(folder, mesh, name):
    write_index(folder, {"weight_map": {"model.norm.weight": name}})
    assert f"weight_map.model.norm.weight={name!r} is not a file of this folder" in refused(
        folder, mesh
    )


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', ""])
def test_an_index_that_is_none_is_named(folder, mesh, index):
    file = folder / "model.safetensors.index.json"
    file.write_text(index)
    assert refused(folder, mesh).startswith(f"model.path={file}: ")


def test_shards_that_are_missing_cut_or_overlap_are_named(folder, mesh):
    shard = (folder / "b.safetensors").read_bytes()
    cut = [shard[:4], shard[:40], shard[:-1], b"", struct.pack("<Q", 2**62) + shard[8:]]
    for content in cut:
        (folder / "b.safetensors").write_bytes(content)
        assert f"{folder}/b.safetensors: unreadable (" in refused(folder, mesh)
    (folder / "b.safetensors").unlink()
    assert f"model.path={folder}: no b.safetensors" in refused(folder, mesh)
    (folder / "b.safetensors").mkdir()
    assert f"model.path={folder}: no b.safetensors" in refused(folder, mesh)
    (folder / "b.safetensors").rmdir()
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    assert "is also in a.safetensors; remove one of the two" in refused(folder, mesh)


@SOME
@given(st.binary(max_size=60), st.integers(0, 400))
def test_any_bytes_in_a_shard_or_an_index_give_one_error(tmp_path_factory, content, at):
    folder = tmp_path_factory.mktemp("any")
    whole = (DATA / "llama" / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:at] + content + whole[at + len(content) :])
    index = tmp_path_factory.mktemp("index")
    (index / "model.safetensors.index.json").write_bytes(b'{"weight_map": {"a": "' + content)
    (index / "config.json").write_bytes(content)
    for read in (hf_files.in_folder, hf.config_of):
        for where in (folder, index):
            try:
                read(where)
            except InputError as error:
                assert str(error).startswith(f"model.path={where}")


def gguf_file(path: Path, **fields) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    for key, value in fields.items():
        writer.add_key_value(f"llama.{key}", value, gguf.GGUFValueType.UINT32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_parsed_once_until_it_changes(tmp_path, monkeypatch):
    """By whoever asks for its configuration, then for its tensors."""
    parsed, reader = [], gguf.GGUFReader
    monkeypatch.setattr(gguf, "GGUFReader", lambda file: parsed.append(file) or reader(file))
    file = gguf_file(tmp_path / "a.gguf", context_length=64)
    assert hf_files.gguf_json(file)["max_position_embeddings"] == 64
    assert "model.embed_tokens.weight" in hf_files.in_gguf(file) and parsed == [file]
    gguf_file(file, context_length=32, embedding_length=32)
    assert hf_files.gguf_json(file)["max_position_embeddings"] == 32 and len(parsed) == 2


@SOME
@given(st.integers(0, 500), st.binary(min_size=1, max_size=8))
@example(8, b"\xff" * 8)
def test_any_bytes_in_a_gguf_file_give_one_error(tmp_path_factory, at, content):
    file = gguf_file(tmp_path_factory.mktemp("any") / "a.gguf")
    whole = file.read_bytes()
    file.write_bytes(whole[:at] + content + whole[at + len(content) :])
    for read in (hf_files.in_gguf, hf.config_of):
        try:
            read(file)
        except InputError as error:
            assert str(error).startswith(f"model.path={file}: ")


def test_a_gguf_file_that_turns_a_part_of_its_heads_is_refused(tmp_path):
    fields = {"attention.key_length": 8, "rope.dimension_count": 4}
    file = gguf_file(tmp_path / "a.gguf", **fields)
    with pytest.raises(InputError, match=r"a.gguf: rope.dimension_count=4; the decoder rotates"):
        hf.config_of(file)


def test_a_quantisation_that_cannot_be_undone_is_named(tmp_path, monkeypatch):
    file = gguf_file(tmp_path / "a.gguf")

    def refuse(*_):
        raise NotImplementedError("no such type")

    monkeypatch.setattr(gguf.quants, "dequantize", refuse)
    with pytest.raises(InputError, match=r"a.gguf: token_embd.weight is of type F32 \(no such"):
        hf_files.in_gguf(file)["model.embed_tokens.weight"].read(hf.WHOLE)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "/dev/null", "/dev/null/x", "Qwen/Qwen3-8B"])
def test_paths_where_no_model_can_be(path):
    assert not start.is_run(path)
    with pytest.raises(InputError, match="no model there; give a folder"):
        hf.locate(path)


def test_more_layers_than_tensors_are_refused_before_they_are_made(mesh):
    config = replace(hf.config_of(DATA / "llama"), n_layers=4096)
    with pytest.raises(InputError, match="tensors for 4096 layers"):
        hf.load(DATA / "llama", config, mesh)


@pytest.mark.parametrize("where", ["file/out", "taken", "dangling"])
def test_a_folder_that_cannot_be_written_is_named_and_nothing_stays(where, mesh, tmp_path):
    config = hf.config_of(DATA / "llama")
    params = hf.load(DATA / "llama", config, mesh)
    (tmp_path / "file").write_text("")
    (tmp_path / "taken").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=f"^to={tmp_path / where}: "):
        hf.save(tmp_path / where, params, config)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_tokenizer_of_a_folder_without_a_model_goes_along(mesh, tmp_path):
    config = hf.config_of(DATA / "llama")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_text("{}")
    params = hf.load(DATA / "llama", config, mesh)
    hf.save(tmp_path / "out", params, config, like=str(tmp_path / "words"))
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
