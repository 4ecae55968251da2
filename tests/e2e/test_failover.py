"""A primary that is demoted while two daemons work, and a replica that missed its last writes takes its place."""

from __future__ import annotations

import time

from tests.e2e.bare_client import item, number_of, push, wait_until_settled
from tests.support.counting_receiver import CountingReceiver
from tests.support.daemons import SHORT_LIVED, Daemon, queue, until
from tests.support.fault_proxy import FaultProxy
from tests.support.prometheus import free_port
from tests.support.servers import Server

_MANY = 1500


def test_all_that_the_replica_knows_is_delivered_and_only_the_last_moments_twice() -> None:
    port = free_port()
    with (
        Server("valkey", "--port", str(port), "--repl-diskless-sync-delay", "0") as primary,
        Server("valkey") as replica,
        FaultProxy(primary.socket) as name,
        CountingReceiver(lambda body, nth: (200, 0.02)) as receiver,
        Daemon(name.url, queue(SHORT_LIVED, delivery={"concurrency": 64})) as first,
        Daemon(name.url, queue(SHORT_LIVED, delivery={"concurrency": 64})) as second,
    ):
        replica.client.replicaof("127.0.0.1", port)
        until(lambda: replica.client.info("replication")["master_link_status"] == "up")
        first.wait_until_ready()
        second.wait_until_ready()
        push(primary.client, *(item(receiver.url, number) for number in range(_MANY)))
        until(lambda: len(receiver.accepted) > 300)

        # From here on the replica misses what is claimed and settled, and then it is the primary.
        replica.client.replicaof("NO", "ONE")
        before = len(receiver.accepted)
        until(lambda: len(receiver.accepted) > before + 200)
        name.lead_to(replica.socket)
        primary.client.replicaof("127.0.0.1", 1)
        demoted, repeatable = time.monotonic(), receiver.requests - before

        wait_until_settled(replica.client, what=lambda: first.log()[-3000:])
        assert time.monotonic() - demoted < 15
        assert {number_of(body) for body in receiver.accepted} == set(range(_MANY))
        twice = sum(times - 1 for times in receiver.arrived.values())
        # Sends that were on their way at either end of the gap, or were begun before the leader knew, are repeated too.
        assert 100 < twice < repeatable + 3 * 64
        for daemon in (first, second):
            daemon.wait_until_ready()
        until(lambda: sum(one.metrics().get("cbq_dispatch_leader") or 0 for one in (first, second)) == 1)
        fenced = [one.metrics().get("cbq_fenced_total", operation="settle") or 0 for one in (first, second)]
        assert sum(fenced) > 0
        assert not replica.client.exists("callback_queue:payloads", "callback_queue:records")
