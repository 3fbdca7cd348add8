"""What a configuration needs of every device, before anyone asks for a cluster.

    python -m experiments.memory devices=64 prompt_tokens=2048 model=llama3_1_8b model.remat=true
        model.query_chunk=256 mesh.data=1 mesh.fsdp=8 mesh.tensor=8 rollout.prompts_per_step=64
        rollout.max_new_tokens=14336 optim.microbatches=8 optim.group_slices=4
        optim.vocab_chunk=4096

The keys of experiments.train describe the run; `devices` virtual CPU devices stand for the cluster,
`prompt_tokens` is the width of prompts (0: the longest of the environment), and the model's own
`vocab_size` counts, if it has one, whatever the environment's characters. Nothing is allocated:
parameters, moments, batch and slots are shapes with the shardings of a run, for which the update
and the sampler's `insert` and `decode` are compiled. Per device:

    arguments, outputs   of the program; `aliased` bytes of the outputs reuse those of arguments
    temporaries          what it allocates besides, as XLA plans it for a CPU: an upper bound for an
                         accelerator. A CPU computes bfloat16 in float32 and keeps converted copies
                         (with model.compute_dtype=float32 there are none, at up to twice the size),
                         scatters gradients by all-reduce, and multiplies each row by every expert
                         of the device, where others have a grouped product
    in all               arguments + outputs - aliased + temporaries
    beside               what the run keeps on the device meanwhile: slots, or the learner's state
    collectives          how often each is written in the program (a loop's body counts once), and
                         the largest result

The table is for reading, the JSON line after it (bytes) for programs. Exit status 2: bad input.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
import time
from typing import Any, NamedTuple

from experiments import train
from rlx.config import Config
from rlx.errors import InputError

OWN = {"devices": 8, "prompt_tokens": 0}
COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
DTYPE_BYTES = {"pred": 1, "bf16": 2, "f16": 2}  # others: from the digits of their names


class Traced(NamedTuple):
    """The programs of a run, by name, and what they work on; shapes with shardings."""

    programs: dict[str, Any]  # jax.stages.Traced
    state: Any
    batch: Any
    published: Any  # the sampler's parameters
    slots: Any
    mesh: Any
    disjoint: bool  # the sampler has devices of its own


def traced(config: Config, prompt_tokens: int = 0) -> Traced:
    """InputError if the run could not start."""
    import jax

    from rlx import mesh as meshes
    from rlx.models import lora, transformer
    from rlx.rollout import engine, sampler
    from rlx.train import recipe, start, step

    env, rollout = start.make_env(config), config.rollout
    P, U = rollout.prompts_per_step, prompt_tokens or env.max_prompt_tokens
    mesh = meshes.make_mesh(config.mesh, P // config.optim.microbatches)
    generators = meshes.generator_mesh(config.mesh, mesh)

    def laid_out(on, params):
        return meshes.shapes(params, meshes.of_params(on, params, lora.logical_axes(params)))

    words = config.model.vocab_size or env.tokenizer.vocab_size
    params = jax.eval_shape(lambda: transformer.init(jax.random.key(0), config.model, words))
    start_params, state = laid_out(mesh, params), step.state_like(config, mesh, params)
    batch = batch_like(config, U)
    batch = meshes.shapes(batch, jax.tree.map(lambda x: meshes.along(mesh, "prompts", x), batch))
    base = start_params if config.optim.lora_rank else None
    reference = start_params if recipe.needs_reference(config.algo) else None

    critic = {"value": state.params["value"]} if recipe.has_critic(config.algo) else {}
    published = laid_out(generators, {**params, **critic})
    slots = jax.eval_shape(
        lambda: sampler.empty(config.model, config.slots, U, rollout.max_new_tokens, generators)
    )
    slots = meshes.shapes(slots, sampler.shardings(slots, config.model, generators))
    static = {"config": config.model, "rules": engine.rules(config, env), "mesh": generators}
    n, G = config.slots // rollout.group_size, rollout.group_size
    new = [jax.ShapeDtypeStruct(shape, "int32") for shape in ((n, U), (n,), (n, G), (n,))]
    key = jax.eval_shape(lambda: jax.random.key(0))
    hyper, spec = step.numbers(config), step.names(config, mesh)
    programs = {
        "update": step.jitted_step.trace(state, batch, base, reference, hyper, spec=spec),
        "insert": sampler.insert.trace(published, slots, *new, key, 0, 1.0, **static),
        "decode": sampler.decode.trace(published, slots, 0, 1.0, 2, **static),
    }
    return Traced(programs, state, batch, published, slots, mesh, generators != mesh)


def batch_like(config: Config, prompt_tokens: int) -> Any:
    """The shapes of a batch; packed, of one whose samples all have the greatest length."""
    import jax

    from rlx.types import Batch

    rollout = config.rollout
    P, G, T = rollout.prompts_per_step, rollout.group_size, rollout.max_new_tokens
    floats = lambda *shape: jax.ShapeDtypeStruct(shape, "float32")  # noqa: E731
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, "int32")  # noqa: E731
    return Batch(
        prompt_PU=ints(P, prompt_tokens),
        prompt_length_P=ints(P),
        completion_BT=ints(P * G, T),
        mask_BT=floats(P * G, T),
        behavior_logp_BT=floats(P * G, T),
        behavior_value_BT=floats(P * G, T),
        reward_PG=floats(P, G),
        keep_P=floats(P),
        packed_PRW=ints(P, G, T - 1) if config.optim.pack else None,
    )


def per_device(tree: Any) -> int:
    """Bytes of one device's shards of a tree of shapes with shardings."""
    import jax

    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """{kind: {"count", "largest"}} of a compiled program's text; largest in bytes."""
    found: dict[str, dict[str, int]] = {}
    for result, kind in re.findall(rf"= (\S.*?) ({COLLECTIVES})(?:-start)?\(", hlo):
        size = 0
        for dtype, dims in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", result):
            each = DTYPE_BYTES.get(dtype) or int(re.sub(r"\D", "", dtype)) // 8
            size += each * math.prod(int(n) for n in dims.split(",") if n)
        row = found.setdefault(kind, {"count": 0, "largest": 0})
        row["count"], row["largest"] = row["count"] + 1, max(row["largest"], size)
    return dict(sorted(found.items()))


def report(config: Config, prompt_tokens: int = 0) -> dict[str, Any]:
    """What a device holds and what every program takes of it, in bytes."""
    import jax

    run = traced(config, prompt_tokens)
    held = {
        "parameters": per_device(run.state.params),
        "moments": per_device(run.state.opt_state),
        "batch": per_device(run.batch),
        "sampler's parameters": per_device(run.published) if run.disjoint else 0,
        "keys and values": per_device(run.slots.cache),
    }
    learner, slots = per_device(run.state), per_device(run.slots)
    apart = {"update": slots, "insert": learner - held["parameters"]}
    apart["decode"] = apart["insert"]
    programs = {}
    for name, program in run.programs.items():
        begin = time.perf_counter()
        compiled = program.lower().compile(QUICK)
        plan = compiled.memory_analysis()
        row = {
            "compile_s": round(time.perf_counter() - begin, 1),
            "arguments": plan.argument_size_in_bytes,
            "outputs": plan.output_size_in_bytes,
            "aliased": plan.alias_size_in_bytes,
            "temporaries": plan.temp_size_in_bytes,
        }
        row["in all"] = row["arguments"] + row["outputs"] - row["aliased"] + row["temporaries"]
        row["beside"] = 0 if run.disjoint else apart[name]
        programs[name] = row | {"collectives": collectives(compiled.as_text())}
    size = sum(math.prod(x.shape) for x in jax.tree.leaves(run.published))
    return {"parameters": size, "mesh": dict(run.mesh.shape), "held": held, "programs": programs}


def table(found: dict[str, Any]) -> str:
    gib = lambda n: f"{n / 2**30:.3f}"  # noqa: E731
    mesh = " x ".join(f"{name} {n}" for name, n in found["mesh"].items())
    lines = [f"{found['parameters']:,} parameters on {mesh}; GiB per device", ""]
    lines += [f"{name:<21}{gib(n):>10}" for name, n in found["held"].items() if n]
    columns = [key for key in found["programs"]["update"] if key != "collectives"]
    lines += ["", " " * 8 + "".join(f"{key:>13}" for key in columns)]
    for name, row in found["programs"].items():
        cells = [f"{row[key]:.1f}" if key == "compile_s" else gib(row[key]) for key in columns]
        lines.append(f"{name:<8}" + "".join(f"{cell:>13}" for cell in cells))
    lines += ["", "collectives, times written, largest result"]
    for name, row in found["programs"].items():
        for kind, seen in row["collectives"].items():
            lines.append(f"{name:<8}{kind:<20}{seen['count']:>5}{gib(seen['largest']):>10}")
    return "\n".join(lines)


def own_options(words: list[str]) -> tuple[dict[str, int], list[str]]:
    """(values of OWN, the other words). InputError if a value is no number."""
    options, rest = dict(OWN), []
    for word in words:
        key, _, value = word.partition("=")
        if key not in OWN:
            rest.append(word)
        elif not value.isdecimal() or int(value) < (key == "devices"):
            raise InputError(key, value, "not such a number", "give a whole number")
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

        found = report(start.resolve(config), options["prompt_tokens"])
    except train.BAD_INPUT as error:
        print(f"error: {train.told(error)}", file=sys.stderr)
        return 2
    print(table(found))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
