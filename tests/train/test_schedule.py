"""Generator and learner at the same time, and the same again by one thread, bit for bit."""

import functools
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from rlx.config import AlgoConfig, EvalConfig, MeshConfig, PipelineConfig
from rlx.errors import InputError
from rlx.record import read_rows
from rlx.train import recipe, rl
from rlx.train.start import make_env
from rlx.types import NotFinite

LOGS = ("evals.jsonl", "metrics.jsonl")


@pytest.fixture(scope="module")
def make_run(easy, tmp_path_factory):
    """make_run(**changes) -> the directory of a finished run, made once."""

    @functools.cache
    def cached(**changes):
        path = tmp_path_factory.mktemp("run")
        rl.train(replace(easy, out=str(path), **changes), progress=False)
        return path

    return cached


def threads(kind="pipeline", k=3):
    return {
        "pipeline": PipelineConfig(kind, k, schedule="threads"),
        "mesh": MeshConfig(data=1, generators=2),
        "steps": 12,
    }


@pytest.mark.parametrize("kind, k", [("pipeline", 3), ("ppo_off_policy", 2), ("sync", 0)])
def test_a_recorded_schedule_replays_to_the_same_bits(make_run, easy, tmp_path, kind, k):
    recorded = make_run(**threads(kind, k))
    rows = read_rows(recorded / "metrics.jsonl")
    bound = k - 1 if kind == "ppo_off_policy" else k
    assert max(row["rollout/staleness_max"] for row in rows) <= bound
    again = replace(
        easy, out=str(tmp_path), **threads(kind, k) | {"pipeline": PipelineConfig(kind, k)}
    )
    again = replace(again, pipeline=replace(again.pipeline, replay=str(recorded)))
    rl.train(again, progress=False)
    for name in LOGS:
        assert (tmp_path / name).read_bytes() == (recorded / name).read_bytes(), name


def test_the_events_of_threads_interleave(make_run):
    """A chunk that began before an update and was collected after it: both were at work."""
    events = [row["schedule/events"] for row in read_rows(make_run(**threads()) / "metrics.jsonl")]
    whole = "".join(events)
    assert whole.startswith("bc") and "bb" not in whole and "cc" not in whole
    assert any(e.endswith("b") for e in events), events


def test_taking_turns_never_splits_a_chunk(make_run):
    rows = read_rows(make_run(pipeline=PipelineConfig("pipeline", 3)) / "metrics.jsonl")
    assert all(set(row["schedule/events"].split("bc")) == {""} for row in rows)


def test_synchronous_threads_make_the_synchronous_run(make_run):
    """With k = 0 there is only one order, so the clock of the machine decides nothing."""
    one = make_run(mesh=MeshConfig(data=1, generators=2), steps=12)
    two = make_run(**threads("sync", 0))
    for name in LOGS:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_an_error_of_the_generator_ends_the_run(easy, tmp_path, monkeypatch):
    def broken(self, *args):
        raise OSError("the generator is out of order")

    monkeypatch.setattr("rlx.rollout.engine.Engine.begin", broken)
    with pytest.raises(OSError, match="out of order"):
        rl.train(replace(easy, out=str(tmp_path), **threads()), progress=False)
    assert json.loads((tmp_path / "manifest.json").read_text())["status"] == "failed"


def test_replay_of_nothing_is_refused(easy, tmp_path):
    pipeline = PipelineConfig("pipeline", 1, replay=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="pipeline.replay=.*nowhere: it has no metrics.jsonl"):
        rl.train(replace(easy, out=str(tmp_path / "run"), pipeline=pipeline), progress=False)


@pytest.mark.parametrize(
    "changes, other",
    [
        ({"rollout": {"max_new_tokens": 9}}, "rollout.max_new_tokens=6, not 9"),
        ({"rollout": {"prompts_per_step": 8}}, "rollout.prompts_per_step=4, not 8"),
        ({"pipeline": {"k": 2}}, "pipeline.k=3, not 2"),
        ({"algo": {"is_cap": 4.0}}, "algo.is_cap=5.0, not 4.0"),
    ],
)
def test_replay_of_another_configuration_is_refused(make_run, easy, tmp_path, changes, other):
    recorded = make_run(pipeline=PipelineConfig("pipeline", 3))
    pipeline = PipelineConfig("pipeline", 3, replay=str(recorded))
    again = replace(easy, out=str(tmp_path), pipeline=pipeline)
    parts = {name: replace(getattr(again, name), **part) for name, part in changes.items()}
    line = f"pipeline.replay={recorded}: a run of another configuration: {other}; set these"
    with pytest.raises(InputError, match=re.escape(line)):
        rl.train(replace(again, **parts), progress=False)


def test_a_replay_may_be_shorter_and_evaluated_elsewhere(make_run, easy, tmp_path):
    recorded = make_run(pipeline=PipelineConfig("pipeline", 3))
    pipeline = PipelineConfig("pipeline", 3, 5, replay=str(recorded))
    every = EvalConfig(every_steps=3, samples_per_prompt=1)
    again = replace(easy, out=str(tmp_path), pipeline=pipeline, steps=4, eval=every)
    rl.train(again, progress=False)
    assert read_rows(tmp_path / "metrics.jsonl") == read_rows(recorded / "metrics.jsonl")[:4]


def test_a_replay_begins_with_the_weights_of_its_run(easy, tmp_path):
    """Those of a checkpoint of another run, which has gone on since."""
    source = replace(easy, steps=4, out=str(tmp_path / "source"))
    rl.train(replace(source, until=2), progress=False)
    model = replace(easy.model, path=source.out)
    recorded = replace(easy, model=model, steps=2, out=str(tmp_path / "run"))
    rl.train(recorded, progress=False)
    again = replace(recorded, pipeline=PipelineConfig(replay=recorded.out))
    rl.train(replace(again, out=str(tmp_path / "again")), progress=False)
    rl.train(source, progress=False)
    newer = replace(again, out=str(tmp_path / "newer"))
    with pytest.raises(InputError, match="model.path=.*source/checkpoints/2, not .*/4; set these"):
        rl.train(newer, progress=False)
    at = replace(newer, model=replace(model, path=f"{source.out}/checkpoints/2"))
    rl.train(replace(at, out=str(tmp_path / "at")), progress=False)
    rows = [read_rows(tmp_path / run / "metrics.jsonl") for run in ("run", "again", "at")]
    assert rows[0] == rows[1] == rows[2]


def test_a_schedule_that_does_not_fit_the_samples_is_refused(make_run, easy, tmp_path):
    recorded, short = make_run(pipeline=PipelineConfig("pipeline", 3)), tmp_path / "short"
    shutil.copytree(recorded, short)
    rows = read_rows(short / "metrics.jsonl")
    rows[0]["schedule/events"] = "bc"  # 2 of 6 tokens
    (short / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pipeline = PipelineConfig("pipeline", 3, replay=str(short))
    with pytest.raises(InputError, match="its events leave groups of update 0 incomplete"):
        rl.train(replace(easy, out=str(tmp_path / "run"), pipeline=pipeline), progress=False)


# Prompts, interruptions and what a run says about itself


def test_a_run_ends_when_every_prompt_is_retired(easy, tmp_path):
    algo = AlgoConfig(no_positive_resampling=True, retire_pass_rate=0.0)
    config = replace(easy, out=str(tmp_path), algo=algo, steps=50)
    manifest = rl.train(config, progress=False)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert len(rows) == 4  # 16 prompts, 4 at a time, once each
    assert manifest["status"] == "done" and manifest["steps_done"] == 4
    assert manifest["ended"] == "every training prompt is retired"
    assert manifest["fired"]["no_positive_resampling"] == 16
    assert read_rows(tmp_path / "evals.jsonl")[-1]["step"] == 4


def test_refilled_batches_are_full_and_paid_for(make_run, easy):
    refill = make_run(algo=AlgoConfig(zero_variance="refill"), steps=6)
    rows, drop = read_rows(refill / "metrics.jsonl"), read_rows(make_run() / "metrics.jsonl")
    assert all(row["prompts_kept"] == 4 for row in rows)
    assert min(row["prompts_kept"] for row in drop) < 4
    last = read_rows(refill / "evals.jsonl")[-1]
    assert last["discarded_flops"] > 0 and rows[-1]["buffer/refilled_groups"] > 0
    asked = last["samples"] / 4  # groups
    assert asked == 6 * 4 + rows[-1]["buffer/refilled_groups"]


def test_an_interrupted_run_counts_its_interruptions(easy, tmp_path):
    """Thinking ends after 1 token: most samples are interrupted, all find room for an answer."""
    rollout = replace(easy.rollout, think_tokens_min=1, think_tokens_max=2, answer_tokens=2)
    algo = AlgoConfig(length_control="interruption")
    config = replace(easy, out=str(tmp_path), algo=algo, rollout=rollout)
    manifest = rl.train(config, progress=False)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert manifest["fired"]["interruption"] > 0
    assert np.mean([row["rollout/interrupted_share"] for row in rows]) > 0.2
    assert max(row["rollout/length_mean"] for row in rows) <= 5
    # 3 digits below 4 need 3 tokens of thinking, 2 digits 2: room in half of the samples at best
    share = np.mean([len(p.prompt.rstrip("=")) == 2 for p in make_env(config).heldout])
    assert manifest["ceiling"] == pytest.approx(share / 2)


def test_a_switch_that_never_fired_is_named(make_run, easy):
    manifest = json.loads((make_run() / "manifest.json").read_text())
    assert manifest["fired"]["clip"] == 0 and manifest["fired"]["zero_variance=drop"] > 0
    assert manifest["ended"] == "all steps" and manifest["updates_skipped"] == 0
    assert set(manifest["truncation"]) == {
        "limit", "share_of_steps_over", "first_step_over", "max"
    }  # fmt: skip


def test_an_axis_that_the_loss_does_not_read_is_named(easy, tmp_path):
    algo = AlgoConfig(loss="ppo_clip", is_cap=4.0, clip_high=0.3)
    config = replace(easy, out=str(tmp_path), algo=algo, steps=1)
    manifest = rl.train(
        replace(config, axes={"algo.is_cap": 4.0, "algo.clip_high": 0.3}), progress=False
    )
    assert manifest["fired"]["algo.is_cap"] == 0
    assert "algo.clip_high" not in manifest["fired"] and "algo.tbrm_beta" not in manifest["fired"]


def test_updates_that_are_not_finite_stop_the_run(easy, tmp_path, monkeypatch):
    def poisoned(groups, *args, collate=rl.collate):
        batch = collate(groups, *args)
        return batch.replace(behavior_logp_BT=batch.behavior_logp_BT * np.float32(np.nan))

    monkeypatch.setattr(rl, "collate", poisoned)
    optim = replace(easy.optim, max_skipped_updates=2)
    with pytest.raises(NotFinite, match="optim.max_skipped_updates=2: the last 2 updates"):
        rl.train(replace(easy, out=str(tmp_path), optim=optim), progress=False)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["status"] == "failed" and "NotFinite" in manifest["error"]
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 2


@pytest.mark.parametrize(
    "algo",
    [
        AlgoConfig(loss="tbrm", aggregation="sample_mean", zero_variance="keep", tbrm_beta=0.1),
        AlgoConfig(
            loss="ppo_clip", advantage="gae", aggregation="token_mean", zero_variance="keep"
        ),
        AlgoConfig(loss="reinforce", correction="masked", kl="k3", kl_coef=0.01, entropy_coef=1e-3),
    ],
    ids=["tbrm", "critic", "kl"],
)
def test_every_family_learns(easy, make_run, algo):
    """The mean score of 320 samples: standard error below .03."""
    path = make_run(algo=algo, steps=200, eval=EvalConfig(every_steps=200))
    score = [row["rollout/score_mean"] for row in read_rows(path / "metrics.jsonl")]
    assert np.mean(score[-20:]) > np.mean(score[:20]) + 0.1
    last = read_rows(path / "evals.jsonl")[-1]
    assert (last["reference_flops"] > 0) == recipe.needs_reference(algo)
    assert (last["critic_flops"] > 0) == recipe.has_critic(algo)
    parts = sum(last["generate_flops"].values()) + last["train_flops"]
    assert last["compute"] == pytest.approx(parts + last["reference_flops"] + last["critic_flops"])


@pytest.mark.parametrize("reward", ["random", "format"])
def test_controls_do_not_know_the_answer(make_run, reward):
    path = make_run(algo=AlgoConfig(reward=reward, zero_variance="keep"))
    rows = read_rows(path / "metrics.jsonl")
    gap = [abs(row["rollout/reward_mean"] - (2 * row["rollout/score_mean"] - 1)) for row in rows]
    assert max(gap) > 0.05


def test_a_length_penalty_says_whether_it_bit(make_run, easy):
    """Answers of 5 or 6 tokens pay; with room for 60 nobody does."""
    algo = AlgoConfig(length_control="penalty_all", length_penalty_tokens=2)
    bites = json.loads((make_run(algo=algo) / "manifest.json").read_text())["fired"]
    assert bites["length_penalty"] > 0
    wide = replace(easy.rollout, max_new_tokens=60)
    never = json.loads((make_run(algo=algo, rollout=wide) / "manifest.json").read_text())["fired"]
    assert never["length_penalty"] == 0
