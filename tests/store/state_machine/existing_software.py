"""Producers, workers and operators' tools that are there already, and what their accidents do."""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.store.state_machine.model import FOREIGN_TTL, LOCK_RULE, TOO_LONG_TTL, Lock
from tests.store.state_machine.world import KEYS, World, either, payloads
from tests.support.foreign_worker import ATTEMPTS, TASKS, Command

LOCKS = {  # seconds
    "lock for long": LOCK_RULE.max_ttl - 10,
    "lock for too long": TOO_LONG_TTL,
    "lock for ever": None,
}
accidents = st.sampled_from((*LOCKS, "expire", "prolong", "unlock"))
failures = st.lists(st.integers(0, ATTEMPTS), max_size=3)
ALL = 10_000  # commands


class ExistingSoftware(World):
    @rule(some=st.lists(payloads, min_size=1, max_size=3))
    def others_enqueue(self, some: list[bytes]) -> None:
        for payload in some:
            self.others_produce(payload)

    # --- workers -----------------------------------------------------------------------------

    @rule(who=either, task=st.sampled_from(("batch", *TASKS)), failures=failures, most=st.sampled_from((1, 2, 5, ALL)))
    def a_worker_goes_on(self, who: int, task: str, failures: list[int], most: int) -> None:
        """With what it was at; else with ``task``."""
        if not self.workers[who].busy:
            self.workers[who].begin(task, failures)
        self.worker_does(who, most)

    @rule(who=either)
    def a_worker_ends_what_it_was_at(self, who: int) -> None:
        if self.workers[who].busy:
            self.worker_does(who, ALL)

    @rule(who=either, most=st.integers(2, 8), payload=payloads)
    def a_worker_dies_in_a_batch(self, who: int, most: int, payload: bytes) -> None:
        """And leaves its lock, and what it has claimed."""
        self.others_produce(payload)
        if not self.workers[who].busy:
            self.meddle("unlock")
            self.workers[who].begin("batch")
            self.worker_does(who, most)
        self.worker_is_killed(who)

    @precondition(lambda self: self.model.processing)
    @rule()
    def both_workers_clean_up_at_once(self) -> None:
        """Each looks before the other has moved anything."""
        for who in (0, 1):
            self.a_worker_ends_what_it_was_at(who)
            self.workers[who].begin("clean up")
            self.worker_does(who, 1)

    def worker_is_killed(self, who: int) -> None:
        """What it has taken out and not yet put down is lost: that is the flaw of two commands for one step."""
        self.workers[who].kill()
        if who in self.model.hands:
            self.model.lost[self.model.hands.pop(who)] += 1

    def worker_does(self, who: int, most: int) -> None:
        for command in self.workers[who].go_on(most):
            self._worker_did(who, command)

    def _worker_did(self, who: int, command: Command) -> None:
        model, answer = self.model, command.answer
        match command.words:
            case (b"SET", b"lock", value, *_):
                assert answer == (b"OK" if model.lock is None else None)
                model.lock = model.lock or Lock(value.decode(), FOREIGN_TTL)
            case (b"DEL", b"lock"):
                assert answer == (model.lock is not None)
                model.lock = None
            case (b"DEL", name) if name.startswith(b"stats:"):
                del model.stats[name[6:].decode()]
            case (b"INCR", name):
                model.stats[name[6:].decode()] += 1
                assert answer == model.stats[name[6:].decode()]
            case (_, b"pending" | b"processing", *_):
                self._worker_moved(who, command)

    def _worker_moved(self, who: int, command: Command) -> None:
        model, answer = self.model, command.answer
        match command.words:
            case (b"LPOP", b"pending"):
                assert answer == (model.pending[0] if model.pending else None)
                if model.pending:
                    model.hands[who] = model.pending.pop(0)
            case (b"LPOP", b"processing"):
                assert (answer is None) == (not model.processing)
                if isinstance(answer, bytes):
                    assert model.processing[answer]
                    model.processing -= Counter([answer])
                    model.hands[who] = answer
            case (b"LREM", b"processing", _, payload):
                found = min(1, model.processing[payload])
                assert answer == found
                model.processing -= Counter([payload])
                if command.task == "batch":
                    model.removed[payload] += found
                elif found:
                    model.hands[who] = payload
            case (b"RPUSH", name, payload):
                self._puts_down(who, command.task, name, payload)
            case (b"DEL", b"pending"):
                model.removed.update(model.pending)
                model.pending = []
            case (b"DEL", b"processing"):
                model.removed += model.processing
                model.processing = Counter()
            case (b"LRANGE", *_):
                assert isinstance(answer, list)
                assert Counter(answer) == model.processing

    def _puts_down(self, who: int, task: str, name: bytes, payload: bytes) -> None:
        model = self.model
        if task == "queue":
            model.accepted[payload] += 1
        elif model.hands.pop(who, None) is None:
            model.doubled[payload] += 1  # it was gone already, and its clean-up does not look
        if name == b"pending":
            model.pending.append(payload)
        else:
            model.processing[payload] += 1

    # --- accidents ---------------------------------------------------------------------------

    @rule(what=accidents)
    def somebody_meddles_with_the_lock(self, what: str) -> None:
        self.meddle(what)

    def meddle(self, what: str) -> None:
        """``what`` is one of LOCKS, where it is free; ``expire``, ``prolong`` or ``unlock``."""
        model = self.model
        if what == "unlock":
            self.redis.delete(KEYS.lock)
            model.lock = None
        elif what == "expire":
            self.redis.expire(KEYS.lock, int(FOREIGN_TTL))
            if model.lock is not None:
                model.lock.ttl = FOREIGN_TTL
        elif what == "prolong":
            if model.lock is not None and not model.lock.is_family:
                model.lock.ttl = 2 * TOO_LONG_TTL
                self.redis.expire(KEYS.lock, int(model.lock.ttl))
        elif model.lock is None:
            ttl = LOCKS[what]
            model.lock = Lock(f"worker_1763999999_{self.tick():04}", ttl)
            self.redis.set(KEYS.lock, model.lock.value, ex=None if ttl is None else int(ttl))

    @precondition(lambda self: self.model.retry)
    @rule(data=st.data())
    def somebody_deletes_retries(self, data: st.DataObject) -> None:
        """And does not know what is kept with them."""
        model = self.model
        names = data.draw(st.lists(st.sampled_from(sorted(model.retry)), min_size=1, unique=True))
        self.redis.zrem(KEYS.retry, *names)
        for name in names:
            model.removed[model.retry.pop(name).payload] += 1
        model.orphans |= set(names)

    @precondition(lambda self: self.model.lock is not None and not self.model.lock.is_family)
    @rule()
    def somebody_takes_the_expiry_off_the_lock(self) -> None:
        assert self.model.lock is not None
        self.redis.persist(KEYS.lock)
        self.model.lock.ttl = None
