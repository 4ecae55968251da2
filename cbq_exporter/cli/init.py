"""``init``: a configuration to begin with."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cbq_exporter.cli import options, output
from cbq_exporter.errors import RefusedError, UsageError
from cbq_exporter.model import Mode

USUAL_REDIS = ("127.0.0.1", 6379)
EMBEDDED = "embedded"

_PATIENCE = 0.5  # seconds: it is on this machine
_USUAL_PREFIX = "callback_queue"


@dataclass(frozen=True, slots=True)
class _Answers:
    """``redis_url`` None is the embedded store."""

    redis_url: str | None
    prefix: str
    mode: str


@click.command
@click.argument("file", type=click.Path(path_type=Path), default=Path("config.yaml"))
@click.option("--redis-url", metavar="URL", help=f"Where Redis is, or {EMBEDDED} for a store of the daemon's own.")
@click.option("--prefix", metavar="NAME", help="What the queue's keys begin with.")
@click.option(
    "--mode",
    type=click.Choice([str(mode) for mode in Mode]),
    metavar="MODE",
    help=f"How far the daemon may go: {', '.join(Mode)}.",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask: take what was found.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@options.debug
def init(file: Path, redis_url: str | None, prefix: str | None, mode: str | None, yes: bool, force: bool) -> int:
    """Write a configuration with every key explained; FILE is config.yaml where none is named.

    It asks where Redis is, and offers what it finds: $CBQ_REDIS_URL, else a Redis on this machine, else the embedded
    store. A queue in a Redis of yours is only observed at first. A password is never written into the file.
    """
    if not force and os.path.lexists(file):
        raise RefusedError(f"{file} is there already: name another file", unless="force")
    found, how = _find_redis(os.environ)
    output.say(how)
    answers = _decide(found, redis_url, prefix, mode, ask=not yes)
    _write(file, _text(answers), force=force)
    click.echo(str(file))
    for line in _next_steps(file, answers):
        output.say(line)
    return 0


def _decide(found: str, redis_url: str | None, prefix: str | None, mode: str | None, *, ask: bool) -> _Answers:
    """What the options say, else what a person answers, else what was found."""

    def chosen(given: str | None, question: str, default: str) -> str:
        if given is not None:
            return given
        return output.ask(question, default) if ask else default

    url = chosen(redis_url, f"Where is Redis? A URL, or {EMBEDDED}", found)
    own = url == EMBEDDED
    return _Answers(
        None if own else url,
        chosen(prefix, "What do the queue's keys begin with?", _USUAL_PREFIX),
        chosen(mode, f"How far may the daemon go? {', '.join(Mode)}", str(Mode.DISPATCH if own else Mode.OBSERVE)),
    )


def _find_redis(environ: Mapping[str, str]) -> tuple[str, str]:
    """What to offer, and in words how it was found."""
    if url := environ.get("CBQ_REDIS_URL", "").strip():
        from cbq_exporter.config import redis_url

        return url, f"CBQ_REDIS_URL names {redis_url.redacted(url)}"
    host, port = USUAL_REDIS
    url = f"redis://{host}:{port}/0"
    answer = _ping(host, port)
    if answer.startswith(b"+PONG"):
        return url, f"a Redis answers at {host}:{port}"
    if answer.startswith((b"-NOAUTH", b"-NOPERM", b"-DENIED")):
        return url, f"a Redis at {host}:{port} wants a password: give it in CBQ_REDIS_URL, not in the file"
    return EMBEDDED, f"no Redis answers at {host}:{port}"


def _ping(host: str, port: int) -> bytes:
    try:
        with socket.create_connection((host, port), timeout=_PATIENCE) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(100)
    except OSError:
        return b""


def _text(answers: _Answers) -> str:
    """The file; raises UsageError where an answer cannot stand in it."""
    from cbq_exporter.config import Config, example, redis_url

    values: dict[str, Any] = {"queues[].prefix": answers.prefix, "queues[].mode": answers.mode}
    url = answers.redis_url
    if url is not None:
        trouble = redis_url.trouble(url)
        if trouble is not None:
            raise UsageError(f"the URL of Redis: {trouble}")
        values["redis.url"] = None if _has_password(url) else url
        values["queues[].delivery.egress.allow"] = []
    text = example.example(values)
    _check(text, Config)
    return text


def _has_password(url: str) -> bool:
    from cbq_exporter.config import redis_url

    return redis_url.redacted(url) != url


def _check(text: str, kind: Any) -> None:
    from pydantic import ValidationError

    from cbq_exporter.config import document
    from cbq_exporter.config.kinds import WRITTEN

    try:
        kind.model_validate(document.read(text.encode()).data, context=WRITTEN)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
        raise UsageError(f"{where}: found {first['input']!r}; {first['msg']}") from None


def _write(file: Path, text: str, *, force: bool) -> None:
    """All of it, or nothing."""
    draft = file.with_name(f".{file.name}.new")
    try:
        draft.write_text(text, encoding="utf-8")
        if force:
            draft.replace(file)
        else:
            os.link(draft, file)  # not over one that came meanwhile
    except FileExistsError:
        raise RefusedError(f"{file} is there already: name another file", unless="force") from None
    except OSError as error:
        raise RefusedError(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # a file system that is read-only says so of what is not there, too
            draft.unlink()


def _next_steps(file: Path, answers: _Answers) -> list[str]:
    option = "" if file == Path("config.yaml") else f" -c {file}"
    lines = []
    if answers.redis_url is not None and _has_password(answers.redis_url):
        lines.append("The URL holds a password, so it is not in the file: set CBQ_REDIS_URL where the daemon runs.")
    lines.append(f"Next: cbq-exporter doctor{option}, then cbq-exporter serve{option}")
    if answers.mode == Mode.OBSERVE:
        lines.append("mode: observe only reads. cbq-exporter explain queues.mode tells what else there is.")
    return lines
