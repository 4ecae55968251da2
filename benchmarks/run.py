"""``make bench``: measure cbq-exporter, and other queues doing the same job beside it.

make bench                                  all of it, about ten minutes
make bench ARGS=--quick                     a smoke run; its figures mean nothing
make bench ARGS="--only latency,idle"
make bench ARGS="--contestants cbq,bullmq --rounds 1"
make bench ARGS=--write-docs                all of it, into docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from benchmarks import coalescing, daemon, drain, environments, isolation, receivers, recovery, report, scrape
from benchmarks.contestants import CONTESTANTS, Contestant
from benchmarks.processes import BenchmarkError

T = TypeVar("T")

PARTS = ("drain", "memory", "latency", "idle", "recovery", "scrape", "receivers", "coalescing", "isolation")
_DOCUMENT = environments.HERE.parent / "docs/benchmarks.md"
_RESULTS = environments.HERE / "results.json"


def main() -> int:
    asked = _arguments()
    try:
        found = _measure(asked)
    except BenchmarkError as error:  # a program is missing, or the competitors cannot be installed
        print(error, file=sys.stderr)
        return 1
    asked.output.write_text(json.dumps(asdict(found), indent=2) + "\n")
    print(report.markdown(found))
    if found.failures or (found.drain is not None and found.drain.left_out):
        return 1
    if asked.write_docs:
        report.write_into(_DOCUMENT, found)
    return 0


def _measure(asked: argparse.Namespace) -> report.Report:
    quick = asked.quick
    if "drain" in asked.only:
        environments.prepare()
    count = asked.count or (3_000 if quick else 100_000)
    rounds = asked.rounds or (1 if quick else 3)
    seconds = 5.0 if quick else 20.0
    failures: dict[str, str] = {}

    def part(name: str, measure: Callable[[], T]) -> T | None:
        """What one part fails to measure does not take the others' figures away."""
        if name not in asked.only:
            return None
        try:
            return measure()
        except BenchmarkError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failures[name] = str(error)
            return None

    return report.Report(
        at=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        quick=quick,
        machine=environments.machine(),
        versions=environments.versions(),
        drain=part("drain", lambda: drain.compare(asked.contestants, rounds, count)),
        memory=part("memory", lambda: drain.memory(20_000 if quick else 1_000_000)),
        latency=part("latency", lambda: daemon.latency(seconds)),
        idle=part("idle", lambda: daemon.idle(seconds)),
        recovery=part("recovery", lambda: recovery.measure((1_000,) if quick else (10_000, 100_000))),
        scrape=part("scrape", lambda: scrape.measure(*((50, 3) if quick else (1000, 20)))),
        receivers=part("receivers", lambda: receivers.measure(rounds, *((5_000, 100) if quick else (200_000, 2_000)))),
        coalescing=part("coalescing", lambda: coalescing.measure(rounds, 5_000 if quick else 200_000)),
        isolation=part("isolation", lambda: isolation.measure(rounds, quick=quick)),
        failures=failures,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small counts, one round: does it run at all?")
    parser.add_argument("--only", type=_parts, default=PARTS, help=f"some of {','.join(PARTS)}")
    parser.add_argument(
        "--contestants", type=_contestants, default=CONTESTANTS, help="beginnings of names: cbq,bullmq,bare"
    )
    parser.add_argument("--rounds", type=int, help="of the drain (default 3)")
    parser.add_argument("--count", type=int, help="callbacks of the fast contestants (default 100000)")
    parser.add_argument("--output", type=Path, default=_RESULTS, help="the results as JSON")
    parser.add_argument("--write-docs", action="store_true", help="put the results into docs/benchmarks.md")
    asked = parser.parse_args()
    if asked.write_docs and (asked.quick or asked.contestants != CONTESTANTS or set(asked.only) != set(PARTS)):
        parser.error("--write-docs goes with all parts and all contestants, and not with --quick")
    return asked


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _contestants(text: str) -> tuple[Contestant, ...]:
    """Those whose name begins with one of the words, in any case."""
    found = tuple(each for each in CONTESTANTS if each.name.lower().startswith(_words(text.lower())))
    if not found:
        raise argparse.ArgumentTypeError(
            f"nobody is called that; there are {', '.join(each.name for each in CONTESTANTS)}"
        )
    return found


def _parts(text: str) -> tuple[str, ...]:
    words = _words(text)
    if unknown := set(words) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is none of {', '.join(PARTS)}")
    return words


if __name__ == "__main__":
    sys.exit(main())
