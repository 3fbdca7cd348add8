"""What both drivers share: the set-up that rlx sends, and a stdout of JSON lines only."""

import json
import os
import sys
from dataclasses import dataclass

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


def connect():
    """(set-up from stdin, reply(**fields)); what libraries print goes to stderr from here on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(**fields) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    return Setup(**json.loads(sys.stdin.readline())), reply
