"""HTTP over TLS by a Prometheus web config, with real handshakes."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

from cbq_exporter.errors import CbqError
from cbq_exporter.web.app import create_app
from cbq_exporter.web.guard import Limits
from cbq_exporter.web.server import WebServer
from tests.support.daemons import until
from tests.web import certificates
from tests.web.certificates import Pair
from tests.web.serving import FakeBackend, Serving, serving

NewLoop = Callable[[], Any]
LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
QUICK = Limits(head=0.5, answer=0.5, look_every=0.1)


@dataclass(frozen=True)
class Pki:
    """``stranger`` has an authority of its own."""

    folder: Path
    authority: Pair
    server: Pair
    other: Pair
    friend: Pair
    stranger: Pair

    @property
    def settings(self) -> str:
        return f"cert_file: {self.server.certificate}, key_file: {self.server.key}"

    def context(self, as_client: Pair | None = None, **attributes: Any) -> ssl.SSLContext:
        """A client's, with attributes of ``ssl.SSLContext`` set."""
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        if as_client is not None:
            context.load_cert_chain(as_client.certificate, as_client.key)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            for name, value in attributes.items():
                setattr(context, name, value)
        return context


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    folder = tmp_path_factory.mktemp("pki")
    authority = certificates.authority(folder)
    foreign = certificates.authority(folder, "foreign")
    return Pki(
        folder,
        authority,
        certificates.server(folder, authority),
        certificates.server(folder, authority, "other"),
        certificates.client(
            folder, authority, "friend", "DNS:prometheus.example,IP:::1,email:a@b.example,URI:spiffe://x/y"
        ),
        certificates.client(folder, foreign, "stranger", "DNS:prometheus.example"),
    )


def web_yml(folder: Path, tls: str, more: str = "") -> Path:
    path = folder / "web.yml"
    path.write_text(f"tls_server_config: {{{tls}}}\n{more}")
    return path


def answers(served: Serving, context: ssl.SSLContext) -> bool:
    """Whether a request is answered, on a connection of its own. With TLS 1.3 a refusal shows when reading only."""
    try:
        return served.ask_over(context, "/-/healthy").status == 200
    except (OSError, http.client.HTTPException):
        return False


def connect(served: Serving, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(served.connect(), server_hostname="localhost")


@LOOPS
def test_requests_over_tls(pki: Pki, tmp_path: Path, new_loop: NewLoop) -> None:
    more = "http_server_config: {headers: {Strict-Transport-Security: max-age=9, X-Frame-Options: sameorigin}}"
    path = web_yml(tmp_path, pki.settings, more)
    with serving(FakeBackend(), new_loop=new_loop, config_file=path) as served:
        assert served.url == f"https://127.0.0.1:{served.port}"
        answer = served.ask_over(pki.context(), "/metrics", Accept="text/plain;q=nonsense, */*;;q=, \xe4")
        assert (answer.status, b"cbq_up 1.0" in answer.body) == (200, True)
        assert answer.headers["Strict-Transport-Security"] == "max-age=9"
        assert (answer.headers["X-Frame-Options"], answer.headers["X-Content-Type-Options"]) == (
            "sameorigin",
            "nosniff",
        )
        context = pki.context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        with connect(served, context) as sock:
            assert (sock.version(), sock.selected_alpn_protocol()) == ("TLSv1.3", "http/1.1")


def test_relative_paths_are_those_of_the_files_folder(pki: Pki) -> None:
    path = web_yml(pki.folder, "cert_file: server.pem, key_file: ./server.key")
    with serving(FakeBackend(), config_file=path) as served:
        assert answers(served, pki.context())


def test_certificate_and_key_may_stand_in_the_file(pki: Pki, tmp_path: Path) -> None:
    path = tmp_path / "web.yml"
    texts = {"cert": pki.server.certificate, "key": pki.server.key, "client_ca": pki.authority.certificate}
    lines = [f"  {name}: |\n    " + text.read_text().replace("\n", "\n    ") for name, text in texts.items()]
    path.write_text("\n".join(["tls_server_config:", "  client_auth_type: RequireAndVerifyClientCert", *lines]))
    with serving(FakeBackend(), config_file=path) as served:
        assert answers(served, pki.context(pki.friend))
        assert not answers(served, pki.context())


V = ssl.TLSVersion


@pytest.mark.parametrize(
    ("settings", "client", "expected"),
    [
        ("", {"maximum_version": V.TLSv1_2}, ("TLSv1.2", "")),
        ("", {"minimum_version": V.TLSv1_1, "maximum_version": V.TLSv1_1}, None),
        ("min_version: TLS11", {"minimum_version": V.TLSv1_1, "maximum_version": V.TLSv1_1}, ("TLSv1.1", "")),
        ("min_version: TLS13", {"maximum_version": V.TLSv1_2}, None),
        ("min_version: TLS13", {}, ("TLSv1.3", "")),
        ("max_version: TLS12", {}, ("TLSv1.2", "")),
        ("max_version: TLS12", {"minimum_version": V.TLSv1_3}, None),
        (
            "cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, TLS_AES_128_GCM_SHA256]",
            {"maximum_version": V.TLSv1_2},
            ("TLSv1.2", "ECDHE-ECDSA-AES256-SHA"),
        ),
        ("cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]", {"maximum_version": V.TLSv1_2}, None),
        ("cipher_suites: [TLS_AES_128_GCM_SHA256]", {"maximum_version": V.TLSv1_2}, None),
        ("cipher_suites: [TLS_AES_128_GCM_SHA256]", {}, ("TLSv1.3", "")),
        ("curve_preferences: [CurveP384]", {"curve": "secp384r1"}, ("TLSv1.3", "")),
        ("curve_preferences: [CurveP384]", {"curve": "prime256v1"}, None),
    ],
)
def test_what_the_handshake_agrees_on(
    pki: Pki, tmp_path: Path, settings: str, client: dict[str, Any], expected: tuple[str, str] | None
) -> None:
    """Version and suite; None where there is no agreement."""
    curve = client.get("curve")
    context = pki.context(**{name: value for name, value in client.items() if name != "curve"})
    if "maximum_version" in client:
        context.set_ciphers("ALL:@SECLEVEL=0")
    if curve is not None:
        context.set_ecdh_curve(curve)
    path = web_yml(tmp_path, f"{pki.settings}, {settings}" if settings else pki.settings)
    with serving(FakeBackend(), config_file=path) as served:
        try:
            with connect(served, context) as sock:
                agreed = (sock.version(), sock.cipher())
        except OSError:
            assert expected is None
            return
    assert expected is not None
    version, suite = agreed
    assert version == expected[0]
    assert suite is not None
    assert expected[1] in ("", suite[0])


REQUIRED = "client_auth_type: RequireAndVerifyClientCert"


@pytest.mark.parametrize(
    ("settings", "nobody", "friend", "stranger"),
    [
        ("client_auth_type: NoClientCert", True, True, True),
        ("client_auth_type: RequestClientCert", True, True, True),
        ("client_auth_type: VerifyClientCertIfGiven, client_ca_file: CA", True, True, False),
        (f"{REQUIRED}, client_ca_file: CA", False, True, False),
        (f"{REQUIRED}, client_ca_file: CA, max_version: TLS12", False, True, False),
        (REQUIRED, False, False, False),  # no authority of the system has signed these
        (f"{REQUIRED}, client_ca_file: CA, client_allowed_sans: [x, prometheus.example]", False, True, False),
        (f"{REQUIRED}, client_ca_file: CA, client_allowed_sans: ['::1']", False, True, False),
        (f"{REQUIRED}, client_ca_file: CA, client_allowed_sans: [a@b.example]", False, True, False),
        (f"{REQUIRED}, client_ca_file: CA, client_allowed_sans: ['spiffe://x/y']", False, True, False),
        (f"{REQUIRED}, client_ca_file: CA, client_allowed_sans: [friend, example]", False, False, False),
        (f"{REQUIRED}, client_ca_file: CA, client_allowed_sans: []", False, False, False),
        (
            "client_auth_type: VerifyClientCertIfGiven, client_ca_file: CA, client_allowed_sans: [prometheus.example]",
            *(False, True, False),
        ),
    ],
)
def test_clients_that_show_a_certificate(
    pki: Pki, tmp_path: Path, settings: str, nobody: bool, friend: bool, stranger: bool
) -> None:
    settings = settings.replace("client_ca_file: CA", f"client_ca_file: {pki.authority.certificate}")
    path = web_yml(tmp_path, f"{pki.settings}, {settings}")
    with serving(FakeBackend(), config_file=path) as served:
        let_in = [answers(served, pki.context(who)) for who in (None, pki.friend, pki.stranger)]
    assert let_in == [nobody, friend, stranger]


# --- while it runs -------------------------------------------------------------------------------


def serial(served: Serving, context: ssl.SSLContext) -> str:
    with connect(served, context) as sock:
        return str((sock.getpeercert() or {})["serialNumber"])


def test_a_new_certificate_counts_for_the_next_connection(
    pki: Pki, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = tmp_path / "now.pem", tmp_path / "now.key"

    def put(pair: Pair) -> None:
        certificate.write_bytes(pair.certificate.read_bytes())
        key.write_bytes(pair.key.read_bytes())

    put(pki.server)
    path = web_yml(tmp_path, "cert_file: now.pem, key_file: now.key")
    context = pki.context()
    with serving(FakeBackend(), config_file=path) as served, caplog.at_level(logging.INFO):
        kept = http.client.HTTPSConnection("localhost", served.port, context=context, timeout=20)
        kept.request("GET", "/-/healthy")
        assert kept.getresponse().read()
        first = serial(served, context)
        put(pki.other)
        assert serial(served, context) != first
        kept.request("GET", "/-/healthy")
        assert kept.getresponse().read(), "an open connection goes on"
        kept.close()

        certificate.write_bytes(pki.server.certificate.read_bytes())  # half of a change: not its key
        assert not answers(served, context)
        assert not answers(served, context)
        put(pki.server)
        assert serial(served, context) == first

        path.write_text(f"tls_server_config: {{{pki.settings}, min_version: TLS13}}")
        assert not answers(served, pki.context(maximum_version=V.TLSv1_2))
        assert answers(served, context)
        for broken in ("", "tls_server_config: {cert_file: now.pem}", "}"):
            path.write_text(broken)
            assert not answers(served, context)
        path.unlink()
        assert not answers(served, context)
        web_yml(tmp_path, pki.settings)
        assert answers(served, context)
    said = [record.getMessage() for record in caplog.records if "connection" in record.getMessage()]
    assert [message.startswith("the web config can be used again") for message in said] == [
        *(False, True),  # once each
        *(False, False, False, False, True),
    ]
    assert "now.pem: tls_server_config.cert_file" in said[0]
    assert "tls_server_config is gone" in said[2]
    assert all("\n" not in message for message in said)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x: 1", "web.yml:1: x: found an unknown key"),
        (None, "web.yml: web.config_file: found an error when reading it (No such file"),
        (
            "tls_server_config: {cert_file: none.pem, key_file: k}",
            "none.pem: tls_server_config.cert_file: found an err",
        ),
        ("tls_server_config: {cert_file: web.yml, key_file: web.yml}", "must be a certificate in PEM, and its key"),
        ("tls_server_config: {cert_file: SERVER, key_file: SERVER}", "must be a certificate in PEM, and its key"),
        (
            f"tls_server_config: {{TLS, {REQUIRED}, client_ca_file: web.yml}}",
            "web.yml: tls_server_config.client_ca_file",
        ),
    ],
)
def test_a_bad_file_at_the_start_is_one_clear_line(pki: Pki, tmp_path: Path, text: str | None, told: str) -> None:
    path = tmp_path / "web.yml"
    if text is not None:
        path.write_text(text.replace("SERVER", str(pki.server.certificate)).replace("TLS", pki.settings))

    async def start() -> None:
        server = WebServer(create_app(FakeBackend()), "127.0.0.1", 0, config_file=path)
        try:
            await server.start()
        finally:
            await server.stop()

    with pytest.raises(CbqError) as caught:
        asyncio.run(start())
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


# --- clients that mean no good -------------------------------------------------------------------


def ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(65536) == b""
    except (ConnectionError, ssl.SSLError):
        return True


@LOOPS
@pytest.mark.parametrize("start", [b"", b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 600])
def test_what_is_no_handshake_is_given_up(
    pki: Pki, tmp_path: Path, new_loop: NewLoop, start: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = web_yml(tmp_path, pki.settings)
    with serving(FakeBackend(), QUICK, new_loop, config_file=path) as served, served.connect() as sock:
        sock.sendall(start)
        began = time.monotonic()
        while not ended(sock):
            pass  # alerts of TLS come first
        assert time.monotonic() - began < 10
        assert answers(served, pki.context())
    assert caplog.records == []


@LOOPS
@pytest.mark.parametrize("start", [b"", b"GET /metrics HTTP/1.1\r\nHost: "])
def test_half_a_request_over_tls_is_given_up(pki: Pki, tmp_path: Path, new_loop: NewLoop, start: bytes) -> None:
    path = web_yml(tmp_path, pki.settings)
    with serving(FakeBackend(), QUICK, new_loop, config_file=path) as served:
        with connect(served, pki.context()) as sock:
            sock.sendall(start)
            assert ended(sock)
        assert answers(served, pki.context())


@LOOPS
def test_a_client_that_reads_nothing_over_tls_is_cut_off(pki: Pki, tmp_path: Path, new_loop: NewLoop) -> None:
    path = web_yml(tmp_path, pki.settings)
    with serving(FakeBackend(), QUICK, new_loop, config_file=path) as served:
        raw = served.connect(receive_buffer=4096)
        with pki.context().wrap_socket(raw, server_hostname="localhost") as sock:
            with contextlib.suppress(OSError):
                for _ in range(300):
                    sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answers(served, pki.context()), "others are served meanwhile"
            until(lambda: _cut_off(sock))
        assert answers(served, pki.context())


def _cut_off(sock: ssl.SSLSocket) -> bool:
    """Without reading, which would make it a client that reads."""
    try:
        sock.sendall(b"G")
    except OSError:
        return True
    return False


@LOOPS
def test_handshakes_count_as_connections_and_the_oldest_makes_room(
    pki: Pki, tmp_path: Path, new_loop: NewLoop, caplog: pytest.LogCaptureFixture
) -> None:
    path = web_yml(tmp_path, pki.settings)
    limits = Limits(connections=3, head=60, look_every=0.1)
    with serving(FakeBackend(), limits, new_loop, config_file=path) as served:
        silent = [served.connect() for _ in range(3)]
        until(lambda: answers(served, pki.context()), what="they keep everybody out")
        assert ended(silent[0])
        silent += [served.connect() for _ in range(20)]
        until(lambda: answers(served, pki.context()), what="they keep everybody out")
        for sock in silent:
            sock.close()
    assert caplog.messages == ["3 connections are open: for each new one the one that waits longest is closed"]


@LOOPS
def test_two_hundred_scrapes_at_once(pki: Pki, tmp_path: Path, new_loop: NewLoop) -> None:
    path = web_yml(tmp_path, pki.settings)
    context = pki.context()
    together = threading.Barrier(200)

    def scrape(served: Serving) -> int:
        together.wait(30)
        return served.ask_over(context, "/metrics").status

    with (
        serving(FakeBackend(), new_loop=new_loop, config_file=path) as served,
        ThreadPoolExecutor(200) as threads,
    ):
        assert set(threads.map(scrape, [served] * 200)) == {200}
