"""Which code made a run, what an update cost, and what an interruption threw away."""

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlx import flops
from rlx.mesh import make_mesh
from rlx.record import RunRecord, read_rows
from rlx.train.loop import note_lost_work
from rlx.train.report import commit, spend_update
from rlx.train.spec import names
from rlx.train.start import make_env
from rlx.types import INJECTED, Group

SETS = ("heldout", "gcd", "sums")


def interrupted(path, sets, torn=0):
    """Evaluated at 0, 4 and 8, killed in update 10; `torn` rows of the last evaluation missing."""
    record = RunRecord(path)
    rows = [
        {"step": step, "eval_set": name, "mean": 0.1 * i, "compute": 1e9 * step}
        for step in (0, 4, 8)
        for i, name in enumerate(sets)
    ]
    for row in rows[: len(rows) - torn]:
        record.append("evals.jsonl", row)
    for step in range(10):
        record.append("metrics.jsonl", {"step": step})
    for step in (0, 4, 8):
        record.append("clock.jsonl", {"step": step, "wall_s": 3.0 * step})
    return record


@pytest.mark.parametrize("sets, torn", [(SETS[:1], 0), (SETS, 0), (SETS, 1), (SETS, 2)])
def test_lost_work_does_not_depend_on_the_number_of_sets(tmp_path, sets, torn):
    record = interrupted(tmp_path, sets, torn)
    note_lost_work(record, 4, 4e9, 13.0)
    note_lost_work(record, 0, 0.0, 0.0)
    since_4, whole = read_rows(tmp_path / "restarts.jsonl")
    assert since_4 == {
        "step": 4, "updates_lost": 6, "compute_lost": 4e9, "wall_s_lost": 11.0
    }  # fmt: skip
    assert (whole["updates_lost"], whole["compute_lost"]) == (10, 8e9)


def test_nothing_is_lost_after_the_last_evaluation_and_update(tmp_path):
    note_lost_work(interrupted(tmp_path, SETS), 10, 1e10, 30.0)
    assert not (tmp_path / "restarts.jsonl").exists()


def test_the_cost_of_lost_work_begins_at_the_checkpoint(tmp_path):
    note_lost_work(interrupted(tmp_path, SETS), 7, 7e9, 22.0)
    (lost,) = read_rows(tmp_path / "restarts.jsonl")
    assert lost == {"step": 7, "updates_lost": 3, "compute_lost": 1e9, "wall_s_lost": 2.0}


@pytest.mark.parametrize("since", [8, 9])
def test_the_cost_of_updates_before_any_evaluation_is_unknown(tmp_path, since):
    note_lost_work(interrupted(tmp_path, SETS), since, since * 1e9, 25.0)
    (lost,) = read_rows(tmp_path / "restarts.jsonl")
    assert lost.pop("updates_lost") == 10 - since
    assert lost == {"step": since, "compute_lost": None, "wall_s_lost": None}


def test_the_commit_is_that_of_the_checkout():
    ask = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(ask, cwd=Path(__file__).parent, capture_output=True, text=True).stdout
    assert commit().removesuffix("-dirty") == head.strip()  # outside of a checkout both are empty


def test_every_part_of_a_group_pays_for_the_prompt(tiny):
    """The learner and the reference run it once more for each; heads are as many as before."""
    algo = replace(tiny.algo, kl="k3", kl_coef=0.1)
    nothing_GT = np.zeros((4, 6))
    group = Group(
        serial=0, problem_id=0, prompt_U=np.arange(5), completion_GT=nothing_GT,
        length_G=np.array([1, 4, 6, 2]), behavior_logp_GT=nothing_GT,
        behavior_value_GT=nothing_GT, version_GT=nothing_GT, reward_G=np.array([0, 1, 0, 1]),
        score_G=np.zeros(4), stopped_G=np.ones(4, bool),
    )  # fmt: skip
    env = make_env(tiny)
    ledgers = {}
    for parts in (1, 4):
        config = replace(tiny, algo=algo, optim=replace(tiny.optim, group_slices=parts))
        spec = names(config, make_mesh(config.mesh))
        vocab = env.tokenizer.vocab_size
        spend_update(ledger := flops.Ledger(), spec, vocab, [group])
        ledgers[parts] = ledger
    prompt = flops.prefill_flops(tiny.model, vocab, 5) - flops.head_flops(tiny.model, vocab, 1)
    more = {name: vars(ledgers[4])[name] - vars(ledgers[1])[name] for name in vars(ledgers[1])}
    assert more.pop("train_flops") == 3 * 3 * prompt and more.pop("reference_flops") == 3 * prompt
    assert set(more.values()) == {0}


def test_tokens_that_were_put_in_are_not_trained_on(tiny):
    """A sample of four tokens, the second and third of them an interruption."""
    nothing_GT = np.zeros((2, 4))
    version_GT = np.array([[5, INJECTED, INJECTED, 6], [5, 5, INJECTED, INJECTED]])
    group = Group(
        serial=0, problem_id=0, prompt_U=np.arange(5), completion_GT=nothing_GT,
        length_G=np.array([4, 2]), behavior_logp_GT=nothing_GT, behavior_value_GT=nothing_GT,
        version_GT=version_GT, reward_G=np.array([0, 1]), score_G=np.zeros(2),
        stopped_G=np.ones(2, bool),
    )  # fmt: skip
    spend_update(ledger := flops.Ledger(), names(tiny, make_mesh(tiny.mesh)), 14, [group])
    assert ledger.tokens_trained == 2 + 2
