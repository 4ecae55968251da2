"""The one read behind metrics, ``status`` and the API: all queues at one moment, and never a write.

It costs one pipelined round trip of commands that are O(1) or O(log n) in the length of a queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cbq_exporter.clock import SYSTEM_CLOCK, Clock
from cbq_exporter.errors import StoreError, StoreUnavailable
from cbq_exporter.model import QueueView, Snapshot
from cbq_exporter.store.connections import READ_TIMEOUT, Connections
from cbq_exporter.store.times import epoch_ms
from cbq_exporter.store.watched import Command, Source, Watched, whole

_CLOCKS_DIFFER_MS = 500  # more than this, and what is counted by time is counted again
_SECTIONS = ("server", "memory", "persistence", "replication")  # of INFO; before version 7 it gives one at a time


class Reader:
    """Reads all queues at once. Calls that overlap share one read."""

    def __init__(self, connections: Connections, sources: Sequence[Source], *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._connections = connections
        self._watched = tuple(Watched(source) for source in sources)
        self._clock = clock
        self._ahead_ms = 0.0  # the server's clock less ours
        self._errors: dict[str, str] = {}  # by the queue's name, as last read
        self._reading: asyncio.Task[Snapshot] | None = None

    def read_instead(self, sources: Sequence[Source]) -> None:
        """From the next read on these queues; a read under way is not shared with whoever asks after this."""
        known = {(one.source.name, one.source.keys) for one in self._watched}
        kept = {source.name for source in sources if (source.name, source.keys) in known}
        before = {one.source.keys: one for one in self._watched}
        self._watched = tuple(Watched(source, before.get(source.keys)) for source in sources)
        self._errors = {name: error for name, error in self._errors.items() if name in kept}
        self._reading = None

    async def snapshot(self, timeout: float | None = None) -> Snapshot:
        """What there is now. Never raises for a server that cannot be used: ``up`` is False then, ``error`` says why.

        ``timeout`` in seconds bounds the whole call; READ_TIMEOUT does in any case.
        """
        began = self._clock.monotonic()
        reading = self._reading
        if reading is None or reading.done():
            reading = self._reading = asyncio.create_task(self._read())
        # Not cancelled with this caller: others may wait for it, and its own deadline ends it.
        done, _ = await asyncio.wait({reading}, timeout=timeout)
        if done:
            return reading.result()
        return self._down(
            f"Redis at {self._connections.shown_as} did not answer within {timeout or READ_TIMEOUT:g} s", began
        )

    async def measure(self) -> dict[str, StoreError]:
        """Ask for what snapshots show from memory: the queues' memory, and when each last sent. One round trip.

        The errors are by queue; its memory is unknown then. Raises StoreUnavailable, and no queue's memory is known.
        """
        watched = self._watched
        commands = [command for one in watched for command in one.measuring()]
        try:
            answers = await self._connections.read_many(commands)
        except StoreError:
            for one in watched:
                one.memory = None
            raise
        errors = {one.source.name: one.measured(part) for one, part in _parts(watched, answers)}
        return {name: error for name, error in errors.items() if error is not None}

    @property
    def errors(self) -> Mapping[str, str]:
        """Why queues could not be read, by their names; as old as the last snapshot, or the last probe since."""
        return self._errors

    async def probe(self) -> None:
        """Whether the server can be used; raises StoreUnavailable where not.

        One whose memory is full counts as such, though what is there still goes out: producers are refused.
        """
        (memory,) = await self._connections.read_many([("INFO", "memory")])  # refused is an answer too
        if self._errors:
            await self.snapshot()  # it may be mended, and perhaps nobody else looks
        about = _info(memory)
        used, most = whole(about.get("used_memory")), whole(about.get("maxmemory"))
        if used is not None and most and used >= most:
            raise StoreUnavailable(
                f"Redis at {self._connections.shown_as} is full: {used:,} of maxmemory {most:,} bytes: "
                "producers are refused; free memory or raise maxmemory",
                kind="oom",
            )

    async def _read(self) -> Snapshot:
        began = self._clock.monotonic()
        watched = self._watched  # these, whatever is to be read instead meanwhile
        try:
            answers, at_ms, guess_ms = await self._ask(watched)
            if at_ms is not None and abs(at_ms - guess_ms) > _CLOCKS_DIFFER_MS:
                # The clocks differ. That is known from now on, so this happens once.
                answers, at_ms, guess_ms = await self._ask(watched)
        except StoreError as error:
            return self._down(str(error), began)
        _, server, memory, persistence, replication, *rest = answers
        now_ms = guess_ms if at_ms is None else at_ms
        views = [one.view(part, now_ms) for one, part in _parts(watched, rest)]
        self._errors = {view.queue: view.error for view in views if view.error is not None}
        about, used = _info(server), _info(memory)
        role = _info(replication).get("role")
        return Snapshot(
            up=True,
            at=now_ms / 1000,
            duration=self._clock.monotonic() - began,
            queues=tuple(views),
            server=_server(about),
            replica=None if role is None else role == "slave",
            memory_used=whole(used.get("used_memory")),
            memory_max=whole(used.get("maxmemory")) or None,
            disk_write_failed=_disk_write_failed(_info(persistence)),
        )

    async def _ask(self, watched: Sequence[Watched]) -> tuple[list[Any], float | None, float]:
        """The answers; the server's clock then, None where we may not ask for it; and our guess of that clock."""
        guess_ms = self._clock.now() * 1000 + self._ahead_ms
        commands: list[Command] = [("TIME",), *(("INFO", section) for section in _SECTIONS)]
        for one in watched:
            commands += one.commands(int(guess_ms))
        answers = await self._connections.read_many(commands)
        time = answers[0]
        if isinstance(time, StoreError):
            return answers, None, guess_ms
        at_ms = epoch_ms(time)
        self._ahead_ms += at_ms - guess_ms
        return answers, at_ms, guess_ms

    def _down(self, error: str, began: float) -> Snapshot:
        return Snapshot(
            up=False,
            at=self._clock.now(),
            duration=self._clock.monotonic() - began,
            queues=tuple(QueueView(one.source.name, one.source.mode, error=error) for one in self._watched),
            error=error,
        )


def _parts(watched: Sequence[Watched], answers: Sequence[Any]) -> Iterator[tuple[Watched, Sequence[Any]]]:
    """Each with its own answers: they are as many for all."""
    width = len(answers) // len(watched) if watched else 0
    for number, one in enumerate(watched):
        yield one, answers[number * width : (number + 1) * width]


def _info(answer: bytes | StoreError) -> dict[str, str]:
    """Empty where it may not be asked for."""
    if isinstance(answer, StoreError):
        return {}
    lines = (line.partition(":") for line in answer.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _disk_write_failed(persistence: dict[str, str]) -> bool | None:
    """None where it may not be asked for."""
    ended = [persistence.get(name) for name in ("rdb_last_bgsave_status", "aof_last_write_status")]
    return None if None in ended else ended != ["ok", "ok"]


def _server(about: dict[str, str]) -> str:
    """Such as ``valkey 9.1.0``: Valkey calls itself redis 7.2.4 for old clients, and says its name besides."""
    if "valkey_version" in about:
        return f"valkey {about['valkey_version']}"
    return f"redis {about['redis_version']}" if "redis_version" in about else ""
