"""Which entry of ``destinations`` holds for a URL, and what it changes."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from cbq_exporter.config import (
    DeliveryConfig,
    DestinationConfig,
    DestinationRetryConfig,
    PerDestinationConfig,
    QueueConfig,
    RequestConfig,
    RetryConfig,
)
from cbq_exporter.config.matching import Match
from cbq_exporter.delivery import receivers as module
from cbq_exporter.delivery import url
from cbq_exporter.delivery.receivers import Receivers
from cbq_exporter.delivery.shaping import Unusable, read
from cbq_exporter.model import Claimed

QUEUE = QueueConfig(name="q", delivery=DeliveryConfig(timeout=9.0), retry=RetryConfig(max_attempts=7))
ENTRIES = (
    DestinationConfig(name="exact", match="Hooks.Example.com"),
    DestinationConfig(name="port", match="hooks.example.com:8443"),
    DestinationConfig(name="sub", match="*.example.com"),
    DestinationConfig(name="path", match="https://api.example.org/v2/*"),
    DestinationConfig(name="query", match="https://api.example.org/v3?*key=1*"),
    DestinationConfig(name="origin", match="https://api.example.net"),
    DestinationConfig(name="address", match="127.0.0.1"),
    DestinationConfig(name="stars", match="https://*.trusted.example/hook"),
    DestinationConfig(name="usual-port", match="https://api.example.info:443/"),
)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("https://hooks.example.com/a", "exact"),
        ("http://HOOKS.example.com", "exact"),
        ("https://hooks.example.com:443/", "exact"),
        ("https://hooks.example.com:8443/", "port"),
        ("https://hooks.example.com:8444/", "hooks.example.com:8444"),
        ("https://a.b.example.com/", "sub"),
        ("https://example.com/", "example.com"),
        ("https://hooks.example.com.evil.org/", "hooks.example.com.evil.org"),
        ("https://evil.org/hooks.example.com", "evil.org"),
        ("https://api.example.org/v2/x/y?z", "path"),
        ("https://api.example.org:443/v2/", "path"),
        ("https://api.example.org/v2/../admin", "api.example.org"),
        ("https://api.example.org/admin/%2E%2e/v2/x", "path"),
        ("http://api.example.org/v2/x", "api.example.org"),
        ("https://api.example.org/v2", "api.example.org"),
        ("https://api.example.org/v3?a=2&key=1", "query"),
        ("https://api.example.org/v3#key=1", "api.example.org"),
        ("https://api.example.net", "origin"),
        ("https://api.example.net?a", "origin"),
        ("https://api.example.net/x#y", "origin"),
        ("https://api.example.net:444/", "api.example.net:444"),
        ("http://0x7f.1/", "address"),
        ("https://a.trusted.example/hook", "stars"),
        ("https://evil.example/a.trusted.example/hook", "evil.example"),
        ("https://evil.example?a.trusted.example/hook", "evil.example"),
        ("https://api.example.info", "usual-port"),
        ("https://api.example.info:443", "usual-port"),
        ("http://api.example.info:443", "api.example.info:443"),
    ],
)
def test_the_first_entry_that_fits_counts(given: str, name: str) -> None:
    receivers = Receivers(QUEUE, ENTRIES)
    for _ in range(2):  # the second time from memory
        assert receivers.of(url.parse(given)).name == name


@pytest.mark.parametrize(
    ("of_all", "of_entry", "concurrency", "first"),
    [
        (None, None, 64, 8),
        (None, None, None, 4),
        (None, 20, 64, 20),
        (6, None, 64, 6),
        (6, 1, 64, 1),
        (6, 50, 10, 10),
    ],
)
def test_how_many_go_to_who_has_not_answered_is_said_by_the_entry_else_for_all(
    of_all: int | None, of_entry: int | None, concurrency: int | None, first: int
) -> None:
    limits = PerDestinationConfig(first_concurrency=of_all)
    queue = QueueConfig(name="q", delivery=DeliveryConfig(per_destination=limits))
    entry = DestinationConfig(name="a", match="a.example", concurrency=concurrency, first_concurrency=of_entry)
    receivers = Receivers(queue, [entry])
    assert receivers.of(url.parse("http://a.example/")).first_concurrency == first
    assert receivers.of(url.parse("http://b.example/")).first_concurrency == (of_all or 4)


def test_an_entry_changes_what_it_names_and_leaves_the_rest_to_the_queue() -> None:
    entry = DestinationConfig(
        name="a",
        match="a.example",
        concurrency=3,
        retry=DestinationRetryConfig(base=2.0, statuses={"409": "delivered"}),
    )
    receivers = Receivers(QUEUE, [entry])
    own, other = receivers.of(url.parse("http://a.example/")), receivers.of(url.parse("http://b.example/"))
    assert (own.concurrency, other.concurrency) == (3, 32)
    assert (own.timeout, own.retry.max_attempts, own.retry.base) == (9.0, 7, 2.0)
    assert own.retry.statuses == {"409": "delivered"}
    assert other.retry.statuses == {}
    assert own.shaper is other.shaper


def test_a_request_and_a_table_of_statuses_of_its_own_change_the_queues_only_where_they_say_something() -> None:
    queue = QueueConfig(
        name="q",
        delivery=DeliveryConfig(request=RequestConfig(body="item", headers={"X-One": "1", "X-Two": "2"}, gzip_from=9)),
        retry=RetryConfig(statuses={"404": "retry", "410": "dead", "5xx": "dead"}),
    )
    entry = DestinationConfig(
        name="a",
        match="a.example",
        request=RequestConfig(headers={"x-two": "two", "X-Three": "3"}),
        retry=DestinationRetryConfig(statuses={"4xx": "dead", "503": "retry"}),
    )
    receivers = Receivers(queue, [entry])
    own, other = receivers.of(url.parse("http://a.example/")), receivers.of(url.parse("http://b.example/"))
    claimed = Claimed("lease", "0" * 40, b'{"url": "http://a.example/", "task_id": "t"}', 0, 0, 0)
    item = read(claimed)
    assert not isinstance(item, Unusable)
    shaped = own.shaper.shape(claimed, item)
    assert not isinstance(shaped, Unusable)
    assert shaped.body == claimed.payload
    assert {"X-One: 1", "x-two: two", "X-Three: 3"} <= set(shaped.headers)
    assert "X-Two: 2" not in shaped.headers
    assert own.gzip_from == other.gzip_from == 9
    assert dict(other.retry.statuses) == {"404": "retry", "410": "dead", "5xx": "dead"}
    assert dict(own.retry.statuses) == {"5xx": "dead", "4xx": "dead", "503": "retry"}


def test_an_entry_for_a_path_stands_before_or_behind_one_for_its_host() -> None:
    path = DestinationConfig(name="path", match="https://a.example/v2/*")
    host = DestinationConfig(name="host", match="a.example")
    for entries, expected in (((path, host), ["path", "host"]), ((host, path), ["host", "host"])):
        receivers = Receivers(QUEUE, entries)
        assert [receivers.of(url.parse(f"https://a.example/{v}/x")).name for v in ("v2", "v3")] == expected


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 10)
    receivers = Receivers(QUEUE, ENTRIES)
    tracemalloc.start()
    try:
        for number in range(2000):
            assert receivers.of(url.parse(f"https://api.example.org/v2/{number}/{'x' * 1000}")).name == "path"
            assert receivers.of(url.parse(f"https://h{number}.example/")).name == f"h{number}.example"
        url._parse.cache_clear()
        url._parse_origin.cache_clear()
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("earlier", "later", "covered"),
    [
        ("*", "a.example", True),
        ("*.example", "*.a.example", True),
        ("*.example", "*.a.example:8443", False),
        ("*.a.example", "*.example", False),
        ("a.example", "https://a.example/v2/*", True),
        ("a.example", "https://a.example:443", True),
        ("a.example", "https://a.example:8443", False),
        ("https://a.example", "a.example", False),
        ("https://a.example", "https://a.example/*", True),
        ("https://a.example/*", "https://a.example", True),
        ("https://a.example/v*", "https://a.example", False),
        ("https://a.example/v*", "https://a.example/v2/*x", True),
        ("https://a.example/v*x", "https://a.example/v*", False),
        ("https://*/hook", "https://a.example/hook", True),
        ("https://*/hook", "http://a.example/hook", False),
    ],
)
def test_what_an_entry_covers(earlier: str, later: str, covered: bool) -> None:
    assert Match.read(earlier).covers(Match.read(later)) is covered


def test_no_url_takes_long_to_fit() -> None:
    entry = DestinationConfig(name="a", match="https://a.example/" + "*a" * 500)
    receivers = Receivers(QUEUE, [entry])
    began = time.process_time()
    assert receivers.of(url.parse("https://a.example/" + "a" * 8000 + "b")).name == "a.example"
    assert time.process_time() - began < 0.5
