"""The project of tests/django/project in this process, on the test's own server."""

from __future__ import annotations

import os
from collections.abc import Iterator

import django
import pytest
from django.test import override_settings

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.django.project.settings"
django.setup()

from tests.django.project.settings import caches  # noqa: E402
from tests.support.servers import Server  # noqa: E402


@pytest.fixture
def redis(server: Server) -> Iterator[Server]:
    """The server that the project's default cache is in."""
    with override_settings(CACHES=caches(server.url)):
        yield server
