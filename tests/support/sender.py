"""Drives one engine from a test: send, wait with a deadline, and hold it to one exchange a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_network
from typing import Any, Self

from cbq_exporter.clock import SYSTEM_CLOCK
from cbq_exporter.delivery.egress import EgressPolicy
from cbq_exporter.delivery.engine import Engine, Exchange, Request

LOOPBACK = EgressPolicy((ip_network("127.0.0.0/8"), ip_network("::1/128")))


class Sender:
    """Use as a context manager: leaving it closes the engine and checks the count of exchanges."""

    def __init__(self, egress: EgressPolicy = LOOPBACK, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.done: list[Exchange] = []
        self.submitted = 0
        self._arrived = asyncio.Event()
        self.engine = Engine(egress=egress, on_done=self._on_done, loop=self.loop, clock=SYSTEM_CLOCK, **options)

    def _on_done(self, exchanges: list[Exchange]) -> None:
        self.done.extend(exchanges)
        self._arrived.set()

    def request(self, url: str, body: bytes = b"{}", **other: Any) -> Request:
        values: dict[str, Any] = {
            "headers": ["Content-Type: application/json"],
            "timeout": 5.0,
            "connect_timeout": 5.0,
            "not_after": SYSTEM_CLOCK.monotonic() + 60.0,
            "tag": self.submitted,
        }
        return Request(url, body, **(values | other))

    def submit(self, requests: Sequence[Request]) -> None:
        """Hand over; the tags are made unique."""
        for request in requests:
            request.tag = self.submitted
            self.submitted += 1
        self.loop.run_until_complete(self._submit(list(requests)))

    async def _submit(self, requests: list[Request]) -> None:
        self.engine.submit(requests)

    def wait(self, until: Callable[[], bool] | None = None, timeout: float = 20.0) -> None:
        """Run the loop until ``until`` (all reported, by default)."""
        condition = until or (lambda: len(self.done) >= self.submitted)
        deadline = time.monotonic() + timeout

        async def waiting() -> None:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{len(self.done)} of {self.submitted} exchanges")
                self._arrived.clear()
                try:
                    await asyncio.wait_for(self._arrived.wait(), min(left, 0.05 if until else left))
                except TimeoutError:
                    continue

        self.loop.run_until_complete(waiting())

    def send(self, requests: Sequence[Request], timeout: float = 20.0) -> list[Exchange]:
        """Submit and wait; the exchanges in the requests' order."""
        first = self.submitted
        self.submit(requests)
        self.wait(timeout=timeout)
        return sorted((done for done in self.done if done.tag >= first), key=lambda done: int(done.tag))

    def post(self, url: str, body: bytes = b"{}", **other: Any) -> Exchange:
        return self.send([self.request(url, body, **other)])[0]

    def close(self, grace: float = 0.0) -> None:
        self.loop.run_until_complete(asyncio.wait_for(self.engine.close(grace), grace + 30))

    def __enter__(self) -> Self:
        self.engine.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.close()
            if kind is None:
                assert sorted(done.tag for done in self.done) == list(range(self.submitted))
                assert self.engine.outstanding == 0
                assert self.engine.in_flight == 0
        finally:
            self.loop.close()
