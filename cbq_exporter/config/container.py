"""Whether the process runs in a container, where an address of its own is reached by nobody outside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cbq_exporter.config.models import WebConfig

_FILES = (".dockerenv", "run/.containerenv")  # of Docker and of Podman
_VARIABLES = ("container", "KUBERNETES_SERVICE_HOST")  # of Podman, LXC and systemd-nspawn; of a pod


def inside(environ: Mapping[str, str], root: Path = Path("/")) -> bool:
    """As far as the runtimes tell those that they run."""
    return any(environ.get(name) for name in _VARIABLES) or any((root / name).exists() for name in _FILES)


def hint(web: WebConfig) -> str | None:
    """What somebody should know who wonders why nothing answers at the published port.

    Also where the address stands in the file: ``init`` writes every key into it, so that nobody need have meant it. A
    sidecar may well be all that is to reach it, or the network be the host's; so it is a hint, not a warning.
    """
    if not web.is_loopback:
        return None
    return (
        f"listening on {web.host} inside a container: nobody outside of it reaches that; "
        f'set web.listen_address to ":{web.port}" to listen on all of its addresses'
    )
