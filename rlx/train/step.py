"""One update of the policy: advantages -> objective -> weights -> gradient -> AdamW.

    objective(theta) = sum_bt  weight_bt * obj_bt(theta)

The weights and the advantages are computed once, on the whole batch, and the objective is linear
in the weights; so the gradient is the same for any microbatch, padding or mesh, and slices of the
batch simply add. Kept prompts are moved to the front, and the gradient skips slices without any: a
filtered prompt costs its generation and the forward pass of a reference, not its share of the
update.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlx.models import lora
from rlx.objectives.advantages import zero_variance
from rlx.train.batch import everywhere, in_slices, kept_first, on_mesh
from rlx.train.objective import metrics_of, nothing, objective
from rlx.train.recipe import Hyper
from rlx.train.spec import Spec
from rlx.train.state import ascend, loss_scale, optimizer, placed
from rlx.train.targets import targets
from rlx.types import Batch, Params, TrainState


def _train_step(
    state: TrainState, batch: Batch, base, reference, teacher, hyper: Hyper, *, spec: Spec
):
    """(state, batch) -> (state, metrics), pure."""
    policy = lambda params: lora.merged(base, params, hyper.lora_scale) if base else params  # noqa: E731
    keep_P = batch.keep_P
    if spec.drop_zero_variance:
        keep_P = keep_P * ~zero_variance(batch.reward_PG)
    batch, P = kept_first(batch, keep_P), len(keep_P)
    constants = targets(batch, reference, teacher, state.version, hyper, spec)
    by_sample = batch.replace(reward_PG=batch.reward_PG.reshape(-1))
    slices = in_slices((by_sample, constants), P, spec.microbatches, spec.mesh, spec.group_slices)

    scale = loss_scale(state)

    def add_slice(i, total):
        def of_part(params):
            value, metrics = objective(policy(params), *part, hyper, spec)
            return scale * value, metrics

        part = jax.tree.map(lambda x: x[i], slices)
        grads, (sums, maxima) = jax.grad(of_part, has_aux=True)(state.params)
        grads, sums = jax.tree.map(jnp.add, total[:2], (grads, sums))
        return grads, sums, jax.tree.map(jnp.maximum, total[2], maxima)

    kept = jnp.sum(batch.keep_P)
    used = jnp.ceil(kept * spec.microbatches / P).astype(jnp.int32) * spec.group_slices
    zeros = (jax.tree.map(jnp.zeros_like, state.params), *nothing(batch, spec))
    grads, sums, maxima = jax.lax.fori_loop(0, used, add_slice, zeros)

    moving = optimizer(hyper, state.version, used > 0, spec.half)
    state, grad_norm, finite = ascend(state, grads, sums["objective"], moving, spec.mesh)
    metrics = {
        "grad_norm": grad_norm,
        "prompts_kept": kept,
        "update/skipped": 1 - finite.astype(jnp.float32),
        "update/loss_scale": scale,
        **metrics_of(sums, maxima, spec),
    }
    return state, metrics


jitted_step = jax.jit(_train_step, static_argnames="spec", donate_argnames="state")


def make_train_step(
    spec: Spec, hyper: Hyper, start: Params | None = None, teacher: Params | None = None
):
    """The jitted (state, batch) -> (state, metrics) with these names and numbers.

    start: the parameters that adapters change, and the reference of a KL term or the Bellman
    residual; teacher: those of `algo.teacher`. Raises ValueError if they are needed and missing.
    """
    if spec.reference or spec.lora_rank:
        if start is None:
            what = f"algo.kl={spec.kl}, algo.loss={spec.loss}, optim.lora_rank={spec.lora_rank}"
            raise ValueError(f"start=None: {what}; give params")
        start = placed(start, spec.mesh)
    if spec.teacher:
        if teacher is None:
            raise ValueError("teacher=None: algo.teacher is set; give params")
        teacher = placed(teacher, spec.mesh)
    base, reference = start if spec.lora_rank else None, start if spec.reference else None
    fixed = everywhere(hyper, spec.mesh)  # once, not at every update

    def train_step(state: TrainState, batch: Batch, rate: float = 1.0):
        """rate: factor of the learning rate."""
        batch, now = on_mesh(batch, spec.mesh), hyper.learning_rate * rate
        numbers = fixed._replace(learning_rate=now)
        return jitted_step(state, batch, base, reference, teacher, numbers, spec=spec)

    return train_step
