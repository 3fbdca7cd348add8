"""What is not finite ends a run where it is made; what is wrong is said while it goes on."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.config import EvalConfig, MeshConfig, OptimConfig, PipelineConfig
from rlx.errors import InputError
from rlx.mesh import make_mesh
from rlx.models import transformer
from rlx.record import RunRecord, read_rows
from rlx.rollout import engine
from rlx.rollout.buffer import Buffer
from rlx.train import loop, rl, schedule, start, warm_start
from rlx.train.health import Health
from rlx.train.spec import names, numbers
from rlx.train.state import ascend, init_state, optimizer
from rlx.train.warm_start import load_or_make
from rlx.types import Group, NotFinite


def alike(problem, completion, stopped):
    return 0.0


@pytest.fixture
def never_varies(monkeypatch):
    monkeypatch.setattr("rlx.envs.digit_chain.DigitChain.grade", staticmethod(alike))


def test_weights_that_an_update_spoils_end_the_run_at_once(easy, tmp_path):
    """The rate is finite and its product with a weight is not."""
    optim = replace(easy.optim, learning_rate=1e38, weight_decay=1e38, warmup_steps=0)
    config = replace(easy, out=str(tmp_path), optim=optim)
    with pytest.raises(NotFinite, match="update 1 made weights or moments that are not finite"):
        rl.train(config, progress=False)
    manifest = RunRecord(tmp_path).manifest
    assert manifest["status"] == "failed" and "NotFinite" in manifest["error"]
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert row["update/skipped"] == 1 and np.isfinite(row["objective"])
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


@pytest.mark.parametrize(
    "bad, learns",
    [({"learning_rate": np.inf}, True), *(({"weight_decay": np.nan}, x) for x in (True, False))],
)
def test_the_flag_of_an_update_covers_what_it_makes(tiny, bad, learns):
    """Also where every group was dropped."""
    mesh = make_mesh(MeshConfig(data=1))
    state = init_state(names(tiny, mesh), transformer.init(jax.random.key(0), tiny.model, 16))
    grads = jax.tree.map(lambda x: 1e-3 * jnp.ones_like(x) * learns, state.params)
    for hyper, want in [(numbers(tiny), True), (numbers(tiny)._replace(**bad), False)]:
        new, norm, finite = ascend(
            state, grads, jnp.float32(0), optimizer(hyper, state.version, learns), mesh
        )
        whole = all(np.isfinite(x).all() for x in jax.tree.leaves(new))
        assert bool(finite) is whole is want and np.isfinite(norm)


def group(serial=0, **changes):
    fields = dict(
        serial=serial, problem_id=5, prompt_U=np.arange(3), completion_GT=np.zeros((2, 4)),
        length_G=np.full(2, 4), behavior_logp_GT=np.zeros((2, 4)),
        behavior_value_GT=np.zeros((2, 4)), version_GT=np.zeros((2, 4)), reward_G=np.zeros(2),
        score_G=np.zeros(2), stopped_G=np.ones(2, bool),
    )  # fmt: skip
    return Group(**fields | changes)


@pytest.mark.parametrize("name", ["behavior_logp_GT", "behavior_value_GT", "reward_G", "score_G"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_group_whose_numbers_are_not_finite_is_not_learned_from(name, value):
    bad = group(**{name: np.full(getattr(group(), name).shape, value)})
    buffer = Buffer("sync", 0, 1)
    buffer.start()
    with pytest.raises(NotFinite, match=f"{name} of group 0, problem 5"):
        buffer.put(bad)
    buffer.put(group())


def test_a_start_that_is_not_finite_is_refused_and_not_kept(easy, tmp_path):
    config = replace(easy, warm_start=replace(easy.warm_start, learning_rate=1e38))
    with pytest.raises(InputError, match="^warm_start.learning_rate=1e.38: .* not finite; lower"):
        load_or_make(config, start.make_env(config), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_a_file_that_are_not_finite_are_named(easy, tmp_path, monkeypatch):
    params, _ = warm_start.load_or_make(easy, start.make_env(easy), easy.warm_start_dir)
    params["final_norm"][3] = np.nan
    monkeypatch.setattr(start.hf, "load", lambda *_: params)
    config = replace(easy, model=replace(easy.model, path="some/model"))
    with pytest.raises(InputError, match="^model.path=some/model: final_norm is not finite; "):
        start.load(config, start.make_env(easy), None, tmp_path)


def test_a_note_comes_at_first_and_when_it_is_ten_times_as_much(capsys):
    health = Health("runs/a", OptimConfig())
    for count in range(1, 150):
        health.note("kind", count, f"{count} times")
    health.note("other", 0, "never")
    said = capsys.readouterr().err.splitlines()
    assert said == [f"note: runs/a: {count} times" for count in (1, 10, 100)]
    quiet = Health("runs/a", OptimConfig(), quiet=True)
    quiet.note("kind", 1, "once")
    assert capsys.readouterr().err == ""


def test_rewards_that_never_vary_are_counted_and_said(easy, tmp_path, never_varies, capsys):
    manifest = rl.train(replace(easy, out=str(tmp_path)), progress=False)
    said = capsys.readouterr().err
    line = "in 1 of 1 updates every group had zero variance: there was nothing to learn"
    assert f"note: {tmp_path}: {line} (rollout/score_mean=0)" in said
    assert manifest["updates_unvaried"] == easy.steps and manifest["ungraded"] == 0


def test_a_grader_that_always_fails_is_counted_and_said(easy, tmp_path, capsys, monkeypatch):
    def fails(*_):
        raise RuntimeError("no")

    monkeypatch.setattr("rlx.envs.digit_chain.DigitChain.grade", fails)
    manifest = rl.train(replace(easy, out=str(tmp_path)), progress=False)
    said = capsys.readouterr().err
    assert "step 0: 32 of 32 answers to heldout have no score; they count as 0" in said
    assert "16 of 16 answers so far have no score (16 errors, 0 timeouts)" in said
    assert manifest["ungraded"] == easy.steps * 16 == manifest["updates_unvaried"] * 16


def test_refilling_that_finds_nothing_is_said(easy, tmp_path, never_varies, capsys, monkeypatch):
    """Without a group that varies no update ever comes."""
    begun = iter(range(40))

    class EnoughOfIt(Exception):
        pass

    def begin(self, weights, begin=engine.Engine.begin):
        if next(begun) == 39:
            raise EnoughOfIt
        begin(self, weights)

    monkeypatch.setattr(engine.Engine, "begin", begin)
    algo = replace(easy.algo, zero_variance="refill")
    with pytest.raises(EnoughOfIt):
        rl.train(replace(easy, out=str(tmp_path), algo=algo), progress=False)
    said = capsys.readouterr().err
    assert "4 groups in a row had zero variance and were refilled" in said
    assert "40 groups in a row had zero variance" in said


@pytest.mark.parametrize("schedule", ["deterministic", "threads"])
def test_refilling_without_end_stops_when_asked(easy, tmp_path, never_varies, schedule):
    """Asked twice: the second time the run goes on from a checkpoint of the same update."""
    algo, pipeline = replace(easy.algo, zero_variance="refill"), PipelineConfig(schedule=schedule)
    mesh = replace(easy.mesh, generators=1)
    config = replace(easy, algo=algo, pipeline=pipeline, mesh=mesh, out=str(tmp_path))
    for calls in (5, 3):
        asked = iter([False] * (calls - 1) + [True])
        with pytest.raises(loop.Interrupted, match="after update 0; repeat the command to resume"):
            rl.train(config, progress=False, stop=lambda asked=asked: next(asked))
        assert RunRecord(tmp_path).manifest["status"] == "interrupted"
    assert (tmp_path / "checkpoints" / "0").is_dir()


def test_a_run_that_stopped_while_it_refilled_goes_on_to_the_same_bits(easy, tmp_path, monkeypatch):
    """Groups vary from the tenth on; it is asked to stop before."""
    vary = Group.zero_variance.fget
    monkeypatch.setattr(Group, "zero_variance", property(lambda g: g.serial < 10 or vary(g)))
    algo = replace(easy.algo, zero_variance="refill")
    whole, parts = (replace(easy, algo=algo, out=str(tmp_path / x)) for x in ("whole", "parts"))
    rl.train(whole, progress=False)
    with pytest.raises(loop.Interrupted, match="after update 0"):
        rl.train(parts, progress=False, stop=lambda: True)
    rl.train(parts, progress=False)
    for name in ("evals.jsonl", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_what_was_counted_goes_on_after_an_interruption(easy, tmp_path, never_varies, capsys):
    stops = iter([False, True])
    config = replace(easy, out=str(tmp_path), eval=EvalConfig(every_steps=20))
    with pytest.raises(loop.Interrupted):
        rl.train(config, progress=False, stop=lambda: next(stops))
    capsys.readouterr()
    rl.train(config, progress=False)
    assert "in 3 of 3 updates every group had zero variance" in capsys.readouterr().err


def test_a_run_without_a_schedule_is_not_replayed(tmp_path):
    RunRecord(tmp_path).append("metrics.jsonl", {"step": 0})
    config = start.Config()
    config = replace(config, pipeline=replace(config.pipeline, replay=str(tmp_path)))
    with pytest.raises(InputError, match="its metrics.jsonl has no schedule/events"):
        schedule.make(config, None, None, None, None)
