"""Scores of a reward model against a plain pass over prompt and completion in one piece."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rlx.models import reward, transformer
from rlx.types import right_padded

V, PAD = 14, 13
PROMPTS = [[1, 2, 3], [4], [5, 6]]
GROUPS = [[[7, 8, 12], [9, 12]], [[12], [1, 2, 3, 4]], [[5, 12], [6, 7, 12]]]


@pytest.fixture(scope="module")
def params(tiny):
    params = transformer.with_critic(transformer.init(jax.random.key(0), tiny.model, V))
    return {**params, "value": jax.random.normal(jax.random.key(1), params["value"].shape)}


def test_padding_by_hand():
    texts = reward.padded(PROMPTS, GROUPS, 4, 5, PAD, rows=4)
    assert_array_equal(texts.prompt_PU[0], [1, 2, 3, PAD])
    assert_array_equal(texts.prompt_length_P, [3, 1, 2, 1])  # the last is one pad token
    assert_array_equal(texts.completion_BT[1], [9, 12, PAD, PAD, PAD])
    assert_array_equal(texts.length_B, [3, 2, 1, 4, 2, 3, 1, 1])


@pytest.mark.parametrize("scan", [False, True])
def test_a_score_is_the_value_at_the_last_token(tiny, params, scan):
    config = replace(tiny.model, scan_layers=scan)
    if scan:
        params = {**params, "layers": transformer.stack_layers(params["layers"])}
    texts = reward.padded(PROMPTS, GROUPS, 4, 5, PAD, rows=4)
    got_B = jax.jit(reward.scores, static_argnames="config")(params, config, texts)
    assert got_B.shape == (8,) and got_B.dtype == jnp.float32
    pieces = [x + y for x, group in zip(PROMPTS, GROUPS, strict=True) for y in group]
    whole_BU, length_B = right_padded(pieces, 9, PAD)
    last_BD, _ = transformer.prefill(params, config, whole_BU, length_B)
    assert_allclose(got_B[:6], last_BD @ params["value"], rtol=1e-4, atol=1e-5)
    assert len(set(np.round(got_B[:6], 4).tolist())) == 6
