"""How callbacks are sent: the part of the configuration that a queue has once, and each destination may change.

Durations are seconds, sizes are bytes.
"""

# Without "from __future__ import annotations": pydantic would compile each annotation from its text, at each start.

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cbq_exporter.config import kinds
from cbq_exporter.config.kinds import DAY, GIB, HOUR, KIB, MIB, MINUTE, SECOND, Kind, Wrong
from cbq_exporter.config.section import Section


class PerDestinationConfig(Section):
    """Limits for each receiving host, so that a slow one cannot hold up the others."""

    concurrency: Annotated[int, kinds.whole(1, 10_000)] = Field(
        32, description="Requests to one host at the same time."
    )
    first_concurrency: Annotated[int, kinds.whole(1, 10_000)] | None = Field(
        None,
        description="Requests at the same time to one that has not answered lately; each answer allows one more. "
        "Null: an eighth of concurrency, 4 at least.",
    )
    rate: Annotated[float, kinds.rate()] | None = Field(
        None, description="Requests to one host in a time, such as 50/s. Null: no limit."
    )
    bandwidth: Annotated[float, kinds.bandwidth()] | None = Field(
        None, description="Request bytes to one host in a time, such as 10Mbit/s. Null: no limit."
    )


class TemplateBody(Section):
    """A body made from a template file."""

    template: Annotated[Path, kinds.path()] = Field(description="A Jinja2 template.")


class RendererBody(Section):
    """A body made by a Python function."""

    renderer: Annotated[str, kinds.text(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", "package.module:function")] = Field(
        description="A Python function: cbq_exporter.rendering says of what, and to what."
    )


def _read_body(value: object, written: bool) -> object:
    if isinstance(value, TemplateBody | RendererBody) or (isinstance(value, str) and value in ("data", "item")):
        return value
    for name, model in (("template", TemplateBody), ("renderer", RendererBody)):
        if isinstance(value, dict) and list(value) == [name]:
            try:
                return model(**value)
            except ValueError:
                break
    raise Wrong


_BODY = Kind(
    "data, item, {template: file.j2} or {renderer: 'package.module:function'}",
    _read_body,
    {
        "anyOf": [
            {"enum": ["data", "item"]},
            *(
                {
                    "type": "object",
                    "properties": {name: {"type": "string"}},
                    "required": [name],
                    "additionalProperties": False,
                }
                for name in ("template", "renderer")
            ),
        ]
    },
)


class RequestConfig(Section):
    """What a request is made of."""

    body: Annotated[Literal["data", "item"] | TemplateBody | RendererBody, _BODY] = Field(
        "data",
        description="data posts the item's data field, item posts the whole item byte for byte. "
        "{template: file.j2} makes any body of it, {renderer: 'package.module:function'} any request: see shaping.md.",
    )
    headers: dict[Annotated[str, kinds.header_name()], Annotated[str, kinds.header_value()]] = Field(
        default_factory=dict,
        repr=False,
        description="Headers added to every request, name: value. One with {{ }} in it is a template.",
    )
    item_headers: tuple[Annotated[str, kinds.header_name()], ...] = Field(
        (), description="Headers that an item may give, in its own field headers."
    )
    secrets: dict[Annotated[str, kinds.secret_name()], Annotated[str, kinds.secret_source()]] = Field(
        default_factory=dict,
        description="What templates and renderers know as secrets.NAME: a file each, or env:VARIABLE.",
    )
    gzip_from: Annotated[int, kinds.size(0, GIB)] | None = Field(
        None,
        description="Bodies of this size or more are sent with content-encoding: gzip. A signature is of the body "
        "before that. Null: none.",
    )


class EgressConfig(Section):
    """Where requests may go. Every address that is not public is refused, unless it is allowed here."""

    allow: tuple[Annotated[IPv4Network | IPv6Network, kinds.network()], ...] = Field(
        (), description="Networks of private receivers that may be reached, such as [10.20.0.0/16]."
    )
    ports: tuple[Annotated[int, kinds.whole(1, 65_535)], ...] | None = Field(
        None, description="The only ports that requests may go to, such as [80, 443, 8443]. Null: all."
    )


class ProxyConfig(Section):
    """An HTTP proxy in front."""

    url: Annotated[str, kinds.proxy()] = Field(
        examples=["http://proxy.example:3128"], description="The proxy, http or https, without credentials."
    )
    credentials_file: Annotated[Path, kinds.path()] | None = Field(
        None, description="A file with user:password for the proxy (Basic authentication). Null: none."
    )


class CoalesceConfig(Section):
    """Several callbacks for one URL in one request: docs/delivery.md."""

    size: Annotated[int, kinds.whole(2, 10_000)] = Field(100, description="The most callbacks in one request.")
    max_bytes: Annotated[int, kinds.size(1, GIB)] = Field(MIB, description="The most bytes in one request.")
    linger: Annotated[float, kinds.duration(0, MINUTE)] = Field(
        0.05, description="How long the first of them waits for more."
    )
    field: (
        Annotated[
            str, kinds.text(r"(?!ids$)[A-Za-z_][A-Za-z0-9_]{0,99}", "a name of letters, digits and _ other than ids")
        ]
        | None
    ) = Field(
        None,
        description="Null posts a JSON array of the bodies. A name posts an object that has them there, and their ids "
        "beside them as ids.",
    )


class SigningConfig(Section):
    """Signatures by Standard Webhooks, by which a receiver can tell our callbacks from others'."""

    secrets_file: Annotated[Path, kinds.path()] | None = Field(
        None,
        description="A file with the secrets (whsec_...), each on a line. With several, a request carries a signature "
        "by each, so that one can be replaced without a gap. A reload reads them again.",
    )
    secrets_env: Annotated[str, kinds.text(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable")] | None = (
        Field(None, description="An environment variable with the secrets, separated by spaces.")
    )


class BreakerConfig(Section):
    """When a receiver that fails is left alone for a while. Its callbacks wait in retry, and use up no attempt."""

    enabled: Annotated[bool, kinds.flag()] = Field(True, description="false sends to it however often it fails.")
    failure_ratio: Annotated[float, kinds.share()] = Field(
        0.8, description="It opens when this part of the attempts in the window has failed ..."
    )
    min_attempts: Annotated[int, kinds.whole(1, 100_000)] = Field(
        20, description="... of so many at least; where fewer are made in that time, when so many in a row have failed."
    )
    window: Annotated[float, kinds.duration(SECOND, HOUR)] = Field(30 * SECOND, description="How far back is looked.")
    open_for: Annotated[float, kinds.duration(0.1, DAY)] = Field(
        30 * SECOND, description="How long nothing is sent; then a few attempts show whether it is well again."
    )
    longest_open: Annotated[float, kinds.duration(0.1, DAY)] = Field(
        10 * MINUTE, description="Each time that these fail it is left alone for twice as long, up to this."
    )
    probes: Annotated[int, kinds.whole(1, 1000)] = Field(
        3, description="So many attempts must succeed in a row to close it."
    )


class DeliveryConfig(Section):
    """How callbacks are sent."""

    timeout: Annotated[float, kinds.duration(0.01, HOUR)] = Field(
        15 * SECOND, description="The longest that one attempt may take, connecting included."
    )
    connect_timeout: Annotated[float, kinds.duration(0.01, HOUR)] = Field(
        5 * SECOND, description="The longest that connecting may take. Not longer than timeout."
    )
    lease: Annotated[float, kinds.duration(SECOND, DAY)] = Field(
        30 * SECOND,
        description="How long a claimed callback stays ours without a sign of life. At least 1s longer than timeout.",
    )
    concurrency: Annotated[int, kinds.whole(1, 10_000)] = Field(
        256, description="Requests at the same time, to all hosts together."
    )
    idle_connections: Annotated[int, kinds.whole(0, 100_000)] = Field(
        1000,
        description="Connections without a request that are kept for the next one, to all hosts together, for up to "
        "55s. Each takes about 2 KiB of memory, 50 KiB over TLS. Fewer where the limit of open files is low.",
    )
    max_in_flight_bytes: Annotated[int, kinds.size(KIB, 1024 * GIB)] = Field(
        64 * MIB, description="The most payload bytes held in memory for sending."
    )
    max_response_bytes: Annotated[int, kinds.size(0, GIB)] = Field(
        64 * KIB, description="An answer is read up to here; the rest is ignored."
    )
    max_request_bytes: Annotated[int, kinds.size(1, GIB)] = Field(
        8 * MIB, description="A callback with a larger body is not sent: it goes to the dead letters."
    )
    user_agent: Annotated[str, kinds.header_value()] | None = Field(
        None, description="The User-Agent header. Null: the program's name and version."
    )
    ca_file: Annotated[Path, kinds.path()] | None = Field(
        None, description="Certificates to trust (PEM). Null: those of the system."
    )
    order_by: Annotated[str, kinds.text(r".{1,200}", "the name of a field of the items")] | None = Field(
        None,
        description="Callbacks with the same value in this field, such as task_id, go one after the other, in "
        "the order of pending. Null: in no order.",
    )
    own_process: Annotated[bool, kinds.flag()] = Field(
        False,
        description="true sends from a process of its own: faster where there is a processor for it, for about "
        "25 MiB of memory a queue.",
    )
    per_destination: PerDestinationConfig = PerDestinationConfig()
    request: RequestConfig = RequestConfig()
    egress: EgressConfig = EgressConfig()
    proxy: ProxyConfig | None = Field(
        None,
        description="An HTTP proxy that every request goes through, by CONNECT, http and https alike. It looks up "
        "names: egress judges only ports, addresses in URLs, and names that cannot be public (localhost, *.local, "
        "*.internal, names without a dot). Null: none, whatever the environment says.",
    )
    signing: SigningConfig | None = Field(None, description="Signatures. Null: none.")
    breaker: BreakerConfig = BreakerConfig()
    coalesce: CoalesceConfig | None = Field(
        None, description="Several callbacks for one URL in one request. Null: each goes alone."
    )


_Statuses = dict[
    Annotated[str, kinds.text(r"[1345](?:[0-9]{2}|xx)", 'a status other than 2xx in quotes, such as "409" or "5xx"')],
    Annotated[Literal["delivered", "retry", "dead", "pause"], kinds.choice("delivered", "retry", "dead", "pause")],
]


class RetryConfig(Section):
    """What happens after a failed attempt. Each wait is random, up to base doubled with each attempt."""

    max_attempts: Annotated[int, kinds.whole(1, 1000)] = Field(
        10, description="Attempts in all; then the callback goes to the dead letters."
    )
    max_age: Annotated[float, kinds.duration(SECOND, 365 * DAY)] = Field(
        24 * HOUR, description="Nor is it tried again when it is older than this."
    )
    base: Annotated[float, kinds.duration(0.001, DAY)] = Field(
        5 * SECOND, description="The longest wait after one failure."
    )
    cap: Annotated[float, kinds.duration(0.001, 30 * DAY)] = Field(
        HOUR, description="No wait is longer than this. Not shorter than base."
    )
    retry_after_cap: Annotated[float, kinds.duration(0, 30 * DAY)] = Field(
        HOUR, description="The longest wait that a receiver can ask for with Retry-After."
    )
    statuses: _Statuses = Field(
        default_factory=dict,
        description="What a status means: delivered, retry, dead, or pause (dead, and the destination is paused). "
        "A single status goes before its class. Left out, 410 is pause, the other 4xx are dead but for 408, 425 and "
        "429, and all else is retry. 2xx is always delivered.",
    )


class TlsConfig(Section):
    """Certificates for one receiver."""

    ca_file: Annotated[Path, kinds.path()] | None = Field(
        None, description="Certificates to trust (PEM), in place of the queue's ca_file."
    )
    cert_file: Annotated[Path, kinds.path()] | None = Field(None, description="Our certificate (PEM).")
    key_file: Annotated[Path, kinds.path()] | None = Field(
        None, description="Its key (PEM), without a password. Null: it is in cert_file."
    )


class DestinationRetryConfig(Section):
    """What is different from the queue's retry."""

    max_attempts: Annotated[int, kinds.whole(1, 1000)] | None = Field(None, description="Null: the queue's.")
    max_age: Annotated[float, kinds.duration(SECOND, 365 * DAY)] | None = Field(None, description="Null: the queue's.")
    base: Annotated[float, kinds.duration(0.001, DAY)] | None = Field(None, description="Null: the queue's.")
    cap: Annotated[float, kinds.duration(0.001, 30 * DAY)] | None = Field(None, description="Null: the queue's.")
    retry_after_cap: Annotated[float, kinds.duration(0, 30 * DAY)] | None = Field(
        None, description="Null: the queue's."
    )
    statuses: _Statuses = Field(
        default_factory=dict, description="As the queue's, and before them: delivered, retry, dead or pause."
    )


class DestinationConfig(Section):
    """One receiver, or several under one name. Null leaves a setting to the queue's `delivery`."""

    name: Annotated[str, kinds.queue_name()] = Field(
        examples=["partner"], description="What it is called in metrics, pauses and dead letters. Unique."
    )
    match: Annotated[str, kinds.receiver()] = Field(
        examples=["hooks.example.com"],
        description="A host, with a port where it has one of its own, or a URL. A star stands for any characters.",
    )
    paused: Annotated[bool, kinds.flag()] = Field(False, description="true sends nothing; callbacks wait in retry.")
    concurrency: Annotated[int, kinds.whole(1, 10_000)] | None = Field(
        None, description="Requests at the same time. Null: per_destination.concurrency."
    )
    first_concurrency: Annotated[int, kinds.whole(1, 10_000)] | None = Field(
        None,
        description="Requests at the same time while it has not answered lately. Null: "
        "per_destination.first_concurrency; where that is null too, an eighth of concurrency, 4 at least.",
    )
    rate: Annotated[float, kinds.rate()] | None = Field(
        None, description="Requests in a time, such as 50/s. Null: per_destination.rate."
    )
    bandwidth: Annotated[float, kinds.bandwidth()] | None = Field(
        None, description="Request bytes in a time, such as 10Mbit/s. Null: per_destination.bandwidth."
    )
    timeout: Annotated[float, kinds.duration(0.01, HOUR)] | None = Field(
        None, description="Not longer than the queue's: the lease is made for that. Null: the queue's."
    )
    connect_timeout: Annotated[float, kinds.duration(0.01, HOUR)] | None = Field(None, description="Null: the queue's.")
    request: RequestConfig | None = Field(
        None, description="What is different from the queue's: keys left out are its own, headers are added to its own."
    )
    retry: DestinationRetryConfig = DestinationRetryConfig()
    signing: SigningConfig | None = Field(None, description="Null: the queue's.")
    breaker: BreakerConfig | None = Field(None, description="Null: the queue's.")
    coalesce: CoalesceConfig | None = Field(None, description="Null: the queue's.")
    tls: TlsConfig | None = Field(None, description="Certificates. Null: the queue's ca_file, and none of ours.")
