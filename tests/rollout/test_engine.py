"""Groups on the host: grading, the order of problems, the ledger, and slots that are refilled."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from rlx import flops
from rlx.config import AlgoConfig, MeshConfig, RolloutConfig
from rlx.envs.digit_chain import DigitChain
from rlx.envs.grading import Graders
from rlx.errors import InputError
from rlx.mesh import make_mesh
from rlx.models import transformer
from rlx.rollout.buffer import Buffer
from rlx.rollout.engine import Engine, rules
from rlx.rollout.generator import Weights
from rlx.rollout.prompts import epoch_order

P, G, T, PROBLEMS = 4, 4, 6, 32
CHARS, STOP, PAD, V = "0123456789=>", 12, 13, 14


class ManyCharacters(DigitChain):
    """Partial credit that an untrained policy earns: the share of 4 characters that differ."""

    def grade(self, problem, completion, stopped):
        return min(len(set(completion)), 4) / 4 if stopped else 0.0


@pytest.fixture(scope="module")
def env():
    return ManyCharacters(train_prompts=PROBLEMS, heldout_prompts=12, seed=0, hi=4)


@pytest.fixture(scope="module")
def make(tiny, env):
    """make(kind, k, slots) -> an engine whose policy stops early now and then."""
    params = transformer.init(jax.random.key(2), tiny.model, V)

    def engine(kind="sync", k=0, slots=0, seed=0):
        rollout = RolloutConfig(P, G, T, temperature=1.0, slots=slots, decode_chunk_tokens=2)
        algo = AlgoConfig(reward_fail=-1.0, reward_pass=3.0)
        changes = {"model": tiny.model, "env": tiny.env, "rollout": rollout, "algo": algo}
        config = type(tiny)(**changes, mesh=MeshConfig(data=1), seed=seed)
        buffer, ledger = Buffer(kind, k, P), flops.Ledger()
        it = Engine(config, Graders(env, {}), buffer, ledger, make_mesh(config.mesh))
        it.params = params
        return it

    return engine


def batches(engine, n):
    """The groups of n batches; with one kind of weights, the versions are made up."""
    taken = []
    for version in range(n):
        while not engine.buffer.ready():
            engine.step(Weights(engine.params, version))
        taken += engine.buffer.take(version)
    return taken


def test_groups_come_out_graded(make, env):
    groups = batches(make(), 4)
    seen = set()
    for group in groups:
        problem = env.train[group.problem_id]
        assert "".join(CHARS[i] for i in group.prompt_U) == problem.prompt
        for ids, n, score, reward, stopped in zip(
            group.completion_GT, group.length_G, group.score_G, group.reward_G, group.stopped_G,
            strict=True,
        ):  # fmt: skip
            text = [CHARS[i] for i in ids[:n] if i < len(CHARS)]
            assert stopped == (ids[n - 1] == STOP)
            assert score == (min(len(set(text)), 4) / 4 if stopped else 0)
            assert reward == -1 + 4 * score
            seen.add(float(score))
    assert seen == {0, 0.25, 0.5, 0.75, 1}


def test_nothing_is_left_beyond_the_length(make):
    for group in batches(make(), 2):
        beyond_GT = np.arange(T) >= group.length_G[:, None]
        assert (group.completion_GT[beyond_GT] == PAD).all()
        assert (group.behavior_logp_GT[beyond_GT] == 0).all()
        assert (group.behavior_logp_GT[~beyond_GT] < 0).all()


def test_every_epoch_is_a_fresh_permutation(make):
    groups = batches(make(), 2 * PROBLEMS // P)
    assert [group.serial for group in groups] == list(range(2 * PROBLEMS))
    order = [group.problem_id for group in groups]
    first, second = order[:PROBLEMS], order[PROBLEMS:]
    assert sorted(first) == sorted(second) == list(range(PROBLEMS))
    assert first != second and first != list(range(PROBLEMS))
    assert order[:8] == [int(i) for i in epoch_order(0, 0, PROBLEMS)[:8]]
    assert order[:8] != [int(i) for i in epoch_order(1, 0, PROBLEMS)[:8]]


def test_the_ledger_is_the_closed_form_of_the_finished_groups(make, tiny):
    engine = make()
    groups = batches(engine, 3)
    assert not engine.running
    ledger, of_groups = engine.ledger, {"prefill": 0.0, "decode": 0.0}
    for group in groups:
        U = len(group.prompt_U)
        of_groups["prefill"] += float(flops.prefill_flops(tiny.model, V, U))
        of_groups["decode"] += sum(
            float(flops.decode_flops(tiny.model, V, U, int(n))) for n in group.length_G
        )
    assert ledger.tokens_generated == sum(int(group.length_G.sum()) for group in groups)
    assert ledger.prefill_flops == pytest.approx(of_groups["prefill"], rel=1e-12)
    assert ledger.decode_flops == pytest.approx(of_groups["decode"], rel=1e-12)
    assert ledger.train_flops == ledger.eval_flops == 0


@pytest.mark.parametrize("kind, k, slots", [("sync", 0, 2 * G), ("pipeline", 3, 2 * G)])
def test_refilling_slots_does_not_change_what_is_sampled(make, kind, k, slots):
    for a, b in zip(batches(make(), 3), batches(make(kind, k, slots), 3), strict=True):
        assert (a.serial, a.problem_id) == (b.serial, b.problem_id)
        np.testing.assert_array_equal(a.completion_GT, b.completion_GT)
        np.testing.assert_array_equal(a.length_G, b.length_G)
        np.testing.assert_allclose(a.behavior_logp_GT, b.behavior_logp_GT, atol=1e-5, rtol=0)


def test_slots_are_refilled_while_others_go_on(make):
    """Every slot is free or belongs to one open sample, and groups of different ages coexist."""
    engine, started, ages = make("pipeline", 9, 2 * G), {}, set()
    for now in range(30):
        engine.step(Weights(engine.params, 0))
        in_flight = engine.generator.slot_of
        assert sorted([*in_flight.values(), *engine.generator.idle]) == list(range(2 * G))
        left = ((s, g) for s, x in engine.running.items() for g in range(G) if not x.length_G[g])
        assert set(in_flight) == set(left)
        for serial in engine.running:
            started.setdefault(serial, now)
        ages.add(len({started[serial] for serial in engine.running}))
    assert ages >= {2}


def test_seeds_sample_differently(make):
    a, b = batches(make(seed=0), 1), batches(make(seed=1), 1)
    assert [x.completion_GT.tolist() for x in a] != [x.completion_GT.tolist() for x in b]


@pytest.mark.parametrize("text, tokens", [(">>", 2), ("", 0)])
def test_the_end_of_thinking_is_one_token(tiny, text, tokens):
    algo = AlgoConfig(length_control="interruption")
    rollout = replace(
        tiny.rollout, think_tokens_min=1, think_tokens_max=2, answer_tokens=2, think_end=text
    )
    config = replace(tiny, algo=algo, rollout=rollout)
    with pytest.raises(InputError, match=f"^rollout.think_end={text}: {tokens} tokens; give a te"):
        rules(config, DigitChain(train_prompts=4, heldout_prompts=4, seed=0))
