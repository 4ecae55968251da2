"""The clients against real servers in every trouble: what is raised, how soon, and what was done on the server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cbq_exporter.errors import StoreError, StoreMisuse, StoreUnavailable
from cbq_exporter.store.connections import ERROR_KINDS, MUTATION_TIMEOUT, Connections
from cbq_exporter.store.scripts import Script
from tests.support.fault_proxy import FaultProxy
from tests.support.receiver import self_signed
from tests.support.servers import KINDS, Server, may_debug


def script(text: str) -> Script:
    return Script("test", text, hashlib.sha1(text.encode()).hexdigest())


COUNT = script("return redis.call('INCR', KEYS[1])")
PUSH = script("return redis.call('RPUSH', KEYS[1], ARGV[1])")


@pytest.fixture(params=KINDS)
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One that the test may hang, kill and misconfigure."""
    with Server(request.param, *may_debug(request.param), durable=True) as server:
        yield server


@contextlib.asynccontextmanager
async def connected(url: str, errors: list[str] | None = None) -> AsyncIterator[Connections]:
    connections = Connections(url, shown_as="test", on_error=None if errors is None else errors.append)
    try:
        yield connections
    finally:
        await connections.close()


async def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.01)


def command(server: Server, *words: str) -> Any:
    client: Any = server.client  # the driver leaves this method without types
    return client.execute_command(*words)


def clients(server: Server) -> list[dict[str, str]]:
    """The connections of the program that the server knows."""
    return [client for client in server.client.client_list() if client["name"] == "cbq-exporter"]


def test_a_script_sent_to_a_hung_server_arrives_once(own_server: Server) -> None:
    async def scenario() -> None:
        async with connected(own_server.url) as used, connected(own_server.url) as unused:
            await used.run(COUNT, ["n"], [])
            own_server.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            results = await asyncio.gather(
                used.run(COUNT, ["n"], []), unused.run(COUNT, ["m"], []), return_exceptions=True
            )
            took = time.monotonic() - began
            own_server.send_signal(signal.SIGCONT)
            for result in results:
                assert isinstance(result, StoreUnavailable)
                assert result.kind == "timeout"
                assert "no answer within 2 s" in str(result)
            assert MUTATION_TIMEOUT <= took < MUTATION_TIMEOUT + 1
            await until(lambda: own_server.client.get("n") == b"2")
            assert await used.run(COUNT, ["n"], []) == 3
            assert await unused.run(COUNT, ["m"], []) == 1  # it had not come further than the greeting

    asyncio.run(scenario())


def test_after_a_restart_the_next_call_works(own_server: Server) -> None:
    async def scenario() -> None:
        async with connected(own_server.url) as connections:
            for expected in (1, 2, 3):
                assert await connections.run(COUNT, ["n"], []) == expected
                assert await connections.read("GET", "n") == str(expected).encode()
                await asyncio.to_thread(own_server.kill)
                await asyncio.to_thread(own_server.start)

    asyncio.run(scenario())


def test_a_script_written_to_a_dead_connection_is_neither_repeated_nor_taken_for_done(own_server: Server) -> None:
    async def scenario() -> None:
        async with connected(own_server.url) as connections:
            await connections.run(COUNT, ["n"], [])
            # The event loop has no turn in between: it cannot know yet that the connection is dead.
            own_server.kill()
            own_server.start()
            with pytest.raises(StoreUnavailable) as caught:
                await connections.run(COUNT, ["n"], [])
            assert caught.value.kind == "connect"
            assert own_server.client.get("n") == b"1"
            assert await connections.run(COUNT, ["n"], []) == 2

    asyncio.run(scenario())


def until_refused(server: Server) -> None:
    """Until the server answers a command with an error."""
    give_up_at = time.monotonic() + 20
    with redis.Redis(unix_socket_path=str(server.socket), retry=Retry(NoBackoff(), 0)) as other:
        while time.monotonic() < give_up_at:
            try:
                other.get("key")
            except redis.RedisError:
                return
            time.sleep(0.005)
    pytest.fail("the server goes on working")


@contextlib.contextmanager
def loading(server: Server) -> Iterator[str]:
    for number in range(150):
        server.client.set(f"key{number}", os.urandom(200_000))
    server.client.config_set("key-load-delay", 15_000)  # microseconds
    with contextlib.suppress(redis.ResponseError):  # before version 7 it is 2 MiB
        server.client.config_set("loading-process-events-interval-bytes", 1024)
    reloading = threading.Thread(target=lambda: command(server, "DEBUG", "RELOAD"))
    reloading.start()
    until_refused(server)
    yield server.url
    reloading.join(20)


@contextlib.contextmanager
def replica(server: Server) -> Iterator[str]:
    command(server, "REPLICAOF", "127.0.0.1", "1")
    yield server.url


@contextlib.contextmanager
def out_of_memory(server: Server) -> Iterator[str]:
    server.client.config_set("maxmemory", "1")
    yield server.url


@contextlib.contextmanager
def too_few_replicas(server: Server) -> Iterator[str]:
    server.client.config_set("min-replicas-to-write", 1)
    yield server.url


@contextlib.contextmanager
def no_password(server: Server) -> Iterator[str]:
    server.client.config_set("requirepass", "right")
    yield server.url
    command(server, "AUTH", "right")


@contextlib.contextmanager
def wrong_password(server: Server) -> Iterator[str]:
    server.client.config_set("requirepass", "right")
    yield f"{server.url}?password=hunter2"
    command(server, "AUTH", "right")


@contextlib.contextmanager
def user_without_the_key(server: Server) -> Iterator[str]:
    command(server, "ACL", "SETUSER", "bob", "on", ">hunter2", "+@all", "~other:*")
    yield f"{server.url}?username=bob&password=hunter2"


@contextlib.contextmanager
def user_without_the_command(server: Server) -> Iterator[str]:
    command(server, "ACL", "SETUSER", "bob", "on", ">hunter2", "+@all", "-rpush", "~*")
    yield f"{server.url}?username=bob&password=hunter2"


@contextlib.contextmanager
def foreign_type(server: Server) -> Iterator[str]:
    server.client.set("list", "a string")
    yield server.url


@contextlib.contextmanager
def busy(server: Server) -> Iterator[str]:
    server.client.config_set("lua-time-limit", 10)  # milliseconds

    def loop() -> None:
        with contextlib.suppress(redis.ResponseError):
            server.client.eval("while true do end", 0)

    endless = threading.Thread(target=loop)
    endless.start()
    until_refused(server)
    yield server.url
    with redis.Redis(unix_socket_path=str(server.socket)) as other:
        other.script_kill()
    endless.join(20)


@contextlib.contextmanager
def nobody_there(server: Server) -> Iterator[str]:
    """At a path that holds a word of the server's."""
    yield f"unix://{server.folder}/OOM/s.sock"


TROUBLES = [
    (loading, StoreUnavailable, "loading"),
    (replica, StoreUnavailable, "readonly"),
    (out_of_memory, StoreUnavailable, "oom"),
    (too_few_replicas, StoreUnavailable, "noreplicas"),
    (no_password, StoreUnavailable, "auth"),
    (wrong_password, StoreUnavailable, "auth"),
    (busy, StoreUnavailable, "busy"),
    (nobody_there, StoreUnavailable, "connect"),
    (foreign_type, StoreMisuse, "wrongtype"),
    (user_without_the_key, StoreMisuse, "permission"),
    (user_without_the_command, StoreMisuse, "permission"),
]


@pytest.mark.parametrize(("trouble", "kind_of_error", "kind"), TROUBLES, ids=[t[0].__name__ for t in TROUBLES])
def test_each_trouble_has_its_name(
    own_server: Server,
    trouble: Callable[[Server], contextlib.AbstractContextManager[str]],
    kind_of_error: type[StoreError],
    kind: str,
) -> None:
    async def scenario(url: str) -> None:
        errors: list[str] = []
        async with connected(url, errors) as connections:
            with pytest.raises(StoreError) as caught:
                await connections.run(PUSH, ["list"], ["payload"])
        assert (type(caught.value), caught.value.kind) == (kind_of_error, kind)
        assert errors == [kind]
        assert kind in ERROR_KINDS
        message = str(caught.value)
        assert "\n" not in message
        assert "test" in message
        assert "hunter2" not in message
        assert "payload" not in message

    with trouble(own_server) as url:
        asyncio.run(scenario(url))


def test_who_has_become_a_replica_is_left_for_where_its_name_leads_now(each_server: Server) -> None:
    async def scenario() -> None:
        with Server(each_server.kind) as old, FaultProxy(old.socket) as name:
            async with connected(name.url) as connections:
                assert await connections.run(COUNT, ["n"], []) == 1
                assert await connections.read("GET", "n") == b"1"
                each_server.client.set("n", 10)
                name.lead_to(each_server.socket)
                assert await connections.run(COUNT, ["n"], []) == 2  # it was asked for nothing before
                old.client.replicaof("127.0.0.1", 1)
                with pytest.raises(StoreUnavailable, match="it is a replica"):
                    await connections.run(COUNT, ["n"], [])
                assert await connections.run(COUNT, ["n"], []) == 11
                assert await connections.read("GET", "n") == b"11"
                await until(lambda: not clients(old))

    asyncio.run(scenario())


def test_the_server_may_forget_the_scripts(each_server: Server) -> None:
    async def scenario() -> None:
        async with connected(each_server.url) as connections:
            for expected in (1, 2):
                each_server.client.script_flush()
                assert await connections.run(COUNT, ["n"], []) == expected

    asyncio.run(scenario())


def test_one_refused_command_leaves_the_others_their_answers(each_server: Server) -> None:
    each_server.client.set("string", "s")

    async def scenario() -> None:
        errors: list[str] = []
        async with connected(each_server.url, errors) as connections:
            answers = await connections.read_many([("GET", "string"), ("LLEN", "string"), ("LRANGE", "none", 0, -1)])
            assert answers[0] == b"s"
            assert isinstance(answers[1], StoreMisuse)
            assert answers[2] == []
            assert errors == ["wrongtype"]
            assert len(clients(each_server)) == 1
            assert await connections.read("GET", "string") == b"s"
            assert len(clients(each_server)) == 1

    asyncio.run(scenario())


def test_nobody_gets_the_answer_of_a_cancelled_command(each_server: Server) -> None:
    async def scenario() -> None:
        turn = random.Random(1)
        async with connected(each_server.url) as connections:

            async def ask(number: int) -> bool:
                text = b"%d" % number * turn.choice((1, 5000))
                task = asyncio.create_task(connections.read("ECHO", text))
                for _ in range(turn.randrange(30)):
                    await asyncio.sleep(0)
                if turn.random() < 0.7:
                    task.cancel()
                try:
                    assert await task == text
                except asyncio.CancelledError:
                    return False
                return True

            answered = await asyncio.gather(*map(ask, range(600)))
            assert 100 < sum(answered) < 500
            # No connection is lost on the way: as many as before can be used at the same time.
            blocked = [asyncio.create_task(connections.read("BLPOP", f"list{n}", 0)) for n in range(16)]
            await until(lambda: sum(client["cmd"] == "blpop" for client in clients(each_server)) == 16)
            assert len(clients(each_server)) == 16
            for number, task in enumerate(blocked):
                each_server.client.rpush(f"list{number}", "x")
                assert await task == [b"list%d" % number, b"x"]
        await until(lambda: not clients(each_server))

    asyncio.run(scenario())


def test_waiting_ends_with_an_answer_or_after_its_time(each_server: Server) -> None:
    async def scenario() -> None:
        async with connected(each_server.url) as connections:
            assert await connections.wait(0.05, "BLMOVE", "a", "a", "LEFT", "LEFT", 0.05) is None
            waiting = asyncio.create_task(connections.wait(20, "BLMOVE", "a", "a", "LEFT", "LEFT", 20))
            await until(lambda: any(client["cmd"] == "blmove" for client in clients(each_server)))
            each_server.client.rpush("a", "x")
            assert await waiting == b"x"
            # Neither of the others waits for the one that blocks.
            waiting = asyncio.create_task(connections.wait(20, "BLMOVE", "b", "b", "LEFT", "LEFT", 20))
            assert await connections.run(COUNT, ["n"], []) == 1
            waiting.cancel()
            await until(lambda: not any(client["cmd"] == "blmove" for client in clients(each_server)))

    asyncio.run(scenario())


def test_urls_with_tls_a_password_and_a_database(tmp_path: Path) -> None:
    _, certificate = self_signed(tmp_path)
    with contextlib.ExitStack() as ports:
        plain, encrypted = (ports.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        plain_port, tls_port = plain.getsockname()[1], encrypted.getsockname()[1]
    options = [
        "--bind",
        "127.0.0.1",
        "--port",
        str(plain_port),
        "--tls-port",
        str(tls_port),
        "--tls-auth-clients",
        "no",
    ]
    options += ["--tls-cert-file", str(certificate), "--tls-key-file", str(tmp_path / "key.pem")]

    async def scenario(url: str) -> None:
        async with connected(url) as connections:
            await connections.run(COUNT, ["n"], [])

    with Server("redis", *options) as server:
        server.client.config_set("requirepass", "p@ss:/?#")
        password = "p%40ss%3A%2F%3F%23"
        asyncio.run(scenario(f"redis://:{password}@127.0.0.1:{plain_port}/3"))
        asyncio.run(scenario(f"rediss://default:{password}@localhost:{tls_port}/3?ssl_ca_certs={certificate}"))
        asyncio.run(scenario(f"unix://{server.socket}?db=3&password={password}"))
        # A certificate that nobody vouches for is refused, in one line.
        with pytest.raises(StoreUnavailable, match="certificate") as caught:
            asyncio.run(scenario(f"rediss://:{password}@localhost:{tls_port}/3"))
        assert caught.value.kind == "connect"
        command(server, "AUTH", "p@ss:/?#")
        server.client.select(3)
        assert server.client.get("n") == b"3"
