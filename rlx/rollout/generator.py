"""The seam between those who want samples and whatever draws them: token ids in, token ids out.

Engine and evaluation know `Generator` alone. Requests go in as far as there is room; `begin` draws
some tokens of all sequences in flight and `collect` gives those that are finished. A paged kernel
or an engine of another library is one more class here. `SlotGenerator` is the built-in one, on the
programs of rlx.rollout.sampler; rlx.rollout.episodes makes episodes of several turns out of one.
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
from rlx.models import attention, lora, transformer
from rlx.rollout import sampler
from rlx.types import Params, Problem, right_padded

Key = tuple[int, int]  # (serial number of the group, number of the sample in it)


class Request(NamedTuple):
    """One sample that is wanted."""

    key: Key
    ids: Sequence[int]  # the prompt; of a continuation, what is put behind the sequence
    limit: int  # tokens after the prompt, drawn or put in
    stop_ids: tuple[int, ...]
    holds: bool = False  # once finished it keeps its place, until it is continued or released
    continues: bool = False  # behind the held sequence of this key
    problem: Problem | None = None  # of an episode, whose environment is asked


class Said(NamedTuple):
    """An episode in words."""

    turns: tuple[str, ...]  # the policy's, the environment's, and so on
    stopped: bool  # False where a limit on tokens cut it
    failure: int = 0  # of the environment (rlx.envs.grading.Failure): it has no score


class Finished(NamedTuple):
    """One sample that came to a stop token, or to its limit; n tokens."""

    key: Key
    token_T: np.ndarray  # int32
    logp_T: np.ndarray  # float32, of the distribution that was sampled
    value_T: np.ndarray  # float32, of the critic before the token
    version_T: np.ndarray  # int32, of the weights that drew the token; INJECTED if none did
    expert_TLK: np.ndarray | None = None  # int32, that took it, if that is asked for
    said: Said | None = None  # of an episode


class Drawn(NamedTuple):
    """What `collect` found since it last looked, sequence by sequence: for the ledger."""

    prompt_length_W: np.ndarray
    before_W: np.ndarray  # tokens of its completion
    now_W: np.ndarray
    put_in_W: np.ndarray  # of those in between, the ones that a continuation brought


@dataclass
class Weights:
    """What is sampled with: the newest that the learner has published."""

    params: Params  # as `published` makes them
    version: int


class Generator(Protocol):
    """Sequences in flight. What a key samples does not depend on its neighbours."""

    reply_s: float  # seconds that an environment took to reply, evaluations left out

    @property
    def free(self) -> int:
        """How many more requests there is room for; a continuation needs none."""

    @property
    def nbytes(self) -> int:
        """Bytes that it holds on all devices."""

    def submit(self, requests: Sequence[Request]) -> None:
        """Take them on; they start at the next `begin`."""

    def begin(self, weights: Weights, tokens: int) -> None:
        """Draw so many tokens of every sequence in flight; may return before they are there."""

    def collect(self) -> tuple[list[Finished], Drawn]:
        """What has finished since, and what was drawn."""

    def release(self, keys: Sequence[Key]) -> None:
        """Held sequences are over."""

    def aside(self, key: jax.Array) -> Any:
        """A context in which it is empty and draws with another random key."""

    def state_dict(self) -> dict[str, Any]: ...

    def arrays(self) -> Any: ...

    def load(self, state: dict[str, Any], arrays: Any) -> None: ...


def published(params: Params, model: ModelConfig, head_dtype: str, learner: Mesh, mesh: Mesh):
    """`transformer.published`, laid out where the generator works; the arrays themselves where
    nothing is to be cast or moved."""
    make = functools.partial(transformer.published, config=model, head_dtype=head_dtype)
    like = jax.eval_shape(make, params)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    if shapes(like) != shapes(params):
        params = _published(params, model, head_dtype, learner)
    return jax.device_put(params, meshes.of_params(mesh, params, lora.logical_axes(params)))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _published(params, model: ModelConfig, head_dtype: str, mesh: Mesh):
    params = transformer.published(params, model, head_dtype)
    layout = meshes.of_params(mesh, params, lora.logical_axes(params))
    return jax.lax.with_sharding_constraint(params, layout)


class SlotGenerator:
    """W slots of one cache; every sequence in flight owns one."""

    reply_s = 0.0

    def __init__(
        self, config: Config, rules: sampler.Rules, prompt_tokens: int, stop_ids: int, pad_id: int,
        mesh: Mesh, key: jax.Array,
    ):  # fmt: skip
        """prompt_tokens: of the longest prompt; stop_ids: how many tokens may end a sample."""
        rollout, self.W = config.rollout, config.slots
        self.U, self.T, self.N = prompt_tokens, rollout.max_new_tokens, stop_ids
        self.P = max(self.W // rollout.group_size, 1)  # prompts that `insert` runs at once
        self.temperature, self.pad_id, self.mesh, self.key = rollout.temperature, pad_id, mesh, key
        model = attention.chosen(config.model, mesh)
        self.static = {"config": model, "rules": rules, "mesh": mesh}
        self._clear(self._empty())

    def _empty(self) -> sampler.Slots:
        model = self.static["config"]
        routing = self.static["rules"].routing
        return sampler.empty(model, self.W, self.U, self.T, self.N, self.mesh, routing)

    def _clear(self, slots: sampler.Slots) -> None:
        self.slots = slots
        self.slot_of: dict[Key, int] = {}  # in flight
        self.held: dict[Key, int] = {}  # finished, and not to be forgotten
        self.holds: set[Key] = set()
        self.idle = list(range(self.W))
        self.prompt_length_W = np.zeros(self.W, np.int64)
        self.count_W = np.zeros(self.W, np.int64)  # as of the last look
        self.given_W = np.zeros(self.W, np.int64)  # where the last continuation draws again
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
        """Arguments of `sampler.insert`: samples of P prompts at most, a group's prompt once."""
        by_group = itertools.groupby(fresh, key=lambda item: item[1].key[0])
        groups = [list(items) for _, items in by_group]
        for some in (groups[at : at + self.P] for at in range(0, len(groups), self.P)):
            prompts = [items[0][1].ids for items in some]
            new = sampler.New(
                row_W=np.full(self.W, -1, np.int32),
                serial_W=np.zeros(self.W, np.int32),
                sample_W=np.zeros(self.W, np.int32),
                limit_W=np.zeros(self.W, np.int32),
                stop_WN=np.full((self.W, self.N), -1, np.int32),
            )
            slot_B, requests = zip(*itertools.chain(*some), strict=True)
            slot_B = np.array(slot_B)
            new.row_W[slot_B] = np.repeat(np.arange(len(some)), [len(items) for items in some])
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

    def collect(self) -> tuple[list[Finished], Drawn]:
        # A slot without a sequence draws nothing, and may hold the count of an evaluation.
        count_W, active_W = processes.to_host((self.slots.count_W, self.slots.active_W))
        flying_W = np.isin(np.arange(self.W), list(self.slot_of.values()))
        before_W, self.count_W = self.count_W, np.where(flying_W, count_W, self.count_W)
        over = [(key, slot) for key, slot in self.slot_of.items() if not active_W[slot]]
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

    def _taken(self, over: list[tuple[Key, int]]) -> list[Finished]:
        """Only these rows leave the device, a power of two of them, so that programs are few; all
        of them where that is half of the slots.
        """
        if not over:
            return []
        slot_N = np.array([slot for _, slot in over], np.int32)
        n = 1 << (len(over) - 1).bit_length()
        if 2 * n > self.W:
            rows = (x_WT[slot_N] for x_WT in processes.to_host(sampler.arrays(self.slots)))
        else:
            padded_N = np.pad(slot_N, (0, n - len(slot_N)))
            rows = processes.to_host(sampler.rows(self.slots, padded_N))
        return [
            Finished(key, *(x_T[:n] for x_T in row))
            for (key, _), n, *row in zip(over, self.count_W[slot_N].tolist(), *rows, strict=False)
        ]

    def release(self, keys: Sequence[Key]) -> None:
        self.idle = sorted([*self.idle, *(self.held.pop(key) for key in keys)])

    @contextmanager
    def aside(self, key: jax.Array) -> Iterator[None]:
        """What is in flight waits on the host meanwhile, so a device never holds a second cache."""
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
        """What is on the device, for a checkpoint."""
        return sampler.to_arrays(self.slots)

    def load(self, state: dict[str, Any], arrays: sampler.Slots) -> None:
        for name in ("idle", "prompt_length_W", "count_W"):
            setattr(self, name, state[name])
        self.given_W = state.get("given_W", np.zeros(self.W, np.int64))  # older states lack it
        for name in ("slot_of", "held"):
            setattr(self, name, {(s, g): slot for s, g, slot in state[name]})
        self.holds = {(s, g) for s, g in state["holds"]}
        self.new, self.slots = [], sampler.from_arrays(arrays)
