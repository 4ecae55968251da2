"""From a project's settings to a configuration.

nothing                                       Redis of CACHES["default"], the prefix callback_queue
CBQ_EXPORTER = {"cache": "queues"}            Redis of another cache
CBQ_EXPORTER = {"queues": [...], ...}         the keys of the configuration file; without redis: that of the cache
CBQ_EXPORTER = {"config_file": "/etc/..."}    a configuration file, all of it
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from django.conf import settings

from cbq_exporter.config import Config, QueueConfig, from_mapping, load, redis_url
from cbq_exporter.errors import ConfigError, Problem, UsageError

NAME = "CBQ_EXPORTER"

_SCHEMES = ("redis://", "rediss://", "unix://")
_CERT_REQS: Mapping[Any, str] = {None: "none", 0: "none", 1: "optional", 2: "required"}  # by the numbers of ``ssl``


class WrongSetting(ConfigError):
    """A setting of the project is wrong; ``id`` is that of the system check."""

    def __init__(self, setting: str, found: str, allowed: str, *, id: str, hint: str = "") -> None:  # noqa: A002
        self.id = id
        self.hint = hint
        super().__init__((Problem("settings", setting, found, allowed),))


def configuration() -> Config:
    """What the settings say now. Raises WrongSetting or another ConfigError."""
    given = getattr(settings, NAME, {})
    if not isinstance(given, Mapping):
        raise WrongSetting(NAME, f"a {type(given).__name__}", "must be a dict", id="cbq.E001")
    given = dict(given)
    file = given.pop("config_file", None)
    if file is not None:
        if given:
            also = ", ".join(map(str, given))
            raise WrongSetting(NAME, f"config_file beside {also}", "must be one or the other", id="cbq.E001")
        return load(Path(file)).config
    cache = given.pop("cache", "default")
    if not given.get("redis"):
        given["redis"] = {"url": _url_of_cache(cache)}
    return from_mapping(given, f"settings.{NAME}")


def names_a_file() -> bool:
    """Whether the server is that of a configuration file, or else of the settings."""
    given = getattr(settings, NAME, {})
    return isinstance(given, Mapping) and given.get("config_file") is not None


def chosen_queue(config: Config, name: str | None) -> QueueConfig:
    """The queue of that name, or the only one; raises UsageError, which names those that there are."""
    known = ", ".join(queue.name for queue in config.queues)
    if name is None and len(config.queues) > 1:
        raise UsageError(f"several queues are configured: say which is meant ({known})")
    for queue in config.queues:
        if name is None or queue.name == name:
            return queue
    raise UsageError(f"no queue {name!r} is configured: there is {known}")


def _url_of_cache(alias: str) -> str:
    """Where the server is, by the options of django-redis or of Django's own backend."""
    setting = f"CACHES[{alias!r}]"
    # Settings for development and tests often have another cache: where nothing else is said, that is no error.
    none = "cbq.E003" if hasattr(settings, NAME) else "cbq.W001"
    cache = settings.CACHES.get(alias)
    hint = f"Give {NAME} = {{'redis': {{'url': 'redis://…'}}}}, or the name of a cache in Redis: {{'cache': '…'}}."
    if cache is None:
        raise WrongSetting(setting, "nothing", "must be a cache in Redis", id=none, hint=hint)
    options = cache.get("OPTIONS") or {}
    if "SENTINELS" in options or "Sentinel" in str(options.get("CLIENT_CLASS", "")):
        raise WrongSetting(
            setting, "Sentinel", "must be one server: Sentinel is not available yet", id="cbq.E004", hint=hint
        )
    location = _first(cache.get("LOCATION"))
    if not location.startswith(_SCHEMES):
        backend = cache.get("BACKEND", "no backend")
        raise WrongSetting(setting, str(backend), "must be a cache in Redis", id=none, hint=hint)
    url = _with_options(location, _login(options))
    trouble = redis_url.trouble(url)
    if trouble is not None:
        raise WrongSetting(f"{setting}['LOCATION']", "a URL that cannot be used", trouble, id="cbq.E004", hint=hint)
    return url


def _first(location: Any) -> str:
    """Of several servers the first is the one that is written to."""
    if isinstance(location, list | tuple):
        return str(location[0]) if location else ""
    return str(location or "").replace(";", ",").split(",")[0].strip()


def _login(options: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside the location: in OPTIONS itself for Django's backend, deeper for django-redis."""
    found = {**options, **(options.get("CONNECTION_POOL_KWARGS") or {})}
    if "PASSWORD" in options:
        found.setdefault("password", options["PASSWORD"])
    if "ssl_cert_reqs" in found:
        found["ssl_cert_reqs"] = _CERT_REQS.get(found["ssl_cert_reqs"], found["ssl_cert_reqs"])
    return {name: value for name, value in found.items() if value not in (None, "")}


def _with_options(url: str, options: Mapping[str, Any]) -> str:
    """What the URL says itself counts, as it does for both backends."""
    if redis_url.trouble(url) is not None:
        return url
    parts = urlsplit(url)
    netloc, query = parts.netloc, dict(parse_qsl(parts.query, keep_blank_values=True))
    login = [options.get(name) for name in ("username", "password")]
    if "@" not in netloc and "password" not in query and any(login):
        user, password = (quote(str(part or ""), safe="") for part in login)
        netloc = f"{user}:{password}@{netloc}"
    has_database = "db" in query or (parts.scheme != "unix" and parts.path not in ("", "/"))
    if "db" in options and not has_database:
        query["db"] = str(options["db"])
    for name in redis_url.TLS_OPTIONS:
        if name in options and parts.scheme == "rediss":
            query.setdefault(name, str(options[name]))
    options_text = f"?{urlencode(query, safe='/')}" if query else ""
    return f"{parts.scheme}://{netloc}{parts.path}{options_text}"
