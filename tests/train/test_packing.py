"""Samples that share a row of the forward pass learn what they would learn alone."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.config import AlgoConfig, MeshConfig, ModelConfig, OptimConfig
from rlx.mesh import make_mesh
from rlx.models import transformer
from rlx.record import RunRecord
from rlx.train import packing
from rlx.train.rl import train
from rlx.train.spec import names, numbers
from rlx.train.state import init_state
from rlx.train.step import make_train_step
from rlx.types import Batch

P, G, U, T, V, PAD = 4, 8, 5, 9, 14, 13


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(1, T), min_size=G, max_size=G), min_size=1, max_size=3))
def test_every_token_that_is_fed_stands_in_one_place(length_PG):
    packed_PRt = packing.packed(length_PG, T)
    R, W = packed_PRt.shape[1:]
    assert W == T - 1 and R <= G
    for at_RW, length_G in zip(packed_PRt, length_PG, strict=True):
        fed = [g * T + t for g, n in enumerate(length_G) for t in range(n - 1)]
        assert sorted(at_RW[at_RW >= 0].tolist()) == fed
        for at_W in at_RW:  # a sample is in one piece: its tokens are neighbours, in order
            at = at_W[at_W >= 0]
            same = np.diff(at // T) == 0
            assert (np.diff(at)[same] == 1).all() and len(set(at // T)) == np.sum(~same) + bool(
                len(at)
            )


def test_short_samples_need_few_rows():
    assert packing.packed([[3] * G], T).shape == (1, 2, T - 1)  # 4 samples of 2 tokens a row
    assert packing.packed([[T] * G], T).shape == (1, G, T - 1)
    assert (packing.packed([[1] * G], T) == -1).all()  # one token each: nothing is fed


def test_what_is_unpacked_is_where_it_was():
    rng = np.random.default_rng(0)
    completion_PGT = rng.integers(0, 99, (P, G, T))
    length_PG = rng.integers(1, T + 1, (P, G))
    packed_PRt = packing.packed(length_PG, T)
    token_PN = packing.predicted(packed_PRt, completion_PGT)
    back_PGT = np.asarray(packing.unpacked(packed_PRt, token_PN, G))
    real = np.arange(T) < length_PG[..., None]
    np.testing.assert_array_equal(back_PGT[real], completion_PGT[real])


MODELS = {
    "plain": {},
    "window": {"sliding_window": 4},
    "experts": {
        "n_experts": 4, "experts_per_token": 2, "d_ff_expert": 8, "router_aux_coef": 0.5,
        "attention_chunk": 4, "no_rope_every": 2,
    },
    "stacked": {"scan_layers": True, "sliding_window": 4, "sliding_window_from": 1},
}  # fmt: skip
ALGOS = {
    "scalerl": AlgoConfig(is_cap=1.2),
    "ppo with a critic and a reference": AlgoConfig(
        loss="ppo_clip", advantage="gae", aggregation="token_mean", zero_variance="keep",
        kl="k3", kl_coef=0.1, entropy_coef=0.01,
    ),
    "tbrm": AlgoConfig(loss="tbrm", advantage="centered", zero_variance="keep"),
}  # fmt: skip


def batch() -> Batch:
    rng = np.random.default_rng(3)
    length_P = rng.integers(2, U + 1, P).astype(np.int32)
    length_PG = rng.integers(1, 6, (P, G))
    mask_BT = (np.arange(T) < length_PG.reshape(-1, 1)).astype(np.float32)
    mask_BT[1, :1] = 0  # a hole
    return Batch(
        prompt_PU=rng.integers(0, PAD, (P, U)).astype(np.int32),
        prompt_length_P=length_P,
        completion_BT=rng.integers(0, PAD, (P * G, T)).astype(np.int32),
        mask_BT=mask_BT,
        behavior_logp_BT=np.where(mask_BT > 0, rng.normal(-2.6, 0.3, (P * G, T)), 0).astype("f"),
        behavior_value_BT=np.zeros((P * G, T), np.float32),
        reward_PG=np.where(np.arange(P)[:, None] == 1, 1, rng.integers(0, 2, (P, G))).astype("f"),
        keep_P=np.ones(P, np.float32),
        packed_PRt=packing.packed(length_PG, T),
    )


def moved(tiny, model, algo, mesh, microbatches, packed):
    """(what the optimiser's first moment says of the gradient, metrics) of a step."""
    model = ModelConfig(**vars(tiny.model) | MODELS[model])
    optim = OptimConfig(warmup_steps=0, eps=1e-3, max_grad_norm=1e9, microbatches=microbatches)
    rollout = replace(tiny.rollout, prompts_per_step=P, group_size=G, max_new_tokens=T)
    config = replace(tiny, model=model, algo=ALGOS[algo], optim=optim, rollout=rollout, mesh=mesh)
    params = transformer.init(jax.random.key(0), model, V)
    where = make_mesh(mesh)
    spec = names(config, where)
    state = init_state(spec, params)
    data = batch() if packed else batch().replace(packed_PRt=None)
    state, metrics = make_train_step(spec, numbers(config), params)(state, data)
    return jax.device_get(state.opt_state[1][0].mu), jax.device_get(metrics)


ONE = MeshConfig(data=1)


@pytest.mark.parametrize(
    "model, algo, mesh, microbatches",
    [
        ("plain", "scalerl", ONE, 1),
        ("experts", "scalerl", ONE, 2),
        ("window", "ppo with a critic and a reference", ONE, 2),
        ("stacked", "tbrm", MeshConfig(data=2, fsdp=2, tensor=2), 1),
    ],
)
def test_the_step_is_the_same(tiny, model, algo, mesh, microbatches):
    want, said = moved(tiny, model, algo, ONE, 1, packed=False)
    got, says = moved(tiny, model, algo, mesh, microbatches, packed=True)
    biggest = max(np.abs(x).max() for x in jax.tree.leaves(want))
    assert biggest > 1e-4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * biggest), got, want)
    for name in said:
        assert float(says[name]) == pytest.approx(float(said[name]), rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("model", ["plain", "experts"])
def test_answers_of_one_token_have_nothing_to_pack(easy, tmp_path, model):
    """Nothing is fed after the prompt, packed or not."""
    made = ModelConfig(**vars(easy.model) | MODELS[model])
    rollout = replace(easy.rollout, max_new_tokens=1, decode_chunk_tokens=1)
    config = replace(easy, model=made, rollout=rollout, steps=1, warm_start_dir=str(tmp_path))
    rows = []
    for pack in (False, True):
        out = str(tmp_path / f"pack_{pack}")
        train(replace(config, optim=replace(easy.optim, pack=pack), out=out), progress=False)
        rows.append(RunRecord(out).rows("metrics.jsonl"))
    assert rows[0] == rows[1] and len(rows[0]) == 1
