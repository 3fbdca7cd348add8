"""How fast the sampler, the learner and the whole step are, beside a named rival.

    python -m experiments.benchmark sampler|learner|step [rival=trl|tunix|none] [model=tiny|small]
                                    [max_new_tokens=11] [threads=2] [rounds=5] [repeats=10]

One JSON line per system: `tokens` and `seconds` are medians per batch, `tok_s` counts the
completion tokens actually drawn or learned from, `ratio` is rlx's tok_s over the system's, `mfu`
is the share of the FLOP/s that a large float32 matrix product reaches in this process, `load` is
the machine's load average before the first timing.

Both systems get the same decoder, initial weights, prompts, group size, length limit and stop
token, and take turns, `rounds` times `repeats` batches each. rlx's sampler time includes filling
slots and grading, its step time also the metrics row on disk. A rival runs in an environment of its
own under `.rivals/`, made on first use; what is and is not equal work stands at the top of its
driver in experiments/rivals.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
RIVALS = {
    "trl": ("torch==2.13.0", "trl==1.16.0", "transformers==5.23.0"),
    "tunix": ("google-tunix==0.1.7",),
}
WHAT = ("sampler", "learner", "step")


@dataclass(frozen=True)
class Options:
    rival: str = "none"
    model: str = "tiny"
    max_new_tokens: int = 11
    threads: int = 2
    rounds: int = 5
    repeats: int = 10


def parse(argv: list[str]) -> tuple[str, Options]:
    """(what, options). Raises ValueError, `KEY=VALUE: reason; remedy`."""
    if not argv or argv[0] not in WHAT:
        raise ValueError(f"WHAT={argv[:1]}: nothing to time; use one of {', '.join(WHAT)}")
    options = Options()
    for word in argv[1:]:
        key, _, value = word.partition("=")
        if key not in Options.__dataclass_fields__:
            names = ", ".join(Options.__dataclass_fields__)
            raise ValueError(f"{word}: unknown key; use one of {names}")
        kind = type(getattr(options, key))
        try:
            options = replace(options, **{key: kind(value)})
        except ValueError:
            raise ValueError(f"{word}: not a number; give a whole number") from None
    if options.rival not in ("none", *RIVALS):
        raise ValueError(f"rival={options.rival}: unknown; use one of none, {', '.join(RIVALS)}")
    return argv[0], options


def rlx_system(what: str, options: Options):
    """(function that times `repeats` batches of `what`, set-up line for a rival)."""
    import jax

    jax.config.update("jax_num_cpu_devices", options.threads)
    from rlx import flops
    from rlx.config import (
        AlgoConfig,
        Config,
        EnvConfig,
        ModelConfig,
        OptimConfig,
        PipelineConfig,
        RolloutConfig,
    )
    from rlx.envs.digit_chain import DigitChain
    from rlx.mesh import make_mesh
    from rlx.models import transformer
    from rlx.record import RunRecord
    from rlx.rollout.engine import Engine
    from rlx.train.buffer import Buffer
    from rlx.train.step import collate, init_state, make_train_step

    class AnyThree(DigitChain):
        """Scores what untrained weights sometimes do, so that advantages are not all zero."""

        def grade(self, problem, completion, stopped):
            return float("3" in completion)

    T = options.max_new_tokens
    model = ModelConfig(**yaml.safe_load((ROOT / f"conf/model/{options.model}.yaml").read_text()))
    config = Config(
        model=model,
        algo=AlgoConfig(filter_zero_variance=False),
        env=EnvConfig(train_prompts=16, heldout_prompts=1),
        rollout=RolloutConfig(max_new_tokens=T, decode_chunk_tokens=T),
        pipeline=PipelineConfig("sync", 0),
        optim=OptimConfig(
            # Sampler and learner are timed at the initial weights, the step while it learns.
            learning_rate=2e-4 if what == "step" else 1e-12,
            microbatches=4 if options.model == "small" else 1,
        ),
    )
    env = AnyThree(train_prompts=16, heldout_prompts=1, seed=0)
    params = transformer.init(jax.random.key(0), model, env.tokenizer.vocab_size)
    mesh = make_mesh(config.mesh, config.rollout.prompts_per_step // config.optim.microbatches)
    buffer, ledger = Buffer("sync", 0, config.rollout.prompts_per_step), flops.Ledger()
    engine = Engine(config, env, buffer, ledger, mesh)
    train_step = make_train_step(config, mesh)
    record = RunRecord(tempfile.mkdtemp(prefix="rlx-benchmark-"))
    box = {"state": init_state(config, mesh, params), "version": 0, "groups": []}

    def generate():
        while not buffer.ready():
            engine.step(box["state"].params, box["version"])
        box["groups"] = buffer.take(box["version"])

    def learn():
        batch = collate(box["groups"], env.max_prompt_tokens, env.tokenizer.pad_id)
        box["state"], metrics = train_step(box["state"], batch)
        box["metrics"] = {name: float(x) for name, x in jax.device_get(metrics).items()}

    def once(what: str) -> tuple[float, int, float]:
        """(seconds, tokens, FLOPs) of one batch."""
        before = replace(ledger)
        start = time.perf_counter()
        if what in ("sampler", "step"):
            generate()
        if what in ("learner", "step"):
            learn()
        if what == "step":
            record.append("metrics.jsonl", box["metrics"])
            box["version"] += 1
        seconds = time.perf_counter() - start
        lengths = [group.length_G for group in box["groups"]]
        spent = ledger.prefill_flops + ledger.decode_flops
        spent -= before.prefill_flops + before.decode_flops
        if what in ("learner", "step"):
            vocab, U = env.tokenizer.vocab_size, env.max_prompt_tokens
            spent += sum(flops.train_flops(model, vocab, U, length_G) for length_G in lengths)
        return seconds, int(np.sum(lengths)), spent

    def timed(what: str, repeats: int):
        return list(zip(*(once(what) for _ in range(repeats)), strict=True))

    weights = {name: np.asarray(params[name]) for name in ("embed", "final_norm", "head")}
    for i, layer in enumerate(params["layers"]):
        weights |= {f"layers.{i}.{name}": np.asarray(w) for name, w in layer.items()}
    path = record.path / "weights.npz"
    np.savez(path, **weights)
    names = ("d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "rope_theta")
    sizes = {name: getattr(model, name) for name in (*names, "norm_eps", "tie_embeddings")}
    set_up = {
        "weights": str(path),
        "model": {**sizes, "vocab_size": env.tokenizer.vocab_size},
        "prompts": [env.tokenizer.encode(problem.prompt) for problem in env.train],
        "group_size": config.rollout.group_size,
        "max_new_tokens": T,
        "pad_id": env.tokenizer.pad_id,
        "stop_id": env.tokenizer.stop_id,
        "temperature": config.rollout.temperature,
        "learning_rate": config.optim.learning_rate,
        "threads": options.threads,
        "is_cap": config.algo.is_cap,
    }
    timed("step", 3)  # compile
    return timed, set_up


class Rival:
    """The driver process of a rival: one JSON line in, one out."""

    def __init__(self, name: str, set_up: dict):
        home = ROOT / ".rivals" / name
        python = home / "bin" / "python"
        if not python.exists():
            venv.create(home, with_pip=True)
            for package in RIVALS[name]:  # in this order: a plain torch would bring its CUDA build
                subprocess.run([python, "-m", "pip", "install", "-q", package], check=True)
        log = (home / "driver.log").open("w")
        driver = ROOT / "experiments" / "rivals" / f"{name}_driver.py"
        pipe = subprocess.PIPE
        self.log = log.name
        self.process = subprocess.Popen(
            [python, driver], stdin=pipe, stdout=pipe, stderr=log, text=True
        )
        self.ask(set_up)

    def ask(self, line: dict) -> dict:
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise ValueError(f"rival: its driver stopped; see {self.log}")
        return json.loads(answer)

    def timed(self, what: str, repeats: int):
        answer = self.ask({"cmd": what, "repeats": repeats})
        return answer["seconds"], answer["tokens"]

    def close(self) -> None:
        self.process.stdin.write('{"cmd": "quit"}\n')
        self.process.stdin.close()
        self.process.wait()


def peak_flops_per_s() -> float:
    """What a 2048^3 float32 product reaches on the devices rlx uses, all at once."""
    import jax
    import jax.numpy as jnp

    n, devices = 2048, jax.devices()
    xs = [jax.device_put(jnp.ones((n, n)), device) for device in devices]
    product = jax.jit(jnp.matmul)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready([product(x, x) for x in xs])
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 * len(devices) / best


def compare(what: str, options: Options) -> list[dict]:
    """Take turns; the lines to print."""
    load = os.getloadavg()[0]
    timed, set_up = rlx_system(what, options)
    peak = peak_flops_per_s()
    rival = Rival(options.rival, set_up) if options.rival != "none" else None
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours += zip(*timed(what, options.repeats), strict=True)
        if rival:
            theirs += zip(*rival.timed(what, options.repeats), strict=True)
    if rival:
        rival.close()
    lines = []
    for system, rows in (("rlx", ours), (options.rival, theirs)):
        if rows:
            seconds, tokens = (statistics.median(row[i] for row in rows) for i in (0, 1))
            rate = statistics.median(row[1] / row[0] for row in rows)
            line = {"what": what, "system": system, "tokens": tokens, "seconds": round(seconds, 5)}
            line |= {"tok_s": round(rate), "mfu": None}
            if rows is ours:
                line["mfu"] = round(statistics.median(r[2] / r[0] for r in rows) / peak, 3)
            lines.append(line | {"threads": options.threads, "load": round(load, 2)})
    for line in lines:
        line["ratio"] = round(lines[0]["tok_s"] / line["tok_s"], 2)
    return lines


def main(argv: list[str]) -> int:
    try:
        what, options = parse(argv)
        for line in compare(what, options):
            print(json.dumps(line), flush=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
