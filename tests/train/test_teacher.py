# ruff: noqa: F401, F811
"""A teacher in a whole step and in whole runs: its log-ratio is the advantage, its cost is counted.

The step's gradient is put together token by token, as in test_step_terms.py.
"""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from test_step import batch, config, params, tokens
from test_step_terms import added_up, centred, prefixes

from rlx import flops
from rlx.config import AlgoConfig, MeshConfig
from rlx.errors import InputError
from rlx.mesh import make_mesh
from rlx.models import transformer
from rlx.record import RunRecord
from rlx.train import start, teacher
from rlx.train.rl import train
from rlx.train.spec import names, numbers
from rlx.train.state import init_state
from rlx.train.step import make_train_step

SUMS = str(Path(__file__).parents[1] / "data/tasks/sums.py")
ALONE = {"loss": "reinforce", "advantage": "distill", "zero_variance": "keep"}


@pytest.fixture(scope="module")
def theirs(params):
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype("f"), params)


@pytest.mark.parametrize("advantage", ["distill", "centered"])
def test_the_gradient_of_a_step_is_the_loop(
    config, params, batch, tokens, prefixes, theirs, advantage
):
    """Alone, and added to what the reward says."""
    algo = AlgoConfig(
        loss="reinforce", advantage=advantage, zero_variance="keep", aggregation="token_mean",
        teacher="somewhere", teacher_coef=0.3,
    )  # fmt: skip
    spec = names(replace(config, algo=algo), make_mesh(config.mesh), config.model)
    hyper = numbers(replace(config, algo=algo))
    state = init_state(spec, params)
    state, _ = make_train_step(spec, hyper, teacher=theirs)(state, batch)
    mu = jax.device_get(optax.tree_utils.tree_get(state.opt_state, "mu"))
    grad = -np.asarray(ravel_pytree(mu)[0]) / (1 - config.optim.beta1)
    logp = {bt: logp for bt, (logp, *_) in prefixes(theirs).items()}
    reward_B = centred(batch) if advantage == "centered" else np.zeros(len(batch.mask_BT))

    def coefficient(b, t, _):
        gap = logp[b, t] - float(batch.behavior_logp_BT[b, t])
        return (reward_B[b] + 0.3 * gap) / batch.mask_BT.sum()

    np.testing.assert_allclose(grad, added_up(tokens, coefficient), atol=2e-6, rtol=0)


@pytest.fixture(scope="module")
def taught(easy, tmp_path_factory):
    """A run of another size on the same task, which can be a teacher."""
    out = tmp_path_factory.mktemp("teacher")
    model = replace(easy.model, d_model=24, n_layers=1)
    config = replace(easy, model=model, out=str(out / "big"), warm_start_dir=str(out / "warm"))
    train(config, progress=False)
    return config


def test_a_run_learns_from_another_and_pays_for_it(easy, taught, tmp_path):
    algo = AlgoConfig(**ALONE, teacher=taught.out)
    config = replace(easy, algo=algo, out=str(tmp_path / "small"))
    train(config, progress=False)
    record = RunRecord(config.out)
    manifest, row = record.manifest, record.rows("evals.jsonl")[-1]
    theirs = RunRecord(taught.out)
    spent = theirs.rows("evals.jsonl")[-1]["compute"] + theirs.manifest["warm_start_flops"]
    assert manifest["teacher_flops"] == pytest.approx(spent)
    assert row["compute"] == pytest.approx(
        row["train_flops"] + sum(row["generate_flops"].values()) + row["reference_flops"]
    )
    own = row["train_flops"] / 3  # what a teacher of the student's size would have cost
    sizes = [flops.train_flops(m, 16, 6, np.array([4])) for m in (taught.model, easy.model)]
    assert row["reference_flops"] / own == pytest.approx(sizes[0] / sizes[1], rel=0.1)


def test_a_teacher_at_rest_is_no_news(easy, taught, tmp_path):
    """Its own teacher, on-policy: every advantage is 0 up to rounding."""
    at_rest = replace(
        taught, model=replace(taught.model, path=taught.out), steps=1, out=str(tmp_path / "same"),
        algo=AlgoConfig(**ALONE, teacher=taught.out),
    )  # fmt: skip
    train(at_rest, progress=False)
    (row,) = RunRecord(at_rest.out).rows("metrics.jsonl")
    assert row["grad_norm"] < 1e-4


def test_a_policy_with_experts_has_a_teacher_without(easy, taught):
    """What is asked of the policy's routers is not asked of the teacher."""
    experts = {"n_experts": 2, "d_ff_expert": 8, "router_aux_coef": 0.1}
    algo = AlgoConfig(**ALONE, teacher=taught.out, replay_routing=True)
    config = replace(easy, model=replace(easy.model, **experts), algo=algo)
    config = start.resolve(replace(config, mesh=MeshConfig(data=1, expert=2)))
    mesh = start.make_mesh(config, prompts=4)
    got = teacher.load(config, start.make_env(config), mesh)
    assert (got.model.n_experts, got.model.d_model) == (0, 24)


@pytest.mark.parametrize("what", ["nothing", "tokens", "room", "heads"])
def test_who_cannot_teach_is_refused(easy, taught, tmp_path, what):
    lines = {
        "nothing": "algo.teacher=.*none: no model there; give a folder",
        "tokens": "algo.teacher=.*big: its vocabulary differs from .*; give a",
        "room": "algo.teacher=.*big: its context is 7 tokens, prompt and answer take up to .*; l",
        "heads": "algo.teacher=.*big: mesh.tensor=8: does not divide model.n_heads=4; every device",
    }
    path, config = taught.out, replace(easy, algo=AlgoConfig(**ALONE, teacher="x"))
    if what == "nothing":
        path = str(tmp_path / "none")
    if what == "tokens":
        config = replace(config, env=replace(easy.env, name=SUMS, kwargs={}))
    if what == "room":
        record = RunRecord(tmp_path / "big")
        manifest = RunRecord(taught.out).manifest
        manifest["config"]["model"]["context_tokens"] = 7
        record.update_manifest(**manifest)
        path = str(tmp_path / "big")
    config = replace(config, algo=replace(config.algo, teacher=path))
    env, mesh = start.make_env(config), MeshConfig(tensor=8) if what == "heads" else config.mesh
    with pytest.raises(InputError, match=lines[what]):
        teacher.load(config, env, make_mesh(mesh))


def test_without_one_nothing_is_loaded(easy):
    assert teacher.load(easy, start.make_env(easy), make_mesh(easy.mesh)) is None
