"""The producers' client: what it writes is what existing producers write, and nothing is ever sent a second time."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from cbq_exporter.client import CallbackQueue, EnqueueError, InvalidCallback
from tests.support.daemons import Daemon, queue, until
from tests.support.fault_proxy import Action, Direction, Fault, FaultProxy
from tests.support.queues import ExistingWorker
from tests.support.receiver import Receiver, self_signed
from tests.support.servers import Server

URL = "https://example.com/callback"
PENDING, QUEUED = "callback_queue:pending", "callback_queue:stats:queued"

Push = Callable[[CallbackQueue, Sequence[bytes]], None]


def blocking(callbacks: CallbackQueue, payloads: Sequence[bytes]) -> None:
    callbacks.push(payloads)


def asynchronous(callbacks: CallbackQueue, payloads: Sequence[bytes]) -> None:
    async def push() -> None:
        async with callbacks:
            await callbacks.apush(payloads)

    asyncio.run(push())


@pytest.fixture(params=[blocking, asynchronous])
def push(request: pytest.FixtureRequest) -> Push:
    way: Push = request.param
    return way


@pytest.fixture
def callbacks(server: Server) -> Iterator[CallbackQueue]:
    with CallbackQueue(server.url) as made:
        yield made


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    with FaultProxy(server.socket) as between:
        yield between


def items(server: Server) -> list[bytes]:
    redis: Any = server.client
    return list(redis.lrange(PENDING, 0, -1))


# --- what is written -----------------------------------------------------------------------------


def test_an_item_is_what_existing_producers_write(server: Server, callbacks: CallbackQueue) -> None:
    before = time.time()
    written = callbacks.enqueue(URL, {"answer": 42, "text": "完成 \ud83d"}, prompt="一只猫", batch=7)
    assert items(server) == [written]
    item = json.loads(written)
    assert before <= item.pop("_queued_at") <= time.time()
    assert len(item.pop("task_id")) == 36
    assert item == {
        "url": URL,
        "status": "success",
        "data": {"answer": 42, "text": "完成 \ud83d"},
        "prompt": "一只猫",
        "created_at": None,
        "batch": 7,
    }
    assert server.client.get(QUEUED) == b"1"
    assert 86_000 < int(server.client.ttl(QUEUED)) <= 86_400


def test_an_existing_worker_can_acknowledge_it(server: Server, callbacks: CallbackQueue) -> None:
    """It removes what it gets by reading the item and writing it again."""
    callbacks.enqueue(URL, {"é": [1.0, 1e300, 10**30, None], "b": {}}, task_id="7", status="failed")
    worker = ExistingWorker(server.client)
    (taken,) = worker.take()
    assert worker.finish(json.dumps(json.loads(taken)).encode()) == 1


def test_fields_take_the_place_of_the_usual_ones(callbacks: CallbackQueue) -> None:
    item = json.loads(callbacks.write(URL, None, task_id="mine", status="failed", _queued_at=1764000000.5))
    assert (item["task_id"], item["status"], item["_queued_at"], item["data"]) == ("mine", "failed", 1764000000.5, None)


def test_many_go_in_few_round_trips_and_keep_their_order(server: Server, push: Push, callbacks: CallbackQueue) -> None:
    payloads = [callbacks.write(URL, number) for number in range(2500)]
    server.client.config_resetstat()
    push(callbacks, payloads)
    assert items(server) == payloads
    assert server.client.get(QUEUED) == b"2500"
    redis: Any = server.client
    assert redis.info("commandstats")["cmdstat_rpush"]["calls"] == 3


def test_many_are_checked_before_the_first_is_sent(server: Server, callbacks: CallbackQueue) -> None:
    with pytest.raises(InvalidCallback, match=r"^callback 1: the URL is relative"):
        callbacks.enqueue_many([{"url": URL, "data": 1}, {"url": "example.com", "data": 2}])
    with pytest.raises(InvalidCallback, match=r"^callback 0: .*'data'"):
        asyncio.run(callbacks.aenqueue_many([{"url": URL}]))
    assert items(server) == []
    written = callbacks.enqueue_many({"url": URL, "data": number, "task_id": str(number)} for number in range(3))
    assert items(server) == written


@pytest.mark.parametrize(
    ("url", "data", "why"),
    [
        ("", 1, "empty"),
        ("ftp://example.com/", 1, "scheme"),
        ("https://user:secret@example.com/", 1, "credentials"),
        (URL, float("nan"), "JSON"),
        (URL, date(2026, 1, 1), "date is not JSON"),
        (URL, {("a", "b"): 1}, "JSON"),
        (URL, "x" * 9_000_000, "9,000,.* bytes"),
        (URL, json.loads("[" * 100 + "]" * 100), "nested deeper"),
    ],
)
def test_what_no_receiver_could_be_sent_is_refused_at_once(
    server: Server, callbacks: CallbackQueue, url: str, data: Any, why: str
) -> None:
    with pytest.raises(InvalidCallback, match=why) as refused:
        callbacks.enqueue(url, data)
    assert isinstance(refused.value, ValueError)
    assert "secret" not in str(refused.value)
    assert not server.client.exists(PENDING, QUEUED)


def test_values_that_json_does_not_know_are_the_callers_to_write(server: Server) -> None:
    with CallbackQueue(server.url, default=str) as callbacks:
        assert json.loads(callbacks.write(URL, date(2026, 1, 2)))["data"] == "2026-01-02"


def test_other_keys(server: Server) -> None:
    with CallbackQueue(server.url, prefix="{a}:q", pending="jobs", stats="counts") as callbacks:
        callbacks.enqueue(URL, 1)
    assert sorted(server.client.keys("*")) == [b"counts:queued", b"jobs"]


def test_a_url_that_is_none_is_refused_without_quoting_it() -> None:
    with pytest.raises(ValueError, match="sentinel") as refused:
        CallbackQueue("redis+sentinel://:secret@host/0")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"url": None}, "the URL of Redis: must be a string, not NoneType"),
        ({"prefix": ""}, "prefix must be 1 to 200 printable"),
        ({"pending": "a b"}, "pending must be"),
        ({"stats": "a\n"}, "stats must be"),
        ({"timeout": 0}, "timeout must be more than 0"),
        ({"timeout": float("inf")}, "timeout must be"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(wrong: dict[str, Any], why: str) -> None:
    """As an environment without the variable that is meant gives it: an empty prefix would be a queue of its own."""
    with pytest.raises(ValueError, match=why):
        CallbackQueue(**wrong)


# --- what the caller is told ---------------------------------------------------------------------


def test_a_lost_answer_leaves_it_in_doubt_and_it_is_sent_once(server: Server, proxy: FaultProxy, push: Push) -> None:
    proxy.plan(Fault(Action.DROP_REPLY, containing=b"RPUSH"))
    callbacks = CallbackQueue(proxy.url)
    payload = callbacks.write(URL, 1)
    with pytest.raises(EnqueueError) as told:
        push(callbacks, [payload])
    assert (told.value.enqueued, told.value.in_doubt, told.value.not_enqueued) == (0, (payload,), ())
    assert items(server) == [payload]
    push(callbacks, [callbacks.write(URL, 2)])  # by a new connection
    assert len(items(server)) == 2
    callbacks.close()


def test_a_server_that_hangs_is_waited_for_once(proxy: FaultProxy, server: Server, push: Push) -> None:
    proxy.plan(Fault(Action.BLACK_HOLE, containing=b"RPUSH"))
    callbacks = CallbackQueue(proxy.url, timeout=0.3)
    began = time.monotonic()
    with pytest.raises(EnqueueError, match=r"does not answer in time.*\(1 in doubt\)") as told:
        push(callbacks, [callbacks.write(URL, 1)])
    assert 0.25 < time.monotonic() - began < 2
    assert told.value.kind == "timeout"
    assert proxy.struck == 1
    assert items(server) == []
    callbacks.close()


def test_of_many_it_is_told_which(server: Server, proxy: FaultProxy, push: Push) -> None:
    proxy.plan(Fault(Action.DROP_REPLY, containing=b"RPUSH", skip=1))
    callbacks = CallbackQueue(proxy.url)
    payloads = [callbacks.write(URL, number) for number in range(2500)]
    with pytest.raises(EnqueueError, match=r"\(1,000 enqueued, 1,000 in doubt, 500 not enqueued\)") as told:
        push(callbacks, payloads)
    assert told.value.enqueued == 1000
    assert [*told.value.in_doubt, *told.value.not_enqueued] == payloads[1000:]
    push(callbacks, told.value.not_enqueued)
    assert items(server) == payloads
    callbacks.close()


def test_what_was_never_sent_is_safe_to_push_again(push: Push) -> None:
    callbacks = CallbackQueue("unix:///nowhere/s.sock")
    said = r"cannot be reached: .*: check that it runs, and its URL \(1 not enqueued\)"
    with pytest.raises(EnqueueError, match=said) as told:
        push(callbacks, [callbacks.write(URL, 1)])
    assert told.value.in_doubt == ()


def test_what_is_told_reaches_another_process(push: Push) -> None:
    """As the errors of a task come back from multiprocessing, concurrent.futures and Celery."""
    callbacks = CallbackQueue("unix:///nowhere/s.sock")
    payload = callbacks.write(URL, 1)
    with pytest.raises(EnqueueError) as told:
        push(callbacks, [payload])
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(told.value, protocol))
        assert str(again) == str(told.value)
        assert (again.kind, again.enqueued, again.in_doubt, again.not_enqueued) == ("connect", 0, (), (payload,))


def test_what_the_server_refused_is_not_in_doubt(server: Server, push: Push) -> None:
    server.client.set(PENDING, "no list")
    callbacks = CallbackQueue(server.url)
    payload = callbacks.write(URL, 1)
    with pytest.raises(EnqueueError, match="another type") as told:
        push(callbacks, [payload])
    assert (told.value.kind, told.value.not_enqueued) == ("wrongtype", (payload,))
    server.client.delete(PENDING, QUEUED)
    server.client.rpush(QUEUED, "no number")
    push(callbacks, [payload])  # what is wrong with a statistic does not undo what was accepted
    assert items(server) == [payload]
    callbacks.close()


def test_a_connection_that_the_server_closed_is_replaced(server: Server, callbacks: CallbackQueue) -> None:
    async def twice() -> None:
        async with callbacks:
            await callbacks.aenqueue(URL, 1)
            await asyncio.to_thread(drop_clients, server)  # meanwhile the loop sees it
            await callbacks.aenqueue(URL, 2)

    asyncio.run(twice())
    callbacks.enqueue(URL, 3)
    drop_clients(server)
    callbacks.enqueue(URL, 4)
    assert [json.loads(item)["data"] for item in items(server)] == [1, 2, 3, 4]


def drop_clients(server: Server) -> None:
    redis: Any = server.client
    redis.client_kill_filter(_type="normal", skipme=True)


def test_who_has_become_a_replica_is_left_for_where_its_name_leads_now(server: Server, push: Push) -> None:
    async def scenario(old: Server, name: FaultProxy, callbacks: CallbackQueue) -> None:
        async def at_once(payloads: Sequence[bytes]) -> None:
            callbacks.push(payloads)

        append = at_once if push is blocking else callbacks.apush
        payload = callbacks.write(URL, 1)
        async with callbacks:
            await append([payload])
            name.lead_to(server.socket)
            await append([payload])
            assert len(items(old)) == 2
            old.client.replicaof("127.0.0.1", 1)
            with pytest.raises(EnqueueError, match="it is a replica") as told:
                await append([payload])
            await append(told.value.not_enqueued)
        assert items(server) == [payload]

    with Server(server.kind) as old, FaultProxy(old.socket) as name, CallbackQueue(name.url) as callbacks:
        asyncio.run(scenario(old, name, callbacks))


def test_what_is_refused_for_want_of_a_login_is_not_in_doubt(push: Push) -> None:
    with Server("redis") as server, CallbackQueue(server.url) as callbacks:
        server.client.config_set("requirepass", "secret")
        payload = callbacks.write(URL, 1)
        with pytest.raises(EnqueueError, match="refuses the login") as told:
            push(callbacks, [payload])
    assert (told.value.kind, told.value.in_doubt, told.value.not_enqueued) == ("auth", (), (payload,))


def test_with_tls(tmp_path: Path, push: Push) -> None:
    """Also where nothing has to be asked before the first callback: no password, the first database."""
    _, certificate = self_signed(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    files = ["--tls-cert-file", str(certificate), "--tls-key-file", str(tmp_path / "key.pem")]
    options = ["--bind", "127.0.0.1", "--tls-port", str(port), "--tls-auth-clients", "no", *files]
    with Server("redis", *options) as server:
        for _ in range(30):
            with CallbackQueue(f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}") as callbacks:
                push(callbacks, [callbacks.write(URL, 1)])
        assert len(items(server)) == 30


class TimeIsUp(Exception):
    """What Celery's soft time limit and gunicorn's timeout raise, from a signal, wherever the program is."""


def interrupted(callbacks: CallbackQueue, payload: bytes) -> None:
    def end(*_: object) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(TimeIsUp):
            callbacks.push([payload])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_answer_to_an_interrupted_push_is_not_taken_for_the_next_one(server: Server, proxy: FaultProxy) -> None:
    late = Fault(Action.DELAY, Direction.TO_CLIENT, containing=b"RPUSH", seconds=0.5)
    callbacks = CallbackQueue(proxy.url)
    payload = callbacks.write(URL, 1)

    async def cancelled() -> None:
        async with callbacks:
            await callbacks.apush([payload])
            proxy.plan(late)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(callbacks.apush([payload]), 0.1)
            server.client.rename(PENDING, "kept")
            server.client.set(PENDING, "no list")
            with pytest.raises(EnqueueError, match="another type"):
                await callbacks.apush([payload])

    asyncio.run(cancelled())
    until(lambda: proxy.struck == 1)
    server.client.rename("kept", PENDING)
    proxy.plan(late)
    interrupted(callbacks, payload)
    server.client.set(PENDING, "no list")
    with pytest.raises(EnqueueError, match="another type"):
        callbacks.push([payload])
    callbacks.close()


# --- threads, processes, event loops -------------------------------------------------------------


def test_threads_and_forked_processes_share_one(server: Server, callbacks: CallbackQueue) -> None:
    def some() -> None:
        for number in range(50):
            callbacks.enqueue(URL, number)

    threads = [threading.Thread(target=some) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    redis: Any = server.client
    assert len(redis.client_list()) <= 9
    child = os.fork()
    if child == 0:
        try:
            some()
        finally:
            os._exit(0)
    some()
    assert os.waitpid(child, 0)[1] == 0
    assert len(items(server)) == 8 * 50 + 50 + 50


def test_any_number_at_once_wait_for_some_connections(server: Server, callbacks: CallbackQueue) -> None:
    async def all_at_once() -> int:
        async with callbacks:
            await asyncio.gather(*(callbacks.aenqueue(URL, number) for number in range(500)))
            redis: Any = server.client
            return len(redis.client_list())

    assert asyncio.run(all_at_once()) <= 33
    assert len(items(server)) == 500


def test_one_event_loop_after_another(server: Server, callbacks: CallbackQueue) -> None:
    """As in a task that calls asyncio.run: nothing is left open, nor to the collector of garbage."""

    async def several() -> None:
        await asyncio.gather(*(callbacks.aenqueue(URL, number) for number in range(10)))

    redis: Any = server.client
    gc.disable()
    try:
        for _ in range(3):
            asyncio.run(several())
            until(lambda: len(redis.client_list()) == 1)
    finally:
        gc.enable()
    assert len(items(server)) == 30


def test_several_event_loops_at_once_keep_their_connections(server: Server, callbacks: CallbackQueue) -> None:
    async def some() -> None:
        for number in range(50):
            await callbacks.aenqueue(URL, number)

    server.client.config_resetstat()
    threads = [threading.Thread(target=asyncio.run, args=(some(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(items(server)) == 200
    redis: Any = server.client
    assert redis.info("stats")["total_connections_received"] == 4


# --- to the receiver -----------------------------------------------------------------------------


def test_pushed_twice_it_has_one_webhook_id(server: Server, callbacks: CallbackQueue) -> None:
    """What an outbox relies on."""
    with Receiver() as receiver, Daemon(server.url, queue(batch={"max_delay": "0s"})):
        payload = callbacks.write(receiver.url("/1"), {"answer": 42})
        callbacks.push([payload])
        callbacks.push([payload])
        until(lambda: len(receiver.requests) == 2)
        first, second = receiver.requests
        assert first.body == second.body == b'{"answer": 42}'
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
