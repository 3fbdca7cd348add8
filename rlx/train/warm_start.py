"""Warm starts: supervised training on an environment's own solutions, before RL.

The artifact is a directory named by a hash of everything that determines its content. The first run
that needs it makes it, and all runs of a study share it, so their pass rate at zero compute, R0, is
the same. It is a run directory under another name until complete: a run that is killed meanwhile
resumes its own.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlx import flops, processes, record
from rlx import mesh as meshes
from rlx.checkpoint import Checkpoints, load_params
from rlx.config import Config, MeshConfig, ModelConfig, WarmStartConfig, config_sha
from rlx.envs.base import Env, tokens_of
from rlx.errors import InputError
from rlx.models import transformer
from rlx.train.batch import demonstrated
from rlx.train.clock import Clock
from rlx.train.forward import policy
from rlx.train.health import Health
from rlx.train.loop import UNWATCHED, Loop, Outlook, Place, Row, Task, Watch, locked, never
from rlx.train.state import ascend, held_scale, layout, loss_scale
from rlx.types import Batch, NotFinite, Params, TrainState


def worked_share(step: int, config: WarmStartConfig) -> float:
    """1 at the start, falling linearly to `worked_share_end` at `anneal * steps`, then constant."""
    progress = min(1.0, step / (config.anneal * config.steps))
    return 1 + (config.worked_share_end - 1) * progress


def solutions(env: Env, config: WarmStartConfig, step: int, T: int) -> Batch:
    """A batch of training problems with a solution each, one sample per prompt."""
    rng = np.random.default_rng((config.seed, step))
    ids, prompts, targets = env.tokenizer, [], []
    for _ in range(config.batch_size):
        problem = env.train[rng.integers(len(env.train))]
        worked = bool(rng.random() < worked_share(step, config))
        prompts.append(ids.encode_prompt(problem.prompt))
        targets.append(tokens_of(ids, env.solution(problem, rng, worked)))
    completions, learned = zip(*targets, strict=True)
    return demonstrated(prompts, completions, env.max_prompt_tokens, T, ids.pad_id, learned)


def _longest_solution(env: Env, rng: np.random.Generator) -> int:
    lengths = [
        len(tokens_of(env.tokenizer, env.solution(problem, rng, worked))[0])
        for problem in env.train
        for worked in (False, True)
    ]
    return max(lengths)


def fresh(model: ModelConfig, env: Env, seed: int = 0) -> Params:
    return transformer.init(jax.random.key(seed), model, env.tokenizer.vocab_size)


class WarmStart(Task):
    """Fresh parameters trained by AdamW with cosine decay, on one device.

    The objective is the mean log-likelihood alone, without a balance loss of experts.
    """

    def __init__(self, model: ModelConfig, config: WarmStartConfig, env: Env):
        self.model, self.config, self.env = model, config, env
        self.T = _longest_solution(env, np.random.default_rng(config.seed))
        self.vocab = env.tokenizer.vocab_size
        params = fresh(model, env, config.seed)
        rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
        half = model.compute_dtype == "float16"
        moves = (optax.adamw(rate, b2=0.95), *held_scale(half))
        adamw = optax.chain(optax.clip_by_global_norm(1.0), *moves)
        mesh = meshes.make_mesh(MeshConfig(data=1), devices=jax.local_devices()[:1])
        chosen = transformer.chosen(model, mesh)
        state = TrainState(params, adamw.init(params), jnp.zeros((), jnp.int32))
        self.layout = layout(state, mesh)
        super().__init__(jax.device_put(state, self.layout))

        def mean_logp(params, batch, scale):
            logp_BT = policy(params, batch, 1.0, model=chosen, mesh=mesh)[0]
            return scale * jnp.sum(logp_BT * batch.mask_BT) / jnp.sum(batch.mask_BT)

        @functools.partial(jax.jit, donate_argnames="state")
        def update(state, batch):
            scale = loss_scale(state)
            grads = jax.grad(mean_logp)(state.params, batch, scale)
            state, grad_norm, finite = ascend(state, grads, 0.0, adamw, mesh)
            skipped = 1 - finite.astype(jnp.float32)
            metrics = {"grad_norm": grad_norm, "update/skipped": skipped}
            return state, metrics | ({"update/loss_scale": scale} if half else {})

        self.update, self.ahead = update, self._drawn(0)

    def _drawn(self, version: int) -> tuple[int, Batch, float]:
        """(version, batch, FLOPs of its update)."""
        batch, vocab = solutions(self.env, self.config, version, self.T), self.vocab
        length_B = self.T - np.argmax(batch.mask_BT[:, ::-1], axis=1)  # up to the last learned
        lengths = zip(batch.prompt_length_P, length_B, strict=True)
        spent = sum(flops.train_flops(self.model, vocab, n, [m]) for n, m in lengths)
        return version, batch, spent

    def batch(self, version: int) -> tuple[int, Batch, float]:
        if self.ahead[0] != version:
            self.ahead = self._drawn(version)
        return self.ahead

    def step(self, drawn: tuple[int, Batch, float]) -> Row:
        version, batch, _ = drawn
        self.state, metrics = self.update(self.state, batch)
        self.ahead = self._drawn(version + 1)  # while the device works
        return metrics

    def spend(self, version: int, drawn: tuple[int, Batch, float]) -> Row:
        _, batch, spent = drawn
        tokens = int(batch.mask_BT.sum())
        self.ledger.train_flops += spent
        self.ledger.tokens_trained += tokens
        self.ledger.samples += len(batch.mask_BT)
        return {"tokens_trained": tokens}

    def measure(self, version: int) -> list[Row]:
        """None: runs that start from it evaluate it, at version 0."""
        return []

    def arrays(self) -> dict[str, Any]:
        return {"state": jax.device_get(self.state)}  # Orbax cannot write arrays of one process

    def load(self, arrays: dict[str, Any], host: dict[str, Any]) -> None:
        self.state = jax.device_put(arrays["state"], self.layout)


def train(config: Config, env: Env, work: record.RunRecord, watch: Watch = UNWATCHED) -> float:
    """FLOPs spent on the parameters of the last checkpoint; resumes an earlier attempt.

    Raises Interrupted if it was asked to stop; removes the directory and raises InputError if the
    weights became infinite.
    """
    c, track = config.warm_start, watch.track
    task = WarmStart(config.model, c, env)
    watch = watch._replace(
        stop=watch.stop if jax.process_count() == 1 else never,  # the other processes wait
        forecast=Outlook,
        track=lambda step, row: track(step, {"warm_start": row}),
    )
    try:
        kept = Checkpoints(work.path / "checkpoints", config.checkpoint, alone=True)
        with contextlib.closing(Clock()) as clock, contextlib.closing(kept):
            health = Health(str(work.path), config.optim, quiet=True)
            place = Place(work, clock, health, watch, alone=True)
            loop = Loop(task, place, kept, c.steps, every=c.steps)
            loop.run("warm start")
            loop.save()
    except NotFinite as error:
        shutil.rmtree(work.path)
        rate, reason = c.learning_rate, error.args[0]
        raise InputError("warm_start.learning_rate", rate, reason, "lower it") from error
    return task.ledger.train_flops


def _parts(config: Config) -> dict[str, Any]:
    """What determines it."""
    return {"model": config.model, "env": config.env, "warm_start": config.warm_start}


def _place(config: Config, directory: str | Path) -> Path:
    """Its name has the hashes of model, task and warm start, and of the files of the task."""
    files = record.contents({f"env.{key}": x for key, x in asdict(config.env).items()})
    shas = [config_sha(part) for part in _parts(config).values()]
    name = "-".join([*shas, *(f"{crc:08x}" for crc in files.values())])
    return Path(directory).absolute() / f"{name}-run"


def is_made(config: Config, directory: str | Path) -> bool:
    """Whether the artifact of `load_or_make` is there, complete."""
    return (_place(config, directory) / "manifest.json").exists()


def load_or_make(
    config: Config, env: Env, directory: str | Path, watch: Watch = UNWATCHED
) -> tuple[Params, float]:
    """The shared artifact: (parameters as NumPy arrays, FLOPs spent); with 0 steps, fresh ones.

    It is renamed when complete, so jobs that start at the same time agree on one; all would make
    the same. Process 0 of a run makes it. Raises as `train`, and InputError if it is damaged.
    """
    if not config.warm_start.steps:
        return jax.tree.map(np.array, fresh(config.model, env, config.warm_start.seed)), 0.0
    path, made = _place(config, directory), is_made(config, directory)
    run_sha = hashlib.sha256(str(Path(config.out).absolute()).encode()).hexdigest()[:8]
    scratch = path.with_name(f".{path.name.removesuffix('-run')}-{run_sha}")
    if processes.is_writer() and not made:
        with record.os_errors("warm_start_dir", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        work = record.RunRecord(scratch)
        with locked(work, "warm_start_dir"):
            spent = train(config, env, work, watch)
            parts = {name: asdict(part) for name, part in _parts(config).items()}
            work.update_manifest(**parts, flops=spent)
            (work.path / ".lock").unlink()
        with contextlib.suppress(OSError):  # another job was faster, with the same result
            scratch.rename(path)
    if processes.is_writer():
        shutil.rmtree(scratch, ignore_errors=True)
    processes.wait("warm start")
    shapes = jax.eval_shape(lambda: fresh(config.model, env))
    like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)
    try:
        return load_params(path, like), record.read_json(path / "manifest.json")["flops"]
    except InputError as error:
        reason, remedy = f"damaged: {error.args[2]}", "remove it; it will be made again"
        raise InputError("warm_start_dir", path, reason, remedy) from error
