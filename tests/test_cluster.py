"""Sweeps under launchers: processes of this machine, Ray, and a real Slurm of one node.

Whatever runs a cell, and however often it is preempted, its curve is the one of the same cell run
undisturbed, bit for bit.
"""

import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
import slurm
import yaml

from experiments import study
from rlx.record import RunRecord, read_rows

ROOT = Path(__file__).parents[1]
LOGS = ("evals.jsonl", "metrics.jsonl")
SMALL = (
    "eval.every_steps=50 pipeline=pipeline_8 rollout.slots=16 rollout.decode_chunk_tokens=2 "
    "model.d_model=16 model.n_layers=1 model.d_ff=24 model.head_dim=8 rollout.prompts_per_step=2 "
    "rollout.group_size=4 optim.microbatches=1 env.train_prompts=16 env.heldout_prompts=8 "
    "warm_start.steps=8 warm_start.batch_size=8 mesh=one"
).split()
SWEEP = ["+ablation=none", "rollout.max_new_tokens=9", "seed=0,1"]
LONG = 1500  # updates; a second makes about a hundred of them
SHORT_CELLS, CELLS = (
    study.cells("default", [*SWEEP, f"steps={steps}", *SMALL]) for steps in (8, LONG)
)


def start(out, *words, steps=8, environment=os.environ):
    """A sweep of two cells under way, in a process of its own."""
    command = [sys.executable, "-m", "experiments.train", "-m", "+sweep=default"]
    command += [*SWEEP, f"steps={steps}", f"out={out}"]
    return subprocess.Popen(
        [*command, *SMALL, *words], cwd=ROOT, env={**environment, "XLA_FLAGS": ""},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process, code=0, timeout=400):
    """What it said on stderr."""
    try:
        errors = process.communicate(timeout=timeout)[1]
    finally:
        process.kill()
    assert process.returncode == code, errors
    return errors


def same_curves(a, b, cells):
    for cell in cells:
        assert RunRecord(b / "runs" / cell).manifest["status"] == "done"
        for name in LOGS:
            logs = [(path / "runs" / cell / name).read_bytes() for path in (a, b)]
            assert logs[0] == logs[1] != b"", (cell, name)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Two cells of 8 updates, one after the other in one process."""
    out = tmp_path_factory.mktemp("short")
    finish(start(out))
    return out


# Processes of this machine, by themselves or under Ray

joblib = pytest.mark.skipif(
    find_spec("hydra_plugins.hydra_joblib_launcher") is None,
    reason="hydra-joblib-launcher not installed: pip install -e '.[cluster]'",
)
ray = pytest.mark.skipif(
    find_spec("hydra_plugins.hydra_ray_launcher") is None,
    reason="hydra-ray-launcher not installed: pip install -e '.[ray]', without constraints.txt",
)


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("processes", marks=joblib),
        pytest.param("ray_cluster", marks=[ray, pytest.mark.slow]),
    ],
)
def test_cells_in_parallel_processes(short, tmp_path, launcher):
    """They need the same warm start at the same time, and agree on one."""
    finish(start(tmp_path, f"hydra/launcher={launcher}"))
    same_curves(short, tmp_path, SHORT_CELLS)
    (made,) = (tmp_path / "warm_start").iterdir()
    assert not made.name.startswith(".")


@joblib
def test_a_cell_that_is_refused_in_its_process_is_one_line(tmp_path):
    """No model is there, which its configuration cannot know."""
    words = ["hydra/launcher=processes", "model.path=no_model"]
    errors = finish(start(tmp_path, *words), code=2)
    assert [said for said in errors.splitlines() if said.startswith("error: model.path=no_model: ")]


def run_study(out, *words):
    """experiments.study on two cells in parallel processes; exit status and stderr."""
    command = [sys.executable, "-m", "experiments.study", f"out={out}", "fit=point", *words]
    run = subprocess.run(
        [*command, *SWEEP, "steps=200", *SMALL], cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    return run.returncode, run.stderr


@joblib
@pytest.mark.slow
def test_a_study_does_only_what_is_missing(tmp_path):
    """A file stands where a cell wants its checkpoints: it fails, the other goes on."""
    both = study.cells("default", [*SWEEP, "steps=200", *SMALL])
    obstacle = tmp_path / "runs" / both[1] / "checkpoints"
    obstacle.parent.mkdir(parents=True)
    obstacle.touch()
    code, errors = run_study(tmp_path, "hydra/launcher=processes")
    assert code == 1
    line = f"error: {tmp_path}/runs/{both[1]}: NotADirectoryError: "
    assert [said for said in errors.splitlines() if said.startswith(line)], errors
    assert "Traceback" in errors  # of the process in which it happened
    obstacle.unlink()
    table = study.status(tmp_path).set_index("run")
    assert table["status"].to_dict() == dict(zip(both, ("done", "failed"), strict=True))
    assert table.loc[both[1], "note"].startswith("NotADirectoryError: ")
    done = tmp_path / "runs" / both[0] / "evals.jsonl"
    before = done.stat().st_mtime_ns
    code, errors = run_study(tmp_path, "hydra/launcher=processes")
    assert code == 0, errors
    assert done.stat().st_mtime_ns == before and (tmp_path / "fits.csv").exists()
    assert list(study.status(tmp_path)["status"]) == ["done", "done"]


# Slurm

SLURM = ["hydra/launcher=slurm", "hydra.launcher.mem_gb=1", "hydra.launcher.cpus_per_task=1"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := slurm.missing():
        pytest.skip(reason)
    if find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        pytest.skip("hydra-submitit-launcher not installed: pip install -e '.[cluster]'")
    with slurm.one_node(tmp_path_factory.mktemp("slurm")) as environment:

        def call(*command):
            command = [str(word) for word in command]
            return subprocess.check_output(command, env=environment, text=True)

        call.environment = environment
        yield call


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Two cells, one after the other, undisturbed."""
    out = tmp_path_factory.mktemp("long")
    finish(start(out, steps=LONG))
    return out


def wait_for_updates(out, cells, more=10):
    """Until each cell has made so many updates from now on."""
    files = [out / "runs" / cell / "metrics.jsonl" for cell in cells]
    aims = [len(read_rows(file)) + more for file in files]
    for _ in range(1200):
        if all(len(read_rows(file)) >= aim for file, aim in zip(files, aims, strict=True)):
            return
        time.sleep(0.1)
    raise TimeoutError(f"{out}: no updates")


def jobs_of(process):
    """Number of the job array that a launcher says it has submitted."""
    return re.match(r"Slurm: jobs (\d+)_0 to ", process.stdout.readline())[1]


def restarts(cluster, job):
    return int(re.search(r"Restarts=(\d+)", cluster("scontrol", "show", "job", job))[1])


@pytest.mark.slow
def test_preempted_jobs_go_on_to_the_same_curve(cluster, long, tmp_path):
    """One is told that its time is nearly over, then both make room for a more urgent job."""
    process = start(tmp_path, *SLURM, steps=LONG, environment=cluster.environment)
    array = jobs_of(process)
    wait_for_updates(tmp_path, CELLS)
    cluster("scancel", "--signal=USR2", f"{array}_0")
    wait_for_updates(tmp_path, CELLS[:1])
    urgent = ["--partition=high", "--cpus-per-task=2", "--mem=100M", "--output=/dev/null"]
    cluster("sbatch", "--wait", *urgent, "--wrap=sleep 1")
    finish(process)
    same_curves(long, tmp_path, CELLS)
    assert restarts(cluster, f"{array}_0") + restarts(cluster, f"{array}_1") >= 2
    assert not list(tmp_path.glob("runs/*/restarts.jsonl"))  # nothing was done twice


@pytest.mark.slow
def test_a_job_that_dies_hard_is_reported_and_made_good_by_the_same_command(
    cluster, long, tmp_path
):
    sweep = {"steps": LONG, "environment": cluster.environment}
    process = start(tmp_path, *SLURM, **sweep)
    array = jobs_of(process)
    wait_for_updates(tmp_path, CELLS)
    assert list(study.status(tmp_path)["status"]) == ["running", "running"]
    owner = (tmp_path / "runs" / CELLS[1] / ".lock").read_text()
    os.kill(int(owner.split()[1]), signal.SIGKILL)
    errors = finish(process, code=1)
    said = f"error: job {array}_1 ended without a result (Slurm: failed); see {tmp_path}"
    assert errors.splitlines()[-1].startswith(said)
    assert list(study.status(tmp_path)["status"]) == ["done", "stopped"]
    logs = [tmp_path / "runs" / CELLS[0] / name for name in LOGS]
    before = [file.stat().st_mtime_ns for file in logs]
    finish(start(tmp_path, *SLURM, **sweep))
    assert [file.stat().st_mtime_ns for file in logs] == before
    same_curves(long, tmp_path, CELLS)


@pytest.mark.slow
def test_a_sweep_beyond_the_limit_of_an_array_is_several(cluster, short, tmp_path):
    words = [*SLURM, "hydra.launcher.max_array_size=1"]
    process = start(tmp_path, *words, environment=cluster.environment)
    line = process.stdout.readline()
    first, last = re.match(r"Slurm: jobs (\d+)(?:_0)? to (\d+)", line).groups()
    finish(process)
    assert first != last
    same_curves(short, tmp_path, SHORT_CELLS)


@pytest.mark.slow
def test_a_cancelled_job_is_not_requeued(cluster, tmp_path):
    """It writes a checkpoint all the same."""
    process = start(tmp_path, *SLURM, steps=LONG, environment=cluster.environment)
    array = jobs_of(process)
    wait_for_updates(tmp_path, CELLS)
    cluster("scancel", array)
    assert "(Slurm: cancelled" in finish(process, code=1)
    assert cluster("squeue", "--noheader") == ""
    for cell in CELLS:
        run = tmp_path / "runs" / cell
        assert RunRecord(run).manifest["status"] == "interrupted"
        saved = max(int(path.name) for path in (run / "checkpoints").iterdir())
        assert saved == len(read_rows(run / "metrics.jsonl"))


@pytest.mark.slow
def test_the_plain_job_array(cluster, long, tmp_path):
    """experiments/cells.sbatch, of which one task is told that its time is nearly over."""
    words = f"steps={LONG} rollout.max_new_tokens=9 {' '.join(SMALL)}"
    settings = {"PYTHON": sys.executable, "STUDY": tmp_path, "OVERRIDES": words, "XLA_FLAGS": ""}
    exported = ",".join(["ALL", *(f"{key}={value}" for key, value in settings.items())])
    options = ["--array=0-1", "--mem=1G", "--cpus-per-task=1", f"--output={tmp_path}/%a.log"]
    array = cluster(
        "sbatch", "--parsable", *options, f"--export={exported}", f"--chdir={ROOT}",
        ROOT / "experiments" / "cells.sbatch",
    ).strip()  # fmt: skip
    cells = ["algo-cispo-seed-0", "algo-cispo-seed-1"]
    wait_for_updates(tmp_path, cells)
    cluster("scancel", "--signal=USR1", "--batch", f"{array}_0")
    while cluster("squeue", "--noheader"):
        time.sleep(1)
    assert (restarts(cluster, f"{array}_0"), restarts(cluster, f"{array}_1")) == (1, 0)
    for cell, other in zip(cells, CELLS, strict=True):
        for name in LOGS:
            logs = [tmp_path / "runs" / cell / name, long / "runs" / other / name]
            assert logs[0].read_bytes() == logs[1].read_bytes() != b"", (cell, name)
        assert not (tmp_path / "runs" / cell / "restarts.jsonl").exists()


# Schedulers that start a job per cell. Keys and types as published on 2026-11-26: SkyPilot's
# sky/utils/schemas.py, and Kubernetes' reference of batch/v1 Job and v1 PodSpec.

TEXT, WHOLE, MAP = {"type": "string"}, {"type": "integer"}, {"type": "object"}


def closed(required=(), **properties):
    """A schema of an object with these keys alone."""
    return {**MAP, "additionalProperties": False, "required": [*required], "properties": properties}


def listed(items):
    return {"type": "array", "items": items}


SKY = closed(
    name=TEXT, workdir=TEXT, num_nodes=WHOLE, file_mounts=MAP, setup=TEXT, run=TEXT, secrets=MAP,
    envs={**MAP, "additionalProperties": {"type": ["string", "null"]}},
    volumes={**MAP, "additionalProperties": TEXT},
    resources=closed(
        infra=TEXT, accelerators=TEXT, cpus=TEXT, memory=TEXT, use_spot={"type": "boolean"},
        disk_size=WHOLE, image_id=TEXT,
        job_recovery=closed(
            strategy=TEXT, max_restarts_on_errors=WHOLE, recover_on_exit_codes=listed(WHOLE)
        ),
    ),
)  # fmt: skip
CONTAINER = closed(
    ["name", "image"], name=TEXT, image=TEXT, workingDir=TEXT, command=listed(TEXT),
    args=listed(TEXT), env=listed(MAP), resources=closed(requests=MAP, limits=MAP),
    volumeMounts=listed(closed(["name", "mountPath"], name=TEXT, mountPath=TEXT)),
)  # fmt: skip
POD = closed(
    ["containers", "restartPolicy"], restartPolicy={"enum": ["Never", "OnFailure"]},
    terminationGracePeriodSeconds=WHOLE, containers=listed(CONTAINER), nodeSelector=MAP,
    tolerations=listed(MAP),
    volumes=listed(closed(["name"], name=TEXT, persistentVolumeClaim=closed(claimName=TEXT))),
)  # fmt: skip
FAILURES = closed(
    ["action"], action={"enum": ["Ignore", "FailIndex", "FailJob", "Count"]},
    onPodConditions=listed(closed(["type"], type=TEXT, status=TEXT)),
    onExitCodes=closed(
        ["operator", "values"], operator={"enum": ["In", "NotIn"]}, values=listed(WHOLE)
    ),
)  # fmt: skip
JOB = closed(
    ["apiVersion", "kind", "metadata", "spec"], apiVersion={"const": "batch/v1"},
    kind={"const": "Job"}, metadata=closed(["name"], name=TEXT, labels=MAP),
    spec=closed(
        ["template"], completionMode={"enum": ["Indexed", "NonIndexed"]}, completions=WHOLE,
        parallelism=WHOLE, backoffLimit=WHOLE, backoffLimitPerIndex=WHOLE, maxFailedIndexes=WHOLE,
        podFailurePolicy=closed(["rules"], rules=listed(FAILURES)),
        template=closed(["spec"], metadata=MAP, spec=POD),
    ),
)  # fmt: skip


@pytest.mark.parametrize("name, schema", [("sky", SKY), ("k8s", JOB)])
def test_a_schedulers_file_is_of_its_schema_and_runs_a_cell(name, schema):
    node = yaml.safe_load((ROOT / "experiments" / f"cells.{name}.yaml").read_text())
    jsonschema.validate(node, schema)
    if name == "sky":
        said = node["run"]
        assert set(re.findall(r"\$(\w+)", said)) == set(node["envs"])
        cells, sweep = 0, node["envs"]["SWEEP"]
    else:
        (said,) = node["spec"]["template"]["spec"]["containers"][0]["args"]
        cells, sweep = node["spec"]["completions"], "loo"
    assert cells in (0, len(study.cells(sweep, [])))
    words = said.split("experiments.study ")[1].split()
    assert [word.split("=")[0] for word in words] == ["sweep", "cell", "out"]
