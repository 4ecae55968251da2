"""What a project does with the queue in its views, sync and async."""

from __future__ import annotations

from django.http import HttpRequest, JsonResponse

from cbq_exporter.django import (
    acallback_enqueue,
    aforce_release_lock,
    aget_queue_status,
    callback_enqueue,
    force_release_lock,
    get_queue_status,
)

URL = "https://example.com/callback"


def status(request: HttpRequest) -> JsonResponse:
    return JsonResponse(get_queue_status())


async def async_status(request: HttpRequest) -> JsonResponse:
    return JsonResponse(await aget_queue_status())


def enqueue(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"task_id": callback_enqueue(URL, {"by": "view"})})


async def async_enqueue(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"task_id": await acallback_enqueue(URL, {"by": "async view"})})


def unlock(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"released": force_release_lock(by="alice", reason="hung")})


async def async_unlock(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"released": await aforce_release_lock(by="alice", reason="hung")})
