"""Kernels that repeat and programs that are kept, by what processes compute and leave behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from experiments import targets
from rlx import compilation
from rlx.config import CompileConfig, Config, MeshConfig, PipelineConfig
from rlx.errors import InputError

ROOT = Path(__file__).parents[1]
THREADS = Config(
    pipeline=PipelineConfig(schedule="threads"), mesh=MeshConfig(generators=1)
)  # fmt: skip
FLAG = compilation.FLAGS[0]
SMALL = [
    *("steps=3", "eval.every_steps=1", "pipeline=pipeline_8", "mesh=one", "warm_start.steps=4"),
    *("env.train_prompts=16", "env.heldout_prompts=8"),
    *("rollout.prompts_per_step=4", "rollout.group_size=4"),
]


def kernels(**options) -> Config:
    return Config(compile=CompileConfig(**options))


@pytest.mark.parametrize(
    "config, asked",
    [
        (Config(), "repeatable"),
        (THREADS, "fastest"),
        (replace(THREADS, compile=CompileConfig(kernels="repeatable")), "repeatable"),
        (kernels(kernels="fastest"), "fastest"),
    ],
)
def test_runs_repeat_unless_threads_decide_or_the_user_does(config, asked):
    assert compilation.asked(config) == asked


@pytest.fixture
def process(monkeypatch):
    """A process with these devices and flags, which XLA knew or not."""

    def made(kind="gpu", count=1, flags="", refused=()):
        monkeypatch.setenv("XLA_FLAGS", flags)
        monkeypatch.setattr(compilation, "_refused", list(refused))
        devices = [SimpleNamespace(platform=kind)] * count
        monkeypatch.setattr(jax, "devices", lambda: devices)

    return made


@pytest.mark.parametrize(
    "there, config, repeats, why",
    [
        ({"kind": "cpu", "count": 2}, Config(), True, "kernels of a cpu"),
        ({"kind": "tpu"}, kernels(kernels="fastest"), True, "kernels of a tpu"),
        ({"flags": f"--xla_a=1 {FLAG}"}, Config(), True, "XLA guarantees it"),
        ({"flags": FLAG.replace("true", "1")}, Config(), True, "XLA guarantees it"),
        ({"flags": FLAG.replace("true", "false")}, Config(), False, "JAX had started without"),
        ({"flags": FLAG, "count": 8}, Config(), False, "NCCL"),
        ({"flags": ""}, Config(), False, "JAX had started without"),
        ({"flags": "", "refused": [FLAG]}, Config(), False, "this jaxlib does not know"),
        ({"flags": ""}, kernels(kernels="fastest"), False, "not requested"),
    ],
)
def test_a_manifest_promises_no_more_than_the_platform_keeps(process, there, config, repeats, why):
    process(**there)
    said = compilation.described(config)
    assert said["repeats"] == repeats and said["why"].startswith(why) or why in said["why"]
    assert said["asked"] == compilation.asked(config)
    assert (said["flags"] == [FLAG]) == (
        repeats and "gpu" == there.get("kind", "gpu") or "NCCL" == why
    )


def python(code: str, **environment) -> str:
    """What a fresh process prints, with a plugin for GPUs that finds none."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PREPARED = """
import json, os
from rlx import compilation
from rlx.config import CompileConfig, Config
compilation.FLAGS = {flags}
compilation.prepare(Config(compile=CompileConfig(cache="none")))
import jax, jax.numpy as jnp
print(json.dumps([os.environ["XLA_FLAGS"], compilation._refused, float(jnp.ones(3).sum())]))
"""


def test_flags_are_set_where_a_gpu_may_be_and_never_one_that_xla_would_end_at(tmp_path):
    plugin = tmp_path / "jax_plugins" / "xla_cuda12"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text("def initialize(): pass\n")
    there = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "JAX_PLATFORMS": ""}
    known, unknown = PREPARED.format(flags=(FLAG,)), (FLAG, "--xla_gpu_of_tomorrow=true")
    assert json.loads(python(known, **there)) == [FLAG, [], 3.0]
    said = json.loads(python(PREPARED.format(flags=unknown), **there))
    assert said == ["", [" ".join(unknown)], 3.0]
    assert json.loads(python(known)) == ["", [], 3.0]  # no GPU can be here
    mine = FLAG.replace("true", "false")
    assert json.loads(python(known, **there, XLA_FLAGS=mine)) == [mine, [], 3.0]


COUNTED = """
from rlx import compilation
compilation.use_every_core()
import jax
print(jax.device_count())
"""


@pytest.mark.parametrize(
    "given",
    [
        {"JAX_NUM_CPU_DEVICES": "7"},
        {"XLA_FLAGS": "--xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=7"},
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=7"},
    ],
)
def test_a_number_of_devices_in_the_environment_counts(given):
    assert int(python(COUNTED, **given)) == 7


def test_a_directory_of_programs_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^compile.cache=.*file: cannot be written: .*; choose"):
        compilation.programs(str(tmp_path / "file"))
    with pytest.raises(InputError, match="^compile.cache=: not a directory name"):
        kernels(cache=" ")


def test_auto_is_a_directory_of_this_user_and_processor_if_it_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compilation.programs("auto") is None  # JAX_COMPILATION_CACHE_DIR is set in all tests
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    made = compilation.programs("auto")
    assert made.parent == tmp_path / "rlx" and made.is_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compilation.programs("auto") is None


def test_a_directory_of_programs_forgets_those_used_longest_ago(tmp_path):
    names = ("new-cache", "mid-cache", "old-cache", ".part-a", ".part-b", "mine")
    for age, name in enumerate(names):
        (tmp_path / name).write_bytes(b"x" * 10)
        os.utime(tmp_path / name, (time.time() - 1000 * age,) * 2)
    (tmp_path / "autotune").mkdir()
    compilation._prune(tmp_path, largest=25)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"new-cache", "mid-cache", ".part-a", "mine", "autotune"}


COMPILE = """
import sys, jax, jax.numpy as jnp
from rlx import compilation
from rlx.config import CompileConfig, Config
compilation.prepare(Config(compile=CompileConfig(cache=sys.argv[1])))
for i in range(int(sys.argv[2])):
    f = jax.jit(lambda x: jnp.tanh(x @ x + i).sum() / (i + 1))
    print(i, float(f(jnp.eye(40) * 0.37)), flush=True)
"""


def compiling(directory, count, **how):
    command = [sys.executable, "-W", "error", "-c", COMPILE, str(directory), str(count)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, cwd=ROOT, **how)


def damaged(directory) -> list[str]:
    """Entries that are not whole: JAX packs each with zlib, which knows its own end."""
    bad = []
    for path in Path(directory).glob("*-cache"):
        try:
            zlib.decompress(path.read_bytes())
        except zlib.error:
            bad.append(path.name)
    return bad


def test_an_entry_that_was_cut_short_is_compiled_and_written_again(tmp_path):
    process = compiling(tmp_path, 2)
    first, _ = process.communicate()
    assert process.returncode == 0 and first.count("\n") == 2
    cut = sorted(tmp_path.glob("jit__lambda*-cache"))[0]
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    assert damaged(tmp_path) == [cut.name]
    again = python(
        f"import sys; sys.argv = ['', {str(tmp_path)!r}, '2']\n{COMPILE}", PYTHONWARNINGS="ignore"
    )
    assert again == first and damaged(tmp_path) == []


@pytest.mark.slow
def test_eight_jobs_at_once_and_twenty_kills_leave_no_part_of_a_program(tmp_path):
    reference, _ = compiling(tmp_path / "alone", 30).communicate()
    together = [compiling(tmp_path / "shared", 30) for _ in range(8)]
    said = [job.communicate()[0] for job in together]
    assert [job.returncode for job in together] == [0] * 8 and set(said) == {reference}
    assert damaged(tmp_path / "shared") == []
    killed = 0
    for turn in range(20):
        job = compiling(tmp_path / "killed", 30)
        for _ in range(1 + turn):
            job.stdout.readline()  # it is about to compile, or to write, the next
        time.sleep(0.001 * (turn % 7))
        killed += job.poll() is None
        job.send_signal(signal.SIGKILL)
        job.communicate()
        assert damaged(tmp_path / "killed") == []
    assert killed >= 15
    last = compiling(tmp_path / "killed", 30)
    assert last.communicate()[0] == reference and last.returncode == 0


def trained(out, *words, **environment) -> tuple[bytes, bytes, dict]:
    """(evals, metrics, manifest) of a small run in a process of its own."""
    env = {**os.environ, "XLA_FLAGS": "", **environment}
    command = [sys.executable, "-m", "experiments.train", *SMALL, f"out={out}", *words]
    subprocess.run(command, env=env, check=True, cwd=ROOT, capture_output=True)
    rows = [(out / name).read_bytes() for name in ("evals.jsonl", "metrics.jsonl")]
    return *rows, json.loads((out / "manifest.json").read_text())


def names(directory) -> dict[str, int]:
    """How many programs of each name."""
    found = [re.sub(r"-[0-9a-f]+-cache", "", path.name) for path in directory.glob("*-cache")]
    return {name: found.count(name) for name in found}


@pytest.mark.slow
def test_neither_flags_nor_kept_programs_change_a_bit_on_a_cpu(tmp_path):
    kept = f"compile.cache={tmp_path / 'programs'}"
    *plain, manifest = trained(tmp_path / "plain", "compile.cache=none")
    *cold, _ = trained(tmp_path / "cold", kept)
    *warm, _ = trained(tmp_path / "warm", kept)
    *flagged, said = trained(tmp_path / "flagged", "compile.cache=none", XLA_FLAGS=FLAG)
    assert plain == cold == warm == flagged and b"" not in plain
    assert manifest["kernels"]["repeats"] and manifest["kernels"]["flags"] == []
    assert said["kernels"]["flags"] == [FLAG] and manifest["config_sha"] == said["config_sha"]


@pytest.mark.slow
def test_cells_that_differ_in_numbers_loss_or_advantage_compile_but_the_update(tmp_path):
    kept = f"compile.cache={tmp_path / 'programs'}"
    trained(tmp_path / "a", kept)
    before = names(tmp_path / "programs")
    numbers = ["optim.learning_rate=1e-3", "algo.is_cap=4", "rollout.temperature=0.9", "seed=3"]
    trained(tmp_path / "b", kept, *numbers)
    assert names(tmp_path / "programs") == before
    trained(tmp_path / "c", kept, "algo.loss=gspo", "algo.advantage=prompt_norm")
    assert names(tmp_path / "programs") == before | {"jit__train_step": 2}


@pytest.mark.targets
@pytest.mark.skipif(not targets.installed("h100"), reason="pip install 'rlx[targets]'")
def test_a_gpu_has_a_kernel_that_repeats_for_all_that_a_run_does():
    """XLA refuses, with these flags, a program that it could only run in an order of its own."""
    words = ["model.compute_dtype=bfloat16", "optim.vocab_chunk=8", "rollout.max_new_tokens=4"]
    words += ["model.n_experts=4", "model.experts_per_token=2", "model.d_ff_expert=16"]
    command = [sys.executable, "-m", "experiments.memory", "target=h100", *words]
    env = {**os.environ, "XLA_FLAGS": " ".join(compilation.FLAGS)}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"\n{name} " in done.stdout for name in ("update", "insert", "decode"))
