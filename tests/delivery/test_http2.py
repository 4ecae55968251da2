"""HTTP/2, where the receiver offers it: nginx in front, and behind it the receiver that looks at what came."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pycurl
import pytest

from cbq_exporter.delivery import slot, transfers
from cbq_exporter.delivery.poller import Poller
from cbq_exporter.delivery.surroundings import SendingOptions, Surroundings
from cbq_exporter.model import FailureKind
from tests.support.receiver import Answer, Receiver, held, never_answer, self_signed
from tests.support.sender import Sender
from tests.support.skips import skip_or_fail

_CONFIGURATION = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl http2;
        ssl_certificate {folder}/certificate.pem;
        ssl_certificate_key {folder}/key.pem;
        {more}
        location / {{ proxy_pass http://127.0.0.1:{behind}; }}
    }}
}}
"""


_OPTIONS = SendingOptions(
    allow=(),
    ports=None,
    proxy=None,
    max_response_bytes=1,
    ca_file=None,
    user_agent="",
    max_connections=1,
    idle_connections=0,
)


class Front:
    def __init__(self, url: str, ca_file: Path) -> None:
        self.url = url
        self.ca_file = str(ca_file)


@pytest.fixture
def front(request: pytest.FixtureRequest, receiver: Receiver, tmp_path: Path) -> Iterator[Front]:
    """A parameter is more of its configuration."""
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nginx is None:
        skip_or_fail("the nginx program is needed")
    _, certificate = self_signed(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configuration = tmp_path / "nginx.conf"
    more = getattr(request, "param", "")
    configuration.write_text(_CONFIGURATION.format(folder=tmp_path, port=port, behind=receiver.port, more=more))
    # Started as root it would hand its work to a user who may not enter the test's folder.
    user = "user root;" if os.geteuid() == 0 else ""
    log = tmp_path / "error.log"
    command = [nginx, "-p", str(tmp_path), "-c", str(configuration), "-e", str(log), *(["-g", user] if user else [])]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.01)
        yield Front(f"https://127.0.0.1:{port}", certificate)
    finally:
        process.terminate()
        process.wait(20)


@dataclass
class Spoken:
    """HTTP versions, and connections that were made."""

    versions: set[int] = field(default_factory=set)
    connections: int = 0


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> Spoken:
    seen = Spoken()
    answered = slot.Slot.answered

    def noting(self: slot.Slot) -> object:
        seen.versions.add(self.curl.getinfo(pycurl.INFO_HTTP_VERSION))
        seen.connections += self.curl.getinfo(pycurl.NUM_CONNECTS)
        return answered(self)

    monkeypatch.setattr(slot.Slot, "answered", noting)
    return seen


def test_many_requests_share_a_connection(front: Front, receiver: Receiver, spoken: Spoken) -> None:
    """Once it is known what is spoken there: of a connection that is being made too."""
    with Sender(ca_file=front.ca_file) as sender:
        for count, most in ((1, 1), (64, 1), (250, 3)):
            ends = sender.send([sender.request(f"{front.url}/ok", b"x" * number) for number in range(count)])
            assert {end.status for end in ends} == {200}
            assert spoken.connections <= most, count
    assert spoken.versions == {pycurl.CURL_HTTP_VERSION_2_0}


def test_they_wait_for_a_connection_where_http2_was_spoken_before(
    front: Front, receiver: Receiver, spoken: Spoken, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Surroundings.__init__

    def make_knowing(self: Surroundings, *arguments: Any) -> None:
        make(self, *arguments)
        self.note_version(front.url, pycurl.CURL_HTTP_VERSION_2_0)

    monkeypatch.setattr(Surroundings, "__init__", make_knowing)
    monkeypatch.setattr(transfers, "_SAFETY_TICK", 3600.0)
    with Sender(ca_file=front.ca_file) as sender:
        ends = sender.send([sender.request(f"{front.url}/ok?{number}", timeout=600.0) for number in range(64)])
    assert {end.status for end in ends} == {200}
    assert spoken.connections == 1


@pytest.mark.parametrize("front", ["keepalive_requests 5;"], indirect=True)
@pytest.mark.parametrize("own_process", [False, True], ids=["thread", "process"])
def test_connections_that_are_ended_all_the_time_fail_no_request(
    front: Front, receiver: Receiver, own_process: bool
) -> None:
    """With GOAWAY, as a server does when it is configured anew: nothing that it did not take is an attempt."""
    with Sender(ca_file=front.ca_file, own_process=own_process, max_connections=60) as sender:
        ends = sender.send([sender.request(f"{front.url}/ok?{number}") for number in range(600)])
    assert {(end.status, end.detail) for end in ends} == {(200, "")}
    assert len({seen.path for seen in receiver.requests}) == len(receiver.requests) == 600


def test_what_is_known_of_versions_is_bounded_and_forgotten() -> None:
    around = Surroundings(_OPTIONS, Poller())
    for number in range(25_000):
        around.note_version(f"https://{number}.test", pycurl.CURL_HTTP_VERSION_2_0)
    assert len(around.multiplexing) <= 10_000
    around.note_version("https://24999.test", pycurl.CURL_HTTP_VERSION_1_1)
    assert "https://24999.test" not in around.multiplexing
    assert "https://24998.test" in around.multiplexing


def test_without_http2_they_do_not_wait_for_each_other(tmp_path: Path, spoken: Spoken) -> None:
    context, certificate = self_signed(tmp_path)
    with Receiver(tls=context) as receiver, Sender(ca_file=str(certificate)) as sender:
        url = receiver.on("/", held)
        sender.submit([sender.request(url) for _ in range(20)])
        receiver.wait_for_requests(20)
        receiver.open_gate()
        sender.wait()
    assert spoken.versions == {pycurl.CURL_HTTP_VERSION_1_1}
    assert spoken.connections == 20


def test_http2(front: Front, receiver: Receiver, spoken: Spoken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "_SAFETY_TICK", 3600.0)  # one lost wake-up would leave a request standing
    receiver.on("/busy", Answer(503, {"Retry-After": "7"}, b"busy"))
    receiver.on("/away", Answer(302, {"Location": receiver.url("/elsewhere")}))
    bodies = [os.urandom(32) * (size // 32) for size in (4 << 20, 64 << 10, *[1 << 20] * 12, *[1024] * 100)]
    with Sender(ca_file=front.ca_file) as sender:
        url = f"{front.url}/ok"
        requests = [sender.request(url, body, timeout=600.0, connect_timeout=600.0) for body in bodies]
        assert {(end.status, end.failure) for end in sender.send(requests, timeout=60)} == {(200, None)}
        assert sorted(seen.body for seen in receiver.requests) == sorted(bodies)
        busy = sender.post(f"{front.url}/busy")
        assert (busy.status, busy.retry_after, busy.sample) == (503, 7.0, b"busy")
        assert sender.post(f"{front.url}/away").failure == FailureKind.HTTP_3XX
        receiver.on("/never", never_answer)
        late, good = sender.send([sender.request(f"{front.url}/never", timeout=0.3), sender.request(url)])
        assert (late.failure, good.status) == (FailureKind.TIMEOUT, 200)
    assert spoken.versions == {pycurl.CURL_HTTP_VERSION_2_0}
