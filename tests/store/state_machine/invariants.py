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
    def the_store_holds_what_the_model_holds(self) -> None:
        """And every callback is in one place, or was taken out."""
        model = self.model
        pipe = self.redis.pipeline(transaction=True)
        for keys in (KEYS, *map(KEYS.trash_of, model.trash)):
            _ask_for_contents(pipe, keys)
        pipe.keys("*").get(KEYS.lock).hget(KEYS.lock_seen, "value").zrange(KEYS.daemons, 0, -1).hkeys(KEYS.paused)
        pipe.zrange(KEYS.trash, 0, -1, withscores=True).hkeys(KEYS.trash_notes).xlen(KEYS.audit)
        answers = pipe.execute()
        found = [answers[first : first + _ANSWERS] for first in range(0, _ANSWERS * (1 + len(model.trash)), _ANSWERS)]
        names, lock, seen, beats, paused, trash, notes, entries = answers[_ANSWERS * len(found) :]

        somewhere = Counter(model.hands.values())
        for contents, answer in zip((model, *model.trash.values()), found, strict=True):
            somewhere += _compare(contents, answer)
        assert somewhere + model.delivered + model.removed + model.lost == model.accepted + model.doubled

        known = {*KEYS.all(), *(name for one in model.trash for name in KEYS.trash_of(one).all())}
        assert {name.decode() for name in names} <= known
        assert lock == (model.lock and model.lock.value.encode())
        assert seen == (model.lock_seen and model.lock_seen.value.encode())
        assert {value.decode() for value in beats} == set(model.beats)
        assert {name.decode() or None for name in paused} == model.paused
        assert {name.decode() for name, _ in trash} == {name.decode() for name in notes} == set(model.trash)
        assert all((until == float("inf")) == model.trash[name.decode()].begun for name, until in trash)
        assert entries == self.connections.entries

    @invariant()
    def whoever_has_a_turn_stands_in_the_order(self) -> None:
        """Once: so those behind it wait."""
        entered = Counter(entry.decode().partition("|")[0] for entry in self.ordered)
        turns = self.model.all_turns
        assert {turn: entered[turn] for turn in turns} == dict.fromkeys(turns, 1)

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
