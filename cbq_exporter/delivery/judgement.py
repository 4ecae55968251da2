"""Whose fault a failed exchange is: libcurl's codes and the system's, put into our closed set."""

from __future__ import annotations

import errno
import os
import socket

from cbq_exporter.delivery.exchange import LOCAL_ERRNOS
from cbq_exporter.model import FailureKind

_RESOLVE, _CONNECT, _TIMEOUT, _SEND = 6, 7, 28, 55
_TLS = frozenset({35, 51, 53, 54, 59, 60, 64, 66, 80, 82, 83, 90, 91, 98})
# libcurl could not start, had no memory, cannot take our key, could not bind, cannot read our certificate or ca_file.
_LOCAL = frozenset({2, 27, 43, 45, 58, 77})
_UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN})


def kind_of_status(status: int) -> FailureKind:
    """For a status that is not 2xx."""
    if status >= 500:
        return FailureKind.HTTP_5XX
    if status >= 400:
        return FailureKind.HTTP_4XX
    if status >= 300:
        return FailureKind.HTTP_3XX
    return FailureKind.HTTP_1XX


def kind_of_error(code: int, number: int, detail: str, *, never_left: bool) -> tuple[FailureKind, str]:
    """The kind and one line for people, from libcurl's ``code`` and the system's ``number`` (0: none)."""
    explained = f"{detail} ({os.strerror(number)})" if number else detail
    if code in _LOCAL or (code in (_RESOLVE, _CONNECT) and number in LOCAL_ERRNOS):
        return FailureKind.LOCAL, explained
    if (code == _RESOLVE or (code == _CONNECT and number in _UNREACHABLE)) and not has_route():
        return FailureKind.LOCAL, f"this machine has no default route: {detail}"
    if code == _RESOLVE:
        return FailureKind.DNS, detail
    if code == _CONNECT:
        return FailureKind.CONNECT, explained
    if code == _TIMEOUT:
        return FailureKind.TIMEOUT, detail
    if code in _TLS:
        return FailureKind.TLS, detail
    if code == _SEND and never_left:
        return FailureKind.CONNECT, detail
    return FailureKind.PROTOCOL, detail


def has_route() -> bool:
    """Whether this machine has a way out at all. Connecting a datagram socket sends nothing."""
    for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))
                return True
        except OSError:
            continue
    return False
