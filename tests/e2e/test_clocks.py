"""Daemons and stores whose clocks are wrong."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.e2e.bare_client import dead_letters, item, push, wait_until_settled
from tests.support.counting_receiver import CountingReceiver
from tests.support.daemons import Daemon, queue
from tests.support.servers import Server

_SHIFTED = """\
import time

real = time.time
time.time = lambda: real() + {seconds}
"""


def _wrong_by(seconds: int, folder: Path) -> dict[str, str]:
    """The environment of a daemon whose clock differs from that of everybody else."""
    (folder / "sitecustomize.py").write_text(_SHIFTED.format(seconds=seconds))
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.parametrize(("wrong_by", "max_age", "reason"), [(3600, "30m", "max_attempts"), (-3600, "1s", "max_age")])
def test_age_is_counted_by_the_clock_of_the_store(
    server: Server, tmp_path: Path, wrong_by: int, max_age: str, reason: str
) -> None:
    retry = {"max_age": max_age, "max_attempts": 3 if reason == "max_attempts" else 1000}
    with (
        CountingReceiver(lambda body, nth: 503) as receiver,
        Daemon(server.url, queue(retry=retry), environment=_wrong_by(wrong_by, tmp_path)) as daemon,
    ):
        started = daemon.metrics().get("cbq_config_last_reload_success_timestamp_seconds") or 0
        assert abs(started - wrong_by - time.time()) < 60
        push(server.client, item(receiver.url))
        wait_until_settled(server.client, dead=1)
        (letter,) = dead_letters(server.url)
        assert letter.reason == reason
        assert letter.attempts == receiver.requests >= 3
        assert letter.failure is not None
        assert abs(letter.failure.at - letter.died_at) < 5
