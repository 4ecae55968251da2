"""Enters the event loop, turns signals into a stop, and prints where everything is."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

from cbq_exporter import logs
from cbq_exporter.clock import SYSTEM_CLOCK
from cbq_exporter.config import Config, Loaded
from cbq_exporter.daemon.application import Application
from cbq_exporter.daemon.systemd import Notifier

log = logging.getLogger(__name__)

# Whoever signals a whole group (timeout, some supervisors) reaches the daemon twice: make passes the signal on as well.
_ONE_WISH = 0.5  # seconds


def run(loaded: Loaded, *, debug: bool = False) -> int:
    """Run the daemon until a signal ends it; returns the exit code. Raises CbqError where it cannot start.

    ``debug`` logs everything, whatever the configuration says.
    """

    def set_log(config: Config) -> None:
        logs.configure("debug" if debug else config.log.level, config.log.format)

    set_log(loaded.config)
    return _run_loop(_serve(Application(loaded, SYSTEM_CLOCK, on_config=set_log), Notifier()), debug=debug)


def _run_loop(main: Coroutine[Any, Any, int], *, debug: bool) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main, debug=debug or None)
    return uvloop.run(main, debug=debug or None)


def _print(lines: Sequence[str]) -> None:
    """A full disk, or a reader that went away, does not stop a daemon."""
    try:
        os.write(sys.stdout.fileno(), "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        log.warning("what was printed could not be written", extra={"error": str(error)})


async def _serve(application: Application, notifier: Notifier) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    told_at = -_ONE_WISH

    def on_signal(number: int) -> None:
        nonlocal told_at
        if loop.time() - told_at < _ONE_WISH:
            return
        if stop.is_set():
            # The store keeps all that is not settled; leases run out and the callbacks are sent again.
            log.warning("a second signal: ending at once")
            application.abandon()
            os._exit(128 + number)
        log.info("stopping: sends in flight may finish", extra={"signal": signal.Signals(number).name})
        notifier.stopping()
        told_at = loop.time()
        stop.set()

    def on_hangup() -> None:
        if not stop.is_set():
            notifier.reloading()
        application.ask_to_reload(then=tell_ready)

    def tell_ready() -> None:
        if not stop.is_set():
            notifier.ready(application.summary())

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    # Not by the loop: it would give the signal its deadly meaning back at its end.
    signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(on_hangup))
    pinging = None
    try:
        await application.start()
        _print(application.welcome())
        tell_ready()
        pinging = asyncio.create_task(notifier.ping(application.not_healthy))
        await stop.wait()
    finally:
        await application.stop()
        if pinging is not None:
            pinging.cancel()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the process may take a moment to end
    log.info("stopped")
    return 0
