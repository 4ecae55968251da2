"""TLS that fails, in each way that it can: no byte of the request leaves, and it ends in time."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
import time
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from cbq_exporter.model import FailureKind
from tests.support.certificates import Authority
from tests.support.receiver import Connection, RawScript, Receiver, Script, Seen, self_signed
from tests.support.sender import Sender

HERE = ("DNS:localhost", "IP:127.0.0.1")
TLS, TIMEOUT = FailureKind.TLS, FailureKind.TIMEOUT


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other"))


@pytest.fixture(params=[False, True], ids=["thread", "process"])
def trusting(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Sender]:
    with Sender(ca_file=str(authority.ca_file), own_process=request.param) as sender:
        yield sender


def test_a_good_one(authority: Authority, trusting: Sender) -> None:
    with Receiver(tls=authority.issue(*HERE).server()) as receiver:
        assert trusting.post(receiver.url()).status == 200


def contexts(authority: Authority, other: Authority, folder: Path) -> dict[str, tuple[ssl.SSLContext, str]]:
    """What is wrong, and what the failure says of it."""
    day = timedelta(days=1)
    good = authority.issue(*HERE)
    old = good.server()
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    no_cipher = good.server()
    no_cipher.maximum_version = ssl.TLSVersion.TLSv1_2
    no_cipher.set_ciphers("NULL:@SECLEVEL=0")
    return {
        "expired": (authority.issue(*HERE, since=-2 * day, until=-day).server(), "expired"),
        "not yet valid": (authority.issue(*HERE, since=day, until=2 * day).server(), "not yet valid"),
        "of another host": (authority.issue("DNS:example.com", "IP:127.0.0.2").server(), "127.0.0.1"),
        "of no host": (authority.issue().server(), "127.0.0.1"),
        "of the name alone": (authority.issue("DNS:localhost", "DNS:127.0.0.1").server(), "127.0.0.1"),
        "self-signed": (self_signed(folder)[0], "self-signed certificate"),
        "of somebody else": (other.issue(*HERE).server(), "unable to get local issuer"),
        "for clients": (authority.issue(*HERE, usage="clientAuth").server(), "purpose"),
        # asyncio hangs up before the alert is out.
        "old protocol": (old, ""),
        "no common cipher": (no_cipher, ""),
    }


def test_certificates_and_protocols(
    authority: Authority, other_authority: Authority, trusting: Sender, tmp_path: Path
) -> None:
    for name, (context, why) in contexts(authority, other_authority, tmp_path).items():
        with Receiver(tls=context) as receiver:
            exchange = trusting.post(receiver.url())
            assert (exchange.failure, exchange.status, exchange.never_left) == (TLS, 0, True), (name, exchange)
            assert why in exchange.detail, (name, exchange.detail)
            assert not receiver.requests, name


def test_a_receiver_that_wants_to_see_a_certificate(authority: Authority, trusting: Sender) -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = authority.issue(*HERE).server()
        context.minimum_version = context.maximum_version = version
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority.ca_file)
        with Receiver(tls=context) as receiver:
            exchange = trusting.post(receiver.url())
            # By TLS 1.3 the receiver says so only after we have begun to send.
            assert exchange.failure in (TLS, FailureKind.PROTOCOL), exchange
            assert not receiver.requests


def record(kind: int, content: bytes) -> bytes:
    return struct.pack(">BHH", kind, 0x0303, len(content)) + content


def writes(*parts: bytes, then: str = "close") -> RawScript:
    async def script(connection: Connection) -> None:
        await connection.read(1 << 14)  # the client's hello
        for part in parts:
            await connection.write(part)
        if then == "wait":
            await connection.gone()
        if then == "reset":
            connection.reset()

    return script


async def endless(connection: Connection) -> None:
    """A handshake message of 16 MiB, as it says, that does not end."""
    await connection.read(1 << 14)
    await connection.write(record(22, b"\x02\xff\xff\xff" + b"\x03\x03" + b"x" * 1000))
    with contextlib.suppress(OSError):
        while not connection.closed:
            await connection.write(record(22, b"x" * 16000))
            await asyncio.sleep(0)


HANDSHAKES: dict[str, tuple[RawScript, FailureKind]] = {
    "cut": (writes(), TLS),
    "reset": (writes(then="reset"), TLS),
    "cut inside a record": (writes(record(22, b"x" * 100)[:50]), TLS),
    "silence": (writes(then="wait"), TIMEOUT),
    "half a record, then silence": (writes(record(22, b"\x02\x00\x00\x46" + b"x" * 90)[:50], then="wait"), TIMEOUT),
    "alert: handshake failure": (writes(record(21, b"\x02\x28")), TLS),
    "alert: internal error": (writes(record(21, b"\x02\x50")), TLS),
    "alert: unrecognized name": (writes(record(21, b"\x02\x70")), TLS),
    "a warning, then nothing": (writes(record(21, b"\x01\x00")), TLS),
    "warnings without an end": (writes(record(21, b"\x01\x5a") * 5000), TLS),
    "an unknown record": (writes(record(99, b"x" * 50)), TLS),
    "data before the handshake": (writes(record(23, b"x" * 50)), TLS),
    "a hello that is none": (writes(record(22, b"\x02\x00\x00\x26" + b"\x00" * 38)), TLS),
    "a huge record": (writes(struct.pack(">BHH", 22, 0x0303, 0xFFFF) + b"x" * 70000), TLS),
    "plain HTTP": (writes(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), TLS),
    "without an end": (endless, TLS),
}


def test_handshakes(trusting: Sender) -> None:
    with contextlib.ExitStack() as stack:
        receivers = {name: stack.enter_context(Receiver(raw=raw)) for name, (raw, _) in HANDSHAKES.items()}
        began = time.monotonic()
        requests = [
            trusting.request(f"https://127.0.0.1:{receivers[name].port}/", timeout=0.5 if kind is TIMEOUT else 10.0)
            for name, (_, kind) in HANDSHAKES.items()
        ]
        exchanges = trusting.send(requests)
        assert time.monotonic() - began < 5
    ends = {name: (end.failure, end.never_left) for name, end in zip(HANDSHAKES, exchanges, strict=True)}
    assert ends == {name: (kind, True) for name, (_, kind) in HANDSHAKES.items()}
    for end in exchanges:
        assert end.detail.isprintable()
        assert len(end.detail) < 500


def test_the_end_of_an_encrypted_answer(authority: Authority, trusting: Sender) -> None:
    """Cut off without TLS's own goodbye, anybody on the way may have done it."""

    def answering(content: bytes) -> Script:
        async def script(seen: Seen, connection: Connection) -> None:
            await connection.write(content)
            connection.reset()

        return script

    with Receiver(tls=authority.issue(*HERE).server()) as receiver:
        receiver.on("/half", answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"))
        receiver.on("/open", answering(b"HTTP/1.1 200 OK\r\n\r\nok"))
        for path in ("/half", "/open"):
            assert trusting.post(receiver.url(path)).failure == FailureKind.PROTOCOL
