"""Four receivers, each on a port of its own, so that each is a destination of its own to the daemon."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from aiohttp import web

from cbq_exporter.cli.demo import story

NAMES = ("good", "flaky", "down", "gone")
_TAKES = 0.1  # seconds: with this, some sends are under way whenever the daemon is killed


@dataclass
class Receiver:
    """What one of them saw. ``requests`` by the status it answered."""

    name: str
    port: int = 0
    requests: Counter[int] = field(default_factory=Counter)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{self.name}"


class Receivers:
    """``delivered`` counts, by callback id, how often it was answered with 200."""

    def __init__(self, fraction: Callable[[], float]) -> None:
        self.all = {name: Receiver(name) for name in NAMES}
        self.delivered: Counter[int] = Counter()
        self._fraction = fraction
        self._chance = random.Random(1)
        self._runners: list[web.AppRunner] = []

    async def start(self) -> None:
        for receiver in self.all.values():
            app = web.Application(client_max_size=1024 * 1024)
            app[_RECEIVER] = receiver
            app.router.add_post("/{name}", self._answer)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            self._runners.append(runner)
            site = web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.1)
            await site.start()
            receiver.port = runner.addresses[0][1]

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        receiver = request.app[_RECEIVER]
        data: dict[str, Any] = await request.json()
        await asyncio.sleep(_TAKES)
        status = self._status(receiver.name)
        receiver.requests[status] += 1
        if status == HTTPStatus.OK:
            self.delivered[data["id"]] += 1
        return web.Response(status=status)

    def _status(self, name: str) -> HTTPStatus:
        fraction = self._fraction()
        if name == "flaky" and fraction >= story.FLAKY_FROM and self._chance.random() < 0.2:
            return HTTPStatus.INTERNAL_SERVER_ERROR
        if name == "down" and story.is_down(fraction):
            return HTTPStatus.SERVICE_UNAVAILABLE
        return HTTPStatus.GONE if name == "gone" else HTTPStatus.OK


_RECEIVER = web.AppKey("receiver", Receiver)
