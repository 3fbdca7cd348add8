"""Checkpoints of the whole state of a run.

A checkpoint has two parts. `device` is a pytree of arrays on devices (parameters, optimiser, the
sequences in flight with their cache), restored onto any mesh. `host` is a nested dictionary of
numbers, strings, lists and NumPy arrays (buffer, prompts, ledger, row offsets, clocks), stored as
one blob: a ZIP archive of arrays with the rest as JSON.

Orbax writes both in the background, into a directory that is renamed when complete: a process
killed at any moment leaves the previous checkpoint. One that cannot be read (a failed disk, a
truncated file), or whose arrays do not match their checksums, is set aside with a message, and the
one before it is used. A checkpoint of another configuration is refused.
"""

from __future__ import annotations

import io
import itertools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from rlx import processes
from rlx.config import CheckpointConfig, Config, another, identity
from rlx.errors import InputError


def pack(tree: Any) -> np.ndarray:
    """Nested dictionaries (with string keys), lists and arrays as bytes, uint8."""
    arrays: dict[str, np.ndarray] = {}

    def strip(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: strip(value) for key, value in node.items()}
        if isinstance(node, np.ndarray):
            arrays[name := f"a{len(arrays)}"] = node
            return {"array": name}
        return node

    text = json.dumps(strip(tree))
    file = io.BytesIO()
    np.savez(file, json=np.frombuffer(text.encode(), np.uint8), **arrays)
    return np.frombuffer(file.getvalue(), np.uint8)


def unpack(blob: np.ndarray) -> Any:
    """The inverse of `pack`."""
    with np.load(io.BytesIO(np.asarray(blob).tobytes()), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}

    def fill(node: Any) -> Any:
        if isinstance(node, dict) and set(node) == {"array"}:
            return arrays[node["array"]]
        return {key: fill(value) for key, value in node.items()} if isinstance(node, dict) else node

    return fill(json.loads(arrays["json"].tobytes()))


def _checksum(x: jax.Array) -> jax.Array:
    """sum_i (2 p_i + 1) b_i mod 2^32 of the bits b of an array, uint32; p depends on the position.

    Odd weights are invertible, so a change of one element is always detected, a change of several
    with probability 1 - 2^-32. An integer sum is exact in any order: the same on every mesh,
    computed on the device at memory bandwidth.
    """
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    bits = jax.lax.bitcast_convert_type(x, f"uint{min(8 * x.dtype.itemsize, 32)}")
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        factor = np.uint32(pow(0x9E3779B1, axis + 1, 2**32))
        position += factor * jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum((2 * position + 1) * bits.astype(jnp.uint32), dtype=jnp.uint32)


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


@jax.jit
def _checksums(named: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _checksum(x) for name, x in named.items()}


def checksums(tree: Any) -> dict[str, int]:
    """Checksums of the arrays of a pytree, by path.

    One program at a time, for all arrays on the same devices: concurrent programs that sum over
    devices can deadlock.
    """
    apart: dict[Any, dict[str, Any]] = {}
    for name, x in _named(tree).items():
        x = jnp.asarray(x)
        apart.setdefault(frozenset(x.sharding.device_set), {})[name] = x
    found = {}
    for named in apart.values():
        found |= jax.device_get(_checksums(named))
    return {name: int(x) for name, x in found.items()}


class Damaged(Exception):
    """A checkpoint does not hold what was written."""


def _verify(tree: Any, written: dict[str, int]) -> None:
    wrong = [n for n, found in checksums(tree).items() if written.get(n, found) != found]
    if wrong:
        raise Damaged(f"checksums of {len(wrong)} arrays do not match, first {wrong[0]}")


def saved(run: str | Path) -> list[int]:
    """The updates after which a run has a checkpoint, in order."""
    found = (Path(run) / "checkpoints").glob("[0-9]*")
    return sorted(int(path.name) for path in found if path.name.isdigit())


def load_params(run: str | Path, like: Any, step: int = 0) -> Any:
    """The parameters alone, from a run's newest checkpoint, or from the one after `step` updates.

    like: shapes, dtypes and shardings, as jax.ShapeDtypeStruct. Raises InputError if there is no
    such checkpoint, or if it is damaged.
    """
    directory, steps = Path(run).absolute() / "checkpoints", saved(run)
    if not steps or step and step not in steps:
        there = f"there are {', '.join(map(str, steps))}" if steps else "there is none"
        raise InputError("checkpoint", step or run, f"not in {directory}", there)
    item = {"state": {"params": like}}
    options = ocp.args.PyTreeRestore(
        item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
    )  # fmt: skip
    path = directory / str(step or steps[-1])
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            got = checkpointer.restore(path / "device", args=options)
            host = unpack(checkpointer.restore(path / "host")["blob"])
            _verify(got, host.get("checksums", {}))
    except Exception as error:
        _raise_if_no_damage(error)
        others = [str(directory / str(other)) for other in steps if str(other) != path.name]
        remedy = f"use {others[-1]}" if others else "run it again: there is no other checkpoint"
        raise InputError(
            "checkpoint", path, f"cannot be read ({_first_line(error)})", remedy
        ) from error
    return got["state"]["params"]


def _raise_if_no_damage(error: Exception) -> None:
    """Raises errors that are not due to damaged files: out of memory, missing permissions."""
    if isinstance(error, MemoryError | PermissionError) or "RESOURCE_EXHAUSTED" in str(error):
        raise error


def _first_line(error: Exception) -> str:
    first, *_ = str(error).splitlines() or [""]
    return first


def _shapes(tree: Any) -> dict[str, str]:
    """Such as `float32[16,32]`, by the path of the array."""
    named = _named(tree)
    return {name: f"{x.dtype}[{','.join(map(str, x.shape))}]" for name, x in named.items()}


def own_process() -> ocp.options.MultiprocessingOptions:
    """Options with which Orbax does not wait for other processes."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(me, {me}, f"process{me}")


class Checkpoints:
    """The checkpoints of one run directory, by number of updates."""

    def __init__(
        self, directory: Path, config: CheckpointConfig, of: Config | None = None, alone=False
    ):
        """of: the run's configuration; checkpoints of another are refused. alone: one process."""
        self.directory, self.of, self.alone = directory.absolute(), of, alone
        self.config, self.saved_s = config, time.monotonic()
        self.directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            create=False,
            multiprocessing_options=own_process()
            if alone
            else ocp.options.MultiprocessingOptions(),
            max_to_keep=config.keep_last,
            keep_period=config.keep_every_steps or None,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,  # left by processes that were killed or had a full disk
        )
        self.manager = ocp.CheckpointManager(
            self.directory, options=options, item_names=("device", "host")
        )

    def due(self, step: int) -> bool:
        late = time.monotonic() - self.saved_s > 60 * self.config.every_minutes
        return step % self.config.every_steps == 0 or late

    def save(self, step: int, device: Any, host: dict[str, Any]) -> None:
        """Start writing; arrays are copied before it returns."""
        host = {**host, "checksums": checksums(device), "run": self.of and identity(self.of)}
        parts = ocp.args.Composite(
            device=ocp.args.StandardSave(device), host=ocp.args.StandardSave({"blob": pack(host)})
        )
        self.manager.save(step, args=parts)
        self.saved_s = time.monotonic()

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, device, host) of the newest readable checkpoint; None if there is none.

        `like`: shapes, dtypes and shardings of the device part, as jax.ShapeDtypeStruct or arrays.
        Raises InputError if those of the checkpoint differ.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        for step, before in itertools.pairwise([*steps, 0]):
            damage = ""
            try:
                parts = ocp.args.Composite(host=ocp.args.StandardRestore())
                host = unpack(self.manager.restore(step, args=parts).host["blob"])
                written = host.pop("checksums", {})  # old checkpoints have none
                self._refuse_others(step, host.pop("run", None), like)
                parts = ocp.args.Composite(device=ocp.args.StandardRestore(like))
                device = self.manager.restore(step, args=parts).device
                _verify(device, written)
            except InputError:
                raise
            except Exception as error:  # anything that a damaged file makes Orbax or NumPy raise
                _raise_if_no_damage(error)
                path, damage = self.directory / str(step), _first_line(error) or "no reason given"
                then = f"checkpoint {before} is used" if before else "the run starts again"
                print(f"{path}: cannot be read ({damage}); set aside, {then}")
            if not (damage if self.alone else processes.any_of(bool(damage))[0]):
                return step, device, host
            self._set_aside(step)
        return None

    def _refuse_others(self, step: int, run: dict[str, Any] | None, like: Any) -> None:
        """Raises InputError for another configuration, Damaged for other arrays under the same."""
        path = self.directory / str(step)
        with ocp.StandardCheckpointer() as checkpointer:
            there = _shapes(checkpointer.metadata(path / "device").item_metadata.tree)
        here = _shapes(like)
        options = another(run, self.of) if run and self.of else ""
        names = [n for n in sorted(there.keys() | here.keys()) if there.get(n) != here.get(n)]
        shapes = [
            f"{n} is {there.get(n, 'absent')} there, {here.get(n, 'absent')} here" for n in names
        ]
        if shapes and run and not options:
            raise Damaged(shapes[0])
        if shapes or options:
            kinds = (shapes or [options])[0]
            reason = f"{path} is a checkpoint of another configuration ({kinds})"
            remedy = f"choose another directory, or remove {self.directory} to start again"
            raise InputError("out", self.directory.parent, reason, remedy)

    def _set_aside(self, step: int) -> None:
        """Rename it; of several processes the writer does."""
        if self.alone or processes.is_writer():
            names = [f"damaged-{step}", *(f"damaged-{step}-{n}" for n in range(2, 1000))]
            free = [name for name in names if not (self.directory / name).exists()]
            (self.directory / str(step)).rename(self.directory / free[0])
        if not self.alone:
            processes.wait(f"set aside {step}")
        self.manager.reload()

    def close(self) -> None:
        """Wait for checkpoints that are still being written."""
        self.manager.wait_until_finished()
        self.manager.close()
