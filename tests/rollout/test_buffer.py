"""The staleness bound, over random interleavings of a generator and a learner."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.rollout.buffer import Buffer
from rlx.types import Group


def group(serial: int, versions: list[int], rewards=(0.0, 1.0)) -> Group:
    one = np.zeros((1, len(versions)))
    return Group(
        serial=serial, problem_id=0, prompt_U=np.zeros(1, np.int32), completion_GT=one,
        length_G=np.array([len(versions)]), behavior_logp_GT=one, behavior_value_GT=one,
        version_GT=np.array([versions]), reward_G=np.array(rewards), score_G=np.zeros(1),
        stopped_G=np.ones(1, bool),
    )  # fmt: skip


kinds = st.one_of(
    st.just(("sync", 0)),
    st.tuples(st.just("pipeline"), st.integers(0, 4)),
    st.tuples(st.just("ppo_off_policy"), st.integers(1, 4)),
)


@settings(deadline=None, max_examples=200)
@given(kinds, st.integers(1, 3), st.randoms(use_true_random=False))
def test_bound_order_and_liveness(kind_k, P, random):
    """Whatever happens in whatever order: the bound holds, groups leave once and in order, and
    some step is always possible."""
    kind, k = kind_k
    buffer, version, running, used = Buffer(kind, k, P), 0, {}, []
    seen_staleness = set()
    for _ in range(300):
        actions = []
        if buffer.may_start():
            actions.append("start")
        if running:
            actions += ["token", "finish"]
        if buffer.ready():
            actions.append("learn")
        assert actions, "nothing can happen"
        action = random.choice(actions)
        if action == "start":
            running[buffer.start()] = [version]
        elif action == "token":
            running[random.choice(list(running))].append(version)
        elif action == "finish":
            serial = random.choice(list(running))
            buffer.put(group(serial, running.pop(serial)))
        else:
            batch = buffer.take(version)
            for g in batch:
                seen_staleness.add(version - g.first_version)
            used += [g.serial for g in batch]
            version += 1
    assert used == list(range(len(used)))
    bound = k - 1 if kind == "ppo_off_policy" else k
    assert all(0 <= s <= bound for s in seen_staleness)


@settings(deadline=None, max_examples=200)
@given(kinds, st.integers(1, 3), st.randoms(use_true_random=False))
def test_refilling_keeps_the_bound_and_fills_every_batch(kind_k, P, random):
    """Groups without variance leave when they finish; batches are the oldest others, whole."""
    kind, k = kind_k
    buffer, version, running, used, dropped = Buffer(kind, k, P, refill=True), 0, {}, [], []
    for _ in range(300):
        actions = ["start"] * buffer.may_start() + ["token", "finish"] * bool(running)
        actions += ["learn"] * buffer.ready()
        assert actions, "nothing can happen"
        action = random.choice(actions)
        if action == "start":
            running[buffer.start()] = [version]
        elif action == "token":
            running[random.choice(list(running))].append(version)
        elif action == "finish":
            serial = random.choice(list(running))
            rewards = (1.0, 1.0) if random.random() < 0.4 else (0.0, 1.0)
            kept = buffer.put(group(serial, running.pop(serial), rewards))
            assert kept == (len(set(rewards)) == 2)
            dropped += [] if kept else [serial]
        else:
            batch = buffer.take(version)  # raises if it is too stale
            assert len(batch) == P and not any(g.zero_variance for g in batch)
            used += [g.serial for g in batch]
            version += 1
    assert used == sorted(used) and len(set(used)) == len(used)
    skipped = set(range(max(used, default=0))) - set(used)
    assert skipped <= set(dropped) and not set(dropped) & set(used)
    assert buffer.refilled == len(dropped)


def test_nothing_is_selected_by_length():
    """Long groups finish last and are used in their turn: with lengths drawn at random, those used
    by the time of any update are the ones started first, whatever their lengths."""
    rng = np.random.default_rng(0)
    buffer, version, running, lengths, used = Buffer("pipeline", 4, 4), 0, {}, {}, []
    for _ in range(4000):
        while buffer.may_start():
            serial = buffer.start()
            running[serial] = lengths[serial] = int(rng.geometric(0.1))
        for serial in list(running):
            running[serial] -= 1
            if not running[serial]:
                del running[serial]
                buffer.put(group(serial, [version]))
        if buffer.ready():
            used += [g.serial for g in buffer.take(version)]
            version += 1
    assert used == list(range(len(used))) and len(used) > 300
    mean = np.mean([lengths[serial] for serial in used])
    assert abs(mean - 10) < 4 * 9.5 / len(used) ** 0.5  # of the geometric distribution


def test_generating_as_fast_as_possible_reaches_the_bound():
    """A generator that never waits makes groups exactly k updates stale: the bound is tight."""
    buffer, version, staleness = Buffer("pipeline", 3, 2), 0, []
    for _ in range(10):
        while buffer.may_start():
            buffer.put(group(buffer.start(), [version]))
        staleness += [version - g.first_version for g in buffer.take(version)]
        version += 1
    assert staleness == [0, 0, 1, 1, 2, 2] + [3] * 14


def test_off_policy_generates_for_k_updates_then_makes_them():
    buffer, log = Buffer("ppo_off_policy", 2, 1), []
    for version in range(4):
        while buffer.may_start():
            buffer.put(group(buffer.start(), [version]))
            log.append("generate")
        buffer.take(version)
        log.append("learn")
    assert log == ["generate", "generate", "learn", "learn"] * 2


def test_refuses_what_would_break_its_promises():
    buffer = Buffer("sync", 0, 1)
    with pytest.raises(RuntimeError, match="was not started"):
        buffer.put(group(0, [0]))
    buffer.put(group(buffer.start(), [0]))
    with pytest.raises(RuntimeError, match="put before"):
        buffer.put(group(0, [0]))
    with pytest.raises(RuntimeError, match="staler"):
        buffer.start()
    with pytest.raises(RuntimeError, match="staleness 1 exceeds 0"):
        buffer.take(1)
