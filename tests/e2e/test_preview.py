"""What ``render`` shows is what a receiver gets: fifty items for each of ten kinds of request."""

from __future__ import annotations

import json
import random
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cbq_exporter.clock import SYSTEM_CLOCK
from cbq_exporter.config import load
from cbq_exporter.delivery.preview import Preview, preview
from cbq_exporter.rendering import Attempt, Callback, Request
from tests.e2e.bare_client import by_payload, dead_letters, push, wait_until_settled
from tests.support.daemons import Daemon, queue, until
from tests.support.receiver import Receiver, Seen
from tests.support.servers import Server

ITEMS = 50
MASK = "***"
BODY = '{"t": "{{ item.task_id | default }}", "d": {{ item.data | default(none) | tojson }}, "id": "{{ webhook_id }}"}'
FORM = "t={{ item.task_id | default | urlencode }}&d={{ item.data | default(none) | tojson | urlencode }}"


def renders(callback: Callback, attempt: Attempt) -> Request:
    body = json.dumps([callback.item.get("data"), attempt.number]).encode()
    return Request(body, {"X-Try": str(attempt.number), "x-bytes": str(len(callback.payload))})


REQUESTS: dict[str, dict[str, Any]] = {
    "data": {},
    "item": {"body": "item"},
    "template": {"body": {"template": "body.j2"}},
    "form": {"body": {"template": "form.j2"}, "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
    "renderer": {"body": {"renderer": "tests.e2e.test_preview:renders"}, "headers": {"X-Try": "never"}},
    "items": {"item_headers": ["X-Trace", "content-type", "Accept"], "headers": {"x-trace": "ours"}},
    "compressed": {"gzip_from": 40, "item_headers": ["content-encoding"]},
    "names": {"headers": {"User-Agent": "mine/1", "Accept": "text/plain", "Content-Type": "a/b"}},
    "spaces": {"headers": {"X-Spaces": "  a  b \t", "X-Colon": ": x: y"}},
    "headers": {"headers": {"X-Hash": "{{ body | sha256 }}", "X-Task": "{{ item.task_id | default('-') | tojson }}"}},
}
SIGNED = {"data", "template"}

TEXTS = ["", "t-1", 'a "quoted" \\ one', "\n\t\0", "é ☃ 𝄞", "\u2028", "x" * 300, "</script>"]
VALUES = [
    *["null", "true", "0", "-0", "1.10", "1e5", "1e999", "9007199254740993", "123456789012345678901234567890", "[ ]"],
    *[
        '"\\ud83d"',
        '"\\u00e9"',
        '{"b":1, "a" : [1.0]}',
        '{"a": 1, "a": 2}',
        '{"n": 1e-7, "s": "é"}',
        "[" * 40 + "]" * 40,
    ],
    *['{"":{"":[[[{}]]]}}', '"' + "y" * 20_000 + '"', "9" * 5000],
]
PATHS = ["", "/", "/a?c=d", "?q=/../x", "/a/../b", "/%2e%2e/é?ü", "/x#part", "/a;b=c,d", '/\\<>{}|^`"', "//twice"]
HEADERS = [
    *["null", "[]", '{"other": "no"}', '{"X-Trace": "abc"}', '{"x-trace": " padded "}', '{"X-TRACE": " "}'],
    *['{"X-Trace": ""}', '{"X-Trace": "é"}', '{"X-Trace": 1}', '{"accept": "\\t"}', '{"content-type": " "}'],
    *['{"content-type": "text/x"}', '{"content-encoding": "identity"}', '{"accept": "text/x"}'],
]


def items(name: str, port: int, roll: random.Random) -> list[bytes]:
    """No two of them are equal."""
    made = []
    for number in range(ITEMS):
        url = f"http://{roll.choice(['127.0.0.1', '127.1', '0x7f000001'])}:{port}{roll.choice(PATHS)}"
        fields = [f'"url": {json.dumps(url, ensure_ascii=roll.random() < 0.5)}', f'"n": "{name}-{number}"']
        if roll.random() < 0.9:
            fields.append(f'"data": {roll.choice(VALUES)}')
        if roll.random() < 0.9:
            fields.append(f'"task_id": {json.dumps(roll.choice(TEXTS), ensure_ascii=roll.random() < 0.5)}')
        if roll.random() < 0.5:
            fields.append(f'"headers": {roll.choice(HEADERS)}')
        roll.shuffle(fields)
        between = roll.choice([", ", ",", " ,\n"])
        made.append(f"{{{between.join(fields)}}}".encode())
    return made


def as_sent(seen: Seen) -> tuple[object, ...]:
    """Path, headers without the length and the moment, and body."""
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in seen.header_lines)]
    packed = ("content-encoding", "gzip") in headers
    return seen.path, _told(headers), zlib.decompress(seen.body, wbits=31) if packed else seen.body


def as_shown(shown: Preview) -> tuple[object, ...]:
    assert shown.url is not None
    target = shown.url.removeprefix("http://").partition("#")[0]
    host = re.split("[/?]", target)[0]
    path = target.removeprefix(host)
    headers = [("host", host), *((name.lower(), value.strip()) for name, value in shown.headers)]
    return path if path.startswith("/") else f"/{path}", _told(headers), shown.body


def _told(headers: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    hidden = {"webhook-signature": MASK, "webhook-timestamp": MASK}
    return tuple(sorted((name, hidden.get(name, value)) for name, value in headers if name != "content-length"))


def test_what_is_shown_is_what_is_sent(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    key = tmp_path / "key"
    key.write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    key.chmod(0o600)
    queues = []
    for name, request in REQUESTS.items():
        signing = {"secrets_file": str(key)} if name in SIGNED else None
        queues.append(queue(name=name, prefix=name, delivery={"request": request, "signing": signing}))
    roll = random.Random(13)
    with Receiver() as receiver:
        entry = {"name": "a", "match": f"http://127.0.0.1:{receiver.port}/a*", "request": {"headers": {"X-A": "1"}}}
        path = {"PYTHONPATH": str(Path(__file__).parents[2])}
        daemon = Daemon(server.url, *queues, destinations=[entry], environment=path, folder=tmp_path)
        (tmp_path / "body.j2").write_text(BODY)
        (tmp_path / "form.j2").write_text(FORM)
        with daemon:
            config = load(daemon.config_file).config
            payloads = {name: items(name, receiver.port, roll) for name in REQUESTS}
            shown = {
                payload: preview(payload, one, config.destinations, SYSTEM_CLOCK)
                for one in config.queues
                for payload in payloads[one.name]
            }
            for name, those in payloads.items():
                push(server.client, *those, prefix=name)
            for name, those in payloads.items():
                dead = sum(shown[one].reason is not None for one in those)
                wait_until_settled(server.client, name, dead=dead, what=daemon.log)
            for name, those in payloads.items():
                letters = by_payload(dead_letters(server.url, name))
                told = {one: (letter.reason, letter.failure.detail) for one, letter in letters.items()}
                assert told == {one: (shown[one].reason, shown[one].detail) for one in those if shown[one].reason}
            sendable = Counter(as_shown(one) for one in shown.values() if one.reason is None)
            assert len(sendable) > 300
            until(lambda: len(receiver.requests) >= sendable.total())
            sent = Counter(as_sent(seen) for seen in receiver.requests)
            assert (sent - sendable, sendable - sent) == (Counter(), Counter())
