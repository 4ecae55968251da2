"""What goes into the engine and what comes out of it."""

from __future__ import annotations

import errno
from typing import Any

import msgspec

from cbq_exporter.logs import printable
from cbq_exporter.model import FailureKind

SAMPLE_BYTES = 1024  # of an answer, where no more is asked for
_LONGEST_DETAIL = 300  # characters

LOCAL_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


class Certificates(msgspec.Struct, frozen=True, array_like=True):
    """Paths of PEM files. ``ca_file`` None: those that the engine trusts. ``key_file`` None: it is in ``cert_file``."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


class Request(msgspec.Struct, eq=False, array_like=True):
    """One POST. ``timeout`` and ``connect_timeout`` are seconds.

    ``not_after`` is a reading of ``Clock.monotonic``: past it the request is not started any more.
    ``url`` comes from ``url.parse``; ``headers`` are whole lines, ``name: value``. With ``gzip`` the body goes out
    compressed, unless its headers say how it is encoded already. ``tls`` None: we show no certificate.
    ``answer_bytes`` of the answer are read at least and kept, whatever its status; 0: the usual sample.
    ``destination`` has so many ``places``: no more requests to it are open at a time; 0: as many as may be open in all.
    """

    url: str
    body: bytes
    headers: list[str]
    timeout: float
    connect_timeout: float
    not_after: float
    tag: Any = None
    gzip: bool = False
    tls: Certificates | None = None
    answer_bytes: int = 0
    destination: str = ""
    places: int = 0


class Exchange(msgspec.Struct, gc=False, array_like=True):
    """How one request ended.

    ``failure`` is None exactly where ``200 <= status < 300``. ``status`` is 0 where no usable answer came.
    ``never_left`` means that not one byte of the request can have reached the receiver.
    ``retry_after`` and ``duration`` are seconds; ``sample`` is the beginning of an answer that is not 2xx,
    or of any where the request asks for its answer.
    """

    tag: Any
    status: int
    failure: FailureKind | None
    retry_after: float | None = None
    sample: bytes = b""
    detail: str = ""
    duration: float = 0.0
    never_left: bool = False


def blocked(request: Request, reason: str) -> Exchange:
    return _unsent(request.tag, FailureKind.BLOCKED, f"blocked: {reason}")


def cancelled(tag: Any) -> Exchange:
    return _unsent(tag, FailureKind.CANCELLED, "stopped before it was sent")


def expired(request: Request) -> Exchange:
    return _unsent(request.tag, FailureKind.EXPIRED, "not sent: its lease could have run out")


def not_sendable(request: Request, trouble: Exception, *, local: bool = False) -> Exchange:
    """``local``: our fault. Else the same request would be refused again, so it uses up an attempt."""
    local |= isinstance(trouble, MemoryError) or (isinstance(trouble, OSError) and trouble.errno in LOCAL_ERRNOS)
    kind = FailureKind.LOCAL if local else FailureKind.PROTOCOL
    return _unsent(request.tag, kind, f"cannot be sent: {one_line(trouble)}")


def one_line(trouble: object) -> str:
    """Printable: libcurl quotes what a receiver has written, in whatever bytes."""
    return printable(" ".join(str(trouble).split()), _LONGEST_DETAIL)[:_LONGEST_DETAIL]


def _unsent(tag: Any, kind: FailureKind, detail: str) -> Exchange:
    return Exchange(tag, 0, kind, detail=detail, never_left=True)
