"""Requests made by a Python function of the operator's: see ``cbq_exporter.rendering``."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Mapping

from cbq_exporter.delivery import headers
from cbq_exporter.delivery.render_errors import RenderError
from cbq_exporter.logs import printable
from cbq_exporter.rendering import Attempt, Callback, Request

log = logging.getLogger(__name__)

_SLOW = 0.05  # seconds that one callback may keep the event loop from all others
_SAY_EVERY = 60.0  # seconds between two warnings of one renderer
_LONGEST_DETAIL = 200  # characters


class Renderer:
    """``place`` is ``package.module:function``. Raises ValueError with one line where that cannot be imported."""

    def __init__(self, place: str) -> None:
        self._place = place
        module, _, name = place.partition(":")
        try:
            function = getattr(importlib.import_module(module), name)
        except (Exception, SystemExit) as error:  # whatever the operator's code raises
            raise ValueError(f"cannot be imported: {_told(error)}") from error
        if not callable(function):
            raise ValueError(f"{name} is not a function")
        self._render: Callable[[Callback, Attempt], Request] = function
        self._said_monotonic = float("-inf")

    def render(self, callback: Callback, attempt: Attempt) -> tuple[bytes, Mapping[str, str]]:
        """The body, and header lines by their names in lower case. Raises RenderError."""
        began = time.perf_counter()
        try:
            made = self._render(callback, attempt)
        except (Exception, SystemExit) as error:
            raise RenderError(f"{self._place}: {_told(error)}") from error
        self._look_at(time.perf_counter() - began)
        if not isinstance(made, Request) or not isinstance(made.body, bytes):
            raise RenderError(f"{self._place} did not return a cbq_exporter.rendering.Request with bytes as its body")
        try:
            return made.body, {name.lower(): headers.line(name, value) for name, value in made.headers.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise RenderError(f"{self._place}: {_told(error)}") from None

    def _look_at(self, seconds: float) -> None:
        now = time.monotonic()
        if seconds > _SLOW and now - self._said_monotonic > _SAY_EVERY:
            self._said_monotonic = now
            log.warning(
                "a renderer is slow: everything else waits for it",
                extra={"renderer": self._place, "seconds": round(seconds, 3)},
            )


def _told(error: BaseException) -> str:
    return printable(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__, _LONGEST_DETAIL)
