"""What compiled programs move, against programs whose passes over an array are known.

Compiled for this CPU, and for accelerators that are not there where their compilers are installed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import hlo, targets

N = 2**30  # bytes of the array: more than a TPU's on-chip memory
ROWS, COLUMNS = 512, 2**19
X = jax.ShapeDtypeStruct((ROWS, COLUMNS), jnp.float32)
ROW = jax.ShapeDtypeStruct((COLUMNS,), jnp.float32)
AT = jax.ShapeDtypeStruct((), jnp.int32)
TARGETS = [
    "cpu",
    *(
        pytest.param(
            target,
            marks=[
                pytest.mark.targets,
                pytest.mark.skipif(
                    not targets.installed(target), reason="pip install -e '.[targets]'"
                ),
            ],
        )
        for target in ("h200", "v6e:1x1")
    ),
]


@functools.cache
def place(target):
    device = jax.devices()[0] if target == "cpu" else targets.devices(target)[0]
    return jax.sharding.NamedSharding(jax.sharding.Mesh(np.array([device]), "x"), jax.P())


def compiled(target, function, *args, donate=()):
    at = place(target)
    args = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at) for x in args]
    return hlo.parse(jax.jit(function, donate_argnums=donate).lower(*args).compile().as_text())


def passes(program) -> float:
    return sum(move.bytes for move in hlo.moves(program)) / N


def put(x, row, at):
    return x.at[at].set(row)


def put_and_kept(x, row, at):
    return x.at[at].set(row), x


def put_then_read(x, row, at):
    x = x.at[at].set(row)
    return x, x @ row


def row_of(x, at):
    return x[at] * 2


def read_in_turns(x, row):
    return jax.lax.fori_loop(0, 7, lambda i, y: y + x @ (row + y.sum()), jnp.zeros(ROWS))


def put_in_turns(x, row):
    return jax.lax.fori_loop(0, 7, lambda i, x: x.at[2 * i].set(row + x[i]), x)


def layer_by_layer(x, row):
    """As a scan over a stacked cache: every layer is taken out, changed, read and put back."""

    def one(x, i):
        layer = x[i].at[3].set(row[:1024])
        return x.at[i].set(layer), jax.lax.optimization_barrier(layer).sum()

    x = x.reshape(4, -1, 1024)
    return jax.lax.scan(one, x, jnp.arange(4))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "function, args, donate, expected",
    [
        (lambda x: x + 1, (X,), (), 2),  # read, written
        (lambda x: x + 1, (X,), (0,), 2),
        (lambda x: x.sum(axis=1), (X,), (), 1),
        (put, (X, ROW, AT), (0,), 0),  # in place
        (put, (X, ROW, AT), (), 2),  # a copy: the argument is the caller's
        (put_and_kept, (X, ROW, AT), (0,), 4),  # two copies, where the compilers could do with one
        (put_then_read, (X, ROW, AT), (0,), 1),
        (row_of, (X, AT), (), 0),
        (read_in_turns, (X, ROW), (), 7),
        (put_in_turns, (X, ROW), (0,), 0),
    ],
    ids="add add_donated sum put put_copied put_kept put_read row reads puts".split(),
)
def test_a_program_moves_what_it_must(target, function, args, donate, expected):
    found = passes(compiled(target, function, *args, donate=donate))
    assert found == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("target", TARGETS[1:])
def test_a_layer_that_is_taken_out_and_put_back_shows(target):
    """Read and written twice at least, and summed: a list of layers would be summed only."""
    program = compiled(target, layer_by_layer, X, ROW, donate=(0,))
    assert passes(program) >= 4
    listed = [jax.ShapeDtypeStruct((2**16, 1024), jnp.float32)] * 4

    def lists(*layers_row):
        *layers, row = layers_row
        layers = [layer.at[3].set(row[:1024]) for layer in layers]
        return layers, [jax.lax.optimization_barrier(layer).sum() for layer in layers]

    assert passes(compiled(target, lists, *listed, ROW, donate=(0, 1, 2, 3))) <= 1.15


@pytest.mark.parametrize("target", TARGETS)
def test_a_step_is_one_turn_of_a_loop_of_unknown_length(target):
    def steps(x, row, n):
        def one(carry):
            i, x = carry
            return i + 1, x.at[i].set(row + (x @ row).sum())

        return jax.lax.while_loop(lambda carry: carry[0] < n, one, (0, x + 1))

    program = compiled(target, steps, X, ROW, AT, donate=(0,))
    step = sum(move.bytes for move in hlo.step(program))
    assert step == pytest.approx(N, rel=0.15)
    assert passes(program) == pytest.approx(3, abs=0.3)
