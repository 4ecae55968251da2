"""``dead``: nothing is deleted or sent again that was not chosen, counted and agreed to."""

from __future__ import annotations

import base64
import gc
import json
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import pytest

from cbq_exporter.errors import PreconditionChanged
from cbq_exporter.model import DeadLetter, DeadReason, Failure
from cbq_exporter.services import dead_letters
from cbq_exporter.services.dead_letters import Selection
from cbq_exporter.store.queue import Queue
from tests.cli.conftest import Cli, Corpse, item
from tests.support.terminal import Terminal

FAILED = Corpse(item(2), DeadReason.MAX_ATTEMPTS, "slow.example", Failure("timeout", 0, "no answer in 15 s"))
BINARY = Corpse(b"\x00\xff not json \x1b[31m", DeadReason.INVALID_JSON, "", Failure("", 0, "not UTF-8 at byte 1"))


def _count(cli: Cli) -> int:
    return cli.on_queue(lambda queue: queue.dead.count())


def test_list_shows_the_last_to_die_first(cli: Cli) -> None:
    first, second, third = cli.bury([Corpse(item(1)), FAILED, BINARY])
    assert len({first, second, third}) == 3
    lines = cli("dead", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["id", third, second, first]
    pad = " " * (len(first) - 2)
    assert lines[0] == f"id{pad}  reason        destination   tries  died  failure"
    assert lines[2] == f"{second}  max_attempts  slow.example      1    0s  timeout"
    assert lines[3] == f"{first}  rejected      example.com       1    0s  http_4xx 404"


def test_list_without_letters(cli: Cli) -> None:
    result = cli("dead", "list")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no dead letters in callbacks\n")
    assert cli("dead", "list", "-o", "json").stdout == "[]\n"


def test_list_in_pages_and_by_condition(cli: Cli) -> None:
    ids = cli.bury([Corpse(item(n)) for n in range(7)] + [FAILED])
    result = cli("dead", "list", "--limit", "3", "-o", "json")
    assert [letter["id"] for letter in json.loads(result.stdout)] == ids[:-4:-1]
    assert result.stderr == "there are more: --offset 3 shows the next\n"
    result = cli("dead", "list", "--limit", "3", "--offset", "6", "-o", "json")
    assert ([letter["id"] for letter in json.loads(result.stdout)], result.stderr) == (ids[1::-1], "")
    for condition in (["--reason", "max_attempts"], ["--destination", "slow.example"]):
        assert [letter["id"] for letter in json.loads(cli("dead", "list", *condition, "-o", "json").stdout)] == ids[-1:]
    assert len(json.loads(cli("dead", "list", "--reason", "rejected", "--offset", "5", "-o", "json").stdout)) == 2
    assert json.loads(cli("dead", "list", "--older-than", "1h", "-o", "json").stdout) == []
    assert len(json.loads(cli("dead", "list", "--older-than", "0s", "-o", "json").stdout)) == 8


def test_show_for_people(cli: Cli) -> None:
    (letter_id,) = cli.bury([Corpse(item(1), failure=Failure("http_4xx", 404, "answered 404", "<p>\x1b[2Jno\n</p>"))])
    lines = cli("dead", "show", letter_id).stdout.splitlines()
    assert [line for line in lines if not line.startswith(("first claimed", "died"))] == [
        f"id             {letter_id}",
        "queue          callbacks",
        "reason         rejected",
        "url            http://example.com/x",
        "destination    example.com",
        "tries          1",
        "failure        http_4xx 404: answered 404",
        r"answer         <p>\x1b[2Jno\n</p>",
        f"payload        {len(item(1))} bytes",
        "",
        item(1).decode(),
    ]


def test_show_never_lets_a_payload_reach_the_terminal(cli: Cli) -> None:
    big = b"\x1b]0;owned\x07\xff" + b"x" * 100_000
    small_id, big_id = cli.bury([BINARY, Corpse(big)])
    assert cli("dead", "show", small_id).stdout.splitlines()[-1] == r"\x00\xff not json \x1b[31m"
    shown = cli("dead", "show", big_id).stdout
    assert all(line.isprintable() for line in shown.splitlines())
    assert len(shown) < 4000
    assert shown.endswith("(the beginning of 100,011 bytes; --raw writes all of them)\n")


def test_no_record_reaches_the_terminal_either(cli: Cli) -> None:
    """Whoever can write into Redis can write records too. Without a terminal, click would take colours out."""
    (letter_id,) = cli.bury([FAILED])
    record = json.loads(str(cli.server.client.hget("q:records", letter_id), "utf-8"))  # type: ignore[arg-type]
    evil = {name: f"\x1b[31m\x9b{value}" for name, value in record.items() if isinstance(value, str)}
    cli.server.client.hset("q:records", letter_id, json.dumps({**record, **evil}))
    for words in (("dead", "list"), ("dead", "show", letter_id)):
        terminal = Terminal(cli.config_file.parent, *words, "-c", str(cli.config_file))
        terminal.wait_for("max_attempts")
        assert terminal.end() == 0
        colours = re.compile(r"\x1b\[(?:0|1)m")  # its own
        assert all(colours.sub("", line).isprintable() for line in terminal.shown.split("\r\n")), terminal.shown


def test_raw_and_json_keep_every_byte(cli: Cli) -> None:
    text_id, binary_id = cli.bury([Corpse(item(1)), BINARY])
    result = cli("dead", "show", "--raw", binary_id)
    assert (result.stdout_bytes, result.stderr) == (BINARY.payload, "")
    assert json.loads(cli("dead", "show", "-o", "json", text_id).stdout)["payload"] == item(1).decode()
    encoded = json.loads(cli("dead", "show", "-o", "json", binary_id).stdout)["payload_base64"]
    assert base64.b64decode(encoded) == BINARY.payload


def test_json_has_no_commands_to_a_terminal(cli: Cli) -> None:
    """JSON need not escape what U+009B begins (as ESC [ does), nor the signs that turn the writing around."""
    told = "\x1b]0;me\x07 \x9b31m \x7f \u202e \U000e0041 北京 😀"
    cli.bury([Corpse(json.dumps({"url": f"ftp://x/{told}", "task_id": told}, ensure_ascii=False).encode())])
    (letter,) = json.loads(cli("dead", "list", "-o", "json").stdout)
    for words in (("list", "--task-ids"), ("show", letter["id"])):
        shown = cli("dead", *words, "-o", "json").stdout
        assert all(line.isprintable() for line in shown.splitlines())
        assert "北京 😀" in shown, "what is harmless stays readable"
    (letter,) = json.loads(cli("dead", "list", "--task-ids", "-o", "json").stdout)
    assert letter["task_id"] == told
    assert json.loads(json.loads(cli("dead", "show", letter["id"], "-o", "json").stdout)["payload"])["task_id"] == told


def test_raw_bytes_reach_a_terminal_only_where_they_are_plain_text(cli: Cli) -> None:
    plain_id, binary_id = cli.bury([Corpse('{"to": "北京",\n\t"n": 1}'.encode()), BINARY])
    terminal = Terminal(cli.config_file.parent, "dead", "show", "--raw", plain_id, "-c", str(cli.config_file))
    terminal.wait_for('"n": 1}')
    assert terminal.end() == 0
    terminal = Terminal(cli.config_file.parent, "dead", "show", "--raw", binary_id, "-c", str(cli.config_file))
    terminal.wait_for("leave out --raw")
    assert (terminal.end(), "\x1b" in terminal.shown) == (2, False)


def test_an_unknown_id(cli: Cli) -> None:
    result = cli("dead", "show", "17")
    assert result.exit_code == 1
    assert result.stderr == "cbq-exporter: no dead letter has the id 17: dead list shows those that there are\n"


def test_retry_shows_its_plan_and_moves_exactly_that(cli: Cli) -> None:
    cli.bury([Corpse(item(1)), FAILED, Corpse(item(3))])
    result = cli("dead", "retry", "--reason", "rejected", "--yes")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.splitlines() == [
        f"retry 2 dead letters of callbacks ({len(item(1)) + len(item(3))} B): 2 rejected",
        "they go to the tail of pending, with a clean record",
        "retried 2 dead letters",
    ]
    assert cli.pending() == [item(1), item(3)]
    assert _count(cli) == 1


def test_purge_by_id_names_what_is_not_there(cli: Cli) -> None:
    first, _ = cli.bury([Corpse(item(1)), Corpse(item(2))])
    result = cli("dead", "purge", first, "no-such", first, "--yes", "-o", "json")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "no dead letter has the id no-such",
        f"purge 1 dead letter of callbacks ({len(item(1))} B): 1 rejected",
        "they are deleted for good: there is no way back",
        "purged 1 dead letter",
    ]
    assert json.loads(result.stdout) == {
        "queue": "callbacks",
        "planned": 1,
        "bytes": len(item(1)),
        "by_reason": {"rejected": 1},
        "missing": ["no-such"],
        "purged": 1,
    }
    assert (_count(cli), cli.pending()) == (1, [])


@pytest.mark.parametrize("verb", ["retry", "purge"])
def test_dry_run_and_no_terminal_change_nothing(cli: Cli, verb: str) -> None:
    cli.bury([Corpse(item(1)), FAILED])
    result = cli("dead", verb, "--all", "--dry-run")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (0, "dry run: nothing was changed")
    result = cli("dead", verb, "--all", stdin=b"y\n")
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1] == (
        "cbq-exporter: nothing was changed: there is no terminal to ask on; add --yes, or --dry-run to only look"
    )
    assert (_count(cli), cli.pending()) == (2, [])


@pytest.mark.parametrize(
    "words", [[], ["--all", "--reason", "rejected"], ["17", "--all"], ["17", "--older-than", "1h"]]
)
def test_what_is_meant_must_be_said_in_one_way(cli: Cli, words: Sequence[str]) -> None:
    result = cli("dead", "purge", *words, "--yes")
    assert result.exit_code == 2
    assert result.stderr.startswith("cbq-exporter: say which letters, in one way: ")


@pytest.mark.parametrize(
    ("answer", "code", "last", "left"),
    [
        (b"n\n", 3, b"cbq-exporter: aborted: nothing was changed", 1),
        (b"\x03", 3, b"cbq-exporter: aborted: nothing was changed", 1),
        (b"y\n", 0, b"purged 1 dead letter", 0),
    ],
)
def test_on_a_terminal_it_asks(cli: Cli, answer: bytes, code: int, last: bytes, left: int) -> None:
    cli.bury([Corpse(item(1))])
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        cli.command("dead", "purge", "--all"),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=cli.environment | {"TERM": "dumb"},
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(terminal)
    deadline = time.monotonic() + 30
    try:
        assert b"[y/N]: " in _read_until(controller, b"[y/N]: ")
        shown = b""
        while last not in shown:
            # A signal that comes in the instant before input() begins to wait is seen only with the next key.
            os.write(controller, answer)
            shown += _read_until(controller, last, patience=5)
            assert time.monotonic() < deadline, shown
        assert process.wait(20) == code
    finally:
        process.kill()
        process.wait()
        os.close(controller)
    assert _count(cli) == left


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read_until(controller: int, expected: bytes, patience: float = 30) -> bytes:
    """What is shown until ``expected`` has come, or nothing more comes for ``patience`` seconds."""
    shown = b""
    while expected not in shown and select.select([controller], [], [], patience)[0]:
        shown += os.read(controller, 4096)
    return shown


# --- the service ---------------------------------------------------------------------------------


def test_thousands_in_pages_with_others_between_them(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "PAGE", 10)
    cli.bury([FAILED if n % 3 else Corpse(item(n)) for n in range(200)])
    progress: list[int] = []

    async def work(queue: Queue) -> tuple[int, int]:
        made = await dead_letters.plan(queue, Selection(reason="rejected"))
        return made.count, await dead_letters.execute(queue, made, queue.dead.retry, progress.append)

    assert cli.on_queue(work) == (67, 67)
    assert sorted(cli.pending()) == sorted(item(n) for n in range(0, 200, 3))
    assert progress == sorted(progress)
    assert progress[-1] == 67
    assert _count(cli) == 133


def test_what_is_left_out_of_a_list_is_not_held_meanwhile(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "PAGE", 10)
    ids = cli.bury([Corpse(item(n)) for n in range(200)])
    held: list[int] = []

    async def work(queue: Queue) -> list[DeadLetter]:
        read_ids = queue.dead.ids

        async def ids_of_a_page(**which: Any) -> list[str]:
            held.append(sum(isinstance(one, DeadLetter) for one in gc.get_objects()))
            return await read_ids(**which)

        monkeypatch.setattr(queue.dead, "ids", ids_of_a_page)
        return await dead_letters.newest(queue, Selection(reason="rejected"), offset=185, limit=5)

    assert [letter.id for letter in cli.on_queue(work)] == ids[14:9:-1]
    assert (len(held), max(held) <= 30) == (19, True)


def test_a_page_costs_a_few_commands_and_knows_each_size(cli: Cli) -> None:
    ids = cli.bury([Corpse(item(n)) for n in range(1000)])
    client = cli.server.client
    client.hdel("q:records", ids[3])
    client.hset("q:records", ids[4], b"[broken")
    client.config_resetstat()
    made = cli.on_queue(lambda queue: dead_letters.plan(queue, Selection()))
    assert made.size == sum(len(item(n)) for n in range(1000))
    stats = client.info("commandstats")
    assert stats["cmdstat_hstrlen"]["calls"] == 2
    assert sum(each["calls"] for each in stats.values()) < 30


def test_what_dies_after_the_plan_is_no_part_of_it(cli: Cli) -> None:
    cli.bury([Corpse(item(1))])
    made = cli.on_queue(lambda queue: dead_letters.plan(queue, Selection()))
    while cli.on_queue(lambda queue: queue.store_now_ms()) <= made.at * 1000:
        pass
    cli.bury([Corpse(item(2))])
    assert cli.on_queue(lambda queue: dead_letters.execute(queue, made, queue.dead.purge)) == 1
    (left,) = json.loads(cli("dead", "list", "-o", "json").stdout)
    assert json.loads(cli("dead", "show", left["id"], "-o", "json").stdout)["payload"] == item(2).decode()


def test_letters_that_others_took_meanwhile_are_told(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "PAGE", 10)
    ids = cli.bury([Corpse(item(n)) for n in range(40)])

    async def work(queue: Queue) -> None:
        made = await dead_letters.plan(queue, Selection())
        pages = 0

        async def retry_while_another_purges(chosen: Sequence[str]) -> int:
            nonlocal pages
            pages += 1
            if pages == 2:  # the oldest ten are gone: these are of what is looked at now
                await queue.dead.purge(ids[10:15])
            return await queue.dead.retry(chosen)

        await dead_letters.execute(queue, made, retry_while_another_purges)

    with pytest.raises(PreconditionChanged, match="40 dead letters were planned and 35 were done"):
        cli.on_queue(work)
    assert len(set(cli.pending())) == 35
    assert _count(cli) == 0
