"""In views, sync and async: with runserver's threads, and by ASGI. Nothing is left open afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.core.wsgi import get_wsgi_application
from django.test import AsyncClient

from cbq_exporter.django import (
    callback_enqueue,
    clear_processing_queue,
    force_release_lock,
    get_queue_status,
    reset_callback_queue,
    undo_reset,
)
from tests.support.daemons import until
from tests.support.servers import Server

OPERATORS = (get_queue_status, force_release_lock, clear_processing_queue, reset_callback_queue, undo_reset)


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def runserver() -> Iterator[str]:
    """What ``manage.py runserver`` starts: a thread for each connection."""
    server = ThreadedWSGIServer(("127.0.0.1", 0), Quiet)
    server.daemon_threads = False
    server.set_app(get_wsgi_application())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(30)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def connections(server: Server) -> int:
    redis: Any = server.client
    return len(redis.client_list())


def test_under_runserver(redis: Server) -> None:
    get_queue_status()
    before, files = connections(redis), len(os.listdir("/proc/self/fd"))
    with runserver() as url:

        def visit() -> None:
            for path in ("status", "enqueue", "async/status", "async/enqueue", "unlock", "async/unlock"):
                get(f"{url}/{path}")

        visitors = [threading.Thread(target=visit) for _ in range(6)]
        for visitor in visitors:
            visitor.start()
        for visitor in visitors:
            visitor.join(60)
        assert get(f"{url}/status")["pending_count"] == 12
    kept = 8  # of callback_enqueue, which keeps its connections, one for each thread that used it at the same time
    until(lambda: connections(redis) <= before + kept)
    assert len(os.listdir("/proc/self/fd")) <= files + kept + 4


def test_under_asgi(redis: Server) -> None:
    async def visit() -> dict[str, Any]:
        client = AsyncClient()
        paths = ("status", "async/status", "enqueue", "async/enqueue", "unlock", "async/unlock")
        answers = await asyncio.gather(*(client.get(f"/{path}") for path in paths * 4))
        assert [answer.status_code for answer in answers] == [200] * len(answers)
        status: dict[str, Any] = json.loads((await client.get("/async/status")).content)
        return status

    before = connections(redis)
    assert asyncio.run(visit())["pending_count"] == 8
    until(lambda: connections(redis) <= before + 4)


def test_a_lock_released_by_a_view(redis: Server) -> None:
    with runserver() as url:
        for path in ("unlock", "async/unlock"):
            redis.client.set("callback_queue:lock", "worker_1")
            assert get(f"{url}/{path}") == {"released": True}


def test_what_blocks_says_so_in_an_event_loop(redis: Server) -> None:
    async def ask() -> None:
        for ask_of_operators in OPERATORS:
            with pytest.raises(SynchronousOnlyOperation, match=rf"await a{ask_of_operators.__name__}$"):
                ask_of_operators()
        with pytest.raises(SynchronousOnlyOperation, match="await acallback_enqueue"):
            callback_enqueue("https://example.com/", 1)

    asyncio.run(ask())
    assert not redis.client.exists("callback_queue:pending")
