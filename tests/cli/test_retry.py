"""``retry``: what waits is shown as it is kept, the soonest due first."""

from __future__ import annotations

import json

import pytest

from cbq_exporter.model import Failure, Retry, Settled, Settlement
from cbq_exporter.services import retries
from cbq_exporter.store.queue import Queue
from tests.cli.conftest import Cli, item

FAILED = Failure("http_5xx", 503, "answered 503", "<p>\x1b[2Jlater\n</p>")


def _put_off(cli: Cli, delays: list[tuple[str, float]], payload: bytes | None = None) -> list[str]:
    """Callbacks that failed once, for these destinations and due in so many seconds; returns their ids, as due."""

    async def work(queue: Queue) -> list[str]:
        await queue.keep_lock(30)
        await queue.enqueue([payload or item(number) for number in range(len(delays))])
        claim = await queue.claim(count=len(delays), max_bytes=10**9, lease=30, lock_ttl=30)
        assert claim is not None
        settlements = [
            Settlement(one, Retry(delay, FAILED, True), f"http://{name}/x", name)
            for one, (name, delay) in zip(claim.items, delays, strict=True)
        ]
        assert await queue.settle(settlements) == [Settled.DONE] * len(delays)
        await queue.free_lock()
        return await queue.retry_ids(offset=0, count=len(delays))

    return cli.on_queue(work)


def test_list_shows_the_soonest_due_first(cli: Cli) -> None:
    first, second = _put_off(cli, [("slow.example", 86_400.0 * 3), ("example.com", 0.0)])
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
    ids = _put_off(cli, [("a.example" if n % 3 else "b.example", 600.0 + n) for n in range(7)])

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
    (retry_id,) = _put_off(cli, [("example.com", 600.0)])
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
    (retry_id,) = _put_off(cli, [("", 600.0)], payload=b"\x00\xff not json")
    assert cli("retry", "show", "--raw", retry_id).stdout_bytes == b"\x00\xff not json"
