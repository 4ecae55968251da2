"""What people get wrong on the way to a daemon that runs: each is one clear line and the right exit code, and nothing
is lost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cbq_exporter.store.schema import SCHEMA
from tests.support.daemons import Daemon, queue, until
from tests.support.servers import Server
from tests.support.skips import skip_or_fail

ENVIRONMENT = {name: text for name, text in os.environ.items() if not name.startswith("CBQ_")}
QUEUES = [{"name": "callbacks", "prefix": "q"}]
PASSWORD = "correct-horse"


def run(folder: Path, config: dict[str, Any], *words: str, before: tuple[str, ...] = ()) -> tuple[int, list[str]]:
    """The exit code, and the lines on standard error."""
    file = folder / "config.yaml"
    file.write_text(json.dumps({"data_dir": str(folder / "data"), "web": {"listen_address": "127.0.0.1:0"}, **config}))
    done = subprocess.run(
        [*before, sys.executable, "-m", "cbq_exporter", *words, "-c", str(file)],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A server with a password, on a port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = Server("valkey", "--port", str(port), "--bind", "127.0.0.1")
    with server:
        server.client.config_set("requirepass", PASSWORD)
        server.url = f"redis://127.0.0.1:{port}"
        yield server


def test_a_url_of_redis_that_is_none(tmp_path: Path) -> None:
    code, lines = run(tmp_path, {"redis": {"url": "localhost:6379"}}, "serve")
    assert (code, len(lines)) == (1, 1)
    assert re.search(r"config.yaml:1: redis.url: found \*\*\*; must be a URL such as redis://", lines[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda url: url.replace("redis://", "redis://:wrong@"), "refuses the login"),
        (lambda url: url, "refuses the login"),  # no password at all
        (lambda url: url.replace("redis://", f"rediss://:{PASSWORD}@"), "; does it speak TLS?"),  # it does not
        (lambda url: "redis://127.0.0.1:1", ": check that it runs, and redis.url, or CBQ_REDIS_URL, which"),
        (lambda url: "redis://no-such-host.invalid:6379", "cannot be reached: "),
        (lambda url: "unix:///no/such/socket", "cannot be reached: "),
    ],
    ids=["wrong-password", "no-password", "tls", "port", "host", "socket"],
)
@pytest.mark.parametrize("words", [["status"], ["recover", "--all", "--yes"]], ids=["status", "recover"])
def test_a_redis_that_cannot_be_used(change: Any, says: str, words: list[str], guarded: Server, tmp_path: Path) -> None:
    code, lines = run(tmp_path, {"redis": {"url": change(guarded.url)}, "queues": QUEUES}, *words)
    assert (code, len(lines)) == (4, 1), lines
    assert lines[0].startswith("cbq-exporter: Redis at ")
    assert says in lines[0]
    assert "wrong" not in lines[0].partition("refuses the login")[0]
    assert PASSWORD not in lines[0]


@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        (("--maxmemory", "500kb"), "it is at maxmemory: free memory or raise maxmemory (OOM "),
        (("--min-replicas-to-write", "1"), "connect one, or lower min-replicas-to-write (NOREPLICAS "),
        (("--replicaof", "127.0.0.1 1"), "it is a replica: point redis.url at the primary (READONLY "),
    ],
    ids=["full", "too-few-replicas", "replica"],
)
def test_a_redis_that_takes_no_changes(settings: tuple[str, str], ends: str, tmp_path: Path) -> None:
    with Server("redis", *settings) as server:
        settled = {"redis": {"url": server.url}, "queues": QUEUES}
        code, lines = run(tmp_path, settled, "enqueue", "--url", "https://example.com/", "--data", "{}")
    assert (code, len(lines)) == (4, 1), lines
    assert ends in lines[0]
    assert "script" not in lines[0]  # nothing of where in ours


def test_a_key_of_a_foreign_type(server: Server, tmp_path: Path) -> None:
    server.client.set(f"{QUEUES[0]['prefix']}:lock", "x")
    server.client.set(f"{QUEUES[0]['prefix']}:processing", "x")
    settled = {"redis": {"url": server.url}, "queues": QUEUES}
    code, lines = run(tmp_path, settled, "recover", "--all", "--yes")
    assert (code, len(lines)) == (4, 1), lines
    assert "cbq-exporter doctor names it" in lines[0]
    assert server.client.get(f"{QUEUES[0]['prefix']}:processing") == b"x"


def test_the_daemon_says_what_is_wrong_with_redis_and_waits_until_it_is_mended(guarded: Server) -> None:
    client: Any = guarded.client
    with Daemon(guarded.url.replace("redis://", "redis://:wrong@"), queue()) as daemon:
        daemon.wait_until_not_ready("refuses the login")
        client.execute_command("AUTH", PASSWORD)
        client.config_set("requirepass", "wrong")
        try:
            daemon.wait_until_ready()
        finally:
            client.execute_command("AUTH", "wrong")
            client.config_set("requirepass", PASSWORD)


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, lines = run(tmp_path, {"web": {"listen_address": address}}, "serve")
    assert code == 1, lines
    assert len(_told(lines)) == 1
    assert address in lines[-1]


def test_two_daemons_on_one_data_dir(tmp_path: Path) -> None:
    with Daemon(None, folder=tmp_path) as daemon:
        other = tmp_path / "other"
        other.mkdir()
        code, lines = run(other, {"data_dir": str(daemon.data_dir)}, "serve")
        assert code == 4
        assert lines[-1] == (
            f"cbq-exporter: data_dir {daemon.data_dir} is in use by another cbq-exporter daemon "
            f"(process {daemon.pid}): stop that one, or set another data_dir"
        )
        assert len(_told(lines)) == 1
        daemon.wait_until_ready()


def test_a_data_dir_without_permission(tmp_path: Path) -> None:
    if shutil.which("setpriv") is None or os.geteuid() != 0:
        skip_or_fail("root and the setpriv program are needed")
    (tmp_path / "data").mkdir(mode=0o700)
    os.chown(tmp_path / "data", 4711, 4711)
    code, lines = run(tmp_path, {}, "serve", before=("setpriv", "--bounding-set=-all", "--inh-caps=-all"))
    assert code == 4
    assert len(_told(lines)) == 1
    assert f"data_dir {tmp_path}/data must belong to the user that runs this" in lines[-1]


def test_a_place_where_no_configuration_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "cbq_exporter", "init", "--yes", "--redis-url=embedded", "file/config.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == "cbq-exporter: file/config.yaml cannot be written: Not a directory"


def test_a_configuration_of_a_newer_version(tmp_path: Path) -> None:
    code, lines = run(tmp_path, {"teleport": {"to": "mars"}, "queues": [{**QUEUES[0], "warp": 9}]}, "serve")
    assert code == 1
    assert [line.partition(": ")[2].partition(": ")[2] for line in lines] == [
        line for line in (one.partition(": ")[2].partition(": ")[2] for one in lines) if "found an unknown key" in line
    ]
    assert len(lines) == 2


@pytest.mark.parametrize("found", [str(SCHEMA + 1), "9" * 40, "2.x"])
@pytest.mark.parametrize(
    "words", [["serve"], ["recover", "--all", "--yes"], ["reset", "--yes", "-q", "callbacks"], ["unlock", "--yes"]]
)
def test_a_queue_that_a_newer_version_has_written(words: list[str], found: str, server: Server, tmp_path: Path) -> None:
    client = server.client
    client.set("q:schema", found)
    client.rpush("q:processing", "{}")
    before = sorted(client.keys("*"))
    code, lines = run(tmp_path, {"redis": {"url": server.url}, "queues": QUEUES}, *words)
    assert code == 4
    assert len(_told(lines)) == 1
    assert lines[-1].startswith("cbq-exporter: a newer cbq-exporter has written to this queue: q:schema is ")
    assert (client.get("q:schema"), sorted(client.keys("*"))) == (found.encode(), before)


def test_a_queue_that_a_newer_version_writes_while_redis_could_not_be_asked(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    store = Server("valkey", folder=tmp_path / "redis", durable=True)
    with Daemon(store.url, queue(prefix="q")) as daemon:
        daemon.wait_until_not_ready("cannot be reached")
        with store:
            store.client.set("q:schema", SCHEMA + 1)
            store.client.rpush("q:pending", '{"url": "http://127.0.0.1:1/", "data": {}}')
            daemon.wait_until_not_ready("a newer cbq-exporter has written")
            assert store.client.llen("q:pending") == 1
            assert store.client.get("q:lock") is None
            store.client.delete("q:schema")  # the newer version is taken to have been a mistake
            daemon.wait_until_ready()
            until(lambda: store.client.llen("q:pending") == 0)
            assert store.client.get("q:schema") == str(SCHEMA).encode()


def test_a_full_disk_below_the_embedded_store(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or shutil.which("nsenter") is None or os.geteuid() != 0:
        skip_or_fail("root, unshare and nsenter are needed")
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "big.json").write_text(
        "".join(json.dumps({"url": "https://x.invalid/", "data": str(n) + "x" * 100_000}) + "\n" for n in range(200))
    )
    with _on_small_disk(data, "12m") as holder:
        inside = ("nsenter", "--target", str(holder.pid), "--mount")
        config: dict[str, Any] = {"redis": {"url": None}, "queues": [{**QUEUES[0], "mode": "observe"}]}
        big = (*inside, "sh", "-c", f'exec "$@" < {tmp_path}/big.json', "sh")
        code, lines = run(tmp_path, config, "enqueue", before=big)
        assert code == 4, lines
        assert lines[-1].startswith("cbq-exporter: ")
        assert re.search(f"the disk of data_dir {data} is full \\(.* left\\): free some space", lines[-1]), lines
        assert "Connection closed" not in lines[-1]
        assert len(_told(lines)) <= 2  # the audit could not be written either
        said = re.search(r": ([\d,]+) callbacks enqueued", lines[-1])
        certain = int(said[1].replace(",", "")) if said else 0
        assert 0 < certain < 200, lines

        subprocess.run([*inside, "mount", "-o", "remount,size=64m", str(data)], check=True, timeout=30)
        command = [*inside, sys.executable, "-m", "cbq_exporter", "status", "-o", "json", "-c"]
        shown = subprocess.run(
            [*command, str(tmp_path / "config.yaml")], env=ENVIRONMENT, capture_output=True, check=True, timeout=60
        )
        assert json.loads(shown.stdout)["queues"][0]["lengths"]["pending"] >= certain


def test_a_disk_without_an_inode_left(tmp_path: Path) -> None:
    """It has room, and takes no new file."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None or os.geteuid() != 0:
        skip_or_fail("root, unshare and nsenter are needed")
    (tmp_path / "data").mkdir()
    with _on_small_disk(tmp_path / "data", "64m,nr_inodes=4") as holder:
        inside = ("nsenter", "--target", str(holder.pid), "--mount")
        config: dict[str, Any] = {"redis": {"url": None}, "queues": [{**QUEUES[0], "mode": "observe"}]}
        code, lines = run(tmp_path, config, "status", before=inside)
    assert code == 4
    assert f"the disk of data_dir {tmp_path}/data has no inode left: delete some files" in lines[-1]


def test_a_disk_that_fills_up_below_a_daemon(tmp_path: Path) -> None:
    """Everybody is told why; with space made it goes on by itself, and nothing is lost."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None or os.geteuid() != 0:
        skip_or_fail("root, unshare and nsenter are needed")
    (tmp_path / "data").mkdir()
    full = f"the disk of data_dir {tmp_path}/data is full"
    filler = tmp_path / "data" / "filler"
    settings: dict[str, Any] = {"redis": {"url": None}, "queues": [queue(mode="observe")]}
    small, large = (
        ("enqueue", "--url", "https://x.invalid/", "--data", json.dumps("x" * length)) for length in (1, 20_000)
    )  # the large one does not fit into what is left of the file's last page
    with _on_small_disk(tmp_path / "data", "24m") as holder:
        inside = ("nsenter", "--target", str(holder.pid), "--mount")
        with Daemon(None, queue(mode="observe"), folder=tmp_path, before=inside) as daemon:
            daemon.wait_until_ready()
            (tmp_path / "beside").mkdir()
            settings["data_dir"] = str(daemon.data_dir)
            assert run(tmp_path / "beside", settings, *small, before=inside)[0] == 0
            subprocess.run([*inside, "dd", "if=/dev/zero", f"of={filler}"], stderr=subprocess.DEVNULL, timeout=60)

            code, lines = run(tmp_path / "beside", settings, *large, before=inside)
            assert code == 4, lines
            assert full in lines[-1]
            daemon.wait_until_not_ready(full)
            assert any("embedded server ended" in line and full in line for line in daemon.log().splitlines())
            looked = subprocess.run(
                [*inside, sys.executable, "-m", "cbq_exporter", "doctor", "-c", str(daemon.config_file)],
                env=ENVIRONMENT,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert looked.returncode == 4
            assert re.search(r"problem +disk +full: .* left below the embedded store", looked.stdout), looked.stdout

            subprocess.run([*inside, "rm", str(filler)], check=True, timeout=60)
            daemon.wait_until_ready(30)
            assert daemon.metrics().get("cbq_queue_length", queue="callbacks", state="pending") == 1


@contextlib.contextmanager
def _on_small_disk(folder: Path, size: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in whose view ``folder`` is a disk of that size."""
    script = 'mount -t tmpfs -o "size=$1" tmpfs "$2" && echo ready && exec sleep 600'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", size, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        try:
            yield holder
        finally:
            holder.send_signal(signal.SIGKILL)


def _told(lines: list[str]) -> list[str]:
    """Without what the log says on the way."""
    return [line for line in lines if not line.startswith("{")]
