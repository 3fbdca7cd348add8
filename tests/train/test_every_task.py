"""What one loop does for every task: each is killed, stopped, watched, spoilt and refused alike."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rlx.config import AlgoConfig, CheckpointConfig, EnvConfig, RewardModelConfig, SftConfig
from rlx.errors import InputError
from rlx.record import RunRecord, read_rows
from rlx.track import numbers
from rlx.train import loop, recorded, reward_model, rl, sft, start, warm_start
from rlx.types import NotFinite

ROOT = Path(__file__).parents[2]
STEPS = 8
TASKS = ("rl", "sft", "reward_model", "warm_start")
MODULES = {"rl": rl, "sft": sft, "reward_model": reward_model, "warm_start": rl}
LIKELIHOOD = AlgoConfig(
    loss="reinforce", advantage="none", aggregation="token_mean", zero_variance="keep"
)


def pairs(path):
    """Two digits are better than one."""
    rows = [{"prompt": f"{i}?", "chosen": f"{i % 7}1", "rejected": str(i % 7)} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def configs(easy, tmp_path_factory):
    """Runs of as many updates each; a warm start is that of a run of one update."""
    fresh = replace(easy.warm_start, steps=0)
    changes = {"checkpoint": CheckpointConfig(every_steps=2), "steps": STEPS, "warm_start_dir": ""}
    plain = {field.name: getattr(easy, field.name) for field in fields(easy)} | changes
    plain["eval"] = replace(easy.eval, every_steps=4)
    kwargs = {"path": pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")}
    env = EnvConfig("preference", kwargs, train_prompts=16, heldout_prompts=8, grade_timeout_s=0)
    made = str(tmp_path_factory.mktemp("warm_start"))
    warm_start.load_or_make(easy, start.make_env(easy), made)
    rollout = replace(easy.rollout, max_new_tokens=8)
    return {
        "rl": replace(easy, **{**plain, "warm_start_dir": made}),
        "sft": SftConfig(**{**plain, "warm_start": fresh, "algo": LIKELIHOOD, "rollout": rollout}),
        "reward_model": RewardModelConfig(**{**plain, "warm_start": fresh, "env": env}),
        "warm_start": replace(
            easy, **{**plain, "warm_start": replace(easy.warm_start, steps=STEPS), "steps": 1}
        ),
    }


def train(task, config, **how):
    return MODULES[task].train(config, progress=False, **how)


def rows_of(task, config) -> Path:
    """The directory that its rows and checkpoints are in."""
    if task != "warm_start":
        return Path(config.out)
    (path,) = Path(config.out, "warm_start").iterdir()
    return path


@pytest.fixture(scope="module")
def whole(configs, tmp_path_factory):
    """Runs that nothing disturbs, and what a dashboard has seen of them."""
    made = {}
    for task, config in configs.items():
        config = replace(config, out=str(tmp_path_factory.mktemp(task)))
        seen = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recorded, "tracker", lambda _, seen=seen: lambda *row: seen.append(row))
            train(task, config)
        made[task] = SimpleNamespace(config=config, path=rows_of(task, config), seen=seen)
    return made


def last_state(path):
    """The arrays of the newest checkpoint, by name."""
    newest = max((path / "checkpoints").glob("[0-9]*"), key=lambda saved: int(saved.name))
    with ocp.PyTreeCheckpointer() as checkpointer:
        there = checkpointer.metadata(newest / "device").item_metadata.tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), there)
        tree = checkpointer.restore(newest / "device", restore_args=plain)
    return {jax.tree_util.keystr(at): x for at, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same_end(one: Path, two: Path):
    for name in ("evals.jsonl", "metrics.jsonl"):
        files = one / name, two / name
        assert [f.exists() and f.read_bytes() for f in files][0] == (
            files[1].exists() and files[1].read_bytes()
        ), name
    a, b = last_state(one), last_state(two)
    assert a.keys() == b.keys() and len(a) > 10
    assert [name for name in a if a[name].tobytes() != b[name].tobytes()] == []


# The program that is killed: the signal takes it after so many updates.
KILLED = """
import importlib, os, pickle, signal, sys
module, updates, file = sys.argv[1:]
left = iter(range(int(updates) - 1, -1, -1))
def stop():
    return next(left) or os.kill(os.getpid(), signal.SIGKILL)
config = pickle.load(open(file, "rb"))
importlib.import_module(module).train(config, progress=False, stop=lambda: stop() is None)
"""


@pytest.mark.parametrize("task", TASKS)
def test_one_that_is_killed_goes_on_to_the_same_bits(whole, configs, task, tmp_path):
    config = replace(configs[task], out=str(tmp_path / "run"))
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    arguments = [MODULES[task].__name__, str(STEPS - 1), str(tmp_path / "config")]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(jax.device_count())}
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, env=environment)
    assert done.returncode == -9
    assert RunRecord(config.out).manifest["status"] == "running"
    assert train(task, config)["status"] == "done"
    path = rows_of(task, config)
    assert_same_end(whole[task].path, path)
    (lost,) = read_rows(path / "restarts.jsonl")
    assert lost["step"] in (4, 6) and lost["updates_lost"] == STEPS - 1 - lost["step"]


@pytest.mark.parametrize("task", TASKS)
def test_one_that_is_asked_to_stop_does_nothing_twice(whole, configs, task, tmp_path):
    config = replace(configs[task], out=str(tmp_path))
    asked = iter([False, False, True])
    with pytest.raises(loop.Interrupted, match="after update 3; repeat the command to resume"):
        train(task, config, stop=lambda: next(asked))
    assert RunRecord(config.out).manifest["status"] == "interrupted"
    assert train(task, config)["status"] == "done"
    path = rows_of(task, config)
    assert_same_end(whole[task].path, path)
    assert not (path / "restarts.jsonl").exists()


@pytest.mark.parametrize("task", TASKS)
def test_a_dashboard_sees_every_row(whole, task):
    it = whole[task]
    updates = [(row["step"], numbers(row)) for row in read_rows(it.path / "metrics.jsonl")]
    evals = [(row["step"], row["mean"]) for row in read_rows(it.path / "evals.jsonl")]
    assert [step for step, _ in updates] == list(range(STEPS))
    group = "warm_start/" if task == "warm_start" else ""
    seen = [(step, numbers(row)) for step, row in it.seen]
    got = [(step, row) for step, row in seen if f"{group}grad_norm" in row]
    assert [(s, {n.removeprefix(group): x for n, x in row.items()}) for s, row in got] == updates
    means = [(step, row["eval/mean"]) for step, row in seen if "eval/mean" in row]
    assert means == (evals if task != "warm_start" else means)
    assert [step for step, _ in evals] == ([] if task == "warm_start" else [0, 4, 8])


def spoilt(task, monkeypatch, versions):
    """The updates of these versions are made of numbers that are not finite."""
    made = iter(range(10**6))
    if task in ("rl", "sft"):  # what is learned from
        module, name = {"rl": (rl, "collate"), "sft": (sft, "demonstrated")}[task]
        make = getattr(module, name)

        def batch(*args):
            whole = make(*args)
            bad = {"behavior_logp_BT" if task == "rl" else "mask_BT": whole.mask_BT * np.nan}
            return whole.replace(**bad) if next(made) in versions else whole

        monkeypatch.setattr(module, name, batch)
        return
    kind = {"reward_model": reward_model.RewardModel, "warm_start": warm_start.WarmStart}[task]

    def step(self, batch, step=kind.step):  # the weights, for as long as the update takes
        if next(made) not in versions:
            return step(self, batch)
        before = jax.tree.map(np.array, self.state)
        bad = jax.tree.map(lambda x: x * np.nan, self.state.params)
        self.state = self.state.replace(params=bad)
        metrics, after = step(self, batch), self.state
        back = jax.tree.map(lambda x, now: jax.device_put(x, now.sharding), before, after)
        self.state = back.replace(version=after.version)
        return metrics

    monkeypatch.setattr(kind, "step", step)


@pytest.mark.parametrize("task", TASKS)
def test_updates_that_are_not_finite_are_skipped_and_counted(configs, task, tmp_path, monkeypatch):
    spoilt(task, monkeypatch, (2, 3, 5))
    optim = replace(configs[task].optim, max_skipped_updates=3)
    config = replace(configs[task], out=str(tmp_path), optim=optim)
    manifest = train(task, config)
    path = rows_of(task, config)
    skipped = [row["update/skipped"] for row in read_rows(path / "metrics.jsonl")]
    assert skipped == [0, 0, 1, 1, 0, 1, 0, 0]
    if task == "warm_start":
        manifest = RunRecord(path).manifest
    assert manifest["updates_skipped"] == 3
    assert all(np.isfinite(x).all() for x in last_state(path).values() if x.dtype.kind == "f")


@pytest.mark.parametrize("task", TASKS)
def test_too_many_of_them_in_a_row_end_it(configs, task, tmp_path, monkeypatch):
    spoilt(task, monkeypatch, range(3, 9))
    optim = replace(configs[task].optim, max_skipped_updates=3)
    config = replace(configs[task], out=str(tmp_path), optim=optim)
    line = "optim.max_skipped_updates=3: the last 3 updates, up to 6, .* not finite; lower"
    with pytest.raises(InputError if task == "warm_start" else NotFinite, match=line) as error:
        train(task, config)
    assert "\n" not in str(error.value)
    assert RunRecord(config.out).manifest["status"] == "failed"


BAD = {
    "rl": ({"algo": AlgoConfig(loss="pppo")}, "algo.loss=pppo: unknown name; use one of"),
    "sft": ({"traces": "none.jsonl"}, "traces=none.jsonl: no such file; give a .jsonl"),
    "reward_model": (
        {"env": EnvConfig("preference", {"path": "none.jsonl"}, train_prompts=16)},
        "env.kwargs.path=none.jsonl: no such file; give a .jsonl",
    ),
    "warm_start": ({"warm_start_dir": "/dev/null/there"}, "warm_start_dir=/dev/null/there: a part"),
}


@pytest.mark.parametrize("task", TASKS)
def test_bad_input_is_one_line(configs, task, tmp_path):
    changes, line = BAD[task]
    with pytest.raises(InputError, match=f"^{line}") as error:
        train(task, replace(configs[task], out=str(tmp_path), **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_do_not_write_the_same(configs, task, tmp_path):
    config = replace(configs[task], out=str(tmp_path))
    with RunRecord(tmp_path).lock(), pytest.raises(InputError, match="^out=.*: process .* writing"):
        train(task, config)
