"""Where a run starts: pretrained weights, the policy of another run, or its own warm start.

`model.path` is a folder in the format of `transformers`, a .gguf file, or a run directory; without
it the model is fresh and warm-started on the environment's own solutions.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlx import jsonfile
from rlx import mesh as meshes
from rlx.checkpoint import load_params, saved
from rlx.config import (
    Config,
    EnvConfig,
    EpisodeConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    WarmStartConfig,
    migrated,
)
from rlx.envs import base, text
from rlx.envs.base import Env, TextTokenizer
from rlx.envs.grading import Graders
from rlx.errors import InputError
from rlx.models import attention, hf, lora, transformer
from rlx.record import RunRecord
from rlx.rollout.scorer import Scorer
from rlx.train import recipe, warm_start
from rlx.train.loop import UNWATCHED, Watch
from rlx.types import Params


def _located(path: str | Path) -> tuple[Path, int]:
    """(run directory, step) of a run or of one of its checkpoints; step 0: the newest."""
    path = Path(path)
    one = path.parent.name == "checkpoints" and path.name.isdigit()
    return (path.parent.parent, int(path.name)) if one else (path, 0)


def is_run(path: str | Path) -> bool:
    return jsonfile.is_file(_located(path)[0] / "manifest.json")


def of_run(path: str | Path) -> dict[str, Any]:
    """The manifest of a run, with the sections below as dataclasses.

    Raises InputError if they are missing.
    """
    directory = _located(path)[0]
    manifest = RunRecord(directory, writes=False).manifest
    kinds = [ModelConfig, EnvConfig, OptimConfig, RolloutConfig, WarmStartConfig]
    made = {"episode": EpisodeConfig()}
    if "episode" in manifest.get("config", {}):  # older runs have none
        kinds.append(EpisodeConfig)
    for section in kinds:
        name = section.section.rstrip(".")
        known = {field.name for field in fields(section)}
        try:
            now = migrated(manifest["config"], manifest.get("migrations", 0))
            now = {k: now[f"{name}.{k}"] for k in known if f"{name}.{k}" in now}
            given = manifest["config"][name] | now
            made[name] = section(**{k: v for k, v in given.items() if k in known})
        except (KeyError, AttributeError, TypeError, InputError) as error:
            reason = f"its config.{name} is not the section of a run ({error})"
            remedy = "give the directory of a run of this project"
            raise InputError(directory / "manifest.json", "", reason, remedy) from None
    return manifest | made


def pinned(config: Config, before: Mapping[str, int]) -> tuple[Config, dict[str, int]]:
    """The configuration with the other runs that it names at one checkpoint each, and their steps.

    before: the steps with which this run began, so that it resumes from the same weights if those
    runs have gone on since. Raises InputError if such a checkpoint is no longer there.
    """
    steps = {}
    for key in ("model.path", "algo.teacher", *["algo.reward_model"] * config.needs_reward_model):
        path = functools.reduce(getattr, key.split("."), config)
        if not path or not is_run(path) or _located(path)[1] or not (there := saved(path)):
            continue
        steps[key] = before.get(key, there[-1])
        if steps[key] not in there:
            reason = f"this run began with its checkpoint {steps[key]}, which is no longer there"
            raise InputError(key, path, reason, "restore it, or begin again with another out=DIR")
        config = _at(config, key, steps[key])
    return config, steps


def _at(config: Config, key: str, step: int) -> Config:
    """With the run that an option names after `step` updates; 0: as named."""
    name, option = key.split(".")
    section = getattr(config, name)
    path = f"{getattr(section, option)}/checkpoints/{step}"
    return replace(config, **{name: replace(section, **{option: path})}) if step else config


def resolve(config: Config) -> Config:
    """The configuration with the architecture and tokenizer of `model.path`.

    Raises InputError if nothing is there, if a field is neither its default nor that of the model
    there, or if an option does not suit the model, which is known only now.
    """
    recipe.check(config.algo)
    config = adopted(config) if config.model.path else config
    attention.check(config.model)
    if not config.model.n_experts:
        of_experts = {"algo.replay_routing": False, "model.router_aux_coef": 0, "mesh.expert": 1}
        for key, off in of_experts.items():
            if functools.reduce(getattr, key.split("."), config) != off:
                config.refuse(key, "the model has no experts", "leave it out")
    return config


def adopted(config: Config) -> Config:
    """The configuration with the architecture and tokenizer of its `model.path`."""
    path = config.model.path
    if not is_run(path):
        tokenizer = config.env.tokenizer or str(hf.locate(path))
        model = hf.resolve(config.model)
    else:
        source = of_run(path)
        tokenizer = config.env.tokenizer or source["env"].tokenizer
        model = hf.adopted(config.model, source["model"])
    return replace(config, model=model, env=replace(config.env, tokenizer=tokenizer))


def check_trained(config: Config) -> None:
    """Raises InputError if what a run or its own warm start trains is bfloat16."""
    own = not config.model.path and config.warm_start.steps
    if config.model.param_dtype != "float32" and (own or not config.optim.lora_rank):
        reason = "updates below 1/256 of a trained parameter round to nothing"
        remedy = "use float32 with model.compute_dtype=bfloat16, or optim.lora_rank and model.path"
        config.refuse("model.param_dtype", reason, remedy)


def make_mesh(config: Config, prompts: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """As rlx.mesh.make_mesh. Raises InputError also if devices cannot share the work equally."""
    mesh = meshes.make_mesh(config.mesh, prompts, devices)
    meshes.check(mesh, config.model)
    generators = meshes.generator_mesh(config.mesh, mesh, devices).shape
    if config.slots % (parts := math.prod(generators[axis] for axis in meshes.RULES["slots"])):
        key = "mesh.generators" if config.mesh.generators else "mesh.data, mesh.fsdp"
        least = math.lcm(parts, config.rollout.group_size)
        remedy = f"use a multiple of {least}, or lower {key}"
        reason = f"{parts} devices cannot share them equally"
        raise InputError("rollout.slots", config.slots, reason, remedy)
    return mesh


def make_env(config: Config) -> Env:
    """The environment, with its built-in vocabulary or the tokenizer `env.tokenizer`."""
    c = config.env
    tokenizer, rows = None, config.model.vocab_size
    if c.tokenizer:
        how = {"system_prompt": c.system_prompt, "prompt_template": c.prompt_template}
        tokenizer = text.load(c.tokenizer, chat=c.chat, rows=rows, **how)
    env = base.make(**arguments(config.env), tokenizer=tokenizer, rows=rows)
    if config.episode.max_turns > 1 and not hasattr(env, "reply"):
        turns, reason = config.episode.max_turns, f"env.name={c.name} never replies"
        raise InputError("episode.max_turns", turns, reason, "set it to 1")
    _check_sizes(config, env)
    return env


def _check_sizes(config: Config, env: Env) -> None:
    """Raises InputError if the model has too few embedding rows, or no room for a sample."""
    model, words = config.model, env.tokenizer.vocab_size
    if model.path and 0 < model.vocab_size < words:
        there = f"has {words} tokens, the model {model.vocab_size} rows"
        raise InputError("env.tokenizer", config.env.tokenizer, there, "use the model's own")
    longest, room = env.max_prompt_tokens, model.context_tokens
    if room and longest + config.rollout.max_new_tokens > room:
        there = f"with prompts of up to {longest} tokens exceeds model.context_tokens={room}"
        remedy = "lower it, or use shorter prompts"
        limit = config.rollout.max_new_tokens
        raise InputError("rollout.max_new_tokens", limit, there, remedy)


def arguments(c: EnvConfig) -> dict[str, Any]:
    """Arguments of rlx.envs.base.make, which determine the problems."""
    sizes = {"train_prompts": c.train_prompts, "heldout_prompts": c.heldout_prompts}
    return {"name": c.name, "seed": c.seed, "kwargs": c.kwargs, **sizes}


def make_graders(c: EnvConfig, env: Env, scorer: Scorer | None = None) -> Graders:
    return Graders(
        env,
        arguments(c),
        timeout_s=c.grade_timeout_s,
        workers=c.grade_workers,
        on_error=c.on_grade_error,
        scorer=scorer,
    )


def vocabulary(tokenizer: TextTokenizer) -> str:
    """Fingerprint of the map from ids to text, ignoring unused trailing rows of the embedding."""
    texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    while not texts[-1]:
        texts.pop()
    return hashlib.sha256(json.dumps([texts, tokenizer.stop_ids]).encode()).hexdigest()[:12]


def load_scorer(config: Config, env: Env, mesh: Mesh) -> Scorer | None:
    """The reward model of `algo.reward_model`, if the run needs one.

    Raises InputError if none is there, or if its tokens differ from the policy's.
    """
    if not config.needs_reward_model:
        return None
    path = config.algo.reward_model
    manifest = RunRecord(_located(path)[0], writes=False).manifest if is_run(path) else {}
    if "vocabulary" not in manifest:
        remedy = "train one with experiments.reward_model, and give its directory"
        raise InputError("algo.reward_model", path, "no reward model there", remedy)
    if manifest["vocabulary"] != vocabulary(env.tokenizer):
        reason = f"its tokens differ from those of env.name={config.env.name} and the policy"
        remedy = "train one with the same env.tokenizer, or the same env"
        raise InputError("algo.reward_model", path, reason, remedy)
    config = replace(config, model=of_run(path)["model"])
    params, spent = _policy_of(path, config, env, mesh, value_head=True)
    on = {mesh, meshes.generator_mesh(config.mesh, mesh)}
    return Scorer(env, config.model, params, config.rollout.max_new_tokens, list(on), spent)


def load(
    config: Config, env: Env, mesh: Mesh, directory: str | Path, watch: Watch = UNWATCHED
) -> tuple[Params, float]:
    """(parameters, FLOPs spent on them). A warm start of this run is kept in `directory`.

    Raises InputError if `model.path` does not fit the configuration, or has NaN or infinity.
    """
    path = config.model.path
    if not path:
        directory = config.warm_start_dir or Path(directory) / "warm_start"
        return warm_start.load_or_make(config, env, directory, watch)
    if is_run(path):
        params, spent = _policy_of(path, config, env, mesh)
    else:
        params, spent = hf.load(path, config.model, mesh), 0.0
    for at, total in jax.tree_util.tree_leaves_with_path(jax.device_get(_sums(params))):
        if not np.isfinite(total):
            reason = f"{jax.tree_util.keystr(at, simple=True, separator='/')} is not finite"
            raise InputError("model.path", path, reason, "give weights without NaN or infinity")
    return params, spent


@jax.jit
def _sums(params: Params) -> Params:
    return jax.tree.map(lambda x: jnp.sum(x, dtype=jnp.float32), params)


def _policy_of(
    path: str, config: Config, env: Env, mesh: Mesh, value_head: bool = False
) -> tuple[Params, float]:
    """The policy of another run and its FLOPs, from a checkpoint, adapters merged."""
    source, (run, step) = of_run(path), _located(path)
    model = replace(config.model, scan_layers=source["model"].scan_layers)
    make = lambda key: transformer.init(key, model, env.tokenizer.vocab_size)  # noqa: E731
    shapes = jax.eval_shape(make, jax.random.key(0))
    base_params, trained = None, shapes
    if source["optim"].lora_rank:
        base_params = _base_of(source, run, config, env, mesh)
        trained = jax.eval_shape(
            lambda p: lora.init(jax.random.key(0), p, source["optim"].lora_rank), shapes
        )
    if value_head:
        value = jax.ShapeDtypeStruct(shapes["final_norm"].shape, "float32")
        trained = {**trained, "value": value}
    layout = meshes.of_params(mesh, trained, lora.logical_axes(trained))
    like = meshes.shapes(trained, layout)
    got = load_params(run, like, step)
    rows = RunRecord(run, writes=False).rows("evals.jsonl")
    spent = [row["compute"] for row in rows if not step or row["step"] <= step]
    flops = source.get("warm_start_flops", 0.0) + (spent[-1] if spent else 0.0)
    params = lora.policy_params(source["optim"], base_params, got)
    return _as_layers(params, config.model.scan_layers, mesh), flops


def _base_of(source: dict, run: Path, config: Config, env: Env, mesh: Mesh) -> Params:
    """The weights that the adapters of a run adapt: those it started from."""
    own = {name: source[name] for name in ("model", "env", "warm_start")}
    before = replace(config, **own, warm_start_dir=source["config"].get("warm_start_dir", ""))
    if before.model.path:
        steps = source.get("sources", {})
        return load(_at(before, "model.path", steps.get("model.path", 0)), env, mesh, run)[0]
    directory = before.warm_start_dir or run / "warm_start"
    if before.warm_start.steps and not warm_start.is_made(before, directory):
        reason = f"the warm start of {run}, which its adapters adapt, is not there"
        remedy = "restore it, or run the command where that run was begun"
        raise InputError("warm_start_dir", directory, reason, remedy)
    return warm_start.load_or_make(before, env, directory)[0]


def _as_layers(params: Params, stacked: bool, mesh: Mesh) -> Params:
    """The parameters in the layout of `scan_layers`, or as a list of layers."""
    if isinstance(params["layers"], dict) == stacked:
        return params
    change = transformer.stack_layers if stacked else transformer.unstack_layers
    made = lambda x: x | {"layers": change(x["layers"])}  # noqa: E731
    shapes = jax.eval_shape(made, params)
    layout = meshes.of_params(mesh, shapes, transformer.logical_axes(shapes))
    return jax.jit(made, out_shardings=layout)(params)
