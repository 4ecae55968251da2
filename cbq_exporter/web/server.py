"""The HTTP server's sockets: bind, serve, stop."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from contextlib import suppress
from pathlib import Path

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from cbq_exporter.errors import CbqError
from cbq_exporter.web.guard import Guard, Limits
from cbq_exporter.web.protection import Protection
from cbq_exporter.web.protocol import Protocol
from cbq_exporter.web.tls_listener import TlsListener

_KEEP_ALIVE = 75.0  # seconds: longer than the usual scrape intervals
_LINGER = 1.0  # seconds for the rest of a body that nobody wants
_STOP_GRACE = 3.0  # seconds for answers under way when stopping
_BACKLOG = 512
_ABSENT = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_REACHABLE_AS = {"": "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (compared, not bound)


class WebServer:
    """Serves ``app``; an empty ``host`` is all interfaces, port 0 takes a free one.

    ``config_file`` is a Prometheus web config: TLS and basic authentication.
    """

    def __init__(
        self,
        app: web.Application,
        host: str,
        port: int,
        *,
        config_file: Path | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._app = app
        self._host = host
        self._port = port
        self._limits = limits or Limits()
        self._protection = None if config_file is None else Protection(config_file)
        self._runner: web.AppRunner | None = None
        self._guard: Guard | None = None
        self._servers: list[asyncio.Server | TlsListener] = []

    @property
    def url(self) -> str:
        """With the real port, once started, and a host that a client on this machine can use."""
        host = _REACHABLE_AS.get(self._host, self._host)
        scheme = "https" if self._protection is not None and self._protection.is_tls else "http"
        return f"{scheme}://[{host}]:{self._port}" if ":" in host else f"{scheme}://{host}:{self._port}"

    async def start(self) -> None:
        """Raises CbqError, in one line each, where the web config cannot be used or the address cannot be had."""
        if self._protection is not None:
            self._protection.check()
            self._protection.add_to(self._app)
        sockets = await self._bind()
        self._guard = guard = Guard(self._limits, self._protocol)
        self._app.middlewares.insert(0, guard.middleware)
        self._runner = web.AppRunner(self._app, shutdown_timeout=_STOP_GRACE)
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        for sock in sockets:
            if self._protection is not None and self._protection.is_tls:
                self._servers.append(TlsListener(sock, guard, self._protection, handshake=self._limits.head))
            else:
                self._servers.append(await loop.create_server(guard, sock=sock, backlog=_BACKLOG))

    async def stop(self) -> None:
        """Close the sockets, let answers under way finish for a moment, end all connections."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        if self._protection is not None:
            self._protection.close()

    def _protocol(self) -> asyncio.Protocol:
        assert self._runner is not None
        assert self._runner.server is not None
        return Protocol(
            self._runner.server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=_KEEP_ALIVE,
            lingering_time=_LINGER,
            access_log=None,  # type: ignore[arg-type] # which aiohttp takes for none
            logger=_logger(),
        )

    async def _bind(self) -> list[socket.socket]:
        """One socket for each address of the host that this machine has, all on the same port."""
        bound: list[socket.socket] = []
        absent: OSError | None = None
        try:
            for family, address in await self._addresses():
                try:
                    bound.append(_listening(family, address, self._port))
                except OSError as error:
                    # A name often has an IPv6 address on a machine without IPv6.
                    if error.errno not in _ABSENT:
                        raise
                    absent = error
                    continue
                self._port = bound[-1].getsockname()[1]
                if not self._host:
                    break
            if absent is not None and not bound:
                raise absent
        except OSError as error:
            for sock in bound:
                sock.close()
            raise CbqError(self._explain(error)) from error
        return bound

    async def _addresses(self) -> list[tuple[socket.AddressFamily, str]]:
        """Of all interfaces: the first one that can be had is enough, because IPv6's includes IPv4."""
        if not self._host:
            return [(socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")]  # noqa: S104 (as configured)
        found = await asyncio.get_running_loop().getaddrinfo(self._host, None, type=socket.SOCK_STREAM)
        return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))

    def _explain(self, error: OSError) -> str:
        where = f"cannot serve on web.listen_address {self._host}:{self._port}"
        if error.errno == errno.EADDRINUSE:
            return f"{where}: another program has it: stop that one or choose another port (0 takes a free one)"
        if error.errno == errno.EACCES:
            return f"{where}: no permission for this port: choose one from 1024 up"
        if error.errno == errno.EADDRNOTAVAIL:
            return f"{where}: this machine does not have that address: use one of its own, or 127.0.0.1"
        if isinstance(error, socket.gaierror):
            return f"{where}: the host name cannot be resolved: use an IP address"
        return f"{where}: {error.strerror or error}"


def _listening(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # All interfaces means IPv4 too; a single address is only itself.
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address != "::")
        sock.bind((address, port))
        # Two sockets may be bound to one port until one of them listens: only this tells.
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _logger() -> logging.Logger:
    """aiohttp's own errors, without those that a client causes with bytes that are no request."""
    logger = logging.getLogger("cbq_exporter.web.http")
    if not logger.filters:
        logger.addFilter(_is_ours)
    return logger


def _is_ours(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))
