"""Binding, and what it says where that fails."""

from __future__ import annotations

import asyncio
import socket
import urllib.request

import pytest

from cbq_exporter.errors import CbqError
from cbq_exporter.web.app import create_app
from cbq_exporter.web.server import WebServer
from tests.web.serving import FakeBackend


def why(host: str, port: int) -> str:
    async def start() -> None:
        server = WebServer(create_app(FakeBackend()), host, port)
        try:
            await server.start()
        finally:
            await server.stop()

    with pytest.raises(CbqError) as caught:
        asyncio.run(start())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_port_in_use_is_named_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert why("127.0.0.1", port) == (
            f"cannot serve on web.listen_address 127.0.0.1:{port}: another program has it: "
            "stop that one or choose another port (0 takes a free one)"
        )
        # One of the name's addresses is enough to refuse: half a server would be a trap.
        assert f"localhost:{port}: another program has it" in why("localhost", port)


def test_a_second_server_on_the_port_of_the_first_is_refused() -> None:
    async def run() -> str:
        first = WebServer(create_app(FakeBackend()), "", 0)
        await first.start()
        port = int(first.url.rpartition(":")[2])
        second = WebServer(create_app(FakeBackend()), "", port)
        try:
            with pytest.raises(CbqError) as caught:
                await second.start()
            return str(caught.value)
        finally:
            await second.stop()
            await first.stop()

    assert "another program has it" in asyncio.run(run())


def test_an_address_of_another_machine_is_refused() -> None:
    assert "192.0.2.1:0: this machine does not have that address" in why("192.0.2.1", 0)


def test_a_name_that_does_not_resolve_is_refused() -> None:
    assert "the host name cannot be resolved" in why("no_such_host.invalid", 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "", "0.0.0.0", "::1", "::"])
def test_the_url_leads_there_and_the_port_is_free_afterwards(host: str) -> None:
    async def run() -> str:
        server = WebServer(create_app(FakeBackend()), host, 0)
        await server.start()
        try:
            with await asyncio.to_thread(urllib.request.urlopen, f"{server.url}/-/healthy", timeout=20) as answer:
                assert answer.status == 200
        finally:
            await server.stop()
        return server.url

    if ":" in host and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    port = int(asyncio.run(run()).rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_stopping_lets_an_answer_finish_and_does_not_wait_for_idle_clients() -> None:
    async def run() -> bytes:
        started, go_on = asyncio.Event(), asyncio.Event()
        backend = FakeBackend()
        plain_snapshot = backend.snapshot

        async def slow(timeout: float) -> object:
            started.set()
            await go_on.wait()
            return await plain_snapshot(timeout)

        backend.snapshot = slow  # type: ignore[method-assign, assignment]
        server = WebServer(create_app(backend), "127.0.0.1", 0)
        await server.start()
        port = int(server.url.rpartition(":")[2])
        _, idle = await asyncio.open_connection("127.0.0.1", port)
        reader, busy = await asyncio.open_connection("127.0.0.1", port)
        busy.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        await started.wait()
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        go_on.set()
        answer = await asyncio.wait_for(reader.read(), 20)
        await asyncio.wait_for(stopping, 20)
        idle.close()
        busy.close()
        return answer

    answer = asyncio.run(run())
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"cbq_up 1.0" in answer


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
