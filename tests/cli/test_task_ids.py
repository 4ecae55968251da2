"""``--task-ids``: what producers call a callback, read out of the payloads that are kept, within a bound."""

from __future__ import annotations

import json

import pytest

from cbq_exporter.services import dead_letters, task_ids
from cbq_exporter.store.queue import Queue
from tests.cli.conftest import Cli, Corpse, item

PAYLOADS = [item(1), item(2, task_id=17), item(3, task_id="\x1b[2J" + "x" * 100), item(4, task_id=None), b"no json"]
SHOWN = ["t1", "17", r"\x1b[2J" + "x" * 100, "-", "-"]
EXACT = ["t1", "17", "\x1b[2J" + "x" * 100, None, None]


@pytest.mark.parametrize("command", ["dead", "retry"])
def test_the_lists_show_them_where_they_are_asked_for(command: str, cli: Cli) -> None:
    if command == "dead":
        ids = cli.bury([Corpse(payload) for payload in reversed(PAYLOADS)])[::-1]
    else:
        ids = [cli.put_off([("example.com", 600.0 + n)], payload)[-1] for n, payload in enumerate(PAYLOADS)]
    plain = cli(command, "list").stdout + cli(command, "list", "-o", "json").stdout
    assert "task_id" not in plain
    heading, *rows = (line.split() for line in cli(command, "list", "--task-ids").stdout.splitlines())
    assert heading[:2] == ["id", "task_id"]
    assert [row[0] for row in rows] == ids
    for row, shown in zip(rows, SHOWN, strict=True):
        assert shown.startswith(row[1].rstrip("…"))
    listed = json.loads(cli(command, "list", "--task-ids", "-o", "json").stdout)
    assert [(one["id"], one["task_id"]) for one in listed] == list(zip(ids, EXACT, strict=True))
    assert not any("payload" in one for one in listed)


def test_payloads_beyond_the_bound_are_left_out_and_told(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [10, 5_000_000, 20, 3_000_000]
    for n, size in enumerate(sizes):  # each is more than one claim takes besides others
        cli.bury([Corpse(item(n, data="x" * size))])

    def listed() -> tuple[list[str | None], str]:
        result = cli("dead", "list", "--task-ids", "-o", "json")
        return [one["task_id"] for one in json.loads(result.stdout)], result.stderr

    assert listed() == (["t3", "t2", "t1", "t0"], "")
    monkeypatch.setattr(task_ids, "MOST_BYTES", 4_000_000)
    told = "the task_id of 1 is not known: more than 3.8 MiB of payloads are not read; "
    assert listed() == (["t3", "t2", None, "t0"], f"{told}a smaller --limit leads to it, or show with its id\n")


def test_one_that_goes_meanwhile_has_none(cli: Cli) -> None:
    first, second = cli.bury([Corpse(item(1)), Corpse(item(2))])

    async def work(queue: Queue) -> dict[str, str]:
        letters = await dead_letters.newest(queue, dead_letters.Selection())
        await queue.dead.purge([second])
        return dict(await task_ids.read(queue.dead, letters))

    assert cli.on_queue(work) == {first: "t1", second: ""}
