"""``status``: what an operator reads first when callbacks stop going out."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner

from cbq_exporter.cli.main import app
from cbq_exporter.cli.status import lock_text
from cbq_exporter.model import LockView, Mode, QueueView
from tests.cli.conftest import TWO_QUEUES, Cli, item
from tests.support.daemons import until
from tests.support.servers import KINDS, Server

TROUBLES = (
    "1 stuck in processing: their sender is gone",
    "1 retry overdue",
    "nobody sends: is the daemon running?",
)


def _store_line(cli: Cli) -> str:
    return f"store {cli.server.url}, valkey "


def test_an_empty_queue(cli: Cli) -> None:
    result = cli("status")
    assert (result.exit_code, result.stderr) == (0, "")
    *table, store = result.stdout.splitlines()
    assert table == [
        "queue      mode      pending  processing  retry  dead  oldest waiting  last send",
        "callbacks  dispatch        0           0      0     0               -          -",
        "",
        "queue      lock  trouble",
        "callbacks  free  -",
        "",
    ]
    assert store.startswith(_store_line(cli))


def test_queues_in_trouble(cli: Cli) -> None:
    cli.configure(TWO_QUEUES)
    client, now = cli.server.client, time.time()
    client.rpush("q:pending", item(1, _queued_at=now - 3600 * 30.5), *(item(n) for n in range(1233)))
    client.rpush("q:processing", item(5000), item(5001))
    client.zadd("q:leases", {"1764000000000-1-1|0|0|0|1764000000000": (now - 5) * 1000})
    client.zadd("q:retry", {"a": (now - 60) * 1000, "b": (now + 60) * 1000})
    client.set("q:last_send_time", str(now - 42), ex=60)
    client.set("other:lock", "worker_1764000000_1234")
    result = cli("status")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[:-1] == [
        "queue      mode      pending  processing  retry  dead  oldest waiting  last send",
        "callbacks  dispatch    1,234           2      2     0            1d6h    42s ago",
        "invoices   observe         0           0      0     0               -          -",
        "",
        "queue      lock                                       trouble",
        f"callbacks  free{' ' * 39}{'; '.join(TROUBLES)}",
        "invoices   no expiry! held by worker_1764000000_1234  the lock cannot expire by itself",
        "",
    ]


def test_it_fits_into_80_columns(cli: Cli) -> None:
    cli.columns = 80
    cli.configure(TWO_QUEUES)
    cli.server.client.set("other:lock", "worker_1764000000_1234")
    cli.server.client.rpush("q:pending", item(1))
    lines = cli("status").stdout.splitlines()[:-1]
    assert max(map(len, lines)) <= 80
    assert lines[4:] == [
        "queue      lock                                       trouble",
        "callbacks  free                                       nobody sends: is the",
        "                                                      daemon running?",
        "invoices   no expiry! held by worker_1764000000_1234  the lock cannot expire by",
        "                                                      itself",
        "",
    ]


def test_one_queue_as_json(cli: Cli) -> None:
    cli.configure(TWO_QUEUES)
    cli.server.client.set("q:lock", "worker_1", ex=30)
    result = cli("status", "-q", "callbacks", "-o", "json")
    snapshot = json.loads(result.stdout)
    assert snapshot["redis"]["up"] is True
    (queue,) = snapshot["queues"]
    assert queue["queue"] == "callbacks"
    assert queue["lengths"] == {"pending": 0, "processing": 0, "retry": 0, "dead": 0, "trash": 0}
    assert queue["lock"]["value"] == "worker_1"
    assert 0 < queue["lock"]["ttl_seconds"] <= 30
    assert queue["last_send_at"] is None


@pytest.mark.parametrize(
    ("seen", "said", "verdict"),
    [
        (1770, "the lock is taken to be left behind in 9h30m (no expiry)", "watch"),
        (39_630, "the lock was left behind (no expiry, untouched for 11h00m)", "release"),
    ],
)
def test_what_the_keeper_thinks_of_the_lock(cli: Cli, seen: int, said: str, verdict: str) -> None:
    cli.configure("  - {name: callbacks, prefix: q, lock: {stale: {no_ttl_after: 10h}}}\n")
    first_ms = round((time.time() - seen) * 1000)
    cli.server.client.set("q:lock", "worker_1")
    for name, value in (("value", "worker_1"), ("first_ms", first_ms), ("untouched_ms", first_ms), ("beat_ms", -1)):
        cli.server.client.hset("q:lock_seen", name, str(value))
    assert said in cli("status").stdout
    keeper = json.loads(cli("status", "-o", "json").stdout)["queues"][0]["lock"]["keeper"]
    acts_at = pytest.approx(first_ms / 1000 + 36_000) if verdict == "watch" else None
    assert keeper == {"verdict": verdict, "reason": "no_ttl", "acts_at": acts_at}


def test_a_replica_is_called_one(cli: Cli) -> None:
    cli.server.client.replicaof("127.0.0.1", 1)
    try:
        result, document = cli("status"), json.loads(cli("status", "-o", "json").stdout)
    finally:
        cli.server.client.replicaof("NO", "ONE")
    assert result.exit_code == 0
    *_, store, trouble = result.stdout.splitlines()
    assert store.split(", ")[2] == "replica"
    assert trouble == "the server is a replica: it refuses every change"
    assert document["redis"]["replica"] is True
    assert ", replica, " not in cli("status").stdout


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_cannot_write_to_its_disk(kind: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    with Server(kind, "--save", "3600", "1", "--dir", str(gone)) as server:
        cli = Cli(server, tmp_path)
        healthy = json.loads(cli("status", "-o", "json").stdout)
        gone.rmdir()  # as bad as a full disk, also for root
        server.client.bgsave()
        until(lambda: server.client.info("persistence")["rdb_last_bgsave_status"] == "err")
        with pytest.raises(redis.ResponseError, match="MISCONF"):
            server.client.set("q:lock", "worker_1")
        result, failed = cli("status"), json.loads(cli("status", "-o", "json").stdout)
    assert (healthy["redis"]["disk_write_failed"], failed["redis"]["disk_write_failed"]) == (False, True)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "the server's last write to its disk failed: it may refuse every change"


def test_an_unknown_queue(cli: Cli) -> None:
    result = cli("status", "-q", "none")
    assert result.exit_code == 2
    assert result.stderr == "cbq-exporter: no queue 'none' is configured: there is callbacks\n"


def test_one_queue_that_cannot_be_read_does_not_hide_the_others(cli: Cli) -> None:
    cli.configure(TWO_QUEUES)
    cli.server.client.set("q:pending", "no list")
    result = cli("status")
    assert result.exit_code == 1
    assert "callbacks  dispatch        -           -      -     -" in result.stdout
    assert "callbacks  -     q:pending: it holds another type: rename or delete it, or " in result.stdout
    assert "invoices   observe         0           0      0     0" in result.stdout


def test_redis_that_is_down_is_one_line(cli: Cli, tmp_path: Path) -> None:
    cli.config_file.write_text(f"redis: {{url: 'unix://{tmp_path}/none.sock'}}\nqueues:\n  - {{name: callbacks}}\n")
    for output in ("table", "json"):
        result = cli("status", "-o", output)
        assert (result.exit_code, result.stdout) == (4, "")
        assert result.stderr.startswith(f"cbq-exporter: Redis at unix://{tmp_path}/none.sock cannot be reached: ")
        assert result.stderr.count("\n") == 1


def test_watch_repeats_until_ctrl_c(cli: Cli) -> None:
    process = cli.start("status", "--watch", "--interval", "0.1")
    assert process.stdout is not None
    with process:
        for _ in range(2):  # two whole views
            while not process.stdout.readline().startswith(b"store "):
                assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, b"")


@pytest.mark.parametrize(
    ("lock", "text"),
    [
        (None, "free"),
        (LockView("worker_1", 23.4, False), "held by worker_1, 23s left"),
        (LockView("worker_1", 99_999.0, False), "held by worker_1, 1d3h left"),
        (LockView("worker_1", None, False), "no expiry! held by worker_1"),
    ],
)
def test_locks(lock: LockView | None, text: str) -> None:
    assert lock_text(QueueView("q", Mode.DISPATCH, lock=lock)) == text


def test_a_new_store_is_not_taken_for_a_queue_in_redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (
        CliRunner().invoke(app, ["status"], env={"CBQ_REDIS_URL": None, "CBQ_CONFIG": None}) for _ in range(2)
    )
    assert first.stderr.startswith("no configuration was found: this is a new, empty store in cbq-data; ")
    assert "CBQ_REDIS_URL=" in first.stderr
    assert (first.exit_code, second.exit_code, second.stderr) == (0, 0, "")
