"""Supervised fine-tuning is the likelihood of the traces, resumes, and starts runs."""

import json
from dataclasses import fields, replace

import jax
import numpy as np
import pytest

from rlx.config import AlgoConfig, CheckpointConfig, OptimConfig, SftConfig
from rlx.errors import InputError
from rlx.mesh import make_mesh
from rlx.record import read_rows
from rlx.train import loop, sft, start
from rlx.train.batch import demonstrated
from rlx.train.forward import policy
from rlx.train.spec import names, numbers
from rlx.train.state import init_state
from rlx.train.step import make_train_step

LIKELIHOOD = AlgoConfig(
    loss="reinforce", advantage="none", aggregation="token_mean", zero_variance="keep"
)


@pytest.fixture(scope="module")
def config(easy) -> SftConfig:
    """From a fresh model: four of the sixteen solutions a step, twice over."""
    kept = {field.name: getattr(easy, field.name) for field in fields(easy)}
    changes = {
        "algo": LIKELIHOOD,
        "rollout": replace(easy.rollout, max_new_tokens=8),
        "warm_start": replace(easy.warm_start, steps=0),
        "optim": OptimConfig(learning_rate=1e-2, warmup_steps=0, max_grad_norm=1e9),
        "checkpoint": CheckpointConfig(every_steps=3),
        "steps": 8,
    }
    return SftConfig(**{**kept, **changes})


def test_the_objective_and_its_gradient_are_those_of_the_mean_log_likelihood(config):
    env, mesh = start.make_env(config), make_mesh(config.mesh)
    traces, _ = sft.demonstrations(config, env)
    params, _ = start.load(config, env, mesh, config.warm_start_dir)
    batch = demonstrated(
        *zip(*traces[:4], strict=True), env.max_prompt_tokens, 8, env.tokenizer.pad_id
    )

    def mean_logp(params):
        logp_BT, *_ = policy(params, batch, 1.0, model=config.model, mesh=mesh)
        total = sum(
            logp_BT[b, t] for b, trace in enumerate(traces[:4]) for t in range(len(trace[1]))
        )
        return total / sum(len(trace.completion) for trace in traces[:4])

    value, grads = jax.jit(jax.value_and_grad(mean_logp))(params)
    spec = names(config, mesh)
    state, metrics = make_train_step(spec, numbers(config))(init_state(spec, params), batch)
    assert float(metrics["objective"]) == pytest.approx(float(value), rel=1e-5)
    mu = state.opt_state[1][0].mu
    jax.tree.map(lambda m, g: np.testing.assert_allclose(-10 * m, g, atol=1e-5), mu, grads)


def test_every_epoch_takes_every_trace_once():
    epochs = [np.concatenate([sft.drawn(12, 4, 0, 3 * e + s) for s in range(3)]) for e in (0, 1)]
    assert [sorted(epoch.tolist()) for epoch in epochs] == [list(range(12))] * 2
    assert (epochs[0] != epochs[1]).any()


def test_it_learns_goes_on_where_it_stopped_and_starts_a_run(config, tmp_path):
    whole = replace(config, out=str(tmp_path / "whole"))
    manifest = sft.train(whole, progress=False)
    assert manifest["status"] == "done" and manifest["traces"] == 16
    rows = read_rows(tmp_path / "whole" / "metrics.jsonl")
    assert rows[-1]["nll"] < 0.9 * rows[0]["nll"]
    spent = [row["compute"] for row in read_rows(tmp_path / "whole" / "evals.jsonl")]
    assert spent == sorted(spent) and spent[0] == 0 < spent[-1]

    parts = replace(config, out=str(tmp_path / "parts"))
    for updates in (2, 4):
        left = iter(range(updates - 1, -1, -1))
        with pytest.raises(loop.Interrupted):
            sft.train(parts, progress=False, stop=lambda left=left: next(left) == 0)
    sft.train(parts, progress=False)
    for name in ("evals.jsonl", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()

    model = replace(config.model, path=str(tmp_path / "whole"))
    env = start.make_env(config)
    newest, flops = start.load(replace(config, model=model), env, make_mesh(config.mesh), "")
    earlier = replace(config, model=replace(model, path=str(tmp_path / "whole/checkpoints/6")))
    older, fewer = start.load(earlier, env, make_mesh(config.mesh), "")
    assert flops == spent[-1] > fewer > 0
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (newest, older)), strict=True))


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", r"^traces=.*: it holds no rows"),
        (
            '{"prompt": "12=="}\n',
            r"^traces=.*: line 1 has no text under completion; write",
        ),
        ('{"prompt": "12==", "completion": "3"}\n{"prompt', r"^traces=.*: line 2 is not JSON"),
        (
            '{"prompt": "12==", "completion": "x"}\n',
            r"^traces=.*: line 1 cannot be read .char='x'",
        ),
        ('{"prompt": "12==", "completion": "123123123"}\n' * 4, r"0 of 4 traces are at most 8 .*"),
    ],
)
def test_traces_that_cannot_be_used(config, tmp_path, text, reason):
    file = tmp_path / "traces.jsonl"
    file.write_text(text)
    env = start.make_env(config)
    with pytest.raises(InputError, match=reason):
        sft.demonstrations(replace(config, traces=str(file)), env)


def test_a_trace_beyond_the_context_is_named(config, tmp_path):
    """Two digits and "==" fit beside an answer of 8 tokens; nine digits do not."""
    file = tmp_path / "traces.jsonl"
    rows = [{"prompt": p, "completion": "1>3"} for p in ("12==", "123123123=", "12==")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = start.make_env(config)
    model = replace(config.model, context_tokens=13)
    reason = "line 2 has 14 tokens, more than model.context_tokens=13; leave it out"
    with pytest.raises(InputError, match=f"^traces=.*: {reason}"):
        sft.demonstrations(replace(config, traces=str(file), model=model), env)


def test_traces_of_a_file(config, tmp_path):
    file = tmp_path / "traces.jsonl"
    rows = [{"prompt": "12==", "completion": text} for text in ("3", "1>3", "123123123", "2", "0")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = start.make_env(config)
    traces, too_long = sft.demonstrations(replace(config, traces=str(file)), env)
    assert len(traces) == 4 and too_long == 1
    assert env.tokenizer.decode(traces[1].completion) == "1>3"
    assert traces[1].completion[-1] == env.tokenizer.stop_id


def test_another_objective_is_refused(config):
    with pytest.raises(InputError, match="algo.loss=cispo.*not the likelihood.*set algo=sft"):
        replace(config, algo=AlgoConfig())


@pytest.mark.parametrize(
    "section, name, value",
    [
        ("algo", "zero_variance", "drop"),  # would drop every trace
        ("algo", "correction", "truncated"),  # would weight by the probability
        ("algo", "entropy_coef", 0.1),
        ("algo", "is_cap", 4.0),
        ("algo", "teacher", "runs/teacher"),
        ("algo", "reward", "random"),
        ("algo", "length_control", "penalty_all"),
        ("optim", "pack", True),
        ("optim", "group_slices", 2),
        ("pipeline", "decode_chunks_per_update", 4),
    ],
)
def test_options_of_reinforcement_learning_are_refused(config, section, name, value):
    changed = replace(getattr(config, section), **{name: value})
    with pytest.raises(InputError, match=f"{section}.{name}={value}: only for reinforcement"):
        replace(config, **{section: changed})


@pytest.mark.parametrize("kind", ["token_mean", "sample_mean", "fixed_length"])
def test_the_nll_is_that_of_the_tokens_whatever_the_aggregation(config, tmp_path, kind):
    """Traces of different lengths, and of a model that has yet to learn them."""
    rows = [{"prompt": "12==", "completion": text} for text in ("3", "1>3", "0>1>2>3", "2", "0")]
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    algo = replace(config.algo, aggregation=kind)
    rollout = replace(config.rollout, prompts_per_step=5)
    config = replace(
        config, algo=algo, rollout=rollout, traces=str(tmp_path / "traces.jsonl"), steps=1,
        out=str(tmp_path / "run"),
    )  # fmt: skip
    env, mesh = start.make_env(config), make_mesh(config.mesh)
    params, _ = start.load(config, env, mesh, tmp_path)
    traces, _ = sft.demonstrations(config, env)
    batch = demonstrated(*zip(*traces, strict=True), 9, 8, env.tokenizer.pad_id)
    logp_BT, *_ = policy(params, batch, 1.0, model=config.model, mesh=mesh)
    sft.train(config, progress=False)
    (row,) = read_rows(tmp_path / "run" / "metrics.jsonl")
    expected = -np.sum(logp_BT * batch.mask_BT) / batch.mask_BT.sum()
    assert row["nll"] == pytest.approx(float(expected), rel=1e-5)
