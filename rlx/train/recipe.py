"""The functions that a recipe names, and whether they go together; checked before a run starts.

Losses, advantages and aggregations are registered in rlx.objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from rlx.config import AlgoConfig
from rlx.errors import InputError
from rlx.objectives import named
from rlx.objectives.advantages import ADVANTAGES
from rlx.objectives.losses import LOSSES
from rlx.objectives.weights import AGGREGATIONS

REFUSED = {
    "distill_top_k": (
        "the KL over the top k tokens does not depend on the sampled token, and as an advantage "
        "has zero expected gradient",
        "use algo.advantage=distill, which is of the sampled token",
    )
}
# Options that only losses read.
OF_LOSSES = ("clip_low", "clip_high", "is_cap", "tau_positive", "tau_negative", "tbrm_beta")
ARRAYS = 4  # parameters of every loss: logp, behaviour logp, advantage, mask


class Hyper(NamedTuple):
    """The numeric half of a step, traced; possible parameters of a loss."""

    clip_low: float
    clip_high: float
    is_cap: float
    tau_positive: float
    tau_negative: float
    advantage_eps: float
    correction_cap: float
    kl_coef: float
    entropy_coef: float
    value_coef: float
    value_clip: float
    gamma: float
    gae_lambda: float
    tbrm_beta: float
    teacher_coef: float
    covariance_share: float
    covariance_low: float
    covariance_high: float
    temperature: float
    max_new_tokens: float
    learning_rate: float
    warmup_steps: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    max_grad_norm: float
    lora_scale: float
    seed: float  # of the run, modulo 2^24


GIVEN = (*Hyper._fields, "ref_logp_BT", "reward_B", "log_partition_B")


def inputs(loss: str) -> tuple[str, ...]:
    """Parameters of a loss beyond those of all losses."""
    return named.asks(named.find(LOSSES, loss), ARRAYS)


def unread(loss: str) -> list[str]:
    """Options of other losses that have no effect with this one; none are known of an import."""
    names = OF_LOSSES if loss in LOSSES else ()
    return [f"algo.{name}" for name in names if name not in inputs(loss)]


def loss_of(algo: AlgoConfig) -> Callable:
    """The loss function. Raises InputError if there is none, or none that a step can call."""
    path = algo.loss
    try:
        function = _known("loss", LOSSES, path) if ":" not in path else named.find(LOSSES, path)
        needed = named.asks(function, ARRAYS)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        remedy = "give MODULE:FUNCTION of a module that Python can import here"
        raise InputError("algo.loss", path, f"cannot be imported ({error})", remedy) from error
    if unknown := [name for name in needed if name not in GIVEN]:
        remedy = f"possible parameters are {', '.join(GIVEN)}"
        raise InputError("algo.loss", path, f"unknown parameters {', '.join(unknown)}", remedy)
    return function


def _known(option: str, names: Mapping[str, Callable], kind: str) -> Callable:
    if kind in REFUSED:
        raise InputError(f"algo.{option}", kind, *REFUSED[kind])
    if kind not in names:
        remedy = f"use one of {', '.join(names)}"
        remedy += ", or MODULE:FUNCTION" if option == "loss" else ""
        raise InputError(f"algo.{option}", kind, "unknown name", remedy)
    return names[kind]


def has_critic(algo: AlgoConfig) -> bool:
    return "value_BT" in named.asks(_known("advantage", ADVANTAGES, algo.advantage), 0)


def has_bellman(algo: AlgoConfig) -> bool:
    """Whether the loss contains the reward and the reference."""
    return "ref_logp_BT" in named.asks(loss_of(algo), ARRAYS)


def needs_reference(algo: AlgoConfig) -> bool:
    return algo.kl != "none" or has_bellman(algo)


def clips(algo: AlgoConfig) -> bool:
    return getattr(loss_of(algo), "clips", False)


def check(algo: AlgoConfig) -> None:
    """Raises InputError for an unknown name, and for names that do not go together."""
    _known("aggregation", AGGREGATIONS, algo.aggregation)
    if algo.advantage == "distill" and not algo.teacher:
        reason = "algo.advantage=distill needs a teacher"
        raise InputError("algo.teacher", algo.teacher, reason, "give the path of a policy")
    if algo.correction != "none" and not getattr(loss_of(algo), "corrects", False):
        reason = f"algo.loss={algo.loss} has its own off-policy correction, or needs none"
        able = " or ".join(name for name, function in LOSSES.items() if function.corrects)
        remedy = f"set algo.loss={able}, or algo.correction=none"
        raise InputError("algo.correction", algo.correction, reason, remedy)
    if has_bellman(algo) and (has_critic(algo) or algo.kl != "none" or algo.teacher):
        reason = "it contains the reward and the reference already"
        remedy = "leave algo.kl=none, algo.teacher empty and algo.advantage as it is"
        raise InputError("algo.loss", algo.loss, reason, remedy)
    if algo.zero_variance != "keep" and (who := _learns_anyway(algo)):
        reason = f"{who} also learns from prompts with zero variance"
        remedy = "set algo.zero_variance=keep"
        raise InputError("algo.zero_variance", algo.zero_variance, reason, remedy)


def _learns_anyway(algo: AlgoConfig) -> str:
    """What learns from a prompt whose samples all have the same reward; empty if nothing does."""
    known = {
        "a critic": has_critic(algo),
        "distillation": algo.advantage == "distill",
        "a teacher": bool(algo.teacher),
        f"algo.loss={algo.loss}": "reward_B" in inputs(algo.loss),
        "algo.advantage=none": algo.advantage == "none",
        "algo.kl=k1_reward": algo.kl == "k1_reward",  # the penalty differs between them
    }
    return next((who for who, learns in known.items() if learns), "")
