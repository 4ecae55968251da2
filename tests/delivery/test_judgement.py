"""Whose fault an error of libcurl's is."""

from __future__ import annotations

import errno

import pytest

from cbq_exporter.delivery import judgement
from cbq_exporter.delivery.judgement import kind_of_error
from cbq_exporter.model import FailureKind as Kind

CASES = [
    # libcurl's code, the system's number, never left, has a route, kind
    (6, 0, True, True, Kind.DNS),
    (6, 0, True, False, Kind.LOCAL),
    (6, errno.EMFILE, True, True, Kind.LOCAL),
    (7, errno.ECONNREFUSED, True, True, Kind.CONNECT),
    (7, errno.ECONNREFUSED, True, False, Kind.CONNECT),
    (7, errno.ETIMEDOUT, True, True, Kind.CONNECT),
    (7, errno.ENETUNREACH, True, True, Kind.CONNECT),
    (7, errno.ENETUNREACH, True, False, Kind.LOCAL),
    (7, errno.EHOSTUNREACH, True, False, Kind.LOCAL),
    (7, errno.EADDRNOTAVAIL, True, True, Kind.LOCAL),
    (7, errno.ENOBUFS, True, True, Kind.LOCAL),
    (7, 0, True, True, Kind.CONNECT),
    (28, 0, True, True, Kind.TIMEOUT),
    (28, 0, False, False, Kind.TIMEOUT),
    (35, 0, True, True, Kind.TLS),
    (60, 0, True, True, Kind.TLS),
    (43, 0, True, True, Kind.LOCAL),
    (58, 0, True, True, Kind.LOCAL),
    (77, 0, True, True, Kind.LOCAL),
    (2, 0, True, True, Kind.LOCAL),
    (27, 0, False, True, Kind.LOCAL),
    (55, 0, True, True, Kind.CONNECT),
    (55, errno.EPIPE, False, True, Kind.PROTOCOL),
    (1, 0, True, True, Kind.PROTOCOL),
    (3, 0, True, True, Kind.PROTOCOL),
    (8, 0, False, True, Kind.PROTOCOL),
    (18, 0, False, True, Kind.PROTOCOL),
    (52, 0, False, True, Kind.PROTOCOL),
    (56, errno.ECONNRESET, False, True, Kind.PROTOCOL),
    (92, 0, False, True, Kind.PROTOCOL),
    (100, 0, False, True, Kind.PROTOCOL),
    (9999, 0, False, True, Kind.PROTOCOL),
]


@pytest.mark.parametrize(("code", "number", "never_left", "route", "kind"), CASES)
def test_kind_of_error(
    monkeypatch: pytest.MonkeyPatch, code: int, number: int, never_left: bool, route: bool, kind: Kind
) -> None:
    monkeypatch.setattr(judgement, "has_route", lambda: route)
    judged, detail = kind_of_error(code, number, "what libcurl said", never_left=never_left)
    assert judged == kind
    assert "what libcurl said" in detail
