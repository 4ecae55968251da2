"""What several callbacks in one request are made of, and what its answer means for each of them."""

from __future__ import annotations

import gc
import hashlib
import json
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbq_exporter import rendering
from cbq_exporter.config import CoalesceConfig, QueueConfig
from cbq_exporter.delivery import bundles, shaping, url
from cbq_exporter.delivery.bundles import Bundle, bundle, of_request, opened, read_results
from cbq_exporter.delivery.destinations import Parcel
from cbq_exporter.delivery.exchange import Exchange
from cbq_exporter.delivery.judgement import kind_of_status
from cbq_exporter.delivery.receivers import Receiver, Receivers
from cbq_exporter.model import Claimed, FailureKind

LIST = CoalesceConfig(size=10)
OBJECT = CoalesceConfig(size=10, field="callbacks")


def receiver(coalesce: CoalesceConfig = LIST, **delivery: Any) -> Receiver:
    queue = QueueConfig.model_validate({"name": "q", "delivery": {"coalesce": coalesce, **delivery}})
    return Receivers(queue, ()).of(url.parse("http://a.example/hook"))


USUAL = receiver()


def renders(callback: Any, _attempt: Any) -> rendering.Request:
    return rendering.Request(json.dumps(callback.item["data"]).encode())


def parcel(number: int, to: Receiver = USUAL, *, body: bytes | None = None, attempts: int = 0) -> Parcel:
    body = json.dumps({"n": number}).encode() if body is None else body
    payload = b'{"url": "http://a.example/hook", "data": %b}' % body
    claimed = Claimed(f"lease-{number}", hashlib.sha1(payload).hexdigest(), payload, attempts, 0, 0)
    item = shaping.read(claimed)
    assert isinstance(item, shaping.Item)
    shaped = to.shaper.shape(claimed, item)
    assert isinstance(shaped, shaping.Shaped)
    return Parcel(number, claimed, to, item.target.url, shaped.body, shaped.headers, float(number))


def ids_of(members: list[Parcel]) -> list[str]:
    return [shaping.webhook_id(one.claimed) for one in members]


def answered(status: int, body: Any = b"") -> Exchange:
    sample = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Exchange(None, status, None if status < 300 else kind_of_status(status), sample=sample)


def header(made: Bundle, name: str) -> str | None:
    return next((line.partition(": ")[2] for line in made.make_request().headers if line.startswith(f"{name}: ")), None)


# --- making --------------------------------------------------------------------------------------


def test_the_body_is_an_array_of_the_bodies_byte_for_byte() -> None:
    members = [parcel(1, body=b'{"n": 1.10}'), parcel(2, body=b'"x"')]
    made = bundle(members, LIST)
    assert made.make_request().body == b'[{"n": 1.10},"x"]'
    assert header(made, "webhook-ids") == ",".join(ids_of(members))
    assert header(made, "content-type") == "application/json"
    request, alone = made.make_request(), members[0].make_request()
    assert sum(line.startswith("webhook-id: ") for line in request.headers) == 1
    assert request.not_after == 1.0
    assert alone.headers == [*request.headers[:1], f"webhook-id: {ids_of(members)[0]}"]


def test_or_an_object_with_their_ids() -> None:
    members = [parcel(n) for n in range(3)]
    made = bundle(members, OBJECT)
    assert json.loads(made.make_request().body) == {"callbacks": [{"n": 0}, {"n": 1}, {"n": 2}], "ids": ids_of(members)}
    assert header(made, "webhook-ids") is None


def test_the_id_of_a_bundle_is_that_of_its_members() -> None:
    members = [parcel(n) for n in range(3)]
    first = header(bundle(members, LIST), "webhook-id")
    assert first == header(bundle([parcel(n) for n in range(3)], OBJECT), "webhook-id")
    assert first != header(bundle(members[:2], LIST), "webhook-id")
    assert first not in ids_of(members)


def test_too_many_ids_are_in_no_header() -> None:
    assert header(bundle([parcel(n) for n in range(151)], LIST), "webhook-ids") is None


def test_what_goes_together_has_url_receiver_and_headers_in_common() -> None:
    other = receiver(request={"headers": {"X-Client": "b"}})
    assert bundles.kind_of(parcel(1)) == bundles.kind_of(parcel(2))
    assert bundles.kind_of(parcel(1)) != bundles.kind_of(parcel(1, other))


@pytest.mark.parametrize(
    ("one", "fits"),
    [
        (parcel(1), True),
        (parcel(1, attempts=9), False),
        (parcel(1, body=b'"' + b"x" * 2_000_000 + b'"'), False),
    ],
    ids=["usual", "last attempt", "too large"],
)
def test_what_goes_alone(one: Parcel, fits: bool) -> None:
    assert (bundles.size_in(one, LIST) is not None) is fits


PIECES = ["a", "{", "\\n", "\\\\", "\\ud83d", "\\uDE00", "\\u00e9", '","', '": "']


@given(st.lists(st.sampled_from(PIECES), max_size=8))
def test_what_an_item_holds_goes_together_only_where_it_is_json_to_others_too(pieces: list[str]) -> None:
    """Producers that cut texts short leave halves of surrogate pairs, which other parsers refuse."""
    payload = b'{"url": "http://a.example/hook", "data": ["%b"]}' % "".join(pieces).encode()
    item = shaping.read(Claimed("lease", "0" * 40, payload, 0, 0, 0))
    if isinstance(item, shaping.Item):
        one = parcel(1, body=bytes(item.fields["data"]))
        assert (bundles.size_in(one, LIST) is not None) is _is_strict_json(one.body)


def _is_strict_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body)
    except msgspec.DecodeError:
        return False
    return True


@pytest.mark.parametrize("body", [b"a=b", b"", b"{", b'"\xff', b"[1] 2"])
def test_what_is_no_json_goes_alone(body: bytes) -> None:
    one = parcel(1, receiver(request={"body": {"renderer": "tests.delivery.test_bundles:renders"}}))
    one.body = body
    assert bundles.size_in(one, LIST) is None


def test_a_lost_member_takes_the_bundle_with_it_and_nobody_brings_it_back() -> None:
    members = [parcel(n) for n in range(3)]
    made = bundle(members, LIST)
    request = made.make_request()
    members[2].prolong(50.0)
    assert request.not_after == 50.0
    members[0].withdraw()
    members[1].prolong(99.0)
    assert request.not_after == float("-inf")
    assert members[1].make_request().not_after == 99.0


def test_what_has_ended_is_freed_without_the_garbage_collector() -> None:
    def there() -> int:
        return sum(type(one) in (Bundle, Parcel) for one in gc.get_objects())

    gc.disable()
    try:
        before = there()
        for answer in (b"ok", [{"status": 200}, {"status": 500}], b"x" * 70_000):
            made = bundle([parcel(1), parcel(2)], LIST)
            exchange = answered(200, answer)
            exchange.tag, made.request = made.make_request().tag, None
            ended = opened(made, exchange).ended
            assert {of_request(end).status for _, end in ended} == {200}
            del made, exchange, ended
        bundles.taken_apart(bundle([parcel(1), parcel(2)], LIST))
        assert there() == before
    finally:
        gc.enable()


# --- opening -------------------------------------------------------------------------------------


def test_without_results_the_status_counts_for_all() -> None:
    for exchange in (answered(200, b"ok"), answered(503, b"busy"), Exchange(None, 0, FailureKind.TIMEOUT)):
        members = [parcel(n) for n in range(3)]
        result = opened(bundle(members, LIST), exchange)
        assert [(list(whole.members), end.status, end.failure) for whole, end in result.ended] == [
            (members, exchange.status, exchange.failure)
        ]
        assert not result.again
        assert all(one.bundle is None for one in members)


def test_results_count_for_each() -> None:
    members = [parcel(n) for n in range(5)]
    ids = ids_of(members)
    said = [
        {"id": ids[3], "status": 429, "retry_after": 7, "error": "slow down"},
        {"id": ids[0], "status": 200},
        {"id": ids[1], "status": 410, "retry_after": "soon"},
        {"id": "msg_unknown", "status": 500},
        {"id": ids[4], "status": 202},
    ]
    for answer in (said, {"results": said}):
        for status, of_the_rest in ((207, None), (503, FailureKind.HTTP_5XX)):
            ends = [end for _, end in opened(bundle(members, LIST), answered(status, answer)).ended]
            assert [end.status for end in ends] == [200, 410, status, 429, 202]
            assert [end.failure for end in ends[:2]] == [None, FailureKind.HTTP_4XX]
            assert ends[2].failure == of_the_rest  # nothing was said of it
            assert (ends[3].retry_after, ends[1].retry_after) == (7.0, None)
            assert b"slow down" in ends[3].sample


def test_results_without_ids_are_in_the_order_of_the_bodies() -> None:
    assert [one and one.status for one in read_results(b'[{"status": 200}, {"status": 422}]', ["a", "b"]) or []] == [
        200,
        422,
    ]
    assert read_results(b'[{"status": 200}]', ["a", "b"]) is None


def test_equal_callbacks_have_one_id_and_may_have_results_of_their_own() -> None:
    two = b'[{"id": "a", "status": 200}, {"id": "a", "status": 500}]'
    one = b'[{"id": "a", "status": 500}]'
    assert [it and it.status for it in read_results(two, ["a", "a"]) or []] == [200, 500]
    assert [it and it.status for it in read_results(one, ["a", "a"]) or []] == [500, 500]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"ok",
        b"[]",
        b"{}",
        b"null",
        b'{"results": {}}',
        b'{"ok": true}',
        b"[1, 2]",
        b'[{"id": "a"}]',
        b'[{"id": "a", "status": "200"}]',
        b'[{"id": "a", "status": true}]',
        b'[{"id": "a", "status": 99}]',
        b'[{"id": "a", "status": 1e400}]',
        b'[{"id": 1, "status": 200}]',
        b'[{"id": "a", "status": 200}',
        b"[" * 100_000,
        b'{"results":' * 5000,
        b"\xff\xfe",
    ],
)
def test_an_answer_that_is_no_results(answer: bytes) -> None:
    assert read_results(answer, ["a", "b"]) is None


@pytest.mark.parametrize(
    "of_a",
    [
        '"status": 503.0',
        '"status": 503, "sample": "no base64", "more": {"deep": [null]}',
        '"status": 503, "error": "cut short \\ud83d"',
        '"status": 503, "took": NaN',
        f'"status": 503, "retry_after": {"9" * 400}',
        f'"status": 503, "retry_after": {"9" * 5000}',
        '"status": 503, "retry_after": -1e999',
    ],
)
@pytest.mark.parametrize(
    "of_c",
    [
        '{"id": "c"}',
        '{"id": "c", "status": "ok"}',
        '{"status": 500}',
        '{"id": 7, "status": 500}',
        '{"id": "\\ud800", "status": 500}',
        "5",
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "byte order mark"])
def test_what_is_strange_in_a_result_hides_no_other(of_a: str, of_c: str, mark: bytes) -> None:
    answer = mark + f'{{"took": 3, "results": [{{"id": "a", {of_a}}}, {{"id": "b", "status": 200}}, {of_c}]}}'.encode()
    found = read_results(answer, ["a", "b", "c"])
    assert found is not None
    assert [one and one.status for one in found] == [503, 200, None]
    assert found[0] is not None
    assert found[0].retry_after is None


RESULTS = st.lists(
    st.fixed_dictionaries(
        {"status": st.sampled_from([200, 202, 404, 503]) | st.integers() | st.floats() | st.text() | st.none()},
        optional={
            "id": st.sampled_from(["a", "b", "a"]) | st.text() | st.integers(),
            "retry_after": st.integers() | st.floats() | st.text() | st.integers(400, 6000).map(lambda n: 1 << n),
            "error": st.text() | st.just("\ud800"),
            "sample": st.text() | st.none(),
        },
    ),
    max_size=4,
).map(lambda them: json.dumps({"results": them}).encode())


@given(
    st.binary(max_size=200) | st.text('[]{}":,0123456789aeidrstul ', max_size=200).map(str.encode) | RESULTS,
    st.sampled_from([200, 207, 422, 503]),
)
def test_any_answer_can_be_read(answer: bytes, status: int) -> None:
    found = read_results(answer, ["a", "b"])
    assert found is None or len(found) == 2
    members = [parcel(1), parcel(2)]
    for name, own in zip("ab", ids_of(members), strict=True):
        answer = answer.replace(b'"%b"' % name.encode(), b'"%b"' % own.encode())
    result = opened(bundle(members, LIST), answered(status, answer))
    came = [one for part, _ in result.ended for one in part.members or [part]]
    assert [*came, *(one for part in result.again for one in part)] == members


@pytest.mark.parametrize(
    "begin",
    [
        '[{"id": "%s", "status": 200, "note": "',
        '[{"id": "%s", "note": "',
        '[{"task": 1, "status": 200, "id": "%s", "note": "',
        '{"results": [{"id": "%s", "note": "',
        '{"took": 3, "errors": true, "results": [{"took": 1, "id": "%s", "status": 503, "note": "',
    ],
)
def test_results_whose_end_is_missing_are_no_success(begin: str) -> None:
    members = [parcel(n) for n in range(2)]
    long = (begin % ids_of(members)[0]).encode() + b"x" * 70_000
    made = bundle(members, LIST)
    assert made.make_request().answer_bytes == 65_536
    ends = [end for _, end in opened(made, answered(200, long[:65_536])).ended]
    assert {(end.status, end.failure) for end in ends} == {(0, FailureKind.PROTOCOL)}


@pytest.mark.parametrize(
    "begin", ["<html>", '[{"id": 1, "n": "', '{"results": 2, "status": 200, "n": "', "[" * 9, '{"results":[{' * 9]
)
def test_a_long_answer_that_is_no_results_is_a_success(begin: str) -> None:
    answer = (begin.encode() + b"x" * 70_000)[:65_536]
    ((_, end),) = opened(bundle([parcel(1), parcel(2)], LIST), answered(200, answer)).ended
    assert end.failure is None


def test_where_the_table_says_that_it_is_no_fault_of_the_contents_nothing_is_split() -> None:
    queue = QueueConfig.model_validate(
        {"name": "q", "delivery": {"coalesce": LIST}, "retry": {"statuses": {"422": "retry"}}}
    )
    to = Receivers(queue, ()).of(url.parse("http://a.example/hook"))
    members = [parcel(n, to) for n in range(4)]
    assert [whole.members for whole, _ in opened(bundle(members, LIST), answered(422)).ended] == [members]
    assert len(opened(bundle(members, LIST), answered(413)).again) == 2


@given(
    count=st.integers(2, 60),
    poison=st.sets(st.integers(0, 59), max_size=6),
    most=st.integers(1, 60),
    status=st.sampled_from(sorted(bundles.SPLITS)),
    results=st.booleans(),
)
def test_each_callback_comes_to_exactly_one_end_that_is_its_own(
    count: int, poison: set[int], most: int, status: int, results: bool
) -> None:
    """A receiver that refuses what has a poison in it, and what is too long for it."""
    outcomes: list[tuple[Parcel, Exchange]] = []
    sent = 0
    left: list[list[Parcel]] = [[parcel(n) for n in range(count)]]
    while left:
        members = left.pop(0)
        sent += 1
        bad = [one.number in poison for one in members]
        if len(members) == 1:
            outcomes.append((members[0], answered(status if bad[0] else 200)))
            continue
        if len(members) > most:
            exchange = answered(413)
        elif any(bad) and results:
            said = zip(ids_of(members), bad, strict=True)
            exchange = answered(207, [{"id": one, "status": status if is_bad else 200} for one, is_bad in said])
        else:
            exchange = answered(status if any(bad) else 200)
        result = opened(bundle(members, LIST), exchange)
        each = [(one, end) for came, end in result.ended for one in came.members or [came]]
        assert [*(one for one, _ in each), *(one for part in result.again for one in part)] == members
        assert result.size == len(members)
        outcomes += each
        left += [list(part) for part in result.again]
    assert sent <= 2 * count - 1
    assert Counter(one.number for one, _ in outcomes) == Counter(range(count))
    assert {one.number for one, end in outcomes if end.failure is not None} == {n for n in poison if n < count}
