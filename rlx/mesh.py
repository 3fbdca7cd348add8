"""The device mesh, and the one table from logical axes to mesh axes."""

from __future__ import annotations

import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rlx.config import ConfigError, MeshConfig
from rlx.types import Params

# Logical axis -> mesh axis. Prompts (and their samples) are split over data and fsdp together;
# a matrix is split over fsdp along the model's width and over tensor along heads, ffn or words.
RULES = {
    "prompts": ("data", "fsdp"),
    "model": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "ffn": "tensor",
    "vocab": "tensor",
    "norm": None,
    "layer": None,
}


def make_mesh(config: MeshConfig) -> Mesh:
    """A (data, fsdp, tensor) mesh over the first devices. ConfigError if there are too few."""
    shape = (config.data, config.fsdp, config.tensor)
    devices = jax.devices()
    if math.prod(shape) > len(devices):
        raise ConfigError(
            "mesh",
            "x".join(map(str, shape)),
            f"needs {math.prod(shape)} devices, {len(devices)} are there",
            "shrink mesh.data, mesh.fsdp or mesh.tensor",
        )
    names = ("data", "fsdp", "tensor")
    return jax.make_mesh(
        shape, names, axis_types=(AxisType.Auto,) * 3, devices=devices[: math.prod(shape)]
    )


def sharding(mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
    """Sharding of an array with these logical axes; an axis that does not divide is replicated."""

    def rule(name, size):
        entry = RULES[name] if name else None
        names = entry if isinstance(entry, tuple) else (entry,) if entry else ()
        parts = math.prod(mesh.shape[axis] for axis in names)
        return entry if size % parts == 0 else None

    return NamedSharding(mesh, PartitionSpec(*map(rule, axes, shape)))


def by_prompt(mesh: Mesh, x) -> NamedSharding:
    """Sharding of an array whose first axis runs over prompts, or over their sequences."""
    return sharding(mesh, ("prompts",) + (None,) * (x.ndim - 1), x.shape)


def of_params(mesh: Mesh, params: Params, axes: Params) -> Params:
    """The sharding of every parameter; `axes` comes from rlx.models.transformer.logical_axes."""
    return jax.tree.map(lambda x, names: sharding(mesh, names, x.shape), params, axes)
