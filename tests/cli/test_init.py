"""``init`` writes a configuration that works, from what it finds and what it is told."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cbq_exporter.cli import init as command
from cbq_exporter.cli.main import app
from cbq_exporter.config import load, schema
from tests.support.servers import Server
from tests.support.terminal import Terminal

ROOT = Path(__file__).parents[2]
SECRET = "redis://:pa55word@127.0.0.1:6379/1"


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, int]]:
    """A Redis that says one thing."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(100)
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Redis answers on this machine, whatever runs on it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        monkeypatch.setattr(command, "USUAL_REDIS", probe.getsockname())


def init(file: Path, *words: str, redis_url: str | None = None) -> Result:
    return CliRunner().invoke(app, ["init", str(file), *words], env={"CBQ_REDIS_URL": redis_url})


@pytest.mark.usefixtures("nowhere")
def test_without_a_redis_it_is_the_embedded_store_that_sends(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    result = init(file, "--yes")
    assert (result.exit_code, result.stdout) == (0, f"{file}\n")
    assert result.stderr.startswith("no Redis answers at 127.0.0.1:")
    config = load(file, {}).config
    assert config.redis.url is None
    assert (config.queues[0].prefix, config.queues[0].mode) == ("callback_queue", "dispatch")
    assert file.read_text().count("\n# ") + file.read_text().count("  # ") > 100  # it is explained
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_redis_on_this_machine_is_found_and_its_queue_only_observed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    with answering(b"+PONG\r\n") as address:
        monkeypatch.setattr(command, "USUAL_REDIS", address)
        result = init(file, "--yes", "--prefix", "jobs")
    assert result.exit_code == 0
    config = load(file, {}).config
    assert config.redis.url is not None
    assert config.redis.url.get_secret_value() == f"redis://127.0.0.1:{address[1]}/0"
    assert (config.queues[0].prefix, config.queues[0].mode) == ("jobs", "observe")
    assert config.queues[0].delivery.egress.allow == ()
    with answering(b"-NOAUTH Authentication required.\r\n") as address:
        monkeypatch.setattr(command, "USUAL_REDIS", address)
        assert "wants a password" in init(tmp_path / "other.yaml", "--yes").stderr


def test_a_password_stays_out_of_the_file(tmp_path: Path) -> None:
    for number, result in enumerate(
        [
            init(tmp_path / "0.yaml", "--yes", redis_url=SECRET),
            init(tmp_path / "1.yaml", "--yes", "--redis-url", SECRET),
        ]
    ):
        assert result.exit_code == 0
        assert "set CBQ_REDIS_URL where the daemon runs" in result.stderr
        assert "pa55word" not in (tmp_path / f"{number}.yaml").read_text() + result.output


def test_it_writes_over_nothing_unless_it_is_told_to(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("mine")
    result = init(file, "--yes", "--redis-url", "embedded")
    assert (result.exit_code, result.stderr.splitlines()) == (
        3,
        [f"cbq-exporter: {file} is there already: name another file, or add --force"],
    )
    assert file.read_text() == "mine"
    assert init(file, "--yes", "--redis-url", "embedded", "--force").exit_code == 0
    load(file, {})


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--redis-url", "http://x"], 2, "the URL of Redis: must be a URL such as redis://"),
        (["--redis-url", "embedded", "--prefix", "a\nb"], 2, "queues.prefix: found"),
        (["--redis-url", "embedded", "--mode", "fly"], 2, "is not one of"),
    ],
)
def test_what_cannot_stand_in_a_configuration_is_one_line(
    words: list[str], code: int, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    result = init(file, "--yes", *words)
    assert (result.exit_code, file.exists()) == (code, False)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("cbq-exporter: ")
    assert says in last


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    result = init(tmp_path / "none" / "config.yaml", "--yes", "--redis-url", "embedded")
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1].endswith("config.yaml cannot be written: No such file or directory")


def test_on_a_terminal_it_asks(server: Server, tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "init")
    terminal.wait_for("Where is Redis?")
    terminal.type(f"{server.url}\n")
    terminal.wait_for("begin with?")
    terminal.type("\n")
    terminal.wait_for("How far may the daemon go?")
    terminal.type("\n")
    assert terminal.end() == 0, terminal.shown
    config = load(tmp_path / "config.yaml", {}).config
    assert config.redis.url is not None
    assert config.redis.url.get_secret_value() == server.url
    assert config.queues[0].mode == "observe"


@pytest.mark.parametrize("how", ["\x03", "\x04"], ids=["ctrl-c", "ctrl-d"])
def test_whoever_leaves_at_a_prompt_changes_nothing(how: str, tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "init")
    terminal.wait_for("Where is Redis?")
    terminal.wait_until_it_reads()
    terminal.type(how)
    assert terminal.end() == 3
    assert terminal.shown.splitlines()[-1] == "cbq-exporter: aborted: nothing was changed"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["reset"], ["recover", "--all"]], ids=["reset", "recover"])
def test_ctrl_c_at_the_question_of_an_operation_is_a_no(words: list[str], server: Server, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"redis: {{url: '{server.url}'}}\nqueues: [{{name: callbacks, prefix: q}}]\n")
    server.client.rpush("q:processing", b'{"url": "http://example.com/"}')
    terminal = Terminal(tmp_path, *words)
    terminal.wait_for("to reset it" if words == ["reset"] else "[y/N]")
    terminal.wait_until_it_reads()
    terminal.type("\x03")
    assert terminal.end() == 3, terminal.shown
    assert terminal.shown.splitlines()[-1] == "cbq-exporter: aborted: nothing was changed"
    assert server.client.llen("q:processing") == 1


def test_without_a_terminal_it_says_how_to_go_on(tmp_path: Path) -> None:
    result = init(tmp_path / "config.yaml")
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1] == (
        "cbq-exporter: there is no terminal to ask on; say it with options, or add --yes"
    )


@pytest.mark.usefixtures("nowhere")
def test_an_editor_finds_the_schema_as_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    init(file, "--yes")
    text = file.read_text()
    modeline = re.compile(r"^#\s+yaml-language-server\s*:\s*\$schema=(\S+)", re.MULTILINE)  # as editors look for it
    assert not modeline.search(text), "it would name what is not there"
    command, target, line = re.findall(r"^#   cbq-exporter (.*) > (.*)\n#   (.*)", text, re.MULTILINE)[0]
    printed = CliRunner().invoke(app, command.split())
    assert (printed.exit_code, printed.stdout) == (0, (ROOT / schema.PATH).read_text())
    found = modeline.match(line)
    assert found is not None
    assert found[1] == target
