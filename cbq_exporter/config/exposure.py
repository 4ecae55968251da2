"""Files with secrets that more can read than should."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from cbq_exporter.config.models import Config
from cbq_exporter.config.places import Place, shown

_PREFIX = "env:"


def exposed(config: Config, source: Path | None) -> tuple[str, ...]:
    """A warning for each file with a secret that every user of this machine can read.

    ``source`` is the configuration's own file; None where the URL of Redis is not from it.
    """
    if os.name != "posix":  # elsewhere modes say nothing
        return ()
    found = {path: place for place, path in _files(config, source) if open_to_all(path)}
    return tuple(
        f"{shown(place)}: {path}: every user of this machine can read what is secret in it: chmod o= {path}"
        for path, place in found.items()
    )


def open_to_all(path: Path) -> bool:
    """Whether its mode lets everybody read it, and those of the folders above let everybody come there."""
    try:
        whole = path.resolve()
        return bool(whole.stat().st_mode & stat.S_IROTH) and all(
            folder.stat().st_mode & stat.S_IXOTH for folder in whole.parents
        )
    except (OSError, ValueError):  # what cannot be used is told by whoever needs it
        return False


def _files(config: Config, source: Path | None) -> Iterator[tuple[Place, Path]]:
    url = config.redis.url
    if source is not None and url is not None and config.redis.redacted_url != url.get_secret_value():
        yield ("redis", "url"), source
    for place, path in (
        (("web", "config_file"), config.web.config_file),
        (("web", "bearer_token_file"), config.web.bearer_token_file),
        (("alerts", "auth", "bearer_token_file"), config.alerts.auth.bearer_token_file),
    ):
        if path is not None:
            yield place, path
    for number, queue in enumerate(config.queues):
        yield from _secrets(("queues", number, "delivery", "request", "secrets"), queue.delivery.request.secrets)
    for number, entry in enumerate(config.destinations):
        if entry.request is not None:
            yield from _secrets(("destinations", number, "request", "secrets"), entry.request.secrets)
        if entry.tls is not None and entry.tls.key_file is not None:
            yield ("destinations", number, "tls", "key_file"), entry.tls.key_file


def _secrets(place: Place, secrets: dict[str, str]) -> Iterator[tuple[Place, Path]]:
    for name, named in secrets.items():
        if not named.startswith(_PREFIX):
            yield (*place, name), Path(named)
