"""What an idle daemon costs: its Redis and its machine should not notice it."""

from __future__ import annotations

import time

from tests.e2e.bare_client import item, push, wait_until_settled
from tests.support.counting_receiver import CountingReceiver
from tests.support.daemons import Daemon, queue
from tests.support.servers import Server

QUEUES = 4
SECONDS = 6.0


def _commands(server: Server) -> int:
    """Executed so far, those inside scripts included."""
    stats = server.client.info("commandstats")
    return sum(int(one["calls"]) for name, one in stats.items() if name != "cmdstat_info")


def test_idling_costs_few_commands_and_little_time() -> None:
    configs = [queue(name=f"q{n}", prefix=f"q{n}", recovery={"every": "15s"}) for n in range(QUEUES)]
    with Server() as server, CountingReceiver() as receiver, Daemon(server.url, *configs) as daemon:
        # Idling after work is what counts: all that starts up has started then.
        for number in range(QUEUES):
            push(server.client, item(receiver.url, number), prefix=f"q{number}")
            wait_until_settled(server.client, f"q{number}")
        commands, cpu, began = _commands(server), daemon.cpu_seconds(), time.monotonic()
        time.sleep(SECONDS)  # not waiting for anything: this is the measurement
        elapsed = time.monotonic() - began
        rate = (_commands(server) - commands) / elapsed / QUEUES
        share = (daemon.cpu_seconds() - cpu) / elapsed
        print(f"idle: {rate:.2f} commands/s a queue, {100 * share:.1f} % of a core with {QUEUES} queues")
        assert 0 < rate < 5
        assert share < 0.10
