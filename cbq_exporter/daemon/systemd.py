"""What the daemon tells a service manager that asks for it: sd_notify, which systemd names by NOTIFY_SOCKET.

Without that variable nothing is sent. Nothing is ever waited for, and an error in telling stops nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

_PINGS = 3  # so many within the time after which systemd takes the daemon for dead


class Notifier:
    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # a name without a file
            self._address = f"\0{self._address[1:]}"
        self.ping_every = _ping_every(environ) if self._address else None
        """Seconds; None where nobody watches for pings."""

    def ready(self, status: str) -> None:
        """Also the end of what ``reloading`` began."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._tell("STOPPING=1", "STATUS=sends in flight may finish")

    async def ping(self, troubles: Callable[[], list[str]]) -> None:
        """Say again and again that the daemon lives, as long as it has no ``troubles``. Runs until it is cancelled."""
        silent = False
        while self.ping_every is not None:
            found = troubles()
            if not found:
                self._tell("WATCHDOG=1")
            elif not silent:
                log.error("the service manager is not told any more that all is well", extra={"troubles": found})
            silent = bool(found)
            await asyncio.sleep(self.ping_every)

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.warning("the service manager cannot be told", extra={"what": lines[0], "error": str(error)})


def _ping_every(environ: Mapping[str, str]) -> float | None:
    """From WATCHDOG_USEC, which may be meant for another process: WATCHDOG_PID says for which."""
    microseconds = environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1e6 / _PINGS if int(microseconds) else None
