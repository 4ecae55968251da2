"""``enqueue``: nothing is pushed that was not meant, and every byte of what was meant."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from cbq_exporter.cli import enqueue
from tests.cli.conftest import TWO_QUEUES, Cli, item
from tests.support.fault_proxy import Action, Fault, FaultProxy
from tests.support.servers import Server


def test_one_by_flags_is_written_as_producers_write_it(cli: Cli) -> None:
    words = (
        "--url",
        "http://example.com/cb",
        "--task-id",
        "t1",
        "--prompt",
        "a cat",
        "--data",
        '{"big": 1.50, "a":[]}',
    )
    result = cli("enqueue", *words)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "enqueued 1 callback in callbacks (1 pending)\n"
    (payload,) = cli.pending()
    fields = json.loads(payload)
    assert json.dumps(fields).encode() == payload  # by this text existing workers acknowledge it
    assert time.time() - 60 < fields.pop("_queued_at") <= time.time()
    assert fields.pop("data") == {"big": 1.5, "a": []}
    assert fields == {
        "url": "http://example.com/cb",
        "task_id": "t1",
        "status": "success",
        "prompt": "a cat",
        "created_at": None,
    }
    assert int(cli.server.client.get("q:stats:queued")) == 1  # type: ignore[arg-type]


def test_data_comes_from_a_file_and_a_task_id_is_made(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes(b'{"from": "file"}\n')
    assert cli("enqueue", "--url", "http://example.com/", "--data", f"@{tmp_path}/data.json").exit_code == 0
    fields = json.loads(cli.pending()[0])
    assert fields["data"] == {"from": "file"}
    assert len(fields["task_id"]) == 36


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--url", "ftp://example.com/"], "--url: the URL's scheme is 'ftp'; only http and https are sent to"),
        (["--url", "http://h/", "--data", "{no"], "--data is not JSON: Expecting property name"),
        (["--url", "http://h/", "--data", "@/no/such"], "--data: /no/such: No such file or directory"),
        (["--url", "http://h/", "--data", "[" * 70 + "]" * 70], "--data: nested deeper than 64 levels"),
        (["--data", "{}"], "--data, --task-id, --status and --prompt need --url"),
        (["--status", "failed"], "--data, --task-id, --status and --prompt need --url"),
        (["--url", "http://h/", "--strict"], "--stamp and --strict are for lines on standard input"),
        (["-q", "other"], "no queue 'other' is configured: there is callbacks"),
    ],
)
def test_bad_flags_are_refused_in_one_line(cli: Cli, words: list[str], message: str) -> None:
    result = cli("enqueue", *words)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"cbq-exporter: {message}")
    assert result.stderr.count("\n") == 1
    assert cli.pending() == []


def test_how_large_data_may_be_is_a_setting_and_it_may_come_from_standard_input(cli: Cli) -> None:
    large = json.dumps("x" * 9_000_000).encode()
    result = cli("enqueue", "--url", "http://h/", "--data", "@-", stdin=large)
    assert result.exit_code == 2
    assert "more than the 8,388,608 of max_bytes (in a configuration: delivery.max_request_bytes)" in result.stderr
    cli.configure("  - {name: callbacks, prefix: q, delivery: {max_request_bytes: 16 MiB}}\n")
    assert cli("enqueue", "--url", "http://h/", "--data", "@-", stdin=large).exit_code == 0
    assert len(cli.pending()) == 1
    assert cli("audit", "-o", "json").stdout.count("enqueue") == 1


def test_lines_are_pushed_byte_for_byte_in_order(cli: Cli) -> None:
    lines = [
        item(1),
        b' {"url" : "http://h/", "n":1.000, "emoji":"\xf0\x9f\x90\x88", "e": "\\u00e9"} ',
        b'{"url":"http://h/"}',
        item(1),
    ]
    result = cli("enqueue", stdin=b"\n".join([lines[0] + b"\r", b"", *lines[1:]]))
    assert (result.exit_code, result.stderr) == (0, "enqueued 4 callbacks in callbacks\n")
    assert cli.pending() == lines


def test_a_bad_line_is_named_and_skipped(cli: Cli) -> None:
    bad = [
        b"not json",
        b"[1]",
        b'{"url": 5}',
        b'{"data": {}}',
        b'{"url":"http://h/","x":"\xff"}',
        b'{"url":"ftp://h/"}',
    ]
    result = cli("enqueue", stdin=b"\n".join([item(1), *bad, item(2)]))
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "line 2: not JSON: JSON is malformed: invalid character (byte 4)",
        "line 3: JSON, but not an object",
        "line 4: no url, or one that is no string",
        "line 5: no url, or one that is no string",
        "line 6: not UTF-8 at byte 24",
        "line 7: the URL's scheme is 'ftp'; only http and https are sent to",
        "enqueued 2 callbacks in callbacks",
        "6 bad lines skipped",
    ]
    assert cli.pending() == [item(1), item(2)]


def test_a_file_from_windows(cli: Cli) -> None:
    assert cli("enqueue", "--strict", stdin=b"\xef\xbb\xbf" + item(1) + b"\r\n" + item(2) + b"\r\n").exit_code == 0
    assert cli.pending() == [item(1), item(2)]


def test_many_bad_lines_do_not_flood(cli: Cli) -> None:
    result = cli("enqueue", stdin=b"x\n" * 100)
    assert len(result.stderr.splitlines()) == 22
    assert result.stderr.endswith("100 bad lines skipped (80 not shown)\n")


def test_strict_takes_all_lines_or_none(cli: Cli) -> None:
    result = cli("enqueue", "--strict", stdin=item(1) + b"\nbad\n")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[1:] == [
        "1 bad line found",
        "cbq-exporter: nothing was enqueued: --strict takes all lines or none",
    ]
    assert cli.pending() == []
    assert cli("enqueue", "--strict", stdin=item(1) + b"\n" + item(2)).exit_code == 0
    assert cli.pending() == [item(1), item(2)]


def test_stamp_adds_only_what_is_missing(cli: Cli) -> None:
    bare = b'{"url":"http://h/", "n":1.0} '
    assert cli("enqueue", "--stamp", stdin=bare + b"\n" + item(1)).exit_code == 0
    stamped, untouched = cli.pending()
    assert stamped.startswith(b'{"url":"http://h/", "n":1.0,"_queued_at":')
    assert abs(json.loads(stamped)["_queued_at"] - time.time()) < 60
    assert untouched == item(1)


def test_an_endless_line_is_not_held(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enqueue, "MAX_LINE", 1000)
    result = cli("enqueue", stdin=item(1) + b"\n" + b"x" * 5000 + b"\n" + item(2) + b"\n" + b"y" * 1001)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[:2] == ["line 2: longer than 1000 B", "line 4: longer than 1000 B"]
    assert cli.pending() == [item(1), item(2)]


def test_more_than_a_batch(cli: Cli) -> None:
    lines = [item(number) for number in range(2500)]
    assert cli("enqueue", stdin=b"\n".join(lines)).stderr == "enqueued 2,500 callbacks in callbacks\n"
    assert cli.pending() == lines


def test_several_queues_need_a_name(cli: Cli) -> None:
    cli.configure(TWO_QUEUES)
    result = cli("enqueue", stdin=item())
    assert result.exit_code == 2
    assert result.stderr == "cbq-exporter: several queues are configured: name one with --queue (callbacks, invoices)\n"
    assert cli("enqueue", "-q", "invoices", stdin=item()).exit_code == 0
    assert cli.server.client.llen("other:pending") == 1


def test_a_full_store_ends_it_and_says_which_lines_are_in(tmp_path: Path) -> None:
    with Server("valkey", "--maxmemory", "4mb", "--maxmemory-policy", "noeviction") as small:
        cli = Cli(small, tmp_path)
        result = cli("enqueue", stdin=b"\n".join(item(n, pad="x" * 1000) for n in range(20_000)))
        assert result.exit_code == 4
        pushed = len(cli.pending())
        assert pushed
        assert result.stderr.startswith(
            f"cbq-exporter: {pushed:,} callbacks enqueued, up to the line before {pushed + 1:,}; "
            f"lines {pushed + 1:,} to {pushed + 1000:,} were not, later ones were not: Redis at unix://"
        )
        assert "maxmemory" in result.stderr
        assert result.stderr.count("\n") == 1


def test_what_was_not_answered_is_in_doubt(cli: Cli) -> None:
    with FaultProxy(cli.server.socket) as proxy:
        proxy.plan(Fault(Action.DROP_REPLY, containing=b"xxx"))
        cli.config_file.write_text(cli.config_file.read_text().replace(cli.server.url, proxy.url))
        result = cli("enqueue", stdin=b"\n".join([item(n) for n in range(999)] + [item(1, pad="x" * 5_000_000)] * 2))
    assert result.exit_code == 4
    assert "999 callbacks enqueued, up to the line before 1,000; line 1,000 may or may not" in result.stderr
    assert len(cli.pending()) == 1000


def test_a_body_that_would_be_empty_is_told(cli: Cli) -> None:
    first, second = cli("enqueue", "--url", "http://example.com/").stderr.splitlines()
    assert first.startswith("enqueued 1 callback")
    assert second == "it has no --data: its body is {}"
    text = cli.config_file.read_text()
    cli.config_file.write_text(text.replace("queues:\n  - {", "queues:\n  - {delivery: {request: {body: item}}, ", 1))
    assert cli("enqueue", "--url", "http://example.com/").stderr.count("\n") == 1


def test_a_receiver_that_is_refused_for_certain_is_told(cli: Cli) -> None:
    def told(url: str) -> list[str]:
        result = cli("enqueue", "--url", url, "--data", "1")
        assert result.exit_code == 0
        return result.stderr.splitlines()[1:]

    line = "it will be a dead letter: {}; cbq-exporter check-url tells what lets it through"
    assert told("http://127.0.0.1:8000/") == [line.format("127.0.0.1 is a loopback address")]
    assert told("http://2130706433/") == [line.format("127.0.0.1 is a loopback address")]
    assert told("http://localhost/") == [line.format("127.0.0.1 is a loopback address")]
    assert told("http://[fd00::1]/") != []
    assert told("http://93.184.216.34/") == []
    assert told("http://intranet.example/") == []  # nobody has looked it up
    text = cli.config_file.read_text()
    allow = "{delivery: {egress: {allow: ['127.0.0.0/8'], ports: [80]}}, "
    cli.config_file.write_text(text.replace("queues:\n  - {", f"queues:\n  - {allow}", 1))
    assert told("http://localhost/") == told("http://127.0.0.1/") == []
    assert told("http://127.0.0.1:8000/") == [line.format("port 8000 is none of 80")]
    cli.config_file.write_text(text.replace("queues:\n  - {", "queues:\n  - {mode: observe, ", 1))
    assert told("http://127.0.0.1:8000/") == []  # others send


def test_without_a_store(cli: Cli, tmp_path: Path) -> None:
    cli.config_file.write_text(f"redis: {{url: 'unix://{tmp_path}/none.sock'}}\nqueues:\n  - {{name: callbacks}}\n")
    result = cli("enqueue", "--url", "http://example.com/")
    assert result.exit_code == 4
    assert result.stderr.startswith("cbq-exporter: Redis at unix://")
    assert result.stderr.count("\n") == 1
