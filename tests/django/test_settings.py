"""From settings to a server, and what ``manage.py check`` says where that fails."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.test import override_settings

from cbq_exporter.django.settings import configuration
from tests.django.project.settings import DJANGO_OWN, DJANGO_REDIS, caches

LOCAL = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}


def found(**settings: Any) -> list[tuple[str | None, str]]:
    with override_settings(**settings):
        return [(message.id, str(message)) for message in run_checks() if str(message.id).startswith("cbq.")]


@pytest.mark.parametrize(
    ("cache", "url"),
    [
        (caches("redis://h:6380/2"), "redis://h:6380/2"),
        (caches("redis://h", db="3", username="u", password="a/b@c:%41"), "redis://u:a%2Fb%40c%3A%2541@h?db=3"),
        (caches("redis://h/1", DJANGO_REDIS, PASSWORD="pw", db=5), "redis://:pw@h/1"),
        (caches("redis://:own@h/1", DJANGO_REDIS, PASSWORD="other"), "redis://:own@h/1"),
        (caches("redis://first/1,redis://second/1", DJANGO_REDIS), "redis://first/1"),
        (caches(["unix:///run/r.sock?db=2", "unix:///run/s.sock"], password="pw"), "unix://:pw@/run/r.sock?db=2"),  # type: ignore[arg-type]
        (
            caches("rediss://h/0", DJANGO_REDIS, CONNECTION_POOL_KWARGS={"ssl_cert_reqs": None, "max_connections": 9}),
            "rediss://h/0?ssl_cert_reqs=none",
        ),
        (caches("rediss://h/0", ssl_cert_reqs=ssl.CERT_REQUIRED), "rediss://h/0?ssl_cert_reqs=required"),
    ],
)
def test_the_server_of_a_cache(cache: dict[str, Any], url: str) -> None:
    assert found(CACHES=cache) == []
    with override_settings(CACHES=cache):
        redis = configuration().redis
    assert redis.url is not None
    assert redis.url.get_secret_value() == url


def test_another_cache_and_the_keys_of_the_configuration(tmp_path: Path) -> None:
    setting = {
        "cache": "queues",
        "data_dir": tmp_path,
        "queues": ({"name": "jobs", "prefix": "j", "recovery": {"stuck_after": "20m"}},),
    }
    with override_settings(CACHES={"default": LOCAL, "queues": caches("redis://h/1")["default"]}, CBQ_EXPORTER=setting):
        config = configuration()
    assert config.redis.redacted_url == "redis://h/1"
    assert (config.queues[0].prefix, config.queues[0].recovery.stuck_after) == ("j", 1200.0)
    with override_settings(CACHES={"default": LOCAL}, CBQ_EXPORTER={"redis": {"url": "redis://other/1"}}):
        assert configuration().redis.redacted_url == "redis://other/1"


def test_wrong_settings_are_explained() -> None:
    ((number, text),) = found(CBQ_EXPORTER=["redis://h"])
    assert (number, "found a list; must be a dict" in text) == ("cbq.E001", True)
    ((number, text),) = found(CBQ_EXPORTER={"config_file": "x.yaml", "queues": []})
    assert (number, "config_file beside queues" in text) == ("cbq.E001", True)

    wrong = {"queues": [{"name": "jobs", "mod": "observe"}, {"name": "more", "recovery": {"stuck_after": "soon"}}]}
    problems = found(CBQ_EXPORTER={"redis": {"url": "redis://h/0"}, **wrong})
    assert {number for number, _ in problems} == {"cbq.E002"}
    assert any(
        "settings.CBQ_EXPORTER: queues[0].mod: found an unknown key; did you mean mode?" in t for _, t in problems
    )
    assert any("queues[1].recovery.stuck_after: found 'soon'" in text for _, text in problems)
    ((number, text),) = found(CBQ_EXPORTER={"config_file": "/nowhere/cbq.yaml"})
    assert (number, "/nowhere/cbq.yaml: file: found nothing there" in text) == ("cbq.E002", True)

    ((number, text),) = found(CACHES={"default": LOCAL})
    assert number == "cbq.W001"
    ((number, text),) = found(CACHES={"default": LOCAL}, CBQ_EXPORTER={})
    assert number == "cbq.E003"
    assert "CACHES['default']: found django.core.cache.backends.locmem.LocMemCache; must be a cache in Redis" in text
    assert "HINT: Give CBQ_EXPORTER = {'redis': " in text
    ((number, _),) = found(CBQ_EXPORTER={"cache": "queues"})
    assert number == "cbq.E003"

    ((number, _),) = found(CACHES=caches("redis://h/1", DJANGO_REDIS, SENTINELS=[("h", 26379)]))
    assert number == "cbq.E004"
    ((number, text),) = found(CACHES=caches("redis://:secret@h:port/1", DJANGO_OWN))
    assert (number, "secret" in text) == ("cbq.E004", False)
