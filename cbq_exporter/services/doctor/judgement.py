"""What to think of what was found: pure, one function a check."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from cbq_exporter.model import LockRule, Mode
from cbq_exporter.phrases import size
from cbq_exporter.services.doctor.examination import Examination
from cbq_exporter.services.doctor.findings import Finding, Severity, note, ok, problem, warning
from cbq_exporter.store.disk import FULL_BELOW
from cbq_exporter.store.schema import RUN_THE_NEWER

_LEAST_VERSION = {"redis": (6, 2), "valkey": (7, 2)}
_FULL, _NEARLY_FULL = 0.95, 0.80  # of maxmemory
_LITTLE_ROOM = 256 * 1024 * 1024  # bytes
_CLOCKS_DIFFER = 2.0  # seconds
_BEAT_IS_OLD = 60.0  # seconds, at least
_TRASH_IS_OLD = 300.0  # seconds past its end: upkeep comes once a minute
_MOST_NAMED = 5

_ORDER = tuple(Severity)


def judge(
    seen: Examination,
    *,
    queue: str,
    stuck_after: float,
    lock_rule: LockRule,
    config_warnings: Iterable[str] = (),
    config_problems: Iterable[object] = (),
    disk_room: int | None = None,
) -> tuple[Finding, ...]:
    """All that was checked, the worst first; of equals, what stops callbacks before what may lose them.

    ``stuck_after`` (in seconds) and ``lock_rule`` are the queue's. ``disk_room`` is what is free below the
    embedded store, in bytes; None for another one.
    """
    found: list[Finding] = [*_reachable(seen), *_disk(disk_room)]
    if seen.error is None:
        for check in _STOPPING:
            found += check(seen)
        found += _daemons(seen, max(_BEAT_IS_OLD, lock_rule.dead_after))
        found += _lock(seen, queue, lock_rule.max_ttl)
        found += _processing(seen, queue, stuck_after)
        found += _dead(seen, queue)
        found += _paused(seen, queue)
        found += _left_alone(seen, queue)
        found += _trash(seen)
        for check in _CHECKS:
            found += check(seen)
    found += [problem("configuration", str(one), "mend the file: the daemon refuses it") for one in config_problems]
    found += [warning("configuration", text, "change it, or leave it where it is meant") for text in config_warnings]
    return tuple(sorted(found, key=lambda finding: _ORDER.index(finding.severity)))


def _reachable(seen: Examination) -> Iterator[Finding]:
    if seen.error is not None:
        yield problem("server", seen.error, "mend this first: nothing else could be looked at")
    else:
        yield ok("server", f"{seen.shown_as} answers")


def _disk(room: int | None) -> Iterator[Finding]:
    if room is None:
        return
    left = f"{size(room)} left below the embedded store"
    if room < FULL_BELOW:
        yield problem("disk", f"full: {left}; it ends at the next change that does not fit", "free some space")
    elif room < _LITTLE_ROOM:
        yield warning("disk", left, "free some space: once the disk is full, no callback can be queued or sent")
    else:
        yield ok("disk", left)


def _version(seen: Examination) -> Iterator[Finding]:
    for name in ("valkey", "redis"):
        text = seen.info.get(f"{name}_version")
        if text is None:
            continue
        least = _LEAST_VERSION[name]
        if tuple(map(int, re.findall(r"\d+", text)[:2])) < least:
            wanted = ".".join(map(str, least))
            yield problem("version", f"{name} {text}", f"upgrade the server: at least {wanted} is needed")
        else:
            yield ok("version", f"{name} {text}")
        break
    else:
        yield note("version", "unknown: INFO may not be read", "allow +info to the user of redis.url")
    if seen.info.get("redis_mode") == "cluster":
        yield problem("version", "it is a cluster", "use a single server: clusters are not available in this version")


def _schema(seen: Examination) -> Iterator[Finding]:
    if seen.newer is not None:
        yield warning("schema", seen.newer, f"{RUN_THE_NEWER}: this one changes nothing, and may misread what is there")


def _eviction(seen: Examination) -> Iterator[Finding]:
    policy = seen.info.get("maxmemory_policy")
    if policy is None:
        return
    limited = seen.info.get("maxmemory", "0") != "0"
    do = "set maxmemory-policy to noeviction"
    if policy == "noeviction":
        yield ok("eviction", "noeviction: nothing is deleted when memory is full")
    elif not limited:
        yield note("eviction", f"{policy}, without effect: there is no maxmemory", f"{do}, before a maxmemory is set")
    elif policy.startswith("allkeys"):
        yield problem("eviction", f"{policy}: with memory full, the server deletes whole lists of callbacks", do)
    else:
        yield warning("eviction", f"{policy}: with memory full, the server deletes the send lock and the counters", do)


def _memory(seen: Examination) -> Iterator[Finding]:
    used, most = _number(seen, "used_memory"), _number(seen, "maxmemory")
    if used is None or most is None:
        return
    if most == 0:
        yield ok("memory", "no maxmemory is set")
        return
    share = used / most
    found = f"{share:.0%} of maxmemory is used"
    do = "free memory or raise maxmemory: when it is full, no callback can be queued or claimed"
    if share >= _FULL:
        yield problem("memory", found, do)
    elif share >= _NEARLY_FULL:
        yield warning("memory", found, do)
    else:
        yield ok("memory", found)


def _persistence(seen: Examination) -> Iterator[Finding]:
    aof = seen.info.get("aof_enabled")
    if aof is None:
        return
    do = "set appendonly yes and appendfsync always (or everysec, to lose a second at most)"
    if aof == "1":
        yield from _append_only_file(seen.appendfsync)
        if "valkey_version" not in seen.info and seen.info.get("redis_version", "").startswith("7.0."):
            # Its loader leaves half a transaction at the end of the file; what follows is taken for part of it.
            yield warning(
                "persistence",
                "Redis 7.0, killed inside of a write, can lose acknowledged writes when it is killed once more",
                "upgrade it, or use Valkey; until then run BGREWRITEAOF after each crash",
            )
    elif seen.snapshots:
        yield warning("persistence", "snapshots only: a crash loses everything since the last one", do)
    elif seen.snapshots is None:
        yield warning("persistence", "no append-only file: a crash loses at least what came since a snapshot", do)
    else:
        yield problem("persistence", "off: a restart of the server loses every callback", do)


def _disk_writes(seen: Examination) -> Iterator[Finding]:
    for name, what in (("aof_last_write_status", "append-only file"), ("rdb_last_bgsave_status", "snapshot")):
        if seen.info.get(name, "ok") != "ok":
            yield problem(
                "persistence",
                f"the last write of the {what} failed: the server may refuse changes",
                "look at the server's log and at its disk; cbq-exporter explain misconf says more",
            )


def _append_only_file(appendfsync: str | None) -> Iterator[Finding]:
    if appendfsync == "always":
        yield ok("persistence", "append-only file, on the disk before each answer")
    elif appendfsync == "everysec":
        yield note(
            "persistence",
            "append-only file, written each second: a crash of the machine loses up to a second",
            "set appendfsync always where that is too much",
        )
    elif appendfsync is None:
        yield ok("persistence", "append-only file; how often it reaches the disk may not be read")
    else:
        yield warning(
            "persistence",
            f"append-only file with appendfsync {appendfsync}: a crash of the machine loses many seconds",
            "set appendfsync everysec, or always",
        )


def _replication(seen: Examination) -> Iterator[Finding]:
    if seen.info.get("min_slaves_good_slaves") == "0":  # there only where min-replicas-to-write asks for some
        yield problem(
            "replication",
            "too few replicas are connected: it refuses changes",
            "connect one, or lower min-replicas-to-write",
        )
    if seen.info.get("role") != "slave":
        return
    if seen.mode is Mode.OBSERVE:
        yield note("replication", "it is a replica: what is shown may be a little behind")
    else:
        yield problem("replication", "it is a replica: it refuses changes", "point redis.url at the primary")
    if seen.info.get("master_link_status") == "down":
        yield problem("replication", "it has lost its primary: what it shows is old", "look at the link to the primary")


def _clocks(seen: Examination) -> Iterator[Finding]:
    if seen.skew is not None:
        if abs(seen.skew) - seen.skew_error > _CLOCKS_DIFFER:
            side = "ahead of" if seen.skew > 0 else "behind"
            yield warning(
                "clocks",
                f"the server is {abs(seen.skew):.1f} s {side} this machine",
                "set both by NTP: ages and delays of callbacks are wrong by so much",
            )
        else:
            yield ok("clocks", "the server and this machine agree")
    queued_at = seen.sample.newest_queued_at
    if queued_at is not None and queued_at - seen.at > _CLOCKS_DIFFER:
        yield warning(
            "clocks",
            f"a producer's clock is {queued_at - seen.at:.1f} s ahead of the server",
            "set it by NTP: its callbacks wait for so much longer",
        )


def _permissions(seen: Examination) -> Iterator[Finding]:
    if seen.refused:
        needed = [name for name in seen.refused if not name.startswith("CONFIG")]
        if needed:
            yield problem(
                "permissions",
                f"may not run {_some(needed)}",
                "allow it to the user of redis.url: cbq-exporter explain redis-acl.md has the whole line",
            )
        else:
            yield note("permissions", "CONFIG GET is not allowed, so not all of persistence could be looked at")
    if seen.mode is Mode.OBSERVE:
        if not seen.refused:
            yield ok("permissions", "all that is read may be read")
        return
    if seen.missing is None:
        yield note("permissions", "a server before Redis 7 cannot be asked which changes are allowed")
    elif seen.missing:
        lacking = [*seen.missing.commands, *(f"key {key}" for key in seen.missing.keys)]
        yield problem(
            "permissions",
            f"mode {seen.mode} needs what is not allowed: {_some(lacking)}",
            "allow it to the user of redis.url: cbq-exporter explain redis-acl.md has the whole line",
        )
    else:
        yield ok("permissions", f"all that mode {seen.mode} needs is allowed")


def _types(seen: Examination) -> Iterator[Finding]:
    for key, found in seen.foreign.items():
        yield problem("keys", f"{key} is a {found}", "rename or delete that key, or choose another prefix")
    if not seen.foreign:
        yield ok("keys", "none holds a foreign type")


def _items(seen: Examination) -> Iterator[Finding]:
    sample = seen.sample
    if not sample.looked_at:
        return
    if sample.bad:
        kinds = ", ".join(f"{count:,} {reason}" for reason, count in sample.bad.items())
        yield warning(
            "items",
            f"of {sample.looked_at:,} callbacks at the ends of pending, these cannot be sent: {kinds}",
            "look at the producer; in dispatch mode they become dead letters",
        )
    else:
        yield ok("items", f"{_count(sample.looked_at, 'callback')} at the ends of pending can be read")


def _untouched(seen: Examination) -> Iterator[Finding]:
    if not seen.untouched:
        return
    used = [f"{name} ({text.partition(',')[0].removeprefix('keys=')})" for name, text in _databases(seen)]
    there = f"; this server has keys in {_some(used)}" if used else ", nor any key on this server"
    yield note(
        "queue",
        f"no trace of a callback{there}",
        "where some were queued, see that redis.url names the database, and queues[].prefix the prefix, of producers",
    )


def _databases(seen: Examination) -> Iterator[tuple[str, str]]:
    return ((name, text) for name, text in seen.info.items() if re.fullmatch(r"db\d+", name))


def _leases(seen: Examination) -> Iterator[Finding]:
    compared = seen.comparison
    if compared is not None and compared.empty_leases:
        yield warning(
            "leases",
            f"{_count(compared.empty_leases, 'lease')} without a callback: another tool took it out of processing",
            "nothing: it is swept when it runs out; see whether an old recovery task still runs",
        )
    if seen.expired_leases:
        yield warning(
            "leases",
            f"{_count(seen.expired_leases, 'lease')} ran out: the daemon that claimed those callbacks is gone",
            "see that a daemon in supervise or dispatch mode runs: it brings them back",
        )


def _retries(seen: Examination) -> Iterator[Finding]:
    if seen.overdue:
        yield warning(
            "retries",
            f"{seen.overdue:,} overdue: nobody claims them",
            "see that a daemon in dispatch mode runs and holds the lock",
        )
    kept = seen.lengths
    if {"retry", "dead", "payloads"} <= kept.keys():
        lost = kept["retry"] + kept["dead"] - kept["payloads"]
        if lost > 0:
            yield problem(
                "retries",
                f"{lost:,} of the retries and dead letters have lost their payload",
                "find out who deletes or evicts keys of this prefix",
            )


def _daemons(seen: Examination, silent_after: float) -> Iterator[Finding]:
    if seen.mode is not Mode.DISPATCH and seen.lengths.get("pending"):
        does = "only looks" if seen.mode is Mode.OBSERVE else "heals, and sends nothing"
        yield note(
            "mode",
            f"{seen.mode}: a daemon of this configuration {does}; others have to send",
            "see that those workers are alive; or where this daemon is to send, set queues[].mode to dispatch",
        )
    if seen.mode is Mode.OBSERVE:
        return
    if seen.last_beat_at is None:
        found = "no daemon has given a sign of life"
    else:
        silent = seen.at - seen.last_beat_at
        if silent <= silent_after:
            yield ok("daemon", f"gave a sign of life {max(0.0, silent):.0f} s ago")
            return
        found = f"the last sign of life is {_age(silent)} old"
    do = "start it with: cbq-exporter serve"
    if seen.mode is Mode.DISPATCH and (seen.lengths.get("pending") or seen.lengths.get("retry")):
        yield problem("daemon", f"{found}, and callbacks wait", do)
    else:
        yield warning("daemon", found, do)


def _lock(seen: Examination, queue: str, max_ttl: float) -> Iterator[Finding]:
    lock = seen.lock
    if lock is None:
        if seen.lock_is_free:
            yield ok("lock", "free")
        return
    do = f"see that {lock.value} is not alive any more, then: cbq-exporter unlock -q {queue}"
    if lock.ttl is None:
        yield problem("lock", f"held by {lock.value}, and cannot expire by itself", do)
    elif lock.ttl > max_ttl:
        yield problem("lock", f"held by {lock.value} for another {_age(lock.ttl)}", do)
    else:
        yield ok("lock", f"held by {lock.value}, {lock.ttl:.0f} s left")


def _processing(seen: Examination, queue: str, stuck_after: float) -> Iterator[Finding]:
    compared = seen.comparison
    lengths = seen.lengths
    if compared is not None:
        untracked = compared.untracked
    elif {"processing", "leases"} <= lengths.keys():
        untracked = max(0, lengths["processing"] - lengths["leases"])
    else:
        return
    if untracked == 0:
        yield ok("processing", "every callback in it has a lease" if lengths.get("processing") else "empty")
        return
    found = f"{_count(untracked, 'callback')} without a lease of ours"
    recover = f"cbq-exporter recover -q {queue}"
    if compared is not None and compared.repeated:
        yield warning(
            "processing",
            f"{_count(compared.repeated, 'copy', 'copies')} of callbacks that are there more than once: "
            "likely left behind by acknowledgements that removed nothing",
            f"bring them back with: {recover}",
        )
    if seen.long_seen:
        yield warning(
            "processing",
            f"{found}; {seen.long_seen:,} were first seen more than {_age(stuck_after)} ago",
            f"bring them back with: {recover}",
        )
    else:
        yield note(
            "processing",
            f"{found}: other workers are sending them, or left them behind",
            f"if no worker is alive any more, bring them back with: {recover}",
        )


def _dead(seen: Examination, queue: str) -> Iterator[Finding]:
    dead = seen.lengths.get("dead")
    if dead:
        yield warning("dead", _count(dead, "dead letter"), f"see why with: cbq-exporter dead list -q {queue}")
    elif dead == 0:
        yield ok("dead", "no dead letters")


def _paused(seen: Examination, queue: str) -> Iterator[Finding]:
    if "" in seen.paused:
        yield warning("paused", "the queue is paused", f"let it go on with: cbq-exporter resume -q {queue}")
    places = [name for name in seen.paused if name]
    if places:
        yield warning(
            "paused",
            f"nothing is sent to {_some(places)}",
            f"let it go on with: cbq-exporter resume -q {queue} --destination {places[0]}",
        )


def _left_alone(seen: Examination, queue: str) -> Iterator[Finding]:
    if seen.left_alone:
        yield warning(
            "receivers",
            f"{_some(list(seen.left_alone))} left alone: nearly all attempts fail, and callbacks wait in retry",
            f"see how with: cbq-exporter retry list -q {queue} --destination {seen.left_alone[0]}; mend the receiver: "
            "it is probed again and again, and gets them by itself then",
        )


def _trash(seen: Examination) -> Iterator[Finding]:
    count, until = seen.lengths.get("trash"), seen.oldest_trash_until
    if not count or until is None:
        return
    if seen.at - until > _TRASH_IS_OLD:
        yield warning(
            "trash",
            f"what was reset should have been deleted {_age(seen.at - until)} ago",
            "see that a daemon in supervise or dispatch mode runs: it clears the trash",
        )
    else:
        yield note("trash", f"{_count(count, 'reset')} kept; the oldest for another {_age(until - seen.at)}")


_STOPPING: tuple[Callable[[Examination], Iterator[Finding]], ...] = (
    _version,
    _schema,
    _replication,
    _permissions,
    _types,
    _memory,
    _disk_writes,
)
_CHECKS: tuple[Callable[[Examination], Iterator[Finding]], ...] = (
    _items,
    _leases,
    _retries,
    _untouched,
    _eviction,
    _persistence,
    _clocks,
)


def _number(seen: Examination, name: str) -> int | None:
    text = seen.info.get(name, "")
    return int(text) if text.isdigit() else None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"


def _count(value: int, noun: str, plural: str = "") -> str:
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}"


def _age(seconds: float) -> str:
    """In its largest unit, as in a configuration: 90s, 5m, 12h, 3d."""
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f}{name}"
    return f"{seconds:.0f}s"
