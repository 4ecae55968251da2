"""``enqueue``: append callbacks to pending, one from flags or any number from standard input."""

from __future__ import annotations

import codecs
import contextlib
import select
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from cbq_exporter.cli import options, output
from cbq_exporter.cli.operating import open_desk
from cbq_exporter.cli.running import run
from cbq_exporter.errors import CbqError, StoreError, StoreMisuse, StoreUnavailable, UsageError

if TYPE_CHECKING:
    from cbq_exporter.cli.operating import Desk
    from cbq_exporter.config import QueueConfig
    from cbq_exporter.store.queue import Queue

MAX_LINE = 64 * 1024 * 1024  # bytes; Redis itself takes no value of more than 512 MiB

# What is held in memory and sent at once, by one script of the store: all of it is enqueued or nothing. Small enough
# that a failure leaves few callbacks in doubt.
_BATCH_LINES = 1000
_BATCH_BYTES = 4 * 1024 * 1024
_CHUNK = 256 * 1024
_SHOWN_ERRORS = 20
_DOUBT = "may or may not have been"
_IN_MEMORY = 8 * 1024 * 1024  # bytes of standard input kept in memory by --strict; more goes to a temporary file

Line = tuple[int, bytes]


@click.command
@options.config
@options.queue
@click.option("--url", help="Where to send one callback.")
@click.option(
    "--data", metavar="JSON|@FILE", help="Its data: JSON, or @ and the name of a file with it, @- for standard input."
)
@click.option("--task-id", help="Its task_id. Without it: a new one.")
@click.option("--status", help="Its status. Without it: success.")
@click.option("--prompt", help="Its prompt.")
@click.option("--stamp", is_flag=True, help="Add _queued_at to lines that have none.")
@click.option("--strict", is_flag=True, help="Enqueue nothing if any line is bad.")
@options.debug
def enqueue(
    config_path: Path | None,
    queue_name: str | None,
    url: str | None,
    data: str | None,
    task_id: str | None,
    status: str | None,
    prompt: str | None,
    stamp: bool,
    strict: bool,
) -> int:
    """Append callbacks to the pending list of a queue.

    One by flags:

        cbq-exporter enqueue --url https://example.com/callback --data '{"answer": 42}'

    Or any number from standard input: one JSON object a line, in the wire format, pushed byte for byte. A bad
    line is reported and skipped (exit code 1), or with --strict refuses all of them.
    """
    given = {"task_id": task_id, "status": status, "prompt": prompt}
    fields = {name: one for name, one in given.items() if one is not None}
    if url is not None:
        if stamp or strict:
            raise UsageError("--stamp and --strict are for lines on standard input, not for --url")
        return run(_push_one(config_path, queue_name, url, data, fields))
    if data is not None or fields:
        raise UsageError(
            "--data, --task-id, --status and --prompt need --url; callbacks on standard input carry their own"
        )
    if sys.stdin.isatty():
        raise UsageError("nothing to enqueue: give --url, or one JSON object a line on standard input")
    return run(_push_lines(config_path, queue_name, sys.stdin.buffer, stamp=stamp, strict=strict))


def _from_flags(url: str, data: object, fields: dict[str, str], max_bytes: int) -> bytes:
    """One item as the existing producers write it, so that existing workers can acknowledge it too."""
    from cbq_exporter.client import writing
    from cbq_exporter.errors import InvalidCallback

    try:
        return writing.write(url, data, fields, max_bytes=max_bytes)
    except InvalidCallback as error:
        raise UsageError(f"--data: {error}") from None


def _check_url(url: str) -> None:
    from cbq_exporter.delivery.url import parse

    try:
        parse(url)
    except ValueError as error:
        raise UsageError(f"--url: {error}") from None


def _json_argument(data: str | None) -> object:
    import json

    if data is None:
        return {}
    if data.startswith("@"):
        try:
            text = sys.stdin.buffer.read() if data == "@-" else Path(data[1:]).read_bytes()
        except OSError as error:
            raise UsageError(f"--data: {data[1:]}: {error.strerror}") from None
    else:
        text = data.encode("utf-8", "surrogateescape")
    try:
        return json.loads(text)
    except RecursionError:
        raise UsageError("--data: nested deeper than 64 levels") from None
    except ValueError as error:
        raise UsageError(f"--data is not JSON: {error}; for a file write @ before its name") from None


async def _push_one(
    config_path: Path | None, queue_name: str | None, url: str, data: str | None, fields: dict[str, str]
) -> int:
    _check_url(url)
    read = _json_argument(data)
    async with open_desk(config_path, queue_name) as desk:
        payload = _from_flags(url, read, fields, desk.queue.delivery.max_request_bytes)
        name = desk.queue.name
        async with _in_audit(desk) as count:
            pending = await desk.store.queues[name].enqueue([payload])
            count(1)
    output.say(f"enqueued 1 callback in {name} ({pending:,} pending)")
    if data is None and desk.queue.delivery.request.body == "data":
        output.say("it has no --data: its body is {}")
    refused = _refused_at_sight(url, desk.queue)
    if refused is not None:
        output.say(f"it will be a dead letter: {refused}; cbq-exporter check-url tells what lets it through")
    return 0


def _refused_at_sight(url: str, queue: QueueConfig) -> str | None:
    """What the egress guard has against it, where this daemon's configuration is the one that sends."""
    from cbq_exporter.delivery.egress import policy_of
    from cbq_exporter.delivery.url import parse
    from cbq_exporter.model import Mode

    if queue.mode is not Mode.DISPATCH:
        return None
    target = parse(url)
    policy = policy_of(queue.delivery.egress)
    if queue.delivery.proxy is not None:
        return policy.verdict_on_target(target.host, target.port)
    return policy.verdict_at_sight(target.host, target.port)


async def _push_lines(
    config_path: Path | None, queue_name: str | None, source: IO[bytes], *, stamp: bool, strict: bool
) -> int:
    bad = BadLines()
    async with open_desk(config_path, queue_name) as desk:
        name = desk.queue.name
        with (
            _checked_whole(source, bad) if strict else contextlib.nullcontext(source) as lines,
            output.progress(f"enqueueing in {name}", None) as show,
        ):
            async with _in_audit(desk) as count:

                def note(done: int) -> None:
                    count(done)
                    show(done)

                pushed = await _push(desk.store.queues[name], good_lines(lines, bad, stamp=stamp), note)
    output.say(f"enqueued {output.count(pushed, 'callback')} in {name}")
    return bad.report("skipped")


@contextlib.asynccontextmanager
async def _in_audit(desk: Desk) -> AsyncIterator[Callable[[int], None]]:
    """One entry at the end, whatever the end: call what this gives with how many are enqueued.

    One, because whoever enqueues callbacks one by one must not push everything else out of the audit. That it
    cannot be written is said, and no failure: callbacks would be enqueued a second time.
    """
    from cbq_exporter.model import OperationName, Result

    so_far = 0
    result = Result.FAILED

    def count(done: int) -> None:
        nonlocal so_far
        so_far = done

    try:
        yield count
        result = Result.DONE
    finally:
        if so_far or result is Result.FAILED:
            try:
                await desk.audit.record(
                    desk.queue.name,
                    desk.actor,
                    OperationName.ENQUEUE,
                    after={"callbacks": so_far},
                    result=result,
                )
            except StoreError as error:
                if so_far:
                    output.say(f"the audit has no entry of this: {error}")


async def _push(queue: Queue, lines: Iterator[Line | None], show: Callable[[int], None]) -> int:
    import asyncio

    pushed = last = 0
    sending: list[Line] = []
    try:
        for sending in _batches(lines):
            try:
                await queue.enqueue([payload for _, payload in sending])
            except StoreUnavailable as error:
                raise StoreUnavailable(_where_it_ended(error, pushed, sending), kind=error.kind) from error
            except StoreMisuse as error:
                raise StoreMisuse(_where_it_ended(error, pushed, sending), kind=error.kind) from error
            pushed, last = pushed + len(sending), sending[-1][0]
            sending = []
            show(pushed)
    except (KeyboardInterrupt, SystemExit, asyncio.CancelledError):
        output.say(_where_it_was(pushed, last, sending))
        raise
    return pushed


def _where_it_ended(error: StoreError, pushed: int, batch: list[Line]) -> str:
    """Which lines are in the queue: whoever sends the rest again must know."""
    doubt = _DOUBT if isinstance(error, StoreUnavailable) and error.unanswered else "were not"
    return (
        f"{output.count(pushed, 'callback')} enqueued, up to the line before {batch[0][0]:,}; "
        f"{_numbers(batch)} {doubt}, later ones were not: {error}"
    )


def _where_it_was(pushed: int, last: int, sending: list[Line]) -> str:
    """The same, when it is interrupted."""
    upto = f", up to line {last:,}" if pushed else ""
    these = f"; {_numbers(sending)} {_DOUBT}" if sending else ""
    return f"{output.count(pushed, 'callback')} enqueued for certain before the interruption{upto}{these}"


def _numbers(batch: list[Line]) -> str:
    first, last = batch[0][0], batch[-1][0]
    return f"line {first:,}" if first == last else f"lines {first:,} to {last:,}"


class BadLines:
    """What is wrong with lines: the first ones are told at once, the rest only counted."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, number: int, why: str) -> None:
        self.count += 1
        if self.count <= _SHOWN_ERRORS:
            output.say(f"line {number:,}: {why}")

    def report(self, what: str) -> int:
        """Say how many there were; returns the exit code."""
        if not self.count:
            return 0
        more = f" ({self.count - _SHOWN_ERRORS:,} not shown)" if self.count > _SHOWN_ERRORS else ""
        output.say(f"{output.count(self.count, 'bad line')} {what}{more}")
        return 1


@contextlib.contextmanager
def _checked_whole(source: IO[bytes], bad: BadLines) -> Iterator[IO[bytes]]:
    """All of ``source`` once every line of it is known to be good; raises CbqError otherwise."""
    import shutil
    import tempfile

    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as kept:
        shutil.copyfileobj(source, kept, 1024 * 1024)
        kept.seek(0)
        for _ in good_lines(kept, bad):
            pass
        if bad.report("found"):
            raise CbqError("nothing was enqueued: --strict takes all lines or none")
        kept.seek(0)
        yield kept


def good_lines(source: IO[bytes], bad: BadLines, *, stamp: bool = False) -> Iterator[Line | None]:
    """The payloads of ``source`` with the numbers of their lines, counted from 1; None where more has yet to come.

    Empty lines are passed over.
    """
    from cbq_exporter.delivery.url import parse
    from cbq_exporter.item import ItemError, read, value

    for found in _lines(source):
        if found is None:
            yield None
            continue
        number, line = found
        if line is None:
            bad.add(number, f"longer than {output.size(MAX_LINE)}")
            continue
        payload = line.removesuffix(b"\r")
        if number == 1:
            payload = payload.removeprefix(codecs.BOM_UTF8)  # of the file, where Windows has written it
        if not payload.strip():
            continue
        try:
            top = read(payload)
        except ItemError as error:
            bad.add(number, str(error))
            continue
        url = value(top, "url")
        if not isinstance(url, str):
            bad.add(number, "no url, or one that is no string")
            continue
        try:
            parse(url)
        except ValueError as error:
            bad.add(number, str(error))
            continue
        if stamp and "_queued_at" not in top:
            payload = payload.rstrip()[:-1] + b',"_queued_at":%.6f}' % time.time()
        yield number, payload


def _lines(source: IO[bytes]) -> Iterator[tuple[int, bytes | None] | None]:
    """Lines with their numbers, None in the place of one that is too long to be held.

    A bare None says that ``source`` has nothing more at this moment.
    """
    number, unfinished, too_long = 1, bytearray(), False
    while chunk := source.read1(_CHUNK):  # type: ignore[attr-defined]
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            unfinished += end
            yield number, None if too_long or len(unfinished) > MAX_LINE else bytes(unfinished)
            number, too_long = number + 1, False
            unfinished.clear()
        unfinished += rest
        if len(unfinished) > MAX_LINE:
            too_long = True
            unfinished.clear()
        if not _has_more(source):
            yield None
    if too_long or unfinished:
        yield number, None if too_long else bytes(unfinished)


def _has_more(source: IO[bytes]) -> bool:
    """Whether reading would not wait; a file in memory never does."""
    try:
        return bool(select.select([source], [], [], 0)[0])
    except (OSError, ValueError):
        return True


def _batches(lines: Iterator[Line | None]) -> Iterator[list[Line]]:
    """As much as may be held at once, or what there is where more has yet to come: no callback waits for others."""
    batch: list[Line] = []
    size = 0
    for line in lines:
        too_much = line is not None and size + len(line[1]) > _BATCH_BYTES
        if batch and (line is None or too_much or len(batch) >= _BATCH_LINES):
            yield batch
            batch, size = [], 0
        if line is not None:
            batch.append(line)
            size += len(line[1])
    if batch:
        yield batch
