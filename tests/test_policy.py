"""Looking at a policy: evaluate, sample and export on a finished run."""

import json
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments import evaluate, export, policy, sample, train
from rlx.errors import InputError
from rlx.mesh import make_mesh
from rlx.models import hf
from rlx.rollout.generator import published
from rlx.train import rl, start


@pytest.fixture(scope="module")
def finished(easy, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    rl.train(replace(easy, steps=2, out=str(out)), progress=False)
    return out


def call(monkeypatch, look, own, *words):
    monkeypatch.setattr(sys, "argv", ["command", *words, "mesh=one"])
    return policy.main(look, own)


def test_evaluate_scores_a_run_as_the_run_does(finished, monkeypatch, tmp_path, capsys):
    file = tmp_path / "scores.json"
    words = [f"model.path={finished}/checkpoints/2", "eval.samples_per_prompt=8", f"json={file}"]
    assert call(monkeypatch, evaluate.evaluate, {"json": ""}, *words) == 0
    (row,) = json.loads(file.read_text())
    assert row["eval_set"] == "heldout" and row["trials"] == 8 * 8  # the run's own eight problems
    assert row["mean"] == np.mean(row["passes_per_prompt"]) / 8
    low, high = row["interval"]["mean@8"]
    assert low <= row["mean"] <= high and high - low > 0.02
    assert f"mean@8    {row['mean']:.4f}" in capsys.readouterr().out


def test_words_change_the_sections_of_the_run(easy, finished):
    path = f"model.path={finished}"
    words = ["rollout.temperature=0.5", "env.heldout_prompts=4", "env.kwargs.lo=1"]
    found = policy.composed([path, *words, "env.kwargs={hi: 2}"])
    assert found.rollout == replace(easy.rollout, temperature=0.5)
    kwargs = {**easy.env.kwargs, "lo": 1, "hi": 2}
    assert found.env == replace(easy.env, heldout_prompts=4, kwargs=kwargs)
    as_it_was = policy.composed([path])
    assert (as_it_was.env, as_it_was.rollout) == (easy.env, easy.rollout)
    other = policy.composed([path, "env=digit_chain"])  # a task of its own
    assert other.env == train.composed(["env=digit_chain"]).env and other.rollout == easy.rollout


def test_a_run_is_sampled_as_it_was_trained(easy, tmp_path):
    """Interrupted as in the run, and in its precision and layout, unless a word says otherwise."""
    algo = replace(easy.algo, length_control="interruption")
    model = replace(easy.model, compute_dtype="bfloat16", scan_layers=True, remat=True)
    rollout = replace(easy.rollout, think_tokens_min=2, think_tokens_max=3)
    config = replace(easy, algo=algo, model=model, rollout=rollout, steps=1, out=str(tmp_path))
    rl.train(config, progress=False)
    found = policy.composed([f"model.path={tmp_path}"])
    assert found.algo.length_control == "interruption"
    assert found.model == replace(model, path=str(tmp_path))
    words = ["algo.length_control=none", "model.compute_dtype=float32"]
    found = policy.composed([f"model.path={tmp_path}", *words])
    assert (found.algo.length_control, found.model.compute_dtype) == ("none", "float32")
    assert found.model.scan_layers


@pytest.mark.parametrize("rank, scanned", [(0, True), (2, False), (2, True)])
def test_weights_of_a_run_are_those_that_it_ended_with(easy, tmp_path, monkeypatch, rank, scanned):
    """With adapters on its own warm start, and in the other layout of layers."""
    lasts = []
    end = rl.ReinforcementLearning.host
    keep = lambda task: lasts.append(task.weights.params) or end(task)  # noqa: E731
    monkeypatch.setattr(rl.ReinforcementLearning, "host", keep)
    model, out = replace(easy.model, scan_layers=scanned), tmp_path / "run"
    optim = replace(easy.optim, lora_rank=rank)
    config = replace(easy, model=model, optim=optim, steps=2, out=str(out), warm_start_dir="")
    rl.train(config, progress=False)
    made = list((out / "warm_start").iterdir())
    for layers in (True, False):
        words = [f"model.path={out}", f"model.scan_layers={layers}", "warm_start.steps=7"]
        other = replace(policy.composed(words), mesh=easy.mesh, out=str(tmp_path))
        mesh, env = make_mesh(easy.mesh), start.make_env(other)
        got, spent = start.load(other, env, mesh, other.out)
        sampled = published(got, other.model, other.rollout.head_dtype, mesh, mesh)
        jax.tree.map(np.testing.assert_array_equal, sampled, lasts[-1])
        assert isinstance(got["layers"], dict) == layers
        assert spent > 0
    assert list((out / "warm_start").iterdir()) == made
    if rank:
        (out / "warm_start").rename(tmp_path / "elsewhere")
        with pytest.raises(InputError, match="warm_start_dir=.*: the warm start of .* is not"):
            start.load(other, env, mesh, other.out)


def test_words_that_only_the_run_can_judge(easy, finished):
    """The run has groups of 4, the default 16: 8 slots are two of its groups."""
    found = policy.composed([f"model.path={finished}", "rollout.slots=8"])
    assert found.slots == 8 and found.rollout.group_size == easy.rollout.group_size == 4


def test_an_interval_covers_the_mean_of_the_problems_it_is_drawn_from():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        passes_n = rng.binomial(4, rng.beta(0.5, 0.5, 60))
        low, high = evaluate.interval(passes_n, lambda x: x.mean() / 4)
        inside += low <= 0.5 <= high
    assert 165 <= inside <= 195  # 90 % of 200, give or take three standard errors


def test_scores_that_cannot_be_written_are_one_line(finished, monkeypatch, tmp_path, capsys):
    words = [f"model.path={finished}", "eval.samples_per_prompt=8", f"json={tmp_path}"]
    assert call(monkeypatch, evaluate.evaluate, {"json": ""}, *words) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors == [f"error: json={tmp_path}: Is a directory; give a file that can be written"]


def test_sample_prints_what_is_said_and_its_score(easy, finished, monkeypatch, capsys):
    own = {"problems": 3, "samples": 2}
    assert call(monkeypatch, sample.sample, own, f"model.path={finished}", "problems=2") == 0
    said = capsys.readouterr().out
    prompts = [problem.prompt for problem in start.make_env(easy).heldout[:2]]
    assert [f"--- problem {i}\n{text}\n" in said for i, text in enumerate(prompts)] == [True, True]
    assert said.count("[score ") == 4


def test_export_writes_what_can_be_loaded(easy, finished, monkeypatch, tmp_path):
    folder = tmp_path / "folder"
    words = [f"model.path={finished}", f"to={folder}"]
    assert call(monkeypatch, export.export, {"to": ""}, *words) == 0
    mesh, env = make_mesh(easy.mesh), start.make_env(easy)
    model = replace(easy.model, path=str(finished))
    want, _ = start.load(replace(easy, model=model), env, mesh, "")
    got = hf.load(folder, hf.config_of(folder), mesh)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "model.path=: no policy given"),
        (["model.path=nowhere"], "model.path=nowhere: no model there"),
        (["model.path={run}/checkpoints/7"], "checkpoint=7: not in"),
        (["model.path={run}", "model.d_model=99"], "model.d_model=99: model.path="),
        (["model.path={run}", "nonsense=1"], "nonsense=1: unknown key"),
        (
            ["model.path={run}", "problems=two"],
            "problems=two: Value 'two' of type 'str' could not ",
        ),
        (["model.path={run}", "samples=0"], "samples=0: not positive; give 1 or more"),
    ],
)
def test_bad_input_is_one_line(finished, monkeypatch, capsys, words, said):
    words = [word.format(run=finished) for word in words]
    assert call(monkeypatch, sample.sample, {"problems": 1, "samples": 1}, *words) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and said in errors[0]
