"""``callback_enqueue``: how a project's own code puts callbacks into the queue."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from asgiref.sync import sync_to_async
from django.core.serializers.json import DjangoJSONEncoder
from django.core.signals import setting_changed
from django.db import transaction
from django.utils.asyncio import async_unsafe

from cbq_exporter.client import CallbackQueue
from cbq_exporter.config import Config
from cbq_exporter.django.settings import chosen_queue, configuration
from cbq_exporter.errors import StoreUnavailable


@async_unsafe("callback_enqueue waits for Redis: in an event loop await acallback_enqueue")
def callback_enqueue(
    url: str,
    data: Any,
    *,
    on_commit: bool = False,
    using: str | None = None,
    queue: str | None = None,
    **fields: Any,
) -> str:
    """Append one callback; returns its ``task_id``.

    ``data`` and ``fields`` may hold what Django's JSON encoder knows, such as dates. ``on_commit``: only when the
    transaction of the database ``using`` commits, at once where there is none.

    What is wrong with the callback is raised here in any case (InvalidCallback). That Redis cannot be used is raised
    where the callback is sent (EnqueueError): with ``on_commit`` at the end of the transaction, which stands then.
    """
    given = fields.pop("task_id", None)
    task_id = str(uuid.uuid4() if given in (None, "") else given)
    callbacks = _client(queue)
    payload = callbacks.write(url, data, task_id=task_id, **fields)
    if on_commit:
        _push_on_commit(callbacks, payload, using)
    else:
        callbacks.push([payload])
    return task_id


@dataclass(frozen=True, slots=True)
class _Push:
    callbacks: CallbackQueue
    payloads: list[bytes]

    def __call__(self) -> None:
        self.callbacks.push(self.payloads)


def _push_on_commit(callbacks: CallbackQueue, payload: bytes, using: str | None) -> None:
    """With those that the same transaction, or the same savepoint of it, has sent before, in one push.

    Of functions of their own Django would call none after the first that fails, and nobody would be told of the rest.
    """
    connection = transaction.get_connection(using)
    for savepoints, push, *_ in reversed(connection.run_on_commit):
        if isinstance(push, _Push):  # the last one: an earlier one would change the order
            if push.callbacks is callbacks and savepoints == set(connection.savepoint_ids):
                push.payloads.append(payload)
                return
            break
    transaction.on_commit(_Push(callbacks, [payload]), using=using)


async def acallback_enqueue(url: str, data: Any, *, queue: str | None = None, **fields: Any) -> str:
    """The same in an event loop, at once: transactions do not span ``await``."""
    return await sync_to_async(callback_enqueue)(url, data, queue=queue, **fields)


@lru_cache(maxsize=64)
def _client(queue: str | None) -> CallbackQueue:
    """One for each queue, for as long as the settings are the same: connections are kept."""
    config = configuration()
    chosen = chosen_queue(config, queue)
    return CallbackQueue(
        _url(config),
        prefix=chosen.prefix,
        pending=chosen.keys.pending,
        stats=chosen.keys.stats,
        max_bytes=chosen.delivery.max_request_bytes,
        default=DjangoJSONEncoder().default,
    )


def _url(config: Config) -> str:
    if config.redis.url is not None:
        return config.redis.url.get_secret_value()
    from cbq_exporter.store.data_dir import running_url

    url = running_url(config.data_dir)
    if url is None:
        raise StoreUnavailable(f"no daemon runs on {config.data_dir}: start it, or set redis.url", kind="embedded")
    return url


def _forget_clients(**_: Any) -> None:
    """Tests change settings."""
    _client.cache_clear()


setting_changed.connect(_forget_clients)
