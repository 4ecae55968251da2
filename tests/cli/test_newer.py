"""A queue that a newer version has written to: commands that look say so, and show what they can."""

from __future__ import annotations

import json

import pytest

from cbq_exporter.store.schema import SCHEMA
from tests.cli.conftest import TWO_QUEUES, Cli, Corpse, item

SAID = f"this queue: q:schema is {SCHEMA + 1}, and this version knows up to {SCHEMA}"
WARNING = f"warning: a newer cbq-exporter has written to {SAID}: it may be misread; run the newer version"
READERS = [
    ["status"],
    ["dead", "list"],
    ["retry", "list"],
    ["audit"],
    ["alerts", "list"],
]


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_a_command_that_looks_warns_once_and_shows_the_same(words: list[str], cli: Cli) -> None:
    cli.bury([Corpse(item())])
    cli("pause", "--yes", "-q", "callbacks")
    before = {output: cli(*words, "-q", "callbacks", "-o", output) for output in ("table", "json")}
    cli.server.client.set("q:schema", SCHEMA + 1)
    for output, one in before.items():
        found = cli(*words, "-q", "callbacks", "-o", output)
        assert (found.exit_code, found.stderr.splitlines()) == (0, [WARNING, *one.stderr.splitlines()])
        if output == "json" and words != ["audit"]:
            json.loads(found.stdout)
        assert len(found.stdout.splitlines()) == len(one.stdout.splitlines())
    cli.server.client.delete("q:schema")
    cli.server.client.rpush("q:schema", "of a foreign type")
    if words != ["status"]:
        assert cli(*words, "-q", "callbacks").exit_code == 0


def test_each_queue_of_status_is_told_apart(cli: Cli) -> None:
    cli.configure(TWO_QUEUES)
    cli.server.client.set("q:schema", SCHEMA + 1)
    assert cli("status").stderr.splitlines() == [WARNING]
    assert cli("status", "-q", "invoices").stderr == ""


def test_the_doctor_finds_it(cli: Cli) -> None:
    cli.server.client.set("q:schema", SCHEMA + 1)
    findings = json.loads(cli("doctor", "-o", "json").stdout)["findings"]
    (found,) = [one for one in findings if one["check"] == "schema"]
    assert (found["severity"], found["found"]) == ("warning", f"a newer cbq-exporter has written to {SAID}")


def test_showing_one_warns_too(cli: Cli) -> None:
    (letter,) = cli.bury([Corpse(item())])
    cli.server.client.set("q:schema", SCHEMA + 1)
    found = cli("dead", "show", "--raw", letter)
    assert (found.exit_code, found.stdout_bytes, found.stderr) == (0, item(), f"{WARNING}\n")
