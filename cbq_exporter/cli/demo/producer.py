"""The load: a producer that knows exactly which callbacks the store has accepted."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cbq_exporter.cli.demo import story
from cbq_exporter.cli.demo.receivers import Receivers
from cbq_exporter.config import Config
from cbq_exporter.errors import StoreError
from cbq_exporter.store.data_dir import running_url
from cbq_exporter.store.opening import Store, make_store

RATE = 50  # callbacks a second
BAD = 12  # bad items in all
_TICK = 0.1  # seconds
_MOST = 200  # callbacks in one push


class Link:
    """The daemon's store, found again after the daemon was started again."""

    def __init__(self, config: Config, data_dir: Path) -> None:
        self._config = config
        self._data_dir = data_dir
        self._url = ""
        self.store: Store | None = None

    async def renew(self) -> None:
        """Look where the store is now. Without a daemon the address does not change: its server lives on."""
        url = await asyncio.to_thread(running_url, self._data_dir)
        if url is None or url == self._url:
            return
        await self.close()
        self._url, self.store = url, make_store(self._config, url)

    async def close(self) -> None:
        if self.store is not None:
            await self.store.close()


class Producer:
    """``accepted`` has the payload of each accepted callback and its id.

    A push that ends without an answer may have been done, and is repeated: callbacks are known by their ids, so
    that one which is in the queue twice is counted once.
    """

    def __init__(self, link: Link, queue: str, receivers: Receivers) -> None:
        self.accepted: dict[bytes, int] = {}
        self._link = link
        self._queue = queue
        self._receivers = receivers
        self._ids = itertools.count(1)

    async def run(self, fraction: Callable[[], float]) -> None:
        """Push until the story says that the load ends."""
        began, pushed, bad = time.monotonic(), 0, self._bad_items()
        step = (story.KILL_AT - story.BAD_FROM) / (BAD + 1)
        bad_at = story.BAD_FROM
        while (now := fraction()) < story.LOAD_ENDS:
            due = round((time.monotonic() - began) * RATE) - pushed
            batch = [self._item(now) for _ in range(min(due, _MOST))]
            pushed += len(batch)
            while now >= bad_at and (item := next(bad, None)) is not None:
                batch.append(item)
                bad_at += step
            if batch:
                await self._push(batch)
            await asyncio.sleep(_TICK)

    async def _push(self, batch: list[tuple[int, bytes]]) -> None:
        while True:
            store = self._link.store
            assert store is not None
            try:
                await store.queues[self._queue].enqueue([payload for _, payload in batch])
            except StoreError:
                await asyncio.sleep(_TICK)
                await self._link.renew()
            else:
                self.accepted.update((payload, number) for number, payload in batch)
                return

    def _item(self, fraction: float) -> tuple[int, bytes]:
        number = next(self._ids)
        share = number % 20
        name = "flaky" if share < 4 else "down" if share < 6 else "good"
        if share == 6 and fraction >= story.BAD_FROM:
            name = "gone"
        return number, _written(self._receivers.all[name].url, number)

    def _bad_items(self) -> Iterator[tuple[int, bytes]]:
        for kind in range(BAD):
            number = next(self._ids)
            good = _written(self._receivers.all["good"].url, number)
            yield (
                number,
                (
                    b'{"url": "http://127.0.0.1/", "task_id": %d, "data": ' % number,  # ends too early
                    _written("ftp://files.example.com/", number),
                    good.replace(b'"data"', b'"date"'),
                    _written("http://169.254.169.254/latest/meta-data/", number),
                )[kind % 4],
            )


def _written(url: str, number: int) -> bytes:
    """As the existing producers write it."""
    item = {
        "url": url,
        "task_id": f"task-{number}",
        "status": "success",
        "data": {"id": number, "answer": "forty-two"},
        "created_at": None,
        "_queued_at": time.time(),
    }
    return json.dumps(item).encode()
