"""Several callbacks in one request, by a real daemon: each comes to its own end."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.e2e.bare_client import by_payload, dead_letters, item, push, wait_until_settled
from tests.support.daemons import SHORT_LIVED, Daemon, queue, until
from tests.support.receiver import Answer, Receiver, Seen
from tests.support.servers import Server


def coalescing(*layers: dict[str, Any], **coalesce: Any) -> dict[str, Any]:
    settings = {"size": 10, "linger": "200ms", **coalesce}
    return queue({"delivery": {"coalesce": settings, "breaker": {"enabled": False}}}, *layers)


def bodies(seen: Seen) -> list[int]:
    """The numbers of the callbacks in a request, one or several."""
    found = json.loads(seen.body)
    return [one["n"] for one in (found if isinstance(found, list) else [found])]


def by_number(judge: Callable[[int], int]) -> Callable[[Seen], Answer]:
    """A receiver that answers a result for each; one alone has a status."""

    def answer(seen: Seen) -> Answer:
        numbers = bodies(seen)
        if isinstance(json.loads(seen.body), dict):
            return Answer(judge(numbers[0]))
        ids = seen.headers["webhook-ids"].split(",")
        results = [{"id": one, "status": judge(number)} for one, number in zip(ids, numbers, strict=True)]
        return Answer(207, body=json.dumps({"results": results}).encode())

    return answer


def delivered(receiver: Receiver) -> Counter[int]:
    return Counter(number for seen in receiver.requests for number in bodies(seen))


def test_callbacks_for_one_url_go_together(server: Server) -> None:
    with Receiver() as receiver, Daemon(server.url, coalescing()) as daemon:
        payloads = [item(receiver.url(f"/{n % 2}"), n) for n in range(50)]
        push(server.client, *payloads)
        wait_until_settled(server.client)
        assert Counter(len(bodies(seen)) for seen in receiver.requests) == {10: 4, 5: 2}
        assert delivered(receiver) == Counter(range(50))
        first = receiver.requests[0]
        own = [f"msg_{hashlib.sha1(payloads[n]).hexdigest()}" for n in bodies(first)]
        assert first.headers["webhook-ids"] == ",".join(own)
        assert first.headers["content-type"] == "application/json"
        assert first.headers["webhook-id"] not in own
        until(lambda: daemon.metrics().get("cbq_callbacks_delivered_total") == 50)
        metrics = daemon.metrics()
        assert metrics.get("cbq_delivery_attempts_total") == 50
        assert metrics.get("cbq_bundle_size_callbacks_count") == len(receiver.requests) == 6
        assert metrics.get("cbq_bundle_size_callbacks_sum") == 50
        assert metrics.get("cbq_bundle_splits_total") == metrics.get("cbq_bundle_partial_results_total") == 0


def test_the_signature_is_of_the_whole(server: Server, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
    secret.chmod(0o600)
    config = coalescing({"delivery": {"signing": {"secrets_file": str(secret)}}})
    with Receiver() as receiver, Daemon(server.url, config):
        push(server.client, *(item(receiver.url(), n) for n in range(10)))
        wait_until_settled(server.client)
        (seen,) = receiver.requests
    assert Webhook(secret.read_text().strip()).verify(seen.body.decode(), seen.headers) == [{"n": n} for n in range(10)]


def test_one_that_waited_alone_goes_as_it_would_without(server: Server) -> None:
    with Receiver() as receiver, Daemon(server.url, coalescing(field="callbacks")):
        push(server.client, item(receiver.url(), 1))
        wait_until_settled(server.client)
        assert [seen.body for seen in receiver.requests] == [b'{"n": 1}']
        push(server.client, item(receiver.url(), 2), item(receiver.url(), 3))
        wait_until_settled(server.client)
        found = json.loads(receiver.requests[1].body)
        assert found["callbacks"] == [{"n": 2}, {"n": 3}]
        assert len(found["ids"]) == 2


@pytest.mark.parametrize("own_process", [False, True], ids=["thread", "process"])
def test_each_result_is_its_own_attempt_and_its_own_end(server: Server, own_process: bool) -> None:
    tried: Counter[int] = Counter()

    def judge(number: int) -> int:
        tried[number] += 1
        if number == 3:
            return 404
        return 503 if number == 7 and tried[7] < 3 else 200

    config = coalescing({"delivery": {"own_process": own_process}})
    with Receiver() as receiver, Daemon(server.url, config) as daemon:
        receiver.default = by_number(judge)
        payloads = [item(receiver.url(), n) for n in range(10)]
        push(server.client, *payloads)
        wait_until_settled(server.client, dead=1, what=daemon.log)
        assert tried == Counter({**dict.fromkeys(range(10), 1), 7: 3})
        letter = by_payload(dead_letters(server.url))[payloads[3]]
        assert (letter.reason, letter.attempts, letter.failure.status) == ("rejected", 1, 404)
        assert '"status": 404' in letter.failure.sample
        failures = daemon.metrics()
        assert failures.get("cbq_delivery_failures_total", kind="http_4xx") == 1
        assert failures.get("cbq_delivery_failures_total", kind="http_5xx") == 2
        assert failures.get("cbq_bundle_partial_results_total") == 1  # number 7 went alone afterwards


def test_one_poison_is_found_and_the_others_are_delivered(server: Server) -> None:
    with Receiver() as receiver, Daemon(server.url, coalescing(size=100, linger="2s")) as daemon:
        receiver.default = lambda seen: Answer(422 if 37 in bodies(seen) else 200, body=b"no")
        payloads = [item(receiver.url(), n) for n in range(100)]
        push(server.client, *payloads)
        wait_until_settled(server.client, dead=1, what=daemon.log)
        assert len(receiver.requests) in (13, 15)  # halved six or seven times: 100 is no power of two
        accepted = [n for seen in receiver.requests if 37 not in bodies(seen) for n in bodies(seen)]
        assert Counter(accepted) == Counter(n for n in range(100) if n != 37)
        letter = by_payload(dead_letters(server.url))[payloads[37]]
        assert (letter.reason, letter.attempts, letter.failure.status) == ("rejected", 1, 422)
        assert daemon.metrics().get("cbq_delivery_attempts_total") == 100  # parts of a bundle are no attempts
        assert daemon.metrics().get("cbq_bundle_splits_total") in (6, 7)


def test_what_is_too_large_together_goes_in_parts(server: Server) -> None:
    with Receiver() as receiver, Daemon(server.url, coalescing()) as daemon:
        receiver.default = lambda seen: Answer(413 if len(bodies(seen)) > 3 else 200)
        push(server.client, *(item(receiver.url(), n) for n in range(10)))
        wait_until_settled(server.client, what=daemon.log)
        assert sorted(len(bodies(seen)) for seen in receiver.requests) == [2, 2, 3, 3, 5, 5, 10]


def test_timeouts_and_5xx_count_for_each_and_the_last_attempt_is_alone(server: Server) -> None:
    config = coalescing({"delivery": {"timeout": "300ms", "connect_timeout": "300ms"}, "retry": {"max_attempts": 3}})
    with Receiver() as receiver, Daemon(server.url, config) as daemon:
        receiver.default = lambda seen: Answer(500 if 4 in bodies(seen) else 200)
        slow = receiver.on("/slow", Answer(200, delay=5.0))
        fine = [item(receiver.url(), n) for n in range(10)]
        late = [item(slow, n) for n in range(20, 23)]
        push(server.client, *fine, *late)
        wait_until_settled(server.client, dead=4, what=daemon.log)
        letters = by_payload(dead_letters(server.url))
        assert set(letters) == {fine[4], *late}
        assert {letter.attempts for letter in letters.values()} == {3}
        assert {letters[one].failure.kind for one in late} == {"timeout"}
        last = [bodies(seen) for seen in receiver.requests if seen.path == "/slow"][-3:]
        assert sorted(last) == [[20], [21], [22]]


def test_a_request_that_fails_is_one_failure_to_the_circuit(server: Server) -> None:
    config = coalescing({"delivery": {"breaker": {"enabled": True, "min_attempts": 5, "open_for": "1h"}}}, size=50)
    answers = iter([Answer(503)] * 2)
    with Receiver() as receiver, Daemon(server.url, config) as daemon:
        receiver.default = lambda seen: next(answers, Answer())
        push(server.client, *(item(receiver.url(), n) for n in range(50)))
        wait_until_settled(server.client, what=daemon.log)  # else they would wait for an hour


def test_limits_of_a_destination_count_requests(server: Server) -> None:
    config = coalescing({"delivery": {"per_destination": {"concurrency": 2}}, "batch": {"size": 50}})
    with Receiver() as receiver, Daemon(server.url, config) as daemon:
        slow = receiver.on("/slow", Answer(200, delay=0.1))
        push(server.client, *(item(slow, n) for n in range(200)))
        wait_until_settled(server.client, what=daemon.log)
        assert receiver.most_open_connections == 2
        assert len(receiver.requests) == 20
        assert delivered(receiver) == Counter(range(200))


def test_what_is_stopped_while_it_gathers_or_waits_stays_in_its_order(server: Server) -> None:
    config = coalescing({"delivery": {"per_destination": {"concurrency": 1}}}, linger="30s")
    with Receiver() as receiver:
        payloads = [item(receiver.on("/slow", Answer(200, delay=0.5)), n) for n in range(35)]
        with Daemon(server.url, config) as daemon:
            push(server.client, *payloads)
            receiver.wait_for_requests(1)
            assert daemon.stop() == 0
        assert server.client.lrange("callback_queue:pending", 0, -1) == payloads[10:]
        with Daemon(server.url, coalescing()):
            wait_until_settled(server.client)
        assert delivered(receiver) == Counter(range(35))


def test_a_killed_daemon_loses_none_of_what_it_gathered(server: Server) -> None:
    with Receiver() as receiver:
        with Daemon(server.url, coalescing(SHORT_LIVED, linger="30s")) as daemon:
            push(server.client, *(item(receiver.url(), n) for n in range(25)))
            receiver.wait_for_requests(2)
            daemon.kill()
        with Daemon(server.url, queue(SHORT_LIVED)):
            wait_until_settled(server.client)
        assert delivered(receiver).keys() == set(range(25))
