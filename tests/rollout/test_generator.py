"""The seam: limits and stop tokens of each request, continuations, and sequences set aside."""

import jax
import numpy as np
import pytest

from rlx.config import Config, EnvConfig, MeshConfig, ModelConfig, RolloutConfig
from rlx.mesh import make_mesh
from rlx.models import transformer
from rlx.rollout import sampler
from rlx.rollout.generator import Request, SlotGenerator, Weights, published
from rlx.train.forward import policy
from rlx.types import INJECTED, Batch
from tests.rollout.slots import by_key

MODEL = ModelConfig(d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=24)
V, U, T, W, STOP, OTHER = 9, 5, 12, 6, 8, 7
MESH = make_mesh(MeshConfig(data=1))
PROMPT, SECOND = np.array([1, 2, 3], np.int32), np.array([4, 5, 6, 1, 2], np.int32)


@pytest.fixture(scope="module")
def weights():
    return Weights(transformer.init(jax.random.key(1), MODEL, V), 3)


@pytest.fixture
def generator():
    rollout = RolloutConfig(4, 2, T, slots=W)
    config = Config(model=MODEL, rollout=rollout, env=EnvConfig(train_prompts=4))
    return SlotGenerator(config, sampler.Rules(), U, 2, 0, MESH, jax.random.key(0))


def group(serial, prompt, n=2, limit=T, stop_ids=(STOP,), **more):
    return [Request((serial, g), prompt, limit, stop_ids, **more) for g in range(n)]


def drain(generator, weights, tokens=3):
    """What finishes until nothing is in flight, by key."""
    found = {}
    while generator.slot_of:
        generator.begin(weights, tokens)
        found |= by_key(generator.collect()[0])
    return found


def learner_logp(weights, prompt, token_T):
    batch = Batch(
        prompt_PU=prompt[None], prompt_length_P=np.array([len(prompt)]),
        completion_BT=token_T[None], mask_BT=None, behavior_logp_BT=None,
        behavior_value_BT=None, reward_PG=None, keep_P=None,
    )  # fmt: skip
    return np.asarray(policy(weights.params, batch, 1.0, model=MODEL, mesh=MESH)[0][0])


def test_each_request_has_its_own_limit_and_stop_tokens(generator, weights):
    generator.submit(group(0, PROMPT, limit=4, stop_ids=(STOP, OTHER)) + group(1, PROMPT, n=3))
    generator.submit(group(2, SECOND, n=1, limit=1))
    assert generator.free == 0
    found = drain(generator, weights)
    assert sorted(found) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)] and generator.free == W
    for (serial, _), sample in found.items():
        stops, limit = [((STOP, OTHER), 4), ((STOP,), T), ((STOP,), 1)][serial]
        assert not set(sample.token_T[:-1].tolist()) & set(stops)
        assert sample.token_T[-1] in stops or len(sample.token_T) == limit
        assert set(sample.version_T.tolist()) == {3}
    assert any(OTHER in sample.token_T[:-1] for key, sample in found.items() if key[0] == 1)


def test_a_continued_sequence_goes_on_from_its_own_cache(generator, weights):
    """Two turns; the tokens put in between are fed, and are not the policy's.

    Log-probabilities are the learner's over the whole sequence; other keys/values than those that
    are there would give others.
    """
    generator.submit(group(5, PROMPT, limit=4, holds=True))
    first = drain(generator, weights)
    assert generator.free == W - 2 and not generator.slot_of
    before = {key: len(sample.token_T) for key, sample in first.items()}
    reply = [6, 5, 4]
    generator.submit(
        [Request(key, reply, T, (STOP,), continues=True) for key in sorted(first)]
        + group(6, SECOND, n=4)  # neighbours that start anew meanwhile
    )
    both = drain(generator, weights, tokens=2)
    for key, n in before.items():
        sample, old = both[key], first[key]
        np.testing.assert_array_equal(sample.token_T[:n], old.token_T)
        np.testing.assert_array_equal(sample.logp_T[:n], old.logp_T)
        assert sample.token_T[n : n + 3].tolist() == reply and len(sample.token_T) > n + 3
        injected_T = sample.version_T == INJECTED
        assert np.flatnonzero(injected_T).tolist() == [n, n + 1, n + 2]
        assert (sample.logp_T[injected_T] == 0).all()
        want_T = learner_logp(weights, PROMPT, sample.token_T)
        np.testing.assert_allclose(sample.logp_T[~injected_T], want_T[~injected_T], atol=1e-5)
    assert generator.free == W


def test_a_held_sequence_that_is_released_makes_room(generator, weights):
    generator.submit(group(0, PROMPT, holds=True))
    drain(generator, weights)
    assert generator.free == W - 2
    generator.release([(0, 0), (0, 1)])
    assert generator.free == W


def test_what_is_set_aside_goes_on_as_if_nothing_had_been(generator, weights):
    """With sequences in flight and a held one, an evaluation of other prompts in between."""
    generator.submit(group(0, PROMPT, n=3) + group(1, SECOND, n=1, limit=2, holds=True))
    generator.begin(weights, 2)
    early = by_key(generator.collect()[0])
    state, arrays = generator.state_dict(), jax.tree.map(np.asarray, generator.arrays())
    with generator.aside(jax.random.key(9)):
        assert generator.free == W and not generator.slot_of
        generator.submit(group(0, SECOND, n=W))
        other = drain(generator, weights, tokens=T)
    assert generator.state_dict() == state or str(generator.state_dict()) == str(state)
    jax.tree.map(
        np.testing.assert_array_equal, jax.tree.map(np.asarray, generator.arrays()), arrays
    )
    late = drain(generator, weights)
    generator.submit(group(0, SECOND, n=1))
    same = drain(generator, weights)[(0, 0)]
    assert same.token_T.tolist() != other[(0, 0)].token_T.tolist()  # another random key
    assert set(early) | set(late) == {(0, 0), (0, 1), (0, 2), (1, 0)}


def test_an_evaluation_of_an_idle_generator_draws_nothing_for_the_ledger(generator, weights):
    """It runs in the same slots and leaves its counts in them: nobody's, once it is over."""
    generator.submit(group(0, PROMPT, n=W, limit=2))
    drain(generator, weights)
    with generator.aside(jax.random.key(9)):
        generator.submit(group(0, SECOND, n=W))
        drain(generator, weights, tokens=T)
    generator.submit(group(1, PROMPT, n=1, limit=2))
    generator.begin(weights, T)
    found, drawn = generator.collect()
    assert found.keys == [(1, 0)]
    assert np.sum(drawn.now_W - drawn.before_W) == found.length_N[0]


def test_state_goes_on_elsewhere(generator, weights):
    generator.submit(group(0, PROMPT, n=3) + group(1, SECOND, n=2, limit=3, holds=True))
    generator.begin(weights, 3)
    generator.collect()
    state, arrays = generator.state_dict(), jax.tree.map(np.asarray, generator.arrays())
    want = drain(generator, weights)
    generator.load(state, jax.tree.map(jax.numpy.asarray, arrays))
    got = drain(generator, weights)
    assert got.keys() == want.keys() and generator.held.keys() == {(1, 0), (1, 1)}
    for key, sample in want.items():
        for a, b in zip(sample, got[key], strict=True):
            np.testing.assert_array_equal(a, b)


def test_it_says_what_it_holds(generator):
    columns, floats = U + T - 1, 4
    cache = 2 * 2 * W * columns * 2 * 8 * floats  # layers, k and v, slots, columns, heads, size
    rows = W * (4 * T * 4)
    assert cache + rows < generator.nbytes < cache + rows + W * 100


def test_published_weights_are_cast_once_and_are_what_the_learner_multiplies_with():
    model = ModelConfig(
        d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=24, scan_layers=True,
        compute_dtype="bfloat16",
    )  # fmt: skip
    params = transformer.init(jax.random.key(0), model, V)
    got = published(params, model, "float32", MESH, MESH)
    assert len(got["layers"]) == 2
    np.testing.assert_array_equal(
        got["layers"][1]["q"], params["layers"]["q"][1].astype("bfloat16")
    )
    assert got["layers"][1]["attn_norm"].dtype == got["head"].dtype == np.float32
    assert got["embed"].dtype == got["layers"][0]["down"].dtype == jax.numpy.bfloat16
    plain = transformer.init(jax.random.key(0), MODEL, V)
    same = published(plain, MODEL, "float32", MESH, MESH)
    where = lambda params: params["layers"][0]["q"].unsafe_buffer_pointer()  # noqa: E731
    assert where(same) == where(plain)  # nothing to cast: no copy
