"""What is kept with a callback that waits for a retry or is dead, and what is remembered of one that went back."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from cbq_exporter import item
from cbq_exporter.model import (
    WAITS_FOR_TURN,
    Dead,
    DeadLetter,
    DeadReason,
    Failure,
    Held,
    Retry,
    Settlement,
    WaitingRetry,
)
from cbq_exporter.store.leases import read_lease

_MAX_TEXT = 2000
_MAX_URL = 8192
_MAX_NAME = 300

_WAITING = Failure(WAITS_FOR_TURN, detail="an earlier callback of its key has not ended")


class _Waiting(msgspec.Struct):
    destination: str = ""
    reason: str = ""
    kind: str = ""


_decode = msgspec.json.Decoder().decode
_decode_waiting = msgspec.json.Decoder(_Waiting).decode
_encode = msgspec.json.Encoder().encode


def of_settlement(settlement: Settlement, outcome: Retry | Held | Dead) -> bytes:
    """The record of a retry or a dead letter; ``claim.lua`` reads attempts, recoveries, first_ms and turn back."""
    claim = settlement.claimed
    return _record(
        attempts=claim.attempts + (not isinstance(outcome, Held) and outcome.attempt_used),
        recoveries=claim.recoveries,
        first_ms=claim.first_claimed_ms,
        size=len(claim.payload),
        url=settlement.url,
        destination=settlement.destination,
        reason=outcome.reason.value if isinstance(outcome, Dead) else "",
        failure=_WAITING if isinstance(outcome, Held) else outcome.failure,
        turn=claim.turn,
    )


def mark_of_waiting(destination: str) -> bytes:
    """What the record of a retry to ``destination`` contains (see ``_record``), up to the kind of its failure."""
    return b'"destination":' + _encode(_storable(destination, _MAX_NAME)) + b',"reason":"","kind":"'


def waits_for(record: bytes | None, kinds: Collection[str]) -> str | None:
    """The destination of a retry that waits by a failure of one of these ``kinds``; None for all others."""
    try:
        read = _decode_waiting(record or b"")
    except msgspec.DecodeError:
        return None
    return read.destination if read.kind in kinds and not read.reason else None


def of_poison(lease: str, payload: bytes) -> bytes:
    """The record of a callback whose daemon went away too often while it was in flight."""
    claim = read_lease(lease.encode(), payload)
    count = claim.recoveries + 1
    return _record(
        attempts=claim.attempts,
        recoveries=count,
        first_ms=claim.first_claimed_ms,
        size=len(payload),
        url=item.url_of(payload),
        destination="",
        reason=DeadReason.POISON.value,
        failure=Failure(kind="poison", detail=f"its lease ran out {count} times: sending it may end the daemon"),
    )


def of_stuck(payload: bytes, recoveries: int, now_ms: int) -> bytes:
    """The record of a callback that other workers claimed and left in processing too often."""
    return _record(
        attempts=0,
        recoveries=recoveries,
        first_ms=now_ms,
        size=len(payload),
        url=item.url_of(payload),
        destination="",
        reason=DeadReason.POISON.value,
        failure=Failure(
            kind="poison",
            detail=f"it was left in processing {recoveries} times: its worker dies of it, or does not clear it away",
        ),
    )


def recoveries_of(memory: bytes | None) -> int:
    """Of what is remembered of one that went back to pending: ``attempts|recoveries|first ms|returned ms``, where in
    front of the last there may be a turn.
    """
    parts = (memory or b"").split(b"|")
    return int(parts[1]) if len(parts) in (4, 5) and parts[1].isdigit() else 0


def dead_letter(letter_id: str, died_ms: float, record: bytes | None, payload: bytes | None, size: int) -> DeadLetter:
    """Read what was kept; a record that is missing or broken leaves its fields empty."""
    fields = _fields(record)
    return DeadLetter(
        id=letter_id,
        reason=str(fields.get("reason", "unknown")),
        url=str(fields.get("url", "")),
        destination=str(fields.get("destination", "")),
        attempts=_number(fields.get("attempts")),
        first_at=_number(fields.get("first_ms")) / 1000,
        died_at=died_ms / 1000,
        failure=_failure(fields),
        size=_number(fields.get("size")) if fields else size,
        payload=payload,
    )


def waiting_retry(retry_id: str, due_ms: float, record: bytes | None, payload: bytes | None, size: int) -> WaitingRetry:
    """Read what was kept, as ``dead_letter`` does."""
    fields = _fields(record)
    return WaitingRetry(
        id=retry_id,
        url=str(fields.get("url", "")),
        destination=str(fields.get("destination", "")),
        attempts=_number(fields.get("attempts")),
        first_at=_number(fields.get("first_ms")) / 1000,
        due_at=due_ms / 1000,
        failure=_failure(fields),
        size=_number(fields.get("size")) if fields else size,
        payload=payload,
    )


def _fields(record: bytes | None) -> dict[str, Any]:
    try:
        decoded = _decode(record or b"")
    except msgspec.DecodeError:
        return {}
    return decoded if isinstance(decoded, dict) else {}


def _failure(fields: dict[str, Any]) -> Failure:
    return Failure(
        kind=str(fields.get("kind", "")),
        status=_number(fields.get("status")),
        detail=str(fields.get("detail", "")),
        sample=str(fields.get("sample", "")),
        at=float(_number(fields.get("at_ms")) / 1000),
    )


def _record(
    *,
    attempts: int,
    recoveries: int,
    first_ms: int,
    size: int,
    url: str,
    destination: str,
    reason: str,
    failure: Failure,
    turn: str = "",
) -> bytes:
    return _encode(
        {
            **({"turn": turn} if turn else {}),
            "attempts": attempts,
            "recoveries": recoveries,
            "first_ms": first_ms,
            "size": size,
            "url": _storable(url, _MAX_URL),
            "destination": _storable(destination, _MAX_NAME),  # these three in this order
            "reason": reason,
            "kind": failure.kind,
            "status": failure.status,
            "detail": _storable(failure.detail, _MAX_TEXT),
            "sample": _storable(failure.sample, _MAX_TEXT),
            "at_ms": round(failure.at * 1000),
        }
    )


def _storable(text: str, most: int) -> str:
    """Text that JSON can carry: no lone surrogates, not endless."""
    return text[:most].encode("utf-8", "replace").decode("utf-8")


def _number(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0
