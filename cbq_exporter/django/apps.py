"""The app, as INSTALLED_APPS finds it."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks

from cbq_exporter.django.checks import check_settings


class CallbackQueueConfig(AppConfig):
    name = "cbq_exporter.django"
    label = "cbq_exporter"
    verbose_name = "Callback queue"

    def ready(self) -> None:
        checks.register(check_settings)
