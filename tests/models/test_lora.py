"""Adapters: W' = W + (alpha / r) A B, in any layout, on any mesh, and in whole runs."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from rlx.config import AlgoConfig, MeshConfig
from rlx.mesh import make_mesh, of_params
from rlx.models import lora, transformer
from rlx.record import read_rows
from rlx.train import loop, rl, start
from rlx.train.spec import names
from rlx.train.state import init_state


@pytest.fixture(scope="module")
def params(tiny):
    return transformer.init(jax.random.key(0), tiny.model, 14)


@pytest.fixture(scope="module")
def adapters(params):
    """With a B that is not 0."""
    start = lora.init(jax.random.key(1), params, 3)
    return jax.tree.map(lambda x: x + 0.1, start)


def test_adapters_change_nothing_at_first(params):
    start = lora.init(jax.random.key(1), params, 3)
    jax.tree.map(np.testing.assert_array_equal, lora.merged(params, start, 2.0), params)
    a = np.concatenate([x.ravel() for x in jax.tree.leaves(start) if np.any(x)])
    assert len(set(a.tolist())) == len(a)  # every A has numbers of its own


def test_the_merged_matrix(params, adapters):
    got = lora.merged(params, adapters, 0.7)
    for layer, low, new in zip(params["layers"], adapters["layers"], got["layers"], strict=True):
        assert set(low) == set(lora.MATRICES)
        for name, w in layer.items():
            if name not in low:
                np.testing.assert_array_equal(new[name], w)
                continue
            a, b = np.float64(low[name]["a"]), np.float64(low[name]["b"])
            np.testing.assert_allclose(new[name], w + 0.7 * a @ b, rtol=1e-5, atol=1e-6)
    assert got["embed"] is params["embed"]


def test_stacked_layers_merge_alike(params, adapters):
    stack = lambda tree: {**tree, "layers": transformer.stack_layers(tree["layers"])}  # noqa: E731
    got = lora.merged(stack(params), stack(adapters), 0.7)
    want = stack(lora.merged(params, adapters, 0.7))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)


def test_a_critic_beside_the_adapters_is_taken_whole(params, adapters):
    value_D = np.ones(params["final_norm"].shape, np.float32)
    assert lora.merged(params, {**adapters, "value": value_D}, 1.0)["value"] is value_D


def test_what_is_trained_beside_a_bfloat16_model_is_float32(easy):
    """Adapters and a value head; all else stays, so that a run may have it in bfloat16."""
    model = replace(easy.model, param_dtype="bfloat16", path="somewhere")
    config = replace(easy, model=model, optim=replace(easy.optim, lora_rank=2))
    start.check_trained(config)
    algo = AlgoConfig(advantage="gae", zero_variance="keep")
    spec = names(replace(config, algo=algo), make_mesh(config.mesh))
    state = init_state(spec, transformer.init(jax.random.key(0), model, 14))
    assert "value" in state.params
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}


def test_the_rank_is_not_split(adapters):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
    placed = of_params(mesh, adapters, lora.logical_axes(adapters))["layers"][0]
    specs = {name: (tuple(x["a"].spec), tuple(x["b"].spec)) for name, x in placed.items()}
    assert specs["gate"] == (("fsdp",), (None, "tensor"))
    assert specs["down"] == (("tensor",), (None, "fsdp"))


def test_a_run_trains_adapters_alone_and_goes_on_where_it_stopped(easy, tmp_path):
    config = replace(easy, optim=replace(easy.optim, lora_rank=2, learning_rate=0.03))
    whole = replace(config, out=str(tmp_path / "whole"))
    rl.train(whole, progress=False)
    parts = replace(config, out=str(tmp_path / "parts"))
    left = iter((False, False, True))
    with pytest.raises(loop.Interrupted):
        rl.train(parts, progress=False, stop=lambda: next(left))
    rl.train(parts, progress=False)
    for name in ("evals.jsonl", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    rows = read_rows(tmp_path / "whole" / "metrics.jsonl")
    assert rows[0]["policy/logp_gap_max"] < 1e-4  # the sampler has the learner's weights ...
    assert rows[-1]["policy/logp_gap_max"] < 1e-4  # ... after updates too
    assert all(row["grad_norm"] > 0 for row in rows if row["prompts_kept"])
