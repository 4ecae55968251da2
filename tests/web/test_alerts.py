"""Alertmanager's webhook over HTTP: who may, what is understood, and what is answered to everything else."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbq_exporter.errors import CbqError, StoreMisuse, StoreUnavailable
from cbq_exporter.model import AlertOutcome
from cbq_exporter.policy.alerts import Alert
from cbq_exporter.services.alert_responder import Received
from cbq_exporter.web import openapi
from cbq_exporter.web.alerts import MOST_BODY, AlertWebhook
from tests.web.api_serving import OTHER, TOKEN, problem, token_file
from tests.web.serving import Answer, FakeBackend, Serving, serving

PATH = "/api/v1/alerts"


def alert(**changes: Any) -> dict[str, Any]:
    """As Alertmanager sends one."""
    return {
        "status": "firing",
        "labels": {"alertname": "CbqStuckCallbacks", "queue": "callbacks"},
        "annotations": {"summary": "3 callbacks are stuck"},
        "startsAt": "2026-11-25T02:05:49.123456789Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus.example/graph?g0.expr=x",
        "fingerprint": "a1b2c3d4e5f60718",
        **changes,
    }


def body(*alerts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "version": "4",
        "groupKey": '{}:{alertname="CbqStuckCallbacks"}',
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "cbq-exporter",
        "groupLabels": {},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager.example",
        "alerts": list(alerts),
        **changes,
    }


@dataclass
class NotingResponder:
    """Accepts everything, or raises ``fail``."""

    received: list[Alert] = field(default_factory=list)
    fail: Exception | None = None

    async def receive(self, alerts: Sequence[Alert]) -> list[Received]:
        if self.fail is not None:
            raise self.fail
        self.received += alerts
        return [Received(one, AlertOutcome.ACCEPTED, "recover \ud800", "alerts.routes[0]") for one in alerts]


@dataclass
class Webhook:
    served: Serving
    responder: NotingResponder
    counted: Counter[AlertOutcome]
    truncated: list[int]

    def post(self, content: Any, *, token: str | None = TOKEN, **headers: str) -> Answer:
        if token is not None:
            headers.setdefault("Authorization", f"Bearer {token}")
        headers.setdefault("Content_Type", "application/json")
        sent = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.served.ask(PATH, "POST", sent, **headers)


def _webhook(tokens: Path | None, body_time: float = 10.0) -> Iterator[Webhook]:
    responder, counted, truncated = NotingResponder(), Counter[AlertOutcome](), list[int]()

    def count(outcome: AlertOutcome) -> None:
        counted[outcome] += 1

    made = AlertWebhook(tokens, responder, count=count, count_truncated=truncated.append, body_time=body_time)
    with serving(FakeBackend(), routes=[made]) as served:
        yield Webhook(served, responder, counted, truncated)


@pytest.fixture
def webhook(tmp_path: Path) -> Iterator[Webhook]:
    yield from _webhook(token_file(tmp_path))


def test_what_alertmanager_sends_is_understood(webhook: Webhook) -> None:
    resolved = alert(status="resolved", fingerprint="ff", startsAt="2026-11-25T03:05:49+01:00")
    answer = webhook.post(body(alert(), resolved, truncatedAlerts=7))
    assert answer.status == 200
    assert json.loads(answer.body)["alerts"][0] == {
        "fingerprint": "a1b2c3d4e5f60718",
        "outcome": "accepted",
        "route": "alerts.routes[0]",
        "detail": "recover ?",
    }
    labels = {"alertname": "CbqStuckCallbacks", "queue": "callbacks"}
    assert webhook.responder.received == [
        Alert("a1b2c3d4e5f60718", "2026-11-25T02:05:49.123457+00:00", True, labels),
        Alert("ff", "2026-11-25T02:05:49+00:00", False, labels),
    ]
    assert webhook.truncated == [7]
    assert webhook.post(body()).status == 200
    assert webhook.post({"version": "4", "alerts": []}, token=OTHER).status == 200
    assert not webhook.counted  # what is received is counted by the responder


INVALID: dict[str, Any] = {
    "nothing": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "not UTF-8": b'{"version": "\xff"}',
    "a number too deep": b"[" * 100_000,
    "another version": body(version="5"),
    "a version that is a number": body(version=4),
    "no version": {"alerts": []},
    "no alerts": {"version": "4"},
    "alerts that are no list": body() | {"alerts": {}},
    "an alert that is none": body() | {"alerts": [1]},
    "no status": body({k: v for k, v in alert().items() if k != "status"}),
    "another status": body(alert(status="suppressed")),
    "no labels": body({k: v for k, v in alert().items() if k != "labels"}),
    "labels that are no texts": body(alert(labels={"queue": 1})),
    "no fingerprint": body({k: v for k, v in alert().items() if k != "fingerprint"}),
    "an odd fingerprint": body(alert(fingerprint="a\nb")),
    "an empty fingerprint": body(alert(fingerprint="")),
    "no beginning": body({k: v for k, v in alert().items() if k != "startsAt"}),
    "a beginning without a zone": body(alert(startsAt="2026-11-25T02:05:49")),
    "a beginning that is none": body(alert(startsAt="yesterday")),
    "fewer than none left out": body(truncatedAlerts=-1),
    "one good and one bad": body(alert(), alert(startsAt=1)),
}


@pytest.mark.parametrize("name", INVALID)
def test_what_is_not_its_body_is_refused_as_a_whole(webhook: Webhook, name: str) -> None:
    answer = webhook.post(INVALID[name])
    assert (answer.status, problem(answer)["code"]) == (400, "invalid_alerts")
    assert not webhook.responder.received
    assert webhook.counted == Counter({AlertOutcome.INVALID: 1})


def test_unknown_members_and_odd_labels_are_passed_over_or_passed_on(webhook: Webhook) -> None:
    labels = {"alertname": 'a\n"b"\\', "queue": "callback_queue:pending", "é": "\u0000", "": "x" * 10_000}
    odd = alert(labels=labels, extra={"action": "reset"}, startsAt="0001-01-01T00:00:00+14:00")
    assert webhook.post(body(odd, keys=["*"], command="FLUSHALL")).status == 200
    assert webhook.responder.received[0].labels == labels


def test_only_whoever_has_the_token_is_heard(webhook: Webhook, tmp_path: Path) -> None:
    sent = json.dumps(body(alert())).encode()
    for headers in (
        {},
        {"Authorization": "Bearer wrong-token-wrong-token"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
    ):
        answer = webhook.served.ask(PATH, "POST", sent, Content_Type="application/json", **headers)
        assert (answer.status, problem(answer)["code"]) == (401, "unauthorized")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    with webhook.served.connect() as sock:
        twice = f"Authorization: Bearer {TOKEN}\r\n" * 2
        sock.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\n{twice}Content-Length: 2\r\n\r\n{{}}".encode())
        assert b" 401 " in sock.recv(1000)
    assert webhook.counted == Counter({AlertOutcome.UNAUTHORIZED: 5})
    (tmp_path / "tokens").write_text("")
    assert webhook.post(sent).status == 503
    assert webhook.counted[AlertOutcome.FAILED] == 1
    assert not webhook.responder.received
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        assert webhook.served.ask(PATH, method, Authorization=f"Bearer {TOKEN}").status == 405


def test_without_a_token_file_everybody_is_refused() -> None:
    for webhook in _webhook(None):
        answer = webhook.post(body(alert()))
        assert (answer.status, problem(answer)["code"]) == (403, "no_token_file")
        assert "alerts.auth.bearer_token_file" in problem(answer)["detail"]
        assert webhook.counted == Counter({AlertOutcome.UNAUTHORIZED: 1})


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/json; charset=latin-1"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Content_Encoding": "gzip"},
    ],
)
def test_another_kind_of_body_is_refused(webhook: Webhook, headers: dict[str, str]) -> None:
    answer = webhook.post(body(alert()), **headers)
    assert (answer.status, problem(answer)["code"]) == (415, "content_type")


def test_a_body_may_be_as_large_as_a_group_of_alerts_and_not_larger(webhook: Webhook) -> None:
    annotations = {"description": "x" * 3000}
    thousand = body(*[alert(fingerprint=f"{n:x}", annotations=annotations) for n in range(1000)])
    assert webhook.post(thousand).status == 200
    assert len(webhook.responder.received) == 1000
    del webhook.responder.received[:]
    small = {name: value for name, value in alert().items() if name in ("status", "labels", "startsAt", "fingerprint")}
    for sent in (
        body(*[small | {"labels": {}} for _ in range(1001)]),
        body(*[alert() for _ in range(10_000)]),
        body(alert(annotations={"text": "x" * 10 * 1024 * 1024})),
        b" " * (MOST_BODY + 1),
    ):
        answer = webhook.post(sent)
        assert (answer.status, problem(answer)["code"]) == (413, "too_large")
    assert not webhook.responder.received
    assert webhook.counted == Counter({AlertOutcome.INVALID: 4})


def _chunked(*chunks: bytes) -> bytes:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks)


def test_chunks_are_read_bounded_and_garbage_in_them_is_refused(webhook: Webhook) -> None:
    sent = json.dumps(body(alert())).encode()
    part = b"%x\r\n%s\r\n"
    whole = part % (len(sent), sent) + b"0\r\n\r\n"
    endless = part % (64 * 1024, b" " * 64 * 1024)
    for raw, status in (
        (_chunked(whole), b" 200 "),
        (_chunked(*[endless] * (MOST_BODY // 65536 + 2)), b" 413 "),
        (_chunked(b"nonsense\r\n"), b" 400 "),
        (_chunked(part % (len(sent) - 5, sent)), b" 400 "),
    ):
        with webhook.served.connect() as sock:
            sock.sendall(raw)
            assert status in sock.recv(200)
    assert len(webhook.responder.received) == 1
    assert webhook.post(sent).status == 200


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    for webhook in _webhook(token_file(tmp_path), body_time=0.2):
        with webhook.served.connect() as sock:
            sock.sendall(_chunked(b"1\r\n{\r\n"))
            assert b" 408 " in sock.recv(200)
        with webhook.served.connect() as sock:
            sock.sendall(_chunked(b"1\r\n{\r\n"))
            sock.shutdown(socket.SHUT_RDWR)
        assert webhook.post(body(alert())).status == 200
        assert len(webhook.responder.received) == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [(StoreUnavailable("away", kind="connect"), 503), (StoreMisuse("wrong", kind="other"), 500), (CbqError("no"), 409)],
)
def test_a_store_that_is_away_lets_alertmanager_try_again(webhook: Webhook, error: Exception, status: int) -> None:
    webhook.responder.fail = error
    answer = webhook.post(body(alert()))
    assert answer.status == status
    assert ("Retry-After" in answer.headers) == (status == 503)
    webhook.responder.fail = None
    assert webhook.post(body(alert())).status == 200


# --- anything ------------------------------------------------------------------------------------

_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)
_ALERTS = st.lists(
    st.builds(
        lambda changes, gone: {k: v for k, v in {**alert(), **changes}.items() if k not in gone},
        st.dictionaries(st.sampled_from([*alert(), "x"]), _JSON, max_size=2),
        st.sets(st.sampled_from([*alert()]), max_size=1),
    ),
    max_size=3,
)
_BODIES = st.one_of(
    st.builds(
        lambda alerts, changes: {**body(*alerts), **changes},
        _ALERTS,
        st.dictionaries(st.sampled_from([*body(), "x"]), _JSON, max_size=1),
    ),
    _JSON,
)


def test_any_body_is_understood_as_the_document_says_or_refused(webhook: Webhook) -> None:
    document = openapi.document()
    valid = jsonschema.Draft202012Validator(
        {"$ref": "#/components/schemas/WebhookBody", "components": document["components"]}
    )

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(st.one_of(_BODIES.map(lambda one: json.dumps(one).encode()), st.binary(max_size=60)))
    def check(content: bytes) -> None:
        del webhook.responder.received[:]
        answer = webhook.post(content)
        assert answer.status in (200, 400), answer.text
        if answer.status == 400:
            assert not webhook.responder.received
        else:
            sent = json.loads(content)
            assert valid.is_valid(sent)
            assert sent["version"] == "4"
            assert len(webhook.responder.received) == len(sent["alerts"]) == len(json.loads(answer.body)["alerts"])

    check()
