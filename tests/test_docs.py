"""README and docs say what is there: links, modules, paths, options, commands and worked diffs."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import rlx.scaling as sc
from experiments import cells, memory, options_page, sft, study, train
from experiments.options import read_options
from rlx.config import Config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^([^\n]*)\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- (ci|slow|test command.*|hardware: .+|file: .+) -->")
FOLDERS = ("rlx", "experiments", "analysis", "conf", "tests", "docs")
GROUPS = {folder.name for folder in (ROOT / "conf").iterdir() if folder.is_dir()} - {"hydra"}
KEYS = {f.name for f in fields(Config)}


def fences(page: Path, language: str) -> list[tuple[str, str]]:
    """(line above, text) of every fenced block in that language."""
    return [
        (mark, text) for mark, kind, text in FENCE.findall(page.read_text()) if kind == language
    ]


def blocks(language: str) -> list[tuple[Path, str, str]]:
    return [(page, *block) for page in PAGES for block in fences(page, language)]


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.fixture(params=PAGES, ids=lambda page: page.stem)
def text(request):
    """Of a page, without its diffs, which name what is not there yet."""
    return re.sub(r"```diff\n.*?```", "", request.param.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_relative_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for link in links:
        if not re.match(r"https?:", link):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists() and target.is_relative_to(ROOT), link
            assert not anchor or anchor in anchors(target), link


def test_modules_and_paths_exist(text):
    for name in re.findall(r"python\s-m\s([\w.]+)|`((?:rlx|experiments|analysis)\.\w+)", text):
        first, *rest = "".join(name).strip(".").split(".")
        if first not in ("pytest", "venv", "pip"):
            path = ROOT / first / "/".join(rest)
            assert path.is_dir() or path.with_suffix(".py").exists(), name
    for path in re.findall(rf"(?<![\w/.-])((?:{'|'.join(FOLDERS)})/[\w./-]+)", text):
        assert (ROOT / path.rstrip(".")).exists(), path


def test_every_command_is_marked():
    for page, mark, command in [*blocks("bash"), *blocks("python")]:
        assert MARK.fullmatch(mark), (page.name, command)


def test_options_of_commands_exist():
    """Files of a group, and fields of a configuration."""
    for page, _, command in blocks("bash"):
        for group, value in re.findall(r"(?<![\w.])\+?(\w+)=(\w+)", command):
            if group in GROUPS:
                assert (ROOT / "conf" / group / f"{value}.yaml").exists(), (page.name, group, value)
        for section, name in re.findall(r"(?<![\w./+])([a-z_]+)\.(\w+)=", command):
            if section in KEYS and section != "env":
                kind = next(f.default_factory for f in fields(Config) if f.name == section)
                assert name in {f.name for f in fields(kind)}, (page.name, section, name)


RECORDED = """
python() { printf '%s\\t' "$@" >> read; echo >> read; }
srun() { while [ "${1#-}" != "$1" ]; do shift; done; "$@"; }
python3() { :; }; pip() { :; }; sbatch() { :; }
"""


def commands(block: str, folder: Path) -> list[tuple[str, list[str]]]:
    """(module, words) of every `python -m` of a block, as its shell expands them."""
    subprocess.run(["bash", "-euc", RECORDED + block.replace(".venv/bin/", "")], cwd=folder)
    lines = (folder / "read").read_text().splitlines() if (folder / "read").exists() else []
    return [(words[1], words[2:]) for words in (line.split("\t")[:-1] for line in lines)]


def read_as_the_command_does(module: str, words: list[str]) -> None:
    """Everything that a command makes of its words before it begins. Raises InputError."""
    command = importlib.import_module(module)
    if hasattr(command, "parse"):
        command.parse(words)
    elif hasattr(command, "Options"):
        read_options(command.Options, words)
    elif command is sft:
        with initialize_config_dir(train.CONF, version_base="1.3"):
            train.to_config(compose("sft", ["recipe=none", *words]))
    elif command is study:
        given = dict(map(study.split, words))
        own = {"sweep", "out", "status", "fit", "cell", "budget", *study.OF_BUDGET}
        rest = [word for word in words if study.split(word)[0] not in own]
        assert study.planned(given.get("sweep", "default"), rest)
    elif command is train:
        many = [word for word in words if word != "-m"]
        for cell in cells.split({}, many) if "-m" in words else [many]:
            train.composed([word for word in cell if not word.startswith("out=")])
    elif command is memory:
        train.composed(memory.own_options(words)[1])
    else:  # looks at a policy; its own words have no dot
        assert module.removeprefix("experiments.") in ("evaluate", "sample", "export"), module
        train.composed([word for word in words if "." in word.partition("=")[0]])


BLOCKS = [(page, text) for page, _, text in blocks("bash") if "-m pytest" not in text]


@pytest.mark.parametrize(
    ("page", "block"), BLOCKS, ids=[f"{page.stem}-{i}" for i, (page, _) in enumerate(BLOCKS)]
)
def test_every_command_takes_its_options(page, block, tmp_path):
    """Also those that take long, or hardware: what they are given is read, and nothing begins."""
    for module, words in commands(block, tmp_path):
        if module != "experiments.options_page":
            read_as_the_command_does(module, words)


def test_python_blocks_ask_what_can_be_asked():
    for page, _, source in blocks("python"):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner = {"sc": sc, "fit": sc.ScalingFit, "evals": sc.Evals}.get(node.value.id)
                assert owner is None or hasattr(owner, node.attr), (page.name, node.attr)


def test_continuous_integration_runs_the_test_command():
    """As .ci/run takes it out of the README."""
    (command,) = [text for mark, text in fences(ROOT / "README.md", "bash") if "test com" in mark]
    found = subprocess.run(
        ["sed", "-n", r"/^<!-- test command -->$/,/^```$/p", "README.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert [x for x in found if not x.startswith(("<!--", "```"))] == command.splitlines()
    assert command.endswith("-m pytest\n") and ".[dev]" in command


@pytest.fixture
def tree(tmp_path):
    """The tree as a place to write in: its code by links, its pages as copies."""
    for name in ("rlx", "experiments", "analysis", "conf", "tests", "hydra_plugins"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    return tmp_path


def run(code: str | list[str], cwd: Path) -> str:
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(cwd), "MPLBACKEND": "agg"}
    command = ["bash", "-euc", code] if isinstance(code, str) else code
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


SCRIPTS = [text for _, mark, text in blocks("python") if mark == "<!-- ci -->"]


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
def test_python_blocks_marked_ci_run(script, tree):
    run([sys.executable, "-c", script], tree)


COMMANDS = sorted({text for _, mark, text in blocks("bash") if mark == "<!-- ci -->"})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_marked_ci_run(command, tree):
    run(command.replace(".venv/bin/python", sys.executable), tree)


def test_the_page_of_options_is_current():
    text = (ROOT / "docs" / "options.md").read_text()
    assert text == options_page.page(), "python -m experiments.options_page > docs/options.md"
    assert "`optim.learning_rate` | `0.0002` |" in text and "`algo.is_cap` | `5.0` |" in text
    assert "absolute bound on the importance ratio" in text and "`traces`" in text


USES = """
import jax.numpy as jnp, numpy as np, pathlib
from rlx.config import AlgoConfig
from rlx.envs import base
from rlx.models.hf_config import from_json
from rlx.objectives.advantages import advantages
from rlx.objectives.losses import policy_objective
from rlx.rollout.counted import CountedGenerator
from rlx.scaling.families import FAMILIES, NUMPY
from rlx.train import recipe
import rlx.scaling as sc
from experiments import train
from hydra import compose, initialize_config_dir

with initialize_config_dir(str(pathlib.Path("conf").resolve()), version_base="1.3"):
    named = compose("config", ["env=parity", "algo=tempered"])
    study = compose("config", ["+sweep=my_study"], return_hydra_config=True)
assert (named.env.name, named.algo.loss) == ("tasks/parity.py", "tempered")
assert dict(study.hydra.sweeper.params)["optim.learning_rate"] == "1e-4,2e-4"

recipe.check(AlgoConfig(loss="tempered", advantage="range_norm"))
half, one = jnp.full((1, 2), -0.5), jnp.ones((1, 2))
obj_BT, info = policy_objective("tempered", half, half - 2, one, one, is_cap=2.0)
np.testing.assert_allclose(obj_BT, -1.0)  # exp(2 / 2) is above the cap: 2 * 1 * -0.5
assert info["clipped_BT"].all() and recipe.clips(AlgoConfig(loss="tempered"))
reward_PG = jnp.array([[0.0, 1.0, 2.0, 1.0]])
adv_PG = advantages(reward_PG, jnp.ones(1), kind="range_norm", eps=0.0)
np.testing.assert_allclose(adv_PG, [[-0.5, 0, 0.5, 0]])

slow = FAMILIES["slow"]
at = dict(A=0.8, B=1.5, C_mid=3.0, R0=0.2)
C = np.array([0.0, 1.0, 3.0, 40.0])
x = (C / 3) ** 1.5  # s = 1 - (1 + 3 x)^(-1/2): half at C_mid
np.testing.assert_allclose(slow.at(C, **at), 0.2 + 0.6 * (1 - (1 + 3 * x) ** -0.5))
np.testing.assert_allclose(slow.compute_to(slow.at(C, **at), **at), C, atol=1e-12)

env = base.make("tasks/parity.py", train_prompts=8, heldout_prompts=4, seed=0, kwargs={})
problem = env.train[0]
right = "odd" if problem.prompt.count("1") % 2 else "even"
assert env.grade(problem, right, True) == 1 and env.grade(problem, "x", True) == 0

sizes = dict(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
json = sizes | {"intermediate_size": 8, "rms_norm_eps": 1e-5}
models = [from_json(json | {"model_type": t}, pathlib.Path("c")) for t in ("llama", "my_llama")]
assert models[0] == models[1]

metrics = pathlib.Path("mlruns/a/metrics")
metrics.mkdir(parents=True)
values = [0.1, 0.2, 0.4, 0.5, 0.55]
lines = [f"{17 + i} {value} {10 * i}" for i, value in enumerate(values)]
(metrics / "accuracy").write_text("\\n".join(lines))
frame = sc.Evals.read("mlruns", value="accuracy").frame
assert frame["value"].tolist()[-4:] == values[1:] and frame["compute"].max() == 40
"""


def test_the_worked_diffs_apply_and_do_what_they_say(tmp_path):
    for name in ("rlx", "conf", "experiments", "hydra_plugins"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    diffs = [text for _, text in fences(ROOT / "docs" / "extending.md", "diff")]
    assert len(diffs) == 7
    (tmp_path / "all.diff").write_text("".join(diffs))
    run(["git", "apply", "all.diff"], tmp_path)
    added = set(re.findall(r"^\+\+\+ b/(.+)$", "".join(diffs), re.MULTILINE))
    assert all((tmp_path / file).exists() for file in added)
    (study,) = [text for _, text in fences(ROOT / "docs" / "sweeps.md", "yaml")]
    (tmp_path / "conf" / "sweep" / "my_study.yaml").write_text(study)
    run([sys.executable, "-c", USES], tmp_path)
