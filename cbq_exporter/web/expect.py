"""The ``Expect`` header. aiohttp's own answer to an unknown one quotes it, and fails where it is not UTF-8."""

from __future__ import annotations

from aiohttp import web
from aiohttp.abc import AbstractMatchInfo
from aiohttp.http import HttpVersion11


async def answer(request: web.Request) -> None:
    """What every route has as its ``expect_handler``."""
    if request.version != HttpVersion11:
        return
    if not _is_usual(request):
        raise web.HTTPExpectationFailed
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the answer itself has not begun


def guard_other_paths(app: web.Application) -> None:
    """The same where there is no route, or not for the method. To be called after all routes are added."""
    app.router.register_resource(_Unusual("/{path:.*}"))


def _is_usual(request: web.Request) -> bool:
    return request.headers.get("Expect", "").lower() == "100-continue"


class _Unusual(web.DynamicResource):
    """Has a route for nothing but an unknown ``Expect``."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.add_route("*", _never, expect_handler=answer)

    async def resolve(self, request: web.Request) -> tuple[AbstractMatchInfo | None, set[str]]:  # type: ignore[override]
        if "Expect" not in request.headers or _is_usual(request) or request.version != HttpVersion11:
            return None, set()
        return await super().resolve(request)


async def _never(request: web.Request) -> web.StreamResponse:
    raise web.HTTPNotFound  # the expectation was refused before
