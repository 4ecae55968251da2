"""``render``: the request that an item would become, without sending it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cbq_exporter.cli import options, output
from cbq_exporter.cli.running import queue_config
from cbq_exporter.errors import CbqError, UsageError

if TYPE_CHECKING:
    from cbq_exporter.delivery.preview import Preview, Settings

_MOST_BYTES = 64 * 1024 * 1024  # of an item
_SHOWN = 10_000  # characters of a body


@click.command
@click.argument("item", metavar="ITEM")
@options.config
@options.queue
@click.option("--attempt", type=click.IntRange(1, 1000), default=1, show_default=True, help="Which attempt it is.")
@click.option("--body", "body_only", is_flag=True, help="Write the body and nothing else, byte for byte.")
@options.output
@options.debug
def render(
    item: str, config_path: Path | None, queue_name: str | None, attempt: int, body_only: bool, as_json: bool
) -> int:
    """Show what would be sent for an item, or why it would be a dead letter. Nothing is sent or stored.

    ITEM is a file with one callback in the wire format, or - for standard input. Secrets are not read: their names
    stand in for them, so that signatures by templates are not those of a real request.

    Exit code 0 where it would be sent, 1 where it would be a dead letter.
    """
    from cbq_exporter.clock import SYSTEM_CLOCK
    from cbq_exporter.config import load
    from cbq_exporter.delivery.preview import preview

    config = load(config_path).config
    queue = queue_config(config, queue_name)
    made = preview(_read(item), queue, config.destinations, SYSTEM_CLOCK, attempt)
    if as_json:
        output.print_json(_fields(made))
    elif made.reason is None:
        if body_only:
            output.write_payload(made.body, "write it into a file, or leave out --body")
        else:
            click.echo(_shown(made))
    if made.reason is None:
        if not _is_what_it_says(made):
            output.say("warning: its content-type is JSON, and its body is not")
        return 0
    if not as_json:
        raise CbqError(f"it would be a dead letter, {made.reason}: {output.text(made.detail, 500)}")
    return CbqError.exit_code


def _read(item: str) -> bytes:
    try:
        if item == "-":
            payload = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            with Path(item).open("rb") as file:
                payload = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"{item}: {getattr(error, 'strerror', None) or error}") from None
    if len(payload) > _MOST_BYTES:
        raise UsageError(f"{item}: longer than {output.size(_MOST_BYTES)}")
    return payload.rstrip(b"\r\n")


def _is_what_it_says(made: Preview) -> bool:
    import json

    if not any(name.lower() == "content-type" and "json" in value.lower() for name, value in made.headers):
        return True
    try:
        json.loads(made.body, parse_int=float)
    except (ValueError, RecursionError):
        return False
    return True


def _fields(made: Preview) -> dict[str, Any]:
    """``body`` is a text where it is UTF-8; else it is left out, and --body writes it."""
    if made.reason is not None:
        return {"sent": False, "reason": made.reason, "detail": made.detail, "settings": made.settings}
    try:
        body = made.body.decode()
    except UnicodeDecodeError:
        body = None
    return {
        "sent": True,
        "method": "POST",
        "url": made.url,
        "headers": dict(made.headers),
        "body": body,
        "body_bytes": len(made.body),
        "settings": made.settings,
    }


def _shown(made: Preview) -> str:
    assert made.settings is not None
    lines = [f"{name:{len('destination')}}  {value}" for name, value in _rows(made.settings)]
    lines += ["", f"POST {output.text(made.url or '', 500)}"]
    lines += [f"{name}: {output.text(value, 500)}" for name, value in made.headers]
    text = made.body.decode("utf-8", "replace")
    lines += ["", *(output.text(line, _SHOWN) if line else "" for line in text[:_SHOWN].split("\n"))]
    if len(text) > _SHOWN:
        lines.append(f"… ({len(made.body):,} bytes; --body writes all of them)")
    return "\n".join(lines)


def _rows(settings: Settings) -> list[tuple[str, str]]:
    matched = "no entry of destinations matches: its host" if settings.match is None else f"matches {settings.match}"
    limits = [f"{settings.concurrency} at a time"]
    if settings.rate is not None:
        limits.append(f"{settings.rate:g} a second")
    if settings.bandwidth is not None:
        limits.append(f"{settings.bandwidth / 1e6:g} Mbit/s")
    limits += [f"{settings.timeout:g} s each", f"up to {output.count(settings.max_attempts, 'attempt')}"]
    rows = [("destination", f"{settings.destination} ({matched})"), ("limits", ", ".join(limits))]
    if settings.paused:
        rows.append(("paused", "in the configuration: it would wait in retry"))
    if settings.coalesced:
        rows.append(("together", "this is its part: it goes out with others in one request"))
    return rows
