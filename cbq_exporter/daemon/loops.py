"""Tasks that run until they are cancelled, and the noticing of one that has ended by itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)


class Loops:
    """They begin when they are added; ``stop`` ends all of them."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await work
            except Exception:
                log.exception("a loop of the daemon has ended", extra={"loop": name})

        task = asyncio.create_task(run(), name=name)
        # What is stopped before its first step was never awaited, and Python would say so on standard error.
        task.add_done_callback(lambda _: work.close())
        self._tasks.append(task)

    def ended(self) -> list[str]:
        """The names of those that do not run any more."""
        return [task.get_name() for task in self._tasks if task.done()]

    async def stop(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
