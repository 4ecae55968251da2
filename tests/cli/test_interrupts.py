"""Ctrl-C at the moments that used to end in a traceback, in no message, or in an exit code that says nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.cli.conftest import Cli, item
from tests.support.terminal import Terminal

WARNED = """
import os, signal
from cbq_exporter.cli import interrupts, main
def interrupted_again(line, code, say=main._say):
    os.kill(os.getpid(), signal.SIGINT)
    return say(line, code)
main._say = interrupted_again
"""
# The program, interrupted as the last of these functions is called after those before it were.
INTERRUPTED_AT = """
import os, signal, sys
moments = sys.argv.pop(1).split(">")
def look(frame, event, _):
    if event == "call" and f"{frame.f_globals.get('__name__')}:{frame.f_code.co_qualname}" == moments[0]:
        del moments[0]
        if not moments:
            sys.setprofile(None)
            os.kill(os.getpid(), signal.SIGINT)
sys.setprofile(look)
sys.argv[0] = "cbq-exporter"
from cbq_exporter.__main__ import main
main()
"""
RUNS = "cbq_exporter.cli.running:run"
INTERRUPTED, ABORTED = (130, "cbq-exporter: interrupted"), (3, "cbq-exporter: aborted: nothing was changed")
MOMENTS = {
    "while-click-is-imported": ("dataclasses:dataclass", INTERRUPTED),
    "before-the-command-line-is-read": ("click.core:Command.make_context", INTERRUPTED),
    "while-the-command-is-imported": ("cbq_exporter.cli.main:App.get_command", INTERRUPTED),
    "while-the-configuration-is-read": (f"{RUNS}>cbq_exporter.config.loading:load", INTERRUPTED),
    "where-python-makes-another-error-of-it": (
        "cbq_exporter.cli.main:App.invoke>enum:_proto_member.__set_name__",
        INTERRUPTED,
    ),
    "in-a-round-trip": (f"{RUNS}>redis.asyncio.connection:AbstractConnection.read_response", INTERRUPTED),
    "before-the-question": ("cbq_exporter.cli.output:asking", INTERRUPTED),
    "as-the-question-is-made": ("cbq_exporter.cli.output:asking>click.termui:_build_prompt", ABORTED),
    "as-the-question-appears": ("cbq_exporter.cli.output:asking>click.termui:_readline_prompt", ABORTED),
}


@pytest.mark.parametrize(("moment", "ends"), MOMENTS.values(), ids=MOMENTS)
def test_ctrl_c_is_one_line_and_an_exit_code_that_says_so(moment: str, ends: tuple[int, str], cli: Cli) -> None:
    cli.server.client.rpush("q:processing", item())
    program = (sys.executable, "-c", INTERRUPTED_AT, moment)
    terminal = Terminal(cli.config_file.parent, "reset", "-c", str(cli.config_file), program=program)
    code = terminal.end()
    lines = terminal.shown.splitlines()
    assert (code, lines[-1]) == ends, terminal.shown
    assert "Traceback" not in terminal.shown
    assert sum(line.startswith("cbq-exporter: ") for line in lines) == 1
    assert cli.server.client.llen("q:processing") == 1


LAST_MOMENTS = ["cbq_exporter.cli.interrupts:ignore_from_now_on", "cbq_exporter.cli.output:print_json"]


@pytest.mark.parametrize("moment", LAST_MOMENTS)
def test_in_the_last_moment_it_is_no_traceback(moment: str, cli: Cli) -> None:
    program = [sys.executable, "-c", INTERRUPTED_AT, moment, "status", "-o", "json", "-c", str(cli.config_file)]
    done = subprocess.run(program, capture_output=True, timeout=60, env=cli.environment)
    assert (done.returncode, done.stderr) == (130, b"cbq-exporter: interrupted\n")


def test_a_second_one_while_the_first_is_told_changes_nothing(cli: Cli) -> None:
    moment = MOMENTS["in-a-round-trip"][0]
    program = [sys.executable, "-c", WARNED + INTERRUPTED_AT, moment, "status", "-c", str(cli.config_file)]
    done = subprocess.run(program, capture_output=True, timeout=60, env=cli.environment)
    assert (done.returncode, done.stderr) == (130, b"cbq-exporter: interrupted\n")


def test_a_key_that_is_held_down(cli: Cli) -> None:
    process = cli.start("status", "--watch")
    with process:
        assert process.stdout is not None
        assert process.stdout.readline()
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.001)  # between two of them, not until something has happened
        assert process.stderr is not None
        assert (process.returncode, process.stderr.read()) == (0, b"")


def test_pressed_again_later_it_ends_at_once() -> None:
    program = """
import signal, time
from cbq_exporter.cli import interrupts
interrupts._TIDYING = 0.2
interrupts.raise_from_now_on()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    signal.raise_signal(signal.SIGINT)
    print("tidying", flush=True)
    time.sleep(0.3)
    signal.raise_signal(signal.SIGINT)
    print("hanging", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"tidying\n", b"cbq-exporter: interrupted\n")
