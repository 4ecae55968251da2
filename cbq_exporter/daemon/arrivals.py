"""Sees callbacks arrive without asking again and again."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from cbq_exporter.errors import StoreError
from cbq_exporter.services.dispatcher import Dispatcher

log = logging.getLogger(__name__)

BLOCK = 5.0  # seconds that one blocking command waits on the server
_LONGEST_PAUSE = 5.0


class Arrivals:
    """While the queue is idle, waits on the server for the next callback; then calls ``on_arrival`` once."""

    def __init__(self, dispatcher: Dispatcher, on_arrival: Callable[[], None]) -> None:
        self._dispatcher = dispatcher
        self._on_arrival = on_arrival
        self._idle = asyncio.Event()

    def expect(self, idle: bool) -> None:
        """Whether pending is believed to be empty and to be ours."""
        if idle:
            self._idle.set()
        else:
            self._idle.clear()

    async def run(self) -> None:
        """Runs until it is cancelled."""
        failures = 0
        while True:
            await self._idle.wait()
            try:
                arrived = await self._dispatcher.wait_for_arrival(BLOCK)
                failures = 0
            except StoreError:
                # The flush job meets the same trouble and tells of it.
                failures += 1
                await asyncio.sleep(min(_LONGEST_PAUSE, 0.1 * 2.0 ** min(failures, 20)) * random.uniform(0.5, 1.0))
                continue
            except Exception:
                log.exception("waiting for arrivals failed")
                await asyncio.sleep(_LONGEST_PAUSE)
                continue
            if arrived and self._idle.is_set():
                self._idle.clear()
                self._on_arrival()
