"""What all drivers share: the set-up that rlx sends, and a stdout of JSON lines only."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

REWARDED_ID = 3  # a completion scores 1 if it holds this token


@dataclass
class Setup:
    weights: str  # .npz of rlx's parameters, flat keys, x @ W convention
    model: dict  # rlx's ModelConfig fields, and vocab_size
    prompts: list  # P prompts of equal length, token ids
    group_size: int
    max_new_tokens: int
    pad_id: int
    stop_id: int
    temperature: float
    learning_rate: float
    threads: int
    is_cap: float
    seed: int = 0


@dataclass
class FitSetup:
    evals: str  # .csv with one evaluation per row
    study: str  # .npz of the same as rlx.scaling.model.Study
    priors: dict  # rlx.scaling.Priors
    curve: str
    warmup: int  # per chain; rlx has its own rule
    draws: int
    threads: int


def connect(kind=Setup):
    """(set-up from stdin, reply(**fields)); what libraries print goes to stderr from here on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(**fields) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    return kind(**json.loads(sys.stdin.readline())), reply


def study_of(setup: FitSetup) -> dict[str, np.ndarray]:
    """The arrays of `setup.study`, under the names of rlx.scaling.model.Study."""
    return dict(np.load(setup.study))


def serve_fits(reply: Callable, fit: Callable, log_density: Callable) -> None:
    """Say that all is ready and answer commands until `quit`.

    {"cmd": "fit", "seed": n, "path": p}: fit(seed) -> (draws, diverging, n_steps), arrays
        [chain, draw, ...]; the draws go to the .npz p, under the names of the sites of
        rlx.scaling.model; answers the number of divergences and the mean of n_steps.
    {"cmd": "log_density", "path": p}: p holds points [N, ...] under the names of those sites, with
        z_recipe and z_run, theta = mean + sd z, instead of theta; answers log_density(point), the
        normalised joint log density of those coordinates, of each.
    """
    reply(ready=True)
    for line in sys.stdin:
        ask = json.loads(line)
        if ask["cmd"] == "quit":
            break
        if ask["cmd"] == "fit":
            draws, diverging, n_steps = fit(ask["seed"])
            np.savez(ask["path"], **draws)
            reply(divergences=int(np.sum(diverging)), steps=float(np.mean(n_steps)))
        else:
            points = dict(np.load(ask["path"]))
            N = len(points["mu"])
            reply(
                log_density=[
                    float(log_density({name: x[n] for name, x in points.items()})) for n in range(N)
                ]
            )
