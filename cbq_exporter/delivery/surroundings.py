"""What the slots of one engine share: how it sends, and what is known of the origins that it sends to."""

from __future__ import annotations

from ipaddress import ip_network

import msgspec
import pycurl

from cbq_exporter.delivery import url
from cbq_exporter.delivery.egress import EgressPolicy
from cbq_exporter.delivery.poller import Poller
from cbq_exporter.delivery.proxying import Proxy

_ORIGINS_KEPT = 10_000


class SendingOptions(msgspec.Struct, frozen=True):
    """What does not change while an engine runs. ``allow`` and ``ports``: see EgressPolicy; the rest as configured.

    ``max_connections`` may have a request at the same time, ``idle_connections`` more are kept without one.
    """

    allow: tuple[str, ...]
    ports: tuple[int, ...] | None
    proxy: Proxy | None
    max_response_bytes: int
    ca_file: str | None
    user_agent: str
    max_connections: int
    idle_connections: int


class Surroundings:
    """What the slots of one engine share. ``resolving`` counts the name look-ups under way.

    ``multiplexing`` are the origins that spoke HTTP/2 the last time. When ``stale_dropped_monotonic``, no address was
    kept for longer than it may be.
    """

    def __init__(self, options: SendingOptions, poller: Poller) -> None:
        ports = None if options.ports is None else frozenset(options.ports)
        self.egress = EgressPolicy(tuple(map(ip_network, options.allow)), ports)
        self.proxy = options.proxy
        self.poller = poller
        self.max_response_bytes = options.max_response_bytes
        self.ca_file = options.ca_file
        self.user_agent = options.user_agent
        self.resolving = 0
        self.multiplexing: set[str] = set()
        self.stale_dropped_monotonic = float("-inf")

    def note_version(self, origin: str, version: int) -> None:
        """``version`` as libcurl numbers those of HTTP."""
        if version < pycurl.CURL_HTTP_VERSION_2_0:
            self.multiplexing.discard(origin)
            return
        if len(self.multiplexing) >= _ORIGINS_KEPT:
            self.multiplexing.clear()
        self.multiplexing.add(origin)

    def refusal(self, target: str) -> str | None:
        """Why the URL ``target`` must not be handed to the proxy, or None. Raises ValueError for what is no URL."""
        read = url.parse(target)
        return self.egress.verdict_on_target(read.host, read.port)
