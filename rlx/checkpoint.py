"""The whole state of a run on disk, and back.

A checkpoint has two parts. `device` is a pytree of arrays that live on devices (parameters,
optimiser, the sequences in flight with their cache), restored onto whatever mesh it is asked for.
`host` is a nested dictionary of numbers, strings, lists and NumPy arrays (buffer, prompts, ledger,
row offsets, clocks), kept as one blob: a ZIP archive of arrays with the rest as JSON.

Orbax writes both in the background, into a directory that gets its name when it is whole: a process
killed at any moment leaves the former checkpoint. One that cannot be read all the same (a disk that
failed, a file cut short) is named, set aside, and the one before it is used. One that can be read
and holds other arrays is another model's, and refused.
"""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rlx.config import CheckpointConfig
from rlx.errors import InputError


def pack(tree: Any) -> np.ndarray:
    """Nested dictionaries (keys are strings) and lists as bytes, uint8; arrays stay arrays."""
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


def load_params(run: str | Path, like: Any, step: int = 0) -> Any:
    """The parameters alone, of a run's newest checkpoint, or of the one after `step` updates.

    like: their shapes, types and shardings, as jax.ShapeDtypeStruct. Raises InputError if there
    is no such checkpoint.
    """
    directory = Path(run).absolute() / "checkpoints"
    steps = sorted(int(path.name) for path in directory.glob("[0-9]*") if path.name.isdigit())
    if not steps or step and step not in steps:
        there = f"there are {', '.join(map(str, steps))}" if steps else "there is none"
        raise InputError("checkpoint", step or run, f"not in {directory}", there)
    item = {"state": {"params": like}}
    options = ocp.args.PyTreeRestore(
        item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
    )  # fmt: skip
    with ocp.PyTreeCheckpointer() as checkpointer:
        got = checkpointer.restore(directory / str(step or steps[-1]) / "device", args=options)
    return got["state"]["params"]


def _shapes(tree: Any) -> dict[str, str]:
    """`float32[16,32]` and the like, by the path of the array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    keystr = jax.tree_util.keystr
    return {
        keystr(path, simple=True, separator="/"): f"{x.dtype}[{','.join(map(str, x.shape))}]"
        for path, x in leaves
    }


class Checkpoints:
    """The checkpoints of one run directory, by the number of updates made."""

    def __init__(self, directory: Path, config: CheckpointConfig):
        self.directory = directory.absolute()
        self.config, self.saved_s = config, time.monotonic()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep_last,
            keep_period=config.keep_every_steps or None,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,  # of processes that were killed, or ran out of room
        )
        self.manager = ocp.CheckpointManager(
            self.directory, options=options, item_names=("device", "host")
        )

    def due(self, step: int) -> bool:
        late = time.monotonic() - self.saved_s > 60 * self.config.every_minutes
        return step % self.config.every_steps == 0 or late

    def save(self, step: int, device: Any, host: dict[str, Any]) -> None:
        """Start writing; arrays are copied before it returns."""
        parts = ocp.args.Composite(
            device=ocp.args.StandardSave(device), host=ocp.args.StandardSave({"blob": pack(host)})
        )
        self.manager.save(step, args=parts)
        self.saved_s = time.monotonic()

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, device, host) of the newest checkpoint that can be read; None without any.

        `like`: the device part's shapes, types and shardings, as jax.ShapeDtypeStruct or arrays.
        Raises InputError if the checkpoint holds others.
        """
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                self._refuse_others(step, like)
                parts = ocp.args.Composite(
                    device=ocp.args.StandardRestore(like), host=ocp.args.StandardRestore()
                )
                got = self.manager.restore(step, args=parts)
                return step, got.device, unpack(got.host["blob"])
            except InputError:
                raise
            except Exception as error:  # whatever a damaged file makes Orbax or NumPy raise
                first, *_ = str(error).splitlines() or [""]
                path = self.directory / str(step)
                print(f"{path}: cannot be read ({first}); set aside, the one before it is used")
                self._set_aside(step)
        return None

    def _refuse_others(self, step: int, like: Any) -> None:
        """Another model, optimiser or number of slots has arrays of other names or shapes."""
        path = self.directory / str(step)
        with ocp.StandardCheckpointer() as checkpointer:
            there = _shapes(checkpointer.metadata(path / "device").item_metadata.tree)
        here = _shapes(like)
        for name in sorted(there.keys() | here.keys()):
            if there.get(name) != here.get(name):
                kinds = (
                    f"{name} is {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
                )
                reason = f"{path} is a checkpoint of another configuration ({kinds})"
                remedy = f"choose another directory, or remove {self.directory} to start afresh"
                raise InputError("out", self.directory.parent, reason, remedy)

    def _set_aside(self, step: int) -> None:
        damaged = self.directory / str(step)
        damaged.rename(damaged.with_name(f"damaged-{step}"))
        self.manager.reload()

    def close(self) -> None:
        """Wait for what is still being written."""
        self.manager.wait_until_finished()
        self.manager.close()
