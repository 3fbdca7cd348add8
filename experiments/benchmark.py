"""Speed of sampler, learner, whole step and posterior, compared with a named rival.

    python -m experiments.benchmark sampler|learner|step [rival=trl|tunix|none] [model=tiny|small]
                                    [max_new_tokens=11] [threads=2] [rounds=5] [repeats=10]
    python -m experiments.benchmark fit [rival=numpyro|nutpie|none] [size=8x3x20] [curve=burr]
                                    [warmup=500] [draws=500] [threads=2] [rounds=1] [seed=0]

For sampler, learner and step, one JSON line per system: `tokens` and `seconds` are medians per
batch, `tok_s` counts the completion tokens actually sampled or trained on, `ratio` is rlx's tok_s
over the system's, `mfu` is the share of the FLOP/s of a large float32 matrix product in this
process, `load` is the machine's load average before the first timing. Both systems get the same
decoder, initial weights, prompts, group size, length limit and stop token, and take turns, `rounds`
times `repeats` batches each. rlx's sampler time includes filling slots and grading, its step time
also the metrics row on disk. `learner rival=packed` compares rlx with and without `optim.pack`.

Of fit, one JSON line per system, each a process of its own, for the posterior of one simulated
study (experiments.calibration, variant "well", `size` recipes x seeds x evaluations):

    seconds_cold       from the start of the process to the first draws, with imports, compilation
    seconds_warm       of a later fit of the same data with another seed, the median of `rounds`
    ess_min, rhat_max  least bulk or tail effective sample size and largest rank-normalised R-hat of
                       all fits, over every site of the model: (a, c, b) of each recipe and run,
                       kappa, R0, mu, the standard deviations, the wander's sd and length
    ess_per_s          effective samples per second of a warm fit, including its warm-up
    divergences        of all fits
    converged          R-hat <= 1.01, at least 400 effective samples, no divergence; if false,
                       ess_per_s is too optimistic
    steps              gradients per kept draw
    log_density_error  largest difference from rlx's log density, at three draws from the prior
    ratio              rlx's ess_per_s over the system's

rlx draws until its own rule is met; `warmup` and `draws`, per chain, are for the rival.

A rival with its own packages runs in an environment under `.rivals/`, made on first use; the header
of its driver in experiments/rivals says which work is equal and which is not.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from experiments.options import check_choices, exit_status, read_options
from rlx.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
RIVALS = {
    "trl": ("torch==2.13.0", "trl==1.16.0", "transformers==5.23.0"),
    "tunix": ("google-tunix==0.1.7",),
    "nutpie": ("pymc==5.28.5", "nutpie==0.16.8", "numba==0.65.1"),
}
DRIVERS = {  # of the posterior
    "rlx": "rlx_driver.py",
    "numpyro": "numpyro_driver.py",
    "nutpie": "pymc_driver.py",
}
POINTS = 3  # at which log densities are compared
DENSITY_RTOL = 1e-9


@dataclass(frozen=True)
class Options:
    rival: str = "none"
    model: str = "tiny"
    max_new_tokens: int = 11
    threads: int = 2
    rounds: int = 5
    repeats: int = 10


@dataclass(frozen=True)
class FitOptions:
    rival: str = "none"
    size: str = "8x3x20"
    curve: str = "burr"
    warmup: int = 500
    draws: int = 500
    threads: int = 2
    rounds: int = 1
    seed: int = 0


WHAT = {"sampler": Options, "learner": Options, "step": Options, "fit": FitOptions}


def parse(argv: list[str]) -> tuple[str, Options | FitOptions]:
    """(what, options). Raises InputError."""
    if not argv or argv[0] not in WHAT:
        raise InputError("WHAT", argv[:1], "nothing to time", f"use one of {', '.join(WHAT)}")
    options = read_options(WHAT[argv[0]], argv[1:])
    for key, value in vars(options).items():
        if isinstance(value, int) and value < (key != "seed"):
            raise InputError(key, value, "too small", f"give {int(key != 'seed')} or more")
    packed = ("packed",) if argv[0] == "learner" else ()
    choices = {"rival": ("none", "trl", "tunix", *packed), "model": ("tiny", "small")}
    if isinstance(options, FitOptions):
        choices = {"rival": ("none", "numpyro", "nutpie"), "curve": ("burr", "sigmoid")}
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", options.size):
            reason = "not RECIPESxSEEDSxEVALUATIONS"
            raise InputError("size", options.size, reason, "write size=8x3x20")
    check_choices(options, choices)
    return argv[0], options


def rlx_config(what: str, options: Options):
    """The run that is timed."""
    from rlx.config import (
        AlgoConfig,
        Config,
        EnvConfig,
        ModelConfig,
        OptimConfig,
        PipelineConfig,
        RolloutConfig,
    )

    T = options.max_new_tokens
    return Config(
        model=ModelConfig(
            **yaml.safe_load((ROOT / f"conf/model/{options.model}.yaml").read_text())
        ),
        algo=AlgoConfig(zero_variance="keep"),
        env=EnvConfig(train_prompts=16, heldout_prompts=1),
        rollout=RolloutConfig(max_new_tokens=T, decode_chunk_tokens=T),
        pipeline=PipelineConfig("sync", 0),
        optim=OptimConfig(
            # Sampler and learner are timed at the initial weights, the step while training.
            learning_rate=2e-4 if what == "step" else 1e-12,
            microbatches=4 if options.model == "small" else 1,
        ),
    )


def rlx_system(what: str, options: Options):
    """(function that times `repeats` batches of `what`, set-up line for a rival)."""
    import jax

    jax.config.update("jax_num_cpu_devices", options.threads)
    from rlx import flops
    from rlx.envs.digit_chain import DigitChain
    from rlx.envs.grading import Graders
    from rlx.mesh import make_mesh
    from rlx.models import transformer
    from rlx.record import RunRecord
    from rlx.rollout.buffer import Buffer
    from rlx.rollout.engine import Engine
    from rlx.rollout.generator import Weights
    from rlx.train.batch import collate
    from rlx.train.spec import names, numbers
    from rlx.train.state import init_state
    from rlx.train.step import make_train_step

    class AnyThree(DigitChain):
        """Scores a pattern that untrained weights sometimes produce, so that advantages differ."""

        def grade(self, problem, completion, stopped):
            return float("3" in completion)

    config = rlx_config(what, options)
    env = AnyThree(train_prompts=16, heldout_prompts=1, seed=0)
    params = transformer.init(jax.random.key(0), config.model, env.tokenizer.vocab_size)
    mesh = make_mesh(config.mesh, config.rollout.prompts_per_step // config.optim.microbatches)
    buffer, ledger = Buffer("sync", 0, config.rollout.prompts_per_step), flops.Ledger()
    engine = Engine(config, Graders(env, {}), buffer, ledger, mesh)
    spec = names(config, mesh)
    train_step = make_train_step(spec, numbers(config))
    record = RunRecord(tempfile.mkdtemp(prefix="rlx-benchmark-"))
    box = {"state": init_state(spec, params), "version": 0, "groups": [], "pack": False}

    def generate():
        while not buffer.ready():
            engine.step(Weights(box["state"].params, box["version"]))
        box["groups"] = buffer.take(box["version"])

    def learn():
        batch = collate(box["groups"], env.max_prompt_tokens, env.tokenizer.pad_id, box["pack"])
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
            of = (config.model, vocab, U)
            spent += sum(flops.train_flops(*of, length_G) for length_G in lengths)
        return seconds, int(np.sum(lengths)), spent

    def timed(what: str, repeats: int, pack: bool = False):
        box["pack"] = pack
        return list(zip(*(once(what) for _ in range(repeats)), strict=True))

    set_up = for_rival(config, env, params, record.path / "weights.npz", options.threads)
    timed("step", 3)  # compile
    if options.rival == "packed":
        timed("learner", 2, pack=True)
    return timed, set_up


def for_rival(config, env, params, path: Path, threads: int) -> dict:
    """The set-up line of a rival (experiments/rivals/protocol.py); weights are saved at `path`."""
    weights = {name: np.asarray(params[name]) for name in ("embed", "final_norm", "head")}
    for i, layer in enumerate(params["layers"]):
        weights |= {f"layers.{i}.{name}": np.asarray(w) for name, w in layer.items()}
    np.savez(path, **weights)
    names = ("d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "rope_theta")
    sizes = {name: getattr(config.model, name) for name in (*names, "norm_eps", "tie_embeddings")}
    return {
        "weights": str(path),
        "model": {**sizes, "vocab_size": env.tokenizer.vocab_size},
        "prompts": [env.tokenizer.encode(problem.prompt) for problem in env.train],
        "group_size": config.rollout.group_size,
        "max_new_tokens": config.rollout.max_new_tokens,
        "pad_id": env.tokenizer.pad_id,
        "stop_id": env.tokenizer.stop_id,
        "temperature": config.rollout.temperature,
        "learning_rate": config.optim.learning_rate,
        "threads": threads,
        "is_cap": config.algo.is_cap,
    }


def environment(name: str) -> Path:
    """The Python of a rival's environment, made on first use; else the one running this."""
    if name not in RIVALS:
        return Path(sys.executable)
    home = ROOT / ".rivals" / name
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
        for package in RIVALS[name]:  # in this order: a plain torch would bring its CUDA build
            subprocess.run([python, "-m", "pip", "install", "-q", package], check=True)
    return python


class Driver:
    """The process of one system: one JSON line in, one out."""

    def __init__(self, python: Path, file: str, set_up: dict):
        self.log = ROOT / ".rivals" / f"{file}.log"
        self.log.parent.mkdir(exist_ok=True)
        driver, pipe = ROOT / "experiments" / "rivals" / file, subprocess.PIPE
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, driver], stdin=pipe, stdout=pipe, stderr=log, text=True
            )
        self.ask(set_up)

    def ask(self, line: dict) -> dict:
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise InputError("rival", self.log.stem, "its driver stopped", f"see {self.log}")
        return json.loads(answer)

    def timed(self, what: str, repeats: int):
        answer = self.ask({"cmd": what, "repeats": repeats})
        return answer["seconds"], answer["tokens"]

    def close(self) -> None:
        self.process.stdin.write('{"cmd": "quit"}\n')
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def peak_flops_per_s() -> float:
    """FLOP/s of a 2048^3 float32 product on all devices of rlx at once."""
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
    """Time both systems in turns; the lines to print."""
    load = os.getloadavg()[0]
    timed, set_up = rlx_system(what, options)
    peak = peak_flops_per_s()
    rival = None
    packed = options.rival == "packed"
    if options.rival != "none" and not packed:
        rival = Driver(environment(options.rival), f"{options.rival}_driver.py", set_up)
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours += zip(*timed(what, options.repeats), strict=True)
        if packed:
            theirs += zip(*timed(what, options.repeats, pack=True), strict=True)
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


def write_study(options: FitOptions, folder: Path) -> dict:
    """Set-up line of the drivers; writes the simulated study and prior points to `folder`."""
    from experiments import calibration
    from rlx.scaling import Evals, Priors
    from rlx.scaling.arrays import assemble

    paths = {name: str(folder / name) for name in ("evals.csv", "study.npz", "points.npz")}
    size = calibration.Size(*map(int, options.size.split("x")))
    evals, _ = calibration.simulate_size("well", options.seed, size, calibration.C_MAX)
    evals.frame.to_csv(paths["evals.csv"], index=False)
    with redirect_stdout(sys.stderr):
        study, _, _ = assemble(Evals.read(paths["evals.csv"]), priors=Priors())
    np.savez(paths["study.npz"], **study._asdict())
    np.savez(paths["points.npz"], **prior_points(study, options.curve))
    return {
        "evals": paths["evals.csv"],
        "study": paths["study.npz"],
        "priors": asdict(Priors()),
        "curve": options.curve,
        "warmup": options.warmup,
        "draws": options.draws,
        "threads": options.threads,
    }


def prior_points(study, curve: str) -> dict[str, np.ndarray]:
    """Prior draws [POINTS, ...] of the model's sites, z_recipe and z_run instead of theta."""
    import jax
    from numpyro.handlers import reparam
    from numpyro.infer import Predictive
    from numpyro.infer.reparam import LocScaleReparam

    from rlx.scaling.model import Options as ModelOptions
    from rlx.scaling.model import scaling_model

    theta = ("theta_recipe", "theta_run")
    model = reparam(scaling_model, {name: LocScaleReparam(centered=0) for name in theta})
    with jax.enable_x64(True):
        study = jax.tree.map(jax.numpy.asarray, study)
        draw = Predictive(model, num_samples=POINTS)
        sites = draw(jax.random.key(0), study, ModelOptions(curve))
    for name in theta:
        sites[name.replace("theta", "z")] = sites.pop(f"{name}_decentered")
    return {name: np.asarray(x) for name, x in sites.items() if name not in (*theta, "evaluations")}


def timed_fit(driver: Driver, seed: int, folder: Path, start: float) -> dict:
    """Seconds from `start` to the draws, their convergence, and the names of their sites."""
    from rlx.scaling import bayes

    path = folder / "draws.npz"
    row = driver.ask({"cmd": "fit", "seed": seed, "path": str(path)})
    seconds = time.perf_counter() - start
    draws = dict(np.load(path))
    rhat, ess = bayes.convergence(draws)
    return row | {"seconds": seconds, "rhat": rhat, "ess": ess, "sites": sorted(draws)}


def time_fits(systems: list[str], options: FitOptions) -> tuple[dict, dict]:
    """Rows of every system's fits, the cold one first, and its log densities at the points."""
    pythons = {name: environment(name) for name in systems}
    drivers, rows = {}, {name: [] for name in systems}
    with tempfile.TemporaryDirectory(prefix="rlx-benchmark-") as directory:
        folder = Path(directory)
        set_up = write_study(options, folder)
        for turn in range(1 + options.rounds):
            for name in systems:
                start = time.perf_counter()
                if turn == 0:
                    drivers[name] = Driver(pythons[name], DRIVERS[name], set_up)
                rows[name].append(timed_fit(drivers[name], options.seed + turn, folder, start))
        ask = {"cmd": "log_density", "path": str(folder / "points.npz")}
        density = {
            name: np.array(driver.ask(ask)["log_density"]) for name, driver in drivers.items()
        }
        for driver in drivers.values():
            driver.close()
    return rows, density


def fit_line(rows: list[dict]) -> dict:
    """The summary of one system's fits, the cold one first."""
    from rlx.scaling.draws import MAX_RHAT, MIN_ESS

    cold, *warm = rows
    rhat, ess = max(row["rhat"] for row in rows), min(row["ess"] for row in rows)
    divergences = sum(row["divergences"] for row in rows)
    return {
        "seconds_cold": round(cold["seconds"], 2),
        "seconds_warm": round(statistics.median(row["seconds"] for row in warm), 2),
        "ess_min": round(ess),
        "ess_per_s": round(statistics.median(row["ess"] / row["seconds"] for row in warm), 2),
        "rhat_max": round(rhat, 4),
        "divergences": divergences,
        "converged": rhat <= MAX_RHAT and ess >= MIN_ESS and divergences == 0,
        "steps": round(statistics.mean(row["steps"] for row in rows), 1),
    }


def compare_fits(options: FitOptions) -> list[dict]:
    """Posteriors of one study by rlx and a rival; the lines to print.

    Raises ValueError if a rival's density or monitored quantities are not rlx's.
    """
    systems = ["rlx"] + [options.rival] * (options.rival != "none")
    load = os.getloadavg()[0]
    rows, density = time_fits(systems, options)
    lines = []
    for name in systems:
        error = np.abs(density[name] - density["rlx"]).max()
        same_sites = rows[name][0]["sites"] == rows["rlx"][0]["sites"]
        if not np.allclose(density[name], density["rlx"], rtol=DENSITY_RTOL) or not same_sites:
            reason = f"another model than rlx's, log densities differ by {error:.3g}"
            raise ValueError(f"rival={name}: {reason}; fix {DRIVERS[name]}")
        line = {"what": "fit", "system": name, "size": options.size, "curve": options.curve}
        line |= fit_line(rows[name]) | {"log_density_error": float(f"{error:.2g}")}
        lines.append(line | {"threads": options.threads, "load": round(load, 2)})
    for line in lines:
        line["ratio"] = round(lines[0]["ess_per_s"] / line["ess_per_s"], 2)
    return lines


def run(argv: list[str]) -> None:
    """Print the lines. InputError on options that cannot be used."""
    what, options = parse(argv)
    for line in compare_fits(options) if what == "fit" else compare(what, options):
        print(json.dumps(line), flush=True)


def main(argv: list[str] | None = None) -> int:
    return exit_status(run, argv)


if __name__ == "__main__":
    sys.exit(main())
