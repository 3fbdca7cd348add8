"""A posterior as one netCDF file, with a checksum."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import xarray as xr

from rlx.checksum import crc32
from rlx.errors import InputError
from rlx.scaling.families import FAMILIES

GROUPS = ("posterior", "observed_data", "constant_data", "levels", "evals")
ATTRS = ("curve", "noise", "method", "C_ref", "priors", "departed")
SITES = ("theta_recipe", "theta_run", "logit_R0", "log_seed_sd", "log_wander_sd")
SITES += ("log_wander_length",)
CONSTANTS = ("compute", "stderr", "recipe_of_run", "start_of_run", "C_max", "design")


def missing(tree: xr.DataTree) -> list[str]:
    """Variables that questions need and the tree lacks."""
    need: dict[str, tuple[str, ...]] = {"posterior": SITES, "constant_data": CONSTANTS}
    need |= {"observed_data": ("value",), "evals": ("run", "compute", "value", "stderr")}
    need["posterior"] += tuple(site.name for site in FAMILIES[tree.attrs["curve"]].sites)
    return [f"{group}/{name}" for group in need for name in need[group] if name not in tree[group]]


def checksum(tree: xr.DataTree) -> str:
    """CRC-32 of the names, values and attributes of a tree, without the checksum itself."""
    crc = 0
    for node in tree.subtree:
        attrs = {k: str(v) for k, v in sorted(node.attrs.items()) if k != "crc32"}
        crc = zlib.crc32(f"{node.path} {attrs}".encode(), crc)
        for name, x in sorted(node.variables.items(), key=lambda item: str(item[0])):
            crc = zlib.crc32(f"{name} {x.dims} {crc32(x)}".encode(), crc)
    return f"{crc:08x}"


def write(tree: xr.DataTree, path: Path | str) -> None:
    """Write a posterior as one netCDF file, with a checksum for `read`.

    Raises InputError if there can be no such file.
    """
    tree.attrs["crc32"] = checksum(tree)
    try:
        tree.to_netcdf(path, engine="h5netcdf")
    except OSError as error:
        reason = f"cannot be written, {error.strerror or error}"
        remedy = "give a file in a directory that is there"
        raise InputError("posterior", path, reason, remedy) from error


def read(path: Path | str) -> xr.DataTree:
    """A posterior written by `write`.

    Raises:
        InputError: no such file; not a netCDF file; not a fit; or damaged.
    """
    path, remedy = Path(path), "give a file written by fit.save"
    if not path.is_file():
        raise InputError("posterior", path, "no such file", remedy)
    try:
        held = io.BytesIO(path.read_bytes())  # xarray keeps unreadable files open
        tree = xr.load_datatree(held, engine="h5netcdf")
        groups = [name for name in GROUPS if name not in tree]
        attrs = [name for name in ATTRS if name not in tree.attrs]
        lost = [*groups, *attrs, *(() if groups else missing(tree))]
    except Exception as error:  # netCDF readers raise many kinds on other files
        message = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        reason = f"cannot be read, {message}"
        raise InputError("posterior", path, reason, remedy) from error
    if lost:
        raise InputError("posterior", path, f"not a fit: lacks {', '.join(lost)}", remedy)
    if tree.attrs.get("crc32", checksum(tree)) != checksum(tree):
        raise InputError("posterior", path, "damaged: its checksum differs", "fit again")
    return tree
