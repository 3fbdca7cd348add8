# ruff: noqa: F401, F811
"""float16: the gradient is of a scaled objective; what overflows is skipped, the scale halved."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from test_step import batch, config, params

from rlx.config import AlgoConfig, OptimConfig
from rlx.mesh import make_mesh
from rlx.record import RunRecord
from rlx.train import start
from rlx.train import state as states
from rlx.train.health import Health
from rlx.train.rl import train
from rlx.train.spec import names, numbers
from rlx.train.state import LossScale, init_state, loss_scale
from rlx.train.step import make_train_step
from rlx.train.warm_start import WarmStart
from rlx.types import NotFinite

ALGO = AlgoConfig(loss="reinforce", advantage="centered", zero_variance="keep")


def made(config, dtype):
    config = replace(config, model=replace(config.model, compute_dtype=dtype), algo=ALGO)
    return names(config, make_mesh(config.mesh)), numbers(config)


def gradient(state, config):
    mu = jax.device_get(optax.tree_utils.tree_get(state.opt_state, "mu"))
    return -np.asarray(ravel_pytree(mu)[0]) / (1 - config.optim.beta1)


def with_scale(state, scale):
    *rest, held = state.opt_state
    new = LossScale(jax.numpy.float32(scale), held.steady)
    return state.replace(opt_state=(*rest, jax.device_put(new, held.loss_scale.sharding)))


def after_one(config, params, batch, dtype, reward=1.0, scale=None):
    spec, hyper = made(config, dtype)
    state = init_state(spec, params)
    state = state if scale is None else with_scale(state, scale)
    few = batch.replace(reward_PG=batch.reward_PG * np.float32(reward))
    return make_train_step(spec, hyper)(state, few)


def error(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_small_gradients_survive_the_scale_alone(config, params, batch):
    """Of rewards of 1e-6 most of the gradient is below what float16 can hold."""
    true, _ = after_one(config, params, batch, "float32", 1e-6)
    scaled, metrics = after_one(config, params, batch, "float16", 1e-6)
    lost, _ = after_one(config, params, batch, "float16", 1e-6, scale=1.0)
    assert metrics["update/loss_scale"] == states.FIRST_SCALE and not metrics["update/skipped"]
    grads = [gradient(state, config) for state in (true, scaled, lost)]
    assert error(grads[1], grads[0]) < 0.02
    assert error(grads[2], grads[0]) > 0.2


def test_an_overflow_is_skipped_and_halves_the_scale(config, params, batch):
    state, metrics = after_one(config, params, batch, "float16", scale=2.0**24)
    assert metrics["update/skipped"] == 1 and not np.isfinite(metrics["grad_norm"])
    assert np.isfinite(metrics["objective"]) and int(state.version) == 1
    assert loss_scale(state) == 2.0**23
    before = init_state(made(config, "float16")[0], params)
    jax.tree.map(np.testing.assert_array_equal, state.params, before.params)
    np.testing.assert_array_equal(gradient(state, config), 0)


def test_the_scale_grows_after_a_while():
    held = LossScale(np.float32(8), np.int32(states.STEADY - 2))
    held = held.after(True)
    assert (held.loss_scale, held.steady) == (8, states.STEADY - 1)
    held = held.after(True)
    assert (held.loss_scale, held.steady) == (16, 0)
    assert held.after(False).loss_scale == 8
    low, high = (LossScale(np.float32(x), np.int32(states.STEADY - 1)) for x in (1, 2**24))
    assert low.after(False).loss_scale == 1 and high.after(True).loss_scale == 2**24


def test_other_dtypes_have_none(config, params):
    for dtype in ("float32", "bfloat16"):
        state = init_state(made(config, dtype)[0], params)
        assert loss_scale(state) == 1.0
        assert not any(isinstance(x, LossScale) for x in state.opt_state)


def test_a_run_in_half_precision_goes_on_where_it_paused(easy, tmp_path):
    """Scale and all: the rows of a run in two parts are those of one."""
    model = replace(easy.model, compute_dtype="float16")
    whole = replace(easy, model=model, steps=6, out=str(tmp_path / "whole"))
    parts = replace(whole, out=str(tmp_path / "parts"))
    train(whole, progress=False)
    train(replace(parts, until=3), progress=False)
    train(parts, progress=False)
    rows = [RunRecord(c.out).rows("metrics.jsonl") for c in (whole, parts)]
    assert rows[0] == rows[1] and len(rows[0]) == 6
    assert all(row["update/loss_scale"] >= 1 for row in rows[0])
    assert all(row["policy/logp_gap_max"] < 0.05 for row in rows[0])  # on-policy: numerics alone


def row(scale, **finite):
    return {"update/skipped": 1.0, "grad_norm": np.inf, "update/loss_scale": scale, **finite}


def test_skips_that_look_for_the_scale_do_not_end_a_run():
    """From 2^15 the scale reaches 1 after 15 skips; only then do they say that numbers are bad."""
    health = Health("runs/a", OptimConfig(max_skipped_updates=2), quiet=True)
    for power in range(15, -1, -1):
        health.updated(row(2.0**power), 0)
    with pytest.raises(NotFinite, match="optim.max_skipped_updates=2: the last 2 updates"):
        health.updated(row(1.0), 0)


def test_a_warm_start_scales_its_loss_too(easy, tmp_path):
    """Gradients of a mean over many tokens are below what float16 can hold."""
    config = replace(easy, model=replace(easy.model, compute_dtype="float16"))
    task = WarmStart(config.model, config.warm_start, start.make_env(config))
    assert loss_scale(task.state) == states.FIRST_SCALE
    before, after = task.state.params["embed"].copy(), task.step(task.batch(0))
    assert after["update/loss_scale"] == states.FIRST_SCALE and not after["update/skipped"]
    assert (task.state.params["embed"] != before).any()
    plain = WarmStart(easy.model, easy.warm_start, start.make_env(easy))
    assert loss_scale(plain.state) == 1.0 and "update/loss_scale" not in plain.step(plain.batch(0))
