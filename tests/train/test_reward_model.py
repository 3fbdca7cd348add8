"""From pairs that prefer sevens to a policy that says them: the whole way, and its pieces."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rlx.config import (
    AlgoConfig,
    CheckpointConfig,
    Config,
    EnvConfig,
    EvalConfig,
    InputError,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    RewardModelConfig,
    RolloutConfig,
    WarmStartConfig,
)
from rlx.envs import base
from rlx.envs.digit_chain import DigitChain
from rlx.envs.grading import Graders
from rlx.mesh import make_mesh
from rlx.models import reward, transformer
from rlx.record import read_rows
from rlx.rollout.grades import as_answer, grades
from rlx.rollout.scorer import Scorer
from rlx.train import loop, reward_model, rl, start

ROWS = ("evals.jsonl", "metrics.jsonl")
TRAIN, HELDOUT = 160, 40


def pairs(path):
    """Digits after a prompt of three; the one with more sevens is preferred."""
    rng, rows = np.random.default_rng(1), {}
    word = lambda lo, hi: "".join(map(str, rng.integers(0, 10, rng.integers(lo, hi))))  # noqa: E731
    while len(rows) < TRAIN + HELDOUT:
        prompt, a, b = word(3, 4) + "?", word(2, 5), word(2, 5)
        if a.count("7") != b.count("7"):
            chosen, rejected = sorted([a, b], key=lambda text: -text.count("7"))
            rows[prompt] = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    return str(path)


@pytest.fixture(scope="module")
def learning(tmp_path_factory) -> RewardModelConfig:
    path = tmp_path_factory.mktemp("pairs")
    kwargs = {"path": pairs(path / "pairs.jsonl")}
    sizes = {"train_prompts": TRAIN, "heldout_prompts": HELDOUT}
    return RewardModelConfig(
        model=ModelConfig(d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=24),
        env=EnvConfig("preference", kwargs, **sizes, grade_timeout_s=0),
        rollout=RolloutConfig(prompts_per_step=16, group_size=2, max_new_tokens=5),
        optim=OptimConfig(learning_rate=1e-2),
        warm_start=WarmStartConfig(steps=0),
        eval=EvalConfig(every_steps=15),
        mesh=MeshConfig(data=1),
        steps=45,
        recipe="reward_model",
        out=str(path / "judge"),
    )


@pytest.fixture(scope="module")
def judge(learning):
    reward_model.train(learning, progress=False)
    return learning


@pytest.fixture(scope="module")
def pleasing(judge) -> Config:
    """A run that the judge rewards, from a policy which writes like the preferred texts."""
    return Config(
        model=judge.model,
        algo=AlgoConfig(
            loss="reinforce", advantage="leave_one_out", aggregation="fixed_length",
            zero_variance="keep", reward="model", reward_model=judge.out,
            kl="k1_reward", kl_coef=0.05,
        ),
        env=judge.env,
        rollout=RolloutConfig(8, 8, max_new_tokens=5, decode_chunk_tokens=5),
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=2),
        warm_start=WarmStartConfig(steps=40, batch_size=16, learning_rate=1e-2),
        eval=EvalConfig(every_steps=8, samples_per_prompt=8),
        mesh=MeshConfig(data=1),
        steps=8,
        recipe="rlhf",
        out=judge.out + "-rl",
        warm_start_dir=judge.out + "-warm",
    )  # fmt: skip


def interrupted(train, config, after, out):
    """Stopped after some updates, started once more."""
    config = replace(config, out=str(out), checkpoint=CheckpointConfig(every_steps=2))
    asked = iter([False] * (after - 1) + [True])
    with pytest.raises(loop.Interrupted):
        train(config, progress=False, stop=lambda: next(asked))
    return train(config, progress=False)


def metrics(config):
    return read_rows(Path(config.out) / "metrics.jsonl")


def same(one, two):
    for name in ROWS:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_the_model_learns_what_is_preferred(judge):
    evals = read_rows(Path(judge.out) / "evals.jsonl")
    assert [row["step"] for row in evals] == [0, 15, 30, 45]
    assert evals[0]["mean"] == 0.5 and evals[0]["trials"] == HELDOUT  # the head is 0
    assert evals[-1]["passes"] == sum(evals[-1]["passes_per_prompt"]) > 0.9 * HELDOUT
    spent = [row["compute"] for row in evals]
    assert spent[0] == 0 and spent[1] > 0 and np.ptp(np.diff(spent)) < 0.1 * spent[1]
    assert evals[-1]["train_flops"] == spent[-1] and evals[-1]["eval_flops"] > 0
    rows = metrics(judge)
    assert_allclose(rows[0]["nll"], np.log(2), rtol=1e-6)
    assert rows[-1]["nll"] < 0.3 and all(row["update/skipped"] == 0 for row in rows)


def test_a_stopped_reward_model_goes_on_to_the_same_bits(judge, tmp_path):
    short = replace(judge, steps=6, eval=EvalConfig(every_steps=3))
    reward_model.train(replace(short, out=str(tmp_path / "one")), progress=False)
    interrupted(reward_model.train, short, 4, tmp_path / "two")
    same(tmp_path / "one", tmp_path / "two")


LORA = {"lora_rank": 2, "lora_alpha": 64.0}


@pytest.mark.parametrize(
    "changes", [{"microbatches": 4}, pytest.param(LORA, marks=pytest.mark.slow)]
)
def test_slices_and_adapters_of_a_batch(judge, tmp_path, changes):
    """Slices add up to the batch; adapters begin where it does, and learn as well."""
    optim, out = replace(judge.optim, **changes), str(tmp_path)
    config = replace(judge, out=out, optim=optim, steps=3, eval=EvalConfig(every_steps=3))
    reward_model.train(config, progress=False)
    nll, expected = ([row["nll"] for row in metrics(x)] for x in (config, judge))
    same = 1 if config.optim.lora_rank else 3
    assert_allclose(nll[:same], expected[:same], rtol=1e-4)
    assert nll[2] < nll[0]


def test_a_policy_learns_to_please_the_model(pleasing, tmp_path):
    rl.train(pleasing, progress=False)
    evals = read_rows(Path(pleasing.out) / "evals.jsonl")
    assert evals[-1]["mean"] > evals[0]["mean"] + 0.2, [row["mean"] for row in evals]
    assert evals[-1]["reward_mean"] > evals[0]["reward_mean"] + 1
    assert evals[0]["reward_flops"] == 0 < evals[-1]["reward_flops"] < evals[-1]["compute"]
    last = evals[-1]
    parts = [last["train_flops"], *last["generate_flops"].values(), last["reference_flops"]]
    assert last["compute"] == pytest.approx(sum(parts) + last["reward_flops"])
    rows = metrics(pleasing)
    assert abs(rows[0]["policy/kl"]) < 1e-6 and rows[-1]["policy/kl"] > 0.01
    scores = [row["rollout/score_mean"] for row in rows]  # the verdict, not the reward
    assert 0 <= min(scores) and max(scores) <= 1
    interrupted(rl.train, pleasing, 5, tmp_path / "again")
    same(Path(pleasing.out), tmp_path / "again")


# The scorer alone


@pytest.fixture(scope="module")
def chains():
    return DigitChain(train_prompts=8, heldout_prompts=4, seed=0, hi=4)


@pytest.fixture(scope="module")
def params(judge, chains):
    V = chains.tokenizer.vocab_size
    params = transformer.with_critic(transformer.init(jax.random.key(0), judge.model, V))
    return {**params, "value": jax.random.normal(jax.random.key(1), params["value"].shape)}


def answers(env, problems, texts, T=6):
    """Every problem is given the same texts; the last is cut before it stops."""
    ids, found = env.tokenizer, []
    for problem in problems:
        rows = [[*ids.encode(text), ids.stop_id] for text in texts]
        rows[-1].pop()
        token_GT = np.full((len(rows), T), ids.pad_id)
        for row_T, row in zip(token_GT, rows, strict=True):
            row_T[: len(row)] = row
        found.append(as_answer(env, problem, token_GT, np.array(list(map(len, rows)))))
    return found


def test_a_task_keeps_its_grades_beside_the_models_rewards(judge, chains, params):
    mesh = make_mesh(MeshConfig(data=1))
    graders = Graders(chains, {}, scorer=Scorer(chains, judge.model, params, 6, [mesh]))
    right = [chains.solution(p, np.random.default_rng(0), False) for p in chains.train[:3]]
    asked = answers(chains, chains.train[:3], [right[0], "12", "3"])
    found = grades(graders, asked, mesh)
    for answer, score_G in zip(asked, found.score_PG, strict=True):
        expected = [chains.grade(answer.problem, *sample) for sample in answer.text_G]
        assert_array_equal(score_G, np.float32(expected))
    prompts = [chains.tokenizer.encode_prompt(answer.problem.prompt) for answer in asked]
    groups = [[t[:n] for t, n in zip(a.token_GT, a.length_G, strict=True)] for a in asked]
    texts = reward.padded(prompts, groups, chains.max_prompt_tokens, 6, 0)
    reward_B = jax.jit(reward.scores, static_argnames="config")(params, judge.model, texts)
    assert_allclose(np.concatenate(found.reward_PG), reward_B, rtol=1e-4, atol=1e-5)
    assert found.score_PG[0][0] == 1 and found.flops > 0


def test_the_verdict_is_a_comparison_with_the_reference(judge):
    env = base.make(**start.arguments(judge.env))
    mesh = make_mesh(judge.mesh)
    config = replace(Config(**shared(judge)), algo=AlgoConfig(reward_model=judge.out))
    scorer = start.load_scorer(config, env, mesh)
    assert scorer is not None and scorer.spent == pytest.approx(spent(judge))
    problem = env.train[0]
    reference = env.solution(problem, np.random.default_rng(0), False)
    asked = answers(env, [problem], ["7777", "0", reference, "7777"])
    found = grades(Graders(env, {}, scorer=scorer), asked, mesh)
    assert_array_equal(found.score_PG[0], [1, 0, 0, 0])  # alike is no pass, nor is what is cut
    assert found.reward_PG[0][0] > found.reward_PG[0][2] > found.reward_PG[0][1]


def test_devices_share_the_prompts(judge, chains, params):
    asked = answers(chains, chains.train[:5], ["12", "3"])
    meshes = [make_mesh(MeshConfig(data=1)), make_mesh(MeshConfig(data=2, fsdp=2))]
    scorer = Scorer(chains, judge.model, params, 6, meshes)
    one, four = (scorer(asked, mesh) for mesh in meshes)
    assert_allclose(one.reward_PG, four.reward_PG, rtol=1e-4, atol=1e-5)
    assert one.flops == four.flops and one.win_PG is four.win_PG is None


def test_a_reward_is_computed_as_its_devices_compute_best(judge, chains, params, monkeypatch):
    """With their kernels, and activations that are split over the mesh."""
    mesh, seen = make_mesh(MeshConfig(data=2)), []

    def spy(params, model, texts):
        seen.append((model.attention, jax.sharding.get_abstract_mesh()))
        return texts.length_B

    monkeypatch.setattr(reward, "scores", spy)
    assert judge.model.attention == "auto"
    Scorer(chains, judge.model, params, 6, [mesh])(answers(chains, chains.train[:2], ["3"]), mesh)
    assert seen == [("xla", mesh.abstract_mesh)]


def shared(config):
    names = ("model", "env", "rollout", "mesh", "warm_start")
    return {name: getattr(config, name) for name in names}


def spent(config):
    return read_rows(Path(config.out) / "evals.jsonl")[-1]["compute"]


# What is refused


def test_other_tokens_are_refused(judge, tmp_path):
    env = EnvConfig("digit_chain", train_prompts=16, heldout_prompts=4, grade_timeout_s=0)
    algo = AlgoConfig(reward="model", reward_model=judge.out)
    config = Config(**shared(judge) | {"env": env}, algo=algo, out=str(tmp_path / "run"))
    with pytest.raises(InputError, match="its tokens differ from those of env.name=digit_chain"):
        rl.train(config, progress=False)
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_a_run_that_is_no_reward_model_is_refused(judge, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"config": asdict(judge)}))
    config = Config(**shared(judge), algo=AlgoConfig(reward_model=str(tmp_path)))
    with pytest.raises(InputError, match="algo.reward_model=.*: no reward model there; train"):
        rl.train(replace(config, out=str(tmp_path / "run")), progress=False)


def test_pairs_that_cannot_be_read_are_named(judge, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "1+2=", "chosen": "3", "rejected": "no"}\n' * 2)
    env = EnvConfig("digit_chain", train_prompts=16, heldout_prompts=4, grade_timeout_s=0)
    config = replace(judge, env=env, pairs=str(file))
    with pytest.raises(ValueError, match="16: .*pairs.jsonl has only 0 distinct prompts besides"):
        reward_model.read(replace(config, env=replace(env, heldout_prompts=1)), None)
    rows = [{"prompt": f"{i}", "chosen": "3", "rejected": "no"} for i in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chain = DigitChain(train_prompts=16, heldout_prompts=4, seed=0)
    with pytest.raises(ValueError, match="pairs.jsonl: line [0-9]+: char='n': not in the vocab"):
        reward_model.read(config, chain)
    with pytest.raises(InputError, match="16: 0 training pairs .* at most 1 tokens long; lower it"):
        small = replace(judge, rollout=replace(judge.rollout, max_new_tokens=1))
        reward_model.read(small, base.make(**start.arguments(judge.env)))
    longer = replace(judge, model=replace(judge.model, context_tokens=6))
    with pytest.raises(InputError, match="pairs.jsonl: line [0-9]+: has [78] tokens, more than "):
        reward_model.read(longer, base.make(**start.arguments(judge.env)))
    with pytest.raises(InputError, match="pairs=: env.name=digit_chain has no pairs; give a file"):
        replace(judge, env=env)


@pytest.mark.parametrize(
    "section, name, value",
    [
        ("algo", "loss", "gspo"),
        ("algo", "aggregation", "token_mean"),
        ("algo", "entropy_coef", 0.1),
        ("optim", "pack", True),
        ("optim", "vocab_chunk", 8),
        ("optim", "head_dtype", "bfloat16"),
    ],
)
def test_options_that_its_objective_does_not_contain_are_refused(learning, section, name, value):
    changed = replace(getattr(learning, section), **{name: value})
    with pytest.raises(InputError, match=f"^{section}.{name}={value}: .*; leave it out"):
        replace(learning, **{section: changed})


def test_the_balance_of_experts_is_no_part_of_its_objective(learning):
    sparse = {"n_experts": 2, "d_ff_expert": 8, "router_aux_coef": 0.1}
    with pytest.raises(InputError, match="^model.router_aux_coef=0.1: .* does not contain it"):
        replace(learning, model=replace(learning.model, **sparse))
