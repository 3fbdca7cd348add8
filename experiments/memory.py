"""Device memory that a configuration needs, without the devices.

    python -m experiments.memory devices=64 prompt_tokens=2048 model=llama3_1_8b model.remat=true
        model.query_chunk=256 mesh.data=1 mesh.fsdp=8 mesh.tensor=8 rollout.prompts_per_step=64
        rollout.max_new_tokens=14336 optim.microbatches=8 optim.group_slices=4
        optim.vocab_chunk=4096
    python -m experiments.memory target=h200 prompt_tokens=128 model=qwen3_0_6b mesh=one
        rollout.prompts_per_step=16 rollout.max_new_tokens=896

The keys of experiments.train describe the run. `target` is the accelerator to compile for, which
need not be present (the extra `targets`; experiments/targets.py lists them); with target=cpu,
`devices` virtual CPU devices stand for the cluster. `prompt_tokens` is the width of prompts (0: the
longest of the environment); the model's `vocab_size`, if it has one, takes precedence over the
environment's characters. Nothing is allocated: parameters, moments, batch and slots are shapes with
the shardings of a run, for which `programs` are compiled: the update, and the sampler's `insert`
and `decode`, which evaluation runs on the same slots. Per device:

    held                 kept during the run; `published`: the sampler's copy of the weights
    arguments, outputs   of the program; `aliased` bytes of the outputs reuse those of arguments
    temporaries          further allocations, as planned by the target's compiler. For a CPU an
                         upper bound for an accelerator: it computes bfloat16 in float32 and keeps
                         converted copies (with model.compute_dtype=float32 there are none, at up to
                         twice the size), scatters gradients by all-reduce, and multiplies each row
                         by every expert of the device, where others have a grouped product
    in all               arguments + outputs - aliased + temporaries
    beside               held, but not an argument of the program
    step_bytes           memory traffic (experiments/hlo.py) of one token in every slot, or of one
                         update; `fewest_bytes` is the minimum, and `cache_bytes_ratio` is
                         step_bytes over it. A token: every weight and the whole cache are read
                         once. An update: weights are read forward and backward in every slice,
                         keys and values are written, read forward and backward, gradients and
                         optimiser state are read and written
    cost_model           estimates of a TPU's compiler (optimal_seconds, bytes accessed, flops). It
                         counts the body of a loop once, and loops without a trip count not at all
                         or even less: use it on one layer, unrolled
    collectives          how often each is written in the program (a loop's body counts once), the
                         largest result, and the bytes of all results of a run of the program, or of
                         one iteration of loops whose length depends on the data

The table is for people, the JSON line after it (bytes) for programs. Exit status 2: bad input.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, NamedTuple

from experiments import hlo, targets, train
from rlx.config import Config, ModelConfig
from rlx.errors import InputError

PROGRAMS = "update,insert,decode"
OWN = {"devices": 8, "prompt_tokens": 0, "target": "cpu", "programs": PROGRAMS}
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # a CPU
COST = ("flops", "bytes accessed", "optimal_seconds")
BYTES = ("arguments", "outputs", "aliased", "temporaries", "in all", "beside")


class Traced(NamedTuple):
    """The programs of a run, by name, and their arguments as shapes with shardings."""

    programs: dict[str, Any]  # jax.stages.Traced
    state: Any
    batch: Any
    reference: Any  # the initial weights, if they are kept: for adapters, KL or TBRM
    teacher: Any  # of algo.teacher
    scorer: Any  # the reward model
    published: Any  # the sampler's parameters
    copied: bool  # whether they are not the learner's arrays
    slots: Any
    mesh: Any
    disjoint: bool  # whether the sampler has separate devices


def traced(config: Config, prompt_tokens: int = 0, devices: Sequence | None = None) -> Traced:
    """Raises InputError if the run cannot start. devices: to compile for; None: those of JAX."""
    import jax

    from rlx import mesh as meshes
    from rlx.models import lora, transformer
    from rlx.rollout import engine, sampler
    from rlx.train import start, state, step, teacher
    from rlx.train.spec import names, numbers

    start.check_trained(config)
    env, rollout, optim = start.make_env(config), config.rollout, config.optim
    P, U = rollout.prompts_per_step, prompt_tokens or env.max_prompt_tokens
    mesh = start.make_mesh(config, P // optim.microbatches, devices)
    generators = meshes.generator_mesh(config.mesh, mesh, devices)
    config = replace(config, model=with_kernel(config.model, mesh))

    def laid_out(on, params):
        return meshes.shapes(params, meshes.of_params(on, params, lora.logical_axes(params)))

    def initial(model):
        words = max(model.vocab_size, env.tokenizer.vocab_size)
        return jax.eval_shape(lambda: transformer.init(jax.random.key(0), model, words))

    params = initial(config.model)
    theirs, taught = None, None
    if config.algo.teacher:
        theirs = with_kernel(teacher.resolve(config, env, mesh)[0].model, mesh)
        taught = laid_out(mesh, initial(theirs))
    scorer = None
    if config.needs_reward_model:
        kind = start.of_run(config.algo.reward_model)["model"]
        scorer = laid_out(mesh, jax.eval_shape(transformer.with_critic, initial(kind)))
    hyper, spec = numbers(config), names(config, mesh, theirs)
    start_params, learner = laid_out(mesh, params), state.state_like(spec, params)
    batch = batch_like(config, U)
    batch = meshes.shapes(batch, jax.tree.map(lambda x: meshes.along(mesh, "prompts", x), batch))
    base = start_params if spec.lora_rank else None
    reference = start_params if spec.reference else None

    critic = {"value": learner.params["value"]} if spec.critic else {}
    policy = {**params, **critic}
    narrowed = jax.eval_shape(
        lambda policy: transformer.published(
            policy, config.model, rollout.head_dtype, meshes.on_one_gpu(generators)
        ),
        policy,
    )
    copied = narrowed != policy or bool(optim.lora_rank) or generators != mesh
    published, stops = laid_out(generators, narrowed), len(env.tokenizer.stop_ids)
    W, T = config.slots, rollout.max_new_tokens
    rules = engine.rules(config, env)
    make = lambda: sampler.empty(config.model, W, U, T, stops, generators, rules.routing)  # noqa: E731
    slots = jax.eval_shape(make)
    slots = meshes.shapes(slots, sampler.shardings(slots, generators))
    static = {"config": config.model, "rules": rules, "mesh": generators}
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, "int32")  # noqa: E731
    n = max(W // rollout.group_size, 1)
    new = ints(n, U), ints(n), sampler.New(*[ints(W)] * 4, ints(W, stops))
    key = jax.eval_shape(lambda: jax.random.key(0))
    programs = {
        "update": step.jitted_step.trace(learner, batch, base, reference, taught, hyper, spec=spec),
        "insert": sampler.insert.trace(published, slots, *new, key, 0, 1.0, **static),
        "decode": sampler.decode.trace(published, slots, 0, 1.0, 2, **static),
    }
    disjoint, start_kept = generators != mesh, base or reference
    return Traced(
        programs, learner, batch, start_kept, taught, scorer, published, copied, slots, mesh,
        disjoint,
    )  # fmt: skip


def with_kernel(model: ModelConfig, mesh: Any) -> ModelConfig:
    """The model with its attention kernel on that mesh.

    cuDNN's kernel can be compiled for an absent card only if its library is installed: otherwise
    auto is XLA's, and cudnn an InputError.
    """
    from rlx.models import transformer

    chosen = transformer.chosen(model, mesh)
    if chosen.attention == "cudnn" and not (find_spec("nvidia") and find_spec("nvidia.cudnn")):
        if model.attention == "cudnn":
            remedy = "pip install nvidia-cudnn-cu12, or give model.attention=xla"
            raise InputError("model.attention", "cudnn", "its library is not installed", remedy)
        return replace(chosen, attention="xla")
    return chosen


def batch_like(config: Config, prompt_tokens: int) -> Any:
    """The shapes of a batch; if packed, of one whose samples all have the maximum length."""
    import jax

    from rlx.types import Batch

    rollout = config.rollout
    P, G, T = rollout.prompts_per_step, rollout.group_size, rollout.max_new_tokens
    floats = lambda *shape: jax.ShapeDtypeStruct(shape, "float32")  # noqa: E731
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, "int32")  # noqa: E731
    routed = P * G, T, len(config.model.sparse_layers), config.model.experts_per_token
    return Batch(
        prompt_PU=ints(P, prompt_tokens),
        prompt_length_P=ints(P),
        completion_BT=ints(P * G, T),
        mask_BT=floats(P * G, T),
        behavior_logp_BT=floats(P * G, T),
        behavior_value_BT=floats(P * G, T),
        reward_PG=floats(P, G),
        keep_P=floats(P),
        packed_PRt=ints(P, G, T - 1) if config.optim.pack and T > 1 else None,
        expert_BTLK=ints(*routed) if config.algo.replay_routing else None,
    )


def per_device(tree: Any) -> int:
    """Bytes of one device's shards of a tree of shapes with shardings."""
    import jax

    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def held(run: Traced) -> dict[str, int]:
    """Bytes of one device, by purpose."""
    return {
        "parameters": per_device(run.state.params),
        "moments": per_device(run.state.opt_state),
        "reference": per_device(run.reference),
        "teacher": per_device(run.teacher),
        "reward model": per_device(run.scorer),
        "batch": per_device(run.batch),
        "published": per_device(run.published) if run.copied else 0,
        "keys and values": per_device(run.slots.cache),
        "slots besides": per_device(run.slots) - per_device(run.slots.cache),
    }


def beside(run: Traced, program: str) -> int:
    """Bytes held by a device while a program runs that does not use them."""
    if run.disjoint:
        return 0
    it = held(run)
    if program == "update":
        return it["published"] + per_device(run.slots) + it["reward model"]
    frozen = it["reference"] + it["teacher"] + it["reward model"]
    learner = it["moments"] + per_device(run.state.version)
    return frozen + learner + (it["parameters"] if run.copied else 0)


def weight_bytes(run: Traced, config: Config) -> int:
    """Bytes that a device reads to multiply by every weight once.

    Its heads, columns and experts, complete along d_model, in the dtype of the products. Of an
    embedding that is not the head, a step reads a few rows, which are not counted.
    """
    import jax

    from rlx import mesh as meshes
    from rlx.models import transformer

    mesh = jax.tree.leaves(run.published)[0].sharding.mesh
    params = {k: x for k, x in run.published.items() if k != "embed" or "head" not in run.published}

    def gathered(x, axes):
        place = meshes.sharding(mesh, tuple(a if a != "model" else None for a in axes), x.shape)
        dtype = config.model.compute_dtype if x.ndim > 1 else x.dtype
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=place)

    return per_device(jax.tree.map(gathered, params, transformer.logical_axes(params)))


def fewest_bytes(run: Traced, config: Config) -> dict[str, int]:
    """Minimum traffic of an update and of a decoding step, as defined in the module's docstring."""
    weights, cache = weight_bytes(run, config), per_device(run.slots.cache)
    W, T = run.slots.token_WT.sharding.shard_shape(run.slots.token_WT.shape)
    (P, U), optim = run.batch.prompt_PU.shape, config.optim
    of_a_token = cache / (W * (U + T - 1))
    rows = run.mesh.shape["data"] * run.mesh.shape["fsdp"]
    tokens = P * (optim.group_slices * U + config.rollout.group_size * (T - 1)) / rows
    slices = optim.microbatches * optim.group_slices
    state = 2 * (per_device(run.state) + per_device(run.state.params))
    return {
        "update": round(2 * slices * weights + 3 * tokens * of_a_token) + state,
        "decode": weights + cache,
    }


def moved(program: hlo.Program, turns: int) -> int:
    """Bytes of a program whose outermost loop runs `turns` times; 0: of one iteration."""
    turn = sum(move.bytes for move in hlo.step(program))
    if not turns:
        return turn
    return sum(move.bytes for move in hlo.moves(program)) + (turns - 1) * turn


def report(
    config: Config, prompt_tokens: int = 0, target: str = "cpu", programs: str = PROGRAMS
) -> dict[str, Any]:
    """Bytes that a device holds, and those of every program.

    Raises InputError if the run cannot start there, or `target` is unknown.
    """
    import jax

    devices = None if target == "cpu" else targets.devices(target)
    run = traced(config, prompt_tokens, devices)
    fewest, rows = fewest_bytes(run, config), {}
    slices = config.optim.microbatches * config.optim.group_slices
    for name in programs.split(","):
        program = run.programs[name]
        begin = time.perf_counter()
        compiled = program.lower().compile(QUICK if target == "cpu" else None)
        plan, text = compiled.memory_analysis(), compiled.as_text()
        row = {
            "compile_s": round(time.perf_counter() - begin, 1),
            "arguments": plan.argument_size_in_bytes,
            "outputs": plan.output_size_in_bytes,
            "aliased": plan.alias_size_in_bytes,
            "temporaries": plan.temp_size_in_bytes,
        }
        row["in all"] = row["arguments"] + row["outputs"] - row["aliased"] + row["temporaries"]
        row["beside"] = beside(run, name)
        parsed = hlo.parse(text)
        if name in fewest:
            turns = slices if name == "update" else 0  # decode: one step of its loop
            row["step_bytes"], row["fewest_bytes"] = moved(parsed, turns), fewest[name]
            row["cache_bytes_ratio"] = round(row["step_bytes"] / fewest[name], 3)
        if target != "cpu" and (cost := compiled.cost_analysis()):
            row["cost_model"] = {key: cost[key] for key in COST if key in cost}
        rows[name] = row | {"collectives": hlo.collectives(parsed)}
    size = sum(math.prod(x.shape) for x in jax.tree.leaves(run.published))
    found = {"target": target, "parameters": size, "mesh": dict(run.mesh.shape)}
    return found | {"held": held(run), "programs": rows}


def table(found: dict[str, Any]) -> str:
    gib = lambda n: f"{n / 2**30:.3f}"  # noqa: E731
    mesh = " x ".join(f"{name} {n}" for name, n in found["mesh"].items())
    lines = [f"{found['parameters']:,} parameters on {mesh}; GiB per device", ""]
    lines += [f"{name:<21}{gib(n):>10}" for name, n in found["held"].items() if n]
    lines += ["", " " * 8 + "".join(f"{key:>13}" for key in ("compile_s", *BYTES))]
    for name, row in found["programs"].items():
        cells = [f"{row['compile_s']:.1f}", *(gib(row[key]) for key in BYTES)]
        lines.append(f"{name:<8}" + "".join(f"{cell:>13}" for cell in cells))
    lines.append("")
    for name, row in found["programs"].items():
        if "step_bytes" in row:
            moved, fewest = gib(row["step_bytes"]), gib(row["fewest_bytes"])
            ratio = f"{row['cache_bytes_ratio']:.2f}"
            lines.append(f"a step of {name} moves {moved}, {ratio} times the fewest, {fewest}")
        if "cost_model" in row:
            costs = ", ".join(f"{key} {x:.4g}" for key, x in row["cost_model"].items())
            lines.append(f"{name}, loops counted once: {costs}")
    lines += ["", "collectives, times written, largest result, all results"]
    for name, row in found["programs"].items():
        for kind, seen in row["collectives"].items():
            sizes = f"{gib(seen['largest']):>10}{gib(seen['bytes']):>10}"
            lines.append(f"{name:<8}{kind:<20}{seen['count']:>5}{sizes}")
    return "\n".join(lines)


def own_options(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """(values of OWN, the other words). Raises InputError for a value of the wrong kind."""
    options, rest = dict(OWN), []
    for word in words:
        key, _, value = word.partition("=")
        if key not in OWN:
            rest.append(word)
        elif key == "target":
            targets.platform(value)
            options[key] = value
        elif key == "programs":
            if unknown := set(value.split(",")) - set(PROGRAMS.split(",")):
                raise InputError(key, value, f"no {min(unknown)!r} here", f"use some of {PROGRAMS}")
            options[key] = value
        elif not value.isdecimal() or int(value) < (key == "devices"):
            raise InputError(key, value, "not a whole number in range", "give a whole number")
        else:
            options[key] = int(value)
    return options, rest


def main() -> int:
    try:
        options, rest = own_options(sys.argv[1:])
        config = train.composed(rest)
        import jax

        with contextlib.suppress(RuntimeError):  # JAX has started, in a test
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", options["devices"])
        from rlx.train import start

        asked = (options[key] for key in ("prompt_tokens", "target", "programs"))
        found = report(start.resolve(config), *asked)
    except train.BAD_INPUT as error:
        print(f"error: {train.as_input_error(error)}", file=sys.stderr)
        return 2
    print(table(found))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
