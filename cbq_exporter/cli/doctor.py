"""``doctor``: what is wrong with a queue and its store, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cbq_exporter.cli import options, output
from cbq_exporter.cli.running import configured, queue_config, run
from cbq_exporter.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cbq_exporter.config import Config, QueueConfig
    from cbq_exporter.errors import Problem
    from cbq_exporter.services.doctor import Examination, Finding

_COLOURS = {"problem": "red", "warning": "yellow", "note": None, "ok": "green"}
_MOST_TEXT = 500  # characters of a finding


@click.command
@options.config
@options.queue
@options.output
@options.debug
def doctor(config_path: Path | None, queue_name: str | None, as_json: bool) -> int:
    """Examine one queue and its store, and say what to do. Only reads.

    Exit code 0 where there is no problem (warnings are none), 1 where there is, 4 where Redis cannot be reached.
    """
    config = configured(config_path)
    chosen = queue_config(config, queue_name)
    seen, findings = run(_examine(config, chosen))
    if as_json:
        output.print_json(
            {
                "queue": chosen.name,
                "mode": chosen.mode,
                "store": seen.shown_as,
                "at": seen.at or None,
                "findings": findings,
            }
        )
    else:
        click.echo(_render(findings))
    if seen.error is not None:
        return StoreUnavailable.exit_code
    return 1 if any(finding.severity == "problem" for finding in findings) else 0


async def _examine(config: Config, queue: QueueConfig) -> tuple[Examination, Sequence[Finding]]:
    from cbq_exporter.clock import SYSTEM_CLOCK
    from cbq_exporter.config import warnings
    from cbq_exporter.errors import ConfigError
    from cbq_exporter.services.doctor import examine, judge
    from cbq_exporter.store import disk
    from cbq_exporter.store.opening import keys_of, lock_rule_of, open_connections
    from cbq_exporter.web.auth import check_tokens
    from cbq_exporter.web.tls import check_web_config

    stuck_after, lock_rule = queue.recovery.stuck_after, lock_rule_of(queue)
    async with open_connections(config) as connections:
        seen = await examine(connections, keys_of(queue), queue.mode, stuck_after=stuck_after, clock=SYSTEM_CLOCK)
    told = [*warnings(config), *check_tokens(config)]
    problems: tuple[Problem, ...] = ()
    try:
        told += check_web_config(config)
    except ConfigError as error:
        problems = error.problems
    findings = judge(
        seen,
        queue=queue.name,
        stuck_after=stuck_after,
        lock_rule=lock_rule,
        config_warnings=told,
        config_problems=problems,
        disk_room=disk.room(config.data_dir) if config.redis.url is None else None,
    )
    return seen, findings


def _render(findings: Sequence[Finding]) -> str:
    """A finding a line, what to do below it."""
    rows = []
    for finding in findings:
        severity = output.paint(str(finding.severity), _COLOURS[finding.severity])
        rows.append([severity, finding.check, output.text(finding.found, _MOST_TEXT)])
        if finding.todo:
            rows.append(["", "", f"-> {output.text(finding.todo, _MOST_TEXT)}"])
    return output.table(["", "check", "finding"], rows, fold="finding")
