"""Reading items: every byte kept, every bad input refused for its own reason."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cbq_exporter import item
from cbq_exporter.model import DeadReason

# As an existing producer writes it.
PRODUCED = (
    b'{"url": "https://client.example/hook", "task_id": "t-1", "status": "success", '
    b'"data": {"amount": 1.10, "id": 12345678901234567890123}, "prompt": "a \\u00e9", '
    b'"created_at": null, "_queued_at": 1764000000.123}'
)

_LAYOUTS: tuple[dict[str, Any], ...] = (
    {},
    {"separators": (",", ":")},
    {"indent": 2},
    {"indent": "\t", "separators": (" , ", "\r\n: ")},
    {"ensure_ascii": False},
    {"ensure_ascii": False, "separators": (",", ":")},
)
_TEXTS = st.text() | st.text(st.characters())  # the latter with halves of surrogate pairs
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=20,
)


def slices(payload: bytes) -> dict[str, bytes]:
    return {key: bytes(raw) for key, raw in item.read(payload).items()}


def refused(payload: bytes) -> DeadReason:
    with pytest.raises(item.ItemError) as caught:
        item.read(payload)
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def test_the_values_are_the_bytes_that_the_producer_wrote() -> None:
    read = slices(PRODUCED)
    assert read["data"] == b'{"amount": 1.10, "id": 12345678901234567890123}'
    assert read["prompt"] == b'"a \\u00e9"'
    assert read["created_at"] == b"null"
    assert item.value(item.read(PRODUCED), "url") == "https://client.example/hook"
    assert item.value(item.read(PRODUCED), "created_at") is None
    assert item.value(item.read(PRODUCED), "absent") is None
    assert item.queued_at(PRODUCED) == 1764000000.123


@given(st.dictionaries(_TEXTS, _VALUES, max_size=6), st.sampled_from(_LAYOUTS))
def test_any_object_in_any_layout_is_sliced_into_the_values_it_was_made_of(top: dict[str, Any], layout: Any) -> None:
    text = json.dumps(top, **layout)
    meant = json.loads(text)  # two halves that meet are one character now
    assume(len(meant) == len(top) and not any(0xD800 <= ord(character) <= 0xDFFF for character in text))
    payload = text.encode()
    read = slices(payload)
    assert {key: json.loads(raw) for key, raw in read.items()} == meant
    assert all(raw in payload and raw == raw.strip() for raw in read.values())


def _with_escapes(key: str, which: int) -> str:
    at = which % len(key)
    return f"{key[:at]}\\u{ord(key[at]):04x}{key[at + 1 :]}"


@given(
    st.lists(st.text("abcurl\u00e9", min_size=1, max_size=4), min_size=1, max_size=5, unique=True),
    _VALUES,
    st.data(),
)
def test_a_key_given_twice_is_found_in_any_writing(keys: list[str], other: Any, data: st.DataObject) -> None:
    twice = data.draw(st.sampled_from(keys))
    second = data.draw(st.sampled_from([twice, _with_escapes(twice, data.draw(st.integers(0, 3)))]))
    members = [json.dumps(key, ensure_ascii=False) for key in keys] + [f'"{second}"']
    order = data.draw(st.permutations(members))
    comma, colon = data.draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n  ", " : ")]))
    written = json.dumps(other)
    payload = ("{" + comma.join(f"{member}{colon}{written}" for member in order) + "}").encode()
    assert refused(payload) is DeadReason.INVALID_ITEM
    nested = b'{"data": [' + payload + b"]}"
    assert slices(nested)["data"] == b"[" + payload + b"]"  # only the top level is ours to read


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b" ",
        b"\x00",
        b"hello",
        b"{",
        b'{"url": "http://a.example"',
        b'{"url": "http://a.example",}',
        b'{"url": "http://a.example"} {}',
        b'{"url": "http://a.example"}\x00',
        b"{'url': 'http://a.example'}",
        b'{"n": NaN}',
        b'{"n": Infinity}',
        b'{"n": [-Infinity]}',
        b'{"n": 01}',
        b'{"n": 1.}',
        b'{"n": [1,]}',
        b'{"n": tru}',
        b'{"n": "\x01"}',
        b'{"n": "line\nbreak"}',
        b'{"n": "\\x41"}',
        b'{"n": "\\u12"}',
        b'\xef\xbb\xbf{"a": 1}',  # a byte order mark
        b'{"url": "http://a.example/\xff"}',  # no UTF-8
        b'{"url": "\xed\xa0\xbd"}',  # a surrogate, encoded
        b'{"cut": "\\ud83d", "n": NaN}',
        b'{"cut": "\\ud83d",}',
        b'{"cut": "\\ud83d"',
        b'{"cut": "\\ud83d"}}',
        b'{"cut": "\\ud83d" "n": 1}',
        b'{"cut": "\\ud83d", n: 1}',
        b'{"cut" "\\ud83d"}',
    ],
)
def test_what_is_no_json_is_refused(payload: bytes) -> None:
    assert refused(payload) is DeadReason.INVALID_JSON
    assert item.queued_at(payload) is None
    assert item.url_of(payload) == item.task_id_of(payload) == ""


@pytest.mark.parametrize("payload", [b"[]", b"null", b"1", b'"text"', b'[{"url": "http://a.example"}]', b'["\\ud83d"]'])
def test_json_that_is_no_object_is_refused(payload: bytes) -> None:
    assert refused(payload) is DeadReason.INVALID_ITEM


@pytest.mark.parametrize(("opened", "closed"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"b":[', b"]}]")])
def test_nesting_is_taken_to_its_limit_and_no_deeper(opened: bytes, closed: bytes) -> None:
    levels = (item.MAX_DEPTH - 1) // (opened.count(b"[") + opened.count(b"{"))

    def nested(times: int) -> bytes:
        return b'{"data":' + opened * times + b"1" + closed * times + b',"note":"[[[[\\"]]"}'

    assert slices(nested(levels))["data"].startswith(opened)
    assert refused(nested(levels + 1)) is DeadReason.INVALID_ITEM
    assert refused(nested(100)) is DeadReason.INVALID_ITEM
    assert refused(nested(200_000)) is DeadReason.INVALID_ITEM


def test_many_brackets_beside_each_other_are_not_deep() -> None:
    data = b"[" + b"[],{}," * 10_000 + b'"]]][[["]'
    assert slices(b'{"data":' + data + b"}")["data"] == data


def test_half_a_surrogate_pair_is_carried_as_it_was_written() -> None:
    # JSON.stringify and json.dumps write this where a text was cut in the middle of an emoji.
    payload = b'{"url": "http://a.example/\\ud83d", "data": {"text": "cut \\uD83D"},\n "_queued_at": 1764000000.5}'
    assert slices(payload)["data"] == b'{"text": "cut \\uD83D"}'
    assert item.value(item.read(payload), "url") == "http://a.example/\ud83d"
    assert item.value(item.read(payload), "data") == {"text": "cut \ud83d"}


@pytest.mark.parametrize("digits", [b"1" * 10_000, b"-" + b"9" * 400, b"1e999"])
def test_a_number_of_any_length_can_be_looked_at(digits: bytes) -> None:
    top = item.read(b'{"url": ' + digits + b"}")
    assert bytes(top["url"]) == digits
    assert isinstance(item.value(top, "url"), float | int)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"1764000000.123", 1764000000.123),
        (b"1764000000", 1764000000.0),
        (b"1.764e9", 1.764e9),
        (b"0", None),
        (b"-5", None),
        (b"1e400", None),
        (b"1764000000123", None),  # milliseconds
        (b'"1764000000"', None),
        (b"true", None),
        (b"null", None),
        (b"[1764000000]", None),
    ],
)
def test_the_producers_clock_is_believed_only_where_it_can_be_one(written: bytes, read: float | None) -> None:
    assert item.queued_at(b'{"_queued_at": ' + written + b"}") == read
    assert item.queued_at(None) is None


@pytest.mark.parametrize("opening", [b'{"url":', b'{ "url":'])
def test_ten_megabytes_are_read_in_a_moment_and_unchanged(opening: bytes) -> None:
    data = b'"' + b"QUJD" * 2_500_000 + b'"'
    payload = opening + b'"http://a.example","data":' + data + b"}"
    started = time.process_time()
    assert slices(payload)["data"] == data
    assert time.process_time() - started < 2
