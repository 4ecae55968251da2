"""A web server in a thread of its own, with a stand-in for the daemon behind it."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cbq_exporter.config.models import Config
from cbq_exporter.metrics.instruments import Instruments
from cbq_exporter.model import Snapshot
from cbq_exporter.web.app import Routes, create_app
from cbq_exporter.web.guard import Limits
from cbq_exporter.web.server import WebServer
from tests.metrics.snapshots import MIXED, counted


@dataclass
class FakeBackend:
    """Shows ``shown`` (a snapshot, or a function that makes one or raises); notes the deadlines it was given."""

    shown: Snapshot | Callable[[], Snapshot] = MIXED
    hangs: bool = False
    reasons_not_ready: list[str] = field(default_factory=list)
    reasons_not_healthy: list[str] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)
    config: Config = field(default_factory=Config)
    instruments: Instruments = field(default_factory=counted)

    async def snapshot(self, timeout: float) -> Snapshot:
        self.deadlines.append(timeout)
        if self.hangs:
            await asyncio.Event().wait()
        return self.shown if isinstance(self.shown, Snapshot) else self.shown()

    def not_ready(self) -> list[str]:
        return self.reasons_not_ready

    def not_healthy(self) -> list[str]:
        return self.reasons_not_healthy


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class Serving:
    """``run`` runs a coroutine to its end in the server's loop."""

    backend: FakeBackend
    url: str
    port: int
    run: Callable[[Any], Any]

    def ask(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> Answer:
        """Header names are written with underscores."""
        return self.ask_over(None, path, method, body, **headers)

    def ask_over(
        self, tls: ssl.SSLContext | None, path: str, method: str = "GET", body: Any = None, **headers: str
    ) -> Answer:
        """Over TLS where there is a context; the server is called localhost then."""
        if tls is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        else:
            connection = http.client.HTTPSConnection("localhost", self.port, timeout=20, context=tls)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body=body, headers=named)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(20)
        sock.connect(("127.0.0.1", self.port))
        return sock


@contextmanager
def serving(
    backend: FakeBackend,
    limits: Limits | None = None,
    new_loop: Callable[[], Any] = asyncio.new_event_loop,
    routes: Sequence[Routes] = (),
    config_file: Path | None = None,
) -> Iterator[Serving]:
    loop = new_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(20)

    try:
        server = WebServer(create_app(backend, *routes), "127.0.0.1", 0, config_file=config_file, limits=limits)
        run(server.start())
        try:
            yield Serving(backend, server.url, int(server.url.rpartition(":")[2]), run)
        finally:
            run(server.stop())
    finally:
        run(loop.shutdown_default_executor())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()
