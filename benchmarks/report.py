"""What was measured, as JSON for machines and as Markdown for people."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.coalescing import SIZE, Coalescing, Drained
from benchmarks.contestants import BARE, BULLMQ, CONTESTANTS, FASTEST_PYTHON, OURS, USUAL_PYTHON
from benchmarks.daemon import Idle, Latency
from benchmarks.drain import Result, Rounds
from benchmarks.isolation import Isolation
from benchmarks.processes import BenchmarkError
from benchmarks.receivers import Receivers, Sent
from benchmarks.recovery import ALL, Step
from benchmarks.scrape import EVERY, Scrapes

_BEGIN, _END = "<!-- results: written by the benchmark -->\n", "<!-- end of results -->\n"
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Report:
    """A part that was not asked for, or failed, is None; ``failures`` says why, by part. ``at`` is UTC, as text."""

    at: str
    quick: bool
    machine: Mapping[str, str]
    versions: Mapping[str, Mapping[str, str]]
    drain: Rounds | None = None
    memory: Result | None = None
    latency: Latency | None = None
    idle: Idle | None = None
    recovery: list[Step] | None = None
    scrape: Scrapes | None = None
    receivers: Receivers | None = None
    coalescing: Coalescing | None = None
    isolation: Isolation | None = None
    failures: Mapping[str, str] = field(default_factory=dict)


def markdown(report: Report) -> str:
    parts = [f"Measured on {report.at}. {'A quick run: its figures are noise. ' if report.quick else ''}".strip()]
    parts.append(_targets(report))
    if report.drain is not None:
        parts.append(_drain(report.drain))
    if report.recovery is not None:
        parts.append(_recovery(report.recovery))
    if report.scrape is not None:
        parts.append(_scrape(report.scrape))
    if report.receivers is not None:
        parts.append(_receivers(report.receivers))
    if report.coalescing is not None:
        parts.append(_coalescing(report.coalescing))
    if report.isolation is not None:
        parts.append(_isolation(report.isolation))
    lines = {"machine": report.machine, **report.versions}
    parts.append("\n".join(f"- {whose}: {_listing(values)}" for whose, values in lines.items()))
    return "\n\n".join(parts) + "\n"


def write_into(document: Path, report: Report) -> None:
    """Puts the results between the two marks of the document."""
    text = document.read_text()
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise BenchmarkError(f"{document} has no place for the results: the lines {_BEGIN.strip()} and {_END.strip()}")
    document.write_text(f"{before}{begin}\n{markdown(report)}\n{end}{after}")


def _listing(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _drain(rounds: Rounds) -> str:
    rows = []
    for contestant in CONTESTANTS:
        mine = _of(rounds, contestant.name)
        if contestant.name in rounds.left_out:
            rows.append([contestant.name, contestant.settings, "failed", *[""] * 7])
        if contestant.name in rounds.left_out or not mine:
            continue
        rates = [result.rate for result in mine]
        ratio = _ratio(rounds, contestant.name)
        rows.append(
            [
                contestant.name,
                contestant.settings,
                f"{mine[0].count:,}",
                f"{statistics.median(rates):,.0f}",
                f"{min(rates):,.0f}–{max(rates):,.0f}",
                "" if ratio is None else f"{ratio:.2f}",
                f"{_median(mine, lambda result: result.cpu):.3f}",
                f"{_median(mine, lambda result: result.redis_cpu):.3f}",
                f"{_median(mine, lambda result: result.rss) / _MIB:.0f}",
                f"{_median(mine, lambda result: result.commands):.2f}",
            ]
        )
    head = ["contestant", "settings", "callbacks", "callbacks/s, median", "lowest–highest", f"{OURS} is × as fast"]
    head += ["CPU s per 1,000", "Redis' CPU s per 1,000", "peak RSS, MiB", "Redis commands per callback"]
    return _table(head, rows)


def _recovery(steps: list[Step]) -> str:
    rows = [
        [
            step.what,
            f"{step.count:,}",
            f"{step.seconds:.2f}",
            f"{step.sent:,}",
            f"{step.sent / step.count:.3f}",
            f"{step.inside / step.count:.2f}",
            f"{step.slowest:.1f}" if step.slowest else "",
            f"{step.others_p99:.1f}",
        ]
        for step in steps
    ]
    head = ["recovery", "callbacks", "s", "commands sent", "sent per callback", "inside of scripts per callback"]
    return _table([*head, "slowest, ms", "another client's p99, ms"], rows)


def _scrape(found: Scrapes) -> str:
    rows = [
        [
            f"{one.who}, one queue",
            f"{one.scrapes:,}",
            f"{one.median:.2f}",
            f"{one.p99:.2f}",
            "",
            f"{one.trips:g}",
            f"{one.commands:g}",
        ]
        for one in found.alone
    ]
    busy = found.busy
    what = f"cbq-exporter, {busy.queues} queues, {busy.destinations:,} destinations, {busy.series:,} series"
    redis = f"{busy.redis_p99:.2f}"
    delivering = f"{what}, delivering {busy.rate:,.0f}/s"
    rows.append([delivering, f"{busy.scrapes:,}", f"{busy.median:.2f}", f"{busy.p99:.2f}", redis, "1", ""])
    head = ["scrape", "scrapes", "median, ms", "p99, ms", "p99 of the Redis part, ms", "round trips", "commands"]
    return _table(head, rows)


def _receivers(found: Receivers) -> str:
    def row(what: str, sent: list[Sent]) -> list[str]:
        return [
            what,
            f"{sent[0].count:,}",
            f"{statistics.median(one.rate for one in sent):,.0f}",
            f"{statistics.median(one.throughput for one in sent) / _MIB:,.0f}",
            f"{1000 * statistics.median(one.cpu for one in sent) / sent[0].count:.3f}",
            f"{max(one.rss for one in sent) / _MIB:.0f}",
        ]

    rows = [
        row("a receiver that answers after 20 ms, 1,024 requests open", found.slow),
        row("bodies of 1 MiB, 16 open", found.large),
        row("bodies of 1 MiB, 16 open: bare pycurl, no queue", found.bare),
    ]
    return _table(["receivers", "callbacks", "callbacks/s", "MiB/s", "CPU s per 1,000", "peak RSS, MiB"], rows)


def _coalescing(found: Coalescing) -> str:
    def row(what: str, drained: list[Drained]) -> list[str]:
        return [
            what,
            f"{drained[0].count:,}",
            f"{statistics.median(one.requests for one in drained):,.0f}",
            f"{statistics.median(one.rate for one in drained):,.0f}",
            f"{statistics.median(one.cpu for one in drained):.3f}",
            f"{max(one.rss for one in drained) / _MIB:.0f}",
        ]

    rows = [row("each alone", found.alone), row(f"up to {SIZE} in a request", found.together)]
    return _table(["coalescing", "callbacks", "requests", "callbacks/s", "CPU s per 1,000", "peak RSS, MiB"], rows)


def _isolation(found: Isolation) -> str:
    behind, share, many = found.behind, found.share, found.many
    backlog = f"{behind.backlog:,} for one that never answers, then {behind.healthy} for another"
    rows = [
        [f"{backlog}: the {behind.healthy} are delivered after", f"{behind.waited:.2f} s", ""],
        ["the backlog is put aside after", f"{behind.put_aside:.2f} s", ""],
        ["Redis commands for each of the backlog", f"{behind.commands:.2f}", ""],
        ["Redis commands a second while it waits", f"{behind.commands_afterwards:.1f}", ""],
        ["8 of 10 destinations, callbacks/s", f"{share.rate:,.0f}", f"{share.rate_alone:,.0f} (all 10 well)"],
        ["their p99, ms", f"{share.p99:.1f}", f"{share.p99_alone:.1f} (all 10 well)"],
        [f"{many.destinations:,} destinations, callbacks/s", f"{many.rate:,.0f}", f"{many.one_rate:,.0f} (one)"],
        ["peak RSS, MiB", f"{many.rss / _MIB:.0f}", f"{many.one_rss / _MIB:.0f} (one)"],
    ]
    return _table(["isolation", "measured", "beside it"], rows)


def _targets(report: Report) -> str:
    rows = []

    def row(what: str, target: str, measured: float | None, met: Callable[[float], bool], unit: str) -> None:
        if measured is not None:
            rows.append([what, target, f"{measured:.2f}{unit}", "yes" if met(measured) else "**no**"])

    if report.drain is not None:
        mine = _of(report.drain, OURS)
        bare = _ratio(report.drain, BARE)
        row("drain, against BullMQ", "≥ 2×", _ratio(report.drain, BULLMQ), lambda it: it >= 2, "×")
        for names, client in ((USUAL_PYTHON, "its usual client"), (FASTEST_PYTHON, "our client, where it can")):
            ratios = [ratio for name in names if (ratio := _ratio(report.drain, name)) is not None]
            fastest = min(ratios) if len(ratios) == len(names) else None
            row(f"drain, against the fastest Python queue with {client}", "≥ 5×", fastest, lambda it: it >= 5, "×")
        row("drain, of bare pycurl", "≥ 40 %", bare and bare * 100, lambda it: it >= 40, " %")
        commands = _median(mine, lambda result: result.commands) if mine else None
        row("Redis commands per callback", "≤ 1.2", commands, lambda it: it <= 1.2, "")
    if report.memory is not None:
        what = f"resident memory, draining {report.memory.count:,}"
        row(what, "< 120 MiB", report.memory.rss / _MIB, lambda it: it < 120, " MiB")
    if report.latency is not None:
        row("RPUSH to the receiver, median", "< 10 ms", report.latency.median, lambda it: it < 10, " ms")
        row("RPUSH to the receiver, 99th percentile", "< 50 ms", report.latency.p99, lambda it: it < 50, " ms")
    if report.idle is not None:
        row("idle, of one core", "< 1 %", report.idle.cpu * 100, lambda it: it < 1, " %")
        row("idle, Redis commands a second for a queue", "< 5", report.idle.commands, lambda it: it < 5, "")
    for step in report.recovery or ():
        if step.what == ALL:
            most = step.count / (10_000 if step.count <= 10_000 else 20_000)
            row(f"recovery of {step.count:,}", f"< {most:g} s", step.seconds, lambda it, most=most: it < most, " s")
            row("its commands per callback", "≤ 0.05", step.sent / step.count, lambda it: it <= 0.05, "")
            row("its slowest script", "≤ 5 ms", step.slowest, lambda it: it <= 5, " ms")
            row("another client's p99 meanwhile", "< 10 ms", step.others_p99, lambda it: it < 10, " ms")
    if report.scrape is not None:
        busy = report.scrape.busy
        row("scrape of one queue, p99 against redis_exporter", "≥ 3×", report.scrape.ratio, lambda it: it >= 3, "×")
        row("its round trips", "≤ 1", report.scrape.alone[0].trips, lambda it: it <= 1, "")
        row("scrape of a busy daemon with 50 queues, p99", "< 50 ms", busy.p99, lambda it: it < 50, " ms")
        row("its Redis part, p99", "< 15 ms", busy.redis_p99, lambda it: it < 15, " ms")
        row(f"what scrapes every {EVERY} s take of delivery", "≤ 2 %", busy.share, lambda it: it <= 2, " %")
    if report.receivers is not None:
        slow = statistics.median(one.rate for one in report.receivers.slow)
        row("receiver answering after 20 ms, 1,024 open", "≥ 10,000/s", slow, lambda it: it >= 10_000, "/s")
        row("bodies of 1 MiB, of bare pycurl", "≥ 60 %", report.receivers.share * 100, lambda it: it >= 60, " %")
        beyond = report.receivers.overhead / _MIB
        row("its resident memory beyond max_in_flight_bytes", "< 120 MiB", beyond, lambda it: it < 120, " MiB")
    if report.isolation is not None:
        share, many = report.isolation.share, report.isolation.many
        what = "2 of 10 destinations never answer: the others'"
        row(f"{what} rate, of when all are well", "≥ 90 %", share.rate_kept * 100, lambda it: it >= 90, " %")
        row(f"{what} p99, of when all are well", "≤ 111 %", share.p99_grown * 100, lambda it: it <= 111, " %")
        what = f"{many.destinations:,} destinations, of the rate of one"
        row(what, "≥ 50 %", many.rate / many.one_rate * 100, lambda it: it >= 50, " %")
    if report.coalescing is not None:
        row(f"coalesced by {SIZE}, against single sends", "≥ 2.5×", report.coalescing.ratio, lambda it: it >= 2.5, "×")
    return _table(["", "target", "measured", "met"], rows)


def _of(rounds: Rounds, name: str) -> list[Result]:
    return [result for results in rounds.results for result in results if result.contestant == name]


def _median(results: list[Result], figure: Callable[[Result], float]) -> float:
    return statistics.median(figure(result) for result in results)


def _ratio(rounds: Rounds, name: str) -> float | None:
    """How many times as fast we are: the median of the rounds' own ratios, because machines change their pace."""
    ratios = []
    for results in rounds.results:
        rates = {result.contestant: result.rate for result in results}
        if OURS in rates and name in rates:
            ratios.append(rates[OURS] / rates[name])
    return statistics.median(ratios) if ratios else None
