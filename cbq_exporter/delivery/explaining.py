"""Why a URL can be sent to or not: the same judgements as sending makes, each with its reason, and nothing sent."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cbq_exporter.config import DestinationConfig, QueueConfig
from cbq_exporter.config.files import Files
from cbq_exporter.delivery import url
from cbq_exporter.delivery.egress import METADATA, EgressPolicy, policy_of
from cbq_exporter.delivery.receivers import Receivers


@dataclass(frozen=True, slots=True)
class Address:
    """What the host leads to at this moment; ``refused`` is the reason, None where it may be connected to."""

    address: str
    refused: str | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """``refused`` is why nothing can be sent there; None where it can, as far as is known without sending.

    ``unresolved`` is why the host leads nowhere now, which is tried again. ``match`` is that of the entry of
    ``destinations`` that applies. Behind a proxy there are no addresses: it looks them up. ``setting`` is what would
    let it through, where that is meant; None where nothing does.
    """

    given: str
    refused: str | None
    url: str | None = None
    host: str | None = None
    port: int | None = None
    destination: str | None = None
    match: str | None = None
    paused: bool = False
    tls: bool = False
    ca_file: str | None = None
    cert_file: str | None = None
    proxy: str | None = None
    addresses: tuple[Address, ...] = ()
    unresolved: str | None = None
    setting: str | None = None


def resolve(host: str, port: int) -> list[str]:
    """As the system does it, in its order; raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def explain(
    given: str,
    queue: QueueConfig,
    destinations: Sequence[DestinationConfig],
    look_up: Callable[[str, int], Sequence[str]] = resolve,
) -> Explanation:
    """``look_up`` gives the addresses of a host; raises OSError."""
    try:
        target = url.parse(given)
    except ValueError as error:
        return Explanation(given, str(error))
    delivery = queue.delivery
    receiver = Receivers(queue, destinations, files=Files(masked=True)).of(target)
    entry = next((one for one in destinations if one.name == receiver.name), None)
    ca_file = receiver.tls.ca_file if receiver.tls and receiver.tls.ca_file else delivery.ca_file
    egress = policy_of(delivery.egress)
    addresses: tuple[Address, ...] = ()
    unresolved = None
    if delivery.proxy is not None:
        refused = egress.verdict_on_target(target.host, target.port)
    else:
        refused = egress.verdict_on_port(target.port)
        try:
            found = look_up(target.host, target.port)
            addresses = tuple(Address(address, egress.verdict(address)) for address in found)
        except (OSError, UnicodeError) as error:
            unresolved = getattr(error, "strerror", None) or str(error)
        if refused is None and addresses and all(one.refused for one in addresses):
            refused = addresses[0].refused
    return Explanation(
        given,
        refused,
        target.url,
        target.host,
        target.port,
        receiver.name,
        None if entry is None else entry.match,
        receiver.paused,
        target.scheme == "https",
        None if ca_file is None else str(ca_file),
        None if receiver.tls is None or receiver.tls.cert_file is None else str(receiver.tls.cert_file),
        None if delivery.proxy is None else delivery.proxy.url,
        addresses,
        unresolved,
        None if refused is None else _setting(refused, target, egress, bool(addresses)),
    )


def _setting(refused: str, target: url.Target, egress: EgressPolicy, looked_up: bool) -> str | None:
    """A name that a proxy would look up cannot be allowed; nobody is told to allow the cloud's metadata."""
    if egress.verdict_on_port(target.port) is not None:
        return "delivery.egress.ports"
    if refused.endswith(METADATA) or not (looked_up or egress.verdict(target.host) == refused):
        return None
    return "delivery.egress.allow"
