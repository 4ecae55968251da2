"""The clients of one Redis, and the one place where the driver's errors become ours.

Three clients, because they must not wait for each other:

- mutations have a short timeout and are never repeated by the driver: a script that was sent to a hung
  server would otherwise arrive many times;
- reads are made by scrapes and by ``status``, with a deadline of the caller's;
- the blocking one waits for arrivals, for as long as nothing comes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from redis import exceptions as driver
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from cbq_exporter.errors import StoreError, StoreMisuse, StoreUnavailable
from cbq_exporter.store.scripts import Script, load

MUTATION_TIMEOUT = 2.0  # seconds
READ_TIMEOUT = 5.0
_MAX_CONNECTIONS = 16

# What the server says, the word for it in metrics, and what an operator can do about it. Scripts wrap these
# words differently from version to version, so they are looked for anywhere in the message.
_UNAVAILABLE = (
    ("LOADING", "loading", "it is loading its data: wait"),
    ("READONLY", "readonly", "it is a replica: point redis.url at the primary"),
    ("OOM", "oom", "it is at maxmemory: free memory or raise maxmemory"),
    ("MISCONF", "misconf", "it cannot write to its disk: look at its log"),
    ("NOREPLICAS", "noreplicas", "too few replicas are connected"),
    ("MASTERDOWN", "masterdown", "its primary is down"),
    ("CLUSTERDOWN", "clusterdown", "the cluster is down"),
    ("BUSY", "busy", "a script blocks it"),
    ("TRYAGAIN", "tryagain", "slots are being moved"),
    ("max number of clients", "maxclients", "raise maxclients"),
)
_MISUSE = (
    (
        "WRONGTYPE",
        "wrongtype",
        "a key of this queue holds another type: rename or delete that key, or choose another prefix",
    ),
    ("NOPERM", "permission", "the user of redis.url lacks a permission"),
    ("No permission", "permission", "the user of redis.url lacks a permission"),
    ("CROSSSLOT", "crossslot", "the keys of one queue must share a hash tag"),
    ("unknown command", "unsupported", "the server is too old: Redis 6.2 or Valkey 7.2 is needed"),
)
ERROR_KINDS = (
    "connect",
    "timeout",
    "auth",
    "other",
    "embedded",
    *(kind for _, kind, _ in _UNAVAILABLE),
    *dict.fromkeys(kind for _, kind, _ in _MISUSE),
)


def translate(error: BaseException, where: str) -> StoreError:
    """The driver's ``error`` as one of ours; ``where`` is the server's address, without a password."""
    text = " ".join(str(error).split())[:200]
    if isinstance(error, driver.AuthenticationError | driver.AuthorizationError) or "NOAUTH" in text:
        return StoreUnavailable(f"Redis at {where} refuses the login: {text}: check redis.url", kind="auth")
    for word, kind, hint in _UNAVAILABLE:
        if word in text:
            return StoreUnavailable(f"Redis at {where} cannot be used: {hint} ({text})", kind=kind)
    for word, kind, hint in _MISUSE:
        if word in text:
            return StoreMisuse(f"Redis at {where}: {hint} ({text})", kind=kind)
    if isinstance(error, driver.BusyLoadingError):
        return StoreUnavailable(f"Redis at {where} cannot be used: it is loading its data: wait", kind="loading")
    if isinstance(error, driver.TimeoutError | TimeoutError):
        return StoreUnavailable(f"Redis at {where} does not answer in time: {text or 'timeout'}", kind="timeout")
    if isinstance(error, driver.ConnectionError | OSError):
        return StoreUnavailable(f"Redis at {where} cannot be reached: {text}", kind="connect")
    return StoreMisuse(f"Redis at {where} answered with an error: {text}", kind="other")


class Connections:
    """Opens on first use; ``on_error`` is told the kind of every error, for the metric."""

    def __init__(self, url: str, *, shown_as: str, on_error: Callable[[str], None] | None = None) -> None:
        self.shown_as = shown_as
        self._on_error = on_error
        self._mutations = _client(url, MUTATION_TIMEOUT)
        self._reads = _client(url, READ_TIMEOUT)
        self._waits = _client(url, None)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run one transition. Never repeated where it is unknown whether it ran.

        Raises StoreUnavailable (it may or may not have run) or StoreMisuse.
        """
        with self._translated():
            try:
                return await self._mutations.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
            except driver.NoScriptError:
                # Refused before anything ran: a restart or SCRIPT FLUSH emptied the cache.
                return await self._mutations.execute_command("EVAL", script.text, len(keys), *keys, *args)

    async def run_named(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return await self.run(load(name), keys, args)

    async def read(self, *command: Any) -> Any:
        """One command that changes nothing."""
        with self._translated():
            return await self._reads.execute_command(*command)

    async def read_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Many commands that change nothing, in one round trip.

        A command that the server refuses has a StoreError in its place; raises StoreUnavailable only where
        nothing could be read.
        """
        with self._translated():
            async with self._reads.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                answers = await pipe.execute(raise_on_error=False)
        results = []
        for answer in answers:
            if isinstance(answer, Exception):
                error = translate(answer, self.shown_as)
                if isinstance(error, StoreUnavailable):
                    self._note(error)
                    raise error from answer
                results.append(error)
            else:
                results.append(answer)
        return results

    async def wait(self, seconds: float, *command: Any) -> Any:
        """A command that blocks on the server for up to ``seconds``."""
        with self._translated():
            try:
                async with asyncio.timeout(seconds + MUTATION_TIMEOUT):
                    return await self._waits.execute_command(*command)
            except TimeoutError as error:
                raise driver.TimeoutError("a blocking command was not answered") from error

    async def close(self) -> None:
        for client in (self._mutations, self._reads, self._waits):
            with contextlib.suppress(Exception):
                await client.aclose()

    def _note(self, error: StoreError) -> None:
        if self._on_error is not None:
            self._on_error(error.kind)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (driver.RedisError, OSError) as error:
            ours = translate(error, self.shown_as)
            self._note(ours)
            raise ours from error


def _client(url: str, timeout: float | None) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=_MAX_CONNECTIONS,
        timeout=timeout or MUTATION_TIMEOUT,
        socket_timeout=timeout,
        socket_connect_timeout=min(timeout or MUTATION_TIMEOUT, MUTATION_TIMEOUT),
        retry=Retry(NoBackoff(), 0),
        socket_read_size=262_144,
        client_name="cbq-exporter",
        protocol=2,
        decode_responses=False,
    )
    return Redis.from_pool(pool)
