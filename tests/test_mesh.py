"""Logical axes on eight devices: who is split over what, and in one spelling only."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as Spec

from rlx.config import MeshConfig
from rlx.errors import InputError
from rlx.mesh import RULES, along, make_mesh, of_params, sharding
from rlx.models import transformer

SPLIT = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


@pytest.mark.parametrize(
    "axes, shape, spec",
    [
        (("prompts", None), (8, 5), Spec(("data", "fsdp"))),
        (("slots", None, None), (8, 2, 2), Spec(("data", "fsdp"))),
        (("model", "heads"), (16, 32), Spec("fsdp", "tensor")),
        (("heads", "model"), (32, 16), Spec("tensor", "fsdp")),
        (("model", "ffn"), (16, 24), Spec("fsdp", "tensor")),
        (("vocab", "model"), (14, 16), Spec("tensor", "fsdp")),
        (("layer", "model", "kv_heads"), (3, 16, 16), Spec(None, "fsdp", "tensor")),
        (("norm",), (16,), Spec()),
        (("prompts", None), (6, 5), Spec()),  # 6 is not divisible by 4 devices
        (("model", "vocab"), (16, 13), Spec("fsdp")),  # 13 is odd
        (("vocab", "model"), (13, 16), Spec(None, "fsdp")),
    ],
)
def test_an_array_is_split_by_its_logical_axes(axes, shape, spec):
    assert sharding(SPLIT, axes, shape).spec == spec


def test_the_expert_axis_splits_what_tensor_splits_where_there_are_no_experts():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, expert=2, tensor=2))
    within = ("expert", "tensor")
    assert sharding(mesh, ("model", "heads"), (16, 32)).spec == Spec("fsdp", within)
    expert = sharding(mesh, ("expert", "model", "ffn"), (4, 16, 24))
    assert expert.spec == Spec("expert", "fsdp", "tensor")


@pytest.mark.parametrize(
    "config, spec",
    [
        (MeshConfig(data=1), Spec()),
        (MeshConfig(data=8), Spec("data")),
        (MeshConfig(data=1, fsdp=4), Spec("fsdp")),
    ],
)
def test_specs_are_canonical(config, spec):
    """No mesh axis of size 1, no trailing None: jit would compile again for another spelling."""
    assert along(make_mesh(config), "prompts", np.zeros((8, 3))).spec == spec


def test_an_axis_other_than_the_first_can_be_split():
    assert along(SPLIT, "slots", np.zeros((3, 8, 2)), axis=1).spec == Spec(None, ("data", "fsdp"))


def test_every_parameter_has_a_rule_and_the_matrices_are_split(tiny):
    params = jax.eval_shape(lambda: transformer.init(jax.random.key(0), tiny.model, 14))
    placed = of_params(SPLIT, params, transformer.logical_axes(params))
    for x, where in zip(jax.tree.leaves(params), jax.tree.leaves(placed), strict=True):
        assert where.num_devices == 8
        assert set(where.spec) == ({"fsdp", "tensor"} if x.ndim == 2 else set())
    assert {name for names in transformer.AXES.values() for name in names} <= set(RULES)


@pytest.mark.parametrize(
    "config, prompts, data",
    [
        (MeshConfig(), 16, 8),
        (MeshConfig(), 12, 6),
        (MeshConfig(), 7, 7),
        (MeshConfig(), 11, 1),
        (MeshConfig(fsdp=2), 12, 3),  # 6 devices, 12 = 6 * 2; 4 * 2 does not divide it
        (MeshConfig(fsdp=2, tensor=2), 16, 2),
        (MeshConfig(data=2), 16, 2),
    ],
)
def test_data_0_takes_the_most_devices_that_divide_the_prompts(config, prompts, data):
    assert make_mesh(config, prompts).shape["data"] == data


def test_too_few_devices_are_an_error_with_numbers():
    with pytest.raises(
        InputError, match="^mesh=4x2x1x2: needs 16 devices, the learner has 8; shrink"
    ):
        make_mesh(MeshConfig(data=4, fsdp=2, tensor=2))
    with pytest.raises(
        InputError, match="^mesh=1x1x1x9: needs 9 devices, the learner has 8; shrink"
    ):
        make_mesh(MeshConfig(tensor=9))
