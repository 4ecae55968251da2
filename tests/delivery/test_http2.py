"""HTTP/2, where the receiver offers it: nginx in front, and behind it the receiver that looks at what came."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pycurl
import pytest

from cbq_exporter.delivery import slot, transfers
from cbq_exporter.model import FailureKind
from tests.support.receiver import Answer, Receiver, never_answer, self_signed
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
        location / {{ proxy_pass http://127.0.0.1:{behind}; }}
    }}
}}
"""


class Front:
    def __init__(self, url: str, ca_file: Path) -> None:
        self.url = url
        self.ca_file = str(ca_file)


@pytest.fixture
def front(receiver: Receiver, tmp_path: Path) -> Iterator[Front]:
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nginx is None:
        skip_or_fail("the nginx program is needed")
    _, certificate = self_signed(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(folder=tmp_path, port=port, behind=receiver.port))
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


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The HTTP versions that were spoken."""
    seen: set[int] = set()
    answered = slot.Slot.answered

    def noting(self: slot.Slot) -> object:
        seen.add(self.curl.getinfo(pycurl.INFO_HTTP_VERSION))
        return answered(self)

    monkeypatch.setattr(slot.Slot, "answered", noting)
    return seen


def test_http2(front: Front, receiver: Receiver, versions: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert versions == {pycurl.CURL_HTTP_VERSION_2_0}
