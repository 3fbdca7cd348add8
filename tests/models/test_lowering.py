"""Updates and decode steps become programs for TPUs and CUDA, which need not be there."""

from dataclasses import replace

import pytest

from experiments import memory
from rlx.config import Config, MeshConfig, ModelConfig, OptimConfig, RolloutConfig

DENSE = ModelConfig(
    d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=24, scan_layers=True,
    remat=True, query_chunk=2, compute_dtype="bfloat16",
)  # fmt: skip
MIXED = replace(DENSE, n_experts=4, experts_per_token=2, d_ff_expert=12, norm_topk=True)
MODELS = {
    "dense": (DENSE, MeshConfig(fsdp=2)),
    "mixed": (MIXED, MeshConfig(fsdp=2, expert=2)),
    "blocks": (replace(MIXED, moe_dispatch="blocks"), MeshConfig(fsdp=2, expert=2)),
}
PLATFORMS = ("tpu", "cuda")


@pytest.mark.parametrize("model, layout", MODELS.values(), ids=MODELS)
def test_programs_lower_for_every_platform(model, layout):
    config = Config(
        model=model,
        rollout=RolloutConfig(prompts_per_step=2, group_size=2, max_new_tokens=3),
        optim=OptimConfig(vocab_chunk=8),
        mesh=replace(layout, data=1),
    )
    for name, program in memory.traced(config).programs.items():
        for platform in PLATFORMS:  # alone: a kernel of one has no lowering for the other
            text = program.lower(lowering_platforms=(platform,)).as_text()
            assert text.count("func.func public @main") == 1, (name, platform)
