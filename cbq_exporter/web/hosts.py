"""Answers on this machine only to names of this machine.

A browser here may show a page from anywhere, and whoever sent it can let its name lead to 127.0.0.1 afterwards: to the
browser the daemon is then of the same origin, and the page reads what the daemon shows (DNS rebinding). Such a request
still has the page's name as its ``Host``.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

from aiohttp import web

from cbq_exporter.clock import SYSTEM_CLOCK, Clock
from cbq_exporter.config.models import Config
from cbq_exporter.services.few_lines import FewLines
from cbq_exporter.web import problems

log = logging.getLogger(__name__)

_MOST_NAME = 200  # characters
# Nobody can have a name below these in the public DNS; host.docker.internal is such a one.
_NOBODYS = frozenset({"internal", "local", "localhost"})

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Hosts:
    """``config`` gives the one that is in effect. With TLS nothing is asked: no foreign name has a certificate."""

    def __init__(self, config: Callable[[], Config], clock: Clock = SYSTEM_CLOCK) -> None:
        self._config = config
        self._own = socket.gethostname().lower()
        self._lines = FewLines(clock)

    @web.middleware
    async def middleware(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        settings = self._config().web
        if request.secure or not settings.is_loopback:
            return await handler(request)
        name = _name(request.headers.get("Host", ""))
        if name in (self._own, settings.host.lower()) or is_local(name):
            return await handler(request)
        bounds = self._lines.next()
        if bounds is not None:
            log.warning("a request for a host of another name was refused", extra={"host": name[:_MOST_NAME], **bounds})
        line = "This daemon is called localhost, as it only listens on this machine: a proxy has to send that as Host."
        return problems.refusal(request, 421, line)


def is_local(name: str) -> bool:
    """Whether no page from elsewhere can have been loaded by this name: an address, or nobody's in the public DNS."""
    last = name.rpartition(".")[2]
    if last == name or last in _NOBODYS or last.isdigit():
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _name(host: str) -> str:
    """Without the port, and as names are compared."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()
