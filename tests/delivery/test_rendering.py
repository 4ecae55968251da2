"""Requests that are made anew for each attempt: by templates and renderers, with headers and secrets."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbq_exporter import rendering
from cbq_exporter.config import RendererBody, RequestConfig, TemplateBody
from cbq_exporter.config.files import Files
from cbq_exporter.delivery.shaping import Item, Shaped, Shaper, Unusable, read
from cbq_exporter.errors import ConfigError
from cbq_exporter.model import Claimed, DeadReason

EXAMPLE = Path(__file__).parents[2] / "docs/examples/envelope.json.j2"
NOW = 1764000060.25
FILES = Files({"PARTNER": "s3cr3t-Pa55\n", "OTHER": "another"})
SECRETS = {"partner": "env:PARTNER"}
SUCCESS = {
    "url": "https://client.example/callback",
    "task_id": 't-1 "quoted"',
    "status": "success",
    "data": {"image": "aGVsbG8=", "processing_time": 12.5, "seed": 12345678901234567890123456789},
    "prompt": "a ‘cat’\nwith \\ and </script>",
    "created_at": None,
    "_queued_at": 1764000000.123,
}


class Standing:
    """Time stands."""

    def now(self) -> float:
        return NOW

    def monotonic(self) -> float:
        return 1.0


def claimed(payload: bytes | dict[str, Any], attempts: int = 0) -> Claimed:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return Claimed("lease", hashlib.sha1(raw).hexdigest(), raw, attempts, 0, 1764000001_500)


def shaper(body: Any = "data", *, max_bytes: int = 1 << 20, **fields: Any) -> Shaper:
    request = RequestConfig(body=body, **fields)
    return Shaper(request, max_bytes=max_bytes, files=FILES, clock=Standing())


def shaped(made: Shaped | Unusable) -> Shaped:
    assert isinstance(made, Shaped), made
    return made


def shape(one: Shaper, payload: bytes | dict[str, Any], attempts: int = 0) -> Shaped | Unusable:
    callback = claimed(payload, attempts)
    item = read(callback)
    made = one.shape(callback, item) if isinstance(item, Item) else item
    return Shaped(made.body, one.all_headers(callback, made)) if isinstance(made, Shaped) else made


@pytest.fixture
def template(tmp_path: Path) -> Any:
    def make(text: str, **fields: Any) -> Shaper:
        path = tmp_path / "body.j2"
        path.write_text(text)
        return shaper(TemplateBody(template=path), **{"secrets": SECRETS, **fields})

    return make


# --- the worked example --------------------------------------------------------------------------


@pytest.mark.parametrize("succeeded", [True, False])
def test_the_envelope_of_the_documentation(succeeded: bool) -> None:
    one = shaper(TemplateBody(template=EXAMPLE), secrets=SECRETS)
    failure = {"url": SUCCESS["url"], "task_id": "t-2", "status": "failed", "data": {"error": "out of memory"}}
    request = shaped(shape(one, SUCCESS if succeeded else failure))
    again = shaped(shape(one, SUCCESS if succeeded else failure))
    envelope = json.loads(request.body)
    params, nonce = envelope["params"], envelope["nonce"]
    assert envelope["timestamp"] == str(params["timestamp"]) == "1764000060250"
    digest = hashlib.sha256(f"nonce={nonce}&secretKey=s3cr3t-Pa55&timestamp=1764000060250".encode()).digest()
    assert envelope["signature"] == base64.b64encode(digest).decode()
    assert nonce != json.loads(again.body)["nonce"]
    assert datetime.fromisoformat(params["data"].pop("completed_at")).timestamp() == NOW
    if succeeded:
        assert params == {
            "code": 0,
            "data": {
                "task_id": SUCCESS["task_id"],
                "status": "success",
                "data": {"image": "aGVsbG8=", "original_prompt": SUCCESS["prompt"]},
                "processing_time": 12.5,
                "created_at": None,
            },
            "message": "ok",
            "timestamp": 1764000060250,
        }
    else:
        assert (params["code"], params["message"]) == (1, "out of memory")
        assert (params["data"]["data"], params["data"]["processing_time"]) == (None, None)
    assert "content-type: application/json" in request.headers


def test_a_missing_field_is_a_dead_letter_with_the_place() -> None:
    one = shaper(TemplateBody(template=EXAMPLE), secrets=SECRETS)
    unusable = shape(one, {"url": "http://a.example/", "task_id": "t", "status": "success", "data": {}})
    assert unusable == Unusable(
        DeadReason.RENDER, "envelope.json.j2:11: there is no 'image' in an object", "http://a.example/"
    )


# --- templates -----------------------------------------------------------------------------------


def test_values_keep_what_the_producer_wrote(template: Any) -> None:
    raw = b'{"url":"http://a.example/","data":{"n": 12345678901234567890123456789, "x":1.0e2,"e":[ ]},"s":"\\ud800"}'
    request = shaped(shape(template("{{ item.data | tojson }} {{ item.data.n }} {{ item.s | tojson }}"), raw))
    assert request.body == (
        b'{"n": 12345678901234567890123456789, "x":1.0e2,"e":[ ]} 12345678901234567890123456789 "\\ud800"'
    )


def test_a_text_that_was_cut_short_changes_nothing_beside_it(template: Any) -> None:
    raw = b'{"url":"http://a.example/","s":"\\ud800","o":{"n": 1.10, "x": 1e999},"l":[2.50]}'
    request = shaped(shape(template('{{ {"s": item.s, "of": [item.o, item.l, none, 1]} | tojson }}'), raw))
    assert request.body == b'{"s":"\\ud800","of":[{"n": 1.10, "x": 1e999},[2.50],null,1]}'


@pytest.mark.parametrize("value", ['"', "\\", "\n", '","admin":true,"x":"', "\u2028", "\x00", "é"])
def test_no_text_leaves_the_json_string_that_it_is_written_into(template: Any, value: str) -> None:
    one = template('{"id": "{{ item.task_id }}", "all": "{{ "<" ~ item.task_id ~ ">" }}"}')
    request = shaped(shape(one, {"url": "http://a.example/", "task_id": value}))
    assert json.loads(request.body) == {"id": value, "all": f"<{value}>"}


def test_other_kinds_of_bodies_are_not_escaped(template: Any) -> None:
    one = template(
        "id={{ item.task_id | urlencode }}&q={{ item.q }}",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert (
        shaped(shape(one, {"url": "http://a.example/", "task_id": "a b&c/", "q": '"'})).body == b'id=a%20b%26c%2F&q="'
    )


def test_each_attempt_is_told_which_it_is(template: Any) -> None:
    one = template("{{ attempt.number }} {{ attempt.first_at }} {{ webhook_id }}")
    request = shaped(shape(one, SUCCESS, attempts=2))
    assert request.body.decode() == f"3 1764000001.5 msg_{claimed(SUCCESS).fingerprint}"
    assert request.headers[-1] == f"webhook-id: msg_{claimed(SUCCESS).fingerprint}"


def test_headers_can_be_templates_and_see_the_body(template: Any) -> None:
    one = template(
        '{"n": "{{ nonce }}"}',
        headers={
            "Authorization": "Bearer {{ secrets.partner }}",
            "X-Signature": "t={{ now_ms }},v1={{ body | hmac_sha256(secrets.partner) }}",
            "X-Nonce": "{{ nonce }}",
            "X-Team": "images",
        },
    )
    request = shaped(shape(one, SUCCESS))
    headers = dict(line.split(": ", 1) for line in request.headers)
    signature = hmac.new(b"s3cr3t-Pa55", request.body, hashlib.sha256).hexdigest()
    assert headers["X-Signature"] == f"t=1764000060250,v1={signature}"
    assert headers["Authorization"] == "Bearer s3cr3t-Pa55"
    assert json.loads(request.body) == {"n": headers["X-Nonce"]}
    assert headers["X-Team"] == "images"
    plain = shaper("data", headers={"X-Sum": "{{ body | sha256 }}"})
    assert f"X-Sum: {hashlib.sha256(b'7').hexdigest()}" in shaped(shape(plain, {**SUCCESS, "data": 7})).headers


def test_an_item_gives_only_the_headers_that_it_may() -> None:
    one = shaper("data", item_headers=["X-Trace", "Accept"], headers={"x-trace": "ours", "X-Team": "images"})
    given = {"X-TRACE": "abc", "authorization": "Bearer stolen", "host": "evil.example"}
    headers = shaped(shape(one, {**SUCCESS, "headers": given})).headers
    assert headers[:-1] == ["X-Team: images", "content-type: application/json", "X-TRACE: abc"]
    assert "x-trace: ours" in shaped(shape(one, SUCCESS)).headers
    for wrong in ("a\r\nX-Admin: 1", "", "é", 7, None, ["a"], "x" * 9000):
        unusable = shape(one, {**SUCCESS, "headers": {"x-trace": wrong}})
        assert isinstance(unusable, Unusable)
        assert unusable.reason is DeadReason.RENDER


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": {{ item.', "body.j2:1: expected name or number"),
        ("\n\n{% if %}", "body.j2:3: Expected an expression, got 'end of statement block'"),
        ("{{ itme.task_id }}", "body.j2:1: there is no 'itme' here; there is attempt, item, nonce, "),
        ("\n{{ secrets.partnr }}", "body.j2:2: there is no secret 'partnr'; there is partner"),
        ("{{ secrets[item.which] }}", "body.j2:1: secrets has to be followed by the name of one; "),
        ("{{ item.a | frobnicate }}", "body.j2:1: No filter named 'frobnicate'."),
        ("{{ body }}", "body.j2:1: there is no 'body' here"),
        ("{% include '/etc/passwd' %}", "body.j2:1: include is not available here"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "body.j2:1: is nested more than 40 levels deep"),
    ],
)
def test_a_template_that_is_wrong_is_told_at_the_start(template: Any, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        template(text)
    (problem,) = raised.value.problems
    assert problem.file.endswith("/body.j2")
    assert problem.path == "delivery.request.body"
    assert problem.found.startswith(told)


def test_what_cannot_be_read_is_told_at_the_start(tmp_path: Path) -> None:
    for request in (
        {"body": TemplateBody(template=tmp_path / "none.j2")},
        {"body": TemplateBody(template=tmp_path)},
        {"headers": {"a": "{{ secrets.b }}"}, "secrets": {"b": "env:NONE"}},
        {"headers": {"a": "{{ secrets.b }}"}, "secrets": {"b": "/nowhere/at/all"}},
        {"headers": {"a": "{{ secrets.b }}"}},
        {"body": RendererBody(renderer="cbq_exporter.no_such_module:f")},
        {"body": RendererBody(renderer="tests.delivery.test_rendering:none")},
        {"body": RendererBody(renderer="tests.delivery.test_rendering:NOW")},
        {"body": RendererBody(renderer="tests.delivery.broken_renderer:render")},
    ):
        with pytest.raises(ConfigError) as raised:
            shaper(**request)
        assert len(str(raised.value).splitlines()) == 1


def test_too_much_is_a_dead_letter_of_its_own(template: Any) -> None:
    one = template("{% for c in item.list %}{{ c }}{% endfor %}", max_bytes=100)
    assert shaped(shape(one, {"url": "http://a.example/", "list": [1] * 100})).body == b"1" * 100
    for payload in ([1] * 101, ["é" * 60]):  # characters, and bytes
        unusable = shape(one, {"url": "http://a.example/", "list": payload})
        assert isinstance(unusable, Unusable)
        assert unusable.reason is DeadReason.TOO_LARGE


def test_no_detail_shows_a_secret(template: Any, caplog: pytest.LogCaptureFixture) -> None:
    for text in (
        "{{ item[secrets.partner] }}",
        "{{ secrets.partner | int }}",
        "{{ secrets.partner.x }}",
        "{{ secrets.partner - 1 }}",
        "{{ [secrets.partner] | sum }}",
    ):
        unusable = shape(template(text), SUCCESS)
        assert isinstance(unusable, Unusable)
        assert unusable.reason is DeadReason.RENDER
        assert "s3cr3t" not in unusable.detail
    renderer = shaper(RendererBody(renderer="tests.delivery.test_rendering:tells"), secrets=SECRETS)
    assert shape(renderer, SUCCESS) == Unusable(
        DeadReason.RENDER, "tests.delivery.test_rendering:tells: KeyError: '***'", "https://client.example/callback"
    )
    assert "s3cr3t" not in repr(renderer)
    assert "s3cr3t" not in caplog.text


# --- renderers -----------------------------------------------------------------------------------

none = None


def renders(callback: rendering.Callback, attempt: rendering.Attempt) -> rendering.Request:
    body = [callback.id, callback.url, callback.item["task_id"], callback.secrets["partner"]]
    body += [attempt.number, attempt.first_at, attempt.now]
    return rendering.Request(json.dumps(body).encode(), {"Content-Type": "text/x", "x-own": "1"})


def tells(callback: rendering.Callback, attempt: rendering.Attempt) -> rendering.Request:
    raise KeyError(callback.secrets["partner"])


def leaves(callback: rendering.Callback, attempt: rendering.Attempt) -> rendering.Request:
    raise SystemExit(3)


def forgets(callback: rendering.Callback, attempt: rendering.Attempt) -> rendering.Request:
    return None  # type: ignore[return-value]


def says_text(callback: rendering.Callback, attempt: rendering.Attempt) -> rendering.Request:
    return rendering.Request("text")  # type: ignore[arg-type]


def splits(callback: rendering.Callback, attempt: rendering.Attempt) -> rendering.Request:
    return rendering.Request(b"", {"x": "a\r\nhost: evil.example"})


def hosts(callback: rendering.Callback, attempt: rendering.Attempt) -> rendering.Request:
    return rendering.Request(b"", {"Host": "evil.example"})


def test_a_renderer_makes_the_body_and_headers() -> None:
    one = shaper(
        RendererBody(renderer="tests.delivery.test_rendering:renders"),
        secrets=SECRETS,
        headers={"X-Own": "0", "X-Team": "a"},
    )
    request = shaped(shape(one, SUCCESS, attempts=1))
    identity = f"msg_{claimed(SUCCESS).fingerprint}"
    assert json.loads(request.body) == [
        *(identity, SUCCESS["url"], SUCCESS["task_id"], "s3cr3t-Pa55"),
        *(2, 1764000001.5, NOW),
    ]
    assert request.headers == ["X-Team: a", "Content-Type: text/x", "x-own: 1", f"webhook-id: {identity}"]


def test_a_renderer_is_given_what_a_template_is() -> None:
    one = shaper(RendererBody(renderer="tests.delivery.test_rendering:renders"), secrets=SECRETS)
    cut_short = b'{"url": "http://a.example/", "task_id": "\\ud83d", "n": 12345678901234567890123456789}'
    assert json.loads(shaped(shape(one, cut_short)).body)[2] == "\ud83d"
    beyond = shape(one, b'{"url": "http://a.example/", "task_id": "t", "n": 1e999}')
    assert isinstance(beyond, Unusable)
    assert "out of range" in beyond.detail


@pytest.mark.parametrize("name", ["leaves", "forgets", "says_text", "splits", "hosts"])
def test_a_renderer_that_fails_makes_a_dead_letter(name: str) -> None:
    unusable = shape(shaper(RendererBody(renderer=f"tests.delivery.test_rendering:{name}")), SUCCESS)
    assert isinstance(unusable, Unusable)
    assert unusable.reason is DeadReason.RENDER
    assert unusable.detail.isprintable()


def test_a_slow_renderer_is_told_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    readings = iter([0.0, 0.5, 1.0, 1.5])
    monkeypatch.setattr("cbq_exporter.delivery.renderers.time.perf_counter", lambda: next(readings))
    one = shaper(RendererBody(renderer="tests.delivery.test_rendering:renders"), secrets=SECRETS)
    for _ in range(2):
        shape(one, SUCCESS)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert vars(record)["seconds"] == 0.5


# --- whatever comes ------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ITEMS = st.fixed_dictionaries(
    {"url": st.just("http://a.example/")},
    optional=dict.fromkeys(("task_id", "status", "data", "prompt", "created_at", "headers", "_queued_at"), VALUES),
)
PAYLOADS = ITEMS.map(lambda item: json.dumps(item).encode()) | ITEMS.map(msgspec.json.encode) | st.binary(max_size=60)
SHAPERS = [
    shaper("data"),
    shaper("item", headers={"X-Sum": "{{ body | sha256 }}", "X-Id": "{{ item.task_id }}"}),
    shaper("item", item_headers=["x", "accept"]),
    shaper(TemplateBody(template=EXAMPLE), secrets=SECRETS),
    shaper(RendererBody(renderer="tests.delivery.test_rendering:renders"), secrets=SECRETS),
]


@settings(max_examples=150)
@given(PAYLOADS, st.integers(0, 4))
def test_any_payload_is_shaped_or_has_its_reason(payload: bytes, number: int) -> None:
    made = shape(SHAPERS[number], payload)
    if isinstance(made, Unusable):
        assert made.detail.isprintable()
        assert len(made.detail) < 400
        assert "s3cr3t" not in made.detail
    else:
        assert all(line.isascii() and line.isprintable() for line in made.headers)
        if number == 3:
            assert json.loads(made.body)["params"]["data"]["task_id"] == json.loads(payload)["task_id"]
