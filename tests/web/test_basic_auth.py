"""Users and passwords of a Prometheus web config, over real HTTP with real bcrypt."""

from __future__ import annotations

import base64
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bcrypt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.daemons import until
from tests.support.servers import Server
from tests.web.api_serving import TOKEN, api_serving, problem, token_file
from tests.web.serving import Answer, FakeBackend, Serving, serving

LONG = "x" * 72


def hashed(password: str, cost: int = 4) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()


def web_yml(folder: Path, cost: int = 4, more: str = "", **passwords: str) -> Path:
    path = folder / "web.yml"
    lines = [f"  {name}: {hashed(password, cost)}\n" for name, password in passwords.items()]
    path.write_text("".join(["basic_auth_users:\n", *lines, more]))
    return path


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def scrape(served: Serving, user: str, password: str) -> Answer:
    return served.ask("/metrics", Authorization=basic(user, password))


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What passwords were compared with, each a hash that was made."""
    made: list[bytes] = []
    real = bcrypt.checkpw

    def noting(password: bytes, against: bytes) -> bool:
        made.append(against)
        return real(password, against)

    monkeypatch.setattr(bcrypt, "checkpw", noting)
    return made


def test_who_is_let_in(tmp_path: Path) -> None:
    path = web_yml(tmp_path, alice="wonder:land", bob="größe", carol=LONG)
    right = [
        basic("alice", "wonder:land"),
        basic("alice", "wonder:land").replace("Basic", "bAsIc"),
        basic("bob", "größe"),
        basic("carol", LONG),
        basic("carol", LONG + "what bcrypt passes over"),
    ]
    wrong = [
        basic("alice", "wonder"),
        basic("alice", ""),
        basic("alice", "wonder:land\0"),
        basic("Alice", "wonder:land"),
        basic("bob", "wonder:land"),
        basic("nobody", "wonder:land"),
        basic("", ""),
        basic("carol", LONG[1:]),
        basic("alice", "x" * 5000),
        "Basic",
        "Basic YWxpY2U=",  # no colon
        "Basic !!!!",
        "Basic /zpw",  # no UTF-8
        basic("alice", "wonder:land") + "=",
        basic("alice", "wonder:land").replace("Basic ", "Basic"),
        f"Bearer {TOKEN}",
        "",
    ]
    with serving(FakeBackend(), config_file=path) as served:
        assert {served.ask("/metrics", Authorization=one).status for one in right} == {200}
        refused = [served.ask("/metrics", Authorization=one) for one in wrong] + [served.ask("/metrics")]
    assert {answer.status for answer in refused} == {401}
    assert {answer.headers["WWW-Authenticate"] for answer in refused} == {'Basic realm="cbq-exporter", charset="UTF-8"'}
    assert {answer.body for answer in refused} == {b"A user and a password are needed.\n"}
    assert {answer.headers["X-Content-Type-Options"] for answer in refused} == {"nosniff"}


def test_two_authorizations_are_refused_even_where_both_are_right(tmp_path: Path) -> None:
    header = f"Authorization: {basic('alice', 'a')}\r\n"
    with serving(FakeBackend(), config_file=web_yml(tmp_path, alice="a")) as served:
        for headers, expected in ((header, b"200"), (header * 2, b"401")):
            with served.connect() as sock:
                sock.sendall(f"GET /-/healthy HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
                assert sock.recv(65536).split()[1] == expected


def test_no_bytes_of_an_authorization_get_past_the_password(tmp_path: Path) -> None:
    words = st.sampled_from([b"Basic ", b"basic", b"Bearer ", b"YWxpY2U6", b"alice:", b"=", b" ", b",", b"\t", b":"])
    anything = st.binary(max_size=30).map(lambda raw: raw.translate(None, b"\r\n\0"))
    with serving(FakeBackend(), config_file=web_yml(tmp_path, alice="a long password")) as served:

        @settings(max_examples=200)
        @given(st.lists(words | anything | anything.map(base64.b64encode), max_size=5).map(b"".join))
        def attempt(value: bytes) -> None:
            with served.connect() as sock:
                head = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: %b\r\n\r\n"
                sock.sendall(head % value)
                assert sock.recv(65536).split()[1] in (b"401", b"400")

        attempt()


def test_every_path_is_protected_and_a_change_still_needs_a_token(server: Server, tmp_path: Path) -> None:
    alice, token = basic("alice", "a"), f"Bearer {TOKEN}"
    paths = ["/", "/metrics", "/-/healthy", "/-/ready", "/api/v1/status", "/api/v1/openapi.json", "/nothing", "/api/no"]
    with api_serving(server, token_file(tmp_path), config_file=web_yml(tmp_path, alice="a")) as api:
        for path in paths:
            for method in ("GET", "HEAD", "POST", "OPTIONS"):
                assert api.served.ask(path, method).status == 401
                assert api.served.ask(path, method, Authorization=token).status == 401
                assert api.served.ask(path, method, Authorization=alice).status in (200, 404, 405)
        assert problem(api.served.ask("/api/v1/status"))["code"] == "unauthorized"
        for authorization, expected in ((alice, 401), (token, 200), ("", 401)):
            answer = api.post("callbacks/unlock", token=None, Authorization=authorization)
            assert answer.status == expected
            assert expected == 200 or answer.headers["WWW-Authenticate"].startswith("Bearer ")
        assert api.served.ask("/api/v1/queues/callbacks/unlock", Authorization=token).status == 401
        assert [actor.name for _, actor, _, _ in api.operator.executed] == ["alice"]


def test_a_changed_file_counts_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = web_yml(tmp_path, alice="a", bob="b")
    with serving(FakeBackend(), config_file=path) as served, caplog.at_level(logging.INFO):

        def let_in() -> list[int]:
            return [scrape(served, *who).status for who in (("alice", "a"), ("alice", "new"), ("bob", "b"))]

        assert let_in() == [200, 401, 200]
        web_yml(tmp_path, alice="new")
        assert let_in() == [401, 200, 401]
        for broken in ("basic_auth_users: {alice: plain}", "", "basic_auth_users: {}"):
            path.write_text(broken)
            assert let_in() == [500, 500, 500]
        path.unlink()
        assert let_in() == [500, 500, 500]
        web_yml(tmp_path, alice="a")
        assert let_in() == [200, 401, 401]
    said = [record.getMessage() for record in caplog.records if "request" in record.getMessage()]
    assert len(said) == 5 - 1, said  # an empty file and one without users are the same trouble
    assert "must have a bcrypt hash" in said[0]
    assert "basic_auth_users are gone" in said[1]
    assert "No such file" in said[2]
    assert said[3].startswith("the web config can be used again")
    assert "plain" not in caplog.text


def test_without_users_everybody_is_let_in_until_there_are_some(tmp_path: Path) -> None:
    path = tmp_path / "web.yml"
    path.write_text("http_server_config: {headers: {X-XSS-Protection: '0'}}")
    with serving(FakeBackend(), config_file=path) as served:
        answer = served.ask("/-/healthy")
        assert (answer.status, answer.headers["X-XSS-Protection"]) == (200, "0")
        web_yml(tmp_path, alice="a")
        assert served.ask("/-/healthy").status == 401


def test_a_right_password_costs_one_hash_however_often_and_at_once(tmp_path: Path, hashes: list[bytes]) -> None:
    together = threading.Barrier(50)

    def at_once(served: Serving) -> int:
        together.wait(30)
        return scrape(served, "alice", "a").status

    with (
        serving(FakeBackend(), config_file=web_yml(tmp_path, cost=10, alice="a")) as served,
        ThreadPoolExecutor(50) as threads,
    ):
        assert set(threads.map(at_once, [served] * 50)) == {200}
        assert {scrape(served, "alice", "a").status for _ in range(5)} == {200}
        assert len(hashes) == 1
        assert scrape(served, "alice", "b").status == 401
        assert scrape(served, "alice", "b").status == 401
        assert len(hashes) == 3, "a wrong password is not remembered"
        web_yml(tmp_path, alice="b")
        assert scrape(served, "alice", "a").status == 401
        assert scrape(served, "alice", "b").status == 200


def test_an_unknown_user_costs_as_much_as_the_dearest_known_one(tmp_path: Path, hashes: list[bytes]) -> None:
    path = web_yml(tmp_path, alice="a")
    path.write_text(f"{path.read_text()}  bob: {hashed('b', 6)}\n")
    with serving(FakeBackend(), config_file=path) as served:
        assert scrape(served, "bob", "x").status == 401
        assert scrape(served, "nobody", "x").status == 401
    assert [against[4:6] for against in hashes] == [b"06", b"06"]


def test_a_flood_of_wrong_passwords_holds_up_nobody_who_is_known(tmp_path: Path, hashes: list[bytes]) -> None:
    over = threading.Event()

    def guess(served: Serving, number: int) -> set[int]:
        seen = set()
        while not over.is_set():
            answer = scrape(served, "alice", f"{number}-{time.monotonic()}")
            assert answer.status == 401 or answer.headers["Retry-After"] == "1"
            seen.add(answer.status)
            over.wait(0.05)
        return seen

    with (
        serving(FakeBackend(), config_file=web_yml(tmp_path, cost=10, alice="a")) as served,
        ThreadPoolExecutor(20) as threads,
    ):
        assert scrape(served, "alice", "a").status == 200
        flood = [threads.submit(guess, served, number) for number in range(20)]
        try:
            until(lambda: len(hashes) > 3, 60)
            begun = []  # hashes that were begun while a scrape was answered
            for _ in range(30):
                before = len(hashes)
                assert scrape(served, "alice", "a").status == 200
                begun.append(len(hashes) - before)
            assert sorted(begun)[15] <= 1, "four wait at any time, and scrapes wait for none of them"
        finally:
            over.set()
        assert set().union(*(one.result(30) for one in flood)) <= {401, 503}
        until(lambda: scrape(served, "alice", "other").status == 401, what="no place came back")


def test_requests_beyond_the_rate_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "web.yml"
    path.write_text("rate_limit: {interval: 1h, burst: 3}")
    with serving(FakeBackend(), config_file=path) as served:
        assert [served.ask("/-/healthy").status for _ in range(5)] == [200, 200, 200, 429, 429]
