"""What nginx wrote of the requests it answered: how many, from when to when, and whether each was in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import BenchmarkError
from benchmarks.workers.payload import SIZE


@dataclass(frozen=True, slots=True)
class Requests:
    """``first`` and ``last`` in epoch seconds, to a millisecond: when the first and last were answered."""

    count: int
    first: float
    last: float

    @property
    def rate(self) -> float:
        """Requests a second; the first only starts the clock."""
        if self.last <= self.first:
            raise BenchmarkError(f"{self.count} requests within a millisecond are too few to measure")
        return (self.count - 1) / (self.last - self.first)


class RequestsLog:
    """Reads a log as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._count = 0

    def count(self) -> int:
        """Requests so far; nginx writes its lines up to 50 ms late."""
        self._count += self._file.read().count(b"\n")
        return self._count

    def read(self) -> Requests:
        """All of it. Raises where a request was not a body of SIZE bytes, or was not answered 200."""
        times = []
        for line in self._path.read_text().splitlines():
            at, status, size = line.split()
            if status != "200" or size != str(SIZE):
                raise BenchmarkError(f"a request of {size} bytes was answered {status}")
            times.append(float(at))
        return Requests(len(times), min(times), max(times))

    def close(self) -> None:
        self._file.close()


def check_bodies(path: Path, expected: Callable[[int], str], count: int) -> None:
    """Each of the ``count`` bodies was posted exactly once, byte for byte."""
    seen = sorted(path.read_text().splitlines())
    wanted = sorted(expected(number) for number in range(count))
    if seen != wanted:
        missing = len(set(wanted) - set(seen))
        strange = next(iter(set(seen) - set(wanted)), None)
        example = "" if strange is None else f"; one that nobody asked for: {strange[:80]}"
        raise BenchmarkError(f"{len(seen)} bodies for {count} callbacks, {missing} missing{example}")
