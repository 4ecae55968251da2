"""Rules about single destinations.

The first paragraph of each rule's docstring is its line in the documentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

from cbq_exporter.config.delivery import DestinationConfig, TlsConfig
from cbq_exporter.config.kinds import write_duration
from cbq_exporter.config.models import Config
from cbq_exporter.config.places import Finding, Place, shown
from cbq_exporter.model import Mode

# The first must not be longer than the second, which may be left to the third, of a queue.
_UNEVEN = (("connect_timeout", "timeout", "delivery.timeout"), ("retry.base", "retry.cap", "retry.cap"))


def refuse_uneven_times(config: Config) -> Iterator[Finding]:
    """A destination's `connect_timeout` longer than its `timeout`, or its `retry.base` longer than its `retry.cap`;
    where these are left out, than those of a queue that sends."""
    for position, entry in enumerate(config.destinations):
        for short, long, usual in _UNEVEN:
            value = attrgetter(short)(entry)
            for place, limit in _limits(config, position, entry, long, usual):
                if value is not None and value > limit:
                    allowed = f"must not be longer than {shown(place)} ({write_duration(limit)})"
                    yield Finding(
                        ("destinations", position, *short.split(".")), write_duration(value), allowed, (place,)
                    )
                    break


def _limits(
    config: Config, position: int, entry: DestinationConfig, long: str, usual: str
) -> Iterator[tuple[Place, float]]:
    own = attrgetter(long)(entry)
    if own is not None:
        yield ("destinations", position, *long.split(".")), own
        return
    for number, queue in enumerate(config.queues):
        if queue.mode is Mode.DISPATCH:
            yield ("queues", number, *usual.split(".")), attrgetter(usual)(queue)


def refuse_unfit_certificates(config: Config) -> Iterator[Finding]:
    """A destination's `tls.ca_file`, `cert_file` or `key_file` that cannot be read or is not what it should be, a
    `key_file` without a `cert_file`, and a key that does not belong to the certificate or has a password."""
    for position, entry in enumerate(config.destinations):
        if entry.tls is None:
            continue
        at: Place = ("destinations", position, "tls")
        unread = list(_unread(at, entry.tls))
        yield from unread or _unfit(at, entry.tls)


def _unread(at: Place, tls: TlsConfig) -> Iterator[Finding]:
    if tls.key_file is not None and tls.cert_file is None:
        yield Finding((*at, "key_file"), "a key", "must have a certificate: give cert_file", ((*at, "cert_file"),))
    for name in ("ca_file", "cert_file", "key_file"):
        path: Path | None = getattr(tls, name)
        if path is None:
            continue
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            yield Finding((*at, name), f"a file that cannot be read ({error.strerror})", "must be a PEM file")


def _unfit(at: Place, tls: TlsConfig) -> Iterator[Finding]:
    import ssl  # only where it is asked for: commands are to be quick

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.ca_file is not None:
        try:
            context.load_verify_locations(tls.ca_file)
        except OSError as error:
            yield Finding((*at, "ca_file"), f"no certificates ({_reason(error)})", "must have certificates in PEM")
    if tls.cert_file is not None:
        try:
            # An empty password: without one, OpenSSL would ask at the terminal.
            context.load_cert_chain(tls.cert_file, tls.key_file, password="")
        except OSError as error:
            found = f"no certificate with its key ({_reason(error)})"
            keyed = "key_file" if tls.key_file is not None else "cert_file"
            yield Finding(
                (*at, "cert_file"),
                found,
                f"must have a certificate in PEM, and {keyed} its private key without a password",
                ((*at, "key_file"),),
            )


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None) or error.strerror or "not PEM"
    return str(reason).lower().replace("_", " ")


def warn_unreachable(config: Config) -> Iterator[Finding]:
    """A destination whose `match` an earlier one covers: it never counts."""
    from cbq_exporter.config.matching import Match  # only where it is asked for: commands are to be quick

    matches = [Match.read(entry.match) for entry in config.destinations]
    for position, match in enumerate(matches):
        for earlier in range(position):
            if matches[earlier].covers(match):
                found = f"{config.destinations[position].match} is covered by {shown(('destinations', earlier))}"
                yield Finding(("destinations", position, "match"), found, "the first that fits counts: this never does")
                break


def warn_usual_port(config: Config) -> Iterator[Finding]:
    """A destination whose `match` is a host with port 80 or 443: where these are the scheme's own, URLs are taken as
    without a port."""
    for position, entry in enumerate(config.destinations):
        if "://" not in entry.match and re.search(r":(80|443)\Z", entry.match):
            host, _, port = entry.match.rpartition(":")
            scheme = "http" if port == "80" else "https"
            found = f"{entry.match} does not fit {scheme}://{host}"
            yield Finding(("destinations", position, "match"), found, f"leave out :{port}")
