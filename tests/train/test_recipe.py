"""Names of losses, advantages, aggregations: what they need, and what is refused at the start."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from rlx.config import AlgoConfig, Config
from rlx.errors import InputError
from rlx.objectives.losses import LOSSES, cispo, policy_objective
from rlx.train import recipe, start
from rlx.train.spec import names, numbers

HERE = f"{__name__}:mine"


def mine(logp_BT, behavior_logp_BT, adv_BT, mask_BT, *, is_cap, temperature):
    """A loss outside of rlx, which asks for two of the step's numbers."""
    obj_BT, info = cispo(logp_BT, behavior_logp_BT, adv_BT, mask_BT, is_cap=is_cap)
    return temperature * obj_BT, info


mine.clips = True


def greedy(logp_BT, behavior_logp_BT, adv_BT, mask_BT, *, appetite):
    raise NotImplementedError


def test_what_each_loss_needs():
    clips = {name: recipe.clips(AlgoConfig(loss=name)) for name in LOSSES}
    clipping = ("ppo_clip", "cispo", "gspo", "gmpo", "double_sided", "dppo_tv", "dppo_kl")
    assert clips == dict.fromkeys(clipping, True) | {
        "reinforce": False, "sapo": False, "tbrm": False
    }  # fmt: skip
    needing = [name for name in LOSSES if recipe.needs_reference(AlgoConfig(loss=name))]
    assert needing == ["tbrm"]
    assert recipe.needs_reference(AlgoConfig(kl="k2", kl_coef=0.1))
    critic = AlgoConfig(advantage="gae", zero_variance="keep")
    assert recipe.has_critic(critic) and not recipe.has_critic(AlgoConfig())


def test_a_loss_by_import_path():
    algo = AlgoConfig(loss=HERE)
    assert start.resolve(replace(Config(), algo=algo)).algo.loss == HERE
    assert recipe.clips(algo) and not recipe.needs_reference(algo)
    rows = [jnp.float32(np.random.default_rng(i).normal(size=(2, 3))) for i in range(3)]
    there = numbers(replace(Config(), algo=algo))._asdict() | {"is_cap": 1.1, "temperature": 2.0}
    obj_BT, _ = policy_objective(HERE, *rows, jnp.ones((2, 3)), **there)
    same_BT, _ = cispo(*rows, jnp.ones((2, 3)), is_cap=1.1)
    np.testing.assert_array_equal(obj_BT, 2 * same_BT)


def test_its_name_is_static(tiny):
    from rlx.mesh import make_mesh

    config = replace(tiny, algo=AlgoConfig(loss=HERE))
    spec = names(config, make_mesh(config.mesh, 4))
    assert spec.loss == HERE and isinstance(hash(spec), int)


def test_options_that_a_loss_does_not_read_are_those_of_others():
    read = {name for loss in LOSSES for name in recipe.inputs(loss)}
    assert read & set(vars(AlgoConfig())) == set(recipe.OF_LOSSES)
    tau = ["algo.tau_positive", "algo.tau_negative"]
    assert recipe.unread("ppo_clip") == ["algo.is_cap", *tau, "algo.tbrm_beta"]
    assert recipe.unread("dppo_tv") == [*tau, "algo.tbrm_beta"]
    assert recipe.unread(HERE) == []


@pytest.mark.parametrize(
    "algo, line",
    [
        ({"loss": "pppo"}, "algo.loss=pppo: unknown name; use one of reinforce, .*, or MODULE:F"),
        ({"loss": "no_such:f"}, "algo.loss=no_such:f: cannot be imported .*; give MODULE:FUNCTION"),
        ({"loss": f"{__name__}:no"}, "algo.loss=.*:no: cannot be imported .*; give MODULE:FUNC"),
        (
            {"loss": f"{__name__}:greedy"},
            "algo.loss=.*:greedy: unknown parameters appetite; possible parameters are clip_low, "
            ".*, log_partition_B",
        ),
        ({"advantage": "best"}, "algo.advantage=best: unknown name; use one of none, centered, "),
        ({"aggregation": "sum"}, "algo.aggregation=sum: unknown name; use one of token_mean, "),
        ({"advantage": "gae"}, "algo.zero_variance=drop: a critic also learns from .*; set "),
        (
            {"correction": "masked"},
            "algo.correction=masked: algo.loss=cispo has its own off-policy correction.*; set "
            "algo.loss=reinforce or ppo_clip, or algo.correction=none",
        ),
        (
            {"advantage": "distill_top_k", "teacher": "a"},
            "algo.advantage=distill_top_k: the KL over the top k tokens .*; use "
            "algo.advantage=distill, which is of the sampled token",
        ),
        ({"advantage": "distill"}, "algo.teacher=: algo.advantage=distill needs a .*; give"),
        (
            {"advantage": "distill", "teacher": "a"},
            "algo.zero_variance=drop: distillation also learns from .*; set",
        ),
        ({"teacher": "a"}, "algo.zero_variance=drop: a teacher also learns from .*; set"),
        ({"loss": "tbrm"}, "algo.zero_variance=drop: algo.loss=tbrm also learns .*; set"),
        ({"advantage": "none"}, "algo.zero_variance=drop: algo.advantage=none also learns .*; s"),
        (
            {"kl": "k1_reward", "kl_coef": 0.1, "zero_variance": "refill"},
            "algo.zero_variance=refill: algo.kl=k1_reward also learns from .*; set",
        ),
        ({"loss": "tbrm", "teacher": "a"}, "algo.loss=tbrm: it contains the reward and "),
        (
            {"loss": "tbrm", "kl": "k2", "kl_coef": 0.1},
            "algo.loss=tbrm: it contains the reward and ",
        ),
    ],
)
def test_what_cannot_run_is_refused(algo, line):
    with pytest.raises(InputError, match=line):
        start.resolve(replace(Config(), algo=AlgoConfig(**algo)))
