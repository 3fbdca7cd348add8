"""Measure rlx on an accelerator: speed relative to the hardware, repeatability, compilation.

    python -m experiments.accelerator out=DIR [minutes=5] [size=card|tiny] [parts=floors,decode,...]
                                      [models=all|NAME,...] [kernels=repeatable|fastest]

One command for a machine with a GPU or a TPU. Every part runs in its own process with its share of
the minutes and writes its results to DIR/PART.json as it goes; a table is printed at the end.
`size=tiny` is for trying it on a CPU. `models` limits `decode` and `update` to the models named.
`kernels` is `compile.kernels` of experiments.train, for all parts.

    floors    TB/s of a copy, read and written; TFLOP/s of products in bfloat16 and of the float32
              products of the head, with their largest error relative to the exact product
    decode    ms per token of all slots, and the time in which the device copies the weights and
              the filled columns
    update    ms per update, and its share of the FLOP/s of a bfloat16 product (flops.train_flops;
              recomputation by `remat` does not count); layers scanned and unrolled. Like decode,
              with the device time of one by kernel, from a profile
    runs      of a small model and of a language model: two runs of one seed, and one that is killed
              and resumed; whether rows and newest checkpoints agree bit for bit; seconds of
              compilation and to the first update, with and without cached programs
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from experiments.options import exit_status, read_options
from rlx.errors import InputError
from rlx.record import write_json

ROOT = Path(__file__).resolve().parents[1]
SHARES = {"floors": 0.08, "decode": 0.22, "update": 0.30, "runs": 0.40}  # of the minutes


@dataclass(frozen=True)
class Options:
    out: str = ""
    minutes: float = 5.0
    size: str = "card"
    parts: str = ",".join(SHARES)
    models: str = "all"
    kernels: str = "repeatable"
    part: str = ""  # the part that this process runs


@dataclass(frozen=True)
class Workload:
    """A model, its decoding and its updates."""

    model: str
    slots: int
    prompt_tokens: int
    max_new_tokens: int
    batch: tuple[int, int]  # prompts, samples of each
    learned: tuple[int, int]  # tokens of a prompt and of a sample, in an update
    microbatches: int
    changes: tuple[tuple[str, Any], ...] = ()  # of the model


WORKLOADS = {
    "card": (
        Workload("smollm2_135m", 512, 128, 384, (32, 16), (64, 256), 4),
        Workload("qwen3_0_6b", 256, 128, 896, (8, 8), (128, 1024), 4),
        Workload("qwen3_30b_a3b", 128, 128, 384, (8, 8), (128, 512), 8, (("n_layers", 4),)),
    ),
    "tiny": (
        Workload("tiny", 8, 4, 12, (4, 2), (4, 8), 2, (("vocab_size", 64),)),
        Workload(
            "tiny", 8, 4, 12, (4, 2), (4, 8), 2,
            (("vocab_size", 64), ("n_experts", 4), ("experts_per_token", 2), ("d_ff_expert", 16),
             ("scan_layers", True)),
        ),
    ),
}  # fmt: skip


def chosen(options: Options) -> list[Workload]:
    every = WORKLOADS[options.size]
    return [w for w in every if options.models == "all" or w.model in options.models.split(",")]


def model_of(workload: Workload, **changes):
    import jax

    from rlx.config import ModelConfig
    from rlx.models import transformer

    fields = yaml.safe_load((ROOT / f"conf/model/{workload.model}.yaml").read_text())
    model = ModelConfig(**{**fields, **dict(workload.changes), **changes})
    return transformer.of_platform(model, jax.default_backend())


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """The median time of calls until the device is done; the first call is not timed."""
    import jax

    jax.block_until_ready(call())
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        spent.append(time.perf_counter() - start)
    return float(np.median(spent))


def floors(options: Options, out: Path) -> Iterator[dict[str, Any]]:
    import jax
    import jax.numpy as jnp

    from rlx.objectives import logprobs

    one = jax.devices()[0]
    yield {"what": "device", "name": one.device_kind, "platform": one.platform,
           "devices": jax.device_count(), "jax": jax.__version__}  # fmt: skip
    n, words, rows = (8192, 151936, 8192) if options.size == "card" else (256, 512, 64)
    key = jax.random.key(0)
    x = jax.random.normal(key, (n, n), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    large = jnp.zeros(8 * n * n, jnp.float32)
    yield {"what": "copy", "TB/s": 2 * large.nbytes / seconds(lambda: copy(large), 20) / 1e12}
    half = x.astype(jnp.bfloat16)
    product = jax.jit(lambda a, b: a @ b)
    spent = seconds(lambda: product(half, half), 20)
    yield {"what": "bfloat16 product", "TFLOP/s": 2 * n**3 / spent / 1e12}
    hidden_ND = jax.random.normal(key, (rows, 1024), jnp.float32)
    head_DV = jax.random.normal(jax.random.key(1), (1024, words), jnp.float32)
    part = slice(None, 512)
    exact = np.asarray(hidden_ND, np.float64)[:4] @ np.asarray(head_DV[:, part], np.float64)
    for dtype in ("float32", "bfloat16"):
        head = jax.jit(lambda a, b, dtype=dtype: logprobs.logits(a, b, head_dtype=dtype))
        spent = seconds(lambda head=head: head(hidden_ND, head_DV), 10)
        error = np.abs(np.asarray(head(hidden_ND, head_DV)[:4, part]) - exact).max()
        rate = 2 * rows * 1024 * words / spent / 1e12
        relative = float(error / np.abs(exact).max())
        yield {"what": f"head in {dtype}", "TFLOP/s": rate, "relative_error": relative}


def found_floors(out: Path) -> tuple[float, float]:
    """(bytes per second of a copy, FLOP/s); NaN if that part has not run."""
    path = out / "floors.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    rate = {row["what"]: row for row in rows}
    copy, product = rate.get("copy", {}), rate.get("bfloat16 product", {})
    return copy.get("TB/s", math.nan) * 1e12, product.get("TFLOP/s", math.nan) * 1e12


def random_params(model):
    """Of the sizes of `init`, which takes a minute to compile for a deep model."""
    import jax

    from rlx.models import transformer

    init = lambda key: transformer.init(key, model, model.vocab_size)  # noqa: E731
    drawn = jax.jit(
        lambda key, like: like.shape[-2] ** -0.5 * jax.random.normal(key, like.shape, like.dtype),
        static_argnums=1,
    )
    number = itertools.count()

    def made(path, like):
        if path[-1].key.endswith(("norm", "bias")):
            return jax.numpy.full(like.shape, path[-1].key.endswith("norm"), like.dtype)
        return drawn(jax.random.key(next(number)), like)

    return jax.tree_util.tree_map_with_path(made, jax.eval_shape(init, jax.random.key(0)))


def decode(options: Options, out: Path) -> Iterator[dict[str, Any]]:
    import jax

    from rlx.config import Config, EnvConfig, MeshConfig, RolloutConfig
    from rlx.mesh import make_mesh
    from rlx.rollout import sampler
    from rlx.rollout.generator import Request, SlotGenerator, Weights, published

    copied, _ = found_floors(out)
    mesh, chunk = make_mesh(MeshConfig(data=1)), 32 if options.size == "card" else 4
    for work in chosen(options):
        model = replace(model_of(work), param_dtype="bfloat16")
        W, U, T = work.slots, work.prompt_tokens, work.max_new_tokens
        rollout = RolloutConfig(4, 4, T, slots=W)
        config = Config(model=model, rollout=rollout, env=EnvConfig(train_prompts=4))
        params = published(random_params(model), model, "float32", mesh, mesh)
        weights = Weights(params, 0)
        key = jax.random.key(0)
        generator = SlotGenerator(config, sampler.Rules(), U, 1, 0, mesh, key)
        prompts = np.random.default_rng(0).integers(0, model.vocab_size, (W, U))
        request = lambda w: Request((w // 4, w % 4), prompts[w // 4], T, (-1,))  # noqa: E731, B023
        generator.submit([request(w) for w in range(W)])
        start = time.perf_counter()
        generator.begin(weights, 1)
        generator.collect()
        compile_s = time.perf_counter() - start
        first = int(generator.count_W[0])
        spent = until_idle(generator, weights, chunk)
        steps = int(generator.count_W[0]) - first
        weight_bytes = sum(x.nbytes for x in jax.tree.leaves(params))
        column_bytes = sum(x.nbytes for x in jax.tree.leaves(generator.slots.cache)) / (U + T - 1)
        columns = U + first + np.arange(steps)
        floor = float(np.mean(weight_bytes + column_bytes * columns)) / copied
        yield {
            "what": work.model, "slots": W, "tokens": [U, T], "attention": model.attention,
            "parameters": sum(x.size for x in jax.tree.leaves(params)),
            "ms": 1e3 * spent / steps, "tok_s": W * steps / spent, "floor_ms": 1e3 * floor,
            "share": floor * steps / spent, "compile_s": compile_s,
        }  # fmt: skip
        generator.submit([request(w) for w in range(W)])
        generator.begin(weights, 1)

        def one_chunk(generator=generator, weights=weights):
            generator.begin(weights, chunk)
            return generator.collect()

        yield {"what": f"{work.model} decode", "kernels": kernels(one_chunk, out)}


def until_idle(generator, weights, chunk: int) -> float:
    """Seconds until all sequences have ended."""
    start = time.perf_counter()
    while generator.slot_of:
        generator.begin(weights, chunk)
        generator.collect()
    return time.perf_counter() - start


def random_batch(work: Workload, vocab: int):
    """Tokens, rewards and a uniform behaviour policy."""
    from rlx.types import Batch

    (P, G), (U, T) = work.batch, work.learned
    rng, B = np.random.default_rng(0), P * G
    return Batch(
        prompt_PU=rng.integers(0, vocab, (P, U)).astype(np.int32),
        prompt_length_P=np.full(P, U, np.int32),
        completion_BT=rng.integers(0, vocab, (B, T)).astype(np.int32),
        mask_BT=np.ones((B, T), np.float32),
        behavior_logp_BT=np.full((B, T), -math.log(vocab), np.float32),
        behavior_value_BT=np.zeros((B, T), np.float32),
        reward_PG=rng.normal(size=(P, G)).astype(np.float32),
        keep_P=np.ones(P, np.float32),
    )


def update(options: Options, out: Path) -> Iterator[dict[str, Any]]:
    import jax

    from rlx import flops
    from rlx.config import AlgoConfig, Config, EnvConfig, MeshConfig, OptimConfig, RolloutConfig
    from rlx.mesh import make_mesh
    from rlx.train.spec import names, numbers
    from rlx.train.state import init_state
    from rlx.train.step import make_train_step

    _, rate = found_floors(out)
    mesh = make_mesh(MeshConfig(data=1))
    for work in chosen(options):
        as_written, (P, G), (U, T) = model_of(work), work.batch, work.learned
        batch = random_batch(work, as_written.vocab_size)
        loops = dict.fromkeys((as_written.scan_layers, False))
        for scans, head_dtype in itertools.product(loops, ("float32", "bfloat16")):
            model = model_of(work, scan_layers=scans)
            config = Config(
                model=model,
                algo=AlgoConfig(zero_variance="keep"),
                env=EnvConfig(train_prompts=P),
                rollout=RolloutConfig(P, G, T),
                optim=OptimConfig(
                    learning_rate=1e-6, microbatches=work.microbatches, head_dtype=head_dtype,
                    vocab_chunk=-(-model.vocab_size // 8),
                ),
            )  # fmt: skip
            spec = names(config, mesh)
            box = {"state": init_state(spec, random_params(model))}
            step = make_train_step(spec, numbers(config))

            def once(box=box, step=step, batch=batch):
                box["state"], metrics = step(box["state"], batch)
                return metrics["grad_norm"]

            start = time.perf_counter()
            jax.block_until_ready(once())
            compile_s = time.perf_counter() - start
            spent = seconds(once, 3)
            cost = P * flops.train_flops(model, model.vocab_size, U, [T] * G)
            yield {
                "what": work.model, "head_dtype": head_dtype, "attention": model.attention,
                "layers": "scanned" if scans else "unrolled", "batch": [P, G], "tokens": [U, T],
                "ms": 1e3 * spent, "tok_s": P * G * T / spent,
                "mfu": cost / spent / rate, "compile_s": compile_s,
            }  # fmt: skip
            name = f"{work.model} update, {head_dtype}{', scanned' * scans}"
            yield {"what": name, "kernels": kernels(once, out)}
            box.clear()


def kernels(call: Callable[[], Any], out: Path, most: int = 12) -> list[list[Any]]:
    """[name, ms] of the kernels that take the most device time in a call, after that of all."""
    import jax

    with jax.profiler.trace(str(out / "profile")):
        jax.block_until_ready(call())
    (newest,) = sorted((out / "profile").rglob("*.xplane.pb"), key=lambda p: p.stat().st_mtime)[-1:]
    spent: Counter[str] = Counter()
    launches = 0
    for plane in jax.profiler.ProfileData.from_file(str(newest)).planes:
        if plane.name.startswith("/device:"):
            for line in plane.lines:
                if line.name.startswith(("Stream", "XLA Ops")):
                    for event in line.events:
                        spent[event.name.split("(")[0]] += event.duration_ns / 1e6
                        launches += 1
    every = (f"all {launches} kernels", sum(spent.values()))
    return [[name, round(ms, 3)] for name, ms in [every, *spent.most_common(most)]]


SMALL = ["pipeline=pipeline_8", "steps=120", "eval.every_steps=20", "checkpoint.every_steps=20"]
TINY = [
    *("pipeline=pipeline_8", "steps=8", "eval.every_steps=2", "checkpoint.every_steps=2"),
    *("env.train_prompts=16", "env.heldout_prompts=8", "warm_start.steps=4", "mesh=one"),
    *("rollout.prompts_per_step=4", "rollout.group_size=4"),
]
RUNS = {
    "card": {
        "tiny": SMALL,
        "smollm2_135m": [
            *("model=smollm2_135m", "model.scan_layers=true", "model.compute_dtype=bfloat16"),
            *("pipeline=pipeline_8", "steps=24", "eval.every_steps=8", "checkpoint.every_steps=4"),
            *("warm_start.steps=0", "env.heldout_prompts=16", "rollout.max_new_tokens=32"),
            *("algo.zero_variance=keep", "algo.reward=random", "optim.learning_rate=1e-5"),
        ],
    },
    "tiny": {
        "tiny": TINY,
        "sparse": [
            *(*TINY, "model.n_experts=4", "model.experts_per_token=2", "model.d_ff_expert=16"),
            *("algo.zero_variance=keep", "algo.reward=random"),
        ],
    },
}  # a random reward, so that updates move untrained weights
ROWS = ("evals.jsonl", "metrics.jsonl")
TRAIN = [sys.executable, "-m", "experiments.train"]


def runs(options: Options, out: Path) -> Iterator[dict[str, Any]]:
    """The second run uses the programs of the first; the third is killed after half its updates."""
    shutil.rmtree(out / "runs", ignore_errors=True)
    for model, words in RUNS[options.size].items():
        where = out / "runs" / model
        words = [
            *words,
            f"compile.cache={where / 'programs'}",
            f"compile.kernels={options.kernels}",
        ]

        def start(name: str, words=words, where=where) -> subprocess.Popen:
            command = [*TRAIN, *words, f"out={where / name}"]
            return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

        for name, programs in (("first", "new"), ("second", "known")):
            begin, run = time.perf_counter(), start(name)
            first_s = waited(run, where / name, 1) - begin
            status, clock = run.wait(), written(where / name, "clock.jsonl").splitlines()
            compiled = json.loads(clock[-1])["device_s"]["compile"] if clock else None
            yield {"what": f"{model}, {programs} programs", "exit_status": status,
                   "compile_s": compiled, "first_update_s": first_s,
                   "wall_s": time.perf_counter() - begin}  # fmt: skip
        manifest = json.loads(written(where / "first", "manifest.json") or b"{}")
        yield {"what": f"{model}, kernels", **manifest.get("kernels", {})}
        killed, steps = start("killed"), manifest["config"]["steps"]
        waited(killed, where / "killed", steps // 2 + 1)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        done = written(where / "killed", "metrics.jsonl").count(b"\n")
        yield {"what": f"{model}, killed", "updates": done, "of": steps,
               "exit_status_of_the_rest": start("killed").wait()}  # fmt: skip
        for name in ("second", "killed"):
            same = {file: written(where / "first", file) == written(where / name, file) != b""
                    for file in ROWS}  # fmt: skip
            same["checkpoint"] = checkpointed(where / "first") == checkpointed(where / name) != {}
            yield {"what": f"{model}, {name} run is the first, bit for bit", **same}


def written(run: Path, file: str) -> bytes:
    path = run / file
    return path.read_bytes() if path.exists() else b""


def waited(process: subprocess.Popen, run: Path, updates: int) -> float:
    """The time when the run has made `updates` updates, or has ended."""
    while process.poll() is None and written(run, "metrics.jsonl").count(b"\n") < updates:
        time.sleep(0.01)
    return time.perf_counter()


def checkpointed(run: Path) -> dict[str, int]:
    """The stored checksum of every array of the newest checkpoint."""
    import orbax.checkpoint as ocp

    from rlx.checkpoint import unpack

    newest = max((run / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    with ocp.PyTreeCheckpointer() as checkpointer:
        return unpack(checkpointer.restore(newest / "host")["blob"])["checksums"]


PARTS = {"floors": floors, "decode": decode, "update": update, "runs": runs}


def do(options: Options) -> None:
    """Run one part, writing its file row by row."""
    from rlx import compilation
    from rlx.config import CompileConfig, Config

    out = Path(options.out)
    if options.part != "runs":  # its processes prepare themselves
        made = CompileConfig(kernels=options.kernels, cache="none")  # to time compilation
        compilation.prepare(Config(compile=made))
    found = []
    for row in PARTS[options.part](options, out):
        found.append(row)
        write_json(out / f"{options.part}.json", found)


def table(out: Path, parts: list[str]) -> str:
    """The results, one row per line."""
    lines = []
    for part in parts:
        path = out / f"{part}.json"
        rows = json.loads(path.read_text()) if path.exists() else []
        lines += ["", f"{part}:"] + ([] if rows else ["  no result within its time"])
        for row in rows:
            cells = {name: value for name, value in row.items() if name not in ("what", "kernels")}
            text = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                             for k, v in cells.items())  # fmt: skip
            lines.append(f"  {row['what']:<34} {text}")
            lines += [f"      {ms:>9.3f} ms  {name[:80]}" for name, ms in row.get("kernels", [])]
    return "\n".join(lines[1:])


def main(argv: list[str]) -> None:
    options = read_options(Options, argv)
    parts = options.parts.split(",")
    part = [options.part] if options.part else []
    models = [] if options.models == "all" else options.models.split(",")
    known = [w.model for w in WORKLOADS.get(options.size, ())]
    named = {"parts": (parts, SHARES), "part": (part, SHARES), "size": ([options.size], WORKLOADS),
             "models": (models, ["all", *known]),
             "kernels": ([options.kernels], ("repeatable", "fastest"))}  # fmt: skip
    for key, (names, known) in named.items():
        for name in names:
            if name not in known:
                raise InputError(key, name, "unknown name", f"use {', '.join(known)}")
    if not options.out or not 0 < options.minutes < math.inf:
        key = "out" if not options.out else "minutes"
        remedy = "give out=DIR" if not options.out else "give minutes above 0"
        raise InputError(key, asdict(options)[key], "cannot be used", remedy)
    out = Path(options.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    if options.part:
        return do(replace(options, out=str(out)))
    limits = {part: 60 * options.minutes * SHARES[part] / sum(SHARES[p] for p in parts)
              for part in parts}  # fmt: skip
    for part, limit_s in limits.items():
        (out / f"{part}.json").unlink(missing_ok=True)
        words = [f"{key}={value}" for key, value in asdict(options).items() if key != "out"]
        words = [word for word in words if not word.startswith("part")]
        command = [sys.executable, "-m", "experiments.accelerator", f"out={out}", f"part={part}"]
        process = subprocess.Popen([*command, *words], cwd=ROOT, start_new_session=True)
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            print(f"{part}: stopped after {limit_s:.0f} s", file=sys.stderr)
        finally:  # kill it and its runs
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    print(table(out, parts))


if __name__ == "__main__":
    sys.exit(exit_status(main))
