"""A policy from KEY=VALUE words, for the commands evaluate, sample and export."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, make_dataclass, replace
from typing import Any, NamedTuple

from experiments import train
from experiments.options import own_options
from rlx.config import Config
from rlx.errors import InputError

SECTIONS = ("env", "rollout", "episode")  # taken from the run, unless a word overrides them


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

    If `model.path` is a run, its sections `env`, `rollout` and `episode` are used, unless a word
    names them, and so is its `algo.reward_model`, which may be the judge.
    """
    config = train.composed(words)
    if not config.model.path:
        raise InputError("model.path", "", "no policy given", "give a run, a folder or a file")
    from rlx.train import start

    if start.is_run(config.model.path):
        run = start.of_run(config.model.path)
        named = {word.lstrip("+~").partition("=")[0].split(".")[0] for word in words}
        config = replace(config, **{name: run[name] for name in SECTIONS if name not in named})
        if not any(word.startswith("algo.reward_model=") for word in words):
            judge = run["config"]["algo"].get("reward_model", config.algo.reward_model)
            config = replace(config, algo=replace(config.algo, reward_model=judge))
    return start.resolve(config)


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
