"""Who may import whom, read from the source: the layers of the code are a test."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts): file
    for folder in ("rlx", "experiments", "analysis", "hydra_plugins")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if file.name != "__init__.py"
}
RLX = [name for name in FILES if name.startswith("rlx.")]

# Each layer may import the layers named here. A folder stands for all its modules.
BASE = (
    *("rlx.errors", "rlx.jsonfile", "rlx.problem", "rlx.types", "rlx.config", "rlx.checksum"),
    *("rlx.record", "rlx.objectives", "rlx.envs"),
)
MIDDLE = (*BASE, "rlx.mesh", "rlx.flops", "rlx.processes", "rlx.compilation")
LEARNER = ("rlx.train.recipe", "rlx.train.spec", "rlx.train.batch", "rlx.train.forward")
LOOP = ("rlx.train.clock", "rlx.train.guard", "rlx.train.health", "rlx.train.loop")
TASK = (
    *(*MIDDLE, "rlx.models", "rlx.evaluate", *LEARNER, *LOOP),
    *("rlx.train.state", "rlx.train.step", "rlx.train.start", "rlx.train.recorded"),
)
LAYERS = {
    "rlx.errors": (),
    "rlx.jsonfile": ("rlx.errors",),
    "rlx.problem": (),
    "rlx.types": ("rlx.problem",),
    "rlx.config": ("rlx.errors",),
    "rlx.checksum": (),
    "rlx.record": ("rlx.errors",),
    "rlx.objectives": ("rlx.objectives",),
    "rlx.envs": ("rlx.errors", "rlx.jsonfile", "rlx.problem", "rlx.envs"),
    "rlx.scaling": ("rlx.errors", "rlx.scaling", "rlx.record", "rlx.checksum"),
    "rlx.scaling.runs": ("rlx.errors", "rlx.scaling", "rlx.record", "rlx.config"),
    "rlx.mesh": BASE,
    "rlx.processes": ("rlx.config", "rlx.errors"),
    "rlx.compilation": ("rlx.config", "rlx.errors"),
    "rlx.flops": BASE,
    "rlx.checkpoint": (*BASE, "rlx.processes"),
    "rlx.track": BASE,
    "rlx.models": (*MIDDLE, "rlx.models"),
    "rlx.rollout": (*MIDDLE, "rlx.models", "rlx.rollout"),
    "rlx.train.packing": (),
    "rlx.train.recipe": BASE,
    "rlx.train.spec": (*BASE, "rlx.models", "rlx.train.recipe"),
    "rlx.train.batch": (*BASE, "rlx.mesh", "rlx.train.packing"),
    "rlx.train.forward": (*MIDDLE, "rlx.models", "rlx.train.packing"),
    "rlx.train.state": (*BASE, "rlx.mesh", "rlx.models", "rlx.train.recipe", "rlx.train.spec"),
    "rlx.train.targets": (*BASE, *LEARNER),
    "rlx.train.objective": (*BASE, "rlx.models", "rlx.train.targets", *LEARNER),
    "rlx.train.step": (
        *(*BASE, "rlx.models", *LEARNER),
        *("rlx.train.state", "rlx.train.targets", "rlx.train.objective"),
    ),
    "rlx.train.clock": (),
    "rlx.train.guard": ("rlx.config",),
    "rlx.train.health": ("rlx.config", "rlx.types"),
    "rlx.train.loop": (*MIDDLE, "rlx.checkpoint", *LOOP),
    "rlx.train.warm_start": (
        *(*MIDDLE, "rlx.checkpoint", "rlx.models", *LEARNER, *LOOP, "rlx.train.state"),
    ),
    "rlx.train.start": (
        *(*MIDDLE, "rlx.checkpoint", "rlx.models", "rlx.rollout.scorer"),
        *("rlx.train.recipe", "rlx.train.loop", "rlx.train.warm_start"),
    ),
    "rlx.train.report": (*MIDDLE, "rlx.train.recipe", "rlx.train.spec", "rlx.rollout"),
    "rlx.train.schedule": (*BASE, "rlx.rollout", "rlx.train.clock"),
    "rlx.evaluate": (*MIDDLE, "rlx.models", "rlx.rollout"),
    "rlx.train.recorded": (
        *(*MIDDLE, "rlx.checkpoint", "rlx.track", *LOOP),
        *("rlx.train.start", "rlx.train.report"),
    ),
    "rlx.train.sft": (*TASK, "rlx.rollout"),
    "rlx.train.reward_model": (*TASK, "rlx.train.sft"),
    "rlx.train.teacher": (*MIDDLE, "rlx.models", "rlx.train.start"),
    "rlx.train.rl": (
        *(*TASK, "rlx.rollout", "rlx.train.report", "rlx.train.schedule"),
        "rlx.train.teacher",
    ),
}


def imported(tree: ast.AST) -> set[str]:
    """Dotted names; `from rlx import flops` gives rlx.flops."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            inside = node.module == "rlx" or f"{node.module}.{node.names[0].name}" in FILES
            names |= {f"{node.module}.{a.name}" for a in node.names} if inside else {node.module}
    return names


IMPORTS = {name: imported(ast.parse(file.read_text())) for name, file in FILES.items()}


def packages(name: str) -> set[str]:
    """Top-level packages that a module imports, those of the standard library left out."""
    return {other.split(".")[0] for other in IMPORTS[name]} - set(sys.stdlib_module_names)


def within(name: str, layers) -> bool:
    return any(name == layer or name.startswith(f"{layer}.") for layer in layers)


@pytest.mark.parametrize("name", RLX)
def test_a_module_imports_only_the_layers_below_it(name):
    allowed = LAYERS[max((layer for layer in LAYERS if within(name, [layer])), key=len)]
    ours = {other for other in IMPORTS[name] if other.startswith(("rlx", "experiments"))}
    assert {other for other in ours if not within(other, allowed)} == set()


@pytest.mark.parametrize("folder", ["rlx.rollout", "rlx.models", "rlx.train", "rlx.scaling"])
def test_no_module_imports_itself_by_way_of_others(folder):
    def reached(name, seen=()):
        for other in IMPORTS[name] & set(FILES):
            if other not in seen:
                seen = reached(other, (*seen, other))
        return seen

    modules = [name for name in RLX if within(name, [folder])]
    assert len(modules) > 5
    assert [name for name in modules if name in reached(name)] == []


def test_modules_of_scaling_import_those_above_them_alone():
    """In the table of its docstring, which names every module once."""
    doc = ast.get_docstring(ast.parse((ROOT / "rlx/scaling/__init__.py").read_text())) or ""
    rows = re.findall(r"^    ([\w.]+(?:, [\w.]+)*)  ", doc, re.MULTILINE)
    names = [f"rlx.scaling.{name}" for row in rows for name in row.split(", ")]
    assert sorted(names) == [name for name in RLX if within(name, ["rlx.scaling"])]
    for i, name in enumerate(names):
        ours = {other for other in IMPORTS[name] if within(other, ["rlx.scaling"])}
        assert ours <= set(names[:i]), name


def test_objectives_import_jax_alone():
    modules = [name for name in RLX if within(name, ["rlx.objectives"])]
    assert len(modules) >= 4
    assert set.union(*map(packages, modules)) - {"rlx"} == {"jax"}


WITH_JAX = {
    f"rlx.scaling.{name}" for name in ("model", "arrays", "coordinates", "departure", "bayes")
}


def test_scaling_runs_without_the_trainers_packages():
    """At module level: a method that needs more imports it when it is called."""
    trainers = {"flax", "optax", "orbax", "hydra", "omegaconf"}
    for name in RLX:
        if within(name, ["rlx.scaling"]):
            body = ast.parse(FILES[name].read_text()).body
            top = ast.Module([n for n in body if isinstance(n, ast.Import | ast.ImportFrom)], [])
            jax = set() if name in WITH_JAX else {"jax", "numpyro"}
            assert {other.split(".")[0] for other in imported(top)} & (trainers | jax) == set(), (
                name
            )


def test_a_posterior_is_fitted_without_the_trainers_packages():
    """In a process of its own, down to the answer."""
    code = """
import sys
import numpy as np, pandas as pd, rlx.scaling as sc
C = np.arange(9.0)
frame = pd.DataFrame({"compute": C, "value": 0.2 + 0.4 * C / (1 + C), "trials": 1000})
fit = sc.fit(sc.Evals.from_frame(frame), curve="sigmoid", method="laplace")
fit.summary(), fit.compute_to(0.5)
print(sorted({"flax", "optax", "orbax", "hydra", "omegaconf"} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_hydra_is_known_to_experiments_alone():
    users = [name for name in FILES if packages(name) & {"hydra", "omegaconf"}]
    assert "experiments.train" in users
    assert [name for name in users if not name.startswith(("experiments.", "hydra_plugins."))] == []


def test_nnx_is_known_to_models_alone():
    users = [name for name in RLX if _imports_nnx(FILES[name])]
    assert users and [name for name in users if not within(name, ["rlx.models"])] == []


def _imports_nnx(file: Path) -> bool:
    tree = ast.parse(file.read_text())
    aliases = [a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names]
    return "nnx" in aliases or any(name.startswith("flax.nnx") for name in imported(tree))


def test_environments_do_not_know_jax():
    modules = [name for name in RLX if within(name, ["rlx.envs"])]
    assert len(modules) >= 3
    assert [name for name in modules if packages(name) & {"jax", "flax", "optax"}] == []


def test_the_core_stays_short():
    core = [ROOT / f"rlx/{name}.py" for name in ("types", "models/layers", "models/transformer")]
    core += sorted((ROOT / "rlx/objectives").glob("*.py"))
    core += [ROOT / f"rlx/{name}.py" for name in ("rollout/sampler", "rollout/buffer")]
    learner = ("spec", "batch", "forward", "targets", "objective", "state", "step", "loop")
    core += [ROOT / f"rlx/train/{name}.py" for name in learner]
    lines = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in core}
    assert 1000 < sum(lines.values()) <= 2900, lines
