"""Numbers in the words of people: the same in tables, plans and messages."""

from __future__ import annotations

_LONGEST = 1e12  # seconds: what somebody else wrote may be endless


def count(value: int, noun: str) -> str:
    """``1 callback``, ``2 callbacks``."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def size(value: int) -> str:
    """Of bytes: ``512 B``, ``1.5 KiB``."""
    if value < 1024:
        return f"{value} B"
    amount = float(value)
    for unit in ("KiB", "MiB"):
        amount /= 1024
        if amount < 1024:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} GiB"


def age(seconds: float) -> str:
    """``12s``, ``4m12s``, ``5h03m``, ``12d3h``."""
    whole = int(min(max(0.0, seconds), _LONGEST))
    minutes, s = divmod(whole, 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d{h}h"
    if hours:
        return f"{h}h{m:02}m"
    return f"{m}m{s:02}s" if minutes else f"{s}s"
