"""Every key of a queue, built here and nowhere else, with its Redis type."""

from __future__ import annotations

from dataclasses import dataclass, fields

STATS_TTL = 86_400  # seconds after the last change of a counter, as existing tools expect


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """The first seven belong to the contract with existing software; the rest are the daemon's own."""

    pending: str  # list: payloads, producers RPUSH
    processing: str  # list: payloads, byte for byte as they were in pending
    lock: str  # string: the send lock, with a TTL
    last_send: str  # string: epoch seconds, a float in text; expires
    stats_queued: str  # string: integer; expires
    stats_sent: str  # string: integer; expires
    stats_failed: str  # string: integer; expires
    leases: str  # sorted set: lease by deadline, ms
    retry: str  # sorted set: id by due time, ms
    dead: str  # sorted set: id by time of death, ms
    records: str  # hash: id to JSON, for what is in retry or dead
    payloads: str  # hash: id to payload, for what is in retry or dead
    returned: str  # hash: SHA-1 of a payload back in pending to attempts|recoveries|first ms|returned ms
    fence: str  # string: integer, one more for each claim
    order: str  # sorted set, by name: "<key>:<place>|<lease without it>" of what has left pending and has not ended
    sightings: str  # sorted set: "<SHA-1>#<k>" of what others have in processing by first sighting, ms
    lock_seen: str  # hash: value, first_ms, seen_ms of the send lock as it was seen
    daemons: str  # sorted set: lock value of a daemon by its last heartbeat, ms
    audit: str  # stream: who did what and why
    trash: str  # sorted set: id of a reset by the end of its keeping, ms
    trash_notes: str  # hash: id of a reset to JSON
    paused: str  # hash: "" (the queue) or a destination to JSON
    breakers: str  # hash: a destination whose circuit is not closed to "<phase> <until ms> <openings> <since ms>"
    answers: str  # sorted set: id of a kept answer of the API by the end of its keeping, ms
    alerts: str  # hash: id of an alert to "<state> <times taken> <JSON>"
    alert_times: str  # sorted set: id of an alert by the time it was admitted, ms
    alerts_open: str  # sorted set: id of an alert that is still to be acted on, by the same time
    alerts_turn: str  # string: token of who is acting on one; expires
    alerts_paused: str  # string: JSON; may expire
    schema: str  # string: the number of the layout of the daemon's own keys

    @classmethod
    def of(
        cls,
        prefix: str,
        *,
        pending: str | None = None,
        processing: str | None = None,
        lock: str | None = None,
        last_send: str | None = None,
        stats: str | None = None,
    ) -> QueueKeys:
        stats = stats or f"{prefix}:stats"
        return cls(
            pending=pending or f"{prefix}:pending",
            processing=processing or f"{prefix}:processing",
            lock=lock or f"{prefix}:lock",
            last_send=last_send or f"{prefix}:last_send_time",
            stats_queued=f"{stats}:queued",
            stats_sent=f"{stats}:sent",
            stats_failed=f"{stats}:failed",
            leases=f"{prefix}:leases",
            retry=f"{prefix}:retry",
            dead=f"{prefix}:dead",
            records=f"{prefix}:records",
            payloads=f"{prefix}:payloads",
            returned=f"{prefix}:returned",
            fence=f"{prefix}:fence",
            order=f"{prefix}:order",
            sightings=f"{prefix}:sightings",
            lock_seen=f"{prefix}:lock_seen",
            daemons=f"{prefix}:daemons",
            audit=f"{prefix}:audit",
            trash=f"{prefix}:trash",
            trash_notes=f"{prefix}:trash_notes",
            paused=f"{prefix}:paused",
            breakers=f"{prefix}:breakers",
            answers=f"{prefix}:answers",
            alerts=f"{prefix}:alerts",
            alert_times=f"{prefix}:alert_times",
            alerts_open=f"{prefix}:alerts_open",
            alerts_turn=f"{prefix}:alerts_turn",
            alerts_paused=f"{prefix}:alerts_paused",
            schema=f"{prefix}:schema",
        )

    def answer_of(self, answer_id: str) -> str:
        """string: JSON of one kept answer; expires."""
        return f"{self.answers}:{answer_id}"

    def actions_of(self, route: str) -> str:
        """sorted set: "<id of an alert>:<ms>" by the time it was admitted, ms, for one route; expires."""
        return f"{self.alerts}:actions:{route}"

    def cooldown_of(self, target: str) -> str:
        """string: "<id of an alert>:<ms>" of what a route did last to the queue or a destination; expires."""
        return f"{self.alerts}:cooldown:{target}"

    def all(self) -> tuple[str, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))

    def trash_of(self, trash_id: str) -> QueueKeys:
        """Where a reset has put each of these keys; of the same Redis types."""
        return QueueKeys(**{field.name: f"{self.trash}:{trash_id}:{field.name}" for field in fields(self)})
