"""From claimed callbacks to parcels that can be sent, or to the settlement of what cannot."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from cbq_exporter.clock import Clock
from cbq_exporter.delivery import ordering, shaping
from cbq_exporter.delivery.destinations import Parcel
from cbq_exporter.delivery.receivers import Receiver, Receivers
from cbq_exporter.delivery.shaping import Unusable
from cbq_exporter.model import Claim, Claimed, Dead, Failure, Held, PutOff, Settlement
from cbq_exporter.services.holding import Holding


@dataclass(frozen=True, slots=True)
class Accepted:
    """What came of a claim: each callback is in exactly one of the two."""

    parcels: list[Parcel] = field(default_factory=list)
    not_sent: list[Settlement] = field(default_factory=list)


class Acceptor:
    """Parcels are numbered in the order of claiming."""

    def __init__(self, receivers: Receivers, holding: Holding, clock: Clock) -> None:
        self._receivers = receivers
        self._holding = holding
        self._clock = clock
        self._number = 0

    def accept(self, claim: Claim, not_after: float, paused: Collection[str]) -> Accepted:
        """``not_after``: see ``Request``. Callbacks to the destinations ``paused`` are put off."""
        accepted = Accepted()
        holding = self._holding if self._holding else None
        held_back: list[tuple[Claimed, str, Receiver, PutOff]] = []
        if holding is not None:
            holding.begin_batch()
        fronts: set[str] = set()  # keys of which an earlier one is there
        for claimed in claim.items:
            read = shaping.read(claimed)
            if isinstance(read, Unusable):
                accepted.not_sent.append(self._given_up(claimed, read))
                continue
            receiver = self._receivers.of(read.target)
            why = PutOff.PAUSED if receiver.paused or receiver.name in paused else None
            if why is None and holding is not None:
                why = holding.why(claimed, receiver, claim.at_ms)
            key = ordering.key_of(claimed) if claimed.turn else ""
            if why is not None and key in fronts:
                # Put off it would be brought forward before its turn, in the place of one that could be a probe.
                accepted.not_sent.append(Settlement(claimed, Held(), read.target.url, receiver.name))
                continue
            if key:
                fronts.add(key)
            if why is not None:
                held_back.append((claimed, read.target.url, receiver, why))
                continue
            shaped = receiver.shaper.shape(claimed, read)
            if isinstance(shaped, Unusable):
                accepted.not_sent.append(self._given_up(claimed, shaped))
                continue
            body = shaped.body
            self._number += 1
            copies = 1 if receiver.coalesce is None else 2
            size = len(claimed.payload) + copies * len(body)
            accepted.parcels.append(
                Parcel(
                    self._number,
                    claimed,
                    receiver,
                    read.target.url,
                    body,
                    shaped.headers,
                    not_after,
                    read.queued_at,
                    size,
                )
            )
        if held_back:
            accepted.not_sent.extend(self._holding.put_off(held_back))
        return accepted

    def _given_up(self, claimed: Claimed, why: Unusable) -> Settlement:
        failure = Failure(why.reason.value, detail=why.detail, at=self._clock.now())
        return Settlement(claimed, Dead(why.reason, failure, attempt_used=False), url=why.url)
