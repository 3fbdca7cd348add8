"""Eight virtual CPU devices, no silent broadcasting between ranks, warnings are errors.

The processes of one test run, those of pytest and those that tests start, share what they compile.
"""

import atexit
import gc
import os
import shutil
import tempfile
from dataclasses import replace
from importlib.metadata import version

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the first process of this test run
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="rlx-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# Programs run for milliseconds and compile for seconds; processes that tests start inherit these.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
before_0_11 = int(version("jaxlib").split(".")[1]) < 11  # XLA ends at a flag that it does not know
os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false" if before_0_11 else ""
os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
assert jax.device_count() == 8 or jax.default_backend() != "cpu"  # JAX starts here

from rlx.config import (  # noqa: E402
    Config,
    EnvConfig,
    EvalConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    WarmStartConfig,
)


@pytest.fixture(scope="module", autouse=True)
def forgotten():
    """A process may map so much memory and no more: thousands of programs are too many."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def optimised():
    """What this test compiles runs for longer than it takes to optimise."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def tiny() -> Config:
    """A run of seconds: 8,000 parameters, 4 prompts of 4 samples, an untrained start."""
    return Config(
        model=ModelConfig(d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=24),
        env=EnvConfig(train_prompts=32, heldout_prompts=12, kwargs={"hi": 4}, grade_timeout_s=0),
        rollout=RolloutConfig(prompts_per_step=4, group_size=4, max_new_tokens=6),
        warm_start=WarmStartConfig(steps=4, batch_size=16),
        eval=EvalConfig(every_steps=4),
        steps=8,
    )


@pytest.fixture(scope="session")
def easy(tiny, tmp_path_factory) -> Config:
    """16 prompts of 2 or 3 digits below 4, and a start that passes one time in three.

    Most prompts have both passes and fails, so updates move the policy. Runs share the warm start.
    """
    return Config(
        model=tiny.model,
        env=replace(
            tiny.env,
            train_prompts=16,
            heldout_prompts=8,
            kwargs={"lo": 2, "hi": 3, "base": 4},
        ),
        rollout=tiny.rollout,
        warm_start=WarmStartConfig(
            steps=40, batch_size=16, learning_rate=1e-2, worked_share_end=0.3
        ),
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=2),
        eval=EvalConfig(every_steps=2),
        mesh=MeshConfig(data=1),
        steps=6,
        warm_start_dir=str(tmp_path_factory.mktemp("warm_start")),
    )
