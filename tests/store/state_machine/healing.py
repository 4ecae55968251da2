"""What daemons do by themselves: the lock keeper, the recoverer, upkeep; and restarts, time and leaps of the clock."""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from cbq_exporter.model import DeadReason, OperationName, ReleaseReason
from cbq_exporter.policy.stuck import StuckRule
from cbq_exporter.services.recoverer import Recoverer
from cbq_exporter.services.upkeep import Upkeep
from cbq_exporter.store.trash import Trash
from tests.store.state_machine.model import PASS, Letter
from tests.store.state_machine.world import (
    HOUR,
    INSTRUMENTS,
    KEYS,
    LONG_AGO,
    QUEUE,
    STUCK_AFTER,
    Daemon,
    World,
    either,
)

most_recoveries = st.integers(0, 2)
EVERY = 15.0  # seconds
_ENDS_SOONER = """
local left = redis.call('PTTL', KEYS[1])
if left > 0 then redis.call('PEXPIRE', KEYS[1], left - ARGV[1]) end
"""


class Healing(World):
    # --- daemons and their clocks ------------------------------------------------------------

    @rule(who=either)
    def a_daemon_starts_anew(self, who: int) -> None:
        """After a SIGKILL: its lock, its leases and its heartbeat are left behind."""
        self.daemons[who] = self.new_daemon()

    @rule(who=either, seconds=st.sampled_from([-86_400.0, -10.0, 10.0, HOUR]))
    def the_clock_of_a_daemon_leaps(self, who: int, seconds: float) -> None:
        self.daemons[who].clock.ahead += seconds

    # --- the lock ----------------------------------------------------------------------------

    @rule()
    def time_passes_for_the_lock(self) -> None:
        """And for all that is known of it and of its holders."""
        passed = int(PASS * 1000)
        redis = self.redis
        ends_sooner = redis.register_script(_ENDS_SOONER)
        for key in (KEYS.lock, KEYS.lock_seen):
            ends_sooner(keys=[key], args=[passed])
        for name, ms in redis.hgetall(KEYS.lock_seen).items():
            if name != b"value" and int(ms) > 0:
                redis.hset(KEYS.lock_seen, name, int(ms) - passed)
        for value in redis.zrange(KEYS.daemons, 0, -1):
            redis.zincrby(KEYS.daemons, -passed, value)
        self.model.time_passes_for_the_lock()

    @rule(who=either, times=st.integers(1, 3), leaps=st.booleans())
    def time_passes_while_the_lock_keeper_looks(self, who: int, times: int, leaps: bool) -> None:
        for _ in range(times):
            self.the_lock_keeper_looks(who)
            self.time_passes_for_the_lock()
        if leaps:
            self.the_clock_of_a_daemon_leaps(who, HOUR)
        self.the_lock_keeper_looks(who)

    @rule(who=either)
    def the_lock_keeper_looks(self, who: int) -> None:
        model, daemon = self.model, self.daemons[who]
        model.beat(daemon.value)
        lock = model.lock
        self.connections.check()
        reason = model.look_at_lock(leapt=lock is not None and daemon.lock_ledger.has_leapt(daemon.clock))
        report = self.do(daemon.keeper.run_once(), may_free_lock=reason is ReleaseReason.HOLDER_DEAD)
        assert (report.released, report.aborted) == (reason, False)
        assert (report.verdict is None) == (lock is None)
        if reason is not None:
            model.release_lock()
        self.was_audited(OperationName.UNLOCK, reason is not None)

    # --- what others left behind -------------------------------------------------------------

    @rule(who=either)
    def the_recoverer_only_looks(self, who: int) -> None:
        self.recoverer_runs(self.daemons[who], None)

    @rule(who=either, max_recoveries=most_recoveries)
    def the_recoverer_runs(self, who: int, max_recoveries: int) -> None:
        self.recoverer_runs(self.daemons[who], max_recoveries)

    def recoverer_runs(self, daemon: Daemon, max_recoveries: int | None) -> None:
        """``max_recoveries`` None: it only looks."""
        model, order = self.model, self.processing
        old, young = self.sightings()
        untracked = model.processing - model.leased
        if not (old or young) and len(order) <= len(model.leases):
            untracked.clear()  # it does not look closer where it seems that all is ours, to be cheap
        begins_anew = daemon.sightings_ledger.has_leapt(daemon.clock) and bool(old + young)
        if begins_anew:
            old, young = Counter(), Counter()
        # Of equal ones that are gone, the oldest sightings end.
        old &= untracked - (young & untracked)
        ineffective = sum(memory.recoveries >= 2 for memory in model.memory.values())
        over, known = model.leases_over, set(model.dead)
        own, others, died = (0, 0, 0), 0, Counter[bytes]()
        if max_recoveries is not None and over:
            own = model.recover_expired(order, max_recoveries)
        if max_recoveries is not None and old:
            others, died = model.recover_others(order, old, max_recoveries)

        rule = StuckRule(max_recoveries is not None, STUCK_AFTER, max_recoveries or 0)
        service = Recoverer(QUEUE, daemon.healing, INSTRUMENTS, self.audit, rule=rule, every=EVERY)
        report = self.do(service.run_once())
        look = report.look
        assert (look.leases_over, look.ineffective, look.begun_anew) == (over, ineffective, begins_anew)
        assert (look.untracked, look.stuck) == (untracked.total(), old.total())
        assert (report.own.returned, report.own.dead, report.own.leases_dropped) == own
        assert (report.others.returned, report.others.dead) == (others, died.total())
        self.letters_have_come(known, died)
        self.was_audited(OperationName.RECOVER, max_recoveries is not None and bool(over or old))

    def letters_have_come(self, known: set[str], died: Counter[bytes]) -> None:
        """Their ids are made by the store; ``known`` are those that were there before."""
        model = self.model
        new = [name.decode() for name in self.redis.zrange(KEYS.dead, 0, -1)]
        letters = {
            name: Letter(self.redis.hget(KEYS.payloads, name), DeadReason.POISON.value)
            for name in new
            if name not in known | set(model.dead)
        }
        assert Counter(letter.payload for letter in letters.values()) == died
        model.dead |= letters

    @precondition(lambda self: self.model.leases)
    @rule(who=either, max_recoveries=most_recoveries)
    def all_daemons_die(self, who: int, max_recoveries: int) -> None:
        for name in sorted(self.model.leases):
            self.lease_runs_out(name)
        self.daemons = [self.new_daemon(), self.new_daemon()]
        self.recoverer_runs(self.daemons[who], max_recoveries)

    @rule(data=st.data())
    def sightings_grow_old(self, data: st.DataObject) -> None:
        names = self.redis.zrange(KEYS.sightings, 0, -1)
        if names:
            for name in data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True)):
                self.redis.zadd(KEYS.sightings, {name: self.tick()}, xx=True)

    @rule(who=either)
    def time_passes_for_all_that_others_hold(self, who: int) -> None:
        self.recoverer_runs(self.daemons[who], None)
        for name in self.redis.zrange(KEYS.sightings, 0, -1):
            self.redis.zadd(KEYS.sightings, {name: self.tick()}, xx=True)

    # --- upkeep ------------------------------------------------------------------------------

    @rule(data=st.data(), keep=st.integers(0, 3))
    def upkeep(self, data: st.DataObject, keep: int) -> None:
        model = self.model
        if model.dead:
            for name in data.draw(st.lists(st.sampled_from(sorted(model.dead)), max_size=2, unique=True)):
                self.redis.zadd(KEYS.dead, {name: self.tick()}, xx=True)
        in_order = [(name.decode(), ms) for name, ms in self.redis.zrange(KEYS.dead, 0, -1, withscores=True)]
        surplus = {name for name, _ in in_order[: max(0, len(in_order) - keep)]}
        surplus |= {name for name, ms in in_order if ms < LONG_AGO}
        expired = [name for name, one in model.trash.items() if one.expired]
        ordered, in_excess = len(self.ordered), self.order_is_in_excess
        service = Upkeep(
            QUEUE,
            self.any_queue,
            self.sweeper,
            Trash(self.connections, KEYS),
            self.audit,
            dead_max_count=keep,
            dead_max_age=HOUR,
        )
        report = self.do(service.run_once())
        assert (report.dead_trimmed, report.orphans) == (len(surplus), len(model.orphans))
        assert report.turns == (ordered - len(model.all_turns) if in_excess else 0)
        assert (report.forgotten, report.resets_expired) == (0, len(expired))
        for name in surplus:
            model.dead_purge(name)
        for name in expired:
            model.removed += model.trash.pop(name).callbacks
        model.orphans = set()
        changes = [OperationName.PURGE_DEAD] * bool(surplus) + [OperationName.EXPIRE] * len(expired)
        assert self.connections.audited == [
            (operation, result) for operation in changes for result in ("started", "done")
        ]

    @precondition(lambda self: self.model.orphans)
    @rule()
    def sweep(self) -> None:
        assert self.do(self.sweeper.sweep_kept()) == len(self.model.orphans)
        self.model.orphans = set()

    @rule()
    def the_order_is_swept(self) -> None:
        """Of those that stand there for nobody. That all others stay is an invariant."""
        ordered, in_excess = len(self.ordered), self.order_is_in_excess
        swept = self.do(self.sweeper.sweep_order())
        assert swept == (ordered - len(self.model.all_turns) if in_excess else 0)
        assert len(self.ordered) == ordered - swept

    @property
    def order_is_in_excess(self) -> bool:
        model = self.model
        return len(self.ordered) > len(model.leases) + len(model.retry) + len(model.memory)

    @rule()
    def what_was_returned_is_forgotten(self) -> None:
        forgotten = self.do(self.sweeper.forget_returned(10**14))
        assert forgotten == len(self.model.memory)
        self.model.memory = {}

    def was_audited(self, operation: OperationName, acted: bool) -> None:
        assert self.connections.audited == ([(operation, "started"), (operation, "done")] if acted else [])
