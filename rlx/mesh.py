"""The device mesh, and the one table from logical axes to mesh axes."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from rlx.config import MeshConfig
from rlx.errors import InputError
from rlx.types import Params

# Logical axis -> mesh axes. Prompts and the sampler's slots are split over data and fsdp together;
# a matrix is split over fsdp along the model's width and over tensor along heads, ffn or words. The
# axis `expert` splits experts; where there are none it is a part of tensor.
WITHIN = ("expert", "tensor")
RULES = {
    "prompts": ("data", "fsdp"),
    "slots": ("data", "fsdp"),
    "model": ("fsdp",),
    "heads": WITHIN,
    "kv_heads": WITHIN,
    "residual": WITHIN,
    "ffn": WITHIN,
    "expert": ("expert",),
    "router": (),
    "vocab": WITHIN,
    "norm": (),
    "layer": (),
}


def make_mesh(
    config: MeshConfig, prompts: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A (data, fsdp, expert, tensor) mesh over the first devices, of all that are there or given.

    data = 0 takes as many devices as divide `prompts`, the groups of a slice of the batch. The last
    `generators` devices are left to the generator, an equal number in every process. InputError if
    there are too few, or if a process is left without a part of the mesh.
    """
    devices, others = _split(config.generators, devices)
    processes = {device.process_index for device in [*devices, *others]}
    per_replica = config.fsdp * config.expert * config.tensor
    data = config.data
    if data == 0:
        most = max(len(devices) // per_replica, 1)
        data = max(n for n in range(1, most + 1) if prompts % (n * config.fsdp) == 0)
    shape = (data, config.fsdp, config.expert, config.tensor)
    if math.prod(shape) > len(devices):
        raise InputError(
            "mesh",
            "x".join(map(str, shape)),
            f"needs {math.prod(shape)} devices, {len(devices)} are there for the learner",
            "shrink mesh.data, mesh.fsdp, mesh.expert, mesh.tensor or mesh.generators",
        )
    used = devices[: math.prod(shape)]
    if {device.process_index for device in used} != processes:
        raise InputError(
            "mesh",
            "x".join(map(str, shape)),
            f"{len(used)} of {len(devices)} devices leave a process of {len(processes)} idle",
            "enlarge mesh.data, mesh.fsdp, mesh.expert or mesh.tensor, or start fewer processes",
        )
    return _mesh(shape, used)


def _split(
    generators: int, devices: Sequence[jax.Device] | None
) -> tuple[list[jax.Device], list[jax.Device]]:
    """(learner's, generator's) devices: the last ones of every process generate."""
    devices = jax.devices() if devices is None else devices
    of_process: dict[int, list[jax.Device]] = {}
    for device in devices:
        of_process.setdefault(device.process_index, []).append(device)
    n = len(of_process)
    if generators % n:
        raise InputError(
            "mesh.generators", generators, f"not a multiple of {n} processes", f"use {n}, or 0"
        )
    learners, others = [], []
    for _, mine in sorted(of_process.items()):
        keep = len(mine) - generators // n
        learners, others = learners + mine[:keep], others + mine[keep:]
    return learners, others


def generator_mesh(
    config: MeshConfig, learner: Mesh, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The learner's, or a mesh of its own over the last `generators` devices, disjoint from it."""
    if not config.generators:
        return learner
    shape = (config.generators, 1, 1, 1)  # slots are split, weights are whole on every device
    return _mesh(shape, _split(config.generators, devices)[1])


def _mesh(shape: tuple[int, int, int, int], devices: list[jax.Device]) -> Mesh:
    """Mesh axes along those of a TPU's torus, which are split where the shape asks for it.

    Devices that are no block of the torus are taken as they come.
    """
    names, kinds = ("data", "fsdp", "expert", "tensor"), (AxisType.Auto,) * 4
    try:
        return jax.make_mesh(shape, names, axis_types=kinds, devices=devices)
    except NotImplementedError:
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except AssertionError:
        placed = np.array(devices).reshape(shape)
    return Mesh(placed, names, axis_types=kinds)


def visible(mesh: Mesh, function):
    """The function, traced where `jax.sharding.get_abstract_mesh` gives this mesh."""

    @functools.wraps(function)
    def traced(*args, **kwargs):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **kwargs)

    return traced


def split(x: jax.Array, *axes: str | None) -> jax.Array:
    """x, split by its logical axes over the mesh that is visible.

    Left to itself XLA splits activations as it finds the parameters split: along the model's width.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:  # 0: none is visible
        return x
    return jax.lax.with_sharding_constraint(x, sharding(mesh, axes, x.shape))


def sharding(
    mesh: Mesh | AbstractMesh, axes: tuple[str | None, ...], shape: tuple[int, ...]
) -> NamedSharding:
    """Sharding of an array with these logical axes; an axis that does not divide is replicated.

    A mesh axis splits the first logical axis that it can.

    The spec is written in one canonical way (no mesh axis of size 1, no trailing None), because
    jit compiles again for every other way of writing the same layout.
    """

    taken: set[str] = set()

    def entry(name: str | None, size: int):
        names = [n for n in RULES.get(name, ()) if mesh.shape[n] > 1 and n not in taken]
        if not names or size % math.prod(mesh.shape[n] for n in names):
            return None
        taken.update(names)
        return names[0] if len(names) == 1 else tuple(names)

    entries = list(map(entry, axes, shape))
    while entries and entries[-1] is None:
        entries.pop()
    return NamedSharding(mesh, PartitionSpec(*entries))


def along(mesh: Mesh, name: str, x, axis: int = 0) -> NamedSharding:
    """Sharding of an array that is split along one logical axis."""
    axes = [None] * x.ndim
    axes[axis] = name
    return sharding(mesh, tuple(axes), x.shape)


def of_params(mesh: Mesh, params: Params, axes: Params) -> Params:
    """The sharding of every parameter; `axes` comes from rlx.models.transformer.logical_axes."""
    return jax.tree.map(lambda x, names: sharding(mesh, names, x.shape), params, axes)


def shapes(tree: Params, layout: Params) -> Params:
    """The arrays of a tree without their values: shapes, dtypes, and the shardings of `layout`."""
    like = jax.ShapeDtypeStruct
    return jax.tree.map(lambda x, place: like(x.shape, x.dtype, sharding=place), tree, layout)
