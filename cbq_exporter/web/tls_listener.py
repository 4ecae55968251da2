"""Accepts connections that begin with TLS.

asyncio's own servers have one context for ever, and say nothing of a connection before its handshake is over. Here each
connection gets the context of its moment, and has its place with the guard from the first byte on.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Mapping
from typing import Any, Protocol

from cbq_exporter.errors import CbqError
from cbq_exporter.web.guard import Guard

log = logging.getLogger(__name__)

_GOODBYE = 2.0  # seconds for a client to answer the end of TLS
_PAUSE = 0.5  # seconds after the system had no means for another connection


class Security(Protocol):
    """What is needed of ``protection.Protection``."""

    def context(self) -> ssl.SSLContext:
        """For a new connection. Raises CbqError, having told the log, where there is none to be had."""

    def unwelcome(self, certificate: Mapping[str, Any] | None) -> str:
        """Why a client with this certificate is not let in; empty where it is."""


class TlsListener:
    """Accepts from ``sock`` from now on. ``handshake`` is how many seconds one may take."""

    def __init__(self, sock: socket.socket, guard: Guard, security: Security, *, handshake: float) -> None:
        self._sock = sock
        self._guard = guard
        self._security = security
        self._handshake = handshake
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._accepting = self._loop.create_task(self._accept(), name="accepting connections")

    def close(self) -> None:
        """Accept no more, and end the handshakes under way. Connections go on."""
        self._accepting.add_done_callback(lambda _: self._sock.close())
        for task in (self._accepting, *self._handshakes):
            task.cancel()

    async def _accept(self) -> None:
        while True:
            try:
                client, _ = await self._loop.sock_accept(self._sock)
            except ConnectionError:  # gone before it was accepted
                continue
            except OSError as error:
                log.error("a connection could not be accepted: %s", error.strerror or error)
                await asyncio.sleep(_PAUSE)
                continue
            task = self._loop.create_task(self._secure(client))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _secure(self, client: socket.socket) -> None:
        connection = self._guard(self._refuses)
        if not self._guard.opened(connection):
            client.close()
            return
        try:
            context = self._security.context()
        except CbqError:
            client.close()
            self._guard.closed(connection)
            return
        secured = False
        task = asyncio.current_task()
        assert task is not None
        connection.give_up = task.cancel
        try:
            client.setblocking(False)
            await self._loop.connect_accepted_socket(
                lambda: connection,
                client,  # the loop's from here on: it is closed where the handshake fails
                ssl=context,
                ssl_handshake_timeout=self._handshake,
                ssl_shutdown_timeout=_GOODBYE,
            )
            secured = True
        except OSError as error:  # the client's doing, all of ssl's errors included
            log.debug("a client's handshake failed: %s", error)
        except Exception:
            log.exception("a connection could not be encrypted")
        finally:
            if not secured:
                self._guard.closed(connection)

    def _refuses(self, transport: asyncio.Transport) -> str:
        return self._security.unwelcome(transport.get_extra_info("peercert"))
