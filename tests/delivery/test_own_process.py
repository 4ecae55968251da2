"""Sending from a process of its own: what is said between the two, and what holds when one of them dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbq_exporter.delivery.frames import READ_AT_ONCE, Frames, frame
from cbq_exporter.delivery.own_process import OwnProcess
from cbq_exporter.model import FailureKind
from tests.support.daemons import until
from tests.support.receiver import Answer, Receiver, held, never_answer, read_slowly
from tests.support.sender import Sender

MIB = 1 << 20


def child_of(sender: Sender) -> int:
    carrier = sender.engine._carrier
    assert isinstance(carrier, OwnProcess)
    assert carrier.pid is not None
    return carrier.pid


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


# Some that are larger than what is read at once.
_CONTENTS = st.binary(max_size=50) | st.integers(READ_AT_ONCE - 9, 2 * READ_AT_ONCE + 9).map(lambda size: b"x" * size)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=1), _CONTENTS)), st.data())
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    messages: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    whole = b"".join(frame(kind, content) for kind, content in messages)
    frames, found = Frames(), []
    while whole:
        room = frames.room()
        cut = data.draw(st.integers(1, min(len(whole), len(room))))
        room[:cut] = whole[:cut]
        found += [(kind, bytes(content)) for kind, content in frames.received(cut)]
        whole = whole[cut:]
    assert [(kind, bytes(frame(kind, content))) for kind, content in messages] == [
        (kind, len(content).to_bytes(4, "big") + kind + content) for kind, content in found
    ]


def test_an_exchange_says_all_that_it_says_from_a_thread(receiver: Receiver) -> None:
    failing = receiver.on("/", Answer(503, {"Retry-After": "7"}, "nein \N{SNOWMAN}".encode() + b"\xff"))
    told = []
    for own_process in (False, True):
        with Sender(own_process=own_process) as sender:
            requests = [sender.request(failing), sender.request("http://127.0.0.2:1/"), sender.request("http://[::2]/")]
            requests.append(sender.request(receiver.url("/late"), not_after=0.0))
            requests.append(sender.request(receiver.url("/header"), headers=["A: \N{SNOWMAN}"]))
            ends = sender.send(requests)
            for end in ends:
                end.duration = 0.0
                end.detail = re.sub(r"\d+ ms", "", end.detail)
            told.append(ends)
    assert told[0] == told[1]
    assert [end.failure for end in told[1]] == [
        *(FailureKind.HTTP_5XX, FailureKind.CONNECT, FailureKind.BLOCKED),
        *(FailureKind.EXPIRED, FailureKind.PROTOCOL),
    ]


def test_the_child_is_small() -> None:
    """There is one for each queue that wants it: what only the daemon needs is not loaded."""
    script = "import sys, cbq_exporter.delivery.child; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.partition(".")[0] for name in found.stdout.split()}
    assert "pycurl" in loaded
    assert loaded.isdisjoint({"pydantic", "redis", "aiohttp", "apscheduler", "click", "jinja2", "prometheus_client"})


def test_more_than_the_sockets_hold_in_both_directions(receiver: Receiver) -> None:
    """Slow receivers meanwhile: what waits in the child does not stop what is ready."""
    big = receiver.on("/big", Answer(500, body=b"e" * 60_000))
    with Receiver(raw=read_slowly) as slow, Sender(own_process=True, max_connections=64) as sender:
        sender.submit([sender.request(slow.url(), b"x" * 3 * MIB, timeout=60.0) for _ in range(4)])
        sender.wait(lambda: slow.open_connections == 4)  # the rest is written while the loop runs
        bodies = [os.urandom(1000) * 700 for _ in range(40)]
        first = sender.submitted
        sender.submit([sender.request(receiver.url("/in"), body) for body in bodies])
        sender.submit([sender.request(big) for _ in range(2000)])
        sender.wait(lambda: len(sender.done) >= 2040, timeout=60)
        assert sorted(seen.body for seen in receiver.requests if seen.path == "/in") == sorted(bodies)
        ends = {end.tag: end for end in sender.done}
        assert all(ends[first + place].status == 200 for place in range(40))
        slow.open_gate()
        sender.wait()


def test_a_child_that_is_killed_is_replaced_and_nothing_is_left_unanswered(receiver: Receiver) -> None:
    url = receiver.on("/held", held)
    with Sender(own_process=True, max_connections=5) as sender:
        sender.submit([sender.request(url, timeout=30.0) for _ in range(8)])
        receiver.wait_for_requests(5)
        first = child_of(sender)
        os.kill(first, signal.SIGKILL)
        sender.wait(lambda: len(sender.done) >= 5)
        cut_off = [(end.failure, end.never_left) for end in sender.done[:5]]
        assert cut_off == [(FailureKind.LOCAL, False)] * 5  # no attempt is used up, and they may have arrived
        receiver.open_gate()
        sender.wait()
        assert [end.status for end in sender.done[5:]] == [200] * 3
        assert child_of(sender) != first
        assert not is_there(first)


def test_a_child_that_is_stopped_does_not_stop_the_loop(receiver: Receiver) -> None:
    with Sender(own_process=True, max_connections=64) as sender:
        assert sender.post(receiver.url("/")).status == 200
        os.kill(child_of(sender), signal.SIGSTOP)
        began = time.monotonic()
        sender.submit([sender.request(receiver.url("/"), b"x" * MIB) for _ in range(20)])
        assert time.monotonic() - began < 2
        os.kill(child_of(sender), signal.SIGCONT)
        sender.wait()
        assert {end.status for end in sender.done} == {200}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_to_the_whole_group_are_the_daemons_business(receiver: Receiver, number: int) -> None:
    with Sender(own_process=True) as sender:
        sender.submit([sender.request(receiver.on("/", held), timeout=30.0)])
        receiver.wait_for_requests(1)
        os.kill(child_of(sender), number)
        receiver.open_gate()
        sender.wait()
        assert sender.done[0].status == 200


def test_close_ends_the_child(receiver: Receiver) -> None:
    with Sender(own_process=True) as sender:
        sender.submit([sender.request(receiver.on("/", never_answer), timeout=60.0) for _ in range(3)])
        receiver.wait_for_requests(3)
        pid = child_of(sender)
        sender.close(grace=0.1)
        assert [(end.failure, end.never_left) for end in sender.done] == [(FailureKind.CANCELLED, False)] * 3
        assert not is_there(pid)
        receiver.wait_until(lambda it: it.open_connections == 0)


def test_close_while_there_is_no_child(receiver: Receiver) -> None:
    with Sender(own_process=True) as sender:
        assert sender.post(receiver.url("/")).status == 200
        os.kill(child_of(sender), signal.SIGKILL)
        until(lambda: sender.loop.run_until_complete(_settled(sender)))
        sender.submit([sender.request(receiver.url("/")) for _ in range(3)])
        sender.close(grace=0.0)
        assert [(end.failure, end.never_left) for end in sender.done[1:]] == [(FailureKind.CANCELLED, True)] * 3


async def _settled(sender: Sender) -> bool:
    carrier = sender.engine._carrier
    assert isinstance(carrier, OwnProcess)
    return carrier._socket is None


def test_the_child_does_not_outlive_whoever_started_it(receiver: Receiver) -> None:
    """However that one ends: here by SIGKILL, with a request under way."""
    script = (
        "from tests.support.sender import Sender\n"
        "import sys\n"
        "with Sender(own_process=True) as sender:\n"
        "    sender.submit([sender.request(sys.argv[1], timeout=60.0)])\n"
        "    print(sender.engine._carrier.pid, flush=True)\n"
        "    sender.wait(timeout=60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, receiver.on("/", never_answer)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        receiver.wait_for_requests(1)
        parent.kill()
        parent.wait()
        until(lambda: not is_there(child))
    receiver.wait_until(lambda it: it.open_connections == 0)
