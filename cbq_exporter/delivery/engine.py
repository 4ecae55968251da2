"""The sending engine, as the event loop sees it: so many requests under way, the others wait here.

Where requests end fast, a few more than may be open are handed over, and wait for an open one's end (``pacing.ahead``).

What it promises. Each submitted request comes back as exactly one ``Exchange``, on the event loop, in
batches. libcurl repeats a request by itself in one case: a kept connection turned out to be dead before
any byte of an answer came. The receiver may see such a request twice, as delivery is at least once. Where five
of them were, it goes once more, on a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from cbq_exporter.clock import Clock
from cbq_exporter.delivery import pacing
from cbq_exporter.delivery.authorities import default_ca_file
from cbq_exporter.delivery.egress import EgressPolicy
from cbq_exporter.delivery.exchange import SAMPLE_BYTES, Exchange, Request, cancelled
from cbq_exporter.delivery.own_process import OwnProcess
from cbq_exporter.delivery.own_thread import OwnThread
from cbq_exporter.delivery.proxying import Proxy
from cbq_exporter.delivery.surroundings import SendingOptions

_MEASURED_FOR = 0.25  # seconds, or until:
_MANY = 1000  # requests have ended

__all__ = ["SAMPLE_BYTES", "Engine", "Exchange", "Request", "default_ca_file"]


class Engine:
    """Sends requests for one egress policy, from a thread, or from a process of its own with ``own_process``.

    Kept connections are not judged again, so engines with different policies share nothing.
    """

    def __init__(
        self,
        *,
        egress: EgressPolicy,
        on_done: Callable[[list[Exchange]], None],
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        max_response_bytes: int = 64 * 1024,
        ca_file: str | None = None,
        user_agent: str = "cbq-exporter",
        max_connections: int = 256,
        idle_connections: int = 0,
        own_process: bool = False,
        proxy: Proxy | None = None,
    ) -> None:
        options = SendingOptions(
            allow=tuple(map(str, egress.allow)),
            ports=None if egress.ports is None else tuple(egress.ports),
            proxy=proxy,
            max_response_bytes=max_response_bytes,
            ca_file=ca_file or default_ca_file(),
            user_agent=user_agent,
            max_connections=max_connections,
            idle_connections=idle_connections,
        )
        self._carrier: OwnThread | OwnProcess
        if own_process:
            self._carrier = OwnProcess(options, self._on_done, loop)
        else:
            self._carrier = OwnThread(options, self._on_done, loop, clock)
        self._max_connections = self._most = max_connections
        self._ended = 0  # since
        self._measured_monotonic = 0.0
        self._clock = clock
        self._report = on_done
        self._loop = loop
        self._waiting: deque[Request] = deque()
        self._unsent: list[Exchange] = []  # to be reported
        self._outstanding = self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._started = self._closed = False

    @property
    def in_flight(self) -> int:
        """Requests that have been started and not reported yet."""
        return self._in_flight

    @property
    def outstanding(self) -> int:
        """Requests submitted and not yet reported to ``on_done``."""
        return self._outstanding

    def start(self) -> None:
        if self._started:
            raise RuntimeError("the engine has been started already")
        self._started = True
        self._carrier.start()

    def submit(self, requests: list[Request]) -> None:
        """Hand over a batch; it begins at once, as far as connections may be opened."""
        if not requests:
            return
        self._outstanding += len(requests)
        self._idle.clear()
        self._waiting.extend(requests)
        if self._closed or not self._started:
            self.cancel_unstarted()
        else:
            self._hand_over()

    def cancel_unstarted(self) -> None:
        """What has not been started comes back as CANCELLED; what is on its way goes on."""
        if self._in_flight:
            self._carrier.cancel_unstarted()
        if not self._waiting:
            return
        if not self._unsent:
            self._loop.call_soon(self._report_unsent)
        self._unsent += [cancelled(request.tag) for request in self._waiting]
        self._waiting.clear()

    async def close(self, grace: float) -> None:
        """Cancel what is not started, give the rest ``grace`` seconds, cut that off too, end thread or process."""
        if not self._started or self._closed:
            return
        self._closed = True
        self.cancel_unstarted()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace)
        await self._carrier.stop()
        self._report_unsent()

    def _hand_over(self) -> None:
        waiting, room = self._waiting, self._most - self._in_flight
        if room <= 0 or not waiting:
            return
        if len(waiting) <= room:
            ready = list(waiting)
            waiting.clear()
        else:
            ready = [waiting.popleft() for _ in range(room)]
        self._in_flight += len(ready)
        self._carrier.submit(ready)

    def _on_done(self, exchanges: list[Exchange]) -> None:
        self._in_flight -= len(exchanges)
        self._measure(len(exchanges))
        self._hand_over()
        self._count_out(exchanges)

    def _measure(self, ended: int) -> None:
        self._ended += ended
        now = self._clock.monotonic()
        elapsed = now - self._measured_monotonic
        if elapsed >= _MEASURED_FOR or (self._ended >= _MANY and elapsed > 0):
            self._most = self._max_connections + pacing.ahead(self._ended / elapsed, self._max_connections)
            self._ended, self._measured_monotonic = 0, now

    def _report_unsent(self) -> None:
        if self._unsent:
            unsent, self._unsent = self._unsent, []
            self._count_out(unsent)

    def _count_out(self, exchanges: list[Exchange]) -> None:
        self._outstanding -= len(exchanges)
        if self._outstanding == 0:
            self._idle.set()
        self._report(exchanges)
