"""What a producer does to a queue, as the existing ones do it: RPUSH, and count. Blocking, and for an event loop.

Plain commands in one round trip, no script: a producer's user needs ``rpush``, ``incrby`` and ``expire`` and nothing
else. Nothing is ever sent a second time here: only the caller can know whether twice is better than never.

Both classes raise EnqueueError, which tells what was answered for, what was sent and not answered, and what was not
sent or was refused.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hiredis import pack_command as _pack
from redis import BlockingConnectionPool
from redis import exceptions as driver
from redis.asyncio import BlockingConnectionPool as AsyncBlockingConnectionPool
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from cbq_exporter.config import redis_url
from cbq_exporter.errors import EnqueueError, StoreUnavailable
from cbq_exporter.store.connections import MAY_HAVE_MOVED, translate
from cbq_exporter.store.keys import STATS_TTL, QueueKeys
from cbq_exporter.store.paging import batches

# What is sent at once: small enough that a lost answer leaves few callbacks in doubt.
_BATCH_ITEMS = 1000
_BATCH_BYTES = 4 * 1024 * 1024

_MOST_CONNECTIONS = 32  # who comes after that waits for one to become free, for as long as for an answer


class Producer:
    """For threads, and for processes that fork: each command has a connection of its process to itself.

    ``timeout`` is seconds: for a free connection, for connecting, and for each wait for the server.
    """

    def __init__(self, url: str, keys: QueueKeys, *, timeout: float) -> None:
        self._keys = keys
        self._shown_as = redis_url.redacted(url)
        # Asked only for connections: the driver's client would decide when to send again.
        options = _options(timeout) | ({"redis_connect_func": _greet} if url.startswith("rediss:") else {})
        self._pool: Any = BlockingConnectionPool.from_url(url, **options, retry=Retry(NoBackoff(), 0))

    def push(self, payloads: Sequence[bytes]) -> None:
        for batch in _batches(payloads):
            sent = False
            try:
                connection: Any = self._pool.get_connection()
                try:
                    sent = True
                    connection.send_packed_command(_commands(self._keys, batch.payloads), check_health=False)
                    refused = batch.refused([_answer(connection) for _ in range(_COMMANDS)], self._shown_as)
                    if _may_have_moved(refused):
                        connection.disconnect()
                except BaseException:
                    connection.disconnect()  # a late answer must not be taken for that of the next command
                    raise
                finally:
                    self._pool.release(connection)
            except (driver.RedisError, OSError) as error:
                raise batch.failed(error, self._shown_as, sent=sent) from error
            if refused is not None:
                raise refused

    def close(self) -> None:
        self._pool.disconnect()


class AsyncProducer:
    """For event loops: each has connections of its own, which are closed with it, as ``asyncio.run`` does."""

    def __init__(self, url: str, keys: QueueKeys, *, timeout: float) -> None:
        self._url = url
        self._keys = keys
        self._timeout = timeout
        self._shown_as = redis_url.redacted(url)
        self._pools: dict[asyncio.AbstractEventLoop, tuple[Any, AsyncIterator[None]]] = {}

    async def push(self, payloads: Sequence[bytes]) -> None:
        pool = await self._pool()
        for batch in _batches(payloads):
            sent = False
            try:
                connection = await pool.get_connection()
                try:
                    sent = True
                    await connection.send_packed_command(_commands(self._keys, batch.payloads), check_health=False)
                    refused = batch.refused([await _async_answer(connection) for _ in range(_COMMANDS)], self._shown_as)
                    if _may_have_moved(refused):
                        await connection.disconnect(nowait=True)
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
                finally:
                    await pool.release(connection)
            except (driver.RedisError, OSError) as error:
                raise batch.failed(error, self._shown_as, sent=sent) from error
            if refused is not None:
                raise refused

    async def close(self) -> None:
        found = self._pools.get(asyncio.get_running_loop())
        if found is not None:
            await found[0].disconnect()

    async def _pool(self) -> Any:
        running = asyncio.get_running_loop()
        found = self._pools.get(running)
        if found is None:
            pool = AsyncBlockingConnectionPool.from_url(
                self._url, **_options(self._timeout), retry=AsyncRetry(NoBackoff(), 0)
            )
            for loop in [loop for loop in self._pools if loop.is_closed()]:
                self._pools.pop(loop, None)
            found = self._pools[running] = (pool, _closed_with_its_loop(pool))
            await anext(found[1])
        return found[0]


async def _closed_with_its_loop(pool: Any) -> AsyncIterator[None]:
    """Whoever ends an event loop in good order ends the generators that have begun in it; so does the end of the last
    reference to one.

    Connections that outlive their loop can no longer be closed: their files stay open until the garbage is collected.
    """
    try:
        yield
    finally:
        await pool.disconnect()


@dataclass(frozen=True, slots=True)
class _Batch:
    """What is sent at once; ``before`` were accepted already, ``after`` come later."""

    payloads: Sequence[bytes]
    before: int
    after: Sequence[bytes]

    def failed(self, error: Exception, shown_as: str, *, sent: bool) -> EnqueueError:
        """What was sent may be in the queue all the same, unless the server says that it does nothing for us: some of
        what it says so with, such as LOADING, the driver takes for the end of the connection.
        """
        ours = translate(error, shown_as, _SETTING)
        in_doubt = sent and not (isinstance(ours, StoreUnavailable) and not ours.unanswered)
        these = tuple(self.payloads)
        return EnqueueError(
            str(ours),
            kind=ours.kind,
            enqueued=self.before,
            in_doubt=these if in_doubt else (),
            not_enqueued=tuple(self.after) if in_doubt else (*these, *self.after),
        )

    def refused(self, answers: Sequence[Any], shown_as: str) -> EnqueueError | None:
        """Only the first answer counts: what is wrong with a statistic does not undo what was accepted.

        (A key of another type in the place of pending makes the statistic count too much; all else refuses both.)
        """
        error = answers[0]
        if not isinstance(error, Exception):
            return None
        failed = self.failed(error, shown_as, sent=False)
        failed.__cause__ = error
        return failed


def _batches(payloads: Sequence[bytes]) -> Iterator[_Batch]:
    before = 0
    for batch in batches(payloads, len, most=_BATCH_ITEMS, most_bytes=_BATCH_BYTES):
        yield _Batch(batch, before, payloads[before + len(batch) :])
        before += len(batch)


_COMMANDS = 3
_SETTING = "its URL"  # which the program has from anywhere, such as from the cache of a Django project


def _commands(keys: QueueKeys, payloads: Sequence[bytes]) -> list[bytes]:
    commands: tuple[Any, ...] = (
        ("RPUSH", keys.pending, *payloads),
        ("INCRBY", keys.stats_queued, len(payloads)),
        ("EXPIRE", keys.stats_queued, STATS_TTL),
    )
    return [b"".join([_pack(command) for command in commands])]  # one piece: the driver sends each by itself


def _greet(connection: Any) -> None:
    """A round trip on a new connection with TLS, whatever the answer: so that the tickets that the server sends first
    are read. The driver takes them for an answer that nobody asked for, and the connection for one that is not ready.
    """
    connection.on_connect()
    connection.send_command("SELECT", connection.db, check_health=False)
    with contextlib.suppress(driver.ResponseError):
        connection.read_response()


def _may_have_moved(refused: EnqueueError | None) -> bool:
    """Whether the address may lead to another server by now: a new connection finds it, the old one never does."""
    return refused is not None and refused.kind in MAY_HAVE_MOVED


def _answer(connection: Any) -> Any:
    """An exception in the place of what the server refused."""
    try:
        return connection.read_response()
    except driver.ResponseError as error:
        return error


async def _async_answer(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except driver.ResponseError as error:
        return error


def _options(timeout: float) -> dict[str, Any]:
    return {
        "max_connections": _MOST_CONNECTIONS,
        "timeout": timeout,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "driver_info": None,
        "protocol": 2,
        "decode_responses": False,
    }
