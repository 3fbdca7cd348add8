"""Supervised training on an environment's own solutions: where a study's runs start from.

The artifact is a directory named after everything that decides its content. It is made by whoever
needs it first and shared by all runs of a study, so that their pass rate at zero compute, R0, is
one and the same.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from tqdm import tqdm

from rlx import checksum, flops, processes, record
from rlx.config import Config, WarmStartConfig, config_sha
from rlx.envs.base import Env, tokens_of
from rlx.errors import InputError
from rlx.models import transformer
from rlx.train.forward import completion_hidden, completion_logprobs
from rlx.types import Batch, Params, right_padded

REMEDY = "remove it, and it is made again"


def worked_share(step: int, config: WarmStartConfig) -> float:
    """1 at the start, falling linearly to `worked_share_end` at `anneal * steps`, then constant."""
    progress = min(1.0, step / (config.anneal * config.steps))
    return 1 + (config.worked_share_end - 1) * progress


def solutions(env: Env, config: WarmStartConfig, step: int, T: int) -> Batch:
    """A batch of training problems with a solution each, one sample per prompt."""
    rng = np.random.default_rng((config.seed, step))
    pad_id = env.tokenizer.pad_id
    B, U = config.batch_size, env.max_prompt_tokens
    prompts = []
    completion_BT = np.full((B, T), pad_id, np.int32)
    mask_BT = np.zeros((B, T), np.float32)
    for b in range(B):
        problem = env.train[rng.integers(len(env.train))]
        worked = bool(rng.random() < worked_share(step, config))
        prompts.append(env.tokenizer.encode_prompt(problem.prompt))
        target, own = tokens_of(env.tokenizer, env.solution(problem, rng, worked))
        completion_BT[b, : len(target)] = target
        mask_BT[b, : len(target)] = own
    prompt_PU, length_P = right_padded(prompts, U, pad_id)
    return Batch(
        prompt_PU=prompt_PU,
        prompt_length_P=length_P,
        completion_BT=completion_BT,
        mask_BT=mask_BT,
        behavior_logp_BT=np.zeros((B, T), np.float32),
        behavior_value_BT=np.zeros((B, T), np.float32),
        reward_PG=np.zeros((B, 1), np.float32),
        keep_P=np.ones(B, np.float32),
    )


def _longest_solution(env: Env, rng: np.random.Generator) -> int:
    lengths = [
        len(tokens_of(env.tokenizer, env.solution(problem, rng, worked))[0])
        for problem in env.train
        for worked in (False, True)
    ]
    return max(lengths)


def train(config: Config, env: Env, progress: bool = False) -> tuple[Params, float]:
    """Fresh parameters after supervised AdamW at a cosine rate, and the FLOPs that took."""
    c = config.warm_start
    key = jax.random.key(c.seed)
    params = transformer.init(key, config.model, env.tokenizer.vocab_size)
    if c.steps == 0:
        return params, 0.0
    schedule = optax.cosine_decay_schedule(c.learning_rate, c.steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95))

    def loss(params, batch):
        hidden_BTD = completion_hidden(params, batch, model=config.model)
        logp_BT, _ = completion_logprobs(params, hidden_BTD, batch, 1.0)
        return -jnp.sum(logp_BT * batch.mask_BT) / jnp.sum(batch.mask_BT)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, opt_state, batch):
        updates, opt_state = tx.update(jax.grad(loss)(params, batch), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    T = _longest_solution(env, np.random.default_rng(c.seed))
    opt_state, spent = tx.init(params), 0.0
    for step in tqdm(range(c.steps), desc="warm start", disable=not progress, unit="step"):
        batch = solutions(env, c, step, T)
        params, opt_state = update(params, opt_state, batch)
        length_B = T - np.argmax(batch.mask_BT[:, ::-1], axis=1)  # the last token is the policy's
        lengths = zip(batch.prompt_length_P, length_B, strict=True)
        vocab = env.tokenizer.vocab_size
        spent += sum(flops.train_flops(config.model, vocab, n, [m]) for n, m in lengths)
    return params, spent


def load_or_make(
    config: Config, env: Env, directory: str | Path, progress: bool = False
) -> tuple[Params, float]:
    """The shared artifact: (parameters as NumPy arrays, FLOPs spent on it).

    Made under a temporary name and renamed when whole, so that jobs which start at the same time
    agree on one; the result is the same whoever makes it. Of the processes of one run the first
    makes it. Raises InputError if what is there is not what was written, or if the weights became
    infinite.
    """
    identity = {"model": config.model, "env": config.env, "warm_start": config.warm_start}
    name = "-".join(config_sha(part) for part in identity.values())
    path = Path(directory).absolute() / name
    if processes.is_writer() and not (path / "manifest.json").exists():
        params, spent = train(config, env, progress)
        params = jax.device_get(params)
        if not all(np.isfinite(np.sum(x, dtype=np.float32)) for x in jax.tree.leaves(params)):
            rate, remedy = config.warm_start.learning_rate, "lower it"
            raise InputError("warm_start.learning_rate", rate, "its weights are not finite", remedy)
        with record.said_of("warm_start_dir", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=path.parent))
        try:
            with _alone() as checkpointer:
                checkpointer.save(scratch / "params", params)
            parts = {key: asdict(part) for key, part in identity.items()}
            parts |= {"flops": spent, "crc32": checksum.crc32s(_named(params, spent))}
            record.write_json(scratch / "manifest.json", parts)
            with contextlib.suppress(OSError):  # another job was faster; its artifact is the same
                scratch.rename(path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    processes.wait("warm start")
    vocab = env.tokenizer.vocab_size
    shapes = jax.eval_shape(
        lambda key: transformer.init(key, config.model, vocab), jax.random.key(0)
    )
    like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)
    try:
        with _alone() as checkpointer:
            params = checkpointer.restore(path / "params", like)
        manifest = record.read_json(path / "manifest.json")
        spent, written = manifest["flops"], manifest.get("crc32")
    except Exception as error:  # whatever a damaged file makes Orbax raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError("warm_start_dir", path, f"cannot be read ({reason})", REMEDY) from error
    if written is not None and (wrong := checksum.damaged(_named(params, spent), written)):
        raise InputError("warm_start_dir", path, f"{wrong[0]} is not what was written", REMEDY)
    return params, spent


def _named(params: Params, spent: float) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path({"flops": spent, **params})
    return {jax.tree_util.keystr(at, simple=True, separator="/"): x for at, x in leaves}


def _alone() -> ocp.StandardCheckpointer:
    """A checkpointer of this process, which waits for no other."""
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(me, {me}, f"process{me}")
    return ocp.StandardCheckpointer(multiprocessing_options=options)
