"""Runs that stop and go on: the same curve, bit for bit, whatever stopped them."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rlx import processes
from rlx.checkpoint import Checkpoints, checksums, load_params, pack, unpack
from rlx.config import CheckpointConfig, EvalConfig, MeshConfig, PipelineConfig
from rlx.errors import InputError
from rlx.record import RunRecord, read_rows
from rlx.train import loop, rl

ROOT = Path(__file__).parents[1]
LOGS = ("evals.jsonl", "metrics.jsonl")


def test_packing_is_exact():
    tree = {
        "a": np.array([1.5, np.nan, np.inf], np.float32),
        "deep": {"1": {"b": np.zeros((0, 3), np.int64)}, "list": [1, 2], "text": "é"},
        "number": 0.1 + 0.2,
        "empty": {},
    }
    got = unpack(pack(tree))
    np.testing.assert_array_equal(got["a"], tree["a"])
    assert got["a"].dtype == np.float32 and got["deep"]["1"]["b"].shape == (0, 3)
    assert got["deep"]["list"] == [1, 2] and got["deep"]["text"] == "é" and got["empty"] == {}
    assert got["number"] == 0.1 + 0.2


@pytest.fixture(scope="module")
def config(easy):
    """Stale by up to three updates, with sequences and groups in flight at every checkpoint."""
    return replace(
        easy,
        steps=12,
        pipeline=PipelineConfig("pipeline", 3),
        rollout=replace(easy.rollout, slots=32, decode_chunk_tokens=2),
        eval=EvalConfig(every_steps=2),
        checkpoint=CheckpointConfig(every_steps=3),
    )


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    rl.train(replace(config, out=str(path)), progress=False)
    return path


def after(updates):
    """Says stop after so many updates."""
    left = iter(range(updates - 1, -1, -1))
    return lambda: next(left) == 0


def same_logs(a, b):
    for name in LOGS:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def last_state(path):
    """The arrays of the newest checkpoint by name: parameters, optimiser, sequences in flight."""
    newest = max((path / "checkpoints").glob("[0-9]*"), key=lambda saved: int(saved.name))
    with ocp.PyTreeCheckpointer() as checkpointer:
        there = checkpointer.metadata(newest / "device").item_metadata.tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), there)
        tree = checkpointer.restore(newest / "device", restore_args=plain)
    return {jax.tree_util.keystr(at): x for at, x in jax.tree_util.tree_leaves_with_path(tree)}


def same_end(a, b):
    """The curve and the last state, bit for bit."""
    same_logs(a, b)
    states = last_state(a), last_state(b)
    assert states[0].keys() == states[1].keys()
    for name, x in states[0].items():
        assert x.tobytes() == states[1][name].tobytes(), name


@pytest.mark.parametrize("kind, k", [("pipeline", 3), ("ppo_off_policy", 2), ("sync", 0)])
def test_a_run_that_stops_again_and_again(config, tmp_path, kind, k):
    config = replace(config, pipeline=PipelineConfig(kind, k))
    rl.train(replace(config, out=str(tmp_path / "whole")), progress=False)
    parts = replace(config, out=str(tmp_path / "parts"))
    for updates in (1, 4, 2):
        with pytest.raises(loop.Interrupted):
            rl.train(parts, progress=False, stop=after(updates))
        assert RunRecord(parts.out).manifest["status"] == "interrupted"
    manifest = rl.train(parts, progress=False)
    same_end(tmp_path / "whole", tmp_path / "parts")
    assert manifest["status"] == "done" and manifest["error"] == ""
    assert not (tmp_path / "parts" / "restarts.jsonl").exists()  # nothing was done twice
    clock = read_rows(tmp_path / "parts" / "clock.jsonl")
    assert all(np.diff([row["wall_s"] for row in clock]) > 0)


def test_an_error_costs_what_came_after_the_checkpoint(config, whole, tmp_path, monkeypatch):
    """It fails in update 8; the checkpoint is of update 6, so 6 and 7 are made again."""
    broken = replace(config, out=str(tmp_path))

    def failing(groups, *args, collate=rl.collate):
        if min(group.serial for group in groups) == 8 * 4:
            raise RuntimeError("out of memory")
        return collate(groups, *args)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(rl, "collate", failing)
        rl.train(broken, progress=False)
    assert RunRecord(tmp_path).manifest["status"] == "failed"
    rl.train(broken, progress=False)
    same_logs(whole, tmp_path)
    (lost,) = read_rows(tmp_path / "restarts.jsonl")
    assert lost["step"] == 6 and lost["updates_lost"] == 2
    compute = {row["step"]: row["compute"] for row in read_rows(whole / "evals.jsonl")}
    assert lost["compute_lost"] == compute[8] - compute[6] > 0


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(config, whole, tmp_path, capsys):
    parts = replace(config, out=str(tmp_path))
    with pytest.raises(loop.Interrupted):
        rl.train(parts, progress=False, stop=after(8))
    newest = tmp_path / "checkpoints" / "8"
    for file in newest.rglob("*"):
        if file.is_file() and file.stat().st_size > 200:
            file.write_bytes(file.read_bytes()[:100])
    rl.train(parts, progress=False)
    said = capsys.readouterr().out
    assert f"{newest}: cannot be read" in said and said.count("set aside") == 1
    same_logs(whole, tmp_path)
    assert (tmp_path / "checkpoints" / "damaged-8").exists()
    assert read_rows(tmp_path / "restarts.jsonl")[0]["updates_lost"] == 2


def test_a_checkpoint_of_another_model_is_refused(config, whole, tmp_path):
    """Copied into the directory of a run whose model is larger; nothing is set aside."""
    other = replace(config, out=str(tmp_path), model=replace(config.model, d_ff=48))
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    before = sorted(tmp_path.rglob("checkpoints/*"))
    line = (
        f"out={tmp_path}: {tmp_path}/checkpoints/12 is a checkpoint of another configuration "
        r"\(state/opt_state/.* is float32\[24,16\] there, float32\[48,16\] here\); choose another "
        f"directory, or remove {tmp_path}/checkpoints to start again"
    )
    with pytest.raises(InputError, match=f"^{line}$"):
        rl.train(other, progress=False)
    assert sorted(tmp_path.rglob("checkpoints/*")) == before


def test_half_a_row_is_cut_off(config, whole, tmp_path):
    """What a process killed while it appends, or a full disk, leaves behind."""
    parts = replace(config, out=str(tmp_path))
    with pytest.raises(loop.Interrupted):
        rl.train(parts, progress=False, stop=after(5))
    for name in LOGS:
        with (tmp_path / name).open("a") as file:
            file.write('{"step": 5, "ver')
    rl.train(parts, progress=False)
    same_logs(whole, tmp_path)


def test_another_mesh_goes_on_from_the_same_state(config, tmp_path):
    """Weights and sequences in flight are those of the first mesh; sums differ in rounding only."""
    parts = replace(config, out=str(tmp_path / "parts"))
    with pytest.raises(loop.Interrupted):
        rl.train(parts, progress=False, stop=after(6))
    shutil.copytree(tmp_path / "parts", tmp_path / "other")
    other = replace(parts, out=str(tmp_path / "other"), mesh=MeshConfig(data=2, fsdp=2))
    rl.train(other, progress=False)
    rl.train(parts, progress=False)
    rows = [read_rows(tmp_path / name / "metrics.jsonl")[6] for name in ("parts", "other")]
    for name in ("objective", "grad_norm", "policy/entropy"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-3), name
    assert rows[0]["rollout/score_mean"] == rows[1]["rollout/score_mean"]


def test_threads_lose_nothing(config, tmp_path):
    """A stop between updates, chunks under way: every group is used once, the ledger grows."""
    pipeline = PipelineConfig("pipeline", 3, schedule="threads")
    mesh = MeshConfig(data=1, generators=1)
    parts = replace(config, out=str(tmp_path), pipeline=pipeline, mesh=mesh)
    used = []

    def watched(groups, *args, collate=rl.collate):
        used.extend(group.serial for group in groups)
        return collate(groups, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl, "collate", watched)
        for updates in (3, 4):
            with pytest.raises(loop.Interrupted):
                rl.train(parts, progress=False, stop=after(updates))
        rl.train(parts, progress=False)
    assert used == list(range(12 * 4))
    rows = read_rows(tmp_path / "evals.jsonl")
    assert all(np.diff([row["compute"] for row in rows]) > 0)
    assert [row["step"] for row in rows] == [0, 2, 4, 6, 8, 10, 12]


def test_old_checkpoints_go_but_for_those_to_keep(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=2, keep_every_steps=10))
    for step in (5, 10, 15, 20, 25):
        checkpoints.save(step, {"x": jnp.full(3, step)}, {"step": step})
    checkpoints.close()
    left = sorted(int(path.name) for path in tmp_path.iterdir())
    assert left == [10, 20, 25]
    like = {"x": jax.ShapeDtypeStruct((3,), jnp.int32, sharding=jnp.zeros(3).sharding)}
    again = Checkpoints(tmp_path, CheckpointConfig())
    step, device, host = again.restore(like)
    assert (step, host, device["x"].tolist()) == (25, {"step": 25}, [25, 25, 25])
    again.close()


ARRAYS = {
    "float32": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "bfloat16": jnp.linspace(-1, 1, 16, dtype=jnp.bfloat16).reshape(8, 2),
    "int32": np.arange(-4, 4, dtype=np.int32),
    "uint8": np.arange(8, dtype=np.uint8),
    "bool": np.arange(8) % 3 == 0,
    "scalar": np.float32(0.5),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_any_flipped_bit_and_any_two_values_exchanged_change_the_checksum(name):
    x = np.asarray(ARRAYS[name])
    (written,) = checksums({"x": x}).values()
    data = x.tobytes()
    bits = range(0, 8 * len(data), 8 if name == "bool" else 1)
    for bit in bits:
        other = bytearray(data)
        other[bit // 8] ^= 1 << bit % 8
        flipped = np.frombuffer(bytes(other), x.dtype).reshape(x.shape)
        assert checksums({"x": flipped}) != {"x": written}, bit
    if x.size > 1 and name != "bool":
        assert checksums({"x": x[::-1]}) != {"x": written}


def test_a_checksum_is_the_sum_that_it_says_on_any_mesh():
    """By whole numbers of Python, for one device and for eight."""
    x = np.arange(32, dtype=np.float32).reshape(8, 4) - 3.5
    bits = x.view(np.uint32)
    factors = [0x9E3779B1, 0x9E3779B1**2]
    want = sum(
        (2 * (i * factors[0] + j * factors[1]) + 1) * int(bits[i, j])
        for i in range(8) for j in range(4)
    )  # fmt: skip
    mesh = jax.make_mesh((8,), ("a",))
    split = jax.device_put(x, jax.NamedSharding(mesh, jax.P("a")))
    assert checksums({"x": x}) == checksums({"x": split}) == {"x": want % 2**32}


def test_flipped_bits_never_come_back_unnoticed(tmp_path, capsys):
    """Any file of the newest checkpoint: its state comes back as written, or the one before it."""
    rng = np.random.default_rng(0)
    states = {
        step: {"x": rng.normal(size=(64, 8)).astype(np.float32), "n": np.arange(step, step + 9)}
        for step in (3, 7)
    }
    states = {s: {k: jnp.asarray(x) for k, x in state.items()} for s, state in states.items()}
    one = Checkpoints(tmp_path / "whole", CheckpointConfig())
    for step, state in states.items():
        one.save(step, state, {"step": step, "numbers": np.arange(50.0)})
    one.close()
    files = [f for f in (tmp_path / "whole" / "7").rglob("*") if f.is_file() and f.stat().st_size]
    came_back = Counter()
    for trial in range(24):
        shutil.copytree(tmp_path / "whole", tmp_path / "x")
        file = tmp_path / "x" / files[trial % len(files)].relative_to(tmp_path / "whole")
        data = bytearray(file.read_bytes())
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        file.write_bytes(data)
        again = Checkpoints(tmp_path / "x", CheckpointConfig())
        step, device, host = again.restore(states[7])
        again.close()
        jax.tree.map(np.testing.assert_array_equal, device, states[step])
        assert host["step"] == step and (host["numbers"] == np.arange(50.0)).all()
        assert ("set aside" in capsys.readouterr().out) == (step == 3)
        came_back[step] += 1
        shutil.rmtree(tmp_path / "x")
    assert came_back[3] > 0


def test_a_damaged_checkpoint_gives_no_parameters(tmp_path):
    """A reward model or a start is what was named, or nothing; and another step is named."""
    one = Checkpoints(tmp_path / "checkpoints", CheckpointConfig())
    params = {"w": jnp.arange(64.0)}
    for step in (3, 7):
        one.save(step, {"state": {"params": params}}, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlx.checkpoint.checksums", lambda tree: {"state/params/w": 5})
        one.save(9, {"state": {"params": params}}, {})
    one.close()
    assert (load_params(tmp_path, params, 7)["w"] == params["w"]).all()
    line = r"^checkpoint=.*/checkpoints/9: cannot be read \(.* do not match, first .*\); use .*/7$"
    with pytest.raises(InputError, match=line):
        load_params(tmp_path, params)


@pytest.fixture(scope="module")
def stopped(config, tmp_path_factory):
    """stopped(copy): the directory of a run that was stopped after 8 updates, and goes on."""
    path = tmp_path_factory.mktemp("stopped")
    with pytest.raises(loop.Interrupted):
        rl.train(replace(config, out=str(path)), progress=False, stop=after(8))
    return lambda copy: shutil.copytree(path, copy, dirs_exist_ok=True)


def cut(file):
    file.write_bytes(file.read_bytes()[:-30])


def change(file):
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [Path.unlink, cut, change])
@pytest.mark.parametrize("name", ["evals.jsonl", "metrics.jsonl", "clock.jsonl"])
def test_rows_that_are_not_those_of_the_checkpoint_are_refused(
    config, stopped, tmp_path, name, damage
):
    stopped(tmp_path)
    damage(tmp_path / name)
    before = {f: f.read_bytes() for f in tmp_path.glob("*.jsonl")}
    line = f"{name}=: (shorter than|not) what this run wrote; restore the file, or "
    with pytest.raises(InputError, match=line):
        rl.train(replace(config, out=str(tmp_path)), progress=False)
    assert {f: f.read_bytes() for f in tmp_path.glob("*.jsonl")} == before


def test_rows_of_a_finished_run_that_changed_are_refused(config, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    same = replace(config, out=str(tmp_path))
    assert rl.train(same, progress=False)["status"] == "done"
    change(tmp_path / "evals.jsonl")
    with pytest.raises(InputError, match="evals.jsonl=: not what this run wrote; restore the file"):
        rl.train(same, progress=False)


def test_a_checkpoint_without_its_manifest_goes_on_as_it_was_only(config, stopped, whole, tmp_path):
    stopped(tmp_path)
    (tmp_path / "manifest.json").unlink()
    other = replace(config, out=str(tmp_path), optim=replace(config.optim, learning_rate=0.5))
    line = r"8 is a checkpoint of another configuration \(optim.learning_rate=0.003, not 0.5\)"
    with pytest.raises(InputError, match=line):
        rl.train(other, progress=False)
    (tmp_path / "manifest.json").unlink()
    rl.train(replace(config, out=str(tmp_path)), progress=False)
    same_logs(whole, tmp_path)


def removed(path):
    while path.exists():  # a checkpoint may be under way
        shutil.rmtree(path, ignore_errors=True)


def moved(path):
    path.rename(path.with_name("elsewhere"))


@pytest.mark.parametrize("vanish", [removed, moved])
@pytest.mark.parametrize("when", ["in the middle", "at the end"])
def test_a_directory_that_vanishes_ends_the_run_and_leaves_no_manifest(
    config, tmp_path, when, vanish
):
    out = tmp_path / "run"
    steps = iter(range(100))

    def stop():
        if next(steps) == (4 if when == "in the middle" else config.steps - 1):
            vanish(out)
        return False

    line = "(evals|metrics|manifest).json.* was removed by another process .*; remove the directory"
    with pytest.raises(InputError, match=f"^out={out}: {line}"):
        rl.train(replace(config, out=str(out)), progress=False, stop=stop)
    assert not (out / "manifest.json").exists()


def test_two_processes_do_not_write_one_run(config, tmp_path):
    lock = RunRecord(tmp_path).lock()
    with pytest.raises(InputError, match=f"out=.*process {os.getpid()} on .* is writing this run"):
        rl.train(replace(config, out=str(tmp_path)), progress=False)
    lock.close()
    assert not (tmp_path / "manifest.json").exists()


# Real processes, killed

EVAL, SAVE = 6, 5  # updates between two evaluations, two checkpoints
SMALL = (
    f"steps=120 eval.every_steps={EVAL} checkpoint.every_steps={SAVE} pipeline=pipeline_8 "
    "rollout.slots=16 rollout.decode_chunk_tokens=2 model.d_model=16 model.n_layers=1 "
    "model.d_ff=24 model.head_dim=8 rollout.prompts_per_step=2 rollout.group_size=4 "
    "optim.microbatches=1 env.train_prompts=16 env.heldout_prompts=8 warm_start.steps=8 "
    "warm_start.batch_size=8 mesh=one"
).split()


def start(out, *words):
    command = [sys.executable, "-m", "experiments.train", *SMALL, f"out={out}", *words]
    environment = {**os.environ, "XLA_FLAGS": ""}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(path)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    return path


def updates(path):
    file = path / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def measured(path):
    rows = read_rows(path / "evals.jsonl")
    return rows[-1]["step"] if rows else -1


def evaluating(path):
    return (made := updates(path)) % EVAL == 0 and measured(path) < made


def saving(path):
    return any((path / "checkpoints").glob("*tmp*"))


def wait_for_updates(process, path, more):
    """Until it has made so many since it went back to its newest checkpoint."""
    kept = updates(path)
    while process.poll() is None and (now := updates(path)) < kept + more:
        kept = min(kept, now)
        time.sleep(0.002)


def killed_at_random(path, kills, seed, *words):
    """Start, SIGKILL at a random moment, so often; then let it end. What the kills fell into.

    By turns: after some updates, in an evaluation, while a checkpoint is written, at the start.
    They come after so many updates that the machine's speed hardly matters: a run of 25 updates per
    kill is not over too soon.
    """
    rng, fell_into = random.Random(seed), Counter()
    for kill in range(kills):
        process = start(path, *words)
        if kill % 4 == 3:
            time.sleep(rng.uniform(0, 6))
        else:
            wait_for_updates(process, path, rng.randint(1, 12))
            there = (lambda path: True, evaluating, saving)[kill % 4]
            while process.poll() is None and not there(path):
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.01 if kill % 4 else 0.2))
        process.kill()
        errors = process.communicate()[1]
        assert process.returncode == -signal.SIGKILL, errors
        if kill % 4 < 3:  # what an earlier process left of a checkpoint is cleared away by then
            fell_into["evaluation" if evaluating(path) else "update"] += 1
            fell_into["checkpoint"] += saving(path)
    process = start(path, *words)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    return fell_into


def test_killed_at_any_moment_it_ends_the_same(undisturbed, tmp_path):
    killed_at_random(tmp_path / "run", 3, seed=8)
    same_end(undisturbed, tmp_path / "run")
    assert_little_was_lost(tmp_path / "run")


@pytest.mark.slow
def test_killed_twenty_times_it_ends_the_same(tmp_path):
    """No kind of moment is missed. (Half a row has a test of its own: a process is killed before
    the system writes a row, or after.)"""
    process = start(tmp_path / "whole", "steps=600")
    errors = process.communicate(timeout=600)[1]
    assert process.returncode == 0, errors
    fell_into = killed_at_random(tmp_path / "run", 24, 20, "steps=600")
    same_end(tmp_path / "whole", tmp_path / "run")
    assert len(assert_little_was_lost(tmp_path / "run")) >= 12
    assert min(fell_into[name] for name in ("update", "evaluation", "checkpoint")) >= 2, fell_into


def assert_little_was_lost(path):
    """At most two intervals: the checkpoint being written when a kill comes does not count yet."""
    lost = read_rows(path / "restarts.jsonl")
    assert lost and all(row["updates_lost"] <= 2 * SAVE for row in lost)
    return lost


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MB on which so many kilobytes are free, and the file that fills it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")

    def fill(free_kb):
        (disk / "filler").write_bytes(bytes(4096 * 1024 - free_kb * 1024))
        return disk

    yield fill
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    "free_kb, words",
    [
        pytest.param(40, (), marks=pytest.mark.slow, id="in the warm start"),
        pytest.param(180, ("checkpoint.every_steps=999",), marks=pytest.mark.slow, id="in a row"),
        pytest.param(450, (), id="in a checkpoint"),
    ],
)
def test_a_full_disk_asks_for_room_and_loses_nothing(undisturbed, small_disk, free_kb, words):
    """And leaves no scratch files behind."""
    disk = small_disk(free_kb)
    process = start(disk / "run", *words)
    errors = process.communicate(timeout=300)[1].decode()
    assert process.returncode == 75, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    said = rf"error: out={disk}/run: the disk is full .* MB are free\); make room.*, then repeat .*"
    assert re.fullmatch(said, line), line
    names = [path.name for path in disk.rglob(".*")]
    assert not [name for name in names if name != ".lock"], names
    (disk / "filler").unlink()
    process = start(disk / "run", *words)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    same_logs(undisturbed, disk / "run")


def test_a_signal_writes_a_checkpoint_and_asks_to_be_requeued(undisturbed, tmp_path):
    run = tmp_path / "run"
    for number in (signal.SIGUSR1, signal.SIGTERM):
        process = start(run)
        wait_for_updates(process, run, 1)
        process.send_signal(number)
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 75, errors
        steps = [int(path.name) for path in (run / "checkpoints").iterdir()]
        assert max(steps) == len(read_rows(run / "metrics.jsonl"))
    process = start(run)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    same_end(undisturbed, run)
    assert not (run / "restarts.jsonl").exists()


@pytest.mark.parametrize("writer", [True, False])
def test_of_several_processes_one_sets_a_damaged_checkpoint_aside(tmp_path, monkeypatch, writer):
    """Both see the damage. A reader waits for the writer, here for what the test does for it."""
    one = Checkpoints(tmp_path, CheckpointConfig())
    for step in (3, 7):
        one.save(step, {"x": jnp.full(3, step)}, {"step": step})
    one.close()
    for file in (tmp_path / "7" / "host").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    renamed = []

    def wait(name):
        renamed.append((tmp_path / "damaged-7").exists())
        if not writer:
            (tmp_path / "7").rename(tmp_path / "damaged-7")

    monkeypatch.setattr(processes, "is_writer", lambda: writer)
    monkeypatch.setattr(processes, "wait", wait)
    again = Checkpoints(tmp_path, CheckpointConfig())
    like = {"x": jax.ShapeDtypeStruct((3,), jnp.int32, sharding=jnp.zeros(3).sharding)}
    step, device, _ = again.restore(like)
    again.close()
    assert (step, device["x"].tolist(), renamed) == (3, [3, 3, 3], [writer])


def test_damage_that_another_process_saw_counts(tmp_path, monkeypatch):
    """This one can read its part of checkpoint 7; all use checkpoint 3."""
    one = Checkpoints(tmp_path, CheckpointConfig())
    for step in (3, 7):
        one.save(step, {"x": jnp.full(3, step)}, {"step": step})
    one.close()
    theirs = iter([True, False])
    monkeypatch.setattr(processes, "any_of", lambda mine: [mine or next(theirs)])
    again = Checkpoints(tmp_path, CheckpointConfig())
    like = {"x": jax.ShapeDtypeStruct((3,), jnp.int32, sharding=jnp.zeros(3).sharding)}
    assert again.restore(like)[0] == 3
    again.close()
