"""Cells of sweeps: axes, names of directories, what is refused before anything is trained."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import open_dict

from experiments import cells, study
from experiments import train as cli
from rlx import config as options
from rlx.config import Config, difference, run_sha
from rlx.errors import InputError
from rlx.record import RunRecord
from rlx.scaling import Evals
from rlx.train import rl, start

ROOT = Path(__file__).parents[1]
TINY = (
    "steps=4 eval.every_steps=1 model.d_model=16 model.n_layers=1 model.d_ff=24 model.head_dim=8 "
    "rollout.prompts_per_step=2 rollout.group_size=4 optim.microbatches=1 env.train_prompts=16 "
    "env.heldout_prompts=8 warm_start.steps=0 mesh=one"
).split()
EIGHT = ["optim.learning_rate=1e-4,2e-4", "algo.loss=cispo,gspo", "seed=0,1"]

# Axes and names


def test_axes_are_the_overrides_that_change_what_is_computed():
    words = [
        "algo=grpo", "seed=3", "out=x", "mesh.data=2", "mesh=one", "tracker=wandb",
        "checkpoint.every_steps=5", "warm_start_dir=w", "distributed=false", "study=a",
        "hydra.verbose=true", "+sweep=loo", "optim.learning_rate=1e-4", "+ablation=gspo",
        "model=mini", "env.seed=2", "steps=100", "+env.kwargs.x=[1, 2]", "algo.is_cap=4.0",
    ]  # fmt: skip
    assert cells.axes(words) == {
        "ablation": "gspo", "algo.is_cap": 4, "env.kwargs.x": [1, 2], "env.seed": 2,
        "model": "mini", "optim.learning_rate": 1e-4, "steps": 100,
    }  # fmt: skip
    assert cells.axes(["recipe=mine", "algo=grpo"]) == {"algo": "grpo"}


@pytest.mark.parametrize(
    "recipe, levels, wanted",
    [
        ("cispo", {}, "cispo-s0"),
        ("cispo", {"steps": 5, "algo.loss": "gspo"}, "cispo-algo.loss_gspo-steps_5-s0"),
        ("grpo", {"optim.learning_rate": 1e-05}, "grpo-optim.learning_rate_1e-05-s0"),
        ("grpo", {"optim.pack": True}, "grpo-optim.pack_true-s0"),
        ("grpo", {"optim.pack": "true"}, "grpo-optim.pack_true-s0-[0-9a-f]{10}"),
        ("grpo", {"env.name": "../../x"}, r"grpo-env.name_.._.._x-s0-[0-9a-f]{10}"),
        ("grpo", {"env.name": "A"}, "grpo-env.name_a-s0-[0-9a-f]{10}"),
    ],
)
def test_a_name_says_what_differs(recipe, levels, wanted):
    assert re.fullmatch(wanted, cells.name(recipe, levels, 0))


def test_the_order_of_the_words_does_not_matter():
    both = [["a=1", "b=2"], ["b=2.0", "a='1'"], ["b=2", "a=1"]]
    names = [cells.name("x", cells.axes(words), 0) for words in both]
    assert names[0] == names[2] != names[1]  # the text "1" is not the number


VALUES = st.one_of(st.text(max_size=200), st.integers(), st.floats(), st.booleans(), st.none())
LEVELS = st.dictionaries(st.sampled_from(["algo.loss", "a", "a_b", "x.y"]), VALUES, max_size=4)


@settings(max_examples=300, deadline=None)
@given(st.tuples(LEVELS, st.integers(0, 9)), st.tuples(LEVELS, st.integers(0, 9)))
def test_names_are_safe_and_tell_cells_apart(one, other):
    names = [cells.name("cispo", levels, seed) for levels, seed in (one, other)]
    for name in names:
        assert re.fullmatch("[a-z][a-z0-9_.-]*", name) and len(name) <= cells.LONGEST
        assert Path("out", "runs", name).resolve().parent == Path("out/runs").resolve()
    as_text = [json.dumps(cell, sort_keys=True) for cell in (one, other)]
    if as_text[0] != as_text[1]:
        assert names[0] != names[1]


@given(st.text(min_size=1, max_size=30).filter(lambda s: "${" not in s and "\n" not in s))
def test_a_quoted_value_is_read_as_it_is(text):
    assert cells.parsed(f"model.path={cells.quoted(text)}") == ("model.path", text)


def test_a_study_names_its_cells_without_composing_them():
    names = study.cells("loo", [])
    assert len(names) == len(set(names)) == 27
    assert names[:2] == ["scalerl-ablation_none-s0", "scalerl-ablation_none-s1"]
    fixed = study.cells("default", ["+ablation=none", "rollout.max_new_tokens=9,10", "seed=3"])
    assert fixed == [
        f"cispo-ablation_none-rollout.max_new_tokens_{T}-s3" for T in (9, 10)
    ]  # fmt: skip
    where = ["hydra/launcher=slurm", "hydra.launcher.account=us"]  # needs no launcher's package
    assert study.cells("loo", where) == names
    many = study.cells("default", [f"optim.warmup_steps={','.join(map(str, range(125)))}"])
    assert len(set(many)) == 1000


# What old manifests say


with (ROOT / "tests/data/manifests_2026-11-26.json").open() as file:
    RECORDED = json.load(file)


def composed(words, command="config") -> Config:
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        node = compose(command, words, return_hydra_config=True)
    HydraConfig.instance().set_config(node)
    with open_dict(node):
        del node["hydra"]
    try:
        return cli.to_config(node)
    finally:
        HydraConfig.instance().cfg = None


@pytest.mark.parametrize("row", RECORDED["recorded"], ids=lambda row: row["command"])
def test_a_manifest_of_2026_11_26_is_the_same_run_today(row):
    config = composed(row["now"], row["command"].replace("train", "config"))
    kind = type(config)
    then = options.options(row["manifest"]["config"], 0, kind)
    assert difference(then, options.options(asdict(config), kind=kind)) == ""


@pytest.mark.parametrize("row", RECORDED["cells"], ids=lambda row: " ".join(row["before"]))
def test_a_cell_computes_what_it_did_under_its_former_name(row):
    then = options.options(RECORDED["recorded"][0]["manifest"]["config"], 0)
    then |= {"env.kwargs.lo": 3, "env.kwargs.hi": 8, "env.kwargs.base": 10} | row["sets"]
    now = options.options(asdict(composed(row["now"])))
    assert difference(then, now) == ""


def test_a_new_option_at_its_default_changes_no_name(tiny):
    """Here by the loss of one from a manifest that was written without it."""
    manifest = asdict(tiny)
    del manifest["algo"]["band_retest_epochs"], manifest["tracker"], manifest["model"]["remat"]
    assert difference(options.options(manifest), options.options(asdict(tiny))) == ""
    other = replace(tiny, model=replace(tiny.model, remat=True))
    said = difference(options.options(manifest), options.options(asdict(other)))
    assert said == "model.remat=False, not True"
    assert run_sha(other) != run_sha(tiny) == run_sha(replace(tiny, recipe="x", out="y"))


def test_sorted_experts_were_chosen_by_the_platform(tiny, tmp_path):
    """And sorted means sorted in a manifest of today, for runs and for what starts from them."""
    for word in ("sorted", "blocks", "dense"):
        config = asdict(replace(tiny, model=replace(tiny.model, moe_dispatch=word)))
        before = "auto" if word == "sorted" else word
        for migrations, now in ((0, before), (1, word)):
            assert options.options(config, migrations)["model.moe_dispatch"] == now
            RunRecord(tmp_path).update_manifest(config=config, migrations=migrations)
            run = start.of_run(tmp_path)
            assert run["model"] == replace(tiny.model, moe_dispatch=now) and run["env"] == tiny.env


@pytest.mark.parametrize(
    "length, chunk, now", [(9, 3, 0), (11, 3, 0), (15, 3, 0), (11, 2, 2), (16, 3, 3), (1024, 3, 3)]
)
def test_a_chunk_of_three_tokens_was_the_default_of_any_length(tiny, length, chunk, now):
    """Where the default of today decodes as many, a manifest means it."""
    rollout = replace(tiny.rollout, max_new_tokens=length, decode_chunk_tokens=chunk)
    config = asdict(replace(tiny, rollout=rollout))
    assert options.options(config, 1)["rollout.decode_chunk_tokens"] == now
    assert options.options(config, 2)["rollout.decode_chunk_tokens"] == chunk
    assert replace(rollout, decode_chunk_tokens=now).chunk_tokens == chunk
    assert replace(rollout, max_new_tokens=1024, decode_chunk_tokens=0).chunk_tokens == 32


def test_an_option_whose_meaning_changes_is_a_line(tiny, monkeypatch):
    """Say rollout.slots=0 was one batch, and is two from the first migration on."""
    before = lambda made: made | {"rollout.slots": made["rollout.slots"] or 16}  # noqa: E731
    monkeypatch.setattr(options, "MIGRATIONS", (before,))
    assert options.options(asdict(tiny), 0)["rollout.slots"] == 16
    assert options.options(asdict(tiny), 1)["rollout.slots"] == 0


# Sweeps


def sweep(out, *words, command=("-m",), wait=True):
    """(exit status, last line) of experiments.train in an empty directory."""
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *command, *words], cwd=out,
        env={**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if not wait:
        return process
    errors = process.communicate(timeout=600)[1]
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    return process.returncode, said[-1] if said else errors


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    out = tmp_path_factory.mktemp("eight")
    assert sweep(out, *EIGHT, *TINY)[0] == 0
    return out


def test_an_ad_hoc_sweep_is_a_run_per_cell(eight):
    """Eight runs, with the manifests that they should have."""
    made = {}
    for path in (eight / "runs").glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        assert manifest["status"] == "done" and manifest["run_id"] == path.parent.name
        axes, config = manifest["axes"], manifest["config"]
        assert axes["optim.learning_rate"] == config["optim"]["learning_rate"]
        assert axes["algo.loss"] == config["algo"]["loss"]
        made[axes["optim.learning_rate"], axes["algo.loss"], manifest["seed"]] = manifest["recipe"]
    wanted = [
        (rate, loss, s) for rate in (1e-4, 2e-4) for loss in ("cispo", "gspo") for s in (0, 1)
    ]
    assert made == dict.fromkeys(wanted, "cispo")


def test_its_axes_are_those_of_a_fit(eight):
    """What all cells share is none."""
    evals = Evals.read(eight, min_points=4)
    assert sorted(evals.axes) == ["algo.loss", "optim.learning_rate"]
    cell = evals.frame.groupby(list(evals.axes))["run"].nunique()
    assert cell.tolist() == [2, 2, 2, 2] and evals.frame["recipe"].unique().tolist() == ["cispo"]


def test_a_cell_alone_is_the_same_run(eight):
    files = sorted((eight / "runs").glob("*/evals.jsonl"))
    before = [file.stat().st_mtime_ns for file in files]
    words = ["optim.learning_rate=0.0002", "algo.loss=gspo", "seed=1"]
    assert sweep(eight, *words, *TINY, command=())[0] == 0
    assert sorted((eight / "runs").glob("*/evals.jsonl")) == files
    assert [file.stat().st_mtime_ns for file in files] == before


CLASHES = [
    (["seed=0,0"], "two cells would have this directory, with the same words; leave one out, .*"),
    (
        ["optim.learning_rate=1e-4,0.0001"],
        "two cells would have this directory, with the same words; .*",
    ),
    (
        ["tracker=none,tensorboard"],
        "two cells would have this directory, with tracker=none and tracker=tensorboard; .*",
    ),
    (  # the word of the command takes precedence over the ablation
        ["+ablation=none,cap_4", "algo.is_cap=4.0"],
        r"two cells are this run, with \+ablation=cap_4 and \+ablation=none; leave one out, .*",
    ),
    (
        ["algo=dapo", "+ablation=none,cap_4"],
        r"two cells are this run, with \+ablation=cap_4 and \+ablation=none: algo.loss=ppo_clip "
        "does not read algo.is_cap; leave one out, .*",
    ),
    (
        ["algo.loss=cispo,gspo", "algo.clip_high=0.2,0.3"],
        r"two cells are this run, with algo.clip_high=0.2 and algo.clip_high=0.3: "
        "algo.loss=cispo does not read algo.clip_high; leave one out, .*",
    ),
    (
        ["optim.pack=true,yes"],
        "two cells are this run, with optim.pack=True and optim.pack=yes; .*",
    ),
    (["seed=0,-1"], "seed=-1: negative; .*"),
    (["out=a,b"], r"out=\['a', 'b'\]: not a directory name; .*"),
]


@pytest.mark.parametrize("words, line", CLASHES, ids=lambda words: " ".join(words))
def test_a_sweep_is_refused_before_anything_is_trained(tmp_path, words, line):
    code, error = sweep(tmp_path, *words, *TINY)
    assert code == 2 and re.fullmatch(f"error: .*{line}", error), error
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_sweep_that_another_process_runs_is_refused(tmp_path):
    lock = RunRecord(tmp_path / "x" / "runs").lock()
    code, error = sweep(tmp_path, "seed=0,1", "out=x", *TINY)
    lock.close()
    assert (code, error) == (
        2,
        "error: out=x: another process runs a sweep here; wait for it, or give another out=DIR",
    )
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_sweep_that_was_changed_since_its_first_runs_is_refused(tmp_path, tiny):
    """The constants of a sweep's file are in no name."""
    name = study.cells("loo", TINY)[0]
    config = composed(["+sweep=loo", "algo=scalerl", *TINY])
    then = asdict(replace(config, optim=replace(config.optim, max_grad_norm=2.0)))
    RunRecord(tmp_path / "x" / "runs" / name).update_manifest(config=then, status="done")
    code, error = sweep(tmp_path, "+sweep=loo", "out=x", *TINY)
    assert code == 2
    assert error.startswith(
        f"error: out=x/runs/{name}: holds a run with optim.max_grad_norm=2.0, not 1.0; change "
    )


def test_a_sweep_that_is_changed_while_it_runs_is_refused(tmp_path, tiny):
    config = replace(tiny, out=str(tmp_path / "runs" / "a"))
    with cells.claimed(tmp_path, [["a"]], lambda _: config):
        cells.as_planned(tmp_path, config)
        with pytest.raises(InputError, match="changed while it ran: steps=8, not 9; change it"):
            cells.as_planned(tmp_path, replace(config, steps=9))
        with (
            pytest.raises(InputError, match="another process runs a sweep here"),
            cells.claimed(tmp_path, [["a"]], lambda _: config),
        ):
            pass


def test_a_study_runs_one_cell_where_its_sweep_would(tmp_path):
    words = study.one_cell("loo", tmp_path, "4", ["steps=3"])
    assert words[:2] == ["-m", "experiments.train"]
    assert {"+ablation=off_policy_8", "seed=1", "steps=3", "hydra.mode=RUN"} <= set(words)
    with pytest.raises(InputError, match="cell=27: sweep=loo has 27 cells; use 0 to 26"):
        study.one_cell("loo", tmp_path, "27", [])


def test_ctrl_c_waits_for_a_sweep_that_saves_its_state(tmp_path):
    """The sweep takes longer to end than `subprocess.run` would let it."""
    child = (
        "import signal, time, sys; from pathlib import Path\n"
        "def save(*_): time.sleep(1); Path('saved').touch(); sys.exit(75)\n"
        "signal.signal(signal.SIGINT, save); Path('ready').touch(); time.sleep(60)"
    )
    parent = "import sys; from experiments.cells import exit_status_of\n"
    parent += "sys.exit(exit_status_of([sys.executable, '-c', sys.argv[1]]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", parent, child], cwd=tmp_path, env=environment, start_new_session=True
    )
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == 75 and (tmp_path / "saved").exists()


def test_a_task_file_that_changes_after_the_first_runs_is_refused(tmp_path, tiny):
    """Runs before and after the change would be cells of one comparison."""
    task = tmp_path / "task.py"
    task.write_text("then")
    env = replace(tiny.env, name=str(task))
    config = replace(tiny, env=env, out=str(tmp_path / "runs" / "a"))
    files = {"env.name": zlib.crc32(b"then")}
    RunRecord(config.out).update_manifest(**options.identity(config), files=files, status="done")
    says = "env.name=.*task.py: the file has changed since the runs in .* began; change it back, or"
    with cells.claimed(tmp_path, [["a"]], lambda _: config):
        cells.as_planned(tmp_path, config)
        assert rl.train(config)["files"] == files
        task.write_text("now")
        with pytest.raises(InputError, match=says):
            cells.as_planned(tmp_path, config)
    with (
        pytest.raises(InputError, match=says),
        cells.claimed(tmp_path, [["a"]], lambda _: config),
    ):
        pass
    with pytest.raises(InputError, match=says):
        rl.train(config)
