"""From a configuration to a store that is ready for use: which server, and one queue object for each queue.

What a command that only looks does not need is imported where it is used: ``status`` is to be quick.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from cbq_exporter.config import redis_url
from cbq_exporter.config.models import Config, QueueConfig
from cbq_exporter.errors import EmbeddedStoreError
from cbq_exporter.model import LockRule
from cbq_exporter.store import disk
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.reader import Reader
from cbq_exporter.store.watched import Source

if TYPE_CHECKING:
    from cbq_exporter.store.healing import Healing
    from cbq_exporter.store.queue import Queue

_BEATS_MISSED = 3  # so many heartbeats, and a daemon is dead
_PATIENCE = 10.0  # seconds that a command waits for a daemon to start, or for another command to end


@dataclass(frozen=True, slots=True)
class Store:
    """``queues`` and ``healing`` by name, in the order of the configuration; ``shown_as`` is the server's address for
    people.
    """

    connections: Connections
    queues: Mapping[str, Queue]
    healing: Mapping[str, Healing]
    reader: Reader
    shown_as: str
    lock_value: str = ""

    def with_queues(self, config: Config) -> Store:
        """The same server, connections and reader, with the queues of ``config``.

        Where the keys of a queue are the same, so are its objects. The reader goes on with what it reads until
        ``read_queues``.
        """
        from cbq_exporter.store.healing import Healing
        from cbq_exporter.store.queue import Queue

        queues: dict[str, Queue] = {}
        healing: dict[str, Healing] = {}
        for name, keys in ((queue.name, keys_of(queue)) for queue in config.queues):
            if name in self.queues and self.queues[name].keys == keys:
                queues[name], healing[name] = self.queues[name], self.healing[name]
            else:
                queues[name] = Queue(self.connections, keys, lock_value=self.lock_value)
                healing[name] = Healing(self.connections, keys, self.lock_value)
        return replace(self, queues=queues, healing=healing)

    def read_queues(self, config: Config) -> None:
        """Let the reader read the queues of ``config`` from now on."""
        self.reader.read_instead(_sources(config, self.lock_value))

    async def close(self) -> None:
        await self.connections.close()


def make_store(
    config: Config, url: str, *, lock_value: str = "", on_error: Callable[[str], None] | None = None
) -> Store:
    """The store at ``url``; nothing is connected before its first use.

    ``lock_value`` is what this process writes into send locks; ``on_error`` is told the kind of every error.
    """
    connections = _connections(config, url, on_error)
    reader = reader_of(config, connections, lock_value)
    return Store(connections, {}, {}, reader, connections.shown_as, lock_value).with_queues(config)


def _connections(config: Config, url: str, on_error: Callable[[str], None] | None = None) -> Connections:
    if config.redis.url is not None:
        return Connections(url, shown_as=redis_url.redacted(url), on_error=on_error)
    why_gone = partial(disk.why_full, config.data_dir)
    return Connections(url, shown_as=f"{config.data_dir} (embedded)", on_error=on_error, why_gone=why_gone)


def reader_of(config: Config, connections: Connections, lock_value: str = "") -> Reader:
    return Reader(connections, _sources(config, lock_value))


def _sources(config: Config, lock_value: str) -> list[Source]:
    return [
        Source(
            queue.name,
            queue.mode,
            keys_of(queue),
            lock_value,
            stuck_after=queue.recovery.stuck_after,
            lock_rule=lock_rule_of(queue),
        )
        for queue in config.queues
    ]


def keys_of(queue: QueueConfig) -> QueueKeys:
    keys = queue.keys
    return QueueKeys.of(
        queue.prefix,
        pending=keys.pending,
        processing=keys.processing,
        lock=keys.lock,
        last_send=keys.last_send,
        stats=keys.stats,
    )


def lock_rule_of(queue: QueueConfig) -> LockRule:
    stale = queue.lock.stale
    return LockRule(stale.no_ttl_after, stale.max_ttl, dead_after=_BEATS_MISSED * queue.lock.check_every)


@asynccontextmanager
async def open_store(config: Config, *, on_error: Callable[[str], None] | None = None) -> AsyncIterator[Store]:
    """The store as a command needs it, closed at the end.

    Where it is embedded: that of the daemon running on ``data_dir``, else a server of the command's own.
    Raises EmbeddedStoreError where neither can be had.
    """
    async with _server_for(config) as url:
        store = make_store(config, url, on_error=on_error)
        try:
            yield store
        finally:
            await store.close()


@asynccontextmanager
async def open_connections(config: Config) -> AsyncIterator[Connections]:
    """Only the way to the store, for a command that reads; else like ``open_store``."""
    async with _server_for(config) as url:
        connections = _connections(config, url)
        try:
            yield connections
        finally:
            await connections.close()


@asynccontextmanager
async def _server_for(config: Config) -> AsyncIterator[str]:
    if config.redis.url is not None:
        yield config.redis.url.get_secret_value()
        return
    try:
        from cbq_exporter.store.data_dir import COMMAND, DAEMON, holder
        from cbq_exporter.store.embedded import EmbeddedServer
    except ImportError as error:  # on Windows there is no fcntl
        raise EmbeddedStoreError(f"there is no embedded server for this platform: set redis.url ({error})") from error

    give_up_at = time.monotonic() + _PATIENCE
    while (held := holder(config.data_dir)) is not None and time.monotonic() < give_up_at:
        if held.url is not None:
            yield held.url
            return
        await asyncio.sleep(0.05)
    if held is not None and held.role == DAEMON:
        raise EmbeddedStoreError(
            disk.why_full(config.data_dir)
            or f"the daemon on data_dir {config.data_dir} (process {held.pid}) has no store that answers: it is being "
            "loaded, or cannot be started: look at the daemon's log"
        )
    server = EmbeddedServer(config.data_dir, role=COMMAND)
    url = await server.start()
    try:
        yield url
    finally:
        await server.stop()
