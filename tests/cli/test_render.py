"""``render``: the request as it would be sent, and no secret in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cbq_exporter.cli.main import app

CONFIG = """
redis: {url: 'redis://localhost:6379/1'}
queues:
  - name: callbacks
    delivery:
      max_request_bytes: 1KiB
      request:
        body: {template: FOLDER/body.j2}
        secrets: {partner: FOLDER/unreadable}
        headers: {Authorization: Bearer s3cr3t, X-Key: "{{ secrets.partner }}", X-Team: images}
  - {name: plain, prefix: o}
destinations:
  - {name: partner, match: "*.example.com", paused: true, rate: 50/s, signing: {secrets_env: NONE},
     request: {body: data}}
"""
TEMPLATE = '{"id": "{{ item.task_id }}", "try": {{ attempt.number }}, "key": "{{ secrets.partner }}"}'
ITEM = b'{"url": "https://a.example/x", "task_id": "t-1", "data": {"n": 1.0}}'


@pytest.fixture
def render(tmp_path: Path) -> Callable[..., Result]:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    (tmp_path / "body.j2").write_text(TEMPLATE)
    (tmp_path / "unreadable").mkdir()

    def run(payload: bytes, *words: str, queue: str = "callbacks") -> Result:
        arguments = ["render", "-", "-c", str(file), "-q", queue, *words]
        return CliRunner().invoke(app, arguments, input=payload, env={"CBQ_REDIS_URL": None})

    return run


def test_the_request_and_the_settings_are_shown(render: Callable[..., Result]) -> None:
    result = render(ITEM + b"\n", "--attempt", "3")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    version = next(line for line in lines if line.startswith("user-agent: cbq-exporter/"))
    assert lines == [
        "destination  a.example (no entry of destinations matches: its host)",
        "limits       32 at a time, 15 s each, up to 10 attempts",
        "",
        "POST https://a.example/x",
        version,
        "accept: */*",
        "Authorization: ***",
        "X-Team: images",
        "content-type: application/json",
        "X-Key: ***partner***",
        f"webhook-id: msg_{hashlib.sha1(ITEM).hexdigest()}",
        "",
        '{"id": "t-1", "try": 3, "key": "***partner***"}',
    ]


def test_a_destination_of_its_own_and_its_signature(render: Callable[..., Result]) -> None:
    result = render(ITEM.replace(b"a.example/", b"a.example.com/"), "-o", "json")
    made = json.loads(result.stdout)
    assert (result.exit_code, made["sent"], made["body"], made["body_bytes"]) == (0, True, '{"n": 1.0}', 10)
    settings = made["settings"]
    assert (settings["destination"], settings["match"], settings["rate"]) == ("partner", "*.example.com", 50.0)
    assert settings["paused"]
    assert settings["signed"]
    assert made["headers"]["webhook-signature"] == "v1,***"
    assert "s3cr3t" not in result.stdout


@pytest.mark.parametrize(
    ("payload", "queue", "reason", "detail"),
    [
        (b"nonsense", "callbacks", "invalid_json", "not JSON"),
        (b'{"url": "ftp://a"}', "callbacks", "invalid_url", "the URL's scheme"),
        (b'{"url": "http://a.example/"}', "callbacks", "render", "body.j2:1: there is no 'task_id' in an object"),
        (b'{"url": "http://a.example/"}', "plain", "no_data", "the item has no `data` to post"),
        (ITEM.replace(b"t-1", b"t" * 2000), "callbacks", "too_large", "more than 1,024 characters come out of"),
    ],
)
def test_why_it_would_be_a_dead_letter(
    render: Callable[..., Result], payload: bytes, queue: str, reason: str, detail: str
) -> None:
    result = render(payload, queue=queue)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"cbq-exporter: it would be a dead letter, {reason}: {detail}")
    assert len(result.stderr.splitlines()) == 1
    made = json.loads(render(payload, "-o", "json", queue=queue).stdout)
    assert (made["sent"], made["reason"]) == (False, reason)


def test_only_the_body_byte_for_byte(render: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "item.json"
    file.write_bytes(b'{"url":"https://a.example/","data":{ "x" : "\x7f\xc3\xa9"} }')
    words = ["render", str(file), "-c", str(tmp_path / "config.yaml"), "-q", "plain", "--body"]
    assert CliRunner().invoke(app, words).stdout_bytes == b'{ "x" : "\x7f\xc3\xa9"}'


def test_a_body_that_is_not_what_it_says(render: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "body.j2").write_text('{"id": {{ item.task_id }}, \x1b[31m}')
    result = render(ITEM)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert result.stderr == "warning: its content-type is JSON, and its body is not\n"


def test_what_cannot_be_read(render: Callable[..., Result], tmp_path: Path) -> None:
    words = ["render", str(tmp_path / "none.json"), "-c", str(tmp_path / "config.yaml"), "-q", "plain"]
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    (tmp_path / "body.j2").write_text("{{ itme }}")
    result = render(ITEM)
    assert result.exit_code == 1
    assert f"{tmp_path}/body.j2: queues[callbacks].delivery.request.body: found body.j2:1: " in result.stderr
