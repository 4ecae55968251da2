from __future__ import annotations

from django.urls import path

from tests.django.project import views

urlpatterns = [
    path("status", views.status),
    path("async/status", views.async_status),
    path("enqueue", views.enqueue),
    path("async/enqueue", views.async_enqueue),
    path("unlock", views.unlock),
    path("async/unlock", views.async_unlock),
]
