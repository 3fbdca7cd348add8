"""The interface to whatever samples: token ids in, token ids out.

Engine and evaluation use `Generator` alone. Requests are submitted as far as there is room; `begin`
samples some tokens of all sequences in flight, and `collect` returns those that are finished. A
paged kernel or an external engine is one more class here. `SlotGenerator` is the built-in one, with
the programs of rlx.rollout.sampler; rlx.rollout.episodes builds multi-turn episodes from one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from rlx import mesh as meshes
from rlx import processes
from rlx.config import Config, ModelConfig
from rlx.models import lora, transformer
from rlx.rollout import sampler
from rlx.types import Params, Problem, right_padded

Key = tuple[int, int]  # (serial number of the group, index of the sample in it)


class Request(NamedTuple):
    """A sample to generate."""

    key: Key
    ids: Sequence[int]  # the prompt; of a continuation, the tokens to inject
    limit: int  # tokens after the prompt, sampled or injected
    stop_ids: tuple[int, ...]
    holds: bool = False  # once finished it keeps its slot until it is continued or released
    continues: bool = False  # continues the held sequence of this key
    problem: Problem | None = None  # of an episode


class Transcript(NamedTuple):
    """A finished episode as text."""

    turns: tuple[str, ...]  # the policy's, the environment's, and so on
    stopped: bool  # False if a token limit truncated it
    failure: int = 0  # of the environment (rlx.envs.grading.Failure): it has no score


class Finished(NamedTuple):
    """N samples that reached a stop token or their limit; zeros after their last tokens."""

    keys: Sequence[Key]
    length_N: np.ndarray  # int, tokens
    token_NT: np.ndarray  # int32
    logp_NT: np.ndarray  # float32, of the distribution that was sampled
    value_NT: np.ndarray  # float32, of the critic before the token
    version_NT: np.ndarray  # int32, of the weights that sampled the token, or INJECTED
    expert_NTLK: np.ndarray | None = None  # int32, their routing, if requested
    transcripts: Sequence[Transcript] = ()  # of episodes

    def by_group(self) -> Iterator[tuple[int, Finished]]:
        """(serial number, neighbours that belong to that group)."""
        end = 0
        for serial, keys in itertools.groupby(self.keys, key=lambda key: key[0]):
            part = slice(end, end := end + len(list(keys)))
            yield serial, Finished(*(x if x is None else x[part] for x in self))


class Drawn(NamedTuple):
    """Token counts per sequence since the last `collect`, for the ledger."""

    prompt_length_W: np.ndarray
    before_W: np.ndarray  # tokens of its completion at the last `collect`
    now_W: np.ndarray
    put_in_W: np.ndarray  # of the new tokens, those injected by a continuation


@dataclass
class Weights:
    """The newest weights published by the learner."""

    params: Params  # made by `published`
    version: int


class Generator(Protocol):
    """Sequences in flight. The samples of a key do not depend on other sequences."""

    reply_s: float  # seconds of the environment's replies, without evaluations

    @property
    def free(self) -> int:
        """How many more requests fit; a continuation needs no room."""

    @property
    def nbytes(self) -> int:
        """Bytes held on all devices."""

    def submit(self, requests: Sequence[Request]) -> None:
        """Accept requests; they start at the next `begin`."""

    def begin(self, weights: Weights, tokens: int) -> None:
        """Sample `tokens` tokens of every sequence in flight; may return before they are done."""

    def collect(self) -> tuple[Finished, Drawn]:
        """Samples finished since the last call, and token counts."""

    def release(self, keys: Sequence[Key]) -> None:
        """Free the slots of held sequences."""

    def aside(self, key: jax.Array) -> Any:
        """A context in which it starts empty and uses another random key."""

    def state_dict(self) -> dict[str, Any]: ...

    def arrays(self) -> Any: ...

    def load(self, state: dict[str, Any], arrays: Any) -> None: ...


def published(params: Params, model: ModelConfig, head_dtype: str, learner: Mesh, mesh: Mesh):
    """`transformer.published` in the generator's layout; the same arrays if nothing changes."""
    chosen = model, head_dtype, meshes.on_one_gpu(mesh)
    like = jax.eval_shape(lambda params: transformer.published(params, *chosen), params)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    if shapes(like) != shapes(params):
        params = _published(params, *chosen, learner)
    return jax.device_put(params, meshes.of_params(mesh, params, lora.logical_axes(params)))


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _published(params, model: ModelConfig, head_dtype: str, side_by_side: bool, mesh: Mesh):
    params = transformer.published(params, model, head_dtype, side_by_side)
    layout = meshes.of_params(mesh, params, lora.logical_axes(params))
    return jax.lax.with_sharding_constraint(params, layout)


class SlotGenerator:
    """W slots of one cache, one per sequence in flight."""

    reply_s = 0.0

    def __init__(
        self, config: Config, rules: sampler.Rules, prompt_tokens: int, stop_ids: int, pad_id: int,
        mesh: Mesh, key: jax.Array,
    ):  # fmt: skip
        """prompt_tokens: of the longest prompt; stop_ids: the most that a request has."""
        rollout, self.W = config.rollout, config.slots
        self.U, self.T, self.N = prompt_tokens, rollout.max_new_tokens, stop_ids
        self.P = max(self.W // rollout.group_size, 1)  # prompts per call of `insert`
        self.temperature, self.pad_id, self.mesh, self.key = rollout.temperature, pad_id, mesh, key
        model = transformer.chosen(config.model, mesh)
        self.static = {"config": model, "rules": rules, "mesh": mesh}
        self._clear(self._empty())

    def _empty(self) -> sampler.Slots:
        model = self.static["config"]
        routing = self.static["rules"].routing
        return sampler.empty(model, self.W, self.U, self.T, self.N, self.mesh, routing)

    def _clear(self, slots: sampler.Slots) -> None:
        self.slots = slots
        self.slot_of: dict[Key, int] = {}  # in flight
        self.held: dict[Key, int] = {}  # finished, but kept
        self.holds: set[Key] = set()
        self.idle = list(range(self.W))
        self.prompt_length_W = np.zeros(self.W, np.int64)
        self.count_W = np.zeros(self.W, np.int64)  # at the last `collect`
        self.given_W = np.zeros(self.W, np.int64)  # end of the last injected tokens
        self.new: list[tuple[int, Request]] = []  # with their slots

    @property
    def free(self) -> int:
        return len(self.idle)

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in jax.tree.leaves(sampler.to_arrays(self.slots)))

    def submit(self, requests: Sequence[Request]) -> None:
        for request in requests:
            slot = self.held.pop(request.key) if request.continues else self.idle.pop(0)
            self.slot_of[request.key] = slot
            if request.holds:
                self.holds.add(request.key)
            if request.continues:
                self.given_W[slot] = self.count_W[slot] + len(request.ids)
            else:
                self.prompt_length_W[slot], self.count_W[slot] = len(request.ids), 0
                self.given_W[slot] = 0
            self.new.append((slot, request))

    def begin(self, weights: Weights, tokens: int) -> None:
        params, version = weights.params, weights.version
        fresh = [item for item in self.new if not item[1].continues]
        if resumed := [item for item in self.new if item[1].continues]:
            self.slots = sampler.resume(self.slots, *self._given(resumed), mesh=self.mesh)
        for prompts, new in self._insertions(fresh):
            self.slots = sampler.insert(
                params, self.slots, *prompts, new, self.key, version, self.temperature,
                **self.static,
            )  # fmt: skip
        self.new = []
        self.slots = sampler.decode(
            params, self.slots, version, self.temperature, tokens, **self.static
        )

    def _insertions(self, fresh: list[tuple[int, Request]]):
        """Arguments of `sampler.insert`: P prompts at most per call, one per group."""
        by_group = itertools.groupby(fresh, key=lambda item: item[1].key[0])
        groups = [list(items) for _, items in by_group]
        for batch in (groups[at : at + self.P] for at in range(0, len(groups), self.P)):
            prompts = [items[0][1].ids for items in batch]
            new = sampler.New(
                row_W=np.full(self.W, -1, np.int32),
                serial_W=np.zeros(self.W, np.int32),
                sample_W=np.zeros(self.W, np.int32),
                limit_W=np.zeros(self.W, np.int32),
                stop_WN=np.full((self.W, self.N), -1, np.int32),
            )
            slot_B, requests = zip(*itertools.chain(*batch), strict=True)
            slot_B = np.array(slot_B)
            new.row_W[slot_B] = np.repeat(np.arange(len(batch)), [len(items) for items in batch])
            new.serial_W[slot_B], new.sample_W[slot_B] = np.array([r.key for r in requests]).T
            new.limit_W[slot_B] = np.minimum([r.limit for r in requests], self.T)
            fill = (-1,) * self.N
            new.stop_WN[slot_B] = [(*r.stop_ids, *fill)[: self.N] for r in requests]
            yield right_padded(prompts, self.U, self.pad_id, rows=self.P), new

    def _given(self, resumed: list[tuple[int, Request]]):
        """Arguments of `sampler.resume`."""
        given_WT = np.zeros((self.W, self.T), np.int32)
        n_W, limit_W = np.zeros(self.W, np.int32), np.zeros(self.W, np.int32)
        for slot, request in resumed:
            n_W[slot], limit_W[slot] = len(request.ids), min(request.limit, self.T)
            given_WT[slot, : len(request.ids)] = request.ids
        return given_WT, n_W, limit_W

    def collect(self) -> tuple[Finished, Drawn]:
        # A slot without a sequence draws nothing, and may hold the count of an evaluation.
        count_W, active_W = processes.to_host((self.slots.count_W, self.slots.active_W))
        flying_W, active = np.zeros(self.W, bool), active_W.tolist()
        flying_W[list(self.slot_of.values())] = True
        before_W, self.count_W = self.count_W, np.where(flying_W, count_W, self.count_W)
        over = [(key, slot) for key, slot in self.slot_of.items() if not active[slot]]
        finished = self._taken(over)
        for key, slot in over:
            del self.slot_of[key]
            if key in self.holds:
                self.holds.discard(key)
                self.held[key] = slot
            else:
                self.idle.append(slot)
        self.idle.sort()
        put_in_W = np.maximum(np.minimum(self.count_W, self.given_W) - before_W, 0)
        return finished, Drawn(self.prompt_length_W.copy(), before_W, self.count_W, put_in_W)

    def _taken(self, over: list[tuple[Key, int]]) -> Finished:
        """Finished samples. Only their rows leave the device, their number rounded up to a power of
        two to limit compilations; all rows if that exceeds half of the slots.
        """
        keys, slots = [key for key, _ in over], [slot for _, slot in over]
        n = 1 << (len(over) - 1).bit_length()
        if not over:
            rows = (np.zeros((0, *x.shape[1:]), x.dtype) for x in sampler.arrays(self.slots))
        elif 2 * n > self.W:
            rows = (x_WT[slots] for x_WT in processes.to_host(sampler.arrays(self.slots)))
        else:
            padded_N = np.pad(np.array(slots, np.int32), (0, n - len(slots)))
            rows = processes.to_host(sampler.rows(self.slots, padded_N))
        length_N = self.count_W[slots]
        within_NT = np.arange(self.T) < length_N[:, None]
        only = lambda x: np.where(np.expand_dims(within_NT, tuple(range(2, x.ndim))), x, 0)  # noqa: E731
        return Finished(keys, length_N, *(only(x_NT[: len(keys)]) for x_NT in rows))

    def release(self, keys: Sequence[Key]) -> None:
        self.idle = sorted([*self.idle, *(self.held.pop(key) for key in keys)])

    @contextmanager
    def aside(self, key: jax.Array) -> Iterator[None]:
        """Sequences in flight are moved to the host, so a device never holds two caches."""
        before, mine = dict(vars(self)), self.slots
        busy = bool(self.slot_of or self.held)
        parked = self._parked(mine) if busy else mine
        self._clear(self._empty() if busy else mine)
        self.key = key
        try:
            yield
        finally:
            slots = self.slots
            vars(self).update(before)
            self.slots = self._unparked(parked, slots) if busy else slots

    def _parked(self, slots: sampler.Slots) -> sampler.Slots:
        arrays = sampler.to_arrays(slots)
        there = jax.tree.map(lambda x: x.sharding.with_memory_kind("pinned_host"), arrays)
        parked = jax.block_until_ready(jax.device_put(arrays, there))
        jax.tree.map(lambda x: x.delete(), slots)
        return parked

    def _unparked(self, parked: sampler.Slots, used: sampler.Slots) -> sampler.Slots:
        jax.tree.map(lambda x: x.delete(), used)
        return sampler.from_arrays(jax.device_put(parked, sampler.shardings(parked, self.mesh)))

    def state_dict(self) -> dict[str, Any]:
        names = ("idle", "prompt_length_W", "count_W", "given_W")
        keyed = {name: [[*key, slot] for key, slot in getattr(self, name).items()]
                 for name in ("slot_of", "held")}  # fmt: skip
        return {**{name: getattr(self, name) for name in names}, **keyed,
                "holds": sorted(map(list, self.holds))}  # fmt: skip

    def arrays(self) -> sampler.Slots:
        """The device part of a checkpoint."""
        return sampler.to_arrays(self.slots)

    def load(self, state: dict[str, Any], arrays: sampler.Slots) -> None:
        for name in ("idle", "prompt_length_W", "count_W"):
            setattr(self, name, state[name])
        self.given_W = state.get("given_W", np.zeros(self.W, np.int64))  # absent in old states
        for name in ("slot_of", "held"):
            setattr(self, name, {(s, g): slot for s, g, slot in state[name]})
        self.holds = {(s, g) for s, g in state["holds"]}
        self.new, self.slots = [], sampler.from_arrays(arrays)
