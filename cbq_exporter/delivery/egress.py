"""Which addresses may be connected to. A pure decision; the engine asks it just before each connect.

So names are judged by what they lead to at that moment. Behind a proxy the addresses are not seen here: then the
target is judged as it is written, before it is handed over (``verdict_on_target``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the sending process does without
    from cbq_exporter.config import EgressConfig

Network = IPv4Network | IPv6Network
_Address = IPv4Address | IPv6Address

METADATA = "a cloud metadata address"

_REMEMBERED = 4096


def _table(*rows: tuple[str, str]) -> tuple[tuple[Network, str], ...]:
    return tuple((ip_network(network), label) for network, label in rows)


# First match wins, so the narrow and telling ones stand first.
_REFUSED_V4 = _table(
    ("169.254.169.254/32", METADATA),
    ("168.63.129.16/32", METADATA),
    ("100.100.100.200/32", METADATA),
    ("192.0.0.192/32", METADATA),
    ("0.0.0.0/32", "the unspecified address"),
    ("0.0.0.0/8", "an address of this network"),
    ("10.0.0.0/8", "a private address"),
    ("100.64.0.0/10", "a carrier-grade NAT address"),
    ("127.0.0.0/8", "a loopback address"),
    ("169.254.0.0/16", "a link-local address"),
    ("172.16.0.0/12", "a private address"),
    ("192.0.0.0/24", "a protocol assignment"),
    ("192.0.2.0/24", "a documentation address"),
    ("192.88.99.0/24", "a 6to4 relay address"),
    ("192.168.0.0/16", "a private address"),
    ("198.18.0.0/15", "a benchmarking address"),
    ("198.51.100.0/24", "a documentation address"),
    ("203.0.113.0/24", "a documentation address"),
    ("224.0.0.0/4", "a multicast address"),
    ("255.255.255.255/32", "the broadcast address"),
    ("240.0.0.0/4", "a reserved address"),
)
_REFUSED_V6 = _table(
    ("fd00:ec2::254/128", METADATA),
    ("fd20:ce::254/128", METADATA),
    ("::/128", "the unspecified address"),
    ("::1/128", "a loopback address"),
    ("::ffff:0:0/96", "an IPv4-mapped address"),
    ("::ffff:0:0:0/96", "an IPv4-translated address"),
    ("::/96", "an IPv4-compatible address"),
    ("64:ff9b::/96", "a NAT64 address"),
    ("64:ff9b:1::/48", "a local NAT64 address"),
    ("100::/64", "a discard-only address"),
    ("2001::/32", "a Teredo address"),
    ("2001:2::/48", "a benchmarking address"),
    ("2001::/23", "a protocol assignment"),
    ("2001:db8::/32", "a documentation address"),
    ("2002::/16", "a 6to4 address"),
    ("3fff::/20", "a documentation address"),
    ("fc00::/7", "a private address"),
    ("fe80::/10", "a link-local address"),
    ("fec0::/10", "a site-local address"),
    ("ff00::/8", "a multicast address"),
)
# Ends of names that lead nowhere in public: RFC 6761, 6762 (with its appendix G), 8375, and ICANN's .internal.
_NEVER_PUBLIC = frozenset(
    ("localhost", "localdomain", "local", "internal", "intranet", "private", "corp", "home", "lan", "home.arpa")
)
_GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")

_LOW_96 = _table(
    ("::ffff:0:0/96", ""), ("::ffff:0:0:0/96", ""), ("::/96", ""), ("64:ff9b::/96", ""), ("64:ff9b:1::/48", "")
)
_SIX_TO_FOUR = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")

_LOCALHOST = ("127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """Refuses every address that is not globally routable, unless a network of ``allow`` contains it.

    An IPv6 address that carries an IPv4 one (mapped, NAT64, 6to4, Teredo …) is judged as both; an IPv4
    network in ``allow`` covers the mapped form of its addresses. ``ports`` are the only ones allowed; None: all.
    """

    allow: tuple[Network, ...] = ()
    ports: frozenset[int] | None = None
    _known: dict[str, str | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def verdict(self, address: str) -> str | None:
        """None where connecting to ``address`` is allowed; else the reason, in one line."""
        try:
            return self._known[address]
        except KeyError:
            pass
        reason = self._judge(address)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[address] = reason
        return reason

    def verdict_on_port(self, port: int) -> str | None:
        if self.ports is None or port in self.ports:
            return None
        return f"port {port} is none of {', '.join(map(str, sorted(self.ports)))}"

    def verdict_on_target(self, host: str, port: int) -> str | None:
        """Like ``verdict``, of a host as ``url.parse`` gives it: an address, or a name that only a proxy looks up."""
        reason = self.verdict_on_port(port)
        if reason is not None:
            return reason
        try:
            ip_address(host)
        except ValueError:
            name = host.rstrip(".").lower()
            if "." not in name:
                return f"{name} is a name without a domain"
            if any(name.endswith(f".{end}") for end in _NEVER_PUBLIC):
                return f"{name} is a private name"
            return None
        return self.verdict(host)

    def verdict_at_sight(self, host: str, port: int) -> str | None:
        """Why a request there is refused for certain, of a host as ``url.parse`` gives it, without looking it up."""
        reason = self.verdict_on_port(port)
        if reason is not None:
            return reason
        addresses = _LOCALHOST if host.rstrip(".").lower() == "localhost" else (host,)
        try:
            ip_address(addresses[0])
        except ValueError:
            return None
        reasons = [self.verdict(address) for address in addresses]
        return reasons[0] if all(reasons) else None

    def _judge(self, text: str) -> str | None:
        try:
            address = ip_address(text.partition("%")[0])
        except ValueError:
            return f"{text[:64]!r} is not an IP address"
        reason = self._judge_as_written(address)
        if reason is None and isinstance(address, IPv6Address):
            for inner in _embedded(address):
                within = self._judge_as_written(inner)
                if within is not None:
                    return f"{address} leads to {within}"
        return reason

    def _judge_as_written(self, address: _Address) -> str | None:
        label = _label(address)
        if label is None or self._allowed(address):
            return None
        return f"{address} is {label}"

    def _allowed(self, address: _Address) -> bool:
        # A mapped address is only another way to write the IPv4 one: the same socket reaches it.
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return any(address in network or (mapped is not None and mapped in network) for network in self.allow)


def policy_of(config: EgressConfig) -> EgressPolicy:
    return EgressPolicy(config.allow, None if config.ports is None else frozenset(config.ports))


def _label(address: _Address) -> str | None:
    """What kind of not globally routable address this is; None for a public one."""
    for network, label in _REFUSED_V4 if isinstance(address, IPv4Address) else _REFUSED_V6:
        if address in network:
            return label
    if isinstance(address, IPv6Address):
        return None if address in _GLOBAL_UNICAST_V6 else "not a global unicast address"
    return None if address.is_global else "not globally routable"


def _embedded(address: IPv6Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that a packet for ``address`` could end at."""
    value = int(address)
    if address in (IPv6Address("::"), IPv6Address("::1")):
        return ()
    if any(address in network for network, _ in _LOW_96):
        return (IPv4Address(value & 0xFFFFFFFF),)
    if address in _SIX_TO_FOUR:
        return (IPv4Address((value >> 80) & 0xFFFFFFFF),)
    if address in _TEREDO:
        return (IPv4Address((value >> 64) & 0xFFFFFFFF), IPv4Address(~value & 0xFFFFFFFF))
    return ()
