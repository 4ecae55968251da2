"""Changing something over HTTP: who may, what is asked of the operations, what is answered, and what is kept."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbq_exporter.errors import CbqError, PreconditionChanged, RefusedError, StoreMisuse, StoreUnavailable
from cbq_exporter.model import Actor, Trigger
from cbq_exporter.services.operations import Operation, Pause, Recover, Reset, Resume, Undo, Unlock
from cbq_exporter.web.bodies import ACTIONS
from tests.support.servers import Server
from tests.web.api_serving import OTHER, TOKEN, ApiServing, NotingOperator, api_serving, problem, token_file

ALICE = Actor(Trigger.API, "alice")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return token_file(tmp_path)


@pytest.mark.parametrize(
    ("path", "body", "operation"),
    [
        ("callbacks/unlock", {}, Unlock("callbacks")),
        ("callbacks/unlock", {"force": True}, Unlock("callbacks", force=True)),
        ("second/recover", {}, Recover("second")),
        ("second/recover", {"older_than": 90}, Recover("second", older_than=90.0)),
        ("second/recover", {"only_known_stuck": True}, Recover("second", only_known_stuck=True)),
        ("callbacks/reset", {}, Reset("callbacks")),
        ("callbacks/reset", {"force": True}, Reset("callbacks", force=True)),
        ("callbacks/undo", {}, Undo("callbacks")),
        ("callbacks/undo", {"trash_id": "17"}, Undo("callbacks", trash_id="17")),
        ("callbacks/pause", {}, Pause("callbacks")),
        ("callbacks/pause", {"destination": "slow.example"}, Pause("callbacks", destination="slow.example")),
        ("callbacks/resume", {"destination": "slow.example"}, Resume("callbacks", destination="slow.example")),
    ],
)
def test_an_operation_is_asked_for_with_who_and_why(
    server: Server, tokens: Path, path: str, body: dict[str, Any], operation: Operation
) -> None:
    queue, name = path.split("/")
    with api_serving(server, tokens) as api:
        answer = api.post(path, {**body, "reason": "worker 7 died"})
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
        assert json.loads(answer.body) == {
            "operation": name,
            "queue": queue,
            "dry_run": False,
            "nothing_to_do": False,
            "summary": ["3 callbacks are in processing", "3 go back ?"],
            "planned": {"callbacks": 3},
            "done": {"callbacks": 3},
            "undo": "17",
        }
        dry = api.post(path, {**body, "dry_run": True})
        assert (json.loads(dry.body)["dry_run"], json.loads(dry.body)["done"]) == (True, {})
    assert api.operator.executed == [(operation, ALICE, "worker 7 died", False), (operation, ALICE, "", True)]


def test_without_a_token_file_nothing_can_be_changed(server: Server) -> None:
    with api_serving(server, None) as api:
        told = problem(api.post("callbacks/unlock"))
        assert (told["status"], told["code"]) == (403, "no_token_file")
        assert "web.bearer_token_file" in told["detail"]
    assert api.operator.planned == []


@pytest.mark.parametrize(
    ("path", "method", "status", "code"),
    [
        ("nothing/unlock", "POST", 404, "unknown_queue"),
        ("%00%ff/unlock", "POST", 404, "unknown_queue"),
        ("watched/unlock", "POST", 403, "observed"),
        ("callbacks/enqueue", "POST", 404, "not_found"),
        ("callbacks/unlock/", "POST", 404, "not_found"),
        ("callbacks/unlock", "GET", 405, "method"),
        ("callbacks/unlock", "HEAD", 405, None),
        ("callbacks/unlock", "PUT", 405, "method"),
        ("callbacks/unlock", "OPTIONS", 405, "method"),
    ],
)
def test_only_what_is_there_can_be_asked_for(
    server: Server, tokens: Path, path: str, method: str, status: int, code: str | None
) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content_Type": "application/json", "Origin": "https://evil.example"}
    with api_serving(server, tokens) as api:
        answer = api.served.ask(f"/api/v1/queues/{path}", method, b"{}", **headers)
        assert answer.status == status
        if code is not None:
            assert problem(answer)["code"] == code
        if status == 405:
            assert answer.headers["Allow"] == "POST"
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert api.operator.planned == []
    assert list(server.client.scan_iter()) == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", None),
        (b"nonsense", None),
        (b"[]", None),
        (b"null", None),
        (b'{"reason": "\xff"}', None),
        (b"[" * 60_000, None),
        ({"force": "yes"}, "force"),
        ({"reason": "x" * 501}, "reason"),
        ({"reason": "two\nlines"}, "reason"),
        ({"reason": None}, "reason"),
        ({"dryrun": True}, "dryrun"),
        ({"dry_run": 1}, "dry_run"),
        ({"older_than": 5}, "older_than"),
    ],
)
def test_a_bad_body_is_told_where(server: Server, tokens: Path, body: Any, field: str | None) -> None:
    with api_serving(server, tokens) as api:
        told = problem(api.post("callbacks/unlock", body))
    assert (told["status"], told["code"], told.get("field")) == (422, "invalid_body", field)
    assert api.operator.planned == []


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        ("recover", b'{"older_than": -1}'),
        ("recover", b'{"older_than": 1e400}'),
        ("recover", b'{"older_than": NaN}'),
        ("recover", b'{"older_than": "5m"}'),
        ("undo", b'{"trash_id": "../x"}'),
        ("undo", b'{"trash_id": ""}'),
        ("pause", b'{"destination": ""}'),
        ("pause", b'{"destination": "a\\u0000b"}'),
    ],
)
def test_values_out_of_bounds(server: Server, tokens: Path, operation: str, body: bytes) -> None:
    with api_serving(server, tokens) as api:
        assert problem(api.post(f"callbacks/{operation}", body))["status"] == 422
    assert api.operator.planned == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Content_Type": "application/json; charset=utf-16"},
        {"Content_Type": ""},
        {"Content_Encoding": "gzip"},
    ],
)
def test_only_plain_json_is_read(server: Server, tokens: Path, headers: dict[str, str]) -> None:
    with api_serving(server, tokens) as api:
        assert problem(api.post("callbacks/unlock", {}, **headers))["code"] == "content_type"
        assert api.post("callbacks/unlock", {}, Content_Type="application/json; charset=UTF-8").status == 200
    assert len(api.operator.planned) == 1


def test_large_and_slow_bodies_are_given_up(server: Server, tokens: Path) -> None:
    head = (
        f"POST /api/v1/queues/callbacks/unlock HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Type: application/json\r\n"
    ).encode()
    with api_serving(server, tokens, body_time=0.3) as api:
        large = api.post("callbacks/unlock", b" " * 65_537)
        assert (problem(large)["code"], large.headers["Connection"]) == ("too_large", "close")
        with api.served.connect() as sock:  # in chunks, so that no length is said
            sock.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + b"9000\r\n" + b" " * 0x9000 + b"\r\n")
            sock.sendall(b"9000\r\n" + b" " * 0x9000 + b"\r\n0\r\n\r\n")
            assert read_all(sock).startswith(b"HTTP/1.1 413 ")
        with api.served.connect() as sock:
            began = time.monotonic()
            sock.sendall(head + b"Content-Length: 10\r\n\r\n{")
            assert read_all(sock).startswith(b"HTTP/1.1 408 ")
            assert time.monotonic() - began < 5
    assert api.operator.planned == []
    with api_serving(server, tokens) as api:
        assert api.post("callbacks/unlock", b"{" + b" " * 65_000 + b"}").status == 200


def read_all(sock: socket.socket) -> bytes:
    """Until the server closes the connection."""
    received = b""
    try:
        while part := sock.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


UNAVAILABLE = StoreUnavailable("Redis at x cannot be reached: refused", kind="connect")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RefusedError("the lock is healthy: it expires in 12 s; force it"), 403, "refused"),
        (PreconditionChanged("the lock is another one now: look again"), 409, "changed"),
        (UNAVAILABLE, 503, "store_unavailable"),
        (StoreMisuse("Redis at x: a key holds another type", kind="wrongtype"), 500, "store_misuse"),
        (CbqError("100 are paused already"), 409, "not_done"),
    ],
)
@pytest.mark.parametrize("when", ["fail_plan", "fail"])
def test_how_operations_end_badly(
    server: Server, tokens: Path, error: Exception, status: int, code: str, when: str
) -> None:
    operator = NotingOperator(**{when: error})  # type: ignore[arg-type]
    with api_serving(server, tokens, operator) as api:
        answer = api.post("callbacks/unlock")
        told = problem(answer)
    assert told == {
        "type": "about:blank",
        "title": {403: "Forbidden", 409: "Conflict", 503: "Service Unavailable", 500: "Internal Server Error"}[status],
        "status": status,
        "code": code,
        "detail": str(error),
    }
    assert answer.headers.get("Retry-After") == ("5" if status == 503 else None)


def test_a_fault_of_ours_says_nothing_about_itself(server: Server, tokens: Path) -> None:
    with api_serving(server, tokens, NotingOperator(fail=RuntimeError("password=hunter2"))) as api:
        answer = api.post("callbacks/unlock", Idempotency_Key="k")
        assert problem(answer)["code"] == "failed"
        assert b"hunter2" not in answer.body
        assert problem(api.post("callbacks/unlock", Idempotency_Key="k"))["code"] == "key_in_use"


def test_the_same_request_again_gets_the_same_answer_after_a_restart_too(each_server: Server, tokens: Path) -> None:
    operator = NotingOperator()
    with api_serving(each_server, tokens, operator) as api:
        first = api.post("callbacks/recover", {"reason": "why", "older_than": 5}, Idempotency_Key="one")
        assert "Idempotent-Replayed" not in first.headers
    with api_serving(each_server, tokens, operator) as api:
        again = api.post("callbacks/recover", b'{ "older_than": 5.0,"reason":"why"}', Idempotency_Key="one")
        assert (again.status, again.body, again.headers["Idempotent-Replayed"]) == (200, first.body, "true")
        assert len(operator.executed) == 1
        for path, body in (
            ("callbacks/recover", {"reason": "why"}),
            ("callbacks/recover", {"reason": "why", "older_than": 5, "dry_run": True}),
            ("callbacks/pause", {}),
        ):
            assert problem(api.post(path, body, Idempotency_Key="one"))["code"] == "key_reused"
        assert len(operator.executed) == 1
        # The key is one's own, and the queue's.
        assert api.post("callbacks/pause", token=OTHER, Idempotency_Key="one").status == 200
        assert api.post("second/pause", Idempotency_Key="one").status == 200
        assert len(operator.executed) == 3
    kept = [key for key in each_server.client.scan_iter() if key.startswith(b"one:answers:")]
    assert len(kept) == 2
    assert all(86_000_000 < each_server.client.pttl(key) <= 86_400_000 for key in [*kept, b"one:answers"])
    assert not any(word in key for word in (TOKEN.encode(), b"alice") for key in kept)


def test_an_answer_that_is_kept_needs_no_new_plan(server: Server, tokens: Path) -> None:
    """What was done may well be impossible by now: such as to undo the same reset again."""
    operator = NotingOperator()
    with api_serving(server, tokens, operator) as api:
        first = api.post("callbacks/undo", Idempotency_Key="k")
        operator.fail_plan = RefusedError("no such reset")
        assert api.post("callbacks/undo", Idempotency_Key="k").body == first.body
        assert len(operator.planned) == 1


@pytest.mark.parametrize("error", [RefusedError("no"), PreconditionChanged("another one"), CbqError("too many")])
def test_a_refusal_is_an_answer_too(server: Server, tokens: Path, error: Exception) -> None:
    operator = NotingOperator(fail=error)
    with api_serving(server, tokens, operator) as api:
        first = api.post("callbacks/unlock", Idempotency_Key="k")
        operator.fail = None
        again = api.post("callbacks/unlock", Idempotency_Key="k")
        assert (again.status, problem(again)) == (first.status, problem(first))
    assert len(operator.executed) == 1


def test_what_is_not_known_to_have_ended_is_not_done_again(server: Server, tokens: Path) -> None:
    operator = NotingOperator(fail=UNAVAILABLE)
    with api_serving(server, tokens, operator) as api:
        assert api.post("callbacks/unlock", Idempotency_Key="k").status == 503
        operator.fail = None
        assert problem(api.post("callbacks/unlock", Idempotency_Key="k"))["code"] == "key_in_use"
        assert len(operator.executed) == 1
        # What failed before anything was tried leaves nothing.
        operator.fail_plan = UNAVAILABLE
        assert api.post("callbacks/unlock", Idempotency_Key="other").status == 503
        operator.fail_plan = None
        assert api.post("callbacks/unlock", Idempotency_Key="other").status == 200


def test_of_many_at_once_with_one_key_one_is_carried_out(server: Server, tokens: Path) -> None:
    """All have looked for an answer, and found none, before the first has made its plan."""
    operator = NotingOperator()
    together = asyncio.Barrier(8)
    plan = operator.plan

    async def plan_together(operation: Operation) -> Any:
        await together.wait()
        return await plan(operation)

    async def wait_for_the_others() -> None:
        # Seven were refused by the time this one ends.
        while len(refused) < 7:
            await asyncio.sleep(0.005)

    refused: list[int] = []
    operator.plan = plan_together  # type: ignore[method-assign]
    operator.during = wait_for_the_others
    with api_serving(server, tokens, operator) as api, ThreadPoolExecutor(8) as pool:

        def ask(_: int) -> str:
            answer = api.post("callbacks/recover", Idempotency_Key="k")
            if answer.status != 200:
                refused.append(answer.status)
                return str(problem(answer)["code"])
            return "done"

        answers = list(pool.map(ask, range(8)))
    assert sorted(answers) == ["done", *["key_in_use"] * 7]
    assert len(operator.executed) == 1


def test_answers_are_kept_up_to_a_number(server: Server, tokens: Path) -> None:
    with api_serving(server, tokens, most=2) as api:
        assert [api.post("callbacks/pause", Idempotency_Key=key).status for key in "abc"] == [200, 200, 429]
        assert api.post("callbacks/pause").status == 200
        oldest: Any = server.client.zrange("one:answers", 0, 0)[0]
        server.client.zadd("one:answers", {oldest: time.time() * 1000 - 1})  # its time is over
        server.client.delete(b"one:answers:" + oldest)
        assert api.post("callbacks/pause", Idempotency_Key="c").status == 200
        assert api.post("callbacks/pause", Idempotency_Key="d").status == 429


def test_answers_go_by_themselves(server: Server, tokens: Path) -> None:
    with api_serving(server, tokens, keep=0.05) as api:
        assert api.post("callbacks/pause", Idempotency_Key="a").status == 200
        deadline = time.monotonic() + 10
        while list(server.client.scan_iter()):
            assert time.monotonic() < deadline


@pytest.mark.parametrize("key", ["", "x" * 201, "\xff"])
def test_a_bad_key_is_refused(server: Server, tokens: Path, key: str) -> None:
    with api_serving(server, tokens) as api:
        assert problem(api.post("callbacks/pause", Idempotency_Key=key))["code"] == "invalid_key"
    assert api.operator.planned == []


def test_foreign_bytes_in_the_place_of_an_answer_are_nobodys_answer(server: Server, tokens: Path) -> None:
    with api_serving(server, tokens) as api:
        api.post("callbacks/pause", Idempotency_Key="k")
        (place,) = [key for key in server.client.scan_iter() if key.startswith(b"one:answers:")]
        server.client.set(place, b"\xff{")
        assert problem(api.post("callbacks/pause", Idempotency_Key="k"))["code"] == "key_reused"


def test_without_a_store_it_is_tried_again_later(tokens: Path) -> None:
    with Server("valkey") as own, api_serving(own, tokens) as api:
        own.kill()
        answer = api.post("callbacks/pause", Idempotency_Key="k")
        assert (problem(answer)["code"], answer.headers["Retry-After"]) == ("store_unavailable", "5")
        assert api.operator.executed == []


@pytest.mark.parametrize("path", ["/metrics", "/api/v1/queues/callbacks/unlock", "/nothing", "/-/healthy/no"])
@pytest.mark.parametrize("value", [b"\x80", b"the-unexpected"])
def test_an_unknown_expectation_is_no_fault_of_ours(
    server: Server, tokens: Path, path: str, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with api_serving(server, tokens) as api, api.served.connect() as sock:
        sock.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\nExpect: %s\r\n\r\n" % (path.encode(), value))
        assert sock.recv(65536).split()[1] == b"417"
    assert caplog.records == []


# --- anything at all -----------------------------------------------------------------------------

_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
_MEMBERS = st.sampled_from(
    ["dry_run", "reason", "force", "older_than", "only_known_stuck", "trash_id", "destination", "x"]
)
_BODIES = st.one_of(
    st.sampled_from([b"{}", b'{"dry_run": true}', b'{"reason": "why"}']),
    st.binary(max_size=200),
    _VALUES.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
    st.dictionaries(_MEMBERS, _VALUES, max_size=4).map(lambda value: json.dumps(value).encode()),
)
_LINE = st.binary(max_size=60).map(lambda value: value.replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b""))
_AUTHORIZATION = st.one_of(
    st.sampled_from([f"Bearer {TOKEN}".encode(), f"bearer   {OTHER} ".encode()]),
    st.sampled_from([b"Bearer", b"Bearer ", b"Basic YTpi", f"Token {TOKEN}".encode(), f"Bearer {TOKEN}x".encode()]),
    st.sampled_from([TOKEN.encode(), f"Bearer {TOKEN[:-1]}".encode(), f"Bearer {TOKEN},{TOKEN}".encode()]),
    _LINE,
)
_RIGHT = [(b"Authorization", f"Bearer {TOKEN}".encode()), (b"Content-Type", b"application/json")]
_MORE = st.lists(
    st.one_of(
        st.tuples(st.just(b"Authorization"), _AUTHORIZATION),
        st.tuples(st.just(b"Content-Type"), st.just(b"application/json") | _LINE),
        st.tuples(st.just(b"Idempotency-Key"), st.sampled_from([b"a", b"b"]) | _LINE),
        st.tuples(st.sampled_from([b"Content-Encoding", b"Expect", b"Origin", b"Cookie", b"X-Forwarded-For"]), _LINE),
    ),
    max_size=4,
)
_HEADERS = st.tuples(st.sampled_from([_RIGHT, _RIGHT[:1], _RIGHT[1:], []]), _MORE).map(lambda two: [*two[0], *two[1]])


def test_no_bytes_cause_a_fault_or_get_past_the_token(
    server: Server, tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("ERROR")
    with api_serving(server, tokens) as api:

        @settings(max_examples=300, suppress_health_check=list(HealthCheck))
        @given(st.sampled_from(sorted(ACTIONS)), _HEADERS, _BODIES)
        def check(operation: str, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
            before = len(api.operator.planned)
            status = raw(api, operation, headers, body)
            assert status in (None, 200, 400, 401, 409, 415, 417, 422), status
            sent = [value.split() for name, value in headers if name == b"Authorization"]
            may = [
                words[0].lower() == b"bearer" and words[1] in (TOKEN.encode(), OTHER.encode())
                for words in sent
                if len(words) == 2
            ]
            if len(sent) != 1 or may != [True]:
                assert len(api.operator.planned) == before

        check()
        assert api.operator.planned, "some got through"
    assert caplog.records == []


def raw(api: ApiServing, operation: str, headers: list[tuple[bytes, bytes]], body: bytes) -> int | None:
    """The status; None where the server just closed the connection."""
    lines = [
        f"POST /api/v1/queues/callbacks/{operation} HTTP/1.1".encode(),
        b"Host: x",
        b"Connection: close",
        b"Content-Length: %d" % len(body),
        *(name + b": " + value for name, value in headers),
    ]
    with api.served.connect() as sock:
        try:
            sock.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        except OSError:
            return None
        received = read_all(sock)
    assert b"Traceback" not in received
    # An interim answer (100 Continue) may come first.
    finals = [part for part in received.split(b"HTTP/1.")[1:] if not part[2:5].startswith(b"1")]
    return int(finals[0][2:5]) if finals else None
