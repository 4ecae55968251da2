"""Where commands enter the async world, and what they find there."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from cbq_exporter.cli import interrupts, output
from cbq_exporter.errors import UsageError

if TYPE_CHECKING:
    from cbq_exporter.config import Config, QueueConfig
    from cbq_exporter.store.connections import Connections
    from cbq_exporter.store.keys import QueueKeys
    from cbq_exporter.store.queue import Queue

T = TypeVar("T")

_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # not on Windows


def run(work: Coroutine[Any, Any, T]) -> T:
    """The one place where a command starts an event loop.

    Ctrl-C raises KeyboardInterrupt right where the program is. What asyncio would do instead, to cancel the task
    at its next await, never comes while a command waits for an answer or for standard input. SIGTERM and the end
    of the terminal raise SystemExit there: what a command has started is ended with it.
    """
    import asyncio

    from cbq_exporter.store import driver

    driver.import_connections()
    before = {number: signal.signal(number, _interrupt) for number in _ENDING}
    try:
        return asyncio.run(work)
    finally:
        work.close()  # or Python would complain, had it not begun when it was interrupted
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if number != signal.SIGINT:
        raise SystemExit(128 + number)
    interrupts.raise_here(number, frame)


def queue_config(config: Config, name: str | None) -> QueueConfig:
    """The queue of that name, or the only one; raises UsageError, which names those that there are."""
    known = ", ".join(queue.name for queue in config.queues)
    if name is None:
        if len(config.queues) > 1:
            raise UsageError(f"several queues are configured: name one with --queue ({known})")
        return config.queues[0]
    for queue in config.queues:
        if queue.name == name:
            return queue
    raise UsageError(f"no queue {name!r} is configured: there is {known}")


def configured(config_path: Path | None) -> Config:
    """The configuration that a command works with; raises ConfigError.

    Nobody who looks for a queue in a Redis is to take a new, empty store for it: where no configuration was found and
    nothing is stored here yet, that is said.
    """
    _expect_no_plugins()
    from cbq_exporter.config import load

    loaded = load(config_path)
    config = loaded.config
    if loaded.source is None and config.redis.url is None and not config.data_dir.exists():
        output.say(
            f"no configuration was found: this is a new, empty store in {config.data_dir}; "
            "for a queue in a Redis name it with CBQ_REDIS_URL=redis://HOST:6379/0, or -c FILE"
        )
    return config


def _expect_no_plugins() -> None:
    """pydantic looks for plugins of its own in all that is installed. The module with which it would do that imports
    half of what there is for mail and archives: a fifteenth of the time of ``status``."""
    from cbq_exporter import postponed

    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    postponed.postpone("importlib.metadata", functions=["entry_points"])


@asynccontextmanager
async def open_queue(config_path: Path | None, name: str | None) -> AsyncIterator[tuple[QueueConfig, Queue]]:
    """The queue that a command looks at, on the configured store."""
    from cbq_exporter.store.opening import open_store

    config = configured(config_path)
    chosen = queue_config(config, name)
    async with open_store(config) as store:
        queue = store.queues[chosen.name]
        await look_for_newer(store.connections, queue.keys)
        yield chosen, queue


async def look_for_newer(connections: Connections, keys: QueueKeys) -> None:
    """For a command that only looks, as ``warn_of_newer``. What changes something asks by itself, and is refused."""
    from cbq_exporter.errors import StoreMisuse
    from cbq_exporter.store import schema

    with suppress(StoreMisuse):  # the number may not be read, or has a foreign type: that stops nobody from looking
        warn_of_newer(schema.trouble(keys.schema, await connections.read("GET", keys.schema)))


def warn_of_newer(trouble: str | None) -> None:
    """Where a newer version has written to a queue, what is shown of it may be wrong: that is said, and no more."""
    if trouble is not None:
        from cbq_exporter.store.schema import RUN_THE_NEWER

        output.say(f"warning: {trouble}: it may be misread; {RUN_THE_NEWER}")
