"""Where output goes: no terminal, no colours, no UTF-8, no Unix, and nobody who reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cbq_exporter.cli import reference
from tests.cli.conftest import Cli, Corpse

# What a Python on Windows does not have. It is no Windows: its consoles and its paths are not tried.
WINDOWS = """
import os, signal, sys
for name in ("fcntl", "pwd", "grp", "termios", "tty", "resource", "uvloop"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGCHLD"):
    delattr(signal, name)
for name in ("geteuid", "getuid", "fork"):
    delattr(os, name)
sys.argv[0] = "cbq-exporter"
from cbq_exporter.cli.main import main
main()
"""


def run(cli: Cli, *words: str, code: str | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = cli.command(*words)
    if code is not None:
        command = [sys.executable, "-c", code, *command[3:]]
    return subprocess.run(command, env=cli.environment | environment, capture_output=True, timeout=60)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_a_locale_cannot_show_is_escaped(cli: Cli, encoding: str) -> None:
    cli.bury([Corpse('{"url": "http://example.com/北京…"}'.encode(), destination="北京.example")])
    for words in (("dead", "list"), ("status",), ("audit",), ("serve", "--help")):
        done = run(cli, *words, PYTHONIOENCODING=encoding)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), words
        if encoding != "ascii":  # which is taken for a locale that nobody has set, and written as UTF-8
            done.stdout.decode(encoding)
            assert words != ("dead", "list") or b"\\u5317" in done.stdout


def test_a_locale_without_utf8_reads_arguments_all_the_same(cli: Cli) -> None:
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run(cli, "recover", "--all", "--yes", "--why", "später", **locale)
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_colours_are_for_terminals_that_want_them(cli: Cli, tmp_path: Path) -> None:
    cli.bury([Corpse(b"{}")])
    assert b"\x1b[" not in run(cli, "status").stdout
    for variables, coloured in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        log = tmp_path / "typescript"
        environment = {"TERM": "xterm", **variables}
        command = ["script", "-qec", " ".join(cli.command("status")), str(log)]
        subprocess.run(command, env=cli.environment | environment, stdout=subprocess.DEVNULL, check=True, timeout=60)
        output = log.read_bytes().partition(b"\n")[2]
        assert (b"\x1b[" in output) == coloured, variables


@pytest.mark.parametrize("words", [["explain"], ["dead", "list"], ["explain", "CbqStuckItems"]])
def test_a_reader_that_goes_away_is_no_error(cli: Cli, words: list[str]) -> None:
    cli.bury([Corpse(b"%d" % number) for number in range(300)])
    more = ["-c", str(cli.config_file)] if words[0] != "explain" else []
    command = [sys.executable, "-m", "cbq_exporter", *words, *more]
    process = subprocess.Popen(command, env=cli.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (141, b"")


@pytest.mark.parametrize("context", list(reference.contexts()), ids=lambda one: one.command_path)
def test_every_command_can_be_imported_without_unix(context: object) -> None:
    words = str(getattr(context, "command_path", "")).split()[1:]
    done = subprocess.run([sys.executable, "-c", WINDOWS, *words, "--help"], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "words", [["status"], ["dead", "list"], ["audit"], ["doctor"], ["check-config"], ["recover", "--all", "--yes"]]
)
def test_commands_work_with_a_redis_elsewhere_without_unix(cli: Cli, words: list[str]) -> None:
    done = run(cli, *words, code=WINDOWS)
    assert done.returncode in (0, 1), done.stderr
    assert b"unexpected" not in done.stderr
    assert b"Traceback" not in done.stderr


def test_the_embedded_store_and_the_daemon_say_that_they_need_unix(cli: Cli, tmp_path: Path) -> None:
    cli.config_file.write_text(f"data_dir: {tmp_path}/data\n")
    done = run(cli, "status", code=WINDOWS)
    assert (done.returncode, done.stderr.count(b"\n")) == (4, 1), done.stderr
    assert b"set redis.url" in done.stderr
    done = run(cli, "serve", code=WINDOWS)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1), done.stderr
