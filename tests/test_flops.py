"""The closed forms against XLA's own count (layers unrolled) and against each other."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import flops
from rlx.config import ModelConfig
from rlx.models import attention, transformer

CONFIG = ModelConfig(d_model=256, n_layers=2, n_heads=8, n_kv_heads=4, head_dim=32, d_ff=768)
V = 512


def xla_flops(function, *args) -> float:
    analysis = jax.jit(function).lower(*args).compile().cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]


def test_weights_are_those_of_the_parameters():
    params = transformer.init(jax.random.key(0), CONFIG, V)
    matrices = [x for x in jax.tree.leaves(params) if x.ndim == 2]
    total = sum(x.size for x in matrices) - params["embed"].size
    assert sum(flops.matrix_weights(CONFIG, V).values()) == total


@pytest.mark.parametrize("length", [16, 64])
def test_prefill_equals_xla(length):
    """XLA counts the masked half of attention and the elementwise work, a few per cent here."""
    params = transformer.init(jax.random.key(0), CONFIG, V)

    def prefill(params, prompt_PU):
        hidden_PD, cache = transformer.prefill(params, CONFIG, prompt_PU, jnp.array([length]))
        return hidden_PD @ params["head"], cache

    counted = xla_flops(prefill, params, jnp.zeros((1, length), jnp.int32))
    per_key = 4 * CONFIG.n_layers * CONFIG.n_heads * CONFIG.head_dim
    closed = flops.prefill_flops(CONFIG, V, length) + per_key * length * (length - 1) / 2
    assert 1 <= counted / closed < 1.03


def test_decode_step_equals_xla():
    params = transformer.init(jax.random.key(0), CONFIG, V)
    S = 64
    cache = attention.empty(CONFIG, 1, S)

    def decode(params, cache):
        last_W = jnp.array([S - 1])
        hidden_WD, cache = transformer.decode(params, CONFIG, cache, jnp.array([1]), last_W)
        return hidden_WD @ params["head"], cache

    closed = flops.decode_flops(CONFIG, V, S - 1, 2)
    assert 1 <= xla_flops(decode, params, cache) / closed < 1.03


def test_decode_adds_up_token_by_token():
    whole = flops.decode_flops(CONFIG, V, 9, 7)
    steps = [flops.decode_flops(CONFIG, V, 9 + i, 2) for i in range(6)]
    np.testing.assert_allclose(whole, sum(steps))
    assert flops.decode_flops(CONFIG, V, 9, 1) == 0 == flops.decode_flops(CONFIG, V, 9, 0)


def test_training_is_three_forwards_of_the_group():
    """One prompt of 9, two samples of 4 and 1 tokens, by hand."""
    body = 2 * (
        flops.matrix_weights(CONFIG, V)["attention"] + flops.matrix_weights(CONFIG, V)["mlp"]
    )
    per_key, head = 4 * 2 * 8 * 32, 2 * 256 * V
    prompt = 9 * body + 45 * per_key  # 1 + ... + 9 keys
    sample = 3 * body + (10 + 11 + 12) * per_key  # 3 tokens are fed back, the 4th is only predicted
    heads = (4 + 1) * head
    got = flops.train_flops(CONFIG, V, 9, np.array([4, 1]))
    assert got == 3 * (prompt + sample + heads)


def test_a_reward_model_reads_every_token_once():
    """One prompt of 9, completions of 4 and 1 tokens, by hand; a head of one word for each."""
    weights = flops.matrix_weights(CONFIG, V)
    body, per_key = 2 * (weights["attention"] + weights["mlp"]), 4 * 2 * 8 * 32
    prompt = 9 * body + 45 * per_key
    completions = 5 * body + (10 + 11 + 12 + 13 + 10) * per_key
    assert flops.reward_flops(CONFIG, 9, [4, 1]) == prompt + completions + 2 * 2 * 256


@pytest.mark.parametrize(("window", "first"), [(4, 0), (4, 1), (1, 0), (100, 0)])
def test_a_window_bounds_the_keys_of_its_layers(window, first):
    """Prompt of 9 and 7 drawn tokens, token by token and layer by layer."""
    config = replace(CONFIG, sliding_window=window, sliding_window_from=first)
    per_key, plain = 4 * 8 * 32, replace(CONFIG, sliding_window=0)

    def keys(tokens):
        layers = [window if i >= first else 10**9 for i in range(CONFIG.n_layers)]
        return sum(min(n, most) for n in tokens for most in layers)

    spared = CONFIG.n_layers * sum(range(1, 10)) - keys(range(1, 10))
    less = flops.prefill_flops(plain, V, 9) - flops.prefill_flops(config, V, 9)
    assert less == per_key * spared
    spared = CONFIG.n_layers * sum(range(10, 16)) - keys(range(10, 16))
    less = flops.decode_flops(plain, V, 9, 7) - flops.decode_flops(config, V, 9, 7)
    assert less == per_key * spared
    assert (spared > 0) == (window < 16)


def test_ledger_row():
    ledger = flops.Ledger(train_flops=3, prefill_flops=1, decode_flops=2, eval_flops=9)
    ledger.discarded_flops = 2
    ledger.reward_flops = 5
    row = ledger.row()
    assert row["compute"] == 11 and row["eval_flops"] == 9  # evaluation is apart, discarded inside
    assert row["reward_flops"] == 5
    assert row["generate_flops"] == {"prefill": 1, "decode": 2}
