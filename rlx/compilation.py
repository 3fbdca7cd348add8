"""Deterministic kernels and the compilation cache.

Kernels. The order of sums on a GPU depends on thread timing, and XLA picks kernels by timing them,
so two processes may run different ones. `compile.kernels=repeatable` sets XLA's flags in FLAGS: a
fixed order of sums, kernels picked without timing (openxla.org/xla/determinism). CPUs and TPUs need
no flag. `described` records in the manifest what was requested and whether runs repeat.

Programs. JAX stores compiled programs in the directory `compile.cache`, keyed by program, devices,
flags and versions. Numbers (learning rate, caps, seed) are arguments of the programs: cells of a
sweep that differ only in numbers share all programs, and those that differ in loss or advantage
share all but the update. A program is written under another name and then renamed, so that no
incomplete one is ever read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pkgutil
import platform
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax

from rlx.config import Config
from rlx.errors import InputError

FLAGS = ("--xla_gpu_deterministic_ops=true",)  # implies xla_gpu_exclude_nondeterministic_ops
HOST_DEVICES = "--xla_force_host_platform_device_count"
LARGEST = 8 * 10**9  # bytes of a directory of programs
PART = ".part-"  # prefix of a program that is being written
UNKNOWN = "this jaxlib does not know the flags"

_refused: list[str] = []  # flags that XLA does not know


def prepare(config: Config) -> None:
    """Apply the options `compile`; those that JAX reads at its start have no effect after it.

    Raises InputError if the cache directory cannot be created or written.
    """
    if asked(config) == "repeatable" and _gpu_plugin():
        _set_flags()
    use_every_core()
    keep_programs(config.compile.cache)


def keep_programs(cache: str = "auto") -> None:
    """Store compiled programs in the directory `compile.cache`, and read them there."""
    _write_whole()
    if cache == "none":
        jax.config.update("jax_compilation_cache_dir", None)
    elif directory := programs(cache):
        _prune(directory)
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small ones add up


def asked(config: Config) -> str:
    """repeatable or fastest."""
    by_schedule = {"deterministic": "repeatable", "threads": "fastest"}
    kernels = config.compile.kernels
    return by_schedule[config.pipeline.schedule] if kernels == "auto" else kernels


def described(config: Config) -> dict[str, Any]:
    """For the manifest: the request, the flags in force, whether runs repeat bit for bit, why."""
    words = [word.partition("=") for word in os.environ.get("XLA_FLAGS", "").split()]
    on = {name for name, _, value in words if value in ("", "true", "1")}
    flags = [flag for flag in FLAGS if flag.partition("=")[0] in on]
    devices = jax.devices()
    kind = devices[0].platform
    if kind != "gpu":
        repeats, why = True, f"kernels of a {kind} do not depend on timing or thread order"
    elif flags != list(FLAGS):
        wanted = asked(config) == "repeatable"
        missing = UNKNOWN if _refused else "JAX had started without the flags"
        repeats, why = False, missing if wanted else "not requested"
    elif len(devices) > 1:
        repeats, why = False, "XLA's flags do not fix the order of NCCL's sums across GPUs"
    else:
        repeats, why = True, "XLA guarantees it for these flags"
    return {"asked": asked(config), "flags": flags, "repeats": repeats, "why": why}


def _started() -> bool:
    """Whether JAX has created its devices, after which flags have no effect."""
    name, now = "jax_num_cpu_devices", jax.config.jax_num_cpu_devices
    try:
        jax.config.update(name, now + 1)  # raises once JAX has started
        jax.config.update(name, now)
    except RuntimeError:
        return True
    return False


def _gpu_plugin() -> bool:
    """Whether JAX may find a GPU here."""
    plugins = find_spec("jax_plugins")  # a namespace package
    where = plugins.submodule_search_locations if plugins else []
    there = [module.name for module in pkgutil.iter_modules(where)]
    wanted = (jax.config.jax_platforms or "").split(",")
    return any("cuda" in name or "rocm" in name for name in there) and wanted != ["cpu"]


def _set_flags() -> None:
    """Append FLAGS to XLA_FLAGS, except those that it sets already."""
    before = os.environ.get("XLA_FLAGS", "")
    named = {word.partition("=")[0] for word in before.split()}
    flags = " ".join([before, *(f for f in FLAGS if f.partition("=")[0] not in named)]).strip()
    if flags == before or flags in _refused or _started():
        return
    if _accepted(flags):
        os.environ["XLA_FLAGS"] = flags
    else:
        _refused.append(flags)


def _accepted(flags: str) -> bool:
    """Whether XLA knows the flags: it aborts a process that sets an unknown one."""
    read = "from jaxlib import xla_client; xla_client.CompileOptions()"
    env = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", read], env=env, capture_output=True, check=False)
    return done.returncode == 0


def use_every_core() -> None:
    """One virtual CPU device per core, unless JAX has started; no effect on accelerators.

    A number in the environment counts instead: JAX_NUM_CPU_DEVICES or XLA's flag. Two devices of
    one thread each are faster than one device of two threads: small matrix products do not split
    well, batches do.
    """
    flags = [word.partition("=")[0] for word in os.environ.get("XLA_FLAGS", "").split()]
    if "JAX_NUM_CPU_DEVICES" in os.environ or HOST_DEVICES in flags:  # JAX and XLA read them
        return
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):  # JAX was started by an earlier job of this process
        jax.config.update("jax_num_cpu_devices", cores)


# ------------------------------------------------------------------------------------- programs


def programs(cache: str) -> Path | None:
    """The directory of compiled programs.

    `auto`: $XDG_CACHE_HOME/rlx/MACHINE, one directory per kind of processor, because CPU programs
    are machine code. None if that cannot be written, or if JAX_COMPILATION_CACHE_DIR sets another.
    Raises InputError if the option names a directory that cannot be written.
    """
    if cache == "auto" and os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return None
    if cache != "auto":
        directory = Path(cache).absolute()
        if reason := _unwritable(directory):
            remedy = "choose another directory, or none"
            raise InputError("compile.cache", cache, reason, remedy)
        return directory
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(home).absolute() / "rlx" / _machine()
    return None if _unwritable(directory) else directory


def _unwritable(directory: Path) -> str:
    """Why no file can be created there; empty if one can."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    return ""


def _machine() -> str:
    """The architecture, and a hash of the processor's model and instruction sets."""
    kind = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        words = ("model name", "flags", "Features")  # x86 and ARM
        kind += "".join(sorted({line for line in lines if line.startswith(words)}))
    return f"{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"


def _prune(directory: Path, largest: int = LARGEST) -> None:
    """Keep the `largest` bytes of programs used last, and remove incomplete ones left by kills.

    Other files are not touched.
    """
    kept, now = 0, time.time()
    there = []
    for path in [*directory.glob("*-cache"), *directory.glob(f"{PART}*")]:
        with contextlib.suppress(FileNotFoundError):  # another process prunes too
            stat = path.stat()
            there.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    for used, size, path in sorted(there, reverse=True):
        part = path.name.startswith(PART)
        kept += 0 if part else size
        if used < now - 3600 if part else kept > largest:
            path.unlink(missing_ok=True)


def _write_whole() -> None:
    """Make JAX write cache entries under another name and rename them.

    JAX 0.10 to 0.12 write in place: a kill leaves an incomplete entry, on which every later read
    fails. If JAX has no class LRUCache any more, nothing is changed.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from jax._src.lru_cache import LRUCache

        if LRUCache.put is not _put:
            LRUCache._put_in_place, LRUCache.put = LRUCache.put, _put


def _put(cache, key: str, value: bytes) -> None:
    if cache.eviction_enabled:  # JAX bounds the directory, under a lock
        return cache._put_in_place(key, value)
    with tempfile.NamedTemporaryFile(dir=cache.path, prefix=PART, delete=False) as file:
        try:
            file.write(value)
            file.close()
            os.replace(file.name, Path(cache.path) / f"{key}-cache")
        except BaseException:
            os.unlink(file.name)
            raise
