"""Upkeep: what is kept has an end, and the end of callbacks is audited."""

from __future__ import annotations

from cbq_exporter.services.operations import Reset, Undo
from cbq_exporter.services.upkeep import Upkeep
from cbq_exporter.store.sweeping import Sweeper
from cbq_exporter.store.trash import Trash
from tests.services.operating import QUEUE, Operating
from tests.support.queues import callback
from tests.support.servers import Server


def test_the_trash_is_emptied_at_the_end_of_its_keeping_and_not_before(server: Server) -> None:
    with Operating(server) as desk:
        trash, sweeper = Trash(desk.store.connections, desk.keys), Sweeper(desk.store.connections, desk.keys)
        upkeep = Upkeep(QUEUE, desk.queue, sweeper, trash, desk.audit, dead_max_count=10, dead_max_age=3600.0)
        for number in range(2):
            desk.do(desk.queue.enqueue([callback(number)]))
            desk.carry_out(Reset(QUEUE))
        older, newer = (one.id for one in desk.do(trash.all()))
        assert desk.do(upkeep.run_once()).resets_expired == 0
        desk.redis.zadd(desk.keys.trash, {older: 1})  # its time is over
        desk.redis.delete(desk.keys.audit)
        assert desk.do(upkeep.run_once()).resets_expired == 1
        assert [one.id for one in desk.do(trash.all())] == [newer]
        assert desk.redis.exists(desk.keys.trash_of(older).pending) == 0
        assert desk.story == [("expire", "started"), ("expire", "done")]
        assert str(desk.entries[-1].actor) == "schedule"
        assert desk.entries[-1].before == {"trash_id": older}
        assert desk.carry_out(Undo(QUEUE)).counts == {"callbacks": 1}
        assert desk.redis.lrange(desk.keys.pending, 0, -1) == [callback(1)]


def test_what_is_deleted_of_the_dead_letters_is_audited(server: Server) -> None:
    with Operating(server) as desk:
        trash, sweeper = Trash(desk.store.connections, desk.keys), Sweeper(desk.store.connections, desk.keys)
        upkeep = Upkeep(QUEUE, desk.queue, sweeper, trash, desk.audit, dead_max_count=2, dead_max_age=3600.0)
        now_ms = desk.do(desk.queue.store_now_ms())
        desk.redis.zadd(desk.keys.dead, {"old": now_ms - 3_700_000, "a": now_ms})
        assert desk.do(upkeep.run_once()).dead_trimmed == 1  # by age
        desk.redis.zadd(desk.keys.dead, {"b": now_ms, "c": now_ms})
        assert desk.do(upkeep.run_once()).dead_trimmed == 1  # by number
        assert desk.do(upkeep.run_once()).dead_trimmed == 0
        assert desk.story == [("purge_dead", "started"), ("purge_dead", "done")] * 2
        assert (desk.entries[-1].before, desk.entries[-1].after) == ({"dead": 3}, {"deleted": 1})


def test_old_entries_of_the_audit_go(server: Server) -> None:
    with Operating(server) as desk:
        trash, sweeper = Trash(desk.store.connections, desk.keys), Sweeper(desk.store.connections, desk.keys)
        upkeep = Upkeep(QUEUE, desk.queue, sweeper, trash, desk.audit, dead_max_count=10, dead_max_age=3600.0)
        for number in range(1, 500):
            desk.redis.xadd(desk.keys.audit, {"operation": "old"}, id=f"{number}-0")
        assert desk.do(upkeep.run_once()).audit_trimmed > 300
