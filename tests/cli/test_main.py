"""How the program ends, and how quickly it begins."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cbq_exporter import __version__
from cbq_exporter.cli.main import app
from cbq_exporter.revision import revision
from tests.cli.conftest import Cli, item

HEAVY = (
    "redis",
    "pydantic",
    "aiohttp",
    "pycurl",
    "rich",
    "yaml",
    "asyncio",
    "apscheduler",
    "prometheus_client",
)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["status", "--help"], ["dead", "retry", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    check = (
        "import sys, atexit\n"
        f"atexit.register(lambda: sys.stderr.write(','.join(m for m in {HEAVY} if m in sys.modules)))\n"
        "from cbq_exporter.cli.main import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", check, *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"], prog_name="cbq-exporter")
    assert (result.exit_code, result.stdout) == (0, f"cbq-exporter, version {__version__} (revision {revision()})\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["bogus"], "No such command 'bogus' (see cbq-exporter --help)"),
        (["statsu"], "No such command 'statsu'; did you mean status? (see cbq-exporter --help)"),
        (["purge"], "No such command 'purge'; did you mean dead purge? (see cbq-exporter --help)"),
        (["status", "--bogus"], "No such option '--bogus' (see cbq-exporter status --help)"),
        (["status", "-o", "xml"], "Invalid value for '-o' / '--output': 'xml' is not one of 'table', 'json'"),
        (["dead", "list", "--older-than", "1y"], "Invalid value for '--older-than': '1y' is not a duration such as"),
        (["status", "-c", "/no/such/file"], "/no/such/file"),
    ],
)
def test_a_wrong_command_line_is_one_line(words: list[str], line: str) -> None:
    result = CliRunner().invoke(app, words, prog_name="cbq-exporter")
    assert result.exit_code == (1 if "-c" in words else 2)
    assert result.stdout == ""
    assert result.stderr.startswith(f"cbq-exporter: {line}")
    assert result.stderr.count("\n") == 1


def test_without_a_command_it_shows_its_help() -> None:
    result = CliRunner().invoke(app, [], prog_name="cbq-exporter")
    assert (result.exit_code, result.stdout) == (2, "")
    for command in ("serve", "status", "enqueue", "dead", "check-config", "demo"):
        assert re.search(rf"^  {command}  +[A-Z]", result.stderr, re.MULTILINE)


def test_a_traceback_only_where_it_is_asked_for(cli: Cli, tmp_path: Path) -> None:
    cli.config_file.write_text(f"redis: {{url: 'unix://{tmp_path}/none.sock'}}\nqueues:\n  - {{name: callbacks}}\n")
    done = subprocess.run(cli.command("status"), capture_output=True, text=True, env=cli.environment)
    assert "Traceback" not in done.stderr
    for words in (("status", "--debug"), ("--debug", "status")):
        done = subprocess.run(cli.command(*words), capture_output=True, text=True, env=cli.environment)
        assert "StoreUnavailable: Redis at unix://" in done.stderr
        assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("sent", "code", "lines"), [(signal.SIGINT, 130, [b"cbq-exporter: interrupted"]), (signal.SIGTERM, 143, [])]
)
def test_an_interruption_says_what_is_enqueued(cli: Cli, sent: int, code: int, lines: list[bytes]) -> None:
    process = cli.start("enqueue")
    assert process.stdin is not None
    with process:
        process.stdin.write(item(1) + b"\n")
        process.stdin.flush()
        cli.wait_for_pending(1)  # a callback does not wait for others to come
        process.stdin.write(b"\n" + item(2) + b"\n")
        process.stdin.flush()
        cli.wait_for_pending(2)  # so it has the answer for the first; perhaps not yet for this one
        process.send_signal(sent)
        assert process.stderr is not None
        enqueued, *others = process.stderr.read().splitlines()
        assert enqueued in (
            b"1 callback enqueued for certain before the interruption, up to line 1; line 3 may or may not have been",
            b"2 callbacks enqueued for certain before the interruption, up to line 3",
        )
        assert others == lines
        assert process.wait(20) == code


def test_a_closed_standard_output_is_quiet(cli: Cli) -> None:
    process = cli.start("status", "--watch", "--interval", "0.1", "-o", "json")
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 141
