"""One run on two processes with a device each is the run on one process with two, bit for bit."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm

from rlx.record import RunRecord, read_rows

ROOT = Path(__file__).parents[1]
RUN = [
    "steps=4", "eval.every_steps=2", "checkpoint.every_steps=3", "mesh.data=1", "mesh.fsdp=2",
    "model.d_model=16", "model.n_layers=1", "model.d_ff=24", "model.head_dim=8",
    "rollout.prompts_per_step=4", "rollout.group_size=4", "rollout.slots=16",
    "env.train_prompts=16", "env.heldout_prompts=8", "warm_start.steps=5",
    "warm_start.batch_size=8", "algo.kl=k3", "algo.kl_coef=0.01",
]  # fmt: skip


def start(out: Path, processes: int, *overrides: str) -> list[subprocess.Popen]:
    """The processes of one run, on loopback, two devices in all."""
    devices = {"JAX_NUM_CPU_DEVICES": str(2 // processes), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "experiments.train", f"out={out}", *RUN, *overrides]
    if processes == 1:
        return [subprocess.Popen(command, cwd=ROOT, env={**os.environ, **devices})]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    devices |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    return [
        subprocess.Popen(
            [*command, "distributed=true"],
            cwd=ROOT,
            env={**os.environ, **devices, "JAX_PROCESS_ID": str(i)},
        )
        for i in range(processes)
    ]


def statuses(processes: list[subprocess.Popen]) -> set[int]:
    return {process.wait(timeout=300) for process in processes}


def same(one: Path, two: Path) -> None:
    for name in ("evals.jsonl", "metrics.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


GAME = ["env=guess", "env.kwargs.numbers=6", "episode.max_turns=3", "env.grade_timeout_s=5"]


@pytest.mark.parametrize("words", [[], pytest.param(GAME, marks=pytest.mark.slow)])
def test_two_processes_train_to_the_same_bits_as_one(tmp_path, words):
    """Single answers, and episodes whose replies the processes share out."""
    assert statuses(start(tmp_path / "one", 1, *words)) == {0}
    assert statuses(start(tmp_path / "two", 2, *words)) == {0}
    assert len(RunRecord(tmp_path / "two").rows("metrics.jsonl")) == 4
    same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_they_go_on_to_the_same_curve(tmp_path):
    assert statuses(start(tmp_path / "one", 1, "steps=30")) == {0}
    running = start(tmp_path / "two", 2, "steps=30")
    while len(read_rows(tmp_path / "two" / "metrics.jsonl")) < 5:
        time.sleep(0.1)
        assert all(process.poll() is None for process in running)
    running[1].send_signal(signal.SIGTERM)
    assert statuses(running) == {75}
    assert RunRecord(tmp_path / "two").manifest["status"] == "interrupted"
    assert statuses(start(tmp_path / "two", 2, "steps=30")) == {0}
    same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_slurm_says_by_itself_who_is_there(tmp_path):
    if reason := slurm.missing():
        pytest.skip(reason)
    assert statuses(start(tmp_path / "one", 1)) == {0}
    (place := tmp_path / "slurm").mkdir()
    with slurm.one_node(place) as environment:
        devices = {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "experiments.train", f"out={tmp_path}/two", *RUN]
        srun = ["srun", "-n2", "-c1", *command, "distributed=true"]
        subprocess.run(srun, cwd=ROOT, env={**environment, **devices}, check=True, timeout=400)
    same(tmp_path / "one", tmp_path / "two")


def test_a_process_alone_is_told_what_is_missing(tmp_path):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    command = [sys.executable, "-m", "experiments.train", f"out={tmp_path}", "distributed=true"]
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: distributed=True: ")
    assert "JAX_COORDINATOR_ADDRESS" in done.stderr
