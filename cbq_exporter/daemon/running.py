"""Enters the event loop, turns signals into a stop, and prints where everything is."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from cbq_exporter.clock import SYSTEM_CLOCK
from cbq_exporter.config import Loaded
from cbq_exporter.daemon.application import Application

log = logging.getLogger(__name__)


def run(loaded: Loaded, *, debug: bool = False) -> int:
    """Run the daemon until a signal ends it; returns the exit code. Raises CbqError where it cannot start."""
    return _run_loop(_serve(loaded), debug=debug)


def _run_loop(main: Coroutine[Any, Any, int], *, debug: bool) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main, debug=debug or None)
    return uvloop.run(main, debug=debug or None)


async def _serve(loaded: Loaded) -> int:
    application = Application(loaded, SYSTEM_CLOCK)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            # The store keeps all that is not settled; leases run out and the callbacks are sent again.
            log.warning("a second signal: ending at once")
            application.abandon()
            os._exit(128 + number)
        log.info("stopping: sends in flight may finish", extra={"signal": signal.Signals(number).name})
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await application.start()
        for line in application.welcome():
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        await stop.wait()
    finally:
        await application.stop()
    log.info("stopped")
    return 0
