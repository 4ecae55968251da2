"""Notices a scheduler that has stopped running jobs, without depending on it, and starts it over.

APScheduler 3's asyncio scheduler can stop for ever and still call itself running: one exception while it
looks for due jobs, and its timer is not set again.
"""

from __future__ import annotations

import asyncio
import logging

from cbq_exporter.daemon.schedule import BEAT_EVERY, Schedule

log = logging.getLogger(__name__)

SILENCE = 10 * BEAT_EVERY  # seconds without a heartbeat


async def watch(schedule: Schedule, *, look_every: float = BEAT_EVERY, silence: float = SILENCE) -> None:
    """Runs until it is cancelled. Looks each ``look_every`` seconds; after ``silence`` seconds it has stopped."""
    while True:
        await asyncio.sleep(look_every)
        if schedule.silent_for <= silence:
            continue
        log.error("the scheduler has stopped running jobs; starting it over", extra={"silent_for": schedule.silent_for})
        try:
            schedule.restart()
        except Exception:
            log.exception("the scheduler cannot be started over")
