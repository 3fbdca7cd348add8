"""One run on several processes: every host runs the same code, and devices share the work.

Each process holds the whole host state (prompts, buffer, ledger) and takes the same decisions, so
all of them call the same programs in the same order. What may differ between them (a signal, a
clock, a grade) is agreed on here. Process 0 alone writes files, in a directory that all processes
can read. With one process these functions cost nothing.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlx.errors import InputError


def start() -> None:
    """Join the other processes of this run; to be called before JAX is used.

    Slurm, TPU pods, Kubernetes and Open MPI are detected; elsewhere set
    JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Raises InputError if
    there is neither.
    """
    jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM
    numbers = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    given = {name: int(os.environ[key]) for name, key in numbers.items() if key in os.environ}
    try:
        jax.distributed.initialize(**given)
    except (ValueError, RuntimeError) as error:
        remedy = (
            "start it under srun, or set JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES "
            "and JAX_PROCESS_ID"
        )
        raise InputError("distributed", True, str(error), remedy) from None


def is_writer() -> bool:
    return jax.process_index() == 0


def to_host(tree: Any) -> Any:
    """Arrays of any sharding, as whole NumPy arrays in every process."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def any_of(*flags: bool) -> list[bool]:
    """Each flag, True if it is in any process."""
    if jax.process_count() == 1:
        return list(flags)
    return multihost_utils.process_allgather(np.array(flags)).any(axis=0).tolist()


def shared(items: Sequence[Any], work) -> np.ndarray:
    """`work(items)`, one float each; every process does a part and all get every result."""
    n, me = jax.process_count(), jax.process_index()
    if n == 1:
        return np.array(work(items), np.float32)
    part = np.zeros(-(-len(items) // n), np.float32)
    mine = items[me::n]
    part[: len(mine)] = work(mine)
    return multihost_utils.process_allgather(part).T.reshape(-1)[: len(items)]


def gathered(items: Sequence[Any], work) -> list[Any]:
    """`work(items)`, one picklable object each, divided in the same way."""
    n, me = jax.process_count(), jax.process_index()
    if n == 1:
        return work(items)
    mine = np.frombuffer(pickle.dumps(work(items[me::n])), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(mine)))
    padded = np.pad(mine, (0, int(sizes.max()) - len(mine)))
    blobs = multihost_utils.process_allgather(padded)
    parts = [pickle.loads(blob[:size].tobytes()) for blob, size in zip(blobs, sizes, strict=True)]
    return [parts[i % n][i // n] for i in range(len(items))]


def wait(name: str) -> None:
    """Block until every process has called it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
