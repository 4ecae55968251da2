"""The main job, end to end: what a bare client pushes is delivered, tried again, or kept with the reason.

One daemon serves a queue for each test, so that they cannot disturb each other; all of it runs on Valkey and on
Redis.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import redis

from cbq_exporter.model import DeadReason
from tests.e2e.bare_client import (
    by_payload,
    dead_letters,
    item,
    lengths,
    number_of,
    push,
    wait_until_settled,
)
from tests.support import receiver as behaviours
from tests.support.daemons import SHORT_LIVED, Daemon, queue, until
from tests.support.receiver import Answer, Receiver, Seen, busy, redirect
from tests.support.servers import KINDS, Server

QUEUES = (
    queue(name="looked-at", prefix="looked-at", mode="observe"),
    queue(name="contract"),  # at the prefix of the existing software
    queue(name="sized", prefix="sized", batch={"size": 5, "max_delay": "30s"}),
    queue(name="aged", prefix="aged", batch={"max_delay": "700ms"}),
    queue(name="early", prefix="early", batch={"max_delay": "30s", "early": {"size": 3, "delay": "400ms"}}),
    queue(name="interval", prefix="interval", batch={"size": 2, "min_interval": "400ms"}),
    queue(name="turns", prefix="turns", batch={"min_interval": "1500ms"}),
    queue(name="spread", prefix="spread", batch={"spread": "150ms"}),
    queue(name="at-once", prefix="at-once"),
    queue(name="retried", prefix="retried", delivery={"own_process": True}),
    queue(name="given-up", prefix="given-up", retry={"max_attempts": 3}),
    queue(name="whole", prefix="whole", delivery={"request": {"body": "item", "headers": {"x-team": "blue"}}}),
    queue(name="twins", prefix="twins"),
    queue(name="bad", prefix="bad", delivery={"timeout": "10s", "own_process": True}),
)


@dataclass
class Place:
    server: Server
    receiver: Receiver
    daemon: Daemon

    @property
    def client(self) -> redis.Redis:
        return self.server.client

    def metric(self, name: str, **labels: str) -> float | None:
        return self.daemon.metrics().get(f"cbq_{name}", **labels)

    def seen_at(self, path: str) -> list[Seen]:
        return [one for one in self.receiver.requests if one.path == path]

    def wait_for(self, path: str, count: int, timeout: float = 15.0) -> list[Seen]:
        self.receiver.wait_until(lambda _: len(self.seen_at(path)) >= count, timeout)
        return self.seen_at(path)


@pytest.fixture(scope="module", params=KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with Server(request.param) as server, Receiver() as receiver, Daemon(server.url, *QUEUES) as daemon:
        daemon.wait_until_ready()
        yield Place(server, receiver, daemon)


def test_the_first_lines_name_a_queue_that_is_sent(place: Place) -> None:
    *_, last = (place.daemon.folder / "out").read_text().splitlines()
    assert last.startswith("Enqueue one callback: python -m cbq_exporter enqueue ")
    assert " -q contract " in last  # not the first: that one is only looked at


def test_an_item_of_the_existing_software_is_delivered_and_its_keys_are_kept_as_its_tools_expect(place: Place) -> None:
    client = place.client
    payload = (
        b'{"url": "%s", "task_id": "t-1", "status": "success", "data": {"image": "aGk=", "cost": 1.50, "n":\n 1e400},'
        b' "prompt": "\\u00e9", "created_at": null, "_queued_at": %.3f}'
    ) % (place.receiver.url("/contract").encode(), time.time())
    client.rpush("callback_queue:pending", payload)

    (seen,) = place.wait_for("/contract", 1)
    assert seen.method == "POST"
    assert seen.body == b'{"image": "aGk=", "cost": 1.50, "n":\n 1e400}'  # the producer's bytes, not read and rewritten
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["user-agent"].startswith("cbq-exporter/")
    wait_until_settled(client)

    assert float(client.get("callback_queue:last_send_time") or 0) == pytest.approx(seen.at, abs=5)
    assert 0 < client.ttl("callback_queue:last_send_time") <= 60
    assert client.get("callback_queue:stats:sent") == b"1"
    assert 86_000 < client.ttl("callback_queue:stats:sent") <= 86_400
    assert client.get("callback_queue:stats:failed") is None
    assert 0 < client.ttl("callback_queue:lock") <= 30
    assert place.metric("callbacks_delivered_total", queue="contract") == 1
    assert place.metric("source_stats_total", queue="contract", stat="sent") == 1


def test_a_batch_goes_when_it_is_full(place: Place) -> None:
    url = place.receiver.url("/sized")
    push(place.client, *(item(url, n) for n in range(4)), prefix="sized")
    # Five are one batch, whoever pushed them; the four would have waited half a minute.
    push(place.client, item(url, 4), prefix="sized")
    seen = place.wait_for("/sized", 5)
    assert sorted(number_of(one.body) for one in seen) == [0, 1, 2, 3, 4]
    assert place.metric("batch_flushes_total", queue="sized", reason="size") == 1
    assert place.metric("batch_flushes_total", queue="sized") == 1


def test_a_batch_that_is_not_full_goes_when_its_oldest_is_old_enough(place: Place) -> None:
    began = time.time()
    push(place.client, *(item(place.receiver.url("/aged"), n) for n in range(2)), prefix="aged")
    seen = place.wait_for("/aged", 2)
    assert min(one.at for one in seen) >= began + 0.7
    assert place.metric("batch_flushes_total", queue="aged", reason="age") == 1


def test_a_few_that_have_waited_a_little_go_early(place: Place) -> None:
    began = time.time()
    push(place.client, *(item(place.receiver.url("/early"), n) for n in range(3)), prefix="early")
    seen = place.wait_for("/early", 3)
    assert min(one.at for one in seen) >= began + 0.4
    assert place.metric("batch_flushes_total", queue="early", reason="early") == 1


def test_batches_keep_their_least_interval(place: Place) -> None:
    began = time.time()
    push(place.client, *(item(place.receiver.url("/interval"), n) for n in range(6)), prefix="interval")
    seen = sorted(place.wait_for("/interval", 6), key=lambda one: one.at)
    assert [number_of(one.body) // 2 for one in seen] == [0, 0, 1, 1, 2, 2]
    assert seen[4].at - began >= 0.8  # twice the interval, however late the first was
    assert place.metric("batch_flushes_total", queue="interval") == 3


def test_batches_of_other_workers_count_for_the_interval(place: Place) -> None:
    began = time.time()
    place.client.set("turns:last_send_time", str(began), ex=60)  # as they write it
    push(place.client, item(place.receiver.url("/turns"), 1), prefix="turns")
    (seen,) = place.wait_for("/turns", 1)
    assert seen.at - began >= 1.4


def test_the_sends_of_a_batch_are_spread_out(place: Place) -> None:
    began = time.time()
    push(place.client, *(item(place.receiver.url("/spread"), n) for n in range(5)), prefix="spread")
    seen = sorted(place.wait_for("/spread", 5), key=lambda one: one.at)
    assert [number_of(one.body) for one in seen] == [0, 1, 2, 3, 4]
    assert seen[-1].at - began >= 0.6  # four pauses of 0.15, however late the first was
    assert place.metric("batch_flushes_total", queue="spread") == 1


def test_without_a_delay_a_callback_leaves_at_once(place: Place) -> None:
    url = place.receiver.url("/at-once")
    waited = []
    for number in range(15):
        until(lambda: place.client.llen("at-once:processing") == 0)
        pushed = time.time()
        push(place.client, item(url, number), prefix="at-once")
        waited.append(place.wait_for("/at-once", number + 1)[-1].at - pushed)
    assert statistics.median(waited) < 0.25, waited  # a few milliseconds on an idle machine


def test_a_failing_receiver_is_tried_again_under_the_same_id(place: Place) -> None:
    failures = iter([Answer(503), Answer(500), Answer(429)])
    place.receiver.on("/retried", lambda seen: next(failures, Answer(204)))
    push(place.client, item(place.receiver.url("/retried"), 7), prefix="retried")

    seen = place.wait_for("/retried", 4)
    wait_until_settled(place.client, "retried")
    assert len({one.headers["webhook-id"] for one in seen}) == 1
    assert len({one.body for one in seen}) == 1
    assert len(place.seen_at("/retried")) == 4
    assert place.metric("callbacks_delivered_total", queue="retried") == 1
    assert place.metric("callbacks_retried_total", queue="retried", reason="http_5xx") == 2
    assert place.metric("callbacks_retried_total", queue="retried", reason="http_4xx") == 1
    assert place.metric("delivery_attempts_total", queue="retried") == 4
    assert place.client.get("retried:stats:sent") == b"1"
    assert place.client.get("retried:stats:failed") == b"3"  # attempts, as the existing software counts
    assert 86_000 < place.client.ttl("retried:stats:failed") <= 86_400


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_a_lower_bound(place: Place, as_date: bool) -> None:
    path = f"/after-{as_date}"
    answers = iter([busy(2, as_date=as_date)])
    place.receiver.on(path, lambda seen: next(answers, Answer()))
    push(place.client, item(place.receiver.url(path)), prefix="retried")
    first, second = place.wait_for(path, 2)
    assert second.at - first.at >= (0.9 if as_date else 1.95)  # a date has whole seconds; the backoff alone is 0.05
    wait_until_settled(place.client, "retried")


def test_what_is_given_up_is_kept_with_its_reason(place: Place) -> None:
    client, receiver = place.client, place.receiver
    never = item(receiver.on("/never", Answer(500, body=b"out of order: " + b"x" * 5000)), 1)
    wrong = item(receiver.on("/wrong", Answer(422, body=b"no such task")), 2)
    moved = item(receiver.on("/moved", redirect(receiver.url("/elsewhere"))), 3)
    began = time.time()
    push(client, never, wrong, moved, prefix="given-up")
    wait_until_settled(client, "given-up", dead=3)

    letters = by_payload(dead_letters(place.server.url, "given-up"))
    assert letters.keys() == {never, wrong, moved}
    for payload, path, reason, attempts, status in (
        (never, "/never", DeadReason.MAX_ATTEMPTS, 3, 500),
        (wrong, "/wrong", DeadReason.REJECTED, 1, 422),
        (moved, "/moved", DeadReason.MAX_ATTEMPTS, 3, 302),
    ):
        letter = letters[payload]
        assert (letter.reason, letter.attempts, letter.failure.status) == (reason, attempts, status)
        assert len(place.seen_at(path)) == attempts
        assert letter.url == receiver.url(path)
        times = [began, letter.first_at, letter.failure.at, letter.died_at, time.time()]
        assert all(later > earlier - 0.01 for earlier, later in itertools.pairwise(times)), times  # whole milliseconds
        assert place.metric("callbacks_dead_total", queue="given-up", reason=reason)
    assert letters[wrong].failure.sample == "no such task"
    assert letters[never].failure.sample.startswith("out of order: x")
    assert len(letters[never].failure.sample) <= 2000
    assert not place.seen_at("/elsewhere")


def test_a_whole_item_is_posted_byte_for_byte_where_it_is_asked_for(place: Place) -> None:
    payload = b' {"url":"%s" , "x":1.50,"big":123456789012345678901234567890}\n' % place.receiver.url("/whole").encode()
    push(place.client, payload, prefix="whole")
    (seen,) = place.wait_for("/whole", 1)
    assert seen.body == payload
    assert seen.headers["x-team"] == "blue"


def test_byte_identical_callbacks_are_delivered_as_often_as_they_were_pushed(place: Place) -> None:
    payload = item(place.receiver.url("/twins"), 1)
    push(place.client, payload, payload, item(place.receiver.url("/twins"), 2), payload, prefix="twins")
    place.wait_for("/twins", 4)
    wait_until_settled(place.client, "twins")
    assert Counter(number_of(one.body) for one in place.seen_at("/twins")) == {1: 3, 2: 1}
    assert place.metric("callbacks_delivered_total", queue="twins") == 4


def _bad(good: str) -> list[tuple[bytes, DeadReason]]:
    """Each with the reason it must be given up for; ``good`` is a URL that answers."""
    url = json.dumps(good).encode()

    def with_url(value: object) -> bytes:
        return json.dumps({"url": value, "data": 1}).encode()

    urls: list[object] = [
        "",
        None,
        7,
        ["x"],
        {},
        "relative/path",
        "/path",
        "//host/path",
        "http:",
        "http://",
        "http:///x",
    ]
    urls += [
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "http://[::1",
        "http://a b/",
        "http://h:99999/",
    ]
    urls += [
        good + "/" + "x" * 10_000,
        good + "\r\nX-Evil: 1",
        good + "\0",
        "http://\r\nhost/",
        "http://user:pw@127.0.0.1/",
    ]
    deep = b"[" * 100 + b"]" * 100
    return [
        (b"", DeadReason.INVALID_JSON),
        (b"not json", DeadReason.INVALID_JSON),
        (b'{"url": ' + url, DeadReason.INVALID_JSON),
        (b'{"url": ' + url + b', "data": "\xff\xfe"}', DeadReason.INVALID_JSON),
        (b'{"url": ' + url + b', "data": NaN}', DeadReason.INVALID_JSON),
        (b'{"url": ' + url + b', "data": Infinity}', DeadReason.INVALID_JSON),
        (b"\x00\x01\x02\xff" * 50, DeadReason.INVALID_JSON),
        (b"[1, 2]", DeadReason.INVALID_ITEM),
        (b'"text"', DeadReason.INVALID_ITEM),
        (b"null", DeadReason.INVALID_ITEM),
        (b'{"url": ' + url + b', "data": 1, "data": 2}', DeadReason.INVALID_ITEM),
        (b'{"url": "http://127.0.0.1:1/", "url": ' + url + b', "data": 1}', DeadReason.INVALID_ITEM),
        (b'{"url": ' + url + b', "data": ' + deep + b"}", DeadReason.INVALID_ITEM),
        (b'{"data": 1}', DeadReason.INVALID_URL),
        *((with_url(one), DeadReason.INVALID_URL) for one in urls),
        (b'{"url": ' + url + b"}", DeadReason.NO_DATA),
        (b'{"url": ' + url + b', "data": "' + b"x" * (10 << 20) + b'"}', DeadReason.TOO_LARGE),
    ]


def test_bad_input_is_kept_with_its_bytes_and_stops_nothing(place: Place) -> None:
    client, url = place.client, place.receiver.url("/good")
    bad = _bad(place.receiver.url("/never-called"))
    large = item(url, "large", data={"n": "large", "x": "x" * (7 << 20)})
    header = item(url, "header", headers={"X-Evil": "1\r\nX-More: 2"})  # an item has no say about headers
    good = [item(url, n) for n in range(len(bad))]
    push(client, *itertools.chain.from_iterable(zip(good, (payload for payload, _ in bad), strict=True)), prefix="bad")
    push(client, large, header, prefix="bad")

    wait_until_settled(client, "bad", dead=len(bad), timeout=30)
    letters = dead_letters(place.server.url, "bad")
    reasons = by_payload(letters)
    assert Counter(letter.payload for letter in letters) == Counter(payload for payload, _ in bad)
    found = {payload[:200]: reasons[payload].reason for payload, _ in bad}
    assert found == {payload[:200]: reason.value for payload, reason in bad}
    assert not any(letter.attempts for letter in letters)
    assert not place.seen_at("/never-called")
    delivered = Counter(number_of(one.body) for one in place.seen_at("/good"))
    assert delivered == Counter([*range(len(bad)), "large", "header"])
    assert not any("x-evil" in one.headers for one in place.receiver.requests)
    assert not place.daemon.not_ready()


@pytest.mark.parametrize("key", ["pending", "processing", "leases", "retry", "records", "lock"])
def test_a_foreign_type_at_one_key_concerns_that_queue_only(server: Server, key: str) -> None:
    client = server.client
    foreign = f"theirs:{key}"
    client.hset(foreign, "who", "somebody else") if key != "records" else client.set(foreign, "somebody else")
    theirs = queue(SHORT_LIVED, name="theirs", prefix="theirs")
    with Receiver() as receiver, Daemon(server.url, theirs, queue(name="ours", prefix="ours")) as daemon:
        reason = daemon.wait_until_not_ready("queue theirs")
        assert "another type" in reason
        assert not any("queue ours" in one for one in daemon.not_ready())
        push(client, *(item(receiver.url("/ours"), n) for n in range(20)), prefix="ours")
        wait_until_settled(client, "ours")
        assert len(receiver.requests) == 20
        assert daemon.metrics().get("cbq_up") == 1
        assert client.type(foreign) in (b"hash", b"string")  # nobody touched it

        client.delete(foreign)
        push(client, item(receiver.url("/theirs"), 1), prefix="theirs")
        wait_until_settled(client, "theirs")
        daemon.wait_until_ready()
        assert len(receiver.requests) == 21


def test_a_queue_that_cannot_be_read_is_not_ready_in_any_mode(server: Server) -> None:
    client = server.client
    modes = ("observe", "supervise", "dispatch")
    with Daemon(server.url, *(queue(name=mode, prefix=mode, mode=mode) for mode in modes)) as daemon:
        daemon.wait_until_ready()
        for mode in modes:
            client.set(f"{mode}:dead", "somebody else's")  # nothing that is done here each second uses it
        assert daemon.metrics().get("cbq_up") == 1
        wrong = "it holds another type: rename or delete it, or choose another prefix"
        assert daemon.not_ready() == [f"queue {mode}: {mode}:dead: {wrong}" for mode in modes]
        client.delete("observe:dead", "dispatch:dead")
        until(lambda: len(daemon.not_ready()) == 1)  # though nobody scrapes
        assert daemon.not_ready() == [f"queue supervise: supervise:dead: {wrong}"]


HOSTILE = {  # how it behaves, and how the attempt must end: a kind of failure, or None where it is an answer
    "never_answer": "timeout",
    "endless_headers": "protocol",
    "one_endless_header": "protocol",
    "endless_bad_news": "http_5xx",
    "endless_body": None,  # a 2xx: what follows is not read
    "close_before_headers": "protocol",
    "close_inside_headers": "protocol",
    "close_inside_body": "protocol",
    "only_1xx": "timeout",
    "only_1xx_then_close": "protocol",
    "garbage": "protocol",
    "bad_chunks": "protocol",
    "drip": "timeout",
}


def test_hostile_receivers_do_not_hold_up_a_good_one(server: Server) -> None:
    client = server.client
    delivery = {"timeout": "1s", "concurrency": 64, "per_destination": {"concurrency": 8}}
    with Receiver() as hostile, Receiver() as good, Daemon(server.url, queue(delivery=delivery), grace="0s") as daemon:
        for name in HOSTILE:
            hostile.on(f"/{name}", getattr(behaviours, name))
        hostile.on("/redirect", redirect(good.url("/redirected")))
        paths = [*HOSTILE, "redirect"]
        # By themselves they would take half a minute: a second each, eight at a time.
        push(client, *(item(hostile.url(f"/{paths[n % len(paths)]}"), n) for n in range(400)))
        hostile.wait_for_requests(8)
        for number in range(20):
            push(client, item(good.url("/good"), number))
        good.wait_for_requests(20, timeout=8)
        assert {one.path for one in good.requests} == {"/good"}
        assert sum(lengths(client).values()) > 100  # most of the others are still waiting
        assert not daemon.not_ready()


def test_each_hostile_receiver_is_seen_for_what_it_is(server: Server) -> None:
    client = server.client
    config = queue(delivery={"timeout": "1s"}, retry={"max_attempts": 1})
    with Receiver() as receiver, Daemon(server.url, config) as daemon:
        payloads = {item(receiver.on(f"/{name}", getattr(behaviours, name)), name): name for name in HOSTILE}
        push(client, *payloads)
        failing = {name: kind for name, kind in HOSTILE.items() if kind}
        wait_until_settled(client, dead=len(failing))
        letters = by_payload(dead_letters(server.url))
        assert {payloads[payload]: letter.failure.kind for payload, letter in letters.items()} == failing
        assert daemon.metrics().get("cbq_callbacks_delivered_total") == len(HOSTILE) - len(failing)
