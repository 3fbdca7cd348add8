"""The shared start of a study's runs: made once, the same for all, and better than nothing."""

import gc
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from rlx.config import WarmStartConfig
from rlx.errors import InputError
from rlx.models import transformer
from rlx.record import RunRecord
from rlx.train import warm_start
from rlx.train.forward import completion_hidden, completion_logprobs
from rlx.train.start import make_env
from rlx.train.warm_start import load_or_make, solutions, worked_share


@pytest.fixture(scope="module")
def easy(easy, tmp_path_factory):
    """With a directory of its own: other modules keep starts of other configurations in theirs."""
    return replace(easy, warm_start_dir=str(tmp_path_factory.mktemp("warm_start")))


@pytest.fixture(scope="module")
def env(easy):
    return make_env(easy)


@pytest.fixture(scope="module")
def loaded(easy, env):
    return load_or_make(easy, env, easy.warm_start_dir)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def never(*_):
    raise AssertionError("trained again")


def test_reading_it_back_gives_the_weights_that_training_gives(easy, env, loaded, tmp_path):
    """Bit for bit: whoever makes it, and from disk or not."""
    params, spent = warm_start.train(easy, env, RunRecord(tmp_path))
    assert_same(loaded[0], params)
    assert loaded[1] == spent > 0


def test_it_is_made_once(easy, env, loaded, monkeypatch):
    monkeypatch.setattr(warm_start, "train", never)
    (path,) = Path(easy.warm_start_dir).iterdir()
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    again = load_or_make(replace(easy, seed=5, steps=99), env, easy.warm_start_dir)
    assert_same(again[0], loaded[0])
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_the_slower_of_two_jobs_takes_the_artifact_of_the_faster(
    easy, env, loaded, monkeypatch, tmp_path
):
    """Training ends to find the directory there, with other weights in it."""
    (made,) = Path(easy.warm_start_dir).iterdir()

    def slow(*_):
        shutil.copytree(made, tmp_path / made.name)
        return jax.tree.map(np.zeros_like, loaded[0]), 1.0

    monkeypatch.setattr(warm_start, "train", slow)
    params, spent = load_or_make(easy, env, tmp_path)
    assert_same(params, loaded[0])
    assert spent == loaded[1] and [p.name for p in tmp_path.iterdir()] == [made.name]


@pytest.mark.parametrize(
    "part, change",
    [
        ("model", {"norm_eps": 1e-5}),
        ("env", {"seed": 1}),
        ("env", {"kwargs": {"lo": 2, "hi": 3, "base": 5}}),
        ("warm_start", {"steps": 41}),
    ],
)
def test_what_decides_its_content_decides_its_name(
    easy, env, loaded, part, change, monkeypatch, tmp_path
):
    monkeypatch.setattr(warm_start, "train", lambda *_: loaded)
    load_or_make(easy, env, tmp_path)
    load_or_make(replace(easy, **{part: replace(getattr(easy, part), **change)}), env, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_share_of_worked_solutions_falls_linearly_then_stays():
    config = WarmStartConfig(steps=100, worked_share_end=0.2, anneal=0.5)
    share = [worked_share(step, config) for step in (0, 25, 50, 75, 99)]
    assert share == pytest.approx([1, 0.6, 0.2, 0.2, 0.2])


@pytest.mark.parametrize("step, share", [(0, 1.0), (16, 0.65), (39, 0.3)])
def test_solutions_are_right_and_worked_as_often_as_scheduled(easy, env, step, share):
    config = replace(easy.warm_start, batch_size=400)
    batch = solutions(env, config, step, T=6)
    answers = {p.prompt: p for p in env.train}
    worked = 0
    for prompt_U, n, token_T, mask_T in zip(
        batch.prompt_PU, batch.prompt_length_P, batch.completion_BT, batch.mask_BT, strict=True
    ):
        problem = answers[env.tokenizer.decode(prompt_U[-n:])]
        sampled = token_T[mask_T > 0].tolist()
        assert sampled[-1] == env.tokenizer.stop_id and mask_T[: len(sampled)].all()
        text = env.tokenizer.decode(sampled)
        assert env.grade(problem, text, stopped=True) == 1
        worked += not text.startswith(">")
    assert worked / 400 == pytest.approx(share, abs=0.1)  # four standard errors


def test_training_raises_the_likelihood_of_solutions(easy, env, loaded):
    batch = solutions(env, easy.warm_start, 10_000, T=6)
    fresh = transformer.init(jax.random.key(0), easy.model, env.tokenizer.vocab_size)

    @jax.jit
    def loss(params):
        hidden_BTD = completion_hidden(params, batch, model=easy.model)
        logp_BT, _ = completion_logprobs(params, hidden_BTD, batch, 1.0)
        return -(logp_BT * batch.mask_BT).sum() / batch.mask_BT.sum()

    before, after = loss(fresh), loss(loaded[0])
    assert before > 2 and after < 0.6 * before


def test_no_steps_means_fresh_weights_at_no_cost(easy, env, tmp_path):
    config = replace(easy, warm_start=replace(easy.warm_start, steps=0, seed=3))
    params, spent = warm_start.train(config, env, RunRecord(tmp_path))
    assert_same(params, transformer.init(jax.random.key(3), easy.model, env.tokenizer.vocab_size))
    assert spent == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's
@pytest.mark.parametrize("damage", ["bits", "cut", "manifest", "empty"])
def test_a_start_that_is_not_what_was_written_is_refused(easy, env, loaded, tmp_path, damage):
    shutil.copytree(easy.warm_start_dir, tmp_path, dirs_exist_ok=True)
    (path,) = tmp_path.iterdir()
    files = [f for f in (path / "params").rglob("*") if f.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    data = bytearray(largest.read_bytes())
    if damage == "bits":
        data[len(data) // 2] ^= 16
        largest.write_bytes(data)
    elif damage == "cut":
        largest.write_bytes(data[:100])
    elif damage == "manifest":
        (path / "manifest.json").write_text("{")
    else:
        shutil.rmtree(path / "params")
    line = f"^warm_start_dir={path}: (.* is not what was written|cannot be read .*); remove it, and"
    with pytest.raises(InputError, match=line):
        load_or_make(easy, env, tmp_path)
    gc.collect()  # what Orbax left open when it failed


def test_a_place_that_can_hold_no_start_is_refused(easy, env, tmp_path):
    (tmp_path / "file").write_text("")
    line = "^warm_start_dir=.*/file/there: a part of that path is a file; choose a directory"
    with pytest.raises(InputError, match=line):
        load_or_make(easy, env, tmp_path / "file" / "there")
