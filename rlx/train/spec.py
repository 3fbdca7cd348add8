"""The configuration of an update: a static part, which is compiled, and a numeric part."""

from __future__ import annotations

from typing import Any, NamedTuple

from jax.sharding import Mesh

from rlx.config import Config, ModelConfig
from rlx.models import transformer
from rlx.train import recipe
from rlx.train.recipe import Hyper


class Spec(NamedTuple):
    """The static half of a step: names and shapes. Runs that share it share a compilation."""

    model: ModelConfig
    loss: str
    advantage: str
    critic: bool
    reference: bool
    aggregation: str
    correction: str
    kl: str
    entropy_bonus: bool
    covariance_clip: bool
    drop_zero_variance: bool
    microbatches: int
    group_slices: int
    lora_rank: int
    vocab_chunk: int
    head_dtype: str
    mesh: Mesh
    teacher: ModelConfig | None = None

    @property
    def half(self) -> bool:
        """Whether gradients may overflow or underflow."""
        return self.model.compute_dtype == "float16"

    @property
    def forward(self) -> dict[str, Any]:
        """Keywords of rlx.train.forward.policy."""
        names = ("model", "mesh", "vocab_chunk", "head_dtype")
        return {name: getattr(self, name) for name in names}


def names(config: Config, mesh: Mesh, teacher: ModelConfig | None = None) -> Spec:
    """The static part. teacher: the architecture of `algo.teacher`."""
    algo = config.algo
    fields = {**vars(config.optim), **vars(algo), "mesh": mesh}
    fields["model"] = transformer.chosen(config.model, mesh)
    fields["teacher"] = transformer.chosen(teacher, mesh) if teacher else None
    fields["critic"] = recipe.has_critic(algo)
    fields["reference"] = recipe.needs_reference(algo)
    fields["entropy_bonus"] = algo.entropy_coef > 0
    fields["covariance_clip"] = algo.covariance_share > 0
    fields["drop_zero_variance"] = algo.zero_variance == "drop"
    return Spec(**{name: fields[name] for name in Spec._fields})


def numbers(config: Config) -> Hyper:
    """The traced part."""
    optim = config.optim
    fields = {**vars(config.algo), **vars(optim), **vars(config.rollout)}
    fields["seed"] = config.seed % 2**24  # as many as float32 can tell apart
    fields["lora_scale"] = optim.lora_alpha / max(optim.lora_rank, 1)
    return Hyper(**{name: float(fields[name]) for name in Hyper._fields})
