"""What an observing daemon remembers of the lock and of processing, read by read."""

from __future__ import annotations

from cbq_exporter.metrics.families import families
from cbq_exporter.model import LockRule, LockView, Mode, QueueView, Snapshot
from cbq_exporter.store.observing import Observed

S = 1000  # ms


def untouched(observed: Observed, *reads: tuple[bytes | None, int, float]) -> list[tuple[float, float] | None]:
    """First seen and untouched since, after each read: value, TTL in ms, the server's clock in ms."""
    looks = [observed.lock(*read) for read in reads]
    return [None if look is None else (look.first_seen_at, look.untouched_since) for look in looks]


def test_a_lock_is_known_since_it_was_first_seen_and_young_when_it_is_prolonged() -> None:
    assert untouched(
        Observed(),
        (b"a", 30 * S, 100 * S),
        (b"a", 20 * S, 110 * S),  # it runs down
        (b"a", 29 * S, 120 * S),  # prolonged
        (b"a", -1, 130 * S),  # for ever
        (b"a", -1, 140 * S),
        (b"a", 30 * S, 150 * S),
        (b"b", 30 * S, 160 * S),
        (None, -2, 170 * S),
        (b"b", 30 * S, 180 * S),
    ) == [(100, 100), (100, 100), (100, 120), (100, 130), (100, 130), (100, 150), (160, 160), None, (180, 180)]


def test_the_first_of_processing_is_known_since_it_came_there() -> None:
    observed = Observed()
    reads = [(b"a", 1 * S), (b"a", 4 * S), (b"b", 5 * S), (None, 6 * S), (b"b", 7 * S), (b"b", 9 * S)]
    assert [observed.first_for(payload, at) for payload, at in reads] == [0, 3, 0, 0, 0, 2]


def test_whether_a_daemon_of_ours_lives_cannot_be_told_by_observing() -> None:
    rule = LockRule(no_ttl_after=60.0, max_ttl=600.0, dead_after=15.0)

    def told(value: bytes) -> dict[str, float]:
        observed = Observed()
        observed.lock(value, -1, 0.0)
        look = observed.lock(value, -1, 100 * S)
        view = QueueView("q", Mode.OBSERVE, lock=LockView(value.decode(), None, False), own_look=look, lock_rule=rule)
        read = families(Snapshot(up=True, at=100.0, duration=0.0, queues=(view,)))
        samples = [sample for family in read for sample in family.samples]
        return {one.name.removeprefix("cbq_lock_"): one.value for one in samples if "_lock_" in one.name}

    always = {"held": 1, "without_expiry": 1, "first_seen_timestamp_seconds": 0}
    assert told(b"worker_1764000000_1234") == {**always, "stale": 1}
    assert told(b"cbq-exporter_1764000000_host_ab") == always
