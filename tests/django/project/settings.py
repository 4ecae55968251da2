from __future__ import annotations

import os
from typing import Any

SECRET_KEY = "not secret"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["cbq_exporter.django"]
ROOT_URLCONF = "tests.django.project.urls"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
LANGUAGE_CODE = os.environ.get("PROJECT_LANGUAGE", "en")
USE_TZ = True
LOGGING_CONFIG = None

DJANGO_OWN = "django.core.cache.backends.redis.RedisCache"
DJANGO_REDIS = "django_redis.cache.RedisCache"


def caches(url: str, backend: str = DJANGO_OWN, **options: Any) -> dict[str, Any]:
    return {"default": {"BACKEND": backend, "LOCATION": url, "OPTIONS": options}}


CACHES = caches(os.environ.get("PROJECT_REDIS", "redis://127.0.0.1:1/0"))
