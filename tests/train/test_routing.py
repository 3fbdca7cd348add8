"""Routing replay: the learner takes the experts that the sampler's routers chose.

One layer against a loop over tokens, and whole runs of Qwen3's mixture at a tiny size.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rlx.config import AlgoConfig, ModelConfig, OptimConfig, PipelineConfig, SftConfig
from rlx.errors import InputError
from rlx.models import moe, transformer
from rlx.record import RunRecord
from rlx.train import start
from rlx.train.rl import train

QWEN3 = ModelConfig(  # conf/model/qwen3_30b_a3b.yaml, narrower: norms, routers and dispatch are its
    d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=24, n_experts=8,
    experts_per_token=2, d_ff_expert=8, norm_topk=True, qk_norm=True, rope_theta=1000000.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def layer():
    return transformer.init(jax.random.key(0), QWEN3, 11)["layers"][0]


@pytest.fixture(scope="module")
def x_BTD():
    return jnp.array(np.random.default_rng(1).normal(size=(2, 3, 16)), jnp.float32)


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dispatch", ["sorted", "blocks", "dense"])
def test_a_layer_does_as_it_is_told(layer, x_BTD, router, dispatch):
    """Told its own choice nothing changes; told another, each token's loop in float64 agrees."""
    config = replace(QWEN3, router=router, moe_dispatch=dispatch)
    w = {name: layer[name] for name in moe.shapes(config)}
    free_BTD, free = moe.feed_forward(w, x_BTD, config)
    same_BTD, same = moe.feed_forward(w, x_BTD, config, free.expert_BTK[..., ::-1])
    assert free.moved_BT is None and not same.moved_BT.any()
    assert_allclose(same_BTD, free_BTD, rtol=1e-5, atol=1e-6)

    replay_BTK = jnp.array(
        np.random.default_rng(2).permuted(np.tile(np.arange(8), (2, 3, 1)), axis=2)
    )
    replay_BTK = replay_BTK[..., :2]
    y_BTD, routed = moe.feed_forward(w, x_BTD, config, replay_BTK)
    assert_array_equal(routed.expert_BTK, replay_BTK)
    w64 = {name: np.asarray(x, np.float64) for name, x in w.items()}
    silu = lambda z: z / (1 + np.exp(-z))  # noqa: E731
    for b, t in np.ndindex(2, 3):
        x = np.asarray(x_BTD[b, t], np.float64)
        logit, total = x @ w64["router"], 0.0
        chosen = [int(i) for i in replay_BTK[b, t]]
        if router == "softmax":
            weight = np.exp(logit[chosen]) / np.exp(logit[chosen]).sum()
        else:
            weight = 1 / (1 + np.exp(-logit[chosen]))
        for scale, i in zip(weight, chosen, strict=True):
            inner = x * scale if router == "sigmoid" else x
            y = silu(inner @ w64["expert_gate"][i]) * (inner @ w64["expert_up"][i])
            total = total + (y @ w64["expert_down"][i]) * (1 if router == "sigmoid" else scale)
        assert_allclose(y_BTD[b, t], total, rtol=1e-4, atol=1e-5)
        own = set(np.argsort(-logit)[:2])
        assert bool(routed.moved_BT[b, t]) == (own != set(chosen))
    grad = jax.grad(lambda w: jnp.sum(moe.feed_forward(w, x_BTD, config, replay_BTK)[0] ** 2))(w)
    assert np.abs(grad["router"]).max() > 1e-4  # its scores still learn


def run_of(easy, out, scan=False, **how):
    algo = replace(easy.algo, replay_routing=True)
    return replace(easy, model=replace(QWEN3, scan_layers=scan), algo=algo, out=str(out), **how)


@pytest.mark.parametrize("scan", [False, True])
def test_on_policy_nothing_moves(easy, tmp_path, scan):
    """What the sampler noted, token by token, is what the learner would choose: all of the seam."""
    config = run_of(easy, tmp_path / "run", scan, steps=2)
    train(config, progress=False)
    rows = RunRecord(config.out).rows("metrics.jsonl")
    assert [row["router/moved_choices_share"] for row in rows] == [0.0, 0.0]
    assert all(row["policy/logp_gap_max"] < 1e-4 for row in rows)


def test_off_policy_it_moves_and_survives_a_pause(easy, tmp_path):
    """At a hot rate, up to 4 updates stale; the experts of sequences in flight are kept."""
    hot = {
        "optim": OptimConfig(learning_rate=1e-2),
        "pipeline": PipelineConfig(kind="pipeline", k=4),
        "steps": 8,
    }
    whole, parts = (run_of(easy, tmp_path / name, **hot) for name in ("whole", "parts"))
    train(whole, progress=False)
    train(replace(parts, until=5), progress=False)
    train(parts, progress=False)
    rows, again = (RunRecord(c.out).rows("metrics.jsonl") for c in (whole, parts))
    assert rows == again
    stale = [row for row in rows if row["rollout/staleness_max"] > 0]
    assert max(row["router/moved_tokens_share"] for row in stale) > 0.02
    for row in rows:
        assert row["router/moved_choices_share"] <= row["router/moved_tokens_share"] + 1e-6
    assert all(np.isfinite(row["objective"]) for row in rows)


def test_what_cannot_replay_is_refused(easy):
    algo = replace(easy.algo, replay_routing=True)
    with pytest.raises(InputError, match="algo.replay_routing=True: the model has no experts; l"):
        start.resolve(replace(easy, algo=algo))
    with pytest.raises(InputError, match="algo.replay_routing=True: it does not support packed"):
        replace(easy, algo=algo, optim=OptimConfig(pack=True))
    with pytest.raises(InputError, match="algo.replay_routing=True: only for reinforcement"):
        SftConfig(algo=AlgoConfig(loss="reinforce", advantage="none", replay_routing=True))
