"""``alerts``: what an operator reads and what a script gets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cbq_exporter.cli.main import app
from tests.cli.conftest import QUEUE, TWO_QUEUES, Cli, item

ROUTES = """
alerts:
  auth: {bearer_token_file: tokens}
  routes:
    - {match: {alertname: CbqStuckItems}, action: recover}
    - {match: ['alertname=~"Down.*"'], action: pause, scope: destination}
"""
NO_TERMINAL = "cbq-exporter: nothing was changed: there is no terminal to ask on; add --yes, or --dry-run to only look"


@pytest.fixture
def routed(cli: Cli) -> Cli:
    with open(cli.config_file, "a") as file:
        file.write(ROUTES)
    return cli


def body(*alerts: dict[str, Any]) -> bytes:
    whole = [{"status": "firing", "startsAt": "2026-11-25T00:00:00Z", "fingerprint": "f", **one} for one in alerts]
    return json.dumps({"version": "4", "alerts": whole}).encode()


def says(cli: Cli, *words: str) -> tuple[int, list[str]]:
    """Exit code and messages, ages made the same; standard output must be empty."""
    result = cli(*words)
    assert result.stdout == ""
    return result.exit_code, re.sub(r"\b(\d+h)?(\d+m)?\d+s\b|\b\d+h\d\dm\b", "AGE", result.stderr).splitlines()


def test_says_what_would_come_of_an_alert_and_changes_nothing(routed: Cli) -> None:
    alerts = body(
        {"labels": {"alertname": "Down", "queue": "callbacks", "destination": "A.example"}},
        {"labels": {"alertname": "CbqStuckItems", "queue": "callbacks"}},
        {"labels": {"alertname": "evil\x1b[31m\n", "queue": "x"}, "status": "resolved"},
        {"labels": {"alertname": "CbqStuckItems", "queue": "x"}},
    )
    result = routed("alerts", "test", "-", stdin=alerts)
    assert result.exit_code == 0, result.stderr
    assert [line.split()[:3] for line in result.stdout.splitlines()[1:]] == [
        ["Down", "accepted", "alerts.routes[1]"],
        ["CbqStuckItems", "not_needed", "alerts.routes[0]"],
        [r"evil\x1b[31m\n", "resolved", "-"],
        ["CbqStuckItems", "unknown_queue", "alerts.routes[0]"],
    ]
    assert routed.server.client.keys("*") == []
    told = json.loads(routed("alerts", "test", "-o", "json", "-", stdin=alerts).stdout)
    assert told[0] == {
        "alert": "Down",
        "fingerprint": "f",
        "outcome": "accepted",
        "route": "alerts.routes[1]",
        "why": "pause of a.example",
    }


def test_one_alert_of_a_person_is_enough_and_the_exit_code_tells(routed: Cli, tmp_path: Path) -> None:
    file = tmp_path / "alert.json"
    file.write_text('{"labels": {"alertname": "CbqStuckItems", "queue": "callbacks"}}')
    assert routed("alerts", "test", str(file)).exit_code == 1
    routed.server.client.rpush("q:processing", item())
    routed.server.client.zadd("q:leases", {"0-1-1|0000|0|0|0": 1})  # a lease that ran out
    assert routed("alerts", "test", str(file)).exit_code == 0
    assert routed("alerts", "test", "-", stdin=body()).exit_code == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cbq-exporter: the body is not JSON in UTF-8\n"),
        (b"[]", "cbq-exporter: the body: Expected `object`, got `array`\n"),
        (b'{"version": "3", "alerts": []}', "cbq-exporter: version must be 4, as Alertmanager sends it\n"),
        (b" " * 2**20 + b" ", "cbq-exporter: these alerts are larger than 1.0 MiB, which the webhook refuses too\n"),
    ],
)
def test_what_is_no_alert_is_told_in_one_line(routed: Cli, content: bytes, said: str) -> None:
    result = routed("alerts", "test", "-", stdin=content)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", said)


def test_pause_and_resume(routed: Cli) -> None:
    not_paused, pause = "actions on alerts of callbacks are not paused", "alerts are received and cause nothing"
    code, lines = says(routed, "alerts", "pause", "--for", "2h")
    assert (code, lines[0], lines[2]) == (3, not_paused, NO_TERMINAL)
    assert lines[1] == f"pause them for AGE: {pause}; what has begun is finished"
    assert says(routed, "alerts", "pause", "--dry-run")[1][2] == "dry run: nothing was changed"
    assert not routed.server.client.exists("q:alerts_paused")
    assert says(routed, "alerts", "pause", "--for", "2h", "--yes", "--why", "move")[1][2] == "callbacks: paused"
    assert 7190 < routed.server.client.ttl("q:alerts_paused") <= 7200
    down = body({"labels": {"alertname": "Down", "queue": "callbacks", "destination": "a"}})
    assert routed("alerts", "test", "-", stdin=down).exit_code == 1
    state = r"actions on alerts of callbacks have been paused for AGE by cli:\S+, and are for another AGE: move"
    assert re.fullmatch(state, says(routed, "alerts", "resume", "--dry-run")[1][0])
    assert says(routed, "alerts", "resume", "--yes")[1][1:] == ["resume them", "callbacks: resumed"]
    assert says(routed, "alerts", "resume") == (0, [not_paused, "there is nothing to do"])
    lines = routed("audit", "-o", "json").stdout.splitlines()
    assert [(one["operation"], one["result"]) for one in map(json.loads, lines)] == [
        *(("pause_alerts", result) for result in ("refused", "dry_run", "started", "done")),
        *(("resume_alerts", result) for result in ("dry_run", "started", "done", "done")),
    ]


def test_all_queues_that_may_be_changed_are_paused_at_once(cli: Cli) -> None:
    cli.configure(TWO_QUEUES + "  - {name: mails, prefix: third, mode: supervise}\n")
    result = cli("alerts", "pause", "--yes", "-o", "json")
    told = json.loads(result.stdout)
    assert [(one["queue"], one["done"]) for one in told["queues"]] == [
        ("callbacks", {"pauses": 1}),
        ("mails", {"pauses": 1}),
    ]
    names = ("q", "other", "third")
    assert [cli.server.client.exists(f"{name}:alerts_paused") for name in names] == [1, 0, 1]
    assert cli("alerts", "resume", "--yes", "-q", "mails").exit_code == 0
    assert [cli.server.client.exists(f"{name}:alerts_paused") for name in names] == [1, 0, 0]
    cli.configure(QUEUE.replace("prefix: q", "prefix: q, mode: observe"))
    refused = cli("alerts", "pause", "--yes")
    assert (refused.exit_code, refused.stderr) == (
        3,
        "cbq-exporter: every queue is in mode observe: alerts cause nothing there\n",
    )


def test_list_shows_what_was_caused(routed: Cli) -> None:
    assert says(routed, "alerts", "list") == (0, ["alerts have caused nothing"])
    kept = {
        "alert": "Evil\n",
        "fingerprint": "f",
        "started": "s",
        "place": "alerts.routes[1]",
        "route": "r",
        "target": "t",
    }
    kept |= {"action": "pause", "destination": "a.example", "detail": "pauses 1"}
    routed.server.client.hset("q:alerts", "x", f"done 1 {json.dumps(kept)}")
    routed.server.client.hset("q:alerts", "y", "nonsense")
    routed.server.client.zadd("q:alert_times", {"x": 1_764_000_000_000, "y": 1_764_000_001_000})
    lines = routed("alerts", "list").stdout.splitlines()
    assert re.split(r" {2,}", lines[1])[1:] == [r"Evil\n", "callbacks", "pause a.example", "done", "pauses 1"]
    assert len(lines) == 3
    told = json.loads(routed("alerts", "list", "-o", "json", "--limit", "1").stdout)
    assert [(one["queue"], one["at"], one["state"]) for one in told] == [("callbacks", 1_764_000_001.0, "failed")]


def test_the_commands_are_known() -> None:
    group: Any = app.get_command(None, "alerts")  # type: ignore[arg-type]
    assert sorted(group.commands) == ["list", "pause", "resume", "test"]
