"""Whatever a receiver answers, and whatever stands where a URL should: one end, no exception, and the next is fine."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbq_exporter.config import DeliveryConfig, EgressConfig, ProxyConfig, QueueConfig
from cbq_exporter.delivery.explaining import explain
from cbq_exporter.delivery.url import parse
from cbq_exporter.model import FailureKind
from tests.support.receiver import Answer, Connection, Receiver, Seen
from tests.support.sender import Sender

_AT_ONCE = 8  # answers of one example

_NUMBERS = st.one_of(
    st.integers(-10, 1100).map(str),
    st.sampled_from(["00200", "2e2", "+200", "99999999999999999999", "9223372036854775807", "0x10", "", " 200"]),
)
_VERSIONS = st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/2", "HTTP/3", "HTTP/0.9", "http/1.1", "ICY", ""])
_ENDS = st.sampled_from(["\r\n", "\r\n", "\r\n", "\n", "\r", "\r\r\n", "\0\r\n", ""])
_HEADERS = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(
        [
            *("Content-Length", "content-length", "Transfer-Encoding", "Retry-After", "Connection", "Location"),
            *("Content-Encoding", "Set-Cookie", "Trailer", "Upgrade", "Alt-Svc", "Strict-Transport-Security", "X", ""),
        ]
    ),
    st.sampled_from([":", ": ", " :", "", ":\t"]),
    st.one_of(
        _NUMBERS,
        st.sampled_from(
            ["chunked", "gzip", "gzip, chunked", "close", "keep-alive", "h2c", "identity", 'h2=":443"', "a=b", "//"]
        ),
        st.text(max_size=20),
        st.text(st.characters(max_codepoint=255), max_size=20),
    ),
    _ENDS,
)
_BODIES = st.one_of(
    st.just(""),
    st.text(max_size=40),
    st.lists(
        st.sampled_from(["0\r\n", "\r\n", "4\r\nwhat\r\n", "zz\r\n", "-1\r\n", "ffffffffffffffff\r\n", "1;x\r\nx\r\n"])
    ).map("".join),
)
_HEADS = st.builds(
    lambda version, status, reason, end, headers, last: f"{version} {status}{reason}{end}{''.join(headers)}{last}",
    _VERSIONS,
    _NUMBERS,
    st.sampled_from(["", " ", " OK", " " + "x" * 300]),
    _ENDS,
    st.lists(_HEADERS, max_size=5),
    _ENDS,
)
_ANSWERS = st.one_of(
    st.binary(max_size=200),
    st.binary(max_size=60).map(lambda noise: b"HTTP/1.1 " + noise),
    st.builds(
        lambda encoding, interim, head, body: f"{interim}{head}{body}".encode(encoding, "replace"),
        st.sampled_from(["utf-8", "latin-1"]),
        st.sampled_from(["", "", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Hints\r\nA: b\r\n\r\n"]),
        _HEADS,
        _BODIES,
    ),
)


class Stage:
    """A receiver that answers with whatever bytes are set for a path, and an engine that asks it."""

    def __init__(self, receiver: Receiver, sender: Sender) -> None:
        self.receiver = receiver
        self.sender = sender
        self.answers: list[bytes] = []
        for number in range(_AT_ONCE):
            receiver.on(f"/{number}", self._answer)
        receiver.on("/good", Answer())

    async def _answer(self, seen: Seen, connection: Connection) -> None:
        await connection.write(self.answers[int(seen.path[1:])])


@pytest.fixture(scope="module", params=[False, True], ids=["thread", "process"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with Receiver() as receiver, Sender(own_process=request.param, max_response_bytes=4096) as sender:
        yield Stage(receiver, sender)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_ANSWERS, min_size=_AT_ONCE, max_size=_AT_ONCE))
def test_any_answer_is_one_end(stage: Stage, answers: list[bytes]) -> None:
    stage.answers = answers
    sender, receiver = stage.sender, stage.receiver
    # Waiting for what never comes is an end too; and nobody is to wait here for longer than it takes.
    requests = [sender.request(receiver.url(f"/{number}"), timeout=0.5) for number in range(_AT_ONCE)]
    *ends, good = sender.send([*requests, sender.request(receiver.url("/good"))])
    for answer, end in zip(answers, ends, strict=True):
        assert (end.failure is None) == (200 <= end.status < 300), answer
        # Nothing that a receiver says is trouble of ours, which would be tried for ever.
        assert end.failure not in (FailureKind.LOCAL, FailureKind.BLOCKED, FailureKind.DNS, FailureKind.TLS), answer
        assert not end.never_left, answer
        assert end.status == 0 or end.status >= 101, answer
        assert end.retry_after is None or 0 < end.retry_after <= 6 * 3600, answer
        assert len(end.sample) <= 1024, answer
        assert end.detail.isprintable(), answer
        assert (end.detail == "") == (end.failure is None), answer
    assert (good.status, good.failure) == (200, None)


_QUEUES = [
    QueueConfig(name="direct"),
    QueueConfig(name="ports", delivery=DeliveryConfig(egress=EgressConfig(ports=(443,)))),
    QueueConfig(name="proxied", delivery=DeliveryConfig(proxy=ProxyConfig(url="http://127.0.0.1:3128"))),
]


@settings(max_examples=300)
@given(
    st.sampled_from(_QUEUES),
    st.one_of(st.text(), st.text().map("http://{}".format), st.from_regex(r"https?://[a-z0-9.:\[\]%-]{0,30}(/.*)?")),
    st.lists(st.ip_addresses().map(str), max_size=3),
)
def test_any_text_is_explained(queue: QueueConfig, given: str, addresses: list[str]) -> None:
    """As sending would judge it: what cannot be read is refused, and so is what leads only where nobody may go."""

    def look_up(host: str, port: int) -> list[str]:
        if not addresses:
            raise OSError("nobody knows")
        return addresses

    explained = explain(given, queue, (), look_up)
    if explained.url is None:
        with pytest.raises(ValueError, match=re.escape(explained.refused or "")):
            parse(given)
        return
    target = parse(given)
    assert (explained.url, explained.host, explained.port) == (target.url, target.host, target.port)
    if queue.name == "proxied":
        assert explained.addresses == ()
    elif queue.name == "ports" and target.port != 443:
        assert explained.refused is not None
    else:
        assert (explained.refused is not None) == bool(addresses and all(one.refused for one in explained.addresses))
