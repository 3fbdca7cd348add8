"""Every file of conf/ makes a configuration that can be run; bad input is one line."""

import functools
import pickle
import re
import signal
import sys
from dataclasses import FrozenInstanceError, asdict
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from omegaconf import open_dict

from experiments import train as cli
from rlx.config import Config, config_sha
from rlx.errors import InputError
from rlx.record import RunRecord
from rlx.train.spec import numbers
from rlx.train.start import make_env

CONF = Path(__file__).parents[1] / "conf"
OPTIONS = sorted(
    f"{'+' * (file.parent.name == 'ablation')}{file.parent.name}={file.stem}"
    for file in CONF.glob("*/*.yaml")
    if file.parent.name != "sweep"
)
SWEEPS = sorted(f"+sweep={file.stem}" for file in (CONF / "sweep").glob("*.yaml"))


@pytest.fixture
def hydra():
    GlobalHydra.instance().clear()
    yield
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@functools.cache
def composed(*overrides) -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose("config", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(node)
    with open_dict(node):
        del node["hydra"]
    return cli.to_config(node)


@pytest.mark.parametrize("override", ["seed=0", *OPTIONS, *SWEEPS])
def test_every_option_makes_a_configuration(hydra, override):
    config = composed(override)
    assert isinstance(config, Config)
    with pytest.raises(FrozenInstanceError):
        config.optim.learning_rate = 1.0  # ty: ignore[invalid-assignment]
    assert isinstance(hash((config.model, config.mesh)), int)  # static arguments of jit
    assert re.fullmatch("[0-9a-f]{12}", config_sha(config))
    assert all(type(x) is float for x in numbers(config))
    group, _, option = override.partition("=")
    if group == "algo":
        assert config.recipe == option


def test_every_option_is_another_configuration(hydra):
    """An ablation leaves something out of ScaleRL, the other options are set beside the default."""
    ours, whole = ("algo=scalerl", "pipeline=pipeline_8"), [o for o in OPTIONS if o[0] == "+"]
    defaults = ["algo=cispo", "env=digit_chain", "eval=default", "mesh=auto", "model=tiny"]
    defaults += ["optim=tiny", "pipeline=sync", "+ablation=none"]
    for override in OPTIONS:
        beside = ours if override in whole else ()
        same = config_sha(composed(*beside, override)) == config_sha(composed(*beside))
        assert same == (override in defaults), override
    shas = [config_sha(composed(*ours, override)) for override in whole]
    assert len(set(shas)) == len(shas)


@pytest.mark.parametrize(
    "name, package",
    [
        ("slurm", "hydra_plugins.hydra_submitit_launcher"),
        ("processes", "hydra_plugins.hydra_joblib_launcher"),
        ("ray_cluster", "hydra_plugins.hydra_ray_launcher"),
    ],
)
def test_every_launcher_can_be_made(hydra, name, package):
    """By Hydra, from the package that it extends."""
    if find_spec(package) is None:
        pytest.skip(f"{package} not installed")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose("config", [f"hydra/launcher={name}"], return_hydra_config=True)
    assert isinstance(Plugins.instance()._instantiate(node.hydra.launcher), Launcher)


def test_an_option_reaches_its_field(hydra):
    config = composed("+ablation=dapo_loss", "optim=paper", "pipeline=pipeline_8", "seed=3")
    assert (config.algo.loss, config.algo.clip_high) == ("ppo_clip", 0.26)
    assert config.algo.advantage == "batch_norm"  # from the row that it extends
    assert (config.optim.learning_rate, config.optim.eps) == (5e-7, 1e-15)
    assert (config.optim.warmup_steps, config.optim.weight_decay) == (100, 0.01)
    assert (config.pipeline.kind, config.pipeline.k) == ("pipeline", 8)
    assert cli.placed(config).out == (
        "runs/cispo-ablation_dapo_loss-optim_paper-pipeline_pipeline_8-s3"
    )


def wanting(name: str, kwargs: dict) -> str:
    """What this machine lacks to make an environment; empty if nothing."""
    needs = {"math": "math_verify", "reasoning_gym": "reasoning_gym", "python_tool": "math_verify"}
    if name in needs and find_spec(needs[name]) is None:
        return f"{needs[name]} is not installed"
    if name == "verifiers":
        return "it is told which package of verifiers"
    if name in ("math", "code", "python_tool") and kwargs.get("dataset"):
        return f"{kwargs['dataset']} is on a hub"
    if str(kwargs.get("path", "")).startswith("package:"):
        package = kwargs["path"].removeprefix("package:").split("/")[0]
        return "" if find_spec(package) else f"{package} is not installed"
    tasks = kwargs.get("tasks", {}).values()
    return next(filter(None, (wanting(t["env"], t["kwargs"]) for t in tasks)), "")


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.startswith("env=")])
def test_every_environment_can_be_made(hydra, monkeypatch, option):
    monkeypatch.chdir(CONF.parent)
    config = composed(option)
    if lacking := wanting(config.env.name, config.env.kwargs):
        pytest.skip(f"{option}: {lacking}")
    env = make_env(config)
    assert len(env.train) == config.env.train_prompts
    assert len(env.heldout) == config.env.heldout_prompts


@pytest.fixture
def command(hydra, monkeypatch, tmp_path, capfd):
    """command(*words) -> (exit code, stderr) of experiments.train, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # main sets it; this puts it back
    monkeypatch.setattr(cli, "refused", [])
    handler = signal.getsignal(signal.SIGTERM)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["train", *words])
        return cli.main(), capfd.readouterr().err

    yield run
    signal.signal(signal.SIGTERM, handler)


BAD = [
    ("rollout.group_sise=4", r"rollout.group_sise=4: unknown key; .*"),
    ("stepz=4", r"stepz=4: unknown key; .*"),
    ("+stepz=4", r"stepz.*: unknown key; .*"),
    ("algo=scalerll", r"algo=scalerll: no such choice; use one of .*dapo, .*grpo, .*"),
    ("algo.loss=pppo", r"algo.loss=pppo: unknown name; use one of reinforce, ppo_clip, .*"),
    ("steps=many", r"steps=many: .*; give a value of that type"),
    ("optim.learning_rate=fast", r"optim.learning_rate=fast: .*; give a value of that type"),
    ("optim.learning_rate=-1", r"optim.learning_rate=-1.0: must be positive; .*"),
    ("algo.is_cap=0", r"algo.is_cap=0.0: must be positive; give a value above 0"),
    ("algo.clip_low=1.5", r"algo.clip_low=1.5: outside \[0, 1\); .*"),
    ("rollout.prompts_per_step=7", r"rollout.prompts_per_step=7: not divisible by .*; .*"),
    ("mesh.fsdp=3", r"rollout.prompts_per_step=16: not divisible by mesh.data \* mesh.fsdp .*; .*"),
    (
        "model.context_tokens=12",
        r"rollout.max_new_tokens=9: with prompts of up to \d+ tokens exceeds "
        "model.context_tokens=12; lower it, or use shorter prompts",
    ),
    ("rollout.slots=7", r"rollout.slots=7: not a positive multiple of rollout.group_size=16; .*"),
    (
        "mesh.generators=3",
        r"rollout.slots=256: 3 devices cannot share them equally; use a multiple of 48, or lower "
        "mesh.generators",
    ),
    (
        "mesh.generators=8",
        r"mesh.generators=8: a process has 8 devices, and the learner needs one of them; use at "
        "most 7",
    ),
    ("mesh.tensor=8", r"mesh.tensor=8: does not divide model.n_heads=4; every device holds .*"),
    ("mesh.tensor=4 model.d_ff=90", r"mesh.tensor=4: does not divide model.d_ff=90; .*"),
    (
        "mesh.expert=2 mesh.tensor=2 model.n_experts=2 model.d_ff_expert=5",
        r"mesh.tensor=2: does not divide model.d_ff_expert=5; .*",
    ),
    (
        "mesh.expert=2 mesh.tensor=2 model.n_experts=2 model.d_ff_expert=4 model.d_ff_shared=6",
        r"mesh.tensor=2: times mesh.expert=2 does not divide model.d_ff_shared=6; .*",
    ),
    ("mesh.expert=2", r"mesh.expert=2: the model has no experts; leave it out"),
    ("model.router_aux_coef=0.1", r"model.router_aux_coef=0.1: the model has no experts; leave .*"),
    (
        "model.param_dtype=bfloat16 model.compute_dtype=bfloat16",
        r"model.param_dtype=bfloat16: updates below 1/256 of a trained parameter round to nothing; "
        "use float32 with model.compute_dtype=bfloat16, or optim.lora_rank and model.path",
    ),
    (
        "model.param_dtype=bfloat16 optim.lora_rank=2",  # its warm start trains them all
        r"model.param_dtype=bfloat16: updates below 1/256 of a trained parameter round .*",
    ),
    (
        "model.attention=splash model.head_dim=64",
        r"model.attention=splash: it computes in bfloat16, not in model.compute_dtype=float32; "
        "use auto or xla",
    ),
    (
        "model.attention=cudnn model.compute_dtype=bfloat16 model.sliding_window=4",
        r"model.attention=cudnn: it attends to all tokens, not within model.sliding_window=4; .*",
    ),
    (
        "model.attention=cudnn model.compute_dtype=bfloat16 model.head_dim=20",
        r"model.attention=cudnn: it has no model.head_dim=20; .*",
    ),
    ("optim.learning_rate=null", r"optim.learning_rate=null: .* not Optional; give a value .*"),
    ("algo.kl=[k2,k3]", r"algo.kl=\[k2,k3\]: Cannot convert 'list' to string.*; give a value .*"),
    (
        "model.path=runs/algo=grpo",
        r"model.path=runs/algo=grpo: cannot be parsed \(mismatched input '='.*\); quote the value, "
        r"\"model.path='runs/algo=grpo'\"",
    ),
    ("algo.loss=cispo,gspo", r"algo.loss=cispo,gspo: several values for one run; -m makes .*"),
    ("algo=null", r"command=.*algo=null: Config group override must be a string.*; change .*"),
    *(
        (f"{key}={seed}", rf"{key}={seed}: {reason}; use .*")
        for key in ("seed", "env.seed", "eval.seed", "warm_start.seed")
        for seed, reason in {-1: "negative", 2**32: "more than 32 bits can hold"}.items()
    ),
    ("recipe=../../x", r"recipe=../../x: cannot be part of a directory name; use letters, .*"),
    ("study=a/b", r"study=a/b: cannot be part of a directory name; use letters, .*"),
    ("out=", r"out=: not a directory name; give one, or leave it out"),
    ("out=/dev/null/x", r"out=/dev/null/x: cannot be created: Not a directory; choose another .*"),
    ("pipeline.k=-1", r"pipeline.k=-1: negative; .*"),
    ("pipeline.k=3", r"pipeline.k=3: pipeline.kind=sync has no staleness; .*"),
    ("env.kwargs.lo=0", r"env.kwargs.lo=0: no digits to sum; use 1 or more"),
    ("+env.kwargs.low=3", r"env.kwargs.low=3: unknown argument; digit_chain takes lo, hi, base"),
    ("env.name=chess", r"env.name=chess: unknown name; use one of digit_chain, .*"),
    ("env.name=no.py", r"env.name=no.py: no such file; give the path of a Python file"),
    (
        "env.chat=true",
        r"env.chat=True: without a tokenizer it has no effect; set env.tokenizer or model.path too",
    ),
    ("env.tokenizer=no", r"env.tokenizer=no: no tokenizer there; give a folder .*"),
    ("env.grade_timeout_s=-1", r"env.grade_timeout_s=-1.0: negative; 0 sets no limit"),
    (
        "env=math env.kwargs.dataset=null env.kwargs.path=no.jsonl",
        r"env.kwargs.path=no.jsonl: no such file; give a .jsonl or .parquet file",
    ),
    (
        "env=reasoning_gym env.kwargs.dataset=chain_sun",
        r"env.kwargs.dataset=chain_sun: unknown dataset; try chain_sum.*",
    ),
    (
        "mesh.data=16 optim.microbatches=1",
        r"mesh=16x1x1x1: needs 16 devices, the learner has 8; shrink mesh.data, .*",
    ),
]


@pytest.mark.parametrize("words, line", BAD, ids=[words for words, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(command, words, line):
    code, error = command(*([] if words.startswith("out=") else ["out=run"]), *words.split())
    assert code == 2 and re.fullmatch(f"error: {line}\n", error), error


@pytest.mark.parametrize(
    "rows, line",
    [
        ("", "it holds no rows; give another file"),
        (
            '{"question": "1+1", "answer": "2"}\n{"quest',
            r"line 2 is not JSON \(.*\); fix that line",
        ),
        ('{"question": "1+1"}', r"line 1 has no answer or solution \(fields: question\); .*"),
    ],
)
def test_a_prompt_file_is_refused_by_its_line(command, tmp_path, rows, line):
    (tmp_path / "q.jsonl").write_text(rows)
    code, error = command("env=math", "env.kwargs.dataset=null", "env.kwargs.path=q.jsonl")
    assert code == 2 and re.fullmatch(f"error: env.kwargs.path=q.jsonl: {line}\n", error), error


def test_a_directory_that_is_taken_is_refused(command, tmp_path):
    """By a process that writes it now, or by a run of another configuration."""
    record = RunRecord(tmp_path / "run")
    lock = record.lock()
    code, error = command("out=run")
    line = (
        r"error: out=run: process \d+ on .* is writing this run; wait until it ends, or choose .*\n"
    )
    assert code == 2 and re.fullmatch(line, error), error
    lock.close()
    other = asdict(composed("algo.loss=gspo", "steps=100"))
    record.update_manifest(config=other, status="interrupted")
    code, error = command("out=run")
    line = (
        "error: out=run: holds a run of another configuration: algo.loss=gspo, not cispo; "
        "steps=100, not 200; choose another directory\n"
    )
    assert (code, error) == (2, line)


def test_the_readmes_file_of_questions_needs_no_other_word(hydra):
    for task in ("math", "code"):
        assert composed(f"env={task}", "env.kwargs.path=FILE").env.kwargs["dataset"] is None
        assert composed(f"env={task}").env.kwargs["dataset"]


def test_a_bug_is_a_traceback(command, monkeypatch):
    """A ValueError that nobody raised for bad input."""
    monkeypatch.setattr("rlx.train.rl.train", lambda *_, **__: int("bug"))
    with pytest.raises(ValueError, match="invalid literal"):
        command("out=run")


HANGS_RAISES_NAN = """
import time

def problems(seed):
    yield from ((f"{n}=", str(n)) for n in range(10, 90))

def grade(answer, completion):
    kind = sum(map(ord, completion)) % 4
    if kind == 0: time.sleep(60)
    if kind == 1: raise RuntimeError("no")
    return float("nan") if kind == 2 else 1.0
"""


def test_a_reward_that_hangs_raises_or_is_nan_is_counted_or_stops_the_run(command, tmp_path):
    (tmp_path / "task.py").write_text(HANGS_RAISES_NAN)
    words = [
        "env=own", "env.name=task.py", "env.grade_timeout_s=0.2", "env.train_prompts=8",
        "env.heldout_prompts=4", "eval.samples_per_prompt=1", "steps=4", "warm_start.steps=0",
        "rollout.prompts_per_step=2", "rollout.group_size=4", "mesh=one", "model.n_layers=1",
    ]  # fmt: skip
    assert command("out=on", *words)[0] == 0
    run = RunRecord(tmp_path / "on")
    assert run.manifest["status"] == "done" and len(run.rows("metrics.jsonl")) == 4
    last = run.rows("metrics.jsonl")[-1]
    assert last["grading/timeouts"] > 0 < last["grading/errors"]
    code, error = command("out=off", "env.on_grade_error=stop", *words)
    line = (
        r"error: env.on_grade_error=stop: task.py has no score for an answer to problem \d+ "
        r"\('\d+='\): (timeout|error: \w+).*; fix the grader, or set env.on_grade_error=zero\n"
    )
    assert code == 2 and re.fullmatch(line, error), error
    assert RunRecord(tmp_path / "off").manifest["status"] == "failed"


def test_an_error_survives_the_way_between_processes():
    error = InputError("steps", 0, "must be positive", "give a value above 0")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "steps=0: must be positive; give a value above 0"


def test_bad_input_leaves_no_run_behind(command, tmp_path):
    assert command("out=run", "env.kwargs.lo=0")[0] == 2
    assert not (tmp_path / "run" / "manifest.json").exists()
