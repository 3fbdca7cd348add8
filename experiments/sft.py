"""Supervised fine-tuning on traces, the usual start of RL on a pretrained model.

    python -m experiments.sft model.path=DIR env=math traces=traces.jsonl steps=200 out=runs/sft
    python -m experiments.train model.path=runs/sft env=math ...

A trace is a line {"prompt": TEXT, "completion": TEXT}; without `traces` the environment's own
solutions are used. Keys, checkpoints, signals and exit status are those of experiments.train.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from experiments import train


@hydra.main(version_base="1.3", config_path=train.CONF, config_name="sft")
def job(node: DictConfig) -> None:
    train.work(node, "rlx.train.sft:train")


if __name__ == "__main__":
    sys.exit(train.main(job))
