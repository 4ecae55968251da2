"""How requests go out over HTTP: compressed where asked, by the address that works, on connections that are kept."""

from __future__ import annotations

import gzip
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pycurl
import pytest

from cbq_exporter.delivery import slot
from cbq_exporter.delivery.surroundings import Surroundings
from tests.support.receiver import Receiver
from tests.support.sender import Sender


@contextmanager
def every_handle(monkeypatch: pytest.MonkeyPatch, option: int, value: object) -> Iterator[None]:
    """Sets an option of libcurl in every engine that is started inside."""
    make = slot.Slot.__init__

    def make_with(self: slot.Slot, around: Surroundings) -> None:
        make(self, around)
        self.curl.setopt(option, value)

    with monkeypatch.context() as patch:
        patch.setattr(slot.Slot, "__init__", make_with)
        yield


def test_compressed_bodies(receiver: Receiver, sender: Sender) -> None:
    """Each with its own length and header, and nothing of it in the next request."""
    text = b'{"image":"' + b"abcd" * 50_000 + b'"}'
    noise = os.urandom(200_000)
    bodies = [(text, True), (text, False), (b"", True), (noise, True), (text, True)]
    for body, packed in bodies:
        assert sender.post(receiver.url(), body, gzip=packed).status == 200
    for seen, (body, packed) in zip(receiver.requests, bodies, strict=True):
        assert seen.headers.get("content-encoding") == ("gzip" if packed else None)
        assert (gzip.decompress(seen.body) if packed else seen.body) == body
    assert len(receiver.requests[0].body) < len(text) / 50


def test_a_body_that_is_encoded_already_is_left_alone(receiver: Receiver, sender: Sender) -> None:
    assert sender.post(receiver.url(), b"odd", headers=["Content-Encoding: br"], gzip=True).status == 200
    (seen,) = receiver.requests
    assert (seen.headers["content-encoding"], seen.body) == ("br", b"odd")


def test_nothing_is_expected_before_a_large_body(receiver: Receiver, sender: Sender) -> None:
    assert sender.post(receiver.url(), b"x" * (2 << 20)).status == 200
    assert "expect" not in receiver.requests[0].headers


def test_a_dead_address_does_not_hold_up_a_live_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPv6 is tried first; after a fifth of a second without an answer, IPv4 beside it."""
    with (
        Receiver() as receiver,
        socket.create_server(("::1", receiver.port), family=socket.AF_INET6, backlog=0) as dead,
    ):
        waiting = []
        for _ in range(4):  # its queue is full: a further connect is not answered
            one = socket.socket(socket.AF_INET6)
            one.setblocking(False)
            one.connect_ex(dead.getsockname()[:2])
            waiting.append(one)
        with (
            every_handle(monkeypatch, pycurl.RESOLVE, [f"both.test:{receiver.port}:[::1],127.0.0.1"]),
            Sender() as sender,
        ):
            exchange = sender.post(f"http://both.test:{receiver.port}/")
        for one in waiting:
            one.close()
    assert exchange.status == 200
    assert 0.15 < exchange.duration < 2


def test_connections_that_idled_too_long_are_not_used_again(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Receivers close after a minute or so, and may do so just when the next request is on its way."""
    monkeypatch.setattr(slot, "IDLE_CONNECTION", 1)
    with Sender() as sender:
        assert sender.post(receiver.url()).status == 200
        assert sender.post(receiver.url()).status == 200
        assert receiver.connections == 1
        with pytest.raises(TimeoutError):
            sender.wait(lambda: False, timeout=2.1)
        assert sender.post(receiver.url()).status == 200
        assert receiver.connections == 2
