"""Environments of the package `verifiers` (v1): their tasks, their replies in a conversation, and
their rewards. docs.primeintellect.ai/verifiers; pip install 'rlx[verifiers]'.

    env.name=verifiers  env.kwargs.id=PACKAGE  env.kwargs.taskset={KEY: VALUE of its configuration}

The policy is asked a task's system prompt and its prompt. An environment that talks in its `run`
(`agent.interaction(task)`, `await interaction.turn(text)`) replies to the policy; any other asks
for one answer. The score is the sum of the trace's weighted rewards, which must lie in [0, 1].

The package's harnesses drive a model behind an HTTP endpoint that exchanges text. Here the policy
answers through `reply`, so tokens stay as they were sampled. What needs a harness or a runtime of
the package is refused: several agents, tool servers, containers, rewards that look into a runtime.

A conversation is one coroutine, identified by what the policy has said (rlx.envs.sessions); a lost
one is repeated from its beginning.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from rlx.envs import base, data
from rlx.envs.sessions import Sessions
from rlx.errors import InputError
from rlx.problem import Problem

LABELS = {"idx", "id", "name", "description"}  # tasks that differ in these alone are the same


class Verifiers:
    """`Problem.answer` is the index of a task in `tasks`; held-out problems come first.

    Raises InputError if the package or the environment is missing, or if the environment cannot be
    made, needs something that is not available here, or has too few tasks.
    """

    def __init__(
        self,
        *,
        train_prompts: int,
        heldout_prompts: int,
        seed: int,
        id: str,
        taskset: dict[str, Any] | None = None,
    ):
        self.vf, self.id = _library(), id
        if not id:
            raise InputError("env.kwargs.id", id, "no environment", "give the name of its package")
        self.env = self._made(id, taskset or {})
        self.tasks = self._tasks(train_prompts + heldout_prompts, seed)
        pairs = [(_prompt(task.data), i) for i, task in enumerate(self.tasks)]
        self.heldout = data.numbered(pairs[:heldout_prompts])
        self.train = data.numbered(pairs[heldout_prompts:])
        self.downstream: dict[str, list[Problem]] = {}
        self.tokenizer: base.TextTokenizer = base.characters(
            [*map(chr, range(9, 127)), *(prompt for prompt, _ in pairs)]
        )
        self.max_prompt_tokens = max(len(prompt) for prompt, _ in pairs)
        self.loop = asyncio.new_event_loop()
        self.sessions = Sessions(lambda talk: self._run(talk.close()))

    def _made(self, id: str, taskset: dict[str, Any]) -> Any:
        from verifiers.v1.configs.agent import agent_config_fields
        from verifiers.v1.utils import loaders

        try:
            kind = loaders.environment_class(id)
            env = kind(_config_of(kind, self.vf)(taskset={"id": id, **taskset}))
            task = type(env.taskset).task_type()
        except Exception as error:
            reason = f"{type(error).__name__}: {base.first_line(error)}"
            raise InputError("env.kwargs.id", id, reason, "give an installed environment") from None
        agents = list(agent_config_fields(env.config))
        needs = {
            f"its agents {', '.join(agents)}": len(agents) > 1,
            "tool servers": _overrides(type(env.taskset), self.vf.Taskset, "toolsets")
            or _overrides(task, self.vf.Task, "toolsets"),
            "a container": task.NEEDS_CONTAINER,
            "a runtime": _overrides(task, self.vf.Task, "setup")
            or _overrides(task, self.vf.Task, "finalize"),
            "its finalize()": _overrides(kind, self.vf.Env, "finalize"),
        }
        for what, needed in needs.items():
            if needed:
                self._refuse(f"it needs {what}")
        self.agent = agents[0]
        return env

    def _refuse(self, reason: str) -> None:
        remedy = "give one with a single agent and no tools of its own"
        raise InputError("env.kwargs.id", self.id, reason, remedy)

    def _tasks(self, count: int, seed: int) -> list[Any]:
        """`count` tasks with distinct prompts, in an order drawn from the seed if the taskset is
        finite. If too few prompts differ, as in a game, tasks that differ in their other data.
        """
        by_prompt: dict[str, Any] = {}
        by_data: dict[str, Any] = {}
        try:
            whole = self.env.taskset
            whole = whole.shuffle(seed) if whole.bounded else whole
            for task in itertools.islice(whole, 10 * count):
                if prompt := _prompt(task.data):
                    by_prompt.setdefault(prompt, task)
                    by_data.setdefault(task.data.model_dump_json(exclude=LABELS), task)
                if len(by_prompt) == count:
                    break
        except Exception as error:
            reason = f"its tasks cannot be read ({type(error).__name__}: {base.first_line(error)})"
            remedy = "provide what it needs, or give another environment"
            raise InputError("env.kwargs.id", self.id, reason, remedy) from None
        found = by_prompt if len(by_prompt) == count else by_data
        if len(found) < count:
            reason = f"{self.id} gave {len(found)} different tasks"
            raise InputError("env.train_prompts", count, reason, "ask for fewer")
        found = dict(itertools.islice(found.items(), count))
        for task in found.values():
            for hook in (*task.hooks("reward"), *task.hooks("metric")):
                runtime = inspect.signature(hook).parameters.get("runtime")
                if runtime is not None and runtime.default is runtime.empty:
                    self._refuse(f"{hook.__name__}() looks into a runtime")
            break
        return list(found.values())

    def _run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def _talk(self, problem: Problem, said: Sequence[str]) -> Talk:
        """A conversation that has heard these turns of the policy."""
        history = (problem.answer, tuple(said))
        if talk := self.sessions.take(history):
            return talk
        talk = Talk(self.vf, self.env, self.agent, self.tasks[problem.answer])
        self._run(talk.begin())
        for text in said:
            self._run(talk.hear(text))
        return talk

    def reply(self, problem: Problem, turns: tuple[str, ...]) -> str | None:
        """What the environment says to the last turn. Raises whatever the environment raises."""
        said = turns[::2]
        talk = self._talk(problem, said[:-1])
        reply = self._run(talk.hear(said[-1]))
        self.sessions.keep((problem.answer, said), talk)
        return reply

    def grade(self, problem: Problem, turns: tuple[str, ...], stopped: bool) -> float:
        """The trace's reward; 0 if a limit on tokens cut the episode."""
        said = turns[::2]
        if not stopped:
            self.sessions.over((problem.answer, said))
            return 0.0
        talk = self._talk(problem, said)
        return self._run(talk.reward())

    def well_formed(self, turns: tuple[str, ...], stopped: bool) -> bool:
        return stopped and turns[-1].strip() != ""

    def solution(self, problem: Problem, rng: np.random.Generator, worked: bool) -> str:
        reason = "environments of verifiers have no solutions to learn"
        raise InputError("env.name", "verifiers", reason, "set warm_start.steps=0")

    def ceiling(self, problems: Sequence[Problem], max_new_tokens: int, **turns: int) -> None:
        """None: the best score is unknown."""
        return None


class Talk:
    """One episode of an environment, with the policy in place of its agent."""

    def __init__(self, vf: Any, env: Any, agent: str, task: Any):
        self.vf, self.env, self.agent, self.task = vf, env, agent, task
        self.trace: Any = None
        self.asked: asyncio.Queue[str | None] = asyncio.Queue()  # from the environment
        self.answers: asyncio.Queue[str | None] = asyncio.Queue()  # None: the exchange is over
        self.running: asyncio.Task | None = None

    async def begin(self) -> None:
        """Run the environment until it waits for the first turn of the policy."""
        agents = SimpleNamespace(**{self.agent: self})
        self.running = asyncio.ensure_future(self.env.run(self.task, agents))
        await self._next()

    async def _next(self) -> str | None:
        """What the environment asks next; None if it is done."""
        asked = asyncio.ensure_future(self.asked.get())
        await asyncio.wait([asked, self.running], return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            return asked.result()
        asked.cancel()
        self.running.result()  # raises what the environment raised
        return None

    async def hear(self, text: str) -> str | None:
        if self.running.done():
            return None
        self.answers.put_nowait(text)
        return await self._next()

    async def reward(self) -> float:
        """End the exchange; the reward that the environment and its task give it."""
        if not self.running.done():
            self.answers.put_nowait(None)
            await self.running
        return float(self.trace.reward)

    async def close(self) -> None:
        self.running.cancel()
        await asyncio.wait([self.running])

    # What the environment sees: an agent, and the interaction with it.

    async def run(self, task: Any) -> Any:
        """A single answer, for environments that do not talk."""
        async with self.interaction(task) as interaction:
            await interaction.turn()
        return self.trace

    @contextlib.asynccontextmanager
    async def interaction(self, task: Any) -> AsyncIterator[Talk]:
        """The interaction with the policy; the task's rewards are computed when it ends."""
        vf = self.vf
        self.trace = vf.Trace(
            task=vf.TraceTask(type=type(task).__name__, data=task.data),
            agent=vf.AgentInfo(config=vf.AgentConfig(), name=self.agent),
        )
        for kind, text in (
            ("SystemMessage", task.data.system_prompt),
            ("UserMessage", task.data.prompt_text),
        ):
            if text:
                self._note(kind, text)
        yield self
        self.trace.is_completed = self.trace.ok = True
        await task.score(self.trace)

    async def turn(self, message: str | None = None) -> Any:
        from verifiers.v1 import types

        if message is not None:
            self._note("UserMessage", message)
        self.asked.put_nowait(message)
        answer = await self.answers.get()
        if answer is None:
            return self.vf.Segment(messages=[], terminated=True)
        self._note("AssistantMessage", answer, sampled=True)
        return self.vf.Segment(messages=[types.AssistantMessage(content=answer)])

    def _note(self, kind: str, text: str, sampled: bool = False) -> None:
        from verifiers.v1 import types

        nodes = self.trace.nodes
        message = getattr(types, kind)(content=text)
        parent = len(nodes) - 1 if nodes else None
        nodes.append(self.vf.MessageNode(parent=parent, message=message, sampled=sampled))


def _library() -> Any:
    try:
        import verifiers.v1 as vf
    except ImportError as error:
        reason, remedy = f"cannot import verifiers.v1 ({error})", "pip install 'rlx[verifiers]'"
        raise InputError("env.name", "verifiers", reason, remedy) from None
    return vf


def _overrides(kind: type, base: type, name: str) -> bool:
    """Whether a class has a method of its own in place of that of the base."""
    theirs, mine = (inspect.getattr_static(one, name) for one in (kind, base))
    return theirs is not mine


def _config_of(kind: type, vf: Any) -> type:
    from verifiers.v1.utils.generic import concrete_type

    return concrete_type(kind, vf.EnvConfig, origin=vf.Env) or vf.EnvConfig


def _prompt(task: Any) -> str:
    """The system prompt and the prompt of a task, those that it has."""
    return "\n\n".join(text for text in (task.system_prompt, task.prompt_text) if text)
