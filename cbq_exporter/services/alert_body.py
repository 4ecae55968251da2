"""The body of Alertmanager's webhook, version 4, as far as it is used. What else is in it is passed over."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cbq_exporter.errors import CbqError
from cbq_exporter.policy.alerts import Alert

VERSION = "4"

_Status = Annotated[Literal["firing", "resolved"], Meta(description="resolved never causes anything.")]
_Labels = Annotated[dict[str, str], Meta(description="What routes look at.")]
_Fingerprint = Annotated[
    str, Meta(pattern="^[A-Za-z0-9_-]{1,64}$", description="Alertmanager's name for this set of labels.")
]
_StartsAt = Annotated[
    datetime, Meta(tz=True, description="The beginning of this firing; with the fingerprint it tells repetitions.")
]


class AlertBody(msgspec.Struct, frozen=True, kw_only=True):
    """One alert."""

    status: _Status
    labels: _Labels
    startsAt: _StartsAt  # noqa: N815 (Alertmanager's name)
    fingerprint: _Fingerprint


class WebhookBody(msgspec.Struct, frozen=True, kw_only=True):
    """What Alertmanager posts."""

    version: Annotated[str, Meta(description="Must be 4.", extra_json_schema={"const": "4"})]
    alerts: list[AlertBody]
    truncatedAlerts: Annotated[  # noqa: N815
        int, Meta(ge=0, le=10**9, description="Alerts that max_alerts of Alertmanager left out.")
    ] = 0


class _OneAlert(msgspec.Struct, frozen=True, kw_only=True):
    """An alert as a person writes it to try a route."""

    labels: _Labels
    status: _Status = "firing"
    startsAt: _StartsAt = datetime(2000, 1, 1, tzinfo=UTC)  # noqa: N815
    fingerprint: _Fingerprint = "test"


class BadAlerts(CbqError):
    """The body is not what is needed."""


@dataclass(frozen=True, slots=True)
class Alerts:
    """``truncated`` counts those that Alertmanager left out."""

    alerts: tuple[Alert, ...]
    truncated: int


def read(content: bytes) -> Alerts:
    """Raises BadAlerts."""
    try:
        body = msgspec.json.decode(content, type=WebhookBody)
        if body.version != VERSION:
            raise BadAlerts("version must be 4, as Alertmanager sends it")
        return Alerts(tuple(_alert(one) for one in body.alerts), body.truncatedAlerts)
    except msgspec.ValidationError as error:
        raise BadAlerts(f"the body: {error}") from None
    except (ValueError, RecursionError):  # ValueError: not JSON, or not UTF-8
        raise BadAlerts("the body is not JSON in UTF-8") from None


def read_one_or_all(content: bytes) -> Alerts:
    """A whole body, or a single alert that may leave out all but its labels. Raises BadAlerts."""
    try:
        return Alerts((_alert(msgspec.json.decode(content, type=_OneAlert)),), 0)
    except (ValueError, RecursionError):
        return read(content)


def _alert(body: AlertBody | _OneAlert) -> Alert:
    try:
        started = body.startsAt.astimezone(UTC).isoformat()
    except OverflowError:  # at the very beginning or end of time
        started = body.startsAt.isoformat()
    return Alert(body.fingerprint, started, body.status == "firing", body.labels)
