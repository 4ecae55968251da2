"""For producers: ``from cbq_exporter.client import CallbackQueue``. See docs/producers.md."""

from cbq_exporter.client.queue import CallbackQueue
from cbq_exporter.errors import EnqueueError, InvalidCallback

__all__ = ["CallbackQueue", "EnqueueError", "InvalidCallback"]
