"""What is served over HTTP. What is here changes nothing and answers GET and HEAD only; see ``api`` for the rest."""

from __future__ import annotations

import asyncio
import gzip
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
from aiohttp import web

from cbq_exporter.config.models import Config
from cbq_exporter.metrics.exposition import Exposition, choose
from cbq_exporter.metrics.instruments import Instruments
from cbq_exporter.model import Snapshot
from cbq_exporter.web import alerts, expect, openapi, problems
from cbq_exporter.web.api import MOST_BODY
from cbq_exporter.web.guesses import Guesses
from cbq_exporter.web.headers import HEADERS
from cbq_exporter.web.hosts import Hosts
from cbq_exporter.web.page import page
from cbq_exporter.web.status import document

log = logging.getLogger(__name__)

DEADLINE = 10.0  # seconds that reading may take where the client does not say
_MOST_DEADLINE = 60.0
_MARGIN = 0.5  # seconds kept back of what the scraper waits, for rendering and the way
_LEAST_DEADLINE = 0.1
_GRACE = 0.25  # seconds a read may overrun before it is given up from outside

_PATHS = "/metrics, /-/healthy, /-/ready, /api/v1/status, /api/v1/openapi.json and /"

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Backend(Protocol):
    """What the daemon lends to the web server. The reasons are one line each; none means good."""

    @property
    def config(self) -> Config: ...

    @property
    def instruments(self) -> Instruments: ...

    async def snapshot(self, timeout: float) -> Snapshot:
        """Within ``timeout`` seconds; a Redis that is down is a snapshot too."""

    def not_ready(self) -> list[str]: ...

    def not_healthy(self) -> list[str]: ...


class Routes(Protocol):
    """What can be changed over HTTP, such as ``api.Api``."""

    def add_to(self, app: web.Application) -> None: ...


def create_app(backend: Backend, *changing: Routes) -> web.Application:
    """Without ``changing`` nothing can be changed over HTTP."""
    handlers = _Handlers(backend)
    hosts = Hosts(lambda: backend.config)
    app = web.Application(middlewares=[hosts.middleware, _answer_errors], client_max_size=MOST_BODY)
    app.on_response_prepare.append(_add_headers)
    app.on_response_prepare.append(Guesses().note)
    for path, handler in (
        ("/", handlers.page),
        ("/metrics", handlers.metrics),
        ("/-/healthy", handlers.healthy),
        ("/-/ready", handlers.ready),
        ("/api/v1/status", handlers.status),
        ("/api/v1/openapi.json", handlers.openapi),
    ):
        app.router.add_get(path, handler, expect_handler=expect.answer)
    for routes in changing:
        routes.add_to(app)
    expect.guard_other_paths(app)
    return app


def deadline(header: str | None) -> float:
    """Seconds that reading may take, by what the scraper says that it waits."""
    try:
        waits = float(header or "")
    except ValueError:
        return DEADLINE
    if not math.isfinite(waits) or waits <= 0:
        return DEADLINE
    return min(max(waits - _MARGIN, _LEAST_DEADLINE), _MOST_DEADLINE)


class _Handlers:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._exposition = Exposition(backend.instruments)
        self._rendering: dict[tuple[str, bool], tuple[Snapshot, asyncio.Task[bytes]]] = {}

    async def metrics(self, request: web.Request) -> web.Response:
        snapshot = await self._snapshot(deadline(request.headers.get("X-Prometheus-Scrape-Timeout-Seconds")))
        content_type = choose(",".join(request.headers.getall("Accept", ())))
        packed = accepts_gzip(",".join(request.headers.getall("Accept-Encoding", ())))
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        if packed:
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=await self._rendered(snapshot, content_type, packed), headers=headers)

    async def healthy(self, request: web.Request) -> web.Response:
        return _verdict("healthy", self._backend.not_healthy())

    async def ready(self, request: web.Request) -> web.Response:
        return _verdict("ready", self._backend.not_ready())

    async def status(self, request: web.Request) -> web.Response:
        body = msgspec.json.encode(document(await self._snapshot(DEADLINE)))
        return web.Response(body=body, content_type="application/json", charset="utf-8")

    async def openapi(self, request: web.Request) -> web.Response:
        return web.Response(body=openapi.json().encode(), content_type="application/json", charset="utf-8")

    async def page(self, request: web.Request) -> web.Response:
        snapshot = await self._snapshot(DEADLINE)
        html = page(snapshot, not_healthy=self._backend.not_healthy(), not_ready=self._backend.not_ready())
        return web.Response(body=html.encode("utf-8", "replace"), content_type="text/html", charset="utf-8")

    async def _snapshot(self, seconds: float) -> Snapshot:
        """The backend's, or one that says why there is none: a scrape is always answered in time."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(seconds + _GRACE):
                return await self._backend.snapshot(seconds)
        except TimeoutError:
            error = f"reading took longer than {seconds:g} s"
        except Exception:
            log.exception("a snapshot could not be made")
            error = "a snapshot could not be made: see the log"
        return Snapshot(up=False, at=0.0, duration=time.monotonic() - started, queues=(), error=error)

    async def _rendered(self, snapshot: Snapshot, content_type: str, packed: bool) -> bytes:
        """Off the event loop, and shared by overlapping scrapes, where the series are so many that it takes long."""
        if self._exposition.is_quick(content_type):
            return self._render(snapshot, content_type, packed)  # going to a thread and back would take longer
        key = (content_type, packed)
        of, task = self._rendering.get(key, (None, None))
        if of is not snapshot or task is None:
            task = asyncio.create_task(asyncio.to_thread(self._render, snapshot, content_type, packed))
            self._rendering[key] = (snapshot, task)
            task.add_done_callback(lambda done: self._forget(key, done))
        return await asyncio.shield(task)

    def _render(self, snapshot: Snapshot, content_type: str, packed: bool) -> bytes:
        body = self._exposition.body(snapshot, content_type)
        return gzip.compress(body, compresslevel=1, mtime=0) if packed else body

    def _forget(self, key: tuple[str, bool], done: asyncio.Task[bytes]) -> None:
        if self._rendering.get(key, (None, None))[1] is done:
            del self._rendering[key]


def accepts_gzip(header: str) -> bool:
    for one in header.lower().split(","):
        name, *parameters = (part.strip() for part in one.split(";"))
        if name == "gzip":
            return not any(parameter.startswith("q=") and not parameter[2:].strip("0.") for parameter in parameters)
    return False


def _verdict(good: str, reasons: list[str]) -> web.Response:
    lines = [" ".join(reason.split()) for reason in reasons] or [good]
    body = ("\n".join(lines) + "\n").encode("utf-8", "replace")
    return web.Response(body=body, status=503 if reasons else 200, content_type="text/plain", charset="utf-8")


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


@web.middleware
async def _answer_errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Short texts for whoever asks wrongly; a fault of ours is logged and says nothing about itself."""
    length = request.content_length
    if length is not None and length > MOST_BODY and request.path != alerts.PATH:  # that one looks itself
        refused = problems.refusal(request, 413, f"The body may have {MOST_BODY} bytes at most.")
        refused.force_close()
        return refused
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return problems.refusal(request, 405, f"Allowed here: {allowed}.", {"Allow": allowed})
    except web.HTTPNotFound:
        return problems.refusal(request, 404, f"Nothing here. There are {_PATHS}.")
    except web.HTTPException as error:
        return problems.refusal(request, error.status, error.reason)
    except Exception:
        log.exception("a request failed", extra={"path": request.path[:200]})
        return problems.refusal(request, 500, "An error of the server's own; it is in the log.")
