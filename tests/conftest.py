"""Real servers, started once a session and emptied before each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.servers import KINDS, Server

# How long an example takes says only how busy the machine is.
settings.register_profile("any machine", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def _running() -> Iterator[dict[str, Server]]:
    servers: dict[str, Server] = {}
    yield servers
    for server in servers.values():
        server.__exit__()


def _emptied(servers: dict[str, Server], kind: str) -> Server:
    if kind not in servers:
        servers[kind] = Server(kind).__enter__()
    servers[kind].client.flushall()
    return servers[kind]


@pytest.fixture
def server(_running: dict[str, Server]) -> Server:
    """An empty Valkey, shared by the tests of the session."""
    return _emptied(_running, "valkey")


@pytest.fixture(params=KINDS)
def each_server(_running: dict[str, Server], request: pytest.FixtureRequest) -> Server:
    """The test runs once on an empty Valkey and once on an empty Redis."""
    return _emptied(_running, request.param)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Ids that can be written anywhere: a lone surrogate cannot."""
    if isinstance(val, str) and not val.isprintable():
        return ascii(val)[1:-1]
    return None
