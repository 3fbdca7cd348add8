"""The guard against collapse: when it fires, what it does, and what the record says of it."""

from dataclasses import replace

import pytest

from rlx.config import AlgoConfig, GuardConfig, SftConfig
from rlx.errors import InputError
from rlx.record import RunRecord
from rlx.train.guard import Guard
from rlx.train.rl import train

SFT = AlgoConfig(loss="reinforce", advantage="none")


def row(ess=0.9, entropy=1.0, unvaried=0.2, kept=4):
    return {
        "prompts_kept": kept,
        "policy/ess": ess,
        "policy/entropy": entropy,
        "rollout/zero_variance_share": unvaried,
    }


def events(guard, rows):
    return [guard.after(row)["guard/event"] for row in rows]


def test_it_is_off_by_default():
    guard = Guard()
    assert all(guard.after(row(0, 0, 1)) == {} for _ in range(30))
    assert (guard.rate, guard.stop) == (1.0, "")


@pytest.mark.parametrize(
    "bound, bad, said",
    [
        ({"ess_min": 0.5}, {"ess": 0.3}, "policy/ess 0.4 < 0.5 over 3 updates"),
        ({"entropy_min": 0.8}, {"entropy": 0.55}, "policy/entropy 0.7 < 0.8 over 3 updates"),
        ({"unvaried_max": 0.5}, {"unvaried": 0.8}, "rollout/zero_variance_share 0.6 > 0.5 over 3 "),
    ],
)
def test_a_mean_crosses_a_bound(bound, bad, said):
    """Two bad updates of three are enough here, one is not."""
    good = {"ess": 0.6, "entropy": 1.0, "unvaried": 0.2}
    guard = Guard(GuardConfig(action="stop", updates=3, **bound))
    assert events(guard, [row(**good), row(**bad), row(**good)]) == ["", "", ""]
    assert not guard.stop
    (event,) = events(guard, [row(**good | bad)])
    assert event.startswith(said) and guard.stop == event


def test_updates_without_a_token_say_nothing_of_tokens():
    """Where all groups are rewarded alike, as a perfect policy's, nothing is low."""
    guard = Guard(GuardConfig(action="stop", updates=3, ess_min=0.5, entropy_min=0.5))
    nothing = row(ess=0.0, entropy=0.0, unvaried=1.0, kept=0)
    assert events(guard, [nothing] * 4 + [row(), nothing]) == [""] * 6
    (event,) = events(guard, [row(ess=0.05)])
    assert event.startswith("policy/ess 0.475 < 0.5 over 3 updates")  # of two


def test_the_rate_is_lowered_again_after_as_many_updates():
    guard = Guard(GuardConfig(action="lower", updates=2, ess_min=0.5, lower_by=0.25))
    fired = events(guard, [row(0.1)] * 5)
    assert [bool(event) for event in fired] == [False, True, False, True, False]
    assert fired[3].endswith("learning rate x 0.0625") and guard.rate == 0.0625 and not guard.stop


def test_it_goes_on_where_it_was():
    config = GuardConfig(action="lower", updates=3, ess_min=0.5)
    whole, first, then = Guard(config), Guard(config), Guard(config)
    rows = [row(x) for x in (0.9, 0.1, 0.1, 0.1, 0.9, 0.1, 0.1)]
    expected = [whole.after(r) for r in rows]
    got = [first.after(r) for r in rows[:3]]
    then.load(first.state_dict())
    assert got + [then.after(r) for r in rows[3:]] == expected


def test_a_run_that_collapses_is_stopped_and_says_so(easy, tmp_path, capfd):
    guard = GuardConfig(action="stop", updates=3, entropy_min=99.0)
    config = replace(easy, steps=8, out=str(tmp_path / "run"), guard=guard)
    manifest = train(config, progress=False)
    rows = RunRecord(config.out).rows("metrics.jsonl")
    assert [bool(r["guard/event"]) for r in rows] == [False, False, True]
    assert manifest["status"] == f"stopped: {rows[-1]['guard/event']}"
    assert "policy/entropy" in capfd.readouterr().err
    assert train(config, progress=False)["status"] == manifest["status"]  # and stays so


def test_a_lower_rate_is_the_same_run_at_a_lower_rate(easy, tmp_path):
    """Up to its firing it is the run without; the update after it moves half as far; it survives a
    pause."""
    guard = GuardConfig(action="lower", updates=2, entropy_min=99.0)
    plain = replace(easy, steps=6, out=str(tmp_path / "plain"))
    guarded = replace(plain, guard=guard, out=str(tmp_path / "guarded"))
    parts = replace(guarded, out=str(tmp_path / "parts"))
    train(plain, progress=False)
    manifest = train(guarded, progress=False)
    train(replace(parts, until=3), progress=False)
    train(parts, progress=False)
    a, b, c = (RunRecord(x.out).rows("metrics.jsonl") for x in (plain, guarded, parts))
    assert [r["guard/rate"] for r in b] == [1, 0.5, 0.5, 0.25, 0.25, 0.125]
    without = [{k: v for k, v in r.items() if not k.startswith("guard/")} for r in b]
    assert without[:2] == a[:2] and without != a
    assert b == c
    assert manifest["guard"] == {str(r["step"]): r["guard/event"] for r in b if r["guard/event"]}


def test_what_cannot_work_is_refused(easy):
    with pytest.raises(InputError, match="guard.action=stop: nothing is watched; set guard.ess_m"):
        GuardConfig(action="stop")
    with pytest.raises(InputError, match="guard.action=lower: for runs of reinforcement learning"):
        SftConfig(algo=SFT, guard=GuardConfig(action="lower", ess_min=0.1))
