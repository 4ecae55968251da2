"""Races without luck: actors on one store, stopped before each command, and let on in every order that matters.

An actor is a coroutine; all that it does to the store goes through its gate. Between two stops it has the store to
itself, as it has within a script. ``every_order`` tries all orders, but of two steps that cannot notice each other
(both only read, or they touch no common key) one: every state that can be reached is reached. ``chosen_orders`` tries
some, chosen by Hypothesis, where there are too many.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbq_exporter.errors import CbqError
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.scripts import Script

_PATIENCE = 60.0  # seconds, for one order
_UNNOTICED = {"audit_add"}  # nobody decides by the audit


@dataclass(frozen=True, slots=True)
class Step:
    """What an actor is about to do, or has done."""

    actor: str
    what: str
    keys: frozenset[str]
    writes: bool

    def minds(self, other: Step) -> bool:
        """Whether it matters which of the two comes first."""
        if self.what in _UNNOTICED or other.what in _UNNOTICED:
            return False
        return (self.writes or other.writes) and not self.keys.isdisjoint(other.keys)

    def __str__(self) -> str:
        return f"{self.actor}: {self.what}"


class Gate:
    """Of one actor in one run."""

    def __init__(self, name: str, run: _Run) -> None:
        self.name = name
        self._run = run

    async def __call__(self, what: str, *keys: str, writes: bool = True) -> None:
        """Wait for permission to do this one thing."""
        await self._run.arrive(Step(self.name, what, frozenset(keys), writes))

    def connections(self, inner: Connections) -> Connections:
        """``inner``, for this actor."""
        return _Gated(inner, self)


class _Gated(Connections):
    def __init__(self, inner: Connections, gate: Gate) -> None:
        self.shown_as = inner.shown_as
        self._inner = inner
        self._gate = gate

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        await self._gate(script.name, *keys)
        return await self._inner.run(script, keys, args)

    async def read(self, *command: Any) -> Any:
        await self._gate(str(command[0]), *_words(command), writes=False)
        return await self._inner.read(*command)

    async def read_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        words = [word for command in commands for word in _words(command)]
        await self._gate("+".join(str(command[0]) for command in commands), *words, writes=False)
        return await self._inner.read_many(commands)

    async def wait(self, seconds: float, *command: Any) -> Any:
        raise NotImplementedError("an actor that blocks on the server would hold up all others")

    async def close(self) -> None:
        """The inner ones stay open for the next run."""


def _words(command: Sequence[Any]) -> list[str]:
    """Its keys, and more that are none."""
    return [word for word in command[1:] if isinstance(word, str)]


Actor = Callable[[Gate], Awaitable[Any]]
Ends = Mapping[str, Any]  # by actor: what it returned, or the CbqError that it raised
Choose = Callable[[Mapping[str, Step]], str | None]  # of those that wait, each with its next step; None: give up


@dataclass(frozen=True, slots=True)
class Race:
    """``prepare`` makes the store as it is at the beginning; ``watch`` is called after each step, ``check`` at the end.

    An actor may raise a CbqError; any other error is one of the race.
    """

    actors: Mapping[str, Actor]
    prepare: Callable[[], None]
    check: Callable[[Ends], None]
    watch: Callable[[Step], None] = lambda step: None


class _Run:
    """One run of a race. ``story`` are the steps so far."""

    def __init__(self, race: Race) -> None:
        self.story: list[Step] = []
        self._race = race
        self._waiting: dict[str, tuple[Step, asyncio.Future[None]]] = {}
        self._stopped: dict[str, asyncio.Future[None]] = {}
        self._is_over = False

    async def arrive(self, step: Step) -> None:
        if self._is_over:
            raise asyncio.CancelledError
        if step.actor in self._waiting:
            raise RuntimeError(f"{step.actor} does two things at once")
        go = asyncio.get_running_loop().create_future()
        self._waiting[step.actor] = step, go
        self._stop(step.actor)
        await go

    def _stop(self, actor: str) -> None:
        stopped = self._stopped[actor]
        if not stopped.done():
            stopped.set_result(None)

    async def go(self, choose: Choose) -> Ends | None:
        """To the end, or until ``choose`` gives up: None."""
        self._race.prepare()
        tasks: dict[str, asyncio.Task[Any]] = {}
        try:
            async with asyncio.timeout(_PATIENCE):
                for name, actor in self._race.actors.items():
                    self._stopped[name] = asyncio.get_running_loop().create_future()
                    tasks[name] = asyncio.ensure_future(_of(actor, Gate(name, self)))
                    tasks[name].add_done_callback(lambda _, name=name: self._stop(name))  # type: ignore[misc]
                    await self._stopped[name]
                while self._waiting:
                    chosen = choose({name: step for name, (step, _) in self._waiting.items()})
                    if chosen is None:
                        return None
                    step, go = self._waiting.pop(chosen)
                    self.story.append(step)
                    self._stopped[chosen] = asyncio.get_running_loop().create_future()
                    go.set_result(None)
                    await self._stopped[chosen]
                    self._race.watch(step)
            ends = {name: task.result() for name, task in tasks.items()}
            self._race.check(ends)
            return ends
        except Exception as error:
            error.add_note("in this order: " + ", ".join(map(str, self.story)))
            raise
        finally:
            self._is_over = True
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)


async def _of(actor: Actor, gate: Gate) -> Any:
    try:
        return await actor(gate)
    except CbqError as error:
        return error


@dataclass(slots=True)
class _Choice:
    """A point where one of several actors was let on. ``asleep``: letting them on now leads to nothing new."""

    waiting: Collection[str]
    asleep: set[str]
    chosen: str

    def next(self) -> bool:
        """Choose another that was not tried here yet; False where there is none."""
        self.asleep.add(self.chosen)
        left = [name for name in self.waiting if name not in self.asleep]
        if left:
            self.chosen = left[0]
        return bool(left)


@dataclass(slots=True)
class _Explorer:
    """Depth first; what was chosen before is chosen again, up to the point where the last run was changed."""

    choices: list[_Choice] = field(default_factory=list)
    _place: int = 0
    _asleep: set[str] = field(default_factory=set)

    def begin(self) -> None:
        self._place = 0
        self._asleep = set()

    def choose(self, waiting: Mapping[str, Step]) -> str | None:
        if self._place < len(self.choices):
            choice = self.choices[self._place]
            if set(choice.waiting) != set(waiting):
                raise RuntimeError(f"the same order does not lead to the same place: {choice.waiting}, {waiting}")
        else:
            left = [name for name in waiting if name not in self._asleep]
            if not left:
                return None
            choice = _Choice(list(waiting), set(self._asleep), left[0])
            self.choices.append(choice)
        self._place += 1
        chosen = waiting[choice.chosen]
        self._asleep = {name for name in choice.asleep if not waiting[name].minds(chosen)}
        return choice.chosen

    def next(self) -> bool:
        while self.choices:
            if self.choices[-1].next():
                return True
            self.choices.pop()
        return False


async def every_order(race: Race, *, most: int = 3000) -> list[Ends]:
    """Run it in every order; how each run ended. Raises RuntimeError where it takes more than ``most`` runs."""
    explorer = _Explorer()
    ends: list[Ends] = []
    for _ in range(most):
        explorer.begin()
        ended = await _Run(race).go(explorer.choose)
        if ended is not None:
            ends.append(ended)
        if not explorer.next():
            return ends
    raise RuntimeError(f"{most} runs are not all orders: try chosen_orders")


def chosen_orders(race: Race, loop: asyncio.AbstractEventLoop, *, examples: int) -> list[Ends]:
    """Run it in some orders; how each run ended. Hypothesis prints the shortest that fails.

    Always the same ones, unless CBQ_TEST_EXAMPLES says how many are to be tried at random; a failure prints then
    how to repeat it.
    """
    at_random = int(os.environ.get("CBQ_TEST_EXAMPLES", "0"))
    ends: list[Ends] = []
    # Several steps at a time: one by one, nobody would ever be far ahead.
    turn = st.tuples(st.integers(0, len(race.actors) - 1), st.integers(1, 12))

    @settings(
        max_examples=at_random or examples,
        derandomize=not at_random,
        database=None,
        print_blob=bool(at_random),
        suppress_health_check=list(HealthCheck),
    )
    @given(turns=st.lists(turn, max_size=12))
    def run(turns: list[tuple[int, int]]) -> None:
        order = iter([actor for actor, steps in turns for _ in range(steps)])

        def choose(waiting: Mapping[str, Step]) -> str:
            names = [name for name in race.actors if name in waiting]
            return names[next(order, 0) % len(names)]

        ended = loop.run_until_complete(_Run(race).go(choose))
        assert ended is not None
        ends.append(ended)

    run()
    return ends
