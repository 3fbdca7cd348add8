"""The device mesh, and the one table from logical axes to mesh axes."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from rlx.config import MeshConfig, ModelConfig
from rlx.errors import InputError
from rlx.types import Params

# Logical axis -> mesh axes. Prompts and the sampler's slots are split over data and fsdp together;
# a matrix is split over fsdp along d_model and over tensor along heads, ffn or vocabulary. The
# axis `expert` splits experts; in layers without experts it acts as part of tensor.
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
    """A (data, fsdp, expert, tensor) mesh over the first of `devices` (default: all).

    data = 0: the most devices that divide `prompts`, the groups of a microbatch. The last
    `generators` devices, an equal number in every process, are reserved for the generator. Raises
    InputError if there are too few devices, or if the mesh leaves a process idle.
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
            f"needs {math.prod(shape)} devices, the learner has {len(devices)}",
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
    """(learner's, generator's) devices; the generator's are the last ones of every process."""
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
        if keep < 1:
            reason = f"a process has {len(mine)} devices, and the learner needs one of them"
            remedy = f"use at most {(len(mine) - 1) * n}"
            raise InputError("mesh.generators", generators, reason, remedy)
        learners, others = learners + mine[:keep], others + mine[keep:]
    return learners, others


def check(mesh: Mesh, model: ModelConfig) -> None:
    """Raises InputError if devices would repeat work: if a size that they split is not divisible.

    Rows of the embedding may be any number, and key/value heads may be fewer than devices.
    """
    sizes = {"n_experts": RULES["expert"], "d_ff_expert": ("tensor",), "d_ff_shared": RULES["ffn"]}
    sizes = (sizes if model.n_experts else {}) | {"n_heads": RULES["heads"]}
    sizes |= {"d_ff": RULES["ffn"]} if len(model.sparse_layers) < model.n_layers else {}
    for name, (*others, axis) in sizes.items():
        parts = math.prod(mesh.shape[other] for other in (axis, *others))
        times = f"times mesh.expert={mesh.shape['expert']} " if parts > mesh.shape[axis] else ""
        if (size := getattr(model, name)) % parts:
            reason = f"{times}does not divide model.{name}={size}"
            remedy = "every device holds an equal part"
            raise InputError(f"mesh.{axis}", mesh.shape[axis], reason, remedy)


def on_gpus(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform in ("gpu", "cuda")


def on_one_gpu(mesh: Mesh) -> bool:
    """Whether the devices are GPUs that hold all weights each."""
    whole = math.prod(mesh.shape[axis] for axis in ("fsdp", *WITHIN)) == 1
    return whole and on_gpus(mesh)


def generator_mesh(
    config: MeshConfig, learner: Mesh, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The learner's mesh, or a disjoint one over the last `generators` devices."""
    if not config.generators:
        return learner
    shape = (config.generators, 1, 1, 1)  # slots are split, weights are replicated
    return _mesh(shape, _split(config.generators, devices)[1])


def _mesh(shape: tuple[int, int, int, int], devices: list[jax.Device]) -> Mesh:
    """Mesh axes along those of a TPU's torus, splitting a physical axis if needed.

    Devices that do not form a block of the torus are used in the order given.
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
    """x, split by its logical axes over the visible mesh.

    Without it XLA splits activations like the parameters: along d_model.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:  # 0: none is visible
        return x
    return jax.lax.with_sharding_constraint(x, sharding(mesh, axes, x.shape))


def sharding(
    mesh: Mesh | AbstractMesh, axes: tuple[str | None, ...], shape: tuple[int, ...]
) -> NamedSharding:
    """Sharding of an array with these logical axes; an axis that does not divide is replicated.

    A mesh axis splits the first logical axis that it can. The spec is canonical (no mesh axis of
    size 1, no trailing None), because jit recompiles for another spelling of the same layout.
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
    """Sharding of an array split along one logical axis."""
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
