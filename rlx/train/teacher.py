"""The teacher of on-policy distillation: a frozen policy with the same tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from jax.sharding import Mesh

from rlx import mesh as meshes
from rlx.config import Config, ModelConfig
from rlx.envs.base import Env
from rlx.errors import InputError
from rlx.models import attention, hf
from rlx.train import start
from rlx.types import Params


class Teacher(NamedTuple):
    model: ModelConfig
    params: Params
    spent: float  # FLOPs of its training and warm start; 0 if unknown


def load(config: Config, env: Env, mesh: Mesh) -> Teacher | None:
    """The policy of `algo.teacher`, if set; a path as in `model.path`. Raises as `resolve`."""
    path = config.algo.teacher
    if not path:
        return None
    source, own = resolve(config, env, mesh)
    with _named(path):
        params, spent = start.load(source, own, mesh, path)
    return Teacher(source.model, params, spent)


def resolve(config: Config, env: Env, mesh: Mesh) -> tuple[Config, Env]:
    """The configuration and the environment of `algo.teacher`.

    Raises InputError if nothing is there, if its vocabulary differs from that of `env`, if its
    context is too short for a prompt and its answer, or if the mesh does not divide it.
    """
    path = config.algo.teacher
    run_options = {name: getattr(config.model, name) for name in hf.RUN}
    model = ModelConfig(**{**run_options, "path": path})
    with _named(path):
        is_run = start.is_run(path)
        theirs = start.of_run(path)["env"] if is_run else replace(config.env, tokenizer="")
        source = start.adopted(replace(config, model=model, env=theirs))
        attention.check(source.model)
        meshes.check(mesh, source.model)
        own = start.make_env(replace(source, model=replace(source.model, context_tokens=0)))
    if start.vocabulary(own.tokenizer) != start.vocabulary(env.tokenizer):
        reason = "its vocabulary differs from the policy's"
        raise InputError("algo.teacher", path, reason, "give a policy with the same tokenizer")
    longest = env.max_prompt_tokens + config.rollout.max_new_tokens
    if 0 < (room := source.model.context_tokens) < longest:
        reason = f"its context is {room} tokens, prompt and answer take up to {longest}"
        raise InputError("algo.teacher", path, reason, "lower rollout.max_new_tokens")
    return source, own


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Errors of the teacher's own path, and of options that do not suit it, name `algo.teacher`."""
    try:
        yield
    except InputError as error:
        key, value, reason, remedy = error.args
        if key in ("mesh.expert", "mesh.tensor", "model.attention"):
            reason = f"{key}={value}: {reason}"
        elif key != "model.path":
            raise
        raise InputError("algo.teacher", path, reason, remedy) from None
