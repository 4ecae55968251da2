"""The commands that change a queue, and the audit: what an operator reads, word for word."""

from __future__ import annotations

import getpass
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.cli.conftest import TWO_QUEUES, Cli, item

HOLDER = "worker_1764000000_4711"
NO_TERMINAL = "cbq-exporter: nothing was changed: there is no terminal to ask on; add --yes, or --dry-run to only look"
MAY_SEND_TWICE = "what other workers are sending at this moment is sent a second time"
LOCK = f"the send lock is held by {HOLDER}, no expiry"
FREE_IT = "free it, if it is still the same then"


def says(cli: Cli, *words: str) -> tuple[int, list[str]]:
    """Exit code and messages, with what differs from run to run made the same; standard output must be empty."""
    result = cli(*words)
    assert result.stdout == ""
    text = re.sub(r"\d{8}T\d{6}-[0-9a-f]{6}", "RESET", result.stderr)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME", text)
    return result.exit_code, re.sub(r"\b(\d|1\d|2\d)s\b", "Ns", text).splitlines()


def stick(cli: Cli, count: int = 3) -> list[bytes]:
    payloads = [item(number) for number in range(count)]
    cli.server.client.rpush("q:processing", *payloads)
    return payloads


def audited(cli: Cli) -> list[tuple[str, str]]:
    lines = cli("audit", "-o", "json").stdout.splitlines()
    return [(entry["operation"], entry["result"]) for entry in map(json.loads, lines)]


def test_unlock(cli: Cli) -> None:
    assert says(cli, "unlock") == (0, ["the send lock is free", "there is nothing to do"])
    cli.server.client.set("q:lock", HOLDER)
    assert says(cli, "unlock") == (3, [LOCK, FREE_IT, NO_TERMINAL])
    assert says(cli, "unlock", "--dry-run") == (0, [LOCK, FREE_IT, "dry run: nothing was changed"])
    assert cli.server.client.exists("q:lock")
    assert says(cli, "unlock", "--yes") == (0, [LOCK, FREE_IT, "the lock is free"])
    assert not cli.server.client.exists("q:lock")
    results = ["done", "refused", "dry_run", "started", "done"]
    assert audited(cli) == [("unlock", result) for result in results]


def test_unlock_refuses_a_healthy_lock(cli: Cli) -> None:
    cli.server.client.set("q:lock", HOLDER, ex=30)
    held = f"the send lock is held by {HOLDER}, Ns left"
    assert says(cli, "unlock", "--yes") == (
        3,
        [
            held,
            FREE_IT,
            (
                f"cbq-exporter: the lock is healthy: {HOLDER} holds it and it expires in Ns by itself; "
                "wait for that, or add --force"
            ),
        ],
    )
    assert says(cli, "unlock", "--yes", "--force") == (
        0,
        [
            held,
            "it is healthy: its holder may be sending, and another may begin to beside it",
            FREE_IT,
            "the lock is free",
        ],
    )


def test_recover(cli: Cli) -> None:
    stuck = stick(cli)
    everything = "put 3 callbacks of processing back to the head of pending: all that no live lease of a daemon holds"
    assert says(cli, "recover") == (3, ["callbacks holds 3 processing", everything, MAY_SEND_TWICE, NO_TERMINAL])
    assert says(cli, "recover", "--older-than", "10m") == (
        0,
        [
            "callbacks holds 3 processing",
            "nothing in processing was seen there for 10m00s or under a lease that ran out",
            "how long is known from when a daemon first saw it; without an age, all that no lease holds",
            "there is nothing to do",
        ],
    )
    assert says(cli, "recover", "--all", "--yes") == (
        0,
        ["callbacks holds 3 processing", everything, MAY_SEND_TWICE, "recovered 3 callbacks"],
    )
    assert cli.pending() == stuck
    code, lines = says(cli, "recover", "--yes")
    assert (code, lines[1:]) == (0, ["processing is empty", "there is nothing to do"])
    code, lines = says(cli, "recover", "--all", "--older-than", "1m")
    assert (code, lines) == (2, ["cbq-exporter: say --all or --older-than, not both"])


def test_reset_and_undo(cli: Cli) -> None:
    cli.server.client.rpush("q:pending", item(1), item(2))
    cli.server.client.set("q:lock", HOLDER)
    plan = [
        "callbacks holds 2 pending",
        LOCK,
        "move 2 callbacks, the statistics and the lock (which frees it) to the trash; they are kept for 7d",
        "undo puts them back, in front of what arrives until then",
    ]
    assert says(cli, "reset", "--dry-run") == (0, [*plan, "dry run: nothing was changed"])
    assert says(cli, "reset") == (
        3,
        [
            *plan,
            (
                "cbq-exporter: nothing was changed: there is no terminal to ask on; "
                "add --yes --queue callbacks, or --dry-run to only look"
            ),
        ],
    )
    assert says(cli, "reset", "--yes") == (2, ["cbq-exporter: reset --yes needs the queue's name: --queue callbacks"])
    assert cli.pending() == [item(1), item(2)]
    back = f"cbq-exporter undo -c {cli.config_file} -q callbacks --trash RESET"
    moved = f"moved 2 callbacks to the trash; the way back: {back}"
    assert says(cli, "reset", "--yes", "--queue", "callbacks") == (0, [*plan, moved])
    assert (cli.pending(), cli.server.client.exists("q:lock")) == ([], 0)
    cli.server.client.rpush("q:pending", item(3))
    assert says(cli, "undo", "--trash", "nonsense", "--yes") == (
        3,
        [
            "the reset RESET of TIME moved 2 pending; kept for another 6d23h",
            "cbq-exporter: no reset nonsense of callbacks is in the trash: there is RESET",
        ],
    )
    assert says(cli, "undo", "--yes") == (
        0,
        [
            "callbacks holds 1 pending",
            "the reset RESET of TIME moved 2 pending; kept for another 6d23h",
            "put 2 callbacks back, in front of what arrived since",
            "put 2 callbacks back",
        ],
    )
    assert cli.pending() == [item(1), item(2), item(3)]
    assert says(cli, "undo", "--yes") == (0, ["nothing of callbacks is in the trash", "there is nothing to do"])


def test_reset_refuses_where_a_foreign_worker_sends(cli: Cli) -> None:
    cli.server.client.rpush("q:pending", item(1))
    cli.server.client.set("q:lock", HOLDER, ex=25)
    code, lines = says(cli, "reset", "--yes", "-q", "callbacks")
    assert (code, lines[-1]) == (
        3,
        (
            f"cbq-exporter: {HOLDER} holds the send lock and may be sending: stop that worker and wait for the lock to "
            "expire (in Ns at the latest), or add --force"
        ),
    )
    assert cli.pending() == [item(1)]
    assert says(cli, "reset", "--yes", "-q", "callbacks", "--force")[0] == 0


def test_pause_and_resume(cli: Cli) -> None:
    unknown = "workers that are not cbq-exporter do not know of pauses"
    effect = "pause it: daemons take nothing more from it; what is being sent is finished"
    empty = "callbacks holds nothing"
    by = f"cli:{getpass.getuser()}@{socket.gethostname()}"
    assert says(cli, "pause", "--yes", "--why", "incident 7") == (0, [empty, effect, unknown, "paused"])
    paused = [empty, f"callbacks is paused already, for Ns, by {by}: incident 7", "there is nothing to do"]
    assert says(cli, "pause") == (0, paused)
    resume = f"callbacks is paused, for Ns, by {by}: incident 7; resume it"
    assert says(cli, "resume", "--yes") == (0, [empty, resume, "resumed"])
    one = "pause slow.example: its callbacks are put off, without using up an attempt; others are sent"
    assert says(cli, "pause", "--yes", "--destination", "Slow.Example") == (0, [empty, one, unknown, "paused"])
    assert says(cli, "resume") == (
        0,
        [empty, "callbacks is not paused; paused are: slow.example", "there is nothing to do"],
    )


def test_json_is_alone_on_standard_output(cli: Cli) -> None:
    stick(cli)
    assert json.loads(cli("recover", "--yes", "-o", "json").stdout) == {
        "queue": "callbacks",
        "dry_run": False,
        "planned": {"callbacks": 3},
        "done": {"callbacks": 3, "dead": 0, "leases_dropped": 0},
        "undo": None,
    }
    result = json.loads(cli("reset", "--yes", "-q", "callbacks", "-o", "json").stdout)
    assert json.loads(cli("undo", "--yes", "-o", "json", "--trash", result["undo"]).stdout)["done"] == {"callbacks": 3}


def test_audit_lists_and_filters(cli: Cli) -> None:
    assert says(cli, "audit") == (0, ["no entries in the audit of callbacks"])
    cli("pause", "--yes", "--reason", "incident\x1b[31m 7")
    cli("enqueue", "--url", "http://example.com/x")
    cli("enqueue", stdin=item(1) + b"\n" + item(2) + b"\nnot JSON\n")
    cli("dead", "purge", "--older-than", "90m", "--yes")
    cli("dead", "retry", "one", "two", "--yes")
    lines = [re.sub(r"^\S+ \S+", "TIME", line) for line in cli("audit").stdout.splitlines()]
    who = f"cli:{getpass.getuser()}@{socket.gethostname()}"
    pad = " " * (len(who) - 3)
    assert lines[0] == f"time                 who{pad}  operation   result   what"
    assert lines[1:] == [
        f"TIME  {who}  pause       started  incident\\x1b[31m 7",
        f"TIME  {who}  pause       done     incident\\x1b[31m 7; pauses 1",
        f"TIME  {who}  enqueue     done     callbacks 1",
        f"TIME  {who}  enqueue     done     callbacks 2",
        f"TIME  {who}  purge_dead  done     older_than 90m",
        f"TIME  {who}  retry_dead  done     ids one two",
    ]
    entries = [json.loads(line) for line in cli("audit", "-o", "json", "--operation", "enqueue").stdout.splitlines()]
    assert [entry["after"] for entry in entries] == [{"callbacks": 1}, {"callbacks": 2}]
    assert len(cli("audit", "-o", "json", "--limit", "1").stdout.splitlines()) == 1
    assert len(cli("audit", "-o", "json", "--since", "1h", "--actor", "cli").stdout.splitlines()) == 6
    assert says(cli, "audit", "--actor", "api")[1] == ["no entries in the audit of callbacks"]


def test_audit_follows_until_it_is_interrupted(cli: Cli) -> None:
    cli("pause", "--yes")
    process = cli.start("audit", "-f", "-o", "json")
    try:
        assert process.stdout is not None
        first = [json.loads(process.stdout.readline())["result"] for _ in range(2)]
        cli("resume", "--yes")
        then = [json.loads(process.stdout.readline())["operation"] for _ in range(2)]
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert (first, then) == (["started", "done"], ["resume", "resume"])
    assert (process.returncode, messages) == (0, b"")


def test_the_actor_is_who_became_root(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "alice\x1b")
    cli("pause", "--yes")
    entry = json.loads(cli("audit", "-o", "json", "--limit", "1").stdout)
    assert entry["actor"]["name"].startswith("alice\\x1b as ")


@pytest.mark.parametrize("command", ["unlock", "recover", "reset", "undo", "pause", "resume", "audit"])
def test_no_wrong_input_ends_in_a_traceback(cli: Cli, command: str) -> None:
    for words in (["--queue", "other"], ["--nonsense"], ["extra"], ["-o", "yaml"]):
        code, lines = says(cli, command, *words)
        assert (code, len(lines)) == (2, 1)
    for key in ("pending", "lock", "audit", "trash", "trash_notes", "paused", "processing", "lock_seen", "leases"):
        cli.server.client.flushall()
        cli.server.client.geoadd(f"q:{key}", (1.0, 1.0, "x"))
        if key not in ("trash", "leases"):  # of the right type: a member that is not ours
            result = cli(command, *([] if command == "audit" else ["--yes", "-q", "callbacks"]))
            assert result.exit_code in (0, 4), (key, result.stderr)
            assert "Traceback" not in result.output
    cli.configure(TWO_QUEUES)
    assert says(cli, command)[0] == 2
    cli.config_file.write_text("redis: {url: 'unix:///nonexistent/s.sock'}\nqueues: [{name: callbacks}]\n")
    assert says(cli, command)[0] == 4


# --- on a terminal -------------------------------------------------------------------------------


def on_terminal(
    cli: Cli, *words: str, question: bytes, answer: bytes, meanwhile: Callable[[], object] = list
) -> tuple[int, bytes]:
    """Exit code, and what was shown; ``meanwhile`` happens before the answer is given."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        cli.command(*words),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=cli.environment | {"TERM": "dumb"},
        start_new_session=True,
    )
    os.close(terminal)
    shown = b""
    try:
        deadline = time.monotonic() + 30
        while question not in shown and time.monotonic() < deadline and select.select([controller], [], [], 30)[0]:
            shown += os.read(controller, 4096)
        assert question in shown
        meanwhile()
        os.write(controller, answer)
        while select.select([controller], [], [], 30)[0]:
            try:
                shown += os.read(controller, 4096)
            except OSError:  # the program has ended
                break
        return process.wait(20), shown
    finally:
        process.kill()
        process.wait()
        os.close(controller)


NAME_IT = b"Type the queue's name to reset it: "


@pytest.mark.parametrize(
    ("answer", "code", "last", "left"),
    [
        (b"callback\n", 3, b"aborted: nothing was changed", 1),
        (b"y\n", 3, b"aborted: nothing was changed", 1),
        (b"\n", 3, b"aborted: nothing was changed", 1),
        (b"callbacks\n", 0, b"moved 1 callback to the trash", 0),
    ],
)
def test_reset_wants_the_name_typed(cli: Cli, answer: bytes, code: int, last: bytes, left: int) -> None:
    cli.server.client.rpush("q:pending", item(1))
    ended, shown = on_terminal(cli, "reset", question=NAME_IT, answer=answer)
    assert (ended, last in shown) == (code, True), shown
    assert len(cli.pending()) == left
    assert audited(cli)[-1] == ("reset", "done" if code == 0 else "refused")


def test_what_changed_while_the_operator_thought_is_not_touched(cli: Cli) -> None:
    redis = cli.server.client
    redis.set("q:lock", HOLDER)
    question = f"Free the lock of {HOLDER}? [y/N]: ".encode()
    code, shown = on_terminal(
        cli, "unlock", question=question, answer=b"y\n", meanwhile=lambda: redis.set("q:lock", "worker_2", ex=30)
    )
    assert code == 5
    assert b"nothing was changed: the lock is not as it was planned" in shown
    assert redis.get("q:lock") == b"worker_2"
    assert audited(cli)[-1] == ("unlock", "changed")
