"""The client of producers: into the queue, for certain or with a word about it, and never twice by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from cbq_exporter.client import writing
from cbq_exporter.config import kinds, redis_url
from cbq_exporter.errors import InvalidCallback
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.producing import AsyncProducer, Producer

TIMEOUT = 2.0  # seconds
MOST_TIMEOUT = 3600.0


class CallbackQueue:
    """One queue, to be kept for as long as the process lives. Connects at first use.

    The methods that begin with ``a`` are for any event loop; the others for any thread, also after a fork. ``pending``
    and ``stats`` name keys that do not follow from ``prefix``. ``timeout`` is seconds for connecting and again for each
    answer. ``default`` is that of ``json.dumps``: what it makes of values that JSON does not know.

    All but ``write`` raise EnqueueError, which tells what is in the queue and what may be; ``write`` and ``enqueue``
    raise InvalidCallback before anything is sent.
    """

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        prefix: str = "callback_queue",
        pending: str | None = None,
        stats: str | None = None,
        timeout: float = TIMEOUT,
        max_bytes: int = writing.MAX_BYTES,
        default: Callable[[Any], Any] | None = None,
    ) -> None:
        given: object = url  # None, where it is read from an environment that does not have it
        trouble = redis_url.trouble(url) if isinstance(given, str) else f"must be a string, not {type(given).__name__}"
        if trouble is not None:
            raise ValueError(f"the URL of Redis: {trouble}")
        for name, key in (("prefix", prefix), ("pending", pending or prefix), ("stats", stats or prefix)):
            _check(name, key)
        if not 0 < timeout <= MOST_TIMEOUT:
            raise ValueError(f"timeout must be more than 0 and at most {MOST_TIMEOUT:g} seconds")
        keys = QueueKeys.of(prefix, pending=pending, stats=stats)
        self._max_bytes = max_bytes
        self._default = default
        self._producer = Producer(url, keys, timeout=timeout)
        self._async_producer = AsyncProducer(url, keys, timeout=timeout)

    def write(self, url: str, data: Any, **fields: Any) -> bytes:
        """The item for ``push``, for instance to keep it in an outbox. ``fields`` as for ``enqueue``."""
        return writing.write(url, data, fields, default=self._default, max_bytes=self._max_bytes)

    def enqueue(self, url: str, data: Any, **fields: Any) -> bytes:
        """Append one callback; returns the item.

        ``data`` is what is posted to ``url``. ``fields`` are anything else that the item is to have, such as
        ``task_id`` (otherwise a new one), ``status`` (otherwise "success") or ``prompt``.
        """
        payload = self.write(url, data, **fields)
        self.push([payload])
        return payload

    def enqueue_many(self, callbacks: Iterable[Mapping[str, Any]]) -> list[bytes]:
        """Append any number, each a mapping of the arguments of ``enqueue``; returns the items.

        All are checked before the first is sent.
        """
        payloads = self._write_many(callbacks)
        self.push(payloads)
        return payloads

    def push(self, payloads: Sequence[bytes]) -> None:
        """Append items as they are, in batches of one round trip each."""
        self._producer.push(payloads)

    async def aenqueue(self, url: str, data: Any, **fields: Any) -> bytes:
        payload = self.write(url, data, **fields)
        await self.apush([payload])
        return payload

    async def aenqueue_many(self, callbacks: Iterable[Mapping[str, Any]]) -> list[bytes]:
        payloads = self._write_many(callbacks)
        await self.apush(payloads)
        return payloads

    async def apush(self, payloads: Sequence[bytes]) -> None:
        await self._async_producer.push(payloads)

    def _write_many(self, callbacks: Iterable[Mapping[str, Any]]) -> list[bytes]:
        payloads = []
        for number, callback in enumerate(callbacks):
            try:
                payloads.append(self.write(**callback))
            except (InvalidCallback, TypeError) as error:
                raise InvalidCallback(f"callback {number}: {error}") from error
        return payloads

    def close(self) -> None:
        self._producer.close()

    async def aclose(self) -> None:
        await self._async_producer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()


def _check(name: str, key: str) -> None:
    """By the rule of the configuration: the daemon would never look at another one."""
    try:
        kinds.key_name().read(key, written=False)
    except kinds.Wrong as wrong:
        raise ValueError(f"{name} {wrong}") from None
