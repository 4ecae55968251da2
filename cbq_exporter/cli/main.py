"""The program's entry: finds the command, and turns every end of it into an exit code and at most one line.

Exit codes: 0 ok, 1 failure, 2 usage, 3 refused or aborted, 4 Redis unreachable, 5 precondition changed,
130 interrupted, 141 the reader of standard output went away.

Commands are imported when they are run, and import what is heavy inside their functions.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import io
import os
import sys
from typing import Any, NoReturn

import click

from cbq_exporter import __version__
from cbq_exporter.cli import interrupts, options
from cbq_exporter.cli.interrupts import INTERRUPTED
from cbq_exporter.errors import CbqError, ConfigError, RefusedError, UsageError

PIPE_CLOSED = 141  # 128 + SIGPIPE
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Objects that may pile up before any is searched for garbage. Starting makes fewer, and all of them stay: each search
# on the way would find nothing, and together they take a tenth of the time until a command can begin.
_RARE_COLLECTIONS = 200_000

_COMMANDS = {
    "serve": "cbq_exporter.cli.serve:serve",
    "status": "cbq_exporter.cli.status:status",
    "enqueue": "cbq_exporter.cli.enqueue:enqueue",
    "retry": "cbq_exporter.cli.retry:retry",
    "dead": "cbq_exporter.cli.dead:dead",
    "unlock": "cbq_exporter.cli.unlock:unlock",
    "recover": "cbq_exporter.cli.recover:recover",
    "reset": "cbq_exporter.cli.reset:reset",
    "undo": "cbq_exporter.cli.undo:undo",
    "pause": "cbq_exporter.cli.pause:pause",
    "resume": "cbq_exporter.cli.pause:resume",
    "alerts": "cbq_exporter.cli.alerts:alerts",
    "audit": "cbq_exporter.cli.audit:audit",
    "doctor": "cbq_exporter.cli.doctor:doctor",
    "healthcheck": "cbq_exporter.cli.healthcheck:healthcheck",
    "explain": "cbq_exporter.cli.explain:explain",
    "init": "cbq_exporter.cli.init:init",
    "check-config": "cbq_exporter.cli.check_config:check_config",
    "check-url": "cbq_exporter.cli.check_url:check_url",
    "render": "cbq_exporter.cli.render:render",
    "demo": "cbq_exporter.cli.demo.command:demo",
    "completion": "cbq_exporter.cli.completion:completion",
}


class App(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not ctx.resilient_parsing and args[0] not in _COMMANDS and not args[0].startswith("-"):
            meant = _commands_like(args[0], ctx)
            question = f"; did you mean {' or '.join(meant)}?" if meant else ""
            raise click.UsageError(f"No such command {args[0]!r}{question}", ctx)
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [_utf8(word, ctx) for word in args])

    def invoke(self, ctx: click.Context) -> Any:
        # Caught here, because click would say these two in its own way.
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            return _interrupted()
        except BrokenPipeError:
            return PIPE_CLOSED

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        run = options.Run()
        kwargs.update(standalone_mode=False, obj=run)
        try:
            code = super().main(*args, **kwargs)
        except Exception as error:
            if run.debug and not isinstance(error, click.ClickException | click.Abort):
                raise
            code = _explain(error)
        try:
            if code != INTERRUPTED:
                sys.stdout.flush()
        except BrokenPipeError:
            code = PIPE_CLOSED
        except OSError as error:
            code = _explain(error)
            _abandon_stdout()
        except KeyboardInterrupt:  # the reader of standard output reads nothing
            code = _interrupted()
        if code in (INTERRUPTED, PIPE_CLOSED):
            _abandon_stdout()
        sys.exit(code if isinstance(code, int) else 0)


_HELP_IN_NEED = """\
\b
Callbacks have stopped? Begin with what only looks:
  cbq-exporter status       what waits, and who holds the send lock
  cbq-exporter doctor       what is wrong, and which command mends it

\b
The queue is where config.yaml says. Without one, name its Redis:
  CBQ_REDIS_URL=redis://HOST:6379/0 cbq-exporter status
"""


@click.group(
    cls=App,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_HELP_IN_NEED,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda context, _option, given: _show_version(context) if given else None,
    help="Show the version, with the commit that it was built from, and exit.",
)
@options.debug
def app() -> None:
    """Deliver, watch and heal a Redis-backed queue of HTTP callbacks."""


def main() -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What the locale cannot show is escaped: half a table, and an error, would be worse.
            stream.reconfigure(errors="backslashreplace")
    gc.set_threshold(_RARE_COLLECTIONS)
    interrupts.raise_from_now_on()
    try:
        app.main(prog_name="cbq-exporter")
    except KeyboardInterrupt:
        sys.exit(_interrupted())
    finally:
        interrupts.ignore_from_now_on()
        # The process ends: searching all that is left for garbage first would take longer than most commands.
        gc.freeze()


def _utf8(word: str, context: click.Context) -> str:
    """An argument, also where the locale is not UTF-8 and Python could not read its bytes."""
    try:
        word.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(word).decode()
        except UnicodeError:
            # Neither Redis nor JSON can be asked for it, and what was kept of it would be another word.
            raise click.UsageError(f"{word!r} is not UTF-8", context) from None
    return word


def _commands_like(word: str, context: click.Context) -> list[str]:
    """Commands that may have been meant; ``purge`` is found as ``dead purge``."""
    import difflib

    meant = difflib.get_close_matches(word[:100], _COMMANDS, n=2, cutoff=0.7)
    for name in ("dead", "alerts"):
        group = app.get_command(context, name)
        if isinstance(group, click.Group) and word in group.list_commands(context):
            meant.append(f"{name} {word}")
    return meant


def _show_version(context: click.Context) -> NoReturn:
    from cbq_exporter.revision import revision

    click.echo(f"cbq-exporter, version {__version__} (revision {revision()})")
    context.exit()


def _explain(error: Exception) -> int:
    """Tell an operator what happened; returns the exit code."""
    if isinstance(error, click.Abort):
        return _interrupted()
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return UsageError.exit_code
    if isinstance(error, click.UsageError):
        help_at = f" (see {error.ctx.command_path} --help)" if error.ctx is not None else ""
        return _say(f"{error.format_message().rstrip('.')}{help_at}", UsageError.exit_code)
    if isinstance(error, click.ClickException):
        return _say(error.format_message(), error.exit_code)
    if isinstance(error, ConfigError):
        for problem in error.problems:
            _say(str(problem), error.exit_code)
        return error.exit_code
    if isinstance(error, RefusedError) and error.unless is not None:
        return _say(f"{error}, or add --{error.unless}", error.exit_code)
    if isinstance(error, CbqError):
        return _say(str(error), error.exit_code)
    if interrupts.seen():
        return _interrupted()
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return _say(f"the output cannot be written: {error.strerror}: make room, or send it elsewhere", 1)
    return _say(f"unexpected {type(error).__name__}: {error}; run it again with --debug to see where", 1)


def _say(line: str, code: int) -> int:
    from cbq_exporter.logs import printable

    click.echo(f"cbq-exporter: {printable(line)}", err=True)
    return code


def _interrupted() -> int:
    if sys.stderr.isatty():
        click.echo(err=True)  # after the ^C that the terminal has shown
    return _say(interrupts.LINE, INTERRUPTED)


def _abandon_stdout() -> None:
    """Nobody reads our output: whatever is still buffered must not fail, or wait, when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):  # a test's own stream has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
