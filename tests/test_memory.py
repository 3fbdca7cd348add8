"""The memory report against sums by hand, and what its programs must not do."""

import json
import sys
from dataclasses import asdict, replace

import jax
import pytest

from experiments import hlo, memory, train
from rlx.record import RunRecord
from rlx.train.recipe import Hyper

WORDS = """
model.n_layers=4 model.d_model=16 model.n_heads=8 model.n_kv_heads=4 model.head_dim=8 model.d_ff=24
model.vocab_size=16 model.n_experts=4 model.experts_per_token=2 model.d_ff_expert=12
model.scan_layers=true model.remat=true model.query_chunk=16 rollout.prompts_per_step=4
rollout.group_size=2 rollout.max_new_tokens=512 optim.microbatches=1 optim.vocab_chunk=8
prompt_tokens=8
""".split()
SPLIT = ["mesh.data=1", "mesh.fsdp=2", "mesh.expert=2", "mesh.tensor=2"]
ATTENTION = 4 * 16 * 8 * (8 + 4 + 4 + 8)  # layers, width, head size, heads
EXPERTS = 4 * 4 * 3 * 16 * 12
WORD_MATRICES = 2 * 16 * 16
ROUTERS, NORMS = 4 * 16 * 4, (4 + 4 + 1) * 16
CACHE = 4 * 2 * 4 * (4 * 2) * (8 + 512 - 1) * 8 * 4  # layers, kv, heads, slots, length, size, bytes


def call(monkeypatch, *words) -> int:
    monkeypatch.setattr(sys, "argv", ["memory", *words])
    return memory.main()


@pytest.fixture(scope="module")
def found():
    """The report of a mixture on 2 x 2 x 2 devices."""
    options, words = memory.own_options([*WORDS, *SPLIT])
    return memory.report(train.composed(words), options["prompt_tokens"])


def test_a_device_holds_its_share(found):
    held = found["held"]
    matrices = ATTENTION + EXPERTS + WORD_MATRICES
    assert found["parameters"] == matrices + ROUTERS + NORMS
    assert held["parameters"] == 4 * (matrices // 8 + ROUTERS // 2 + NORMS)
    assert held["moments"] == 2 * held["parameters"] + 4  # and a counter
    assert held["keys and values"] == CACHE // 8


def test_the_programs_take_what_is_held(found):
    """But for the scalars that they read."""
    held, programs = found["held"], found["programs"]
    update = programs["update"]
    state = held["parameters"] + held["moments"]
    scalars = update["arguments"] - state - held["batch"]
    assert 0 < scalars <= 4 * (1 + len(Hyper._fields))
    assert update["aliased"] == state + 4  # the new state takes the place of the old one
    decode = programs["decode"]
    assert decode["arguments"] > held["published"] + held["keys and values"]
    assert decode["beside"] == held["parameters"] + held["moments"] + 4


def test_the_programs_hold_no_second_cache(found):
    for name in ("insert", "decode"):
        assert found["programs"][name]["temporaries"] < 0.6 * found["held"]["keys and values"]


def test_the_update_holds_no_scores_of_all_queries(found):
    """[B, N, T, S] of a device's samples and heads, in float32."""
    scores = 4 * (4 * 2 // 2) * (8 // 4) * 511 * (8 + 511)
    assert found["programs"]["update"]["temporaries"] < scores


def test_a_replicated_layout_holds_everything():
    options, words = memory.own_options([*WORDS, "mesh.data=4"])
    run = memory.traced(train.composed(words), options["prompt_tokens"])
    whole = 4 * (ATTENTION + EXPERTS + WORD_MATRICES + ROUTERS + NORMS)
    assert memory.per_device(run.state.params) == whole
    assert memory.per_device(run.state) == 3 * whole + 8
    assert memory.per_device(run.slots.cache) == CACHE // 4


def test_per_device_is_a_sum_over_the_shards_that_a_device_has():
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    spec = jax.sharding.PartitionSpec
    tree = [
        jax.device_put(jax.numpy.zeros((8, 4)), jax.sharding.NamedSharding(mesh, spec("b", "a"))),
        jax.device_put(jax.numpy.zeros(6, "bfloat16"), jax.sharding.NamedSharding(mesh, spec())),
    ]
    there = [x.addressable_shards[0].data for x in tree]
    assert memory.per_device(tree) == sum(x.nbytes for x in there) == 4 * 2 * 2 + 12


def test_collectives_are_read_from_a_program():
    """A loop's body stands once in the text and runs three times."""
    program = hlo.parse(
        """
%body (carry: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %carry = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %x = f32[4,2]{1,0} get-tuple-element(%carry), index=1
  %a = f32[4,8]{1,0} all-gather(%x), dimensions={1}
  ROOT %next = (s32[], f32[4,8]{1,0}) tuple(%i, %a)
}

ENTRY %main (p: (s32[], f32[4,8]), q: bf16[2]) -> bf16[3,5] {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %q = bf16[2]{0} parameter(1)
  %loop = (s32[], f32[4,8]) while(%p), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %b = (bf16[2]{0}, s32[]) all-reduce-start(%q), to_apply=%add
  %c = bf16[3,5]{1,0} all-gather(%q), dimensions={0}
  ROOT %d = bf16[3,5]{1,0} copy(%c), metadata={op_name="all-to-all(x)"}
}
"""
    )
    assert hlo.collectives(program) == {
        "all-gather": {"count": 2, "largest": 4 * 4 * 8, "bytes": 3 * 4 * 4 * 8 + 2 * 3 * 5},
        "all-reduce": {"count": 1, "largest": 2 * 2 + 4, "bytes": 2 * 2 + 4},
    }


def test_every_weight_and_the_cache_are_the_fewest_bytes_of_a_token(found):
    """Whole along the model's width, which fsdp splits; experts and heads are a device's own."""
    embed_rows, norms = 16 * 16, (4 + 4 + 1) * 16
    matrices = (ATTENTION + EXPERTS + WORD_MATRICES - embed_rows) // 4
    decode = found["programs"]["decode"]
    assert decode["fewest_bytes"] == 4 * (matrices + ROUTERS + norms) + CACHE // 8
    assert decode["step_bytes"] > decode["fewest_bytes"]
    assert decode["cache_bytes_ratio"] > 1


@pytest.mark.parametrize(
    "words, kept, copied",
    [
        ([], False, False),
        (["optim.lora_rank=2"], True, True),
        (["algo.kl=k3", "algo.kl_coef=0.1"], True, False),
        (["algo=tbrm"], True, False),
    ],
    ids=["plain", "lora", "kl", "tbrm"],
)
def test_the_start_is_held_for_adapters_and_references_alone(words, kept, copied):
    unrolled = ["mesh.data=1", "model.scan_layers=false"]  # a list of layers, as decoding wants it
    options, rest = memory.own_options([*WORDS, *unrolled, *words])
    run = memory.traced(train.composed(rest), options["prompt_tokens"])
    held, whole = memory.held(run), memory.per_device(run.published)
    assert held["reference"] == (whole if kept else 0)
    assert held["published"] == (whole if copied else 0)
    learner = held["moments"] + held["reference"] + 4
    shared = 0 if not copied else held["parameters"]
    assert memory.beside(run, "decode") == learner + shared
    slots = held["keys and values"] + held["slots besides"]
    assert memory.beside(run, "update") == slots + held["published"]


def test_the_routing_to_replay_is_held_with_batch_and_slots():
    """int32 for every token of every sample, in every sparse layer, of each of its experts."""
    options, words = memory.own_options([*WORDS, "mesh.data=1"])
    plain, replays = (
        memory.traced(train.composed([*words, *more]), options["prompt_tokens"])
        for more in ([], ["algo.replay_routing=true"])
    )
    routing = 4 * (4 * 2) * 512 * 4 * 2
    for name in ("batch", "slots"):
        got, want = (memory.per_device(getattr(run, name)) for run in (replays, plain))
        assert got - want == routing


SECOND = 2 * (16 * 8 * (8 + 4 + 4 + 8) + 3 * 16 * 24 + 2 * 16) + WORD_MATRICES + 16  # parameters


def traced_beside(second, *words):
    """A run that names the run of a second model, of two layers without experts, in `second`."""
    options, words = memory.own_options([*WORDS, "mesh.data=1", *words])
    config = train.composed(words)
    model = replace(config.model, n_layers=2, n_experts=0)
    RunRecord(second).update_manifest(config=asdict(replace(config, model=model)))
    return memory.traced(config, options["prompt_tokens"])


def test_a_teacher_is_held_beside_the_policy(tmp_path):
    """The run of another size, as its manifest says; nothing of its weights is read."""
    run = traced_beside(tmp_path, f"algo.teacher={tmp_path}")
    held = memory.held(run)
    assert held["teacher"] == 4 * SECOND
    learner = held["moments"] + held["teacher"] + 4 + held["parameters"]
    assert memory.beside(run, "decode") == learner


def test_a_reward_model_is_held_beside_the_policy(tmp_path):
    """With its value head, also while the sampler or the update runs."""
    run = traced_beside(tmp_path, "algo.reward=model", f"algo.reward_model={tmp_path}")
    held = memory.held(run)
    assert held["reward model"] == 4 * (SECOND + 16)
    learner = held["moments"] + held["reward model"] + 4 + held["parameters"]
    assert memory.beside(run, "decode") == learner
    waits = held["published"] + held["keys and values"] + held["slots besides"]
    assert memory.beside(run, "update") == waits + held["reward model"]


def test_the_command_prints_a_table_and_a_line(monkeypatch, capsys):
    """Where parameters are split, they come to the tokens; the tokens stay where they are."""
    words = ["model=mini", "mesh.data=1", "mesh.fsdp=8", "rollout.max_new_tokens=64"]
    words += ["optim.microbatches=1", "model.scan_layers=true"]
    assert call(monkeypatch, "devices=8", *words) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["mesh"] == {"data": 1, "fsdp": 8, "expert": 1, "tensor": 1}
    norms = 5 * 32
    assert found["held"]["parameters"] == 4 * ((found["parameters"] - norms) // 8 + norms)
    assert lines[0].startswith("25,632 parameters on data 1 x fsdp 8")
    update = found["programs"]["update"]
    (row,) = [line.split() for line in lines if line.startswith("update ") and "." in line][:1]
    assert float(row[6]) == pytest.approx(update["in all"] / 2**30, abs=1e-3)
    activation = 4 * (16 * 16) * 63 * 32  # bytes of [B, T, D]
    assert max(kind["largest"] for kind in update["collectives"].values()) < activation / 4


@pytest.mark.parametrize(
    "word, said",
    [
        ("devices=many", "devices=many: not a whole number in range"),
        ("devices=0", "devices=0: not a whole number in range"),
        ("prompt_tokens=-1", "prompt_tokens=-1: not a whole number in range"),
        ("target=h300", "target=h300: no such accelerator; use cpu, h100, h200, h200:8, or a TPU"),
        ("target=", "target=: no such accelerator"),
        ("target=v5p", "target=v5p: no such accelerator"),
        ("target=h200:9", "target=h200:9: no such accelerator"),
        ("target=v5p:4x0x4", "target=v5p:4x0x4: no such accelerator"),
        ("target=v5p:4x4x4x4", "target=v5p:4x4x4x4: no such accelerator"),
        ("programs=decode,learn", "programs=decode,learn: no 'learn' here; use some of update"),
        ("mesh.tensor=16", "mesh=1x1x1x16: needs 16 devices, the learner has 8"),
        ("model.query_chunk=-1", "model.query_chunk=-1: negative"),
        ("nonsense=1", "nonsense=1: unknown key"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, word, said):
    assert call(monkeypatch, word) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and errors[0].startswith(f"error: {said}")
