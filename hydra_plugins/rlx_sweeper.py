"""Hydra's sweeper, which looks at every cell before it starts the first: see experiments.cells.

`out=DIR` is the directory of a sweep; its cells land in DIR/runs/NAME.

`hydra.sweeper.shares=FILE`: of all cells those alone that the JSON file names, each until the share
of its updates that stands there, rounded up to an evaluation. A sweep in rounds is started with it
again and again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict


class CellSweeper(BasicSweeper):
    def __init__(self, max_batch_size: int | None, params, shares: str | None = None):
        super().__init__(max_batch_size, params)
        self.shares = shares

    def setup(self, *, hydra_context, task_function, config: DictConfig) -> None:
        from experiments import cells  # after Hydra has looked for plugins

        given = [
            value for key, value in map(cells.parsed, config.hydra.overrides.task) if key == "out"
        ]
        if given:
            out = cells.directory(given[-1])
            with open_dict(config.hydra):
                config.hydra.sweep.dir = out
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={cells.quoted(out)}")
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        from experiments import cells

        batch = cells.split(self.params or {}, arguments)
        out = Path(self.config.hydra.sweep.dir)
        with cells.claimed(out, batch, self._config_of) as configs:
            if self.shares:
                batch = _paused(batch, configs, json.loads(Path(self.shares).read_text()))
            results = self.launcher.launch(batch, initial_job_idx=0)
        for result in results:
            _ = result.return_value  # raises what the job raised
        return [results]

    def _config_of(self, words: Sequence[str]):
        """The configuration of a cell, as its job will make it."""
        from experiments import train
        from rlx.train import recipe

        before = HydraConfig.instance().cfg
        node = self.hydra_context.config_loader.load_sweep_config(self.config, list(words))
        HydraConfig.instance().set_config(node)
        try:
            with open_dict(node):
                del node["hydra"]
            config = train.placed(train.to_config(node))
            recipe.check(config.algo)
            return config
        finally:
            HydraConfig.instance().cfg = before


def _paused(batch: Sequence[list[str]], configs, shares: dict[str, float]) -> list[list[str]]:
    """The cells that are named, with the update until which they run."""
    from experiments import cells

    kept = []
    for words, config in zip(batch, configs, strict=True):
        share = shares.get(Path(config.out).name)
        if share:
            until = cells.last_update(config.steps, config.eval.every_steps, share)
            kept.append([*words, f"until={until}"])
    return kept
