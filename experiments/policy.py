"""A policy from KEY=VALUE words, for the commands evaluate, sample and export."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, make_dataclass
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from experiments import train
from experiments.options import own_options
from rlx.config import Config
from rlx.errors import InputError

SECTIONS = ("env", "rollout", "episode")  # those of the run
OF_ALGO = ("reward_model", "length_control")


class Policy(NamedTuple):
    config: Config
    params: Any
    graders: Any  # including the environment
    mesh: Any

    def sampled(self) -> tuple[Any, Any]:
        """(a generator, the weights to sample with)."""
        from rlx.rollout.engine import make_generator
        from rlx.rollout.generator import Weights, published

        head_dtype = self.config.rollout.head_dtype
        params = published(self.params, self.config.model, head_dtype, self.mesh, self.mesh)
        return make_generator(self.config, self.graders, self.mesh), Weights(params, 0)


def composed(words: Sequence[str]) -> Config:
    """The configuration that `experiments.train` would run with these words.

    If `model.path` is a run, words change its sections `env`, `rollout` and `episode` in place of
    the defaults; with `env=NAME` or `env.name=NAME`, another task, nothing of its `env` is left.
    Its `algo.reward_model`, which may be the judge, its `algo.length_control`, and how it computes
    its model, such as `model.compute_dtype`, are used unless a word names another.
    """
    node = train.node_of(words)
    if not node.model.path:
        raise InputError("model.path", "", "no policy given", "give a run, a folder or a file")
    from rlx.models import hf
    from rlx.train import start

    if start.is_run(node.model.path):
        run = start.of_run(node.model.path)
        overrides = OverridesParser.create().parse_overrides(list(words))
        keys = [override.key_or_group for override in overrides]
        for name in SECTIONS:
            if name not in keys and f"{name}.name" not in keys:
                node[name] = changed(run[name], overrides)
        for name in OF_ALGO:
            if f"algo.{name}" not in keys and name in run["config"]["algo"]:
                node.algo[name] = run["config"]["algo"][name]
        for name in hf.RUN:
            if name != "path" and not {"model", f"model.{name}"} & set(keys):
                node.model[name] = getattr(run["model"], name)
    return start.resolve(train.to_config(node))


def changed(section: Any, overrides: Sequence[Override]) -> DictConfig:
    """A section of a run, with the words among `overrides` that name its options."""
    node = OmegaConf.merge(train.schema(type(section)), asdict(section))
    for override in overrides:
        key = override.key_or_group.removeprefix(section.section)
        if key == override.key_or_group:
            continue
        if override.is_delete():
            parent, _, last = key.rpartition(".")
            OmegaConf.select(node, parent).pop(last, None)
        else:
            OmegaConf.update(node, key, override.value())
    return node


def main(look: Callable[[Policy, dict[str, Any]], None], own: dict[str, Any]) -> int:
    """Exit status of `look(policy, options)`; `own`: its options with their defaults."""
    kind = make_dataclass("Own", [(name, type(value), value) for name, value in own.items()])
    try:
        options, rest = own_options(kind, sys.argv[1:])
        config = composed(rest)
        from rlx import compilation

        compilation.prepare(config)
        from rlx.train import start

        env = start.make_env(config)
        mesh = start.make_mesh(config, config.rollout.prompts_per_step)
        params, _ = start.load(config, env, mesh, config.out)
        scorer = start.load_scorer(config, env, mesh)
        with closing(start.make_graders(config.env, env, scorer)) as graders:
            look(Policy(config, params, graders, mesh), asdict(options))
    except train.BAD_INPUT as error:
        print(f"error: {train.as_input_error(error)}", file=sys.stderr)
        return 2
    return 0
