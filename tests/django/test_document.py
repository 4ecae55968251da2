"""What docs/django.md shows is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.core.management import load_command_class
from django.core.management.base import BaseCommand
from django.test import override_settings

from cbq_exporter.django import get_queue_status
from cbq_exporter.django.settings import configuration
from tests.django.test_tools import filled
from tests.support.servers import Server

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "django.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
SETTINGS = [block for block in BLOCKS if block.startswith(("CBQ_EXPORTER", "INSTALLED_APPS"))]
PROGRAMS = [block for block in BLOCKS if block not in SETTINGS]


def executed(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(block, names)
    return names


@pytest.mark.parametrize("block", SETTINGS, ids=range(len(SETTINGS)))
def test_settings(redis: Server, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where a config.yaml is
    names = {name: value for name, value in executed(block).items() if name.isupper()}
    with override_settings(**names):
        assert configuration().queues


def test_programs(redis: Server) -> None:
    functions, view, producer = PROGRAMS
    compile(view, "view", "exec")  # it needs django.contrib.admin
    filled(redis)
    executed(functions)
    assert get_queue_status() | {"last_send_time": None} == {
        "pending_count": 5,
        "processing_count": 0,
        "lock_status": "unlocked",
        "lock_value": None,
        "last_send_time": None,
    }
    redis.client.delete("callback_queue:pending")
    assert len(executed(producer)["task_id"]) == 36
    assert redis.client.llen("callback_queue:pending") == 2


def test_the_options_are_those_of_the_command() -> None:
    parser = load_command_class("cbq_exporter.django", "callback_queue_tools").create_parser("", "")
    usual = BaseCommand().create_parser("", "")
    ours = {option for action in parser._actions for option in action.option_strings}
    for action in usual._actions:
        ours -= set(action.option_strings)
    rows = re.findall(r"^\| (`--.*?) \|", DOCUMENT, re.MULTILINE)
    documented = {option for row in rows for option in re.findall(r"--\w+", row)}
    assert documented == ours - {"--noinput", "--no-input"}
    assert "`--noinput` does not ask" in DOCUMENT
