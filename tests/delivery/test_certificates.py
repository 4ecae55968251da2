"""Certificates for single destinations: each request has its own, and no connection is shared between them."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cbq_exporter.delivery import slot
from cbq_exporter.delivery.exchange import Certificates
from cbq_exporter.model import FailureKind
from tests.support.receiver import Receiver
from tests.support.sender import Sender
from tests.web import certificates


@dataclass(frozen=True)
class Tls:
    """A receiver's context that asks for certificates of ``authority`` and takes none as well; two senders' own."""

    context: ssl.SSLContext
    authority: Path
    ours: Certificates
    theirs: Certificates


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    folder = tmp_path_factory.mktemp("tls")
    authority = certificates.authority(folder)
    server = certificates.server(folder, authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)
    context.load_verify_locations(authority.certificate)
    context.verify_mode = ssl.CERT_OPTIONAL
    ca_file = str(authority.certificate)
    ours, theirs = (certificates.client(folder, authority, name, "DNS:a") for name in ("ours", "theirs"))
    both = folder / "both.pem"
    both.write_bytes(theirs.certificate.read_bytes() + theirs.key.read_bytes())
    return Tls(
        context,
        authority.certificate,
        Certificates(ca_file, str(ours.certificate), str(ours.key)),
        Certificates(ca_file, str(both)),
    )


@pytest.fixture
def receiver(tls: Tls) -> Iterator[Receiver]:
    with Receiver(tls=tls.context) as receiver:
        yield receiver


@pytest.mark.parametrize("own_process", [False, True], ids=["thread", "process"])
def test_a_connection_is_kept_for_requests_with_the_same_certificates_only(
    tls: Tls, receiver: Receiver, own_process: bool
) -> None:
    shown = {"/ours": tls.ours, "/theirs": tls.theirs, "/none": Certificates(str(tls.authority)), "/unknown": None}
    with Sender(max_connections=4, own_process=own_process) as sender:
        for _ in range(10):
            requests = [sender.request(receiver.url(path), tls=own) for path, own in shown.items()]
            ended = sender.send(requests)
            assert [end.failure for end in ended] == [None, None, None, FailureKind.TLS]
    assert {(seen.path, seen.certificate) for seen in receiver.requests} == {
        ("/ours", "ours"),
        ("/theirs", "theirs"),
        ("/none", ""),
    }
    for path in ("/ours", "/theirs", "/none"):
        assert len({seen.peer for seen in receiver.requests if seen.path == path}) == 1
    assert len(receiver.requests) == 30


def test_new_certificates_under_the_old_names_count_for_new_connections(
    tls: Tls, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot, "_AUTHORITIES_KEPT", 0)
    stranger = certificates.authority(tmp_path, "stranger").certificate
    ca_file, cert_file = tmp_path / "ca.pem", tmp_path / "both.pem"

    def put(authority: Path, own: Certificates) -> None:
        assert own.cert_file is not None
        ca_file.write_bytes(authority.read_bytes())
        cert_file.write_bytes(b"".join(Path(path).read_bytes() for path in (own.cert_file, own.key_file) if path))

    with Sender() as sender:
        ended = []
        for authority, own in ((tls.authority, tls.ours), (tls.authority, tls.theirs), (stranger, tls.theirs)):
            put(authority, own)
            ended.append(sender.post(receiver.url(), tls=Certificates(str(ca_file), str(cert_file))).failure)
            receiver.drop_connections()
    assert ended == [None, None, FailureKind.TLS]
    assert [seen.certificate for seen in receiver.requests] == ["ours", "theirs"]


def test_certificates_that_are_not_there_or_wrong_are_our_own_trouble(
    tls: Tls, receiver: Receiver, tmp_path: Path
) -> None:
    missing, wrong = str(tmp_path / "none.pem"), tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    ca_file, _, key_file = tls.ours.ca_file, tls.ours.cert_file, tls.ours.key_file
    broken = [
        Certificates(missing),
        Certificates(ca_file, missing, key_file),
        Certificates(ca_file, str(wrong), key_file),
        Certificates(ca_file, tls.ours.cert_file),
    ]
    with Sender() as sender:
        ended = sender.send([sender.request(receiver.url(), tls=own) for own in [*broken, tls.ours]])
    assert [end.failure for end in ended] == [FailureKind.LOCAL] * len(broken) + [None]
    assert [seen.certificate for seen in receiver.requests] == ["ours"]
