"""Whole runs: against a loop without buffer or engine, against each other, and token by token."""

import functools
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import flops
from rlx.config import EvalConfig, PipelineConfig
from rlx.envs.digit_chain import DigitChain
from rlx.envs.grading import Graders
from rlx.errors import InputError
from rlx.evaluate import evaluate
from rlx.mesh import make_mesh
from rlx.models import transformer
from rlx.record import read_rows
from rlx.rollout import sampler
from rlx.rollout.engine import make_generator
from rlx.rollout.generator import Weights
from rlx.rollout.prompts import epoch_order
from rlx.train import rl, start, warm_start
from rlx.train.spec import names, numbers
from rlx.train.start import make_env
from rlx.train.state import init_state
from rlx.train.step import make_train_step
from rlx.types import Batch


def copy(params):
    return jax.tree.map(np.array, params)


def run(config, path):
    """A finished run, with the weights of every version and the groups of every update."""
    config = replace(config, out=str(path))
    weights, batches = [], []

    def watched_step(*args):
        step = make_train_step(*args)

        def train_step(state, batch, rate):
            if not weights:
                weights.append(copy(state.params))
            state, metrics = step(state, batch, rate)
            weights.append(copy(state.params))
            return state, metrics

        return train_step

    def watched_collate(groups, *args, collate=rl.collate):
        batches.append(groups)
        return collate(groups, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl, "make_train_step", watched_step)
        patch.setattr(rl, "collate", watched_collate)
        manifest = rl.train(config, progress=False)
    evals, metrics, clock = (
        read_rows(path / f"{name}.jsonl") for name in ("evals", "metrics", "clock")
    )
    return SimpleNamespace(
        config=config, path=path, manifest=manifest, evals=evals, metrics=metrics, clock=clock,
        weights=weights, batches=batches,
    )  # fmt: skip


@pytest.fixture(scope="module")
def make_run(easy, tmp_path_factory):
    """make_run(**changes of the easy configuration), made once for all tests of the module."""

    @functools.cache
    def cached(**changes):
        return run(replace(easy, **changes), tmp_path_factory.mktemp("run"))

    return cached


def logical(run):
    return [(run.path / name).read_bytes() for name in ("evals.jsonl", "metrics.jsonl")]


# One run against an independent loop


def synchronous(config, params):
    """Generate a batch, learn from it, repeat: (weights, metrics, evaluations)."""
    rollout, n = config.rollout, config.env.train_prompts
    env = DigitChain(
        train_prompts=n, heldout_prompts=config.env.heldout_prompts, seed=0, **config.env.kwargs
    )
    mesh, ids, graders = make_mesh(config.mesh), env.tokenizer, Graders(env, {})
    P, G, U, T = rollout.prompts_per_step, rollout.group_size, env.max_prompt_tokens, 6
    static = {"config": config.model, "rules": sampler.Rules(), "mesh": mesh}
    spec = names(config, mesh)
    state, step = init_state(spec, params), make_train_step(spec, numbers(config))
    weights, rows, evals = [copy(state.params)], [], []

    def measured(params, version):
        generator = make_generator(config, graders, mesh)
        return evaluate(generator, Weights(params, version), config, graders, flops.Ledger(), mesh)

    for version in range(config.steps):
        if version % config.eval.every_steps == 0:
            evals += measured(state.params, version)
        serial_P = np.arange(version * P, (version + 1) * P)
        problems = [env.train[epoch_order(config.seed, s // n, n)[s % n]] for s in serial_P]
        prompt_PU = np.array([ids.encode(p.prompt) for p in problems], np.int32)
        slots, at_B = sampler.empty(config.model, P * G, U, T, 1, mesh), np.arange(P * G)
        new = sampler.New(
            at_B // G, serial_P[at_B // G], at_B % G, 0 * at_B + T, np.full((P * G, 1), ids.stop_id)
        )
        slots = sampler.insert(
            state.params, slots, prompt_PU, np.full(P, U, np.int32), new,
            jax.random.key(config.seed), version, 1.0, **static,
        )  # fmt: skip
        slots = jax.device_get(
            sampler.decode(state.params, slots, version, 1.0, T, **static).replace(key_W=None)
        )
        reward_B = [
            2 * env.grade(problems[b // G], ids.decode(row[:n]), row[n - 1] == ids.stop_id) - 1
            for b, (row, n) in enumerate(zip(slots.token_WT.tolist(), slots.count_W, strict=True))
        ]
        mask_BT = np.arange(T) < slots.count_W[:, None]
        batch = Batch(
            prompt_PU=prompt_PU, prompt_length_P=np.full(P, U, np.int32),
            completion_BT=np.where(mask_BT, slots.token_WT, ids.pad_id),
            mask_BT=mask_BT.astype(np.float32),
            behavior_logp_BT=np.where(mask_BT, slots.logp_WT, 0),
            behavior_value_BT=np.zeros(mask_BT.shape, np.float32),
            reward_PG=np.array(reward_B, np.float32).reshape(P, G), keep_P=np.ones(P, np.float32),
        )  # fmt: skip
        state, metrics = step(state, batch)
        weights.append(copy(state.params))
        rows.append({name: float(x) for name, x in metrics.items()})
    evals += measured(state.params, config.steps)
    return weights, rows, evals


def test_a_synchronous_run_is_generate_learn_repeat(make_run, easy):
    got = make_run()
    env = make_env(easy)
    params, _ = warm_start.load_or_make(easy, env, easy.warm_start_dir)
    weights, rows, evals = synchronous(easy, params)
    for version, (a, b) in enumerate(zip(got.weights, weights, strict=True)):
        jax.tree.map(lambda x, y, v=version: np.testing.assert_array_equal(x, y, f"{v}"), a, b)
    assert [{name: row[name] for name in rows[0]} for row in got.metrics] == rows
    assert [{name: row[name] for name in evals[0]} for row in got.evals] == evals
    assert all(row["grad_norm"] > 0.01 for row in rows)  # or the comparison says little


@pytest.mark.parametrize(
    "pipeline", [PipelineConfig("pipeline", 0), PipelineConfig("ppo_off_policy", 1)]
)
def test_without_staleness_every_pipeline_is_synchronous(make_run, pipeline):
    assert logical(make_run(pipeline=pipeline)) == logical(make_run())


# Runs against each other


def test_a_seed_decides_everything(make_run, easy, tmp_path):
    again, other = run(easy, tmp_path / "again"), make_run(seed=1)
    assert logical(again) == logical(make_run())
    assert other.evals[0] == make_run().evals[0]  # the warm start, under the same evaluation key
    assert other.metrics != make_run().metrics and other.evals[1:] != make_run().evals[1:]


def test_the_cadence_of_evaluation_does_not_touch_the_training(make_run):
    sparse = make_run(eval=EvalConfig(every_steps=4))
    assert [row["step"] for row in sparse.evals] == [0, 4, 6]
    assert sparse.metrics == make_run().metrics
    means = {row["step"]: row["mean"] for row in make_run().evals}
    assert all(means[row["step"]] == row["mean"] for row in sparse.evals)


def test_an_interrupted_run_ends_as_if_it_was_not(make_run, easy, tmp_path, monkeypatch):
    config = replace(easy, out=str(tmp_path))

    def interrupted(generator, weights, *args):
        if weights.version == 4:
            raise KeyboardInterrupt
        return evaluate(generator, weights, *args)

    with monkeypatch.context() as patch:
        patch.setattr(rl, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rl.train(config, progress=False)
    assert json.loads((tmp_path / "manifest.json").read_text())["status"] == "interrupted"
    lost = read_rows(tmp_path / "evals.jsonl")[-1]
    got = run(easy, tmp_path)
    assert logical(got) == logical(make_run()) and got.manifest["status"] == "done"
    (row,) = read_rows(tmp_path / "restarts.jsonl")
    assert (row["step"], row["updates_lost"]) == (0, 4)  # before its first checkpoint
    assert row["compute_lost"] == lost["compute"] and row["wall_s_lost"] > 0
    assert not (make_run().path / "restarts.jsonl").exists()


def test_a_run_that_pauses_goes_on_to_the_same_curve(make_run, easy, tmp_path):
    """Between two evaluations, where it is already, and past its end."""
    for until, updates in ((3, 3), (2, 3), (5, 5)):
        manifest = rl.train(replace(easy, out=str(tmp_path), until=until), progress=False)
        assert manifest["status"] == "paused"
        assert len(read_rows(tmp_path / "metrics.jsonl")) == updates
    got = run(replace(easy, until=99), tmp_path)
    assert logical(got) == logical(make_run()) and got.manifest["status"] == "done"
    assert not (tmp_path / "restarts.jsonl").exists()


def test_a_finished_run_is_left_as_it_is(make_run, monkeypatch):
    done = make_run()
    before = {file: file.stat().st_mtime_ns for file in done.path.iterdir()}
    monkeypatch.setattr(rl.start, "make_env", None)  # nothing is even begun
    assert rl.train(done.config, progress=False) == done.manifest
    assert {file: file.stat().st_mtime_ns for file in done.path.iterdir()} == before


def test_a_directory_holds_one_configuration(make_run):
    with pytest.raises(
        InputError, match="^out=.*: holds a run of another configuration: steps=6, not 7; choose"
    ):
        rl.train(replace(make_run().config, steps=7), progress=False)


# Weights that change in flight

IN_FLIGHT = {"pipeline": PipelineConfig("pipeline", 8, decode_chunks_per_update=1), "steps": 24}


@pytest.fixture(scope="module")
def in_flight(make_run, easy):
    """Two batches of slots, an update for every chunk of two tokens."""
    rollout = replace(easy.rollout, slots=32, decode_chunk_tokens=2)
    return make_run(rollout=rollout, eval=EvalConfig(every_steps=24), **IN_FLIGHT)


def sequences(run):
    """(version of the learner, group, sample index) of everything that was learned from."""
    for version, groups in enumerate(run.batches):
        for group in groups:
            for g in range(len(group.length_G)):
                yield version, group, g


def test_weights_change_inside_sequences(in_flight):
    versions = [x.version_GT[g, : x.length_G[g]] for _, x, g in sequences(in_flight)]
    assert np.mean([len(set(v.tolist())) > 1 for v in versions]) > 0.2
    assert all((np.diff(v) >= 0).all() for v in versions)
    mixed = [row["rollout/mixed_versions_share"] for row in in_flight.metrics]
    assert np.mean(mixed) == pytest.approx(np.mean([v.min() < v.max() for v in versions]))


def test_staleness_reaches_its_bound_and_stays_within(in_flight):
    staleness = [v - x.version_GT[g, : x.length_G[g]].min() for v, x, g in sequences(in_flight)]
    assert min(staleness) == 0 and max(staleness) == 8
    assert max(row["rollout/staleness_max"] for row in in_flight.metrics) == 8
    mean = np.mean([row["rollout/staleness_mean"] for row in in_flight.metrics])
    assert mean == pytest.approx(np.mean(staleness))


@pytest.fixture(scope="module")
def model(easy):
    """(prefill, decode) of one sequence, jitted, ending in log-probabilities."""

    def logp_V(params, hidden_1D):
        return jax.nn.log_softmax(hidden_1D[0] @ params["head"])

    @jax.jit
    def prefill(params, prompt_1U, length_1):
        hidden_1D, context = transformer.prefill(params, easy.model, prompt_1U, length_1)
        return logp_V(params, hidden_1D), context

    @jax.jit
    def decode(params, cache, token_1, column_1):
        hidden_1D, cache = transformer.decode(params, easy.model, cache, token_1, column_1)
        return logp_V(params, hidden_1D), cache

    return prefill, decode


def replayed(weights, model, group, g):
    """log-probabilities of a sample, each token under the weights that drew it.

    The weights of token 0 write the keys/values of the prompt; those of token t feed token t - 1
    and so write its keys/values, after the older ones of earlier weights.
    """
    prefill, decode = model
    version_T, token_T = group.version_GT[g], group.completion_GT[g]
    prompt_1U = group.prompt_U[None]
    U = prompt_1U.shape[1]
    logp_V, caches = prefill(weights[version_T[0]], prompt_1U, np.array([U]))
    padded = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 5), (0, 0)))  # noqa: E731
    longer = [cache.replace(k=padded(cache.k), v=padded(cache.v)) for cache in caches]
    yield float(logp_V[token_T[0]])
    for t in range(1, group.length_G[g]):
        column_1 = np.array([U + t - 1], np.int32)
        logp_V, longer = decode(weights[version_T[t]], longer, token_T[t - 1 : t], column_1)
        yield float(logp_V[token_T[t]])


def test_every_token_was_drawn_as_its_version_says(in_flight, model):
    weights = [jax.tree.map(jnp.asarray, params) for params in in_flight.weights]
    gap, latest_gap = [], []
    for _, group, g in list(sequences(in_flight))[::3]:
        n = group.length_G[g]
        logp_T = group.behavior_logp_GT[g, :n]
        gap.append(np.abs(logp_T - list(replayed(weights, model, group, g))).max())
        # What a cache recomputed with the newest weights would have given instead.
        latest = replace(group, version_GT=group.version_GT * 0 + group.version_GT[g, n - 1])
        other_T = list(replayed(weights, model, latest, g))
        latest_gap.append(np.abs(logp_T - other_T)[-1])
    assert max(gap) < 1e-5
    assert max(latest_gap) > 1e-3  # old keys/values are kept, and the test can tell


# What a run does


def test_reward_goes_up(make_run):
    """The mean score of 320 samples: standard error below 0.03."""
    rows = make_run(steps=160, eval=EvalConfig(every_steps=160)).metrics
    score = [row["rollout/score_mean"] for row in rows]
    assert np.mean(score[-20:]) > np.mean(score[:20]) + 0.2


@pytest.mark.parametrize("pipeline", [PipelineConfig(), PipelineConfig("pipeline", 3)])
def test_the_ledger_only_grows_and_adds_up(make_run, pipeline):
    rows = make_run(pipeline=pipeline).evals
    for row in rows:
        generate = row["generate_flops"]
        parts = [row["train_flops"], generate["prefill"], generate["decode"]]
        assert row["compute"] == sum(parts) and row["discarded_flops"] <= row["compute"]
        assert row["version"] == row["step"] and row["samples"] == 16 * row["step"]
    for name in ("compute", "train_flops", "tokens_generated", "eval_flops"):
        assert all(np.diff([row[name] for row in rows]) > 0), name
    assert rows[0]["compute"] == 0 < rows[0]["eval_flops"]


def test_the_ledger_is_the_closed_form_of_the_groups(make_run):
    """Of a synchronous run, where nothing is in flight; passed-over prompts are not trained on."""
    got, closed = make_run(), dict.fromkeys(("generate", "train", "discarded", "tokens"), 0.0)
    model = got.config.model
    for group in sum(got.batches, []):
        U, length_G = len(group.prompt_U), group.length_G
        cost = float(flops.prefill_flops(model, 14, U))
        cost += sum(float(flops.decode_flops(model, 14, U, int(n))) for n in length_G)
        closed["generate"] += cost
        if len(set(group.reward_G.tolist())) == 1:
            closed["discarded"] += cost
        else:
            closed["train"] += flops.train_flops(model, 14, U, length_G)
            closed["tokens"] += int(length_G.sum())
    last = got.evals[-1]
    want = [closed["generate"] + closed["train"], closed["discarded"], closed["tokens"]]
    names = ("compute", "discarded_flops", "tokens_trained")
    assert [last[name] for name in names] == pytest.approx(want, rel=1e-12)
    assert closed["discarded"] > 0
    assert last["tokens_trained"] == sum(row["tokens_trained"] for row in got.metrics)


def test_clocks_tell_overlap(make_run, in_flight):
    """Modelled time is generation plus learning when they alternate, less when they overlap."""
    for got, overlaps in ((make_run(), False), (in_flight, True)):
        row = got.clock[-1]
        busy = row["device_s"]["generate"] + row["device_s"]["train"]
        assert 0 < busy < row["wall_s"] and row["step"] == got.config.steps
        if overlaps:
            assert row["modelled_device_s"] < busy
        else:
            assert row["modelled_device_s"] == pytest.approx(busy)


def test_the_manifest_says_what_the_run_is(make_run):
    manifest = make_run().manifest
    assert manifest["status"] == "done" and manifest["warm_start_flops"] > 0
    assert manifest["recipe"] == "cispo" and manifest["seed"] == 0
    assert manifest["config"]["model"]["d_model"] == 16
    assert manifest["ceiling"] == 1  # 6 tokens hold three running sums, the mark, answer and stop


def test_a_run_resumes_from_the_weights_that_it_began_with(easy, tmp_path):
    """Those of a run that has gone on since are its start, its reference and its teacher."""
    source = replace(easy, steps=4, out=str(tmp_path / "source"))
    rl.train(replace(source, until=2), progress=False)
    algo = replace(easy.algo, kl="k3", kl_coef=0.1)
    model = replace(easy.model, path=source.out)
    config = replace(easy, model=model, algo=algo, steps=4, out=str(tmp_path / "run"))
    rl.train(replace(config, until=2), progress=False)
    shutil.copytree(config.out, tmp_path / "copy")
    rl.train(replace(config, out=str(tmp_path / "copy")), progress=False)
    rl.train(source, progress=False)
    assert rl.train(config, progress=False)["sources"] == {"model.path": 2}
    for rows in ("evals.jsonl", "metrics.jsonl"):
        assert (tmp_path / "run" / rows).read_bytes() == (tmp_path / "copy" / rows).read_bytes()
    later = replace(config, out=str(tmp_path / "later"))
    rl.train(replace(later, until=2), progress=False)
    first = lambda run: read_rows(tmp_path / run / "evals.jsonl")[0]["passes_per_prompt"]  # noqa: E731
    assert first("later") != first("run")
    shutil.rmtree(tmp_path / "source" / "checkpoints" / "4")
    with pytest.raises(InputError, match="model.path=.*: this run began with its checkpoint 4, "):
        rl.train(later, progress=False)


def test_a_teacher_and_a_judge_are_those_of_the_beginning(easy, tmp_path):
    (tmp_path / "other" / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "other" / "checkpoints" / "5").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("{}")
    path = str(tmp_path / "other")
    algo = replace(easy.algo, teacher=path, reward_model=path)
    config = replace(easy, algo=algo)
    fixed, steps = start.pinned(config, {})
    assert steps == {"algo.teacher": 5} and fixed.algo.reward_model == path  # no judge is needed
    assert fixed.algo.teacher == f"{path}/checkpoints/5"
    judged = replace(config, algo=replace(algo, reward="model", teacher=""))
    assert start.pinned(judged, {"algo.reward_model": 3})[1] == {"algo.reward_model": 3}
    assert start.pinned(start.pinned(judged, {})[0], {})[1] == {}
