"""The clients of one Redis, and the one place where the driver's errors become ours.

Three clients, because they must not wait for each other:

- mutations have a short deadline and are never repeated: a script that was sent to a hung server would
  otherwise arrive many times;
- reads are made by scrapes and by ``status``, with a longer deadline;
- the blocking one waits for arrivals, for as long as nothing comes.

The driver's own client object is not used, only its connections: that costs a third of the processor time per
command, and leaves no retry, no second deadline and no pool of its own to reason about. Answers are as RESP2
has them: bytes, numbers, None and lists.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hiredis import pack_command as _pack  # in C; the driver's own takes several times as long
from redis import exceptions as driver
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from cbq_exporter.errors import StoreError, StoreMisuse, StoreUnavailable
from cbq_exporter.store.scripts import Script, load

MUTATION_TIMEOUT = 2.0  # seconds, for all of it: a free connection, connecting, sending, the answer
READ_TIMEOUT = 5.0
_MOST_CONNECTIONS = 16  # of mutations, and again of reads
_MOST_WAITS = 10_000  # each queue holds one for as long as it waits
_CLIENT_NAME = "cbq-exporter"

# What the server says, the word for it in metrics, and what an operator can do about it. Before Redis 7 a script
# wraps the server's word in a sentence of its own, so it is looked for anywhere in the message.
_UNAVAILABLE = (
    ("LOADING", "loading", "it is loading its data: wait"),
    ("READONLY", "readonly", "it is a replica: point redis.url at the primary"),
    ("OOM", "oom", "it is at maxmemory: free memory or raise maxmemory"),
    ("MISCONF", "misconf", "it cannot write to its disk: look at its log"),
    ("NOREPLICAS", "noreplicas", "too few replicas are connected: connect one, or lower min-replicas-to-write"),
    ("MASTERDOWN", "masterdown", "it is a replica whose primary is down: point redis.url at a primary"),
    ("CLUSTERDOWN", "clusterdown", "the cluster is down"),
    ("BUSY", "busy", "a script blocks it: wait, or SCRIPT KILL"),
    ("TRYAGAIN", "tryagain", "slots are being moved"),
    ("max number of clients", "maxclients", "it has no connection left: raise maxclients"),
)
# Whoever says this, or nothing, may not be the server any more that the address stands for: after a failover names
# and virtual addresses lead to another one, and the old one keeps the connections that it has.
MAY_HAVE_MOVED = frozenset({"connect", "timeout", "readonly", "masterdown", "noreplicas"})
_SETTING = "redis.url, or CBQ_REDIS_URL, which goes before it"
_PERMISSION = "the user of redis.url lacks a permission: cbq-exporter explain redis-acl.md has the lines"
_MISUSE = (
    (
        "WRONGTYPE",
        "wrongtype",
        "a key holds another type (cbq-exporter doctor names it): rename or delete that key, or choose another prefix",
    ),
    ("NOPERM", "permission", _PERMISSION),
    ("No permission", "permission", _PERMISSION),
    ("ACL failure", "permission", _PERMISSION),  # in a script of Valkey's
    ("The user executing the script can't", "permission", _PERMISSION),  # of Redis's
    ("MOVED", "cluster", "it is a cluster, which is not available yet in this version"),
    ("CROSSSLOT", "crossslot", "the keys of one queue must share a hash tag"),
    ("unknown command", "unsupported", "the server is too old: Redis 6.2 or Valkey 7.2 is needed"),
    ("Unknown Redis command", "unsupported", "the server is too old: Redis 6.2 or Valkey 7.2 is needed"),
)
_IN_SCRIPT = re.compile(r",? script: [0-9a-f]{40}, on @user_script:\d+\.?$")
ERROR_KINDS = (
    "connect",
    "timeout",
    "auth",
    "other",
    "embedded",
    *(kind for _, kind, _ in _UNAVAILABLE),
    *dict.fromkeys(kind for _, kind, _ in _MISUSE),
)


def translate(error: BaseException, where: str, setting: str = _SETTING) -> StoreError:
    """The driver's ``error`` as one of ours; ``where`` is the server's address, without a password, ``setting`` what
    it comes from.
    """
    if type(error) is driver.ConnectionError and isinstance(error.__cause__, driver.RedisError):
        error = error.__cause__  # the greeting on a unix socket was refused
    text = _said(error)
    if isinstance(error, driver.AuthenticationError | driver.AuthorizationError) or _has("NOAUTH", text):
        do = f"check user and password of {setting}"
        return StoreUnavailable(f"Redis at {where} refuses the login: {do} ({text})", kind="auth")
    if isinstance(error, driver.TimeoutError | TimeoutError):
        # A server that speaks no TLS waits for the end of what it takes for a command.
        doubt = "; does it speak TLS?" if where.startswith("rediss:") and "connecting" in text else ""
        return StoreUnavailable(f"Redis at {where} does not answer in time: {text or 'timeout'}{doubt}", kind="timeout")
    # The embedded one has no address that could be wrong.
    do = f": check that it runs, and {setting}" if "://" in where else ""
    unreachable = type(error) is driver.ConnectionError and "max number of clients" not in text
    if unreachable or isinstance(error, OSError):
        # Not the server's words: they may hold a path or a host name.
        return StoreUnavailable(f"Redis at {where} cannot be reached: {text.rstrip('.')}{do}", kind="connect")
    for word, kind, hint in _UNAVAILABLE:
        if _has(word, text):
            return StoreUnavailable(f"Redis at {where} cannot be used: {hint} ({text})", kind=kind)
    for word, kind, hint in _MISUSE:
        if _has(word, text):
            return StoreMisuse(f"Redis at {where}: {hint} ({text})", kind=kind)
    if isinstance(error, driver.ConnectionError):
        return StoreUnavailable(f"Redis at {where} cannot be reached: {text.rstrip('.')}{do}", kind="connect")
    return StoreMisuse(f"Redis at {where} answered with an error: {text}", kind="other")


def _said(error: BaseException) -> str:
    """One line; with the server's first word, which the driver takes off where it knows it, and without the place in
    a script of ours, which helps nobody."""
    word = getattr(error, "status_code", None)
    return _IN_SCRIPT.sub("", " ".join(f"{word or ''} {error}".split()))[:300]


def _has(word: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text) is not None


class Connections:
    """Opens on first use; ``on_error`` is told the kind of every error, for the metric.

    ``shown_as`` is the server's address in messages: without a password. ``why_gone`` is asked for the reason where
    the server cannot be reached.
    """

    def __init__(
        self,
        url: str,
        *,
        shown_as: str,
        on_error: Callable[[str], None] | None = None,
        why_gone: Callable[[], str | None] | None = None,
    ) -> None:
        self.shown_as = shown_as
        self._on_error = on_error
        self._why_gone = why_gone
        self._mutations = _Client(url, _MOST_CONNECTIONS)
        self._reads = _Client(url, _MOST_CONNECTIONS)
        self._waits = _Client(url, _MOST_WAITS)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run one transition. Never repeated where it is unknown whether it ran.

        Raises StoreUnavailable (it may or may not have run) or StoreMisuse.
        """
        with self._translated(MUTATION_TIMEOUT):
            async with asyncio.timeout(MUTATION_TIMEOUT):
                try:
                    return await self._mutations.call("EVALSHA", script.sha, len(keys), *keys, *args)
                except driver.NoScriptError:
                    # Refused before anything ran: a restart or SCRIPT FLUSH emptied the cache.
                    return await self._mutations.call("EVAL", script.text, len(keys), *keys, *args)

    async def run_named(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return await self.run(load(name), keys, args)

    async def read(self, *command: Any) -> Any:
        """One command that changes nothing."""
        with self._translated(READ_TIMEOUT):
            async with asyncio.timeout(READ_TIMEOUT):
                return await self._reads.call(*command)

    async def read_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Many commands that change nothing, in one round trip.

        A command that the server refuses has a StoreMisuse in its place; raises StoreUnavailable where the
        server cannot be used.
        """
        with self._translated(READ_TIMEOUT):
            async with asyncio.timeout(READ_TIMEOUT):
                answers = await self._reads.call_many(commands)
        for number, answer in enumerate(answers):
            if isinstance(answer, Exception):
                error = translate(answer, self.shown_as)
                self._note(error)
                if isinstance(error, StoreUnavailable):
                    raise error from answer
                answers[number] = error
        return answers

    async def read_all(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """As ``read_many``, for whoever needs every answer: raises the first refusal."""
        answers = await self.read_many(commands)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    async def wait(self, seconds: float, *command: Any) -> Any:
        """A command that blocks on the server for up to ``seconds``."""
        deadline = seconds + MUTATION_TIMEOUT
        with self._translated(deadline):
            async with asyncio.timeout(deadline):
                return await self._waits.call(*command)

    async def close(self) -> None:
        for client in (self._mutations, self._reads, self._waits):
            await client.close()

    def _note(self, error: StoreError) -> None:
        if error.kind in MAY_HAVE_MOVED:
            for client in (self._mutations, self._reads, self._waits):
                client.renew()
        if self._on_error is not None:
            self._on_error(error.kind)

    @contextlib.contextmanager
    def _translated(self, deadline: float) -> Iterator[None]:
        try:
            yield
        except (driver.RedisError, OSError) as error:
            if isinstance(error, TimeoutError) and not str(error):
                error.args = (f"no answer within {deadline:g} s",)
            ours = translate(error, self.shown_as)
            if ours.kind == "connect" and self._why_gone is not None and (why := self._why_gone()) is not None:
                ours = StoreUnavailable(why, kind="connect")
            self._note(ours)
            raise ours from error


class _Client:
    """Connections for one purpose. A command has a connection to itself, and a deadline of its caller's.

    A connection whose command did not come to its end (an error, the deadline, a cancelled caller) is closed:
    the late answer can never be taken for that of the next command.
    """

    def __init__(self, url: str, most: int) -> None:
        # Only asked to read the URL and to make connections.
        self._maker: Any = ConnectionPool.from_url(
            url,
            socket_timeout=None,
            socket_connect_timeout=MUTATION_TIMEOUT,
            socket_read_size=262_144,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,
            protocol=2,
            decode_responses=False,
        )
        self._name = str(self._maker.connection_kwargs.pop("client_name", _CLIENT_NAME))
        self._free = asyncio.Semaphore(most)
        self._idle: list[Any] = []
        self._outdated: list[Any] = []
        self._renewals = 0
        self._closed = False

    def renew(self) -> None:
        """Use no connection again that is open now: the next command looks the address up anew."""
        self._renewals += 1
        self._outdated += self._idle
        self._idle.clear()

    async def call(self, *command: Any) -> Any:
        answer = (await self.call_many((command,)))[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def call_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """An answer for each command; an exception in the place of one that the server refused."""
        async with self._free:
            connection = self._idle.pop() if self._idle else self._maker.make_connection()
            whole, renewals = False, self._renewals
            try:
                while self._outdated:
                    await self._outdated.pop().disconnect(nowait=True)
                if not connection.is_connected or await connection.can_read():
                    await self._open(connection)
                await connection.send_packed_command(b"".join([_pack(tuple(command)) for command in commands]))
                answers: list[Any] = []
                for _ in commands:
                    try:
                        answers.append(await connection.read_response())
                    except driver.ResponseError as error:
                        answers.append(error)
                whole = True
                return answers
            finally:
                if whole and not self._closed and renewals == self._renewals:
                    self._idle.append(connection)
                else:
                    await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """Commands in flight end as they will; their connections are closed then."""
        self._closed = True
        self.renew()
        while self._outdated:
            with contextlib.suppress(driver.RedisError, OSError):
                await self._outdated.pop().disconnect()

    async def _open(self, connection: Any) -> None:
        """Nothing was sent yet: so it is safe to replace a connection that the server closed meanwhile."""
        await connection.disconnect(nowait=True)
        await connection.connect()
        # For whoever looks at the server's list of clients. A user of few permissions may not, and does without.
        await connection.send_command("CLIENT", "SETNAME", self._name)
        with contextlib.suppress(driver.ResponseError):
            await connection.read_response()
