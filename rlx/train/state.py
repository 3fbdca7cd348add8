"""The learner's state, laid out on its mesh, and its update by a gradient: clipping, then AdamW.

An update whose objective or gradient is not finite leaves parameters and moments unchanged. In
float16 the gradient is taken of `loss_scale` times the objective, and divided by it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rlx import mesh as meshes
from rlx.models import lora, transformer
from rlx.train.recipe import Hyper
from rlx.train.spec import Spec
from rlx.types import Params, TrainState

FIRST_SCALE, STEADY = 2.0**15, 200


class LossScale(NamedTuple):
    """Halved where a gradient overflows, doubled after STEADY updates without that, 1 to 2^24.

    Micikevicius et al. 2018 (arXiv 1710.03740), section 3.2.
    """

    loss_scale: jax.Array
    steady: jax.Array  # int32, updates since it last changed

    def after(self, finite) -> LossScale:
        steady = jnp.where(finite, self.steady + 1, 0)
        doubles = steady == STEADY
        scale = self.loss_scale * jnp.where(finite, jnp.where(doubles, 2.0, 1.0), 0.5)
        return LossScale(jnp.clip(scale, 1.0, 2.0**24), jnp.where(doubles, 0, steady))


def _is_scale(x) -> bool:
    return isinstance(x, LossScale)


def loss_scale(state: TrainState):
    """Factor of the objective before its gradient is taken."""
    parts = jax.tree.leaves(state.opt_state, is_leaf=_is_scale)
    return next((x.loss_scale for x in parts if _is_scale(x)), 1.0)


def optimizer(hyper: Hyper, version, learns=True, half=False) -> optax.GradientTransformation:
    """Clip the global norm, then AdamW; rate = learning_rate * min(1, (version + 1) / warmup).

    learns=False: the rate is 0, so that momentum alone changes nothing. half: the state includes
    a LossScale.
    """
    warmup = jnp.maximum(hyper.warmup_steps, 1)
    rate = hyper.learning_rate * jnp.minimum(1.0, (version + 1) / warmup) * learns
    adamw = optax.adamw(
        rate, b1=hyper.beta1, b2=hyper.beta2, eps=hyper.eps, weight_decay=hyper.weight_decay
    )
    return optax.chain(optax.clip_by_global_norm(hyper.max_grad_norm), adamw, *held_scale(half))


def held_scale(half: bool) -> list[optax.GradientTransformation]:
    """The last part of an optimiser whose state includes a LossScale; none if not half."""
    first = lambda params: LossScale(jnp.float32(FIRST_SCALE), jnp.int32(0))  # noqa: E731
    kept = lambda updates, scale, params: (updates, scale)  # noqa: E731
    return [optax.GradientTransformation(first, kept)] if half else []


def layout(state: TrainState, mesh: Mesh) -> TrainState:
    """Shardings of a state: moments like their parameters, scalars replicated."""
    axes = lora.logical_axes(state.params)
    like_params = jax.tree.structure(state.params)

    def place(tree):
        if jax.tree.structure(tree) == like_params:
            return meshes.of_params(mesh, tree, axes)
        return jax.tree.map(lambda x: meshes.sharding(mesh, (), ()), tree)

    is_params = lambda tree: jax.tree.structure(tree) == like_params  # noqa: E731
    return jax.tree.map(place, state, is_leaf=is_params)


def placed(params: Params, mesh: Mesh, may_alias: bool | None = None) -> Params:
    """Parameters, or adapters to them, on the mesh."""
    layout = meshes.of_params(mesh, params, lora.logical_axes(params))
    return jax.device_put(params, layout, may_alias=may_alias)


def init_state(spec: Spec, params: Params, seed: int = 0, value_head: bool = False) -> TrainState:
    """Version 0, laid out on the mesh; the arrays are copied, since the step donates its own.

    `state.params` are the trained parameters: all of `params` or adapters to them, and the value
    head of a critic or, with `value_head`, of a reward model. seed: of the adapters.
    """
    params = placed(params, spec.mesh, may_alias=False)
    like = state_like(spec, params, value_head)
    begin = jax.jit(
        functools.partial(_begin, spec, seed, value_head),
        out_shardings=jax.tree.map(lambda x: x.sharding, like),
    )
    return begin(params)


def _begin(spec: Spec, seed: int, value_head: bool, params: Params) -> TrainState:
    trained = lora.init(jax.random.key(seed), params, spec.lora_rank) if spec.lora_rank else params
    if value_head or spec.critic:
        trained = {**trained, "value": transformer.with_critic(params)["value"]}
    any_numbers = Hyper(*[0.0] * len(Hyper._fields))  # moments start at 0
    opt_state = optimizer(any_numbers, 0, half=spec.half).init(trained)
    return TrainState(params=trained, opt_state=opt_state, version=jnp.zeros((), jnp.int32))


def state_like(spec: Spec, params: Params, value_head: bool = False) -> TrainState:
    """Shapes and shardings of `init_state`; `params` may be shapes too."""
    state = jax.eval_shape(functools.partial(_begin, spec, 0, value_head), params)
    return meshes.shapes(state, layout(state, spec.mesh))


def ascend(state: TrainState, grads, objective, moving: optax.GradientTransformation, mesh: Mesh):
    """(state, norm of the gradient, whether all is finite): the next version.

    grads: of `loss_scale(state)` times the objective.

    Parameters change only if objective and gradient are finite. If both are and the flag is still
    False, the update itself made parameters or moments infinite.
    """
    scale = loss_scale(state)
    grads = jax.tree.map(lambda g: g / scale, grads)
    descent = jax.tree.map(jnp.negative, grads)  # the objective is maximised
    updates, opt_state = moving.update(descent, state.opt_state, state.params)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(objective) & jnp.isfinite(grad_norm)
    moved = (optax.apply_updates(state.params, updates), opt_state)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), moved, (state.params, state.opt_state)
    )
    parts = jax.tree.leaves((params, opt_state))  # NaN and infinity survive a sum
    finite &= jnp.isfinite(sum(jnp.sum(x, dtype=jnp.float32) for x in parts))
    opt_state = jax.tree.map(
        lambda x: x.after(finite) if _is_scale(x) else x, opt_state, is_leaf=_is_scale
    )
    state = TrainState(params=params, opt_state=opt_state, version=state.version + 1)
    return jax.lax.with_sharding_constraint(state, layout(state, mesh)), grad_norm, finite
