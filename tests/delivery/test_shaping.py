"""From a payload to the request that goes out, or to the reason why it cannot."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from cbq_exporter.config import RequestConfig
from cbq_exporter.delivery.shaping import Item, Shaped, Shaper, Unusable, read, webhook_id
from cbq_exporter.model import Claimed, DeadReason

# As the existing software writes it (design: the contract with software that already exists).
ITEM = {
    "url": "https://client.example/callback",
    "task_id": "t-1",
    "status": "success",
    "data": {"image": "aGVsbG8=", "seed": 12345678901234567890123456789, "ratio": 1.0, "empty": []},
    "prompt": "a ‘cat’",
    "created_at": None,
    "_queued_at": 1764000000.123,
}


def claimed(payload: bytes | dict[str, Any]) -> Claimed:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return Claimed("lease", hashlib.sha1(raw).hexdigest(), raw, 0, 0, 0)


def shape(
    payload: bytes | dict[str, Any], body: str = "data", headers: dict[str, str] | None = None, max_bytes: int = 1 << 20
) -> Shaped | Unusable:
    callback = claimed(payload)
    item = read(callback)
    if isinstance(item, Unusable):
        return item
    shaper = Shaper(RequestConfig(body=body, headers=headers or {}), max_bytes=max_bytes)
    shaped = shaper.shape(callback, item)
    return shaped if isinstance(shaped, Unusable) else Shaped(shaped.body, shaper.all_headers(callback, shaped))


def test_data_is_posted_byte_for_byte() -> None:
    """Numbers of any length, the way they are written, and empty arrays are the producer's."""
    raw = b'{"url":"http://a.example/", "data" : {"n": 12345678901234567890123456789, "x":1.0e2,"e":[ ]} }'
    shaped = shape(raw)
    assert isinstance(shaped, Shaped)
    assert shaped.body == b'{"n": 12345678901234567890123456789, "x":1.0e2,"e":[ ]}'
    ours = shape(ITEM)
    assert isinstance(ours, Shaped)
    item = read(claimed(ITEM))
    assert isinstance(item, Item)
    assert item.queued_at == 1764000000.123
    assert item.target.destination == "client.example"
    assert json.loads(ours.body) == ITEM["data"]


def test_the_whole_item_is_posted_byte_for_byte() -> None:
    raw = b' {"url":"http://a.example/","x":NULL}'.replace(b"NULL", b"null")
    shaped = shape(raw, body="item")
    assert isinstance(shaped, Shaped)
    assert shaped.body == raw


def test_headers_are_ours_and_the_configured_ones_win() -> None:
    plain = shape(ITEM)
    assert isinstance(plain, Shaped)
    assert plain.headers == ["content-type: application/json", f"webhook-id: {webhook_id(claimed(ITEM))}"]
    given = shape(ITEM, headers={"Content-Type": "text/plain", "X-Team": "images", "Webhook-Id": "fixed"})
    assert isinstance(given, Shaped)
    assert given.headers == ["Content-Type: text/plain", "X-Team: images", "Webhook-Id: fixed"]


def test_the_idempotency_id_depends_on_nothing_but_the_payload() -> None:
    one = claimed(ITEM)
    later = Claimed("another lease", one.fingerprint, one.payload, 7, 2, 99)
    assert webhook_id(one) == webhook_id(later)
    assert webhook_id(one) != webhook_id(claimed({**ITEM, "task_id": "t-2"}))


def with_url(url: object) -> dict[str, Any]:
    return {"url": url, "data": {}}


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"not json", DeadReason.INVALID_JSON),
        (b"", DeadReason.INVALID_JSON),
        (b'{"url": "http://a.example/", "data": NaN}', DeadReason.INVALID_JSON),
        (b'{"url": "http://a.example/", "data": "\xff\xfe"}', DeadReason.INVALID_JSON),
        (b'"a string"', DeadReason.INVALID_ITEM),
        (b"[1, 2]", DeadReason.INVALID_ITEM),
        (b"null", DeadReason.INVALID_ITEM),
        (b'{"url": "http://a.example/", "url": "http://b.example/", "data": 1}', DeadReason.INVALID_ITEM),
        (b'{"url":"http://a.example/","data":' + b"[" * 100 + b"]" * 100 + b"}", DeadReason.INVALID_ITEM),
        ({"data": {}}, DeadReason.INVALID_URL),
        (with_url(""), DeadReason.INVALID_URL),
        (with_url(None), DeadReason.INVALID_URL),
        (with_url(7), DeadReason.INVALID_URL),
        (with_url(["http://a.example/"]), DeadReason.INVALID_URL),
        (with_url("/relative"), DeadReason.INVALID_URL),
        (with_url("ftp://a.example/"), DeadReason.INVALID_URL),
        (with_url("file:///etc/passwd"), DeadReason.INVALID_URL),
        (with_url("javascript:alert(1)"), DeadReason.INVALID_URL),
        (with_url("http://a.example/" + "x" * 10_000), DeadReason.INVALID_URL),
        (with_url("http://[::1/"), DeadReason.INVALID_URL),
        (with_url("http://a.example/\r\nX: y"), DeadReason.INVALID_URL),
        (with_url("http://a.example/\0"), DeadReason.INVALID_URL),
        ({"url": "http://a.example/"}, DeadReason.NO_DATA),
        ({"url": "http://a.example/", "data": "x" * 2 * 1024 * 1024}, DeadReason.TOO_LARGE),
    ],
)
def test_what_cannot_be_sent_has_its_reason(payload: bytes | dict[str, Any], reason: DeadReason) -> None:
    unusable = shape(payload)
    assert isinstance(unusable, Unusable)
    assert unusable.reason is reason
    assert unusable.detail.isprintable()
    assert len(unusable.detail) < 300


def test_a_missing_body_names_the_way_out() -> None:
    unusable = shape({"url": "http://a.example/"})
    assert isinstance(unusable, Unusable)
    assert "body: item" in unusable.detail
