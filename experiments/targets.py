"""Compile for accelerators that are not present: compilers need no driver or device.

pip install -c constraints.txt -e '.[targets]'

h100, h200        one NVIDIA card; `h200:8` eight on one host. XLA compiles for it without any
                  library of NVIDIA, except attention by cuDNN, which needs nvidia-cudnn-cu12
                  (1.5 GB with its dependencies). Kernels are not tuned by timing, as on the
                  card, but chosen by a model of it
v6e:1x1, v5p:4x4x4, ...   a TPU slice by generation and topology, in Google's names
"""

from __future__ import annotations

import math
import os
import re
from importlib.util import find_spec
from typing import Any

from rlx.errors import InputError

HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 threads_per_warp: 32
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  device_memory_size: {bytes} memory_bandwidth: {bandwidth} l2_cache_size: {cache}
}}
platform_name: "CUDA" device_description_str: "NVIDIA {name}"
runtime_version {{ major: 12 minor: 9 }} dnn_version_info {{ major: 9 minor: 10 }}
"""
# Bytes, bytes a second, bytes: NVIDIA's data sheets, as the SXM cards report themselves.
CARDS = {
    "h100": HOPPER.format(name="H100", bytes=85 * 10**9, bandwidth=335 * 10**10, cache=50 << 20),
    "h200": HOPPER.format(name="H200", bytes=150 * 10**9, bandwidth=480 * 10**10, cache=60 << 20),
}
KNOWN = "use cpu, h100, h200, h200:8, or a TPU slice such as v6e:1x1 or v5p:4x4x4"
PACKAGES = {"cuda": "jax_cuda12_plugin", "tpu": "libtpu"}
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3"}
# Do not ask a cloud for metadata; several processes may compile, since none of them has a chip.
ALONE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_LOG_DIR": "disabled", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
ALONE |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}


def platform(target: str) -> str:
    """cpu, cuda or tpu. Raises InputError for an unknown target."""
    if target == "cpu":
        return "cpu"
    if re.fullmatch(rf"({'|'.join(CARDS)})(:[1-8])?", target):
        return "cuda"
    if re.fullmatch(r"v\d+[a-z]*:[1-9]\d*x[1-9]\d*(x[1-9]\d*)?", target):
        return "tpu"
    raise InputError("target", target, "no such accelerator", KNOWN)


def installed(target: str) -> bool:
    """Whether the compiler of a target is installed."""
    return target == "cpu" or find_spec(PACKAGES[platform(target)]) is not None


def devices(target: str) -> list[Any]:
    """Devices to compile for, which cannot run anything; of a target other than cpu.

    Raises InputError if there is no such accelerator, or its compiler is not installed.
    """
    kind, (name, _, extent) = platform(target), target.partition(":")
    if not installed(target):
        reason = f"{PACKAGES[kind]} is not installed"
        raise InputError("target", target, reason, "pip install -c constraints.txt -e '.[targets]'")
    for key, value in (QUIET | ALONE).items():
        os.environ.setdefault(key, value)
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    if kind == "cuda":
        how = {"topology": f"1x1x{extent or 1}", "target_config": CARDS[name]}
    else:
        chips = [int(n) for n in extent.split("x")]
        host = tuple(min(n, most) for n, most in zip([*chips, 1], (2, 2, 1), strict=False))
        how = {"topology_name": target, "chips_per_host_bounds": host}
    try:
        found = list(topologies.get_topology_desc(platform=kind, **how).devices)
    except JaxRuntimeError as error:
        reason = re.sub(r"^[A-Z_]+: ", "", str(error).splitlines()[0])
        raise InputError("target", target, reason, KNOWN) from None
    if kind == "tpu" and len(found) != math.prod(chips):
        raise InputError("target", target, f"has {len(found)} devices", KNOWN)
    return found
