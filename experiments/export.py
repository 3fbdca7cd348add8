"""A policy as a folder that `transformers` loads.

    python -m experiments.export model.path=runs/a to=DIR

Configuration and safetensors, with the tokenizer's files if the policy started from a folder that
has them (a .gguf has none).
"""

from __future__ import annotations

import sys

from experiments.policy import Policy, main
from rlx.errors import InputError


def export(policy: Policy, options: dict[str, str]) -> None:
    from rlx.models import hf

    if not options["to"]:
        raise InputError("to", "", "no folder", "give to=DIR")
    config = policy.config
    hf.save(options["to"], policy.params, config.model, like=config.env.tokenizer)
    print(f"{options['to']}: written")


if __name__ == "__main__":
    sys.exit(main(export, {"to": ""}))
