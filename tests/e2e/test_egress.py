"""Where callbacks may go, end to end: through a proxy, to some ports only, and dead at once where nobody may go."""

from __future__ import annotations

import base64
import gzip
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.bare_client import by_payload, dead_letters, item, push, wait_until_settled
from tests.support.connect_proxy import Way
from tests.support.daemons import Daemon, queue, until
from tests.support.receiver import Receiver
from tests.support.servers import Server

REFUSED = (
    *("http://127.0.0.1/", "http://[::ffff:10.0.0.1]/", "http://localhost/", "http://metadata.google.internal/"),
    *("http://hooks.example.com:22/", "http://hooks.example.com@127.0.0.1/"),
)


@pytest.mark.parametrize("own_process", [False, True], ids=["thread", "process"])
def test_through_a_proxy(server: Server, tmp_path: Path, own_process: bool) -> None:
    """Compressed where it is worth it; what is ours is dead at once, and ``check-url`` says the same.

    A reload takes new credentials.
    """
    credentials = tmp_path / "credentials"
    credentials.write_text("me:secret\n")
    with Receiver() as receiver:
        way = Way(receiver.port)
        with Receiver(raw=way) as proxy:
            delivery = {
                "egress": {"allow": [], "ports": [80, 443]},
                "proxy": {"url": proxy.url(""), "credentials_file": str(credentials)},
                "request": {"gzip_from": "1KiB"},
                "own_process": own_process,
            }
            small, large = {"n": 1}, {"n": 2, "text": "x" * 5000}
            good = [item("http://hooks.example.com/x", data=data) for data in (small, large)]
            bad = {item(url): url for url in REFUSED}
            with Daemon(server.url, queue() | {"delivery": delivery}, folder=tmp_path) as daemon:
                push(server.client, *good, *bad)
                wait_until_settled(server.client, dead=len(bad), what=daemon.log)
                credentials.write_text("me:rotated\n")
                daemon.send_signal(signal.SIGHUP)
                until(lambda: '"callbacks: files"' in daemon.log(), what=daemon.log)
                push(server.client, item("http://hooks.example.com/x", data={"n": 3}))
                wait_until_settled(server.client, dead=len(bad), what=daemon.log)
        assert f"Proxy-Authorization: Basic {base64.b64encode(b'me:rotated').decode()}" in way.heads.pop()
        *others, last = receiver.requests
        assert json.loads(last.body) == {"n": 3}
        first, second = sorted(others, key=lambda seen: len(seen.headers.get("content-encoding", "")))
    assert json.loads(first.body) == small
    assert json.loads(gzip.decompress(second.body)) == large
    assert {head[0] for head in way.heads} == {"CONNECT hooks.example.com:80 HTTP/1.1"}
    assert all(f"Proxy-Authorization: Basic {base64.b64encode(b'me:secret').decode()}" in head for head in way.heads)
    assert "secret" not in daemon.log()
    letters = by_payload(dead_letters(server.url))
    reasons = {bad[payload]: str(letter.reason) for payload, letter in letters.items()}
    assert reasons == {url: "invalid_url" if "@" in url else "blocked" for url in REFUSED}
    for url, expected in ((REFUSED[0], 3), (REFUSED[-1], 3), ("http://hooks.example.com/", 0)):
        command = [sys.executable, "-m", "cbq_exporter", "check-url", url, "-c", str(daemon.config_file)]
        assert subprocess.run(command, capture_output=True, timeout=60).returncode == expected, url
