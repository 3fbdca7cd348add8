"""The slots sampler: what it draws, and that slots, chunks and neighbours do not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rlx.config import MeshConfig, ModelConfig
from rlx.mesh import make_mesh
from rlx.models import transformer
from rlx.objectives.logprobs import NEVER, from_logits
from rlx.rollout import sampler
from rlx.train.forward import completion_hidden, policy
from rlx.types import Batch
from tests.rollout.slots import new

CONFIG = ModelConfig(d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=24)
V, U, T, G, STOP = 7, 5, 6, 3, 6
MESH = make_mesh(MeshConfig(data=1))
STATIC = {"config": CONFIG, "rules": sampler.Rules(), "mesh": MESH}


@pytest.fixture(scope="module")
def params():
    return transformer.init(jax.random.key(1), CONFIG, V)


def prompts(P):
    rng = np.random.default_rng(0)
    length_P = rng.integers(2, U + 1, P).astype(np.int32)
    return rng.integers(0, V - 1, (P, U)).astype(np.int32), length_P


def run(params, slot_PG, serial_P, *, slots=8, chunks=(T,), temperature=1.0, seed=0):
    prompt_PU, length_P = prompts(4)
    s = sampler.empty(CONFIG, slots, U, T, 1, MESH)
    rows = np.array(serial_P)
    s = sampler.insert(
        params, s, prompt_PU[rows], length_P[rows], new(s, slot_PG, rows, (STOP,)),
        jax.random.key(seed), 0, temperature, **STATIC,
    )  # fmt: skip
    for steps in chunks:
        s = sampler.decode(params, s, 0, temperature, steps, **STATIC)
    return jax.device_get(s.replace(key_W=jax.random.key_data(s.key_W)))


def samples(s, slots):
    rows = [(s.token_WT[w, : s.count_W[w]], s.logp_WT[w, : s.count_W[w]]) for w in slots]
    return [(t.tolist(), p) for t, p in rows]


def assert_same(a, b, exact=True):
    assert [t for t, _ in a] == [t for t, _ in b]
    for (_, p), (_, q) in zip(a, b, strict=True):
        np.testing.assert_allclose(p, q, atol=0 if exact else 1e-5, rtol=0)


@pytest.mark.parametrize("V", [5, 128, 300])
def test_drawing_a_block_and_then_a_word_draws_from_the_same_distribution(V):
    N, rng = 40_000, np.random.default_rng(V)
    logits_V = np.append(rng.normal(0, 2, V - 1), NEVER).astype(np.float32)
    logits_NV = jnp.broadcast_to(logits_V, (N, V))
    token_N, logp_N = sampler._draw(logits_NV, jax.random.split(jax.random.key(V), N), True)
    expected_V = N * np.exp(logits_V) / np.exp(logits_V).sum()
    count_V = np.bincount(token_N, minlength=V)
    assert len(count_V) == V and count_V[-1] == 0  # of padding and of what never comes, none
    likely_V = expected_V >= 5
    gaps = (count_V - expected_V)[likely_V] ** 2 / expected_V[likely_V]
    assert scipy.stats.chi2.sf(gaps.sum(), likely_V.sum() - 1) > 1e-3
    np.testing.assert_allclose(logp_N, from_logits(logits_NV, token_N)[0], atol=2e-6, rtol=0)


def test_samples_do_not_depend_on_slots_or_neighbours(params):
    a = samples(run(params, [[0, 1, 2], [3, 4, 5]], [1, 2]), range(6))
    b = samples(run(params, [[7, 0, 3], [2, 6, 1]], [1, 2]), [7, 0, 3, 2, 6, 1])
    assert_same(a, b)
    alone = samples(run(params, [[4, 5, 6], [8, 8, 8]], [2, 0]), [4, 5, 6])  # 8: padding
    assert_same(a[3:], alone)


def test_samples_do_not_depend_on_chunks(params):
    whole = samples(run(params, [[0, 1, 2], [3, 4, 5]], [1, 2]), range(6))
    parts = samples(run(params, [[0, 1, 2], [3, 4, 5]], [1, 2], chunks=[1] * T), range(6))
    assert_same(whole, parts)


def test_a_refilled_slot_samples_as_a_fresh_one(params):
    """Group 3 starts in the slots of group 1 while group 2 is half-way."""
    prompt_PU, length_P = prompts(4)

    def insert(s, serials, slot_PG):
        rows = np.array(serials)
        return sampler.insert(
            params, s, prompt_PU[rows], length_P[rows], new(s, slot_PG, rows, (STOP,)),
            jax.random.key(0), 0, 1.0, **STATIC,
        )  # fmt: skip

    s = insert(sampler.empty(CONFIG, 8, U, T, 1, MESH), [1], [[0, 1, 2]])
    s = sampler.decode(params, s, 0, 1.0, T, **STATIC)
    s = insert(s, [2], [[3, 4, 5]])
    s = sampler.decode(params, s, 0, 1.0, 2, **STATIC)
    s = insert(s, [3], [[0, 1, 2]])
    s = jax.device_get(sampler.decode(params, s, 0, 1.0, T, **STATIC))
    expected = run(params, [[0, 1, 2], [3, 4, 5]], [3, 2])
    assert_same(samples(s, range(6)), samples(expected, range(6)), exact=False)


def test_stop_token_and_length_limit(params):
    s = run(params, [[0, 1, 2], [3, 4, 5]], [1, 2], temperature=3.0)
    lengths = []
    for w in range(6):
        token_T = s.token_WT[w, : s.count_W[w]]
        assert STOP not in token_T[:-1].tolist()
        assert token_T[-1] == STOP or len(token_T) == T
        lengths.append(len(token_T))
    assert min(lengths) < T and not s.active_W.any() and (s.count_W[6:] == 0).all()


def test_behaviour_logp_is_the_learners(params):
    """Sampler (prefill, then a cache) and learner (teacher forcing) agree on every token."""
    temperature = 0.7
    slot_PG = [[0, 1, 2], [3, 4, 5]]
    s = run(params, slot_PG, [1, 2], temperature=temperature)
    prompt_PU, length_P = prompts(4)
    mask_BT = np.arange(T) < s.count_W[:6, None]
    batch = Batch(
        prompt_PU=prompt_PU[1:3], prompt_length_P=length_P[1:3], completion_BT=s.token_WT[:6],
        mask_BT=mask_BT, behavior_logp_BT=None, behavior_value_BT=None, reward_PG=None, keep_P=None,
    )  # fmt: skip
    logp_BT, entropy_BT, *_ = policy(params, batch, temperature, model=CONFIG, mesh=MESH)
    gap = np.abs(np.where(mask_BT, logp_BT - s.logp_WT[:6], 0))
    assert gap.max() < 1e-5 and (np.where(mask_BT, entropy_BT, 1) > 0).all()


def test_tokens_follow_their_distribution(params):
    """Chi-square of 6,000 first tokens against softmax(logits / temperature)."""
    prompt_PU, length_P = prompts(1)
    temperature, n = 1.3, 6000
    s = sampler.empty(CONFIG, n, U, 1, 1, MESH)
    samples = new(s, np.arange(n)[None], [5], (STOP,))
    s = sampler.insert(
        params, s, prompt_PU, length_P, samples, jax.random.key(3), 0, temperature, **STATIC
    )
    hidden_PD, _ = transformer.prefill(params, CONFIG, prompt_PU, length_P)
    p_V = jax.nn.softmax(hidden_PD[0] @ params["head"] / temperature)
    count_V = np.bincount(np.asarray(s.token_WT[:, 0]), minlength=V)
    chi2 = np.sum((count_V - n * p_V) ** 2 / (n * p_V))
    assert chi2 < 22.5  # 99.9 % point with 6 degrees of freedom
    np.testing.assert_allclose(s.logp_WT[:, 0], jnp.log(p_V)[s.token_WT[:, 0]], atol=1e-5)


def test_seeds_and_samples_differ(params):
    a = samples(run(params, [[0, 1, 2], [3, 4, 5]], [1, 2]), range(6))
    b = samples(run(params, [[0, 1, 2], [3, 4, 5]], [1, 2], seed=1), range(6))
    assert [t for t, _ in a] != [t for t, _ in b]
    assert len({tuple(t) for t, _ in a[:3]}) > 1


def test_traced_once(params):
    before = sampler.decode._cache_size()
    for chunks in ([1, 2, 3], [2, 2, 2]):
        run(params, [[0, 1, 2]], [1], slots=5, chunks=chunks, temperature=0.5)
    assert sampler.decode._cache_size() == before + 1


def test_any_of_several_stop_tokens_ends_a_sample(params):
    """What is drawn before is the same; the first of either ends it."""
    prompt_PU, length_P = prompts(4)
    other = 2
    rows = {}
    for more in ((), (other,)):
        s = sampler.empty(CONFIG, 300, U, T, 1 + len(more), MESH)
        started = new(s, np.arange(300).reshape(3, 100), range(3), (STOP, *more))
        s = sampler.insert(
            params, s, prompt_PU[:3], length_P[:3], started, jax.random.key(0), 0, 1.0, **STATIC
        )
        rows[more] = samples(sampler.decode(params, s, 0, 1.0, T, **STATIC), range(300))
    cut = 0
    for (token_T, _), (shorter_T, _) in zip(rows[()], rows[(other,)], strict=True):
        end = token_T.index(other) + 1 if other in token_T else len(token_T)
        assert list(shorter_T) == list(token_T)[:end]
        cut += end < len(token_T)
    assert cut > 50


# Forced interruptions

PHRASE, THINK_END = (2, 3), 5
INTERRUPT = sampler.Rules(
    phrase=PHRASE, think_end_id=THINK_END, think_min=2, think_max=4, answer_tokens=3
)
LONG = 4 + len(PHRASE) + 3  # room for the longest: think_max, the phrase, the answer


@pytest.fixture(scope="module")
def interrupted(params):
    """1,800 samples of three prompts, in one piece."""
    prompt_PU, length_P = prompts(3)
    s = sampler.empty(CONFIG, 1800, U, LONG, 1, MESH)
    static = {**STATIC, "rules": INTERRUPT}
    started = new(s, np.arange(1800).reshape(3, 600), range(3), (STOP,))
    key = jax.random.key(0)
    s = sampler.insert(params, s, prompt_PU, length_P, started, key, 7, 1.0, **static)
    s = sampler.decode(params, s, 7, 1.0, LONG, **static)
    return jax.device_get(s.replace(key_W=None))


def test_thinking_ends_by_itself_or_within_its_budget(interrupted):
    s, budgets, kinds = interrupted, [], set()
    for w in range(1800):
        n = s.count_W[w]
        token_T, version_T = s.token_WT[w, :n].tolist(), s.version_WT[w, :n]
        assert not s.active_W[w] and set(version_T.tolist()) <= {7, -1}
        put_in = np.flatnonzero(version_T == -1)
        if len(put_in):
            start = put_in[0]
            budgets.append(start)
            assert put_in.tolist() == [start, start + 1] and start == s.think_W[w]
            assert tuple(token_T[start : start + 2]) == PHRASE
            assert THINK_END not in token_T[:start] and STOP not in token_T[:start]
            answer_T = token_T[start + 2 :]
            assert (s.logp_WT[w, put_in] == 0).all() and s.count_W[w] > start + 2
        elif THINK_END in token_T[: s.think_W[w]]:
            answer_T = token_T[token_T.index(THINK_END) + 1 :]
        else:  # it stopped while it thought
            assert token_T[-1] == STOP and n <= s.think_W[w]
            kinds.add("stopped")
            continue
        assert 1 <= len(answer_T) <= 3 and STOP not in answer_T[:-1]
        kinds.add((len(put_in) > 0, answer_T[-1] == STOP))
    assert kinds == {"stopped", (True, True), (True, False), (False, True), (False, False)}
    assert set(budgets) == {2, 3, 4}


def test_budgets_are_uniform_and_the_samples_own(interrupted, params):
    """600 draws from 2, 3, 4 for each prompt: four standard errors are 46; no two prompts alike."""
    think_PG = interrupted.think_W.reshape(3, 600)
    for think_G in think_PG:
        assert (np.abs(np.bincount(think_G, minlength=5)[2:] - 200) < 47).all()
    assert len({tuple(think_G) for think_G in think_PG.tolist()}) == 3


def test_interruption_does_not_depend_on_chunks(interrupted, params):
    prompt_PU, length_P = prompts(3)
    static = {**STATIC, "rules": INTERRUPT}
    s = sampler.empty(CONFIG, 1800, U, LONG, 1, MESH)
    started = new(s, np.arange(1800).reshape(3, 600), range(3), (STOP,))
    key = jax.random.key(0)
    s = sampler.insert(params, s, prompt_PU, length_P, started, key, 7, 1.0, **static)
    for _ in range(LONG):
        s = sampler.decode(params, s, 7, 1.0, 1, **static)
    got = jax.device_get(s.replace(key_W=None))
    np.testing.assert_array_equal(got.token_WT, interrupted.token_WT)
    np.testing.assert_array_equal(got.version_WT, interrupted.version_WT)


def test_after_an_interruption_the_policy_goes_on_from_the_phrase(interrupted, params):
    """Log-probabilities of sampled tokens are the learner's, who is fed the phrase as well."""
    prompt_PU, length_P = prompts(3)
    s, rows = interrupted, [w for w in range(0, 1800, 50)]
    mask_BT = (np.arange(LONG) < s.count_W[rows, None]) & (s.version_WT[rows] != -1)
    batch = Batch(
        prompt_PU=np.repeat(prompt_PU, 12, axis=0), prompt_length_P=np.repeat(length_P, 12),
        completion_BT=s.token_WT[rows], mask_BT=mask_BT, behavior_logp_BT=None,
        behavior_value_BT=None, reward_PG=None, keep_P=None,
    )  # fmt: skip
    logp_BT, *_ = policy(params, batch, 1.0, model=CONFIG, mesh=MESH)
    assert np.abs(np.where(mask_BT, logp_BT - s.logp_WT[rows], 0)).max() < 1e-5
    assert (~mask_BT[:, :-1] & (np.arange(LONG - 1) < s.count_W[rows, None] - 1)).any()


def test_values_are_those_of_the_state_before_the_token(params):
    """The critic's value of token t is its head on the hidden state that predicts token t."""
    rng = np.random.default_rng(0)
    critic = {**params, "value": rng.normal(size=16).astype(np.float32)}
    s = run(critic, [[0, 1, 2], [3, 4, 5]], [1, 2])
    prompt_PU, length_P = prompts(4)
    batch = Batch(
        prompt_PU=prompt_PU[1:3], prompt_length_P=length_P[1:3], completion_BT=s.token_WT[:6],
        mask_BT=None, behavior_logp_BT=None, behavior_value_BT=None, reward_PG=None, keep_P=None,
    )  # fmt: skip
    value_BT = completion_hidden(params, batch, CONFIG)[0] @ critic["value"]
    within_BT = np.arange(T) < s.count_W[:6, None]
    assert np.abs(np.where(within_BT, value_BT - s.value_WT[:6], 0)).max() < 1e-5
    assert np.ptp(s.value_WT[:6][within_BT]) > 0.1
    without = run(params, [[0, 1, 2], [3, 4, 5]], [1, 2])
    np.testing.assert_array_equal(without.token_WT, s.token_WT)
    assert (without.value_WT == 0).all()
