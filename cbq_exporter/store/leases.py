"""How leases are read. Each says all about its claim, so that claiming writes one sorted set and no record:
``<claimed ms>-<token>-<n>|<SHA-1 of the payload>|<attempts>|<recoveries>|<first claimed ms>``, and where callbacks of
one key go one after the other ``|<key>:<place>``, its turn.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from cbq_exporter.model import Claimed

_LEASE = re.compile(r"[0-9]{13}-[0-9]+-[0-9]+\|[0-9a-f]{40}\|[0-9]+\|[0-9]+\|[0-9]+(\|[0-9a-f]+:[0-9]+)?")


def is_lease(text: str) -> bool:
    return _LEASE.fullmatch(text) is not None


def read_lease(lease: bytes, payload: bytes) -> Claimed:
    text = lease.decode("ascii")
    _, fingerprint, history = text.split("|", 2)
    attempts, recoveries, first_ms, turn = _read_history(history)
    return Claimed(text, fingerprint, payload, attempts, recoveries, first_ms, turn)


@lru_cache(maxsize=64)  # nearly all of one claim have the same
def _read_history(text: str) -> tuple[int, int, int, str]:
    attempts, recoveries, first_ms, *turn = text.split("|")
    return int(attempts), int(recoveries), int(first_ms), turn[0] if turn else ""


def fingerprint_of(lease: str) -> str:
    return lease.split("|", 2)[1]


def claimed_at(lease: str) -> float:
    """When the claim was made, in epoch seconds of the store's clock."""
    return int(lease[:13]) / 1000


def digest_of(payload: bytes) -> bytes:
    """What leases call a callback by: the SHA-1 that the scripts compute too."""
    return hashlib.sha1(payload, usedforsecurity=False).digest()


def count_leased(leases: Sequence[bytes]) -> Counter[bytes]:
    """How many leases there are of each callback, by its SHA-1."""
    names = (lease.decode("ascii", "replace") for lease in leases)
    return Counter(bytes.fromhex(fingerprint_of(name)) for name in names if is_lease(name))
