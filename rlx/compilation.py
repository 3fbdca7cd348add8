"""How this process makes programs for its devices, and where it keeps them.

Kernels. A GPU may add up in whatever order its threads come, and XLA picks kernels by timing them,
so another process may run others. `compile.kernels=repeatable` gives XLA the flags in FLAGS: sums
in one order, kernels picked without a clock (openxla.org/xla/determinism). A CPU and a TPU need no
flag. `said` tells the manifest what was asked and whether the platform keeps it.

Programs. JAX keeps compiled programs in a directory under a key of the program, its devices, the
flags and the versions: `compile.cache`. Numbers of a run (learning rate, caps, seed) are arguments
of the programs, so cells of a sweep that differ in them share all, and those that differ in loss
or advantage all but the update. A program is written under another name and renamed, so neither a
reader nor a kill leaves a part of one.
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
LARGEST = 8 * 10**9  # bytes of a directory of programs
PART = ".part-"  # begins the name of a program that is being written
UNKNOWN = "this jaxlib does not know the flags"

_refused: list[str] = []  # flags that XLA does not read


def prepare(config: Config) -> None:
    """Set this process up as `compile` says, unless JAX has started, whose choices then stay.

    Raises InputError if the directory of programs cannot be made or written.
    """
    if asked(config) == "repeatable" and _gpu_plugin():
        _set_flags()
    use_every_core()
    _write_whole()
    if config.compile.cache == "none":
        jax.config.update("jax_compilation_cache_dir", None)
    elif directory := programs(config):
        _prune(directory)
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # the rest adds up


def asked(config: Config) -> str:
    """repeatable or fastest."""
    by_schedule = {"deterministic": "repeatable", "threads": "fastest"}
    kernels = config.compile.kernels
    return by_schedule[config.pipeline.schedule] if kernels == "auto" else kernels


def said(config: Config) -> dict[str, Any]:
    """For the manifest: what was asked, the flags in force, whether two runs agree, and why."""
    words = [word.partition("=") for word in os.environ.get("XLA_FLAGS", "").split()]
    on = {name for name, _, value in words if value in ("", "true", "1")}
    flags = [flag for flag in FLAGS if flag.partition("=")[0] in on]
    devices = jax.devices()
    kind = devices[0].platform
    if kind != "gpu":
        repeats, why = True, f"no kernel of a {kind} depends on time or the order of threads"
    elif flags != list(FLAGS):
        wanted = asked(config) == "repeatable"
        missing = UNKNOWN if _refused else "JAX had started without the flags"
        repeats, why = False, missing if wanted else "not asked for"
    elif len(devices) > 1:
        repeats, why = False, "XLA's flags do not decide how NCCL adds up across GPUs"
    else:
        repeats, why = True, "XLA guarantees it for these flags"
    return {"asked": asked(config), "flags": flags, "repeats": repeats, "why": why}


def _started() -> bool:
    """Whether JAX has made its devices, after which flags change nothing."""
    name, now = "jax_num_cpu_devices", jax.config.jax_num_cpu_devices
    try:
        jax.config.update(name, now + 1)  # which JAX then refuses
        jax.config.update(name, now)
    except RuntimeError:
        return True
    return False


def _gpu_plugin() -> bool:
    """Whether JAX may find a GPU here."""
    plugins = find_spec("jax_plugins")  # a namespace that those who have one share
    where = plugins.submodule_search_locations if plugins else []
    there = [module.name for module in pkgutil.iter_modules(where)]
    wanted = (jax.config.jax_platforms or "").split(",")
    return any("cuda" in name or "rocm" in name for name in there) and wanted != ["cpu"]


def _set_flags() -> None:
    """FLAGS behind what XLA_FLAGS holds, which counts where it names one of them itself."""
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
    """Whether XLA reads them: it ends a process that gives it a flag it does not know."""
    read = "from jaxlib import xla_client; xla_client.CompileOptions()"
    env = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", read], env=env, capture_output=True, check=False)
    return done.returncode == 0


def use_every_core() -> None:
    """One virtual CPU device per core, unless JAX has started; accelerators do not notice.

    Two devices of one thread each are faster than one device of two threads: small matrix
    products do not split well, batches do.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ:  # JAX reads it
        return
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):  # started by an earlier job of this process
        jax.config.update("jax_num_cpu_devices", cores)


# ------------------------------------------------------------------------------------- programs


def programs(config: Config) -> Path | None:
    """Where `compile.cache` keeps them.

    `auto`: in $XDG_CACHE_HOME/rlx/MACHINE, apart for every kind of processor, whose instructions
    the programs of a CPU are. None, and no directory of ours, where that cannot be written, or
    where JAX_COMPILATION_CACHE_DIR tells JAX of another. Raises InputError for a directory that
    was named and cannot be written.
    """
    cache = config.compile.cache
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
    """Why no file can be made there; empty where one can."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    return ""


def _machine() -> str:
    """The architecture, and a hash of what this processor's instructions are."""
    kind = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        words = ("model name", "flags", "Features")  # x86 and ARM
        kind += "".join(sorted({line for line in lines if line.startswith(words)}))
    return f"{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"


def _prune(directory: Path, largest: int = LARGEST) -> None:
    """Leave `largest` bytes of programs at most, those last used; and no part that a kill left.

    Whatever else is there is let alone.
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
    """Make JAX write an entry of its cache under another name, and rename it.

    JAX 0.10 to 0.12 write in place: a kill leaves a part, which is read in vain ever after.
    Where JAX has another class for that, it stays as it is.
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
