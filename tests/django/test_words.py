"""What the services say to an operator, in a Chinese session: each is said by the service itself."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.core.management import CommandError
from django.test import override_settings
from django.utils import translation

from cbq_exporter.django.tools import Desk
from tests.django.test_command import tools
from tests.django.test_tools import filled
from tests.support.servers import Server

LOCK = "callback_queue:lock"


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What happens after a plan, and before it is carried out."""

    def happens(change: Any) -> None:
        async def execute(desk: Desk, plan: Any) -> Any:
            change()
            return await carry_out(desk, plan)

        carry_out = Desk.execute
        monkeypatch.setattr(Desk, "execute", execute)

    return happens


def refused(*options: str) -> tuple[int, str]:
    with translation.override("zh-hans"), pytest.raises(CommandError) as error:
        tools(*options)
    said = str(error.value)
    assert not re.search(r"[A-Za-z]{3,} [a-z]{2,}", said), said
    return error.value.returncode, said


def test_a_queue_that_is_not_configured(redis: Server) -> None:
    with override_settings(CBQ_EXPORTER={"queues": [{"name": "a", "prefix": "a"}, {"name": "b", "prefix": "b"}]}):
        assert refused("--status") == (2, "配置了多个队列：请用 --queue 指明是哪一个（a, b）")
        assert refused("--status", "--queue", "c") == (2, "没有配置队列 'c'：现有 a, b")


def test_a_reset_that_is_not_in_the_trash(redis: Server) -> None:
    assert refused("--undo", "x") == (3, "回收站里没有 callbacks 的重置 x：回收站是空的")
    filled(redis)
    tools("--reset", "--noinput")
    code, said = refused("--undo", "x")
    assert (code, said.rpartition("-")[0][:-15]) == (3, "回收站里没有 callbacks 的重置 x：现有 ")


def test_more_resets_than_are_kept(redis: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbq_exporter.store.trash.MOST", 0)
    filled(redis)
    said = "callbacks 已保留 0 次重置：请先撤销一次，或等其中一次到期"
    assert refused("--reset", "--noinput") == (3, said)


def test_a_lock_that_changed_hands(redis: Server, between: Any) -> None:
    redis.client.set(LOCK, "worker_1")
    between(lambda: redis.client.set(LOCK, "worker_2"))
    code, said = refused("--unlock")
    assert (code, said) == (5, "没有任何改动：发送锁已不是计划时的样子（当时由 worker_1 持有）；请用 --status 再看一次")


@pytest.mark.parametrize("words", [["--recover"], ["--reset", "--noinput"]], ids=["recover", "reset"])
def test_much_more_than_was_planned(words: list[str], redis: Server, between: Any) -> None:
    redis.client.rpush("callback_queue:processing", "a")
    between(lambda: redis.client.rpush("callback_queue:processing", *range(5000)))
    said = "没有任何改动：计划时有 1 个回调，现在有 5,001 个；请用 --status 再看一次"
    assert refused(*words) == (5, said)


def test_nothing_is_left_to_move(redis: Server, between: Any) -> None:
    redis.client.rpush("callback_queue:processing", "a")
    between(lambda: redis.client.flushdb())
    assert refused("--reset", "--noinput") == (5, "没有任何改动：已经没有可以移动的内容")
