"""Observe mode only reads: as a user who may do nothing else, watched by the server itself; and the users of the
other modes may do all that these need.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from cbq_exporter.store.keys import QueueKeys
from tests.e2e.bare_client import PREFIX, item, push, wait_until_settled
from tests.support.acl import documented_user
from tests.support.counting_receiver import CountingReceiver
from tests.support.daemons import SHORT_LIVED, Daemon, queue, until
from tests.support.queues import DrivenQueue, callback
from tests.support.servers import Server, major_version

KEYS = QueueKeys.of(PREFIX)
_LAST_WORD = "nothing comes after this"


class Watch:
    """Every command that reaches the server while inside, those of scripts included; complete once it has ended."""

    def __init__(self, server: Server) -> None:
        # However long nothing is said: on a busy machine a daemon takes its time to start.
        self._client: Any = redis.Redis(unix_socket_path=str(server.socket), socket_timeout=None)
        self._sender: Any = server.client
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._listening = threading.Event()
        self.commands: list[str] = []

    def _listen(self) -> None:
        with self._client.monitor() as monitor:
            self._listening.set()
            for heard in monitor.listen():
                if _LAST_WORD in heard["command"]:
                    return
                self.commands.append(heard["command"])

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._sender.echo(_LAST_WORD)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._client.close()

    @property
    def writes(self) -> list[str]:
        """Those that can change something, by the server's own word."""
        known = self._sender.command()
        return [one for one in self.commands if not _only_reads(known[one.split()[0].lower()]["flags"])]


def _only_reads(flags: list[str]) -> bool:
    return "write" not in flags and not ("admin" in flags and "readonly" not in flags)


def _leave_everything_to_do(server: Server) -> dict[bytes, Any]:
    """All that a daemon that may write would mend; returns what is there."""
    client: Any = server.client
    with DrivenQueue(server) as driven:
        client.rpush(KEYS.pending, callback(1), callback(2), b"{broken")
        driven.claim(2)
        driven.let_leases_run_out()
        client.rpush(KEYS.processing, b"of somebody else")
        client.set(KEYS.lock, "worker_1764000000_1234")
        client.zadd(KEYS.retry, {"a": 1})
        client.hset(KEYS.payloads, "a", callback(3))
        client.hset(KEYS.records, "left behind", "{}")
        client.zadd(KEYS.dead, {"b": 1})
        return driven.contents()


def _contents(server: Server) -> dict[bytes, Any]:
    with DrivenQueue(server) as driven:
        return driven.contents()


def _run(folder: Path, url: str, mode: str, *words: str) -> subprocess.CompletedProcess[str]:
    config = folder / "cli.yaml"
    config.write_text(json.dumps({"redis": {"url": url}, "queues": [{"name": "callbacks", "mode": mode}]}))
    command = [sys.executable, "-m", "cbq_exporter", *words, "-c", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


QUICK = queue(SHORT_LIVED, lock={"check_every": "200ms", "stale": {"no_ttl_after": "200ms"}})


def test_observe_mode_never_writes(each_server: Server, tmp_path: Path) -> None:
    before = _leave_everything_to_do(each_server)
    with documented_user(each_server, "observe") as url, Watch(each_server) as watch:
        with Daemon(url, {**QUICK, "mode": "observe"}) as daemon:
            daemon.wait_until_ready()
            for _ in range(3):
                assert daemon.metrics().get("cbq_up") == 1, daemon.get("/api/v1/status")
            assert daemon.metrics().get("cbq_queue_length", state="pending") == 1
            assert daemon.metrics().get("cbq_lock_without_expiry") == 1
            for path in ("/", "/api/v1/status", "/-/ready", "/-/healthy"):
                assert daemon.get(path)[0] == 200
            time.sleep(1.0)  # not waiting for anything: its scheduled tasks have their chance
            # Trouble of any kind would show: a refused command, or a task that keeps failing.
            assert not daemon.metrics().get("cbq_redis_errors_total", kind="permission")
            assert not daemon.metrics().get("cbq_task_failures_total")
            assert daemon.stop() == 0
        status = _run(tmp_path, url, "observe", "status")
        doctor = _run(tmp_path, url, "observe", "doctor", "-o", "json")
        letters = _run(tmp_path, url, "observe", "dead", "list")
    assert (status.returncode, status.stderr) == (0, "")
    assert (letters.returncode, letters.stderr) == (0, "")
    assert (doctor.returncode, doctor.stderr) == (1, "")
    permissions = [one for one in json.loads(doctor.stdout)["findings"] if one["check"] == "permissions"]
    assert [one["severity"] for one in permissions] == ["note"]  # CONFIG GET
    assert watch.writes == []
    assert sum(command.startswith("LLEN") for command in watch.commands) >= 6
    assert _contents(each_server) == before


def test_observing_tells_what_others_have_left_behind(server: Server) -> None:
    client: Any = server.client
    client.rpush(KEYS.processing, callback(1), callback(2))
    client.set(KEYS.lock, "worker_1764000000_1234")
    began = time.time()
    with (
        Watch(server) as watch,
        Daemon(server.url, queue(QUICK, mode="observe", recovery={"stuck_after": "600ms"})) as daemon,
    ):
        until(lambda: daemon.metrics().get("cbq_lock_stale") == 1 and daemon.metrics().get("cbq_stuck_callbacks") == 1)
        first_seen = daemon.metrics().get("cbq_lock_first_seen_timestamp_seconds")
        assert first_seen is not None
        assert began - 1 < first_seen < time.time() + 1

        client.set(KEYS.lock, "worker_1764000009_4321", ex=30)  # its workers go on
        client.lpop(KEYS.processing)
        after = daemon.metrics()
        assert (after.get("cbq_lock_stale"), after.get("cbq_stuck_callbacks")) == (0, 0)
        assert (after.get("cbq_lock_first_seen_timestamp_seconds") or 0) > first_seen
    assert [command.split()[0] for command in watch.writes] == ["SET", "LPOP"]  # those of this test


def test_the_watch_would_have_seen_a_write(server: Server) -> None:
    """The same queue, the same watch, and a daemon that may: it writes at once."""
    _leave_everything_to_do(server)
    with Watch(server) as watch, Daemon(server.url, {**QUICK, "mode": "supervise"}):
        until(lambda: server.client.llen(KEYS.pending) == 3)
    assert watch.writes


def test_supervise_mode_can_do_its_work_as_its_documented_user(each_server: Server, tmp_path: Path) -> None:
    _leave_everything_to_do(each_server)
    with documented_user(each_server, "supervise") as url:
        with Daemon(url, {**QUICK, "mode": "supervise"}) as daemon:
            until(lambda: each_server.client.llen(KEYS.pending) == 3)
            daemon.wait_until_ready()
            assert not daemon.metrics().get("cbq_redis_errors_total", kind="permission")
        _has_all_permissions(each_server, tmp_path, url, "supervise")


def test_dispatch_mode_can_do_its_work_as_its_documented_user(each_server: Server, tmp_path: Path) -> None:
    with documented_user(each_server, "dispatch") as url:
        with CountingReceiver() as receiver, Daemon(url, QUICK) as daemon:
            daemon.wait_until_ready()  # idle, and waiting for arrivals
            push(each_server.client, *(item(receiver.url, n) for n in range(20)))
            wait_until_settled(each_server.client)
            assert len(receiver.accepted) == 20
            assert not daemon.metrics().get("cbq_redis_errors_total", kind="permission")
        _has_all_permissions(each_server, tmp_path, url, "dispatch")


def _has_all_permissions(server: Server, folder: Path, url: str, mode: str) -> None:
    doctor = _run(folder, url, mode, "doctor", "-o", "json")
    permissions = [one for one in json.loads(doctor.stdout)["findings"] if one["check"] == "permissions"]
    assert [one["severity"] for one in permissions] == ["note", "ok" if major_version(server.kind) >= 7 else "note"], (
        permissions
    )
