"""Whose token a request carries, as the file is at that moment."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from cbq_exporter.web.auth import Tokens
from cbq_exporter.web.problems import Code, ProblemError
from tests.support.servers import Server
from tests.web.api_serving import OTHER, TOKEN, api_serving, problem, token_file
from tests.web.test_basic_auth import basic, web_yml

NAMELESS = "a-token-without-a-name"


def name(tokens: Tokens, *authorization: str) -> str:
    """The name, or the code and the challenge of the refusal."""
    try:
        return tokens.name_of(authorization)
    except ProblemError as error:
        return " ".join([str(error.code), error.headers.get("WWW-Authenticate", "")]).strip()


REFUSED = 'unauthorized Bearer realm="cbq-exporter"'
WRONG = f'{REFUSED}, error="invalid_token"'


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        ([f"Bearer {TOKEN}"], "alice"),
        ([f"bearer  {OTHER} "], "bob"),
        ([f"BEARER {NAMELESS}"], "api"),
        ([], REFUSED),
        ([""], REFUSED),
        (["Bearer"], REFUSED),
        (["Bearer "], REFUSED),
        ([TOKEN], REFUSED),
        ([f"Basic {TOKEN}"], REFUSED),
        ([f"Bearer {TOKEN} {TOKEN}"], REFUSED),
        ([f"Bearer {TOKEN}", f"Bearer {TOKEN}"], REFUSED),
        ([f"Bearer {TOKEN}", "Basic YTpi"], REFUSED),
        ([f"Bearer {TOKEN}\udcff"], REFUSED),
        ([f"Bearer alice {TOKEN}"], REFUSED),
        ([f"Bearer {TOKEN}x"], WRONG),
        ([f"Bearer {TOKEN[:-1]}"], WRONG),
        ([f"Bearer {TOKEN.upper()}"], WRONG),
        (["Bearer alice"], WRONG),
    ],
)
def test_a_token_has_a_name_or_is_refused(tmp_path: Path, authorization: list[str], expected: str) -> None:
    path = token_file(tmp_path)
    path.write_text(f"{path.read_text()}\n{NAMELESS}\n")
    assert name(Tokens(path), *authorization) == expected


def test_a_changed_file_counts_at_once(tmp_path: Path) -> None:
    path = token_file(tmp_path)
    tokens = Tokens(path)
    assert name(tokens, f"Bearer {TOKEN}") == "alice"
    times = path.stat()
    path.write_text(path.read_text().replace(TOKEN, TOKEN[::-1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # the same length, and no younger
    assert name(tokens, f"Bearer {TOKEN}") == WRONG
    assert name(tokens, f"Bearer {TOKEN[::-1]}") == "alice"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file or directory"),
        (b"", "there is no token in it"),
        (b"# only\n\n", "there is no token in it"),
        (b"alice short\n", ":1: a token must have 16 characters at least"),
        (b"\nalice one-token-of-alice more\n", ":2: must be a token, or a name and a token"),
        (b"alice one-token-\xc3\xa4f-alice\n", "has other characters than ASCII"),
        (b"alice one,token;of:alice\n", ":1: must be a token, or a name and a token"),
        (b"x" * 65_537, "has more than 65536 bytes"),
        ("folder", "Is a directory"),
        ("pipe", "is not a file"),
    ],
)
def test_a_file_that_cannot_be_used_lets_nobody_in_and_is_told_once(
    tmp_path: Path, content: bytes | str | None, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tokens"
    if content == "folder":
        path.mkdir()
    elif content == "pipe":
        os.mkfifo(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    tokens = Tokens(path)
    tokens.check()
    for _ in range(2):
        assert name(tokens, "Bearer short-or-otherwise") == Code.TOKEN_FILE_UNUSABLE
        assert name(tokens, "Bearer") == REFUSED
    (record,) = caplog.records
    assert (record.levelno, told in record.getMessage()) == (logging.ERROR, True)
    assert "token-of" not in record.getMessage()


def test_the_log_says_when_a_file_can_be_used_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tokens"
    tokens = Tokens(path)
    tokens.check()
    token_file(tmp_path)
    with caplog.at_level(logging.INFO):
        assert name(tokens, f"Bearer {TOKEN}") == "alice"
        assert name(tokens, f"Bearer {TOKEN}") == "alice"
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert TOKEN not in repr(vars(tokens)) + caplog.text


def test_nobody_is_told_anything_before_the_token(server: Server, tmp_path: Path) -> None:
    """The same answer whatever is asked: no queue, mode or body is looked at."""
    with api_serving(server, token_file(tmp_path)) as api:
        answers = [
            api.post(path, body, token=token)
            for token in (None, "a-wrong-token-altogether")
            for path in ("callbacks/unlock", "nothing/unlock", "watched/reset")
            for body in (b"{}", b"nonsense")
        ]
    assert {answer.status for answer in answers} == {401}
    assert len({answer.body for answer in answers}) == 2
    assert all(answer.headers["WWW-Authenticate"].startswith("Bearer ") for answer in answers)
    assert {problem(answer)["code"] for answer in answers} == {"unauthorized"}
    assert api.operator.planned == []


def test_the_log_tells_of_guesses_without_what_was_guessed(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with api_serving(server, token_file(tmp_path), config_file=web_yml(tmp_path, carol="a")) as api:
        api.post("callbacks/unlock", token=None)
        api.served.ask("/metrics")
        api.post("callbacks/unlock")
        assert caplog.messages == [], "a browser asks without a password first"
        api.post("callbacks/unlock", token="a-guess-at-the-token")
        api.served.ask("/metrics?x=%0a", Authorization=basic("carol", "a-guess"))
        asked = [(one.method, one.path, one.address) for one in caplog.records]  # type: ignore[attr-defined]
        here = "127.0.0.1"
        assert asked == [("POST", "/api/v1/queues/callbacks/unlock", here), ("GET", "/metrics", here)]
        assert "a-guess" not in "".join(str(vars(one)) for one in caplog.records)
        for number in range(200):
            api.post("callbacks/unlock", token=f"a-guess-at-the-token-{number}")
        assert len(caplog.records) == 100, "in a minute"


def test_two_authorizations_are_refused_even_where_both_are_right(server: Server, tmp_path: Path) -> None:
    head = f"POST /api/v1/queues/callbacks/unlock HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    rest = "Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    with api_serving(server, token_file(tmp_path)) as api:
        for more, expected in (("", b"200"), (f"Authorization: Bearer {TOKEN}\r\n", b"401")):
            with api.served.connect() as sock:
                sock.sendall((head + more + rest).encode())
                assert sock.recv(65536).split()[1] == expected
