"""The shared start of a study's runs: made once, the same for all, and better than nothing."""

import functools
import gc
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from rlx import flops
from rlx.config import WarmStartConfig
from rlx.errors import InputError
from rlx.mesh import make_mesh
from rlx.models import transformer
from rlx.record import read_rows
from rlx.train import rl, warm_start
from rlx.train.forward import policy
from rlx.train.start import make_env, resolve
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


def test_it_holds_what_plain_adamw_on_the_solutions_gives(easy, env, loaded):
    """The loop, its guard and the way to the disk and back change nothing but roundings."""
    c, mesh = easy.warm_start, make_mesh(easy.mesh)
    rate = optax.cosine_decay_schedule(c.learning_rate, c.steps)
    adamw = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.95))
    params = transformer.init(jax.random.key(c.seed), easy.model, env.tokenizer.vocab_size)
    moments, spent = adamw.init(params), 0.0

    def loss(params, batch):
        logp_BT, *_ = policy(params, batch, 1.0, model=easy.model, mesh=mesh)
        return -(logp_BT * batch.mask_BT).sum() / batch.mask_BT.sum()

    @jax.jit
    def update(params, moments, batch):
        updates, moments = adamw.update(jax.grad(loss)(params, batch), moments, params)
        return optax.apply_updates(params, updates), moments

    for step in range(c.steps):
        batch = solutions(env, c, step, T=6)
        params, moments = update(params, moments, batch)
        for n, mask_T in zip(batch.prompt_length_P, batch.mask_BT, strict=True):
            spent += flops.train_flops(easy.model, env.tokenizer.vocab_size, n, [mask_T.sum()])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, loaded[0], params)
    assert loaded[1] == pytest.approx(spent, rel=1e-12) and spent > 0


def test_whoever_makes_it_makes_the_same(easy, env, loaded, tmp_path):
    other = load_or_make(replace(easy, seed=1, out=str(tmp_path / "run")), env, tmp_path)
    assert_same(loaded[0], other[0])
    assert loaded[1] == other[1]


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
        return 1.0

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
    (made,) = Path(easy.warm_start_dir).iterdir()

    def train(config, env, work, watch):
        shutil.copytree(made / "checkpoints", work.path / "checkpoints")
        return loaded[1]

    monkeypatch.setattr(warm_start, "train", train)
    load_or_make(easy, env, tmp_path)
    load_or_make(replace(easy, **{part: replace(getattr(easy, part), **change)}), env, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_task_whose_file_has_changed_is_another(easy, env, tmp_path, monkeypatch):
    """Its options are the same."""
    made = []
    monkeypatch.setattr(warm_start, "train", lambda *_: made.append(1) or 1.0)
    monkeypatch.setattr(warm_start, "load_params", lambda *_: None)
    file = tmp_path / "task.py"
    easy = replace(easy, env=replace(easy.env, name=str(file), kwargs={}))
    for text in ("a = 1", "a = 1", "a = 2"):
        file.write_text(text)
        load_or_make(easy, env, tmp_path / "warm")
    assert len(made) == 2


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
        logp_BT, *_ = policy(params, batch, 1.0, model=easy.model, mesh=make_mesh(easy.mesh))
        return -(logp_BT * batch.mask_BT).sum() / batch.mask_BT.sum()

    before, after = loss(fresh), loss(loaded[0])
    assert before > 2 and after < 0.6 * before


def test_it_has_the_kernels_of_its_device(easy, env, monkeypatch):
    seen = []

    def spy(params, batch, temperature, *, model, mesh):
        seen.append(model.attention)
        return policy(params, batch, temperature, model=model, mesh=mesh)

    monkeypatch.setattr(warm_start, "policy", spy)
    task = warm_start.WarmStart(easy.model, easy.warm_start, env)
    task.step(task.batch(0))
    assert easy.model.attention == "auto" and set(seen) == {"xla"}


def test_no_steps_means_fresh_weights_at_no_cost(easy, env, tmp_path):
    config = replace(easy, warm_start=replace(easy.warm_start, steps=0, seed=3))
    params, spent = load_or_make(config, env, tmp_path)
    assert_same(params, transformer.init(jax.random.key(3), easy.model, env.tokenizer.vocab_size))
    assert spent == 0 and not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's
@pytest.mark.parametrize("damage", ["bits", "cut", "manifest", "empty"])
def test_a_start_that_is_not_what_was_written_is_refused(easy, env, loaded, tmp_path, damage):
    shutil.copytree(easy.warm_start_dir, tmp_path, dirs_exist_ok=True)
    (path,) = tmp_path.iterdir()
    # Weights and moments share files, divided as it happened; the weights alone are read.
    written = [f for f in (path / "checkpoints").rglob("d/*") if f.stat().st_size > 10_000]
    if damage == "bits":
        for file in written:
            data = bytearray(file.read_bytes())
            for at in range(0, len(data), 200):
                data[at] ^= 16
            file.write_bytes(data)
    elif damage == "cut":
        for file in written:
            file.write_bytes(file.read_bytes()[:100])
    elif damage == "manifest":
        (path / "manifest.json").write_text("{")
    else:
        shutil.rmtree(path / "checkpoints")
    line = f"^warm_start_dir={path}: damaged: .*; remove it; it"
    with pytest.raises(InputError, match=line):
        load_or_make(easy, env, tmp_path)
    gc.collect()  # what Orbax left open when it failed


def test_a_place_that_can_hold_no_start_is_refused(easy, env, tmp_path):
    (tmp_path / "file").write_text("")
    line = "^warm_start_dir=.*/file/there: a part of the path is a file; choose a directory"
    with pytest.raises(InputError, match=line):
        load_or_make(easy, env, tmp_path / "file" / "there")


def test_rows_beyond_the_tokenizer_are_there_and_do_no_harm(easy, tmp_path):
    """`model.vocab_size` of a fresh model; an unused word is sampled, and adds nothing."""
    rows = 400  # of 14 that mean something
    few = replace(
        easy, model=replace(easy.model, vocab_size=rows), warm_start_dir="", out=str(tmp_path),
        warm_start=replace(easy.warm_start, steps=2), steps=1, algo=replace(
            easy.algo, zero_variance="keep"),
    )  # fmt: skip
    env = make_env(few)
    assert [env.tokenizer.decode([i]) for i in (0, 14, rows - 1)] == ["0", "", ""]
    assert make_env(easy).tokenizer.vocab_size == 14
    params, _ = load_or_make(few, env, tmp_path / "warm")
    assert params["embed"].shape[0] == rows and params["head"].shape[1] == rows
    assert rl.train(few, progress=False)["status"] == "done"
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert row["policy/entropy"] > np.log(14)  # it still samples the others
    again = replace(few, model=replace(easy.model, path=str(tmp_path)), out=str(tmp_path / "b"))
    assert make_env(resolve(again)).tokenizer.vocab_size == rows
