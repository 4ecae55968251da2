"""``status``: all queues at one moment."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cbq_exporter.cli import options, output
from cbq_exporter.cli.running import configured, queue_config, run, warn_of_newer
from cbq_exporter.errors import StoreUnavailable
from cbq_exporter.model import LockView, QueueView, Snapshot, State
from cbq_exporter.policy.troubles import store_troubles, troubles

if TYPE_CHECKING:
    from cbq_exporter.config import Config
    from cbq_exporter.store.reader import Reader

_TIMEOUT = 5.0  # seconds
_COUNTS = (State.PENDING, State.PROCESSING, State.RETRY, State.DEAD)


@click.command
@options.config
@click.option("-q", "--queue", "queue_name", metavar="NAME", help="Only this queue.")
@options.output
@click.option("-w", "--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look, with --watch.",
)
@options.debug
def status(config_path: Path | None, queue_name: str | None, as_json: bool, watch: bool, interval: float) -> int:
    """Show the state of every queue: what waits, what is being sent, what failed, and who holds the lock."""
    config = configured(config_path)
    only = None if queue_name is None else queue_config(config, queue_name).name
    if not watch:
        return run(_once(config, only, as_json))
    with suppress(KeyboardInterrupt):
        run(_again_and_again(config, only, as_json, interval))
    return 0


async def _once(config: Config, only: str | None, as_json: bool) -> int:
    from cbq_exporter.store.opening import open_connections, reader_of

    async with open_connections(config) as connections:
        snapshot = await _look(reader_of(config, connections), only)
    if not snapshot.up:
        raise StoreUnavailable(_why_down(connections.shown_as, snapshot), kind="connect")
    _warn(snapshot)
    _print(connections.shown_as, snapshot, as_json)
    return 1 if any(queue.error for queue in snapshot.queues) else 0


async def _again_and_again(config: Config, only: str | None, as_json: bool, interval: float) -> None:
    import asyncio

    from cbq_exporter.store.opening import open_connections, reader_of

    async with open_connections(config) as connections:
        reader = reader_of(config, connections)
        snapshot = await _look(reader, only)
        _warn(snapshot)
        with _shown(connections.shown_as, as_json) as show:
            while True:
                show(snapshot)
                await asyncio.sleep(interval)
                snapshot = await _look(reader, only)


async def _look(reader: Reader, only: str | None) -> Snapshot:
    snapshot = await reader.snapshot(_TIMEOUT)
    if only is None:
        return snapshot
    return replace(snapshot, queues=tuple(view for view in snapshot.queues if view.queue == only))


def _warn(snapshot: Snapshot) -> None:
    for view in snapshot.queues:
        warn_of_newer(view.newer)


@contextmanager
def _shown(shown_as: str, as_json: bool) -> Iterator[Callable[[Snapshot], None]]:
    """One view after the other: in place on a terminal, below each other elsewhere."""
    if as_json or not sys.stdout.isatty():

        def append(snapshot: Snapshot) -> None:
            if not as_json:
                click.echo(_heading(snapshot))
            _print(shown_as, snapshot, as_json)
            sys.stdout.flush()

        yield append
        return
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False, vertical_overflow="crop") as live:
        yield lambda snapshot: live.update(
            Text.from_ansi(f"{_heading(snapshot)}\n{render(shown_as, snapshot)}"), refresh=True
        )


def _print(shown_as: str, snapshot: Snapshot, as_json: bool) -> None:
    if as_json:
        from cbq_exporter.web.status import document  # the same for the command line and for HTTP

        output.print_json(document(snapshot))
    else:
        click.echo(render(shown_as, snapshot))


def _why_down(shown_as: str, snapshot: Snapshot) -> str:
    return snapshot.error or f"Redis at {shown_as} does not answer"


def _heading(snapshot: Snapshot) -> str:
    return output.paint(output.moment(snapshot.at), bold=True)


def render(shown_as: str, snapshot: Snapshot) -> str:
    """What an operator reads. Fits into 80 columns, as long as numbers and names are of a usual length."""
    if not snapshot.up:
        return output.paint(output.text(_why_down(shown_as, snapshot), 500), "red")
    counts = output.table(
        ["queue", "mode", *(str(state) for state in _COUNTS), "oldest waiting", "last send"],
        [_counts_row(view, snapshot.at) for view in snapshot.queues],
        right=[*(str(state) for state in _COUNTS), "oldest waiting", "last send"],
    )
    locks = output.table(
        ["queue", "lock", "trouble"],
        [
            [
                view.queue,
                output.text(lock_text(view)),
                "; ".join(output.text(one) for one in troubles(view, snapshot.at)) or output.UNKNOWN,
            ]
            for view in snapshot.queues
        ],
        fold="trouble",
    )
    store = [_store_line(shown_as, snapshot), *(output.paint(one, "red") for one in store_troubles(snapshot))]
    return "\n".join([counts, "", locks, "", *store])


def _counts_row(view: QueueView, now: float) -> list[str]:
    numbers = [output.number(view.lengths.get(state)) for state in _COUNTS]
    if view.lengths.get(State.DEAD):
        numbers[-1] = output.paint(numbers[-1], "yellow")
    waiting = view.oldest_at.get(State.PENDING)
    return [
        view.queue,
        str(view.mode),
        *numbers,
        output.UNKNOWN if waiting is None else output.age(now - waiting),
        output.UNKNOWN if view.last_send_at is None else f"{output.age(now - view.last_send_at)} ago",
    ]


def lock_text(view: QueueView) -> str:
    lock: LockView | None = view.lock
    if lock is None:
        return output.UNKNOWN if view.error else "free"
    if lock.ttl is None:
        return f"no expiry! held by {lock.value}"
    return f"held by {lock.value}, {output.age(lock.ttl)} left"


def _store_line(shown_as: str, snapshot: Snapshot) -> str:
    parts = [f"store {shown_as}"]
    if snapshot.server:
        parts.append(output.text(snapshot.server))
    if snapshot.replica:
        parts.append("replica")
    if snapshot.memory_used is not None:
        most = f" of {output.size(snapshot.memory_max)}" if snapshot.memory_max else ""
        parts.append(f"{output.size(snapshot.memory_used)}{most} in memory")
    return ", ".join(parts)
