"""In a container the daemon says that its own address is reached by nobody outside, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from cbq_exporter.config import WebConfig, container
from tests.support.daemons import Daemon, until
from tests.support.servers import Server

SAID = (
    "listening on 127.0.0.1 inside a container: nobody outside of it reaches that; "
    'set web.listen_address to \\":0\\" to listen on all of its addresses'
)


@pytest.mark.parametrize(
    ("environ", "file", "inside"),
    [
        ({}, None, False),
        ({"container": ""}, "etc/hostname", False),
        ({"container": "podman"}, None, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None, True),
        ({}, ".dockerenv", True),
        ({}, "run/.containerenv", True),
    ],
)
def test_signs_of_a_container(environ: Mapping[str, str], file: str | None, inside: bool, tmp_path: Path) -> None:
    if file is not None:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert container.inside(environ, tmp_path) is inside


@pytest.mark.parametrize("address", [":9847", "0.0.0.0:9847", "[::]:9847", "10.0.0.7:9847"])
def test_whoever_listens_to_others_needs_no_hint(address: str) -> None:
    assert container.hint(WebConfig(listen_address=address)) is None


def test_the_daemon_says_so_when_it_starts(server: Server) -> None:
    with Daemon(server.url, environment={"container": "podman"}) as daemon:
        until(lambda: '"started"' in daemon.log())
        assert daemon.log().count(SAID) == 1
