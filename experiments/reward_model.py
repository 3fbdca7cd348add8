"""Train a reward model from pairs of completions, for RLHF.

    python -m experiments.reward_model pairs=pairs.jsonl model.path=DIR steps=200 out=runs/judge
    python -m experiments.train algo=rlhf algo.reward_model=runs/judge env=preference \
        env.kwargs.path=pairs.jsonl model.path=DIR

A pair is a line {"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}. `env.train_prompts` and
`env.heldout_prompts` divide the pairs by prompt. The tokens are those of `model.path`, or the
characters of the environment: by default of the pairs; with env=NAME, of another task, whose
policies the model can then judge. Keys, checkpoints, signals and exit status are those of
experiments.train.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from experiments import train


@hydra.main(version_base="1.3", config_path=train.CONF, config_name="reward_model")
def job(node: DictConfig) -> None:
    train.work(node, "rlx.train.reward_model:train")


if __name__ == "__main__":
    sys.exit(train.main(job))
