"""What is claimed and not settled, and for how much more there is room."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from cbq_exporter.config import QueueConfig
from cbq_exporter.delivery.destinations import Parcel
from cbq_exporter.model import Claim, Settlement
from cbq_exporter.services.accepting import Accepted

MOST_GATHERED = 10_000  # callbacks held for requests that carry several
_MOST_FOLLOWING = 1000  # callbacks that wait behind those under way; two batches at least
_LOOK_AGAIN = 0.05  # seconds: who does not answer makes room for others within this


class Room:
    """Of one queue: bounded by number and by bytes. ``largest_bundle`` is the most callbacks that one request carries.

    ``held`` is by lease; None: nothing is sent for it.
    """

    def __init__(self, config: QueueConfig, largest_bundle: int) -> None:
        requests, batch = config.delivery.concurrency, config.batch.size
        # Those that are sent, and batches that wait, are being claimed or being settled. Where they are too few, a fast
        # receiver's connections stand idle meanwhile. With 64 of them and batches of 200, two make 31 thousand a
        # second, three 42 and four 43, measured.
        following = max(2 * batch, min(4 * batch, _MOST_FOLLOWING))
        self._most = max(requests, min(requests * largest_bundle, MOST_GATHERED)) + following
        # Small claims cost as much as large ones: wait until a whole batch fits.
        self._least = min(batch, self._most // 2)
        self._most_bytes = config.delivery.max_in_flight_bytes
        self.held: dict[str, Parcel | None] = {}
        self._held_bytes = 0
        self._coming, self._coming_bytes = 0, 0  # claimed, and not taken in yet
        self._made = asyncio.Event()

    @property
    def left(self) -> int:
        """Callbacks; 0 where it is not worth a claim."""
        if self._held_bytes + self._coming_bytes >= self._most_bytes:
            return 0
        left = self._most - len(self.held) - self._coming
        return left if left >= self._least else 0

    @property
    def bytes_left(self) -> int:
        """Of payloads: each is held as it is and as a body."""
        return max(1, (self._most_bytes - self._held_bytes - self._coming_bytes) // 2)

    def expect(self, claim: Claim) -> None:
        """It is taken in next."""
        self._coming = len(claim.items)
        self._coming_bytes = 2 * sum([len(one.payload) for one in claim.items])

    def take_in(self, accepted: Accepted) -> None:
        """What came of the claim that was expected."""
        self.held.update([(one.claimed.lease, one) for one in accepted.parcels])
        for settlement in accepted.not_sent:
            self.held[settlement.claimed.lease] = None
        self._held_bytes += sum([one.size for one in accepted.parcels])
        self._coming, self._coming_bytes = 0, 0

    def let_out(self, settlements: Sequence[Settlement]) -> None:
        """The store has these."""
        parcels = [self.held.pop(one.claimed.lease, None) for one in settlements]
        self._held_bytes -= sum([one.size for one in parcels if one is not None])
        self._made.set()

    def under_way(self) -> Counter[str]:
        """The callbacks that are sent, by destination."""
        return Counter(parcel.destination for parcel in self.held.values() if parcel is not None)

    async def wait(self) -> None:
        """Until there may be more, but not for long."""
        self._made.clear()
        try:
            async with asyncio.timeout(_LOOK_AGAIN):
                await self._made.wait()
        except TimeoutError:
            return

    def wake(self) -> None:
        """Let whoever waits look at something else."""
        self._made.set()
