"""Hydra's sweeper, which looks at every cell before it starts the first: see experiments.cells.

`out=DIR` is the directory of a sweep; its cells land in DIR/runs/NAME.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict


class CellSweeper(BasicSweeper):
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
        with cells.claimed(Path(self.config.hydra.sweep.dir), batch, self._config_of):
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
