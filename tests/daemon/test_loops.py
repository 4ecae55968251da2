"""Loops that are ended at any moment end without a word."""

from __future__ import annotations

import asyncio
import gc
import warnings

from cbq_exporter.daemon.loops import Loops


def test_one_that_is_stopped_before_it_began_leaves_no_warning() -> None:
    began = []

    async def work() -> None:
        began.append(True)

    async def start_and_stop_at_once() -> None:
        loops = Loops()
        loops.add("a loop", work())
        await loops.stop()

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        asyncio.run(start_and_stop_at_once())
        gc.collect()
    assert (began, said) == ([], [])
