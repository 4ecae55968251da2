"""Times as the server has them: milliseconds, since the epoch by its own clock."""

from __future__ import annotations

from collections.abc import Sequence

from cbq_exporter.store.connections import Connections


def ms(seconds: float) -> int:
    """Of a span of time; never below 0."""
    return max(0, round(seconds * 1000))


def epoch_ms(time: Sequence[bytes]) -> int:
    """What TIME has answered: seconds, and microseconds besides."""
    return int(time[0]) * 1000 + int(time[1]) // 1000


def epoch_of(text: bytes | None) -> float | None:
    """Epoch seconds, a float in text, as existing software writes them; None where it is none."""
    try:
        at = float(text or b"")
    except ValueError:
        return None
    return at if 0 < at < 1e11 else None


async def store_now_ms(connections: Connections) -> int:
    return epoch_ms(await connections.read("TIME"))
