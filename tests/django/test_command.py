"""``manage.py callback_queue_tools``, as an operator uses it and as a script does."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings
from django.utils import translation

from tests.django.project.settings import caches
from tests.django.test_tools import WORKER, audited, filled
from tests.support.servers import Server

ROOT = Path(__file__).parents[2]


def tools(*options: str) -> str:
    """What it prints."""
    out = io.StringIO()
    call_command("callback_queue_tools", *options, stdout=out, no_color=True)
    return out.getvalue()


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Any:
    def give(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))

    give("")
    return give


def test_status(redis: Server) -> None:
    assert tools("--status") == (
        "The callback queue\n"
        "  pending:    0\n"
        "  processing: 0\n"
        "  send lock:  free\n"
        "  last send:  not in the last minute\n"
    )
    filled(redis).set("callback_queue:last_send_time", str(time.time() - 65))
    shown = tools("--status")
    assert f"  processing: 3\n  send lock:  held by {WORKER}\n" in shown
    assert re.search(r"last send:  20\d\d-\d\d-\d\d \d\d:\d\d:\d\d, 1m0\ds ago\n", shown)


@pytest.mark.parametrize("why", ["--why", "--reason"])
def test_all_of_it_in_the_order_of_the_existing_command(redis: Server, answer: Any, why: str) -> None:
    filled(redis)
    answer("yes\n")
    shown = tools("--reset", "--recover", "--unlock", "--status", why, "hung")
    where = [
        shown.index(line)
        for line in (
            f"held by {WORKER}",
            f"Released the send lock of {WORKER}.",
            "Put 3 callbacks back to pending.",
            "5 pending, 0 in processing, 0 to be retried, 0 dead letters",
            "kept for 7d",
            "Moved 5 callbacks to the trash.",
        )
    ]
    assert where == sorted(where)
    done = [(operation, reason) for _, operation, result, reason in audited(redis) if result == "done"]
    assert done == [("unlock", "hung"), ("recover", "hung"), ("reset", "hung")]
    (undo,) = re.findall(r"The way back: manage.py callback_queue_tools (--undo) (\S+)\n", shown)
    assert tools(*undo) == "Put 5 callbacks back.\n"
    assert redis.client.llen("callback_queue:pending") == 5


@pytest.mark.parametrize("said", ["no\n", "\n", "", "yes, please\n"])
def test_a_reset_that_is_not_agreed_to(redis: Server, answer: Any, said: str) -> None:
    filled(redis)
    answer(said)
    with pytest.raises(CommandError, match="cancelled: nothing was changed") as cancelled:
        tools("--reset")
    assert cancelled.value.returncode == 3
    assert redis.client.llen("callback_queue:pending") == 2
    assert audited(redis)[0][1:3] == ("reset", "refused")


def test_a_reset_by_a_script(redis: Server) -> None:
    filled(redis)
    assert "Moved 5 callbacks to the trash." in tools("--reset", "--noinput")
    assert tools("--undo") == "Put 5 callbacks back.\n"
    assert "Moved 5 callbacks to the trash." in tools("--reset", "--no-input")
    assert tools("--reset", "--noinput") == "There is nothing to reset.\n"
    assert tools("--unlock", "--recover") == "There is no lock to release.\nPut 0 callbacks back to pending.\n"


def test_the_question_names_who_may_be_sending(redis: Server, answer: Any) -> None:
    redis.client.set("callback_queue:lock", "worker_1\x1b[2J", ex=30)
    answer("yes\n")
    shown = tools("--reset")
    assert "worker_1\\x1b[2J holds the send lock and may be sending now." in shown
    assert not redis.client.exists("callback_queue:lock")


def test_in_chinese(redis: Server, answer: Any) -> None:
    filled(redis)
    answer("是\n")
    with translation.override("zh-hans"):
        shown = tools("--status", "--unlock", "--recover", "--reset")
    assert not re.search(r"[A-Za-z]{3,} [a-z]{3,}", re.sub(r"manage.py callback_queue_tools|--undo \S+", "", shown))
    assert "处理中：  3" in shown
    assert "已把 5 个回调移入回收站。" in shown


def test_what_is_wrong_is_one_line_and_an_exit_code(redis: Server) -> None:
    with override_settings(CBQ_EXPORTER={"queues": [{"name": "a", "prefix": "a"}, {"name": "b", "prefix": "b"}]}):
        with pytest.raises(CommandError, match=r"say which is meant \(a, b\)") as wrong:
            tools("--status")
        assert wrong.value.returncode == 2
        assert "pending:    0" in tools("--status", "--queue", "b")
        redis.client.rpush("b:pending", "{}")
        shown = tools("--reset", "--noinput", "--queue", "b")
        (undo,) = re.findall(r"The way back: manage.py callback_queue_tools (.*)\n", shown)
        assert tools(*undo.split()) == "Put 1 callback back.\n"
    with override_settings(CACHES=caches("unix:///nowhere/s.sock")):
        for step in ("--status", "--unlock", "--recover", "--reset", "--undo"):
            with pytest.raises(CommandError, match="cannot be reached") as wrong:
                tools(step, "--noinput")
            assert wrong.value.returncode == 4
            assert str(wrong.value).endswith(": check that it runs, and CACHES or CBQ_EXPORTER in the settings")


def test_as_a_program(redis: Server) -> None:
    def manage(*arguments: str, language: str = "en") -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.django.project.settings",
            "PROJECT_REDIS": redis.url,
            "PROJECT_LANGUAGE": language,
        }
        command = [sys.executable, "-m", "django", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )

    assert manage("check").returncode == 0
    filled(redis)
    chinese = manage("callback_queue_tools", "--status", "--recover", language="zh-hans")
    assert (chinese.returncode, chinese.stderr) == (0, "")
    assert "待发送：  2" in chinese.stdout
    cancelled = manage("callback_queue_tools", "--reset")
    assert cancelled.returncode == 3
    assert cancelled.stderr == "CommandError: The reset was cancelled: nothing was changed.\n"
    helped = manage("callback_queue_tools")
    assert helped.returncode == 0
    for option in ("--status", "--unlock", "--recover", "--reset", "--undo", "--noinput"):
        assert option in helped.stdout
