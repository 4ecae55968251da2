"""Tells the log of whoever sends a token or a password that is wrong: else nobody would see that they are guessed."""

from __future__ import annotations

import logging

from aiohttp import web

from cbq_exporter.clock import SYSTEM_CLOCK, Clock
from cbq_exporter.services.few_lines import FewLines

log = logging.getLogger(__name__)

_MOST_PATH = 200  # characters


class Guesses:
    """A request without any is no guess: browsers ask so first."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._lines = FewLines(clock)

    async def note(self, request: web.Request, response: web.StreamResponse) -> None:
        """To be called for each answer, just before it is sent."""
        if response.status != 401 or "Authorization" not in request.headers:
            return
        bounds = self._lines.next()
        if bounds is not None:
            asked = {"address": request.remote or "", "method": request.method, "path": request.path[:_MOST_PATH]}
            log.warning("a wrong token or password was refused", extra={**asked, **bounds})
