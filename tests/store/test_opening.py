"""From a configuration to a store: whose server it is, and what the queues in it are called."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from cbq_exporter.config.models import Config, KeysConfig, QueueConfig, RedisConfig
from cbq_exporter.errors import EmbeddedStoreError, StoreUnavailable
from cbq_exporter.model import Mode, State
from cbq_exporter.store.data_dir import COMMAND, DAEMON, holder
from cbq_exporter.store.embedded import EmbeddedServer
from cbq_exporter.store.opening import make_store, open_store
from tests.support.servers import Server


def test_queues_have_the_names_and_keys_of_the_configuration(server: Server) -> None:
    config = Config(
        queues=(
            QueueConfig(name="second", prefix="{b}", mode=Mode.OBSERVE),
            QueueConfig(
                name="first",
                prefix="a",
                keys=KeysConfig(
                    pending="todo", processing="doing", lock="sending", last_send="sent_at", stats="numbers"
                ),
            ),
        )
    )

    async def scenario() -> None:
        store = make_store(config, server.url, lock_value="worker_1_0001")
        try:
            assert list(store.queues) == ["second", "first"]
            first = store.queues["first"]
            await first.enqueue([b'{"url": "https://receiver.example"}'])
            assert await first.keep_lock(30)
            assert set(server.client.scan_iter()) == {b"todo", b"numbers:queued", b"sending"}
            assert server.client.get("sending") == b"worker_1_0001"
            assert all(key.startswith("{b}:") for key in store.queues["second"].keys.all())
            views = (await store.reader.snapshot()).queues
            assert [(view.queue, view.mode, view.lengths[State.PENDING]) for view in views] == [
                ("second", Mode.OBSERVE, 0),
                ("first", Mode.DISPATCH, 1),
            ]
            assert views[1].lock is not None
            assert views[1].lock.ours
        finally:
            await store.close()

    asyncio.run(scenario())


def test_nothing_is_connected_before_the_first_use_and_no_password_is_shown(tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/none.sock?username=bob&password=hunter2"
    errors: list[str] = []

    async def scenario() -> str:
        store = make_store(Config(redis=RedisConfig(url=SecretStr(url))), url, on_error=errors.append)
        assert errors == []
        with pytest.raises(StoreUnavailable) as caught:
            await store.queues["callbacks"].dead.count()
        snapshot = await store.reader.snapshot()
        await store.close()
        return f"{store.shown_as} {caught.value} {snapshot.error}"

    shown = asyncio.run(scenario())
    assert errors == ["connect", "connect"]
    assert "none.sock" in shown
    assert "hunter2" not in shown


def test_a_command_uses_the_configured_server(server: Server) -> None:
    async def scenario() -> None:
        async with open_store(Config(redis=RedisConfig(url=SecretStr(server.url)))) as store:
            await store.queues["callbacks"].enqueue([b"{}"])
            assert store.shown_as == server.url
        assert server.client.llen("callback_queue:pending") == 1

    asyncio.run(scenario())


def test_a_command_uses_the_server_of_the_running_daemon(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = Config(data_dir=tmp_path / "data")
        daemon = EmbeddedServer(config.data_dir)
        store = make_store(config, await daemon.start())
        try:
            async with open_store(config) as other:
                await other.queues["callbacks"].enqueue([b"{}"])
            assert await store.queues["callbacks"].enqueue([b"{}"]) == 2
            assert daemon.pid is not None  # the command ended, its server did not
            assert store.shown_as == f"{config.data_dir} (embedded)"
        finally:
            await store.close()
            await daemon.stop()

    asyncio.run(scenario())


def test_without_a_daemon_a_command_has_a_server_of_its_own_for_its_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = Config(data_dir=tmp_path / "data")
        for expected in (1, 2):
            async with open_store(config) as store:
                assert await store.queues["callbacks"].enqueue([b"{}"]) == expected
            assert holder(config.data_dir) is None
        with pytest.raises(ZeroDivisionError):
            async with open_store(config):
                raise ZeroDivisionError
        assert holder(config.data_dir) is None

    asyncio.run(scenario())


def test_commands_at_the_same_time_wait_for_each_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = Config(data_dir=tmp_path / "data")

        async def add() -> int:
            async with open_store(config) as store:
                return await store.queues["callbacks"].enqueue([b"{}"])

        assert sorted(await asyncio.gather(*(add() for _ in range(5)))) == [1, 2, 3, 4, 5]

    asyncio.run(scenario())


def test_a_command_waits_for_a_daemon_that_is_starting(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = Config(data_dir=tmp_path / "data")
        daemon = EmbeddedServer(config.data_dir)
        starting = asyncio.create_task(daemon.start())
        while holder(config.data_dir) is None:
            await asyncio.sleep(0)
        async with open_store(config) as store:
            assert await store.queues["callbacks"].enqueue([b"{}"]) == 1
        await starting
        await daemon.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("role", "said"),
    [
        (COMMAND, f"another cbq-exporter command .process {os.getpid()}."),
        (
            DAEMON,
            f"the daemon on data_dir .* .process {os.getpid()}. has no store that answers: .*: look at the daemon's",
        ),
    ],
)
def test_a_command_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, said: str
) -> None:
    monkeypatch.setattr("cbq_exporter.store.opening._PATIENCE", 0.1)

    async def scenario() -> None:
        config = Config(data_dir=tmp_path / "data")
        other = EmbeddedServer(config.data_dir, role=role)
        await other.start()
        (tmp_path / "data" / "server.json").unlink()  # as while it starts
        try:
            began = time.monotonic()
            with pytest.raises(EmbeddedStoreError, match=said):
                async with open_store(config):
                    pytest.fail("two servers for one folder")
            assert time.monotonic() - began < 5
        finally:
            await other.stop()

    asyncio.run(scenario())
