"""``check-url``: the same verdicts as sending, each with its reason. No name is looked up here that could leave."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cbq_exporter.cli.main import app
from cbq_exporter.config import load
from cbq_exporter.delivery.explaining import Address, Explanation, explain

CONFIG = """
redis: {url: 'redis://localhost:6379/1'}
queues:
  - name: callbacks
    delivery: {egress: {allow: [10.20.0.0/16], ports: [80, 443, 8443]}, ca_file: ./ours.pem}
  - {name: other, prefix: o, delivery: {proxy: {url: "http://proxy.example:3128"}}}
destinations:
  - {name: inner, match: "10.20.*", paused: true}
  - {name: partner, match: "*.example.com"}
"""


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., Result]:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)

    def run(url: str, *words: str, queue: str = "callbacks") -> Result:
        return CliRunner().invoke(
            app, ["check-url", url, "-c", str(file), "-q", queue, *words], env={"CBQ_REDIS_URL": None}
        )

    return run


def test_what_may_be_sent_to(check: Callable[..., Result]) -> None:
    result = check("HTTP://10.20.1/x")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "url          http://10.20.0.1/x",
        "host         10.20.0.1, port 80",
        "destination  inner (the entry that matches 10.20.*), paused in the configuration",
        "tls          no",
        "proxy        none",
        "",
        "address    verdict",
        "10.20.0.1  allowed",
        "",
        "it may be sent to",
    ]


@pytest.mark.parametrize(
    ("url", "why", "setting"),
    [
        ("http://127.1/", "127.0.0.1 is a loopback address", "delivery.egress.allow"),
        ("https://[fd00::1]/", "fd00::1 is a private address", "delivery.egress.allow"),
        ("http://localhost/", "is a loopback address", "delivery.egress.allow"),
        ("http://10.20.0.1:22/", "port 22 is none of 80, 443, 8443", "delivery.egress.ports"),
        ("ftp://example.com/", "the URL's scheme is 'ftp'", None),
        ("http://user:pw@example.com/", "the URL carries credentials", None),
        ("http://[::1", "the URL cannot be parsed", None),
        ("", "the URL is empty", None),
    ],
)
def test_what_is_refused(check: Callable[..., Result], url: str, why: str, setting: str | None) -> None:
    result = check(url)
    assert result.exit_code == 3
    assert result.stdout.splitlines()[-1].startswith("refused: ")
    assert why in result.stdout.splitlines()[-1]
    told = json.loads(check(url, "-o", "json").stdout)
    assert why in told["refused"]
    assert told["setting"] == setting
    assert result.stdout.endswith(f"add it to {setting}\n") is (setting is not None)


def test_behind_a_proxy_names_are_not_looked_up(check: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a name was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    result = check("https://hooks.example.com/x", queue="other")
    assert result.exit_code == 0
    assert "proxy        http://proxy.example:3128" in result.stdout
    assert "destination  partner (the entry that matches *.example.com)" in result.stdout
    assert result.stdout.endswith("what its name leads to, the proxy judges\n")
    for url in ("http://10.0.0.1/", "http://localhost/", "http://metadata.google.internal/"):
        refused = check(url, queue="other")
        assert refused.exit_code == 3
        assert ("delivery.egress.allow" in refused.stdout) is (url == "http://10.0.0.1/")  # names cannot be allowed


def test_names(tmp_path: Path) -> None:
    """Each address is judged by itself; one that is good is enough, as it is for sending."""
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    config = load(file, {}).config

    def of(*addresses: str) -> Explanation:
        def look_up(host: str, port: int) -> list[str]:
            assert (host, port) == ("hooks.example.com", 443)
            if not addresses:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return list(addresses)

        return explain("https://hooks.example.com", config.queues[0], config.destinations, look_up)

    mixed = of("10.0.0.1", "8.8.8.8")
    assert mixed.refused is None
    assert mixed.addresses == (Address("10.0.0.1", "10.0.0.1 is a private address"), Address("8.8.8.8", None))
    assert (mixed.tls, mixed.ca_file) == (True, "ours.pem")
    assert of("10.0.0.1", "::1").refused == "10.0.0.1 is a private address"
    assert (of().unresolved, of().refused) == ("Name or service not known", None)


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/delivery.md").read_text()
    found = re.search(r"^\$ cbq-exporter (check-url .*)\n((?:.*\n)*?)```", page, re.MULTILINE)
    assert found is not None
    file = tmp_path / "config.yaml"
    file.write_text("queues:\n  - {name: callbacks}\n")
    result = CliRunner().invoke(app, [*found[1].split(), "-c", str(file)], env={"CBQ_REDIS_URL": None})
    assert (result.exit_code, result.stdout) == (3, found[2])
