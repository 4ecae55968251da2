"""What must hold after every step."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis.stateful import invariant

from cbq_exporter.store.keys import QueueKeys
from tests.store.state_machine.model import Contents
from tests.store.state_machine.world import KEYS, World


class Invariants(World):
    @invariant()
    def every_callback_is_in_one_place_or_was_taken_out(self) -> None:
        model = self.model
        in_trash = list(model.trash)
        pipe = self.redis.pipeline(transaction=True)
        for keys in (KEYS, *map(KEYS.trash_of, in_trash)):
            _ask_for_contents(pipe, keys)
        answers = pipe.get(KEYS.lock).keys("*").execute()
        found = [answers[first : first + _ANSWERS] for first in range(0, len(answers) - 2, _ANSWERS)]

        somewhere = Counter(model.hands.values())
        for contents, answer in zip((model, *model.trash.values()), found, strict=True):
            somewhere += _compare(contents, answer)
        assert somewhere + model.delivered + model.removed + model.lost == model.accepted + model.doubled

        lock, names = answers[-2:]
        assert lock == (model.lock and model.lock.value.encode())
        known = {*KEYS.all(), *(name for one in in_trash for name in KEYS.trash_of(one).all())}
        assert {name.decode() for name in names} <= known

    @invariant()
    def the_trash_the_pauses_and_the_daemons_are_known(self) -> None:
        model = self.model
        trash, notes, paused, beats, seen, entries = (
            self.redis.pipeline(transaction=False)
            .zrange(KEYS.trash, 0, -1, withscores=True)
            .hkeys(KEYS.trash_notes)
            .hkeys(KEYS.paused)
            .zrange(KEYS.daemons, 0, -1)
            .hget(KEYS.lock_seen, "value")
            .xlen(KEYS.audit)
            .execute()
        )
        assert {name.decode() for name, _ in trash} == {name.decode() for name in notes} == set(model.trash)
        assert all((until == float("inf")) == model.trash[name.decode()].begun for name, until in trash)
        assert {name.decode() or None for name in paused} == model.paused
        assert {value.decode() for value in beats} == set(model.beats)
        assert seen == (model.lock_seen and model.lock_seen.value.encode())
        assert entries == self.connections.entries

    @invariant()
    def nothing_is_changed_without_an_audit_entry(self) -> None:
        self.connections.check()


_ANSWERS = 9


def _ask_for_contents(pipe: Any, keys: QueueKeys) -> None:
    pipe.lrange(keys.pending, 0, -1)
    pipe.lrange(keys.processing, 0, -1)
    pipe.zrange(keys.retry, 0, -1)
    pipe.zrange(keys.dead, 0, -1)
    pipe.zrange(keys.leases, 0, -1)
    pipe.hgetall(keys.payloads)
    pipe.hkeys(keys.records)
    pipe.hlen(keys.returned)
    pipe.mget(keys.stats_queued, keys.stats_sent, keys.stats_failed)


def _compare(contents: Contents, answers: list[Any]) -> Counter[bytes]:
    """Of the queue or of one reset in the trash; returns its callbacks."""
    pending, processing, retry, dead, leases, kept, records, memory, stats = answers
    retry, dead = [name.decode() for name in retry], [name.decode() for name in dead]
    kept = {name.decode(): payload for name, payload in kept.items()}
    assert pending == contents.pending
    assert Counter(processing) == contents.processing
    assert {name: kept[name] for name in retry} == {name: one.payload for name, one in contents.retry.items()}
    assert {name: kept[name] for name in dead} == {name: one.payload for name, one in contents.dead.items()}
    assert {name.decode() for name in leases} == contents.leases.keys()
    assert set(kept) == {name.decode() for name in records} == {*retry, *dead} | contents.orphans
    assert memory == len(contents.memory)
    assert [int(value or 0) for value in stats] == [contents.stats[name] for name in ("queued", "sent", "failed")]
    return Counter(pending) + Counter(processing) + Counter(kept[name] for name in [*retry, *dead])
