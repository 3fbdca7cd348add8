"""Episodes token for token: what was drawn, what was put in, what ends them, what they cost."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import pytest

from rlx import flops
from rlx.config import (
    AlgoConfig,
    Config,
    EnvConfig,
    EpisodeConfig,
    EvalConfig,
    MeshConfig,
    ModelConfig,
    PipelineConfig,
    RolloutConfig,
    WarmStartConfig,
)
from rlx.envs import base, text
from rlx.envs.grading import Graders
from rlx.errors import InputError
from rlx.evaluate import evaluate, generate
from rlx.mesh import make_mesh
from rlx.models import transformer
from rlx.record import read_rows
from rlx.rollout.buffer import Buffer
from rlx.rollout.engine import Engine, make_generator
from rlx.rollout.episodes import Episodes
from rlx.rollout.generator import Request, Weights
from rlx.train import loop, rl
from rlx.train.batch import collate
from rlx.train.forward import policy
from rlx.types import INJECTED, Problem
from tests.rollout.slots import by_key

CHARS = "0123456789?<>!"
MODEL = ModelConfig(d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=24)
MESH = make_mesh(MeshConfig(data=1))
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Brief(base.Tokenizer):
    """Half of all tokens end a turn, so that a policy which knows nothing takes its turns."""

    @property
    def stop_ids(self):
        return (self.stop_id, *range(7))

    def decode(self, ids):
        ids = list(ids)
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return super().decode(ids[:end])


class Echo:
    """Says the turn's number and its first character; satisfied by a turn of "!"."""

    def __init__(self, tokenizer=None):
        self.tokenizer = tokenizer or Brief(CHARS)
        self.train = [Problem(i, "?" * (1 + i % 3), str(i)) for i in range(16)]
        self.heldout, self.downstream = self.train[:8], {}
        self.max_prompt_tokens = max(
            len(self.tokenizer.encode_prompt(problem.prompt)) for problem in self.train
        )
        self.said = {}  # (problem, turns) -> the reply

    def reply(self, problem, turns):
        reply = None if turns[-1] == "!" else f">{len(turns) // 2 + 1}{turns[-1][:1]}"
        self.said[problem.id, turns] = reply
        return reply

    def grade(self, problem, turns, stopped):
        return float(stopped and turns[-1] == "!")


def config(model=MODEL, **episode):
    episode = EpisodeConfig(**{"max_turns": 8, "turn_tokens": 8} | episode)
    rollout = RolloutConfig(4, 4, 80, decode_chunk_tokens=5)
    return Config(model=model, rollout=rollout, mesh=MeshConfig(data=1), episode=episode)


def weights(env, model=MODEL, version=0):
    return Weights(transformer.init(jax.random.key(1), model, env.tokenizer.vocab_size), version)


def batches(config, env, n=1):
    """(groups of n batches, the engine)."""
    engine = Engine(config, Graders(env, {}), Buffer("sync", 0, 4), flops.Ledger(), MESH)
    found, known = [], weights(env)
    for version in range(n):
        while not engine.buffer.ready():
            engine.step(Weights(known.params, version))
        found += engine.buffer.take(version)
    return found, engine


def spans(group, g):
    """[(whether the policy drew them, tokens)] of one sample."""
    found = []
    for token, version in zip(
        group.completion_GT[g, : group.length_G[g]], group.version_GT[g], strict=False
    ):
        drawn = bool(version != INJECTED)
        if not found or found[-1][0] != drawn:
            found.append((drawn, []))
        found[-1][1].append(int(token))
    return found


def check_tokens(groups, env):
    """Every sample is turns as they were drawn, between replies as they were said and encoded once.

    Returns the number of turns of each.
    """
    ids, counts = env.tokenizer, []
    for group in groups:
        for g in range(len(group.length_G)):
            turns = []
            for drawn, tokens in spans(group, g):
                if drawn:
                    turns.append(ids.decode(tokens))
                else:
                    reply = env.said[group.problem_id, tuple(turns)]
                    assert tokens == ids.encode_reply(reply)
                    turns.append(reply)
            counts.append(int(group.turns_G[g]))
            assert len(turns) // 2 + 1 == counts[-1]
    return counts


def learner_logp(params, group, model):
    """Of a group's samples, by the learner's forward pass."""
    batch = collate([group], len(group.prompt_U), 0)
    options = {"model": model, "mesh": MESH, "vocab_chunk": 0, "head_dtype": "float32"}
    return np.asarray(policy(params, batch, 1.0, **options)[0]), batch.mask_BT


def test_the_learner_has_the_samplers_tokens_over_eight_turns():
    env = Echo()
    groups, _ = batches(config(), env, 3)
    assert check_tokens(groups, env).count(8) > 10
    params = weights(env).params
    for group in groups:
        logp_GT, mask_GT = learner_logp(params, group, MODEL)
        drawn_GT = group.sampled_GT
        assert (mask_GT == drawn_GT).all() and (group.behavior_logp_GT[~drawn_GT] == 0).all()
        np.testing.assert_allclose(
            logp_GT[drawn_GT], group.behavior_logp_GT[drawn_GT], rtol=2e-5, atol=2e-6
        )


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def chat(tmp_path):
    """A checkpoint's tokenizer with a chat template; digits end a turn, so that some turns do."""
    tokenizers = pytest.importorskip("tokenizers", reason="pip install 'rlx[hf]'")
    pytest.importorskip("jinja2", reason="pip install 'rlx[hf]'")
    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|im_end|>", "<|im_start|>"], show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    words.train_from_iterator(["user\nassistant\n 12 >34"] * 9, trainer)
    words.save(str(tmp_path / "tokenizer.json"))
    names = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "chat_template": TEMPLATE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    (tmp_path / "config.json").write_text("{}")
    return text.load(tmp_path, chat=True, system_prompt="Play.")


def test_a_chat_goes_on_as_its_template_would_have_it(chat):
    """The pieces are those of the whole chat, rendered at once; the policy's own are its own."""
    said = [("user", "a"), ("assistant", "12"), ("user", " >3 "), ("assistant", "4")]
    whole = chat._rendered(*said)
    stop = [chat.stop_id]
    pieces = [
        *chat.encode_prompt("a"), *chat.encode("12"), *stop, *chat.encode_reply(" >3 "),
        *chat.encode("4"), *stop,
    ]  # fmt: skip
    rendered = chat.words.decode(pieces, skip_special_tokens=False)
    assert whole.startswith(rendered) and whole[len(rendered) :] == "\n<|im_start|>assistant\n"


def test_episodes_of_a_chat_keep_their_tokens(chat):
    some = tuple(range(0, chat.vocab_size, 2))  # half of the tokens end a turn
    env = Echo(replace(chat, stop_ids=some))
    long = config()
    long = replace(long, rollout=replace(long.rollout, max_new_tokens=300))
    groups, _ = batches(long, env)
    counts = check_tokens(groups, env)
    assert max(counts) == 8
    behind = env.tokenizer.encode_reply(">1")
    shown = chat.words.decode(behind, skip_special_tokens=False)
    assert shown.endswith("<|im_start|>user\n>1<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_that_forgets_answers_is_one_line(chat):
    forgets = replace(chat, template=lambda messages, **_: messages[-1]["content"])
    with pytest.raises(InputError, match="^env.chat=True: .* omits the assistant's turns"):
        forgets.encode_reply("x")


# What ends an episode


@pytest.mark.parametrize("max_turns", [2, 3])
def test_turns_are_limited(max_turns):
    env = Echo()
    groups, _ = batches(config(max_turns=max_turns), env)
    counts = check_tokens(groups, env)
    assert max(counts) == max_turns
    assert max(len(turns) for _, turns in env.said) == 2 * max_turns - 3  # the last is not asked


def test_a_turn_at_its_limit_cuts_the_episode():
    env = Echo()
    groups, _ = batches(config(turn_tokens=2), env, 2)
    check_tokens(groups, env)
    seen = set()
    for group in groups:
        for g in range(4):
            runs = [len(tokens) for drawn, tokens in spans(group, g) if drawn]
            assert max(runs) <= 2
            last = int(group.completion_GT[g, group.length_G[g] - 1])
            assert group.stopped_G[g] == (last in env.tokenizer.stop_ids)
            assert group.stopped_G[g] or group.score_G[g] == 0
            seen.add(bool(group.stopped_G[g]))
    assert seen == {True, False}


def test_all_tokens_are_limited_and_a_reply_needs_room():
    env = Echo()
    short = config(turn_tokens=0)
    short = replace(short, rollout=replace(short.rollout, max_new_tokens=9))
    groups, _ = batches(short, env, 3)
    check_tokens(groups, env)
    cut = 0
    for group in groups:
        assert group.length_G.max() <= 9
        for g in range(4):
            last = int(group.completion_GT[g, group.length_G[g] - 1])
            cut += not group.stopped_G[g] and last in env.tokenizer.stop_ids
    assert cut > 3  # the reply that came would have left no room


def test_the_environment_ends_it():
    env = Echo()
    groups, _ = batches(config(), env, 4)
    over = [key for key, reply in env.said.items() if reply is None]
    assert over and sum(int(group.score_G.sum()) for group in groups) >= len(over)


# What it costs


def test_no_token_is_computed_twice(monkeypatch):
    """The sampler's programs run each prompt once for its group, then each token once."""
    env, prompts, fed = Echo(), [], []
    from rlx.rollout import generator

    insert, collect = generator.sampler.insert, generator.SlotGenerator.collect

    def watched_insert(params, slots, prompt_PU, length_P, new, *args, **more):
        rows = np.unique(new.row_W[new.row_W >= 0])
        prompts.append(int(np.sum(np.asarray(length_P)[rows])))
        return insert(params, slots, prompt_PU, length_P, new, *args, **more)

    def watched_collect(self):
        finished, drawn = collect(self)
        fed.append(int(np.sum(drawn.now_W - drawn.before_W)))
        return finished, drawn

    monkeypatch.setattr(generator.sampler, "insert", watched_insert)
    monkeypatch.setattr(generator.SlotGenerator, "collect", watched_collect)
    groups, engine = batches(config(), env, 2)
    assert sum(prompts) == sum(len(group.prompt_U) for group in groups)
    assert sum(fed) == sum(int(group.length_G.sum()) for group in groups)
    ledger, vocab = engine.ledger, env.tokenizer.vocab_size
    drawn = sum(int(group.sampled_GT.sum()) for group in groups)
    assert ledger.tokens_generated == drawn > 0
    assert ledger.tokens_put_in == sum(fed) - drawn > 0
    exact = sum(
        flops.decode_flops(MODEL, vocab, len(group.prompt_U), group.length_G).sum()
        for group in groups
    )
    assert ledger.decode_flops == pytest.approx(exact)
    assert engine.generator.reply_s > 0


def test_chunks_and_slots_do_not_change_an_episode():
    env, made = Echo(), config()
    whole, _ = batches(made, env)
    for changes in ({"decode_chunk_tokens": 1}, {"slots": 4}, {"decode_chunk_tokens": 80}):
        other, _ = batches(replace(made, rollout=replace(made.rollout, **changes)), Echo())
        for a, b in zip(whole, other, strict=True):
            np.testing.assert_array_equal(a.completion_GT, b.completion_GT)
            np.testing.assert_array_equal(a.turns_G, b.turns_G)


def test_one_turn_is_a_single_answer():
    """Through the same seam: the first turn of an episode is the answer that would be given."""
    env, made = Echo(), config()
    single = make_generator(replace(made, episode=EpisodeConfig()), Graders(env, {}), MESH)
    assert not isinstance(single, Episodes)
    params = weights(env)
    asked = [Request((0, g), [10], 8, env.tokenizer.stop_ids, problem=env.train[0]) for g in (0, 1)]
    answers, first = {}, {}
    for generator, found in ((single, answers), (Episodes(single, made, Graders(env, {})), first)):
        generator.submit(asked)
        while len(found) < 2:
            generator.begin(params, 80)
            found |= by_key(generator.collect()[0])
    for key, answer in answers.items():
        n = len(answer.token_T)
        np.testing.assert_array_equal(first[key].token_T[:n], answer.token_T)
        np.testing.assert_array_equal(first[key].logp_T[:n], answer.logp_T)


def test_thinking_is_interrupted_in_every_turn():
    """A phrase after so many tokens of each turn, whatever the environment said before it."""
    env = Echo(base.Tokenizer(CHARS))
    made = config(turn_tokens=0)
    algo = AlgoConfig(length_control="interruption")
    rollout = replace(
        made.rollout, think_tokens_min=3, think_tokens_max=3, answer_tokens=2, interruption="<!",
        think_end="<",
    )  # fmt: skip
    groups, _ = batches(replace(made, algo=algo, rollout=rollout), env, 2)
    phrase, rest = env.tokenizer.encode("<!"), []
    replies = [env.tokenizer.encode(text) for text in env.said.values() if text]
    for group in groups:
        for g in range(4):
            runs = spans(group, g)
            for (_, put), (_, drawn) in zip(runs[1::2], runs[2::2], strict=False):
                assert put == phrase or put in replies
                rest += [drawn] if put == phrase else []
                assert len(drawn) <= (2 if put == phrase else 3)
    assert len(rest) > 5


def test_an_evaluation_takes_turns():
    env = Echo()
    made = replace(config(), eval=EvalConfig(samples_per_prompt=2))
    graders, ledger, known = Graders(env, {}), flops.Ledger(), weights(env)
    generator = make_generator(made, graders, MESH)
    (row,) = evaluate(generator, known, made, graders, ledger, MESH)
    answers = generate(generator, known, made, env, env.heldout, 2, jax.random.key(3))
    assert row["trials"] == 16 and row["ungraded"] == 0 and ledger.eval_flops > 0
    assert len({len(turns) for a in answers for turns, _ in a.text_G}) > 2
    assert generator.free == 16 and not generator.open and generator.reply_s == 0


def test_an_environment_without_replies_has_no_turns(easy):
    from rlx.train.start import make_env

    with pytest.raises(InputError, match="^episode.max_turns=2: env.name=digit_chain never repli"):
        make_env(replace(easy, episode=EpisodeConfig(max_turns=2)))


# Whole runs


@pytest.fixture(scope="module")
def game(tmp_path_factory):
    """A run of the game, episodes in flight across updates."""
    return Config(
        model=MODEL,
        env=EnvConfig("guess", {"numbers": 6}, 24, 12, grade_timeout_s=0),
        rollout=RolloutConfig(4, 4, 15, slots=32, decode_chunk_tokens=2),
        episode=EpisodeConfig(max_turns=4, turn_tokens=3),
        pipeline=PipelineConfig("pipeline", 4, decode_chunks_per_update=1),
        warm_start=WarmStartConfig(steps=60, batch_size=32, learning_rate=1e-2),
        eval=EvalConfig(every_steps=4, samples_per_prompt=2),
        mesh=MeshConfig(data=1),
        warm_start_dir=str(tmp_path_factory.mktemp("warm_start")),
        steps=8,
    )


@pytest.fixture(scope="module")
def whole(game, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    rl.train(replace(game, out=str(path)), progress=False)
    return path


def same(a, b):
    for name in ("evals.jsonl", "metrics.jsonl"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_a_run_of_episodes_is_stale_within_its_bound_and_stops_and_goes_on(game, whole, tmp_path):
    rows = read_rows(whole / "metrics.jsonl")
    assert max(row["rollout/staleness_max"] for row in rows) == 4
    assert max(row["rollout/mixed_versions_share"] for row in rows) > 0.2
    assert all(2 < row["rollout/turns_mean"] <= 4 for row in rows)
    assert json.loads((whole / "manifest.json").read_text())["ceilings"] == {"heldout": 1.0}
    again = replace(game, out=str(tmp_path / "again"))
    asked = iter([False, False, True])
    with pytest.raises(loop.Interrupted):
        rl.train(again, progress=False, stop=lambda: next(asked))
    rl.train(again, progress=False)
    same(whole, tmp_path / "again")
    clock = read_rows(tmp_path / "again" / "clock.jsonl")
    assert np.all(np.diff([row["reply_s"] for row in clock]) > 0)


def test_a_recorded_schedule_of_episodes_replays(game, whole, tmp_path):
    pipeline = replace(game.pipeline, replay=str(whole))
    rl.train(replace(game, pipeline=pipeline, out=str(tmp_path)), progress=False)
    same(whole, tmp_path)


def test_threads_take_turns_and_one_thread_replays_them(game, tmp_path):
    mesh, recorded = MeshConfig(data=1, generators=1), tmp_path / "recorded"
    pipeline = replace(game.pipeline, schedule="threads")
    rl.train(replace(game, pipeline=pipeline, mesh=mesh, out=str(recorded)), progress=False)
    pipeline = replace(game.pipeline, replay=str(recorded))
    again = replace(game, pipeline=pipeline, mesh=mesh, out=str(tmp_path / "again"))
    rl.train(again, progress=False)
    same(recorded, tmp_path / "again")


WORDS = (
    "env=guess env.kwargs.numbers=6 env.train_prompts=24 env.heldout_prompts=12 mesh=one steps=60 "
    "episode.max_turns=4 rollout.max_new_tokens=15 rollout.prompts_per_step=2 rollout.group_size=4 "
    "rollout.slots=16 rollout.decode_chunk_tokens=2 pipeline=pipeline_8 eval.every_steps=20 "
    "checkpoint.every_steps=3 model.d_model=16 model.n_layers=1 model.d_ff=24 model.head_dim=8 "
    "warm_start.steps=8 warm_start.batch_size=8"
).split()


def started(out):
    command = [sys.executable, "-m", "experiments.train", *WORDS, f"out={out}"]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def test_killed_in_mid_episode_it_goes_on_to_the_same_curve(tmp_path):
    """SIGKILL while episodes are in flight: pipeline_8 keeps some open at every moment."""
    whole, parts = started(tmp_path / "whole"), tmp_path / "parts"
    errors = whole.communicate(timeout=300)[1]
    assert whole.returncode == 0, errors
    for updates in (7, 25):
        process = started(parts)
        while process.poll() is None and len(read_rows(parts / "metrics.jsonl")) < updates:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.stderr.read()
        process.stderr.close()
    process = started(parts)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    same(tmp_path / "whole", parts)
    assert len(read_rows(parts / "restarts.jsonl")) == 2
