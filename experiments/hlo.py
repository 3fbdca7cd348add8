"""Memory traffic of a compiled program, from its optimised text (XLA's HLO, for CPU, GPU or TPU).

An instruction of a scheduled program reads its operands from the device's memory and writes its
result there, with these exceptions:

    a slice, or a gather, reads what it takes; so does a fusion of an operand that it only slices
    an update (dynamic-update-slice, scatter) in place reads and writes what it changes. It is in
        place if nothing reads the old array later and the program may overwrite it: an argument
        that is not donated is copied
    data in a TPU's on-chip memory (`S(1)` in its layout) cost nothing
    a loop costs its body times its trip count, or once if the text does not give the count

Tiles are counted in full: a TPU stores 8 x 128 numbers together, and moves the padding too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

NOTHING = set("parameter constant tuple get-tuple-element bitcast after-all opt-barrier".split())
NOTHING |= set("add-dependency partition-id replica-id copy-done slice-done".split())
FREE_CALLS = ("ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound")  # of a TPU
COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([\d,]*)(:[^{}]*)?\})?")


class Instruction(NamedTuple):
    name: str
    shape: str  # with its layout; of several results in parentheses
    kind: str
    operands: tuple[str, ...]
    rest: str  # attributes

    def calls(self, attribute: str) -> str:
        return re.search(rf"\b{attribute}=%?([\w.-]+)", self.rest)[1]


Computation = dict[str, Instruction]  # in execution order; the last one is the result


class Program(NamedTuple):
    computations: dict[str, Computation]
    entry: str
    donated: frozenset[int]  # arguments whose memory a result reuses


class Move(NamedTuple):
    """Bytes that an instruction reads and writes each time, and how often it runs."""

    name: str
    kind: str
    read: int
    written: int
    times: int

    @property
    def bytes(self) -> int:
        return self.times * (self.read + self.written)


def parse(text: str) -> Program:
    computations: dict[str, Computation] = {}
    entry = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            computations[head[2]] = inside = {}
            entry = head[2] if head[1] else entry
        elif found := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = ", line):
            inside[found[1]] = _instruction(found[1], line[found.end() :])
    aliases = re.search(r"input_output_alias=\{(.*?\)) \}", text)
    donated = re.findall(r": \((\d+),", aliases[1]) if aliases else []
    return Program(computations, entry, frozenset(map(int, donated)))


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) if text[0] == "(" else text.index(" ")
    kind = re.compile(r"\s*([\w-]+)\(").match(text, end)
    close = _closing(text, kind.end() - 1)
    inside, rest = text[kind.end() : close - 1], text[close:]
    operands = re.findall(r"%([\w.-]+)", inside)
    if kind[1] in ("parameter", "constant"):
        operands, rest = [], inside + rest  # parameter number, or value of a constant
    return Instruction(name, text[:end], kind[1], tuple(operands), rest)


def _closing(text: str, at: int) -> int:
    """The index after the parenthesis that closes the one at `at`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, at):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.end()
    raise ValueError(f"no end of {text[at : at + 40]}")


def arrays(shape: str) -> list[tuple[int, bool]]:
    """(bytes, whether in the device's main memory) of every array of a shape."""
    return [_array(found) for found in ARRAY.finditer(shape)]


def _array(found: re.Match[str]) -> tuple[int, bool]:
    dtype, dims, order, tiles = found.groups()
    bits = 8 if dtype == "pred" else int((re.search(r"\d+", dtype) or "0")[0])
    size = [int(n.strip("<=")) for n in dims.split(",") if n]
    if tile := re.match(r":T\(([\d,]+)\)", tiles or ""):
        tile = [int(n) for n in tile[1].split(",")]
        size = [size[int(axis)] for axis in reversed(order.split(",")) if axis]  # major to minor
        size = [1] * (len(tile) - len(size)) + size
        whole = [-(-n // t) * t for n, t in zip(size[-len(tile) :], tile, strict=True)]
        size[-len(tile) :] = whole
    return math.prod(size) * bits // 8, not re.search(r"S\([1-9]\d*\)", tiles or "")


def size(shape: str) -> int:
    """Bytes, in any memory."""
    return sum(n for n, _ in arrays(shape))


def in_memory(shape: str) -> int:
    return sum(n for n, main in arrays(shape) if main)


def moves(program: Program, computation: str = "", times: int = 1) -> Iterator[Move]:
    """Moves of all instructions when `computation` (default: the program) runs `times` times."""
    name = computation or program.entry
    inside = program.computations[name]
    last = _last_uses(inside)
    for at, op in enumerate(inside.values()):
        if op.kind == "while":
            yield from moves(program, op.calls("body"), times * max(trips(program, name, op), 1))
        elif op.kind == "conditional":
            branches = re.findall(r"%([\w.-]+)", op.rest.split("metadata=")[0])
            branches = [branch for branch in branches if branch in program.computations]
            costs = [list(moves(program, branch, times)) for branch in branches]
            yield from max(costs, key=lambda cost: sum(move.bytes for move in cost))
        elif op.kind == "call" or op.kind in ("async-start", "call-start"):
            called = "to_apply" if "to_apply=" in op.rest else "calls"
            yield from moves(program, op.calls(called), times)
        elif op.kind not in NOTHING and not op.kind.endswith(("-done", "-update")):
            read, written = _moved(program, name, op, lambda x, at=at: last.get(x, at) <= at)
            yield Move(op.name, op.kind, read, written, times)


def step(program: Program) -> list[Move]:
    """Moves of one iteration of the outermost loop, the one in the entry that moves most."""
    entry = program.computations[program.entry].values()
    bodies = [list(moves(program, op.calls("body"))) for op in entry if op.kind == "while"]
    return max(bodies, key=lambda body: sum(move.bytes for move in body), default=[])


def trips(program: Program, computation: str, loop: Instruction) -> int:
    """Trip count of a loop; 0 if it depends on the data."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    *others, test = program.computations[loop.calls("condition")].values()
    others = {op.name: op for op in others}
    if test.kind != "compare" or "direction=LT" not in test.rest:
        return 0
    i, n = (others[name] for name in test.operands)
    if i.kind != "get-tuple-element" or n.kind != "constant":
        return 0
    inside = program.computations[computation]
    start = inside[loop.operands[0]]
    while start.kind in ("tuple", "copy", "bitcast"):
        which = int(re.search(r"index=(\d+)", i.rest)[1]) if start.kind == "tuple" else 0
        start = inside[start.operands[which]]
    if start.kind != "constant":
        return 0
    return int(re.match(r"\d+", n.rest)[0]) - int(re.match(r"\d+", start.rest)[0])


def _moved(program: Program, name: str, op: Instruction, dead) -> tuple[int, int]:
    """(bytes read, bytes written) of an instruction that is not a loop."""
    inside = program.computations[name]
    main = [in_memory(inside[x].shape) for x in op.operands]
    written = in_memory(op.shape)
    if op.kind in ("copy-start", "slice-start"):  # the shape lists operand and result
        parts = arrays(op.shape)
        moved, to_main = parts[0] if op.kind == "copy-start" else parts[len(op.operands)]
        return moved * any(main), moved * to_main
    if re.fullmatch(f"({COLLECTIVES})-start", op.kind):
        return sum(main), in_memory(op.shape) - sum(main) * (op.kind != "all-reduce-start")
    if op.kind == "custom-call":
        if any(target in op.rest for target in FREE_CALLS):
            return 0, 0
        results = arrays(op.shape)
        if "__cu" in op.rest:  # a library call, whose last result is scratch memory
            results = results[: max(len(results) - 1, 1)]
        return sum(main), sum(n for n, is_main in results if is_main)
    if op.kind != "fusion":
        lone = {op.name: op} | {x: inside[x]._replace(kind="parameter") for x in op.operands}
        found = _update(program, lone, op)
        if found and dead(_buffer(inside, op.operands[0])) and _ours(program, name, op.operands[0]):
            return min(found[1], sum(main)), found[1] if main[0] else 0
        if op.kind in ("dynamic-slice", "slice", "gather") and main[0]:
            return min(size(op.shape), main[0]) + sum(main[1:]), written
        return sum(main), written
    body = program.computations[op.calls("calls")]
    users = _users(body)
    read = [
        _read(program, body, users, _parameter(body, i)) if whole else 0
        for i, whole in enumerate(main)
    ]
    for root, (whole, is_main) in zip(_roots(body), arrays(op.shape), strict=False):
        found = _update(program, body, root, users)
        if not found or not is_main:
            continue
        i, changed = found
        if dead(_buffer(inside, op.operands[i])) and _ours(program, name, op.operands[i]):
            written -= whole - changed
        else:  # it also copies the rest
            read[i] = main[i]
    return sum(map(min, read, main)), written


def _roots(body: Computation) -> list[Instruction]:
    root = list(body.values())[-1]
    return [body[x] for x in root.operands] if root.kind == "tuple" else [root]


def _users(body: Computation) -> dict[str, list[Instruction]]:
    users: dict[str, list[Instruction]] = {}
    for op in body.values():
        for x in dict.fromkeys(op.operands):
            users.setdefault(x, []).append(op)
    return users


def _read(program: Program, body: Computation, users, name: str) -> int:
    """Upper bound of the bytes of value `name` that a fusion reads."""
    total, whole = 0, size(body[name].shape)
    for user in users.get(name, ()):
        if user.kind == "bitcast":
            total += _read(program, body, users, user.name)
        elif user.kind in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
            total += size(user.shape)
        elif user.kind == "fusion":
            inner = program.computations[user.calls("calls")]
            inner_users = _users(inner)
            for i, x in enumerate(user.operands):
                if x == name:
                    total += _read(program, inner, inner_users, _parameter(inner, i))
        elif user.kind in ("dynamic-update-slice", "scatter") and user.operands[0] == name:
            total += 0 if _is_root(body, users, user) else whole
        elif user.kind != "tuple":
            total += whole
    return min(total, whole)


def _is_root(body: Computation, users, op: Instruction) -> bool:
    while op.name in users:
        (op, *others) = users[op.name]
        if others or op.kind not in ("bitcast", "tuple"):
            return False
    return True


def _parameter(body: Computation, i: int) -> str:
    found = (p for p in body.values() if p.kind == "parameter" and re.match(rf"{i}\b", p.rest))
    return next(found).name


def _update(program: Program, body: Computation, op: Instruction, users=None):
    """(parameter, bytes) if a result is that parameter of `body` with `bytes` bytes changed.

    None if it is not, or if other parts of it are read.
    """
    if op.kind == "bitcast":
        return _update(program, body, body[op.operands[0]], users)
    if op.kind == "fusion":
        inner = program.computations[op.calls("calls")]
        found = _update(program, inner, _roots(inner)[0], _users(inner))
        source, changed = (op.operands[found[0]], found[1]) if found else ("", 0)
    elif op.kind in ("dynamic-update-slice", "scatter"):
        new = 1 if op.kind == "dynamic-update-slice" else (len(op.operands) + 1) // 2
        source, changed = op.operands[0], size(body[op.operands[new]].shape)
    else:
        return None
    if not source:
        return None
    while body[source].kind == "bitcast":
        source = body[source].operands[0]
    if body[source].kind != "parameter":
        return None
    if users is None:  # not in a fusion: its first operand
        return 0, changed
    for user in users[source]:
        slices = user.kind in ("dynamic-slice", "gather") and size(user.shape) <= changed
        if not slices and user.kind != "bitcast" and user != op:
            return None
    return int(re.match(r"\d+", body[source].rest)[0]), changed


def _buffer(inside: Computation, name: str) -> tuple[str, str]:
    """(instruction, index) of the array behind a value, through bitcasts and tuples."""
    op, index = inside[name], ""
    while op.kind in ("bitcast", "get-tuple-element", "tuple"):
        if op.kind == "get-tuple-element":
            index = re.search(r"index=(\d+)", op.rest)[1]
            op = inside[op.operands[0]]
            if op.kind != "tuple":
                break
            op, index = inside[op.operands[int(index)]], ""
        else:
            op = inside[op.operands[0]]
    return op.name, index


def _last_uses(inside: Computation) -> dict[tuple[str, str], int]:
    """Last use of every array, as a position in the computation."""
    last: dict[tuple[str, str], int] = {}

    def use(name: str, at: int) -> None:
        if inside[name].kind == "tuple":
            for x in inside[name].operands:
                use(x, at)
        else:
            last[_buffer(inside, name)] = at

    for at, op in enumerate(inside.values()):
        if op.kind not in ("tuple", "get-tuple-element", "bitcast"):
            for x in op.operands:
                use(x, at)
    use(list(inside)[-1], len(inside))
    return last


def _ours(program: Program, computation: str, name: str) -> bool:
    """Whether the program may overwrite an array: not a constant or a kept argument."""
    inside = program.computations[computation]
    op = inside[_buffer(inside, name)[0]]
    if op.kind == "constant":
        return False
    if op.kind != "parameter" or computation != program.entry:
        return True
    return int(re.match(r"\d+", op.rest)[0]) in program.donated


def plain_products(program: Program) -> list[str]:
    """Names of products of float32 factors at full precision, for which a GPU has no matrix units.

    They are dots, or calls of cuBLAS, with `operand_precision={highest,highest}` and without an
    algorithm that splits float32 into bfloat16 or TF32.
    """
    found = []
    for inside in program.computations.values():
        for op in inside.values():
            if op.kind == "dot" or "gemm" in op.rest or "matmul" in op.rest:
                exact = re.search(r"operand_precision\W+highest", op.rest, re.I)
                factors = [inside[x].shape for x in op.operands[:2]]
                if exact and "algorithm=" not in op.rest and all("f32[" in x for x in factors):
                    found.append(op.name)
    return found


def collectives(program: Program) -> dict[str, dict[str, int]]:
    """{kind: {"count", "largest", "bytes"}} of a program's collectives by their results, in bytes.

    count and largest are of the text, in which a loop's body is written once; bytes are of a whole
    run, with the trip counts in the text.
    """
    found: dict[str, dict[str, int]] = {}
    for move in moves(program):
        if kind := re.fullmatch(f"({COLLECTIVES})(-start)?", move.kind):
            row = found.setdefault(kind[1], {"count": 0, "largest": 0, "bytes": 0})
            row["count"] += 1
            row["largest"] = max(row["largest"], move.written)
            row["bytes"] += move.times * move.written
    return dict(sorted(found.items()))
