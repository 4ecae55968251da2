"""``doctor``: what an operator reads when a queue is not well."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import TWO_QUEUES, Cli, item

LOCK = "worker_1\\x1b[31m"  # as it is shown
STARTED_WITHOUT_DISK = [
    "problem  persistence  off: a restart of the server loses every callback",
    "                      -> set appendonly yes and appendfsync always (or everysec, to lose a second at most)",
]


def test_a_queue_in_trouble(cli: Cli) -> None:
    cli.server.client.rpush("q:pending", item(1), b"{")
    cli.server.client.set("q:lock", "worker_1\x1b[31m")
    cli.server.client.set("q:dead", "what is this")
    result = cli("doctor")
    assert (result.exit_code, result.stderr) == (1, "")
    lines = result.stdout.splitlines()
    assert lines[:13] == [
        "         check        finding",
        "problem  keys         q:dead is a string",
        "                      -> rename or delete that key, or choose another prefix",
        "problem  daemon       no daemon has given a sign of life, and callbacks wait",
        "                      -> start it with: cbq-exporter serve",
        f"problem  lock         held by {LOCK}, and cannot expire by itself",
        f"                      -> see that {LOCK} is not alive any more, then: cbq-exporter unlock -q callbacks",
        *STARTED_WITHOUT_DISK,
        "warning  items        of 2 callbacks at the ends of pending, these cannot be sent: 1 invalid_json",
        "                      -> look at the producer; in dispatch mode they become dead letters",
        f"ok       server       {cli.server.url} answers",
        lines[12],
    ]
    assert lines[12].startswith("ok       version      valkey ")


def test_as_json(cli: Cli) -> None:
    cli.configure(TWO_QUEUES)
    result = cli("doctor", "-q", "invoices", "-o", "json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert (document["queue"], document["mode"]) == ("invoices", "observe")
    assert document["findings"][0] == {
        "severity": "problem",
        "check": "persistence",
        "found": "off: a restart of the server loses every callback",
        "todo": "set appendonly yes and appendfsync always (or everysec, to lose a second at most)",
    }
    assert [finding["check"] for finding in document["findings"] if finding["severity"] == "note"] == ["queue"]
    assert {finding["severity"] for finding in document["findings"][2:]} == {"ok"}


def test_without_a_problem_the_exit_code_is_0(cli: Cli) -> None:
    cli.server.client.config_set("appendonly", "yes")
    try:
        result = cli("doctor")
    finally:
        cli.server.client.config_set("appendonly", "no")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "note     persistence  append-only file, written each second" in result.stdout


def test_a_web_config_that_the_daemon_would_refuse(cli: Cli, tmp_path: Path) -> None:
    with cli.config_file.open("a") as config:
        config.write(f"web: {{config_file: {tmp_path}/web.yml}}\n")
    (tmp_path / "web.yml").write_text("basic_auth: {}\n")
    result = cli("doctor", "-o", "json")
    (finding,) = [one for one in json.loads(result.stdout)["findings"] if one["check"] == "configuration"]
    assert (result.exit_code, finding["severity"]) == (1, "problem")
    assert finding["found"].startswith(f"{tmp_path}/web.yml:1: basic_auth: found an unknown key; known here: tls_s")


def test_redis_that_is_down(cli: Cli, tmp_path: Path) -> None:
    cli.config_file.write_text(f"redis: {{url: 'unix://{tmp_path}/none.sock'}}\nqueues:\n  - {{name: callbacks}}\n")
    result = cli("doctor")
    assert (result.exit_code, result.stderr) == (4, "")
    assert result.stdout.splitlines()[1].startswith("problem  server  Redis at unix://")
    assert json.loads(cli("doctor", "-o", "json").stdout)["findings"][0]["severity"] == "problem"


def test_several_queues_need_a_name(cli: Cli) -> None:
    cli.configure(TWO_QUEUES)
    result = cli("doctor")
    assert result.exit_code == 2
    assert result.stderr.startswith("cbq-exporter: several queues are configured")
