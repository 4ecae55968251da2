"""``retry``: what waits is shown as it is kept, the soonest due first."""

from __future__ import annotations

import asyncio
import json

import pytest

from cbq_exporter.model import Failure
from cbq_exporter.services import retries
from cbq_exporter.store.queue import Queue
from tests.cli.conftest import Cli, item


def test_list_shows_the_soonest_due_first(cli: Cli) -> None:
    first, second = cli.put_off([("slow.example", 86_400.0 * 3), ("example.com", 0.0)])
    rows = [line.split() for line in cli("retry", "list").stdout.splitlines()]
    assert rows[0] == ["id", "destination", "tries", "due", "in", "failure"]
    assert rows[1] == [first, "example.com", "1", "now", "http_5xx", "503"]
    assert (rows[2][:3], rows[2][-2:]) == ([second, "slow.example", "1"], ["http_5xx", "503"])


def test_list_where_nothing_waits(cli: Cli) -> None:
    result = cli("retry", "list")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "nothing waits in retry in callbacks\n")
    assert cli("retry", "list", "-o", "json").stdout == "[]\n"


def test_list_in_pages_and_by_destination(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAGE", 2)
    ids = cli.put_off([("a.example" if n % 3 else "b.example", 600.0 + n) for n in range(7)])

    def listed(*words: str) -> tuple[list[str], str]:
        result = cli("retry", "list", *words, "-o", "json")
        return [one["id"] for one in json.loads(result.stdout)], result.stderr

    assert listed("--limit", "3") == (ids[:3], "there are more: --offset 3 shows the next\n")
    assert listed("--limit", "3", "--offset", "4") == (ids[4:], "")
    assert listed("--destination", "b.example") == (ids[::3], "")
    assert listed("--destination", "b.example", "--limit", "1", "--offset", "1") == (
        ids[3:4],
        "there are more: --offset 2 shows the next\n",
    )
    assert listed("--destination", "nobody") == ([], "")


def test_show(cli: Cli) -> None:
    (retry_id,) = cli.put_off([("example.com", 600.0)])
    lines = cli("retry", "show", retry_id).stdout.splitlines()
    assert [line for line in lines if not line.startswith(("first claimed", "due"))] == [
        f"id             {retry_id}",
        "queue          callbacks",
        "url            http://example.com/x",
        "destination    example.com",
        "tries          1",
        "failure        http_5xx 503: answered 503",
        r"answer         <p>\x1b[2Jlater\n</p>",
        f"payload        {len(item(0))} bytes",
        "",
        item(0).decode(),
    ]
    fields = json.loads(cli("retry", "show", retry_id, "-o", "json").stdout)
    assert fields["payload"] == item(0).decode()
    assert 590 < fields["due_at"] - fields["first_at"] < 660
    result = cli("retry", "show", "17")
    assert result.exit_code == 1
    assert result.stderr == "cbq-exporter: nothing with the id 17 waits in retry: retry list shows what does\n"


def test_raw_keeps_every_byte(cli: Cli) -> None:
    (retry_id,) = cli.put_off([("", 600.0)], payload=b"\x00\xff not json")
    assert cli("retry", "show", "--raw", retry_id).stdout_bytes == b"\x00\xff not json"


def _due(cli: Cli) -> list[str]:
    async def work(queue: Queue) -> list[str]:
        ids = await queue.retries.ids(offset=0, count=1000)
        now = await queue.store_now_ms() / 1000
        return [one.id for one in await queue.retries.read(ids) if one.due_at <= now]

    return cli.on_queue(work)


def test_now_makes_due_what_failed_for_one_destination_in_its_order(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAGE", 4)
    ids = cli.put_off([("a.example" if n % 3 else "b.example", 600.0 + n) for n in range(20)])
    cli.put_off([("a.example", 900.0)], failure=Failure("paused"))
    words = ["retry", "now", "--destination", "a.example"]
    dry = cli(*words, "--dry-run")
    plan = [
        "13 callbacks of callbacks for a.example failed and wait for the next attempt: 13 http_5xx",
        "make them due now: each attempt counts, and what fails again waits longer",
        "not touched: 1 callback put off by a pause, a circuit, a limit or an order; resume ends the first two",
    ]
    assert dry.stderr.splitlines() == [*plan, "dry run: nothing was changed"]
    assert _due(cli) == []
    refused = cli(*words)
    assert (refused.exit_code, _due(cli)) == (3, [])
    result = cli(*words, "--yes", "--why", "mended", "-o", "json")
    assert result.stderr.splitlines() == [*plan, "made 13 callbacks due"]
    assert json.loads(result.stdout)["done"] == {"callbacks": 13}
    assert _due(cli) == [one for n, one in enumerate(ids) if n % 3]
    again = cli(*words, "--yes")
    assert (again.exit_code, again.stderr.splitlines()[-1]) == (0, "there is nothing to do")
    entries = [json.loads(line) for line in cli("audit", "--operation", "retry_now", "-o", "json").stdout.splitlines()]
    assert {one["result"] for one in entries} == {"dry_run", "refused", "started", "done"}


def test_now_asks_what_is_meant_and_leaves_what_was_claimed_since(cli: Cli) -> None:
    assert cli("retry", "now", "--yes").exit_code == 2
    assert cli("retry", "now", "--yes", "--all", "--destination", "a.example").exit_code == 2
    before = cli.put_off([("a.example", 600.0), ("b.example", 700.0)])
    made = cli.on_queue(lambda queue: retries.plan(queue, None))
    while cli.on_queue(lambda queue: queue.store_now_ms()) <= made.at * 1000:
        pass
    cli.put_off([("a.example", 500.0)])
    assert cli.on_queue(lambda queue: retries.execute(queue, made)) == 2
    assert _due(cli) == before


def test_now_ends_where_a_claim_lets_what_is_due_wait_for_its_turn_again(cli: Cli) -> None:
    """What failed before there was an order stands behind what is under way, and is put aside at each claim."""
    of_one_key = item(1)
    cli.put_off([("a.example", 600.0)] * 40, of_one_key)

    async def work(queue: Queue) -> int:
        async def claim_again_and_again() -> None:
            while True:
                assert await queue.claim(count=50, max_bytes=10**9, lease=30, lock_ttl=30, order_by="task_id")

        await queue.keep_lock(30)
        made = await retries.plan(queue, None)
        claiming = asyncio.create_task(claim_again_and_again())
        try:
            async with asyncio.timeout(10):
                return await retries.execute(queue, made)
        finally:
            claiming.cancel()

    assert cli.on_queue(work) == 40


def test_now_walks_once_more_only_where_something_is_left(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAGE", 10)
    ids = cli.put_off([("a.example", 600.0 + n) for n in range(100)])
    made = cli.on_queue(lambda queue: retries.plan(queue, None))
    cli.server.client.config_resetstat()
    assert cli.on_queue(lambda queue: retries.execute(queue, made)) == 100
    assert cli.server.client.info("commandstats")["cmdstat_zrange"]["calls"] == 10 + 1
    assert _due(cli) == ids
