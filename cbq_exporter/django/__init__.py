"""The queue in a Django project: put ``cbq_exporter.django`` into INSTALLED_APPS. See docs/django.md."""

from cbq_exporter.django.producing import acallback_enqueue, callback_enqueue
from cbq_exporter.django.tools import (
    QueueStatus,
    aclear_processing_queue,
    aforce_release_lock,
    aget_queue_status,
    areset_callback_queue,
    aundo_reset,
    clear_processing_queue,
    force_release_lock,
    get_queue_status,
    reset_callback_queue,
    undo_reset,
)

__all__ = [
    "QueueStatus",
    "acallback_enqueue",
    "aclear_processing_queue",
    "aforce_release_lock",
    "aget_queue_status",
    "areset_callback_queue",
    "aundo_reset",
    "callback_enqueue",
    "clear_processing_queue",
    "force_release_lock",
    "get_queue_status",
    "reset_callback_queue",
    "undo_reset",
]
