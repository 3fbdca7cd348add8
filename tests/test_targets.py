"""What the compilers of GPUs and TPUs make of the programs of a run, on a machine with neither."""

import itertools
import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from experiments import hlo, memory, targets, train
from rlx.config import Config, MeshConfig, ModelConfig, OptimConfig, RolloutConfig
from rlx.errors import InputError
from rlx.mesh import generator_mesh, make_mesh
from rlx.models import moe
from rlx.objectives.logprobs import token_logprobs

pytestmark = pytest.mark.targets
absent = [t for t in ("h200", "v6e:1x1") if not targets.installed(t)]
installed = pytest.mark.skipif(bool(absent), reason="pip install -e '.[targets]'")
# A layer's keys alone are 0.5 GB of a device: more than anything else, or than a TPU has on chip.
DENSE = ModelConfig(
    d_model=256, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=128, d_ff=512, vocab_size=512,
    scan_layers=True, remat=True, query_chunk=256, compute_dtype="bfloat16",
)  # fmt: skip
SPARSE = replace(DENSE, n_experts=4, experts_per_token=2, d_ff_expert=256, norm_topk=True)
WINDOWS = replace(DENSE, sliding_window=128)  # no fused kernel
RUN = Config(
    model=DENSE,
    rollout=RolloutConfig(prompts_per_step=8, group_size=32, max_new_tokens=3840),
    optim=OptimConfig(microbatches=8, group_slices=4, vocab_chunk=256),
    mesh=MeshConfig(data=1),
)
PRESET = """
model.n_layers=1 model.vocab_size=8192 model.remat=true model.query_chunk=256 mesh.data=1
mesh.fsdp=8 rollout.prompts_per_step=64 rollout.max_new_tokens=16128 optim.microbatches=8
optim.group_slices=16
""".split()


def preset(*words):
    """One layer of a preset, 256 + 16,128 tokens, on 64 chips."""
    return train.composed([*PRESET, *words])


MADE = {}  # by what was compiled; a configuration cannot be hashed


def compiled(config, target, name):
    key = f"{config} {target} {name}"
    if key not in MADE:
        run = memory.traced(config, 256, targets.devices(target))
        MADE[key] = run.programs[name].lower().compile()
    return MADE[key]


@installed
@pytest.mark.parametrize(
    "target, config, keys",  # slots, heads, columns, head size of a device; bytes
    [
        ("h200", RUN, 256 * 2 * 4095 * 128 * 2),
        ("h200", replace(RUN, model=SPARSE), 256 * 2 * 4095 * 128 * 2),
        ("h200", replace(RUN, model=WINDOWS), 256 * 2 * 4095 * 128 * 2),
        ("v5p:4x4x4", preset("model=llama3_1_8b", "mesh.tensor=8"), 128 * 16383 * 128 * 2),
        ("v5p:4x4x4", preset("model=llama4_scout", "mesh.expert=8"), 128 * 16383 * 128 * 2),
    ],
    ids=["dense", "sparse", "windows", "8b", "scout"],
)
def test_decode_reads_the_cache_once_and_writes_a_column(target, config, keys):
    """Nothing it writes is as large as a half of a layer's keys."""
    step = hlo.step(hlo.parse(compiled(config, target, "decode").as_text()))
    assert {move.name: move.written for move in step if move.written > keys / 2} == {}
    read = sum(move.bytes for move in step if move.read > keys / 2)
    assert 0.95 <= read / (2 * keys * config.model.n_layers) <= 1.3


@installed
def test_an_expert_s_gradient_is_summed_over_its_own_rows():
    """Three products of M rows, and not one of all rows for each of E experts (v6e)."""
    M, D, F, E = 2048, 256, 512, 8
    one = jax.sharding.SingleDeviceSharding(targets.devices("v6e:1x1")[0])
    shapes = ((M, D), "bfloat16"), ((E, D, F), "bfloat16"), ((E,), "int32")
    like = [jax.ShapeDtypeStruct(*shape, sharding=one) for shape in shapes]

    def flops(product):
        loss = lambda x_MD, w_EDF, size_E: jnp.sum(product(x_MD, w_EDF, size_E) ** 2)  # noqa: E731
        made = jax.jit(jax.grad(loss, (0, 1))).lower(*like).compile()
        return made.cost_analysis()["flops"] / (2 * M * D * F)

    assert 3 <= flops(moe._grouped) < 3.1
    assert flops(jax.lax.ragged_dot) > 2 + E


@installed
@pytest.mark.parametrize("once", [True, False])
def test_no_part_of_a_head_is_made_anew_for_every_token(monkeypatch, once):
    """The bfloat16 parts of a float32 head, of few slots."""
    if not once:
        monkeypatch.setattr("rlx.mesh.on_one_gpu", lambda mesh: False)
    model = replace(DENSE, d_model=320, vocab_size=8192, tie_embeddings=True)
    config = replace(RUN, model=model, rollout=replace(RUN.rollout, slots=128))
    run = memory.traced(config, 256, targets.devices("h200"))
    program = hlo.parse(run.programs["decode"].lower().compile().as_text())
    shapes = {
        op.name: op.shape for inside in program.computations.values() for op in inside.values()
    }
    written = {
        array
        for move in hlo.step(program)
        for array in re.findall(r"bf16\[(?:320,\d+|\d+,320)\]", shapes[move.name])
        if not array.startswith("bf16[128,")
    }
    assert (written == set()) == once, written


@installed
@pytest.mark.parametrize("chosen", [True, False])
def test_products_of_a_token_are_those_of_cublas(chosen):
    run = memory.traced(RUN, 256, targets.devices("h200"))
    options = {} if chosen else {"xla_gpu_enable_triton_gemm": True}
    text = run.programs["decode"].lower().compile(options).as_text()
    assert ("__cublas" in text, "gemm_fusion" in text) == (chosen, not chosen)


@installed
@pytest.mark.parametrize(
    "name, dispatch, all_is_well",
    [("update", "auto", True), ("decode", "auto", True), ("decode", "dense", False)],
)
def test_no_token_meets_every_expert_on_a_card(name, dispatch, all_is_well):
    """Nor are all experts' matrices copied or transposed; with `dense` both would be seen."""
    E, D, F = 96, SPARSE.d_model, SPARSE.d_ff_expert  # no other dimension is 96
    model = replace(SPARSE, n_experts=E, moe_dispatch=dispatch)
    config = replace(RUN, model=model, rollout=replace(RUN.rollout, slots=512))
    tokens = {"update": 8 * 3840, "decode": 512}[name]  # of a slice; of a step
    program = hlo.parse(compiled(config, "h200", name).as_text())
    shapes = {
        op.name: op.shape for inside in program.computations.values() for op in inside.values()
    }
    found = set()
    for op in {move.name for move in hlo.moves(program)}:
        for dims in re.findall(r"\w\[([\d,]+)\]", shapes[op]):
            sizes = [int(n) for n in dims.split(",")]
            meets = E in sizes and math.prod(sizes) >= tokens * E * min(D, F)
            moved = re.search("copy|transpose", op) and "bf16" in shapes[op]
            if meets or (moved and math.prod(sizes) == E * D * F):
                found.add(op)
    assert (found == set()) == all_is_well, found


@installed
@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [("model=llama3_1_8b", "mesh.tensor=8"), ("model=llama4_scout", "mesh.expert=8")],
    ids=["8b", "scout"],
)
@pytest.mark.parametrize("name", ["update", "insert"])
def test_a_layer_of_a_preset_compiles_for_its_slice(words, name):
    plan = compiled(preset(*words), "v5p:4x4x4", name).memory_analysis()
    assert plan.argument_size_in_bytes + plan.temp_size_in_bytes < 95e9


@installed
def test_no_product_of_an_update_or_of_decode_runs_on_plain_cores():
    for name in ("update", "decode"):
        assert hlo.plain_products(hlo.parse(compiled(RUN, "h200", name).as_text())) == []


@installed
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("vocab_chunk", [0, 256])
def test_no_product_of_a_head_runs_on_plain_cores(dtype, vocab_chunk):
    """Forward and backward."""
    at = jax.sharding.SingleDeviceSharding(targets.devices("h200")[0])
    shapes = ((1024, 256), (256, 512))
    factors = [jax.ShapeDtypeStruct(shape, "float32", sharding=at) for shape in shapes]
    tokens = jax.ShapeDtypeStruct((1024,), "int32", sharding=at)
    how = {"vocab_chunk": vocab_chunk, "head_dtype": jax.numpy.dtype(dtype)}

    def objective(hidden, head, token):
        return token_logprobs(hidden, head, token, **how)[0].sum()

    program = jax.jit(jax.grad(objective, argnums=(0, 1))).lower(*factors, tokens).compile()
    assert hlo.plain_products(hlo.parse(program.as_text())) == []


@installed
def test_a_product_on_plain_cores_is_seen():
    at = jax.sharding.SingleDeviceSharding(targets.devices("h200")[0])
    x = jax.ShapeDtypeStruct((512, 512), "float32", sharding=at)

    def plain(precision):
        program = jax.jit(lambda a, b: jax.numpy.dot(a, b, precision=precision)).lower(x, x)
        return len(hlo.plain_products(hlo.parse(program.compile().as_text())))

    assert plain(jax.lax.Precision.HIGHEST) == 1
    assert plain(None) == 0  # TF32
    assert plain(jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X3) == 0


@installed
@pytest.mark.parametrize("target", ["h200", pytest.param("v6e:1x1", marks=pytest.mark.slow)])
def test_the_temporaries_of_an_update_are_those_of_a_slice(target):
    """Within a factor 2 of: gradients twice, what is kept of a slice, a chunk of scores and logits.

    A slice is 8 of a prompt's 32 samples. Kept: the input of every layer. Alive at once: the widest
    activations of one layer, forward and backward; scores of a chunk of queries and their
    gradient, float32; three chunks of logits.
    """
    c, B, T, S = RUN.model, 8, 3840, 4096
    parameters = sum(
        math.prod(x.shape)
        for x in jax.tree.leaves(memory.traced(RUN, 256, targets.devices(target)).state.params)
    )
    inputs = (c.n_layers + 1) * B * S * c.d_model * 2
    layer = B * S * (2 * c.d_model + 3 * c.d_ff + 2 * (c.n_heads + c.n_kv_heads) * c.head_dim) * 4
    scores = 2 * B * c.n_heads * c.query_chunk * S * 4
    logits = 3 * B * T * RUN.optim.vocab_chunk * 4
    closed = 2 * 4 * parameters + inputs + layer + scores + logits
    found = compiled(RUN, target, "update").memory_analysis().temp_size_in_bytes
    assert found <= 2 * closed, found / closed


SHAPES = {
    (data, fsdp, expert, 64 // (data * fsdp * expert))
    for data, fsdp, expert in itertools.product((1, 2, 4, 8, 16, 32, 64), repeat=3)
    if 64 % (data * fsdp * expert) == 0
}


@installed
def test_every_mesh_can_be_laid_out_on_a_torus():
    """The 8B preset's is 1 x 8 x 1 x 8, Scout's 1 x 8 x 8 x 1."""
    chips = targets.devices("v5p:4x4x4")
    assert {(1, 8, 1, 8), (1, 8, 8, 1)} < SHAPES
    for shape in SHAPES:
        config = MeshConfig(**dict(zip(("data", "fsdp", "expert", "tensor"), shape, strict=True)))
        mesh = make_mesh(config, devices=chips)
        assert mesh.devices.shape == shape
        assert set(mesh.devices.flat) == set(chips)


@installed
@pytest.mark.parametrize(
    "slice, config, learners",
    [
        ("v5p:2x2x1", MeshConfig(data=3, generators=1), 3),  # no block of the torus
        ("v5p:2x2x2", MeshConfig(data=3, fsdp=2, generators=2), 6),
        ("v5e:2x4", MeshConfig(data=1, fsdp=2, tensor=4), 8),
        ("v6e:1x1", MeshConfig(data=1), 1),
    ],
)
def test_a_part_of_a_slice_can_be_a_mesh(slice, config, learners):
    chips = targets.devices(slice)
    mesh = make_mesh(config, devices=chips)
    others = set(generator_mesh(config, mesh, chips).devices.flat) - set(mesh.devices.flat)
    assert mesh.size == learners and len(others) == config.generators


@installed
@pytest.mark.parametrize(
    "target, said",
    [
        ("v5p:3x3x3", "target=v5p:3x3x3: Topology layout"),
        ("v9:1x1", "target=v9:1x1: Invalid TPU"),
    ],
)
def test_a_slice_that_is_none_is_bad_input(target, said):
    with pytest.raises(InputError, match=f"^{said}.*; use cpu, h100, "):
        targets.devices(target)


@installed
def test_the_command_reports_for_a_card(tmp_path):
    words = ["target=h100", "model=mini", "mesh=one", "rollout.max_new_tokens=64"]
    run = subprocess.run(
        [sys.executable, "-m", "experiments.memory", "programs=decode", *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    *lines, last = run.stdout.splitlines()
    found = json.loads(last)
    assert found["target"] == "h100"
    decode = found["programs"]["decode"]
    assert decode["cache_bytes_ratio"] == pytest.approx(
        decode["step_bytes"] / decode["fewest_bytes"], abs=1e-3
    )
    assert any(line.startswith("a step of decode moves ") for line in lines)
