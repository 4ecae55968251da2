"""What the daemon writes about itself: one line an event, for people on a terminal, as JSON elsewhere.

    log = logging.getLogger(__name__)
    log.info("batch sent", extra={"queue": "callbacks", "count": 100})

Fields given as ``extra`` come out as fields. Their length is bounded and control characters are escaped, so
that what came from outside can neither fill the log nor forge a line of it. Bytes are never written: a payload
that ends up in a field by mistake shows as its size.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

MAX_TEXT = 2000  # characters of an event or a field
MAX_EXCEPTION = 10_000

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_NOISY = ("aiohttp", "apscheduler", "asyncio")
_BUILT_IN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_BARE = re.compile(r"[\w.:/@%+,~-]+\Z", re.ASCII)
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[1;31m", "DEBUG": "\x1b[2m"}
_RESET = "\x1b[0m"


def configure(level: str, format: str, stream: TextIO | None = None) -> None:  # noqa: A002 - the word of the configuration
    """Send everything that is logged to ``stream`` (standard error); calling again replaces what was set before.

    ``level`` is debug, info, warning or error; ``format`` is human, json or auto (human on a terminal).
    """
    stream = sys.stderr if stream is None else stream
    terminal = stream.isatty()
    formatter: logging.Formatter
    if format == "human" or (format == "auto" and terminal):
        coloured = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        formatter = HumanFormatter(coloured=coloured, with_traceback=level == "debug")
    else:
        formatter = JsonFormatter()
    handler = _Handler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(_LEVELS[level])
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(_LEVELS[level], logging.WARNING))


def printable(text: str, most: int = MAX_TEXT) -> str:
    """``text`` as one line that a terminal can show: control characters escaped, not endless."""
    cut = text[:most]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)
    return cut if len(text) <= most else f"{cut}… ({len(text)} characters)"


class JsonFormatter(logging.Formatter):
    """``{"ts": RFC 3339 in UTC, "level", "logger", "event", fields …, "exc": the traceback as one string}``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _cut(record.getMessage()),
        }
        for name, value in _fields(record):
            line[f"{name}_" if name in line or name == "exc" else name] = value
        if record.exc_info and record.exc_info[1] is not None:
            line["exc"] = _cut_front("".join(traceback.format_exception(record.exc_info[1])))
        return json.dumps(line, ensure_ascii=True, allow_nan=False)


class HumanFormatter(logging.Formatter):
    """``12:30:01.250 INFO  batch sent  queue=callbacks count=100``, in local time.

    An exception is named with its place; its traceback follows only where it is asked for.
    """

    def __init__(self, *, coloured: bool = False, with_traceback: bool = False) -> None:
        super().__init__()
        self._coloured = coloured
        self._with_traceback = with_traceback

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).astimezone()
        level = f"{record.levelname:<7}"
        if self._coloured and record.levelname in _COLOURS:
            level = f"{_COLOURS[record.levelname]}{level}{_RESET}"
        parts = [f"{at:%H:%M:%S}.{at.microsecond // 1000:03} {level} {printable(record.getMessage())}"]
        fields = [f"{name}={_quoted(value)}" for name, value in _fields(record)]
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            fields.append(f"exc={_quoted(_named(error))}")
        if fields:
            parts.append("  " + " ".join(fields))
        if error is not None and self._with_traceback:
            lines = "".join(traceback.format_exception(error)).splitlines()
            parts += [f"\n    {printable(line)}" for line in lines]
        return "".join(parts)


class _Handler(logging.StreamHandler[TextIO]):
    """Its own class, so that configuring again finds it."""


def _fields(record: logging.LogRecord) -> list[tuple[str, Any]]:
    return [(name, _plain(value)) for name, value in vars(record).items() if name not in _BUILT_IN]


def _plain(value: Any) -> str | int | float | bool | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # JSON has no infinity
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, list | tuple | set | frozenset):
        return _cut(", ".join(str(_plain(one)) for one in value))
    return _cut(str(value))


def _quoted(value: str | int | float | bool | None) -> str:
    if isinstance(value, str) and not _BARE.match(value):
        return '"' + printable(value, len(value)).replace('"', r"\"") + '"'
    return str(value)


def _named(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    return _cut(f"{text} ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else text)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text)} characters)"


def _cut_front(text: str) -> str:
    """The end of a traceback says what went wrong."""
    return text if len(text) <= MAX_EXCEPTION else f"({len(text)} characters) …{text[-MAX_EXCEPTION:]}"
