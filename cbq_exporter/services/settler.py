"""Brings the ends of claims to the store: many at once, again and again until it has taken them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence

from cbq_exporter.errors import StoreError
from cbq_exporter.model import Settled, Settlement
from cbq_exporter.store.queue import Queue

log = logging.getLogger(__name__)

_MOST_AT_ONCE = 500
_ENOUGH = 100
_GATHERED_FOR = 0.002  # seconds that fewer than enough wait for more: under load a command for many, not for few
_FIRST_PAUSE = 0.1  # seconds, doubled up to:
_LONGEST_PAUSE = 5.0


class Settler:
    """``on_settled`` is told what came of each, in the order of ``add``."""

    def __init__(
        self, name: str, queue: Queue, on_settled: Callable[[Sequence[Settlement], Sequence[Settled]], None]
    ) -> None:
        self._name = name
        self._queue = queue
        self._on_settled = on_settled
        self._waiting: deque[Settlement] = deque()
        self._something = asyncio.Event()
        self._nothing = asyncio.Event()
        self._nothing.set()
        self._task: asyncio.Task[None] | None = None
        self.trouble: StoreError | None = None  # why the store does not take them now

    def __len__(self) -> int:
        return len(self._waiting)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"settle:{self._name}")

    @property
    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done()

    def add(self, settlements: Sequence[Settlement]) -> None:
        if settlements:
            self._waiting.extend(settlements)
            self._nothing.clear()
            self._something.set()

    async def close(self, timeout: float) -> int:
        """Try for ``timeout`` seconds to bring in what is left; returns how many could not be brought in.

        Their leases run out, and recovery brings them back.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._nothing.wait()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        return len(self._waiting)

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        unsure: set[str] = set()  # leases of calls that may have been carried out without our hearing of it
        while True:
            await self._something.wait()
            if len(self._waiting) < _ENOUGH:
                await asyncio.sleep(_GATHERED_FOR)
            batch = [self._waiting[i] for i in range(min(len(self._waiting), _MOST_AT_ONCE))]
            try:
                settled = await self._queue.settle(batch)
            except StoreError as error:
                if self.trouble is None:
                    log.warning("ends of sends cannot be stored", extra={"queue": self._name, "error": str(error)})
                self.trouble = error
                unsure.update(one.claimed.lease for one in batch)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            except Exception:
                log.exception("settling failed", extra={"queue": self._name})
                unsure.update(one.claimed.lease for one in batch)
                await asyncio.sleep(_LONGEST_PAUSE)
                continue
            if unsure:
                # Then this call found no lease, and the work was done all the same.
                settled = [
                    Settled.DONE if one is Settled.FENCED and settlement.claimed.lease in unsure else one
                    for settlement, one in zip(batch, settled, strict=False)
                ]
                unsure.difference_update(one.claimed.lease for one in batch[: len(settled)])
            pause, self.trouble = _FIRST_PAUSE, None
            self._take_off(batch[: len(settled)], settled)

    def _take_off(self, done: Sequence[Settlement], settled: Sequence[Settled]) -> None:
        for _ in done:
            self._waiting.popleft()
        if not self._waiting:
            self._something.clear()
            self._nothing.set()
        try:
            self._on_settled(done, settled)
        except Exception:
            log.exception("what was settled could not be counted", extra={"queue": self._name})
