"""What is no request is answered as requests are, with no more than that it is none."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from cbq_exporter.web.headers import HEADERS

_NO_REQUEST = "This is no request that is understood here.\n"


class Protocol(RequestHandler):
    """aiohttp's own answers name it, its version and Python's, quote what was sent, and lack our headers."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        super().handle_error(request, status, exc, message)  # for the log, and where an answer has begun
        line = _NO_REQUEST if status == HTTPStatus.BAD_REQUEST else f"{HTTPStatus(status).phrase}.\n"
        answer = web.Response(text=line, status=status, headers=HEADERS)
        answer.force_close()
        return answer
