"""What ``web.config_file`` asks for, applied: TLS for connections, basic authentication and headers for requests.

The file is read anew for each request and for each connection, so that a change counts at once. One that cannot be
used lets nobody in until it is mended, and neither does one that is emptied: what protected the server when it started
(or at any time since) is taken away by a new start only, not by half a file while it is being written.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from cbq_exporter.errors import CbqError
from cbq_exporter.web import auth, problems, tls, web_config
from cbq_exporter.web.basic_auth import Busy, Passwords
from cbq_exporter.web.tls import Certificates
from cbq_exporter.web.web_config import RateLimitConfig, WebConfigFile

log = logging.getLogger(__name__)

_CHALLENGE = 'Basic realm="cbq-exporter", charset="UTF-8"'
_RETRY_AFTER = "1"  # seconds

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Protection:
    """That of the file at ``path``. Call ``check`` before anything else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: bytes | None = None
        self._file: WebConfigFile | None = None
        self._trouble: CbqError | None = None  # with what was read
        self._certificates = Certificates()
        self._passwords = Passwords()
        self._requests = _Bucket()
        self._is_checked = self._has_had_users = False
        self._said: dict[str, str] = {}
        self.is_tls = False

    def check(self) -> None:
        """Raises CbqError where the server cannot be protected as the file has it; decides on TLS once for all."""
        file = self._current()
        if file.tls_server_config is not None:
            self._certificates.context(file.tls_server_config)
            self.is_tls = True
        self._is_checked = True

    def add_to(self, app: web.Application) -> None:
        """Before the application is served; ahead of everything that answers requests."""
        app.middlewares.insert(0, self._middleware)
        app.on_response_prepare.append(self._add_headers)

    def close(self) -> None:
        self._passwords.close()

    # --- connections -----------------------------------------------------------------------------

    def context(self) -> ssl.SSLContext:
        """For a new connection. Raises CbqError, having told the log, where there is none to be had."""
        try:
            settings = self._current().tls_server_config
            assert settings is not None, "started with TLS"
            context = self._certificates.context(settings)
        except CbqError as error:
            self._say("connection", str(error))
            raise
        self._say("connection", "")
        return context

    def unwelcome(self, certificate: Mapping[str, Any] | None) -> str:
        """Why a client with this certificate is not let in; empty where it is."""
        settings = None if self._file is None else self._file.tls_server_config
        return "the web config cannot be used" if settings is None else tls.unwelcome(settings, certificate)

    # --- requests --------------------------------------------------------------------------------

    @web.middleware
    async def _middleware(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            file = self._current()
        except CbqError as error:
            self._say("request", str(error))
            return problems.refusal(request, 500, "The web config cannot be used; the daemon's log says why.")
        self._say("request", "")
        if not self._requests.take(file.rate_limit, time.monotonic()):
            return problems.refusal(request, 429, "More requests than rate_limit of the web config allows.")
        if not file.basic_auth_users or auth.asks_for_token(request):
            return await handler(request)
        given = request.headers.getall("Authorization", ())
        try:
            right = await self._passwords.are_right(given, file.basic_auth_users, request.remote or "")
        except Busy:
            line = "Too many passwords are being checked; try again."
            return problems.refusal(request, 503, line, {"Retry-After": _RETRY_AFTER})
        if right:
            return await handler(request)
        return problems.refusal(request, 401, "A user and a password are needed.", {"WWW-Authenticate": _CHALLENGE})

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        if self._file is not None:
            response.headers.update(self._file.http_server_config.headers)

    # --- the file --------------------------------------------------------------------------------

    def _current(self) -> WebConfigFile:
        """Raises CbqError."""
        try:
            content = web_config.content(self._path)
        except CbqError:
            self._read = self._file = None
            raise
        if content != self._read:
            self._read, self._file, self._trouble = content, None, None
            try:
                self._file = self._accepted(web_config.parse(content, self._path))
            except CbqError as error:
                self._trouble = error
        if self._file is None:
            assert self._trouble is not None
            raise self._trouble
        return self._file

    def _accepted(self, file: WebConfigFile) -> WebConfigFile:
        if self._has_had_users and not file.basic_auth_users:
            raise CbqError(f"{self._path}: basic_auth_users are gone: start the daemon anew to let everybody in")
        if self.is_tls and file.tls_server_config is None:
            raise CbqError(f"{self._path}: tls_server_config is gone: start the daemon anew to serve unencrypted")
        if self._is_checked and not self.is_tls and file.tls_server_config is not None:
            log.warning("%s: tls_server_config takes effect when the daemon is started anew", self._path)
        self._has_had_users = self._has_had_users or bool(file.basic_auth_users)
        return file

    def _say(self, what: str, trouble: str) -> None:
        """Once for each trouble, and once when it is over."""
        said = self._said.get(what, "")
        if trouble and trouble != said:
            log.error("the web config cannot be used, so every %s is refused: %s", what, trouble)
        elif not trouble and said:
            log.info("the web config can be used again for every %s", what)
        self._said[what] = trouble


class _Bucket:
    """Tokens for requests: one each ``interval``, at most ``burst`` of them."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._at = float("-inf")  # monotonic

    def take(self, limit: RateLimitConfig, now: float) -> bool:
        if not limit.interval:
            return True
        self._tokens = min(float(limit.burst), self._tokens + (now - self._at) / limit.interval)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
