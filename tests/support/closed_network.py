"""Run inside a network namespace of its own: drives the egress guard where no packet can leave, and reports.

    unshare --net --mount python -m tests.support.closed_network FOLDER

Every address of both families leads to this machine's loopback device, so that a receiver listening on all of
them sees whatever the guard lets through. Prints one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from cbq_exporter.delivery import slot
from cbq_exporter.delivery.egress import EgressPolicy
from cbq_exporter.delivery.engine import Exchange
from cbq_exporter.delivery.url import parse
from cbq_exporter.model import FailureKind
from tests.support.hostile_urls import BLOCKED, HOSTS, INVALID
from tests.support.receiver import Receiver
from tests.support.sender import Sender

EVERYTHING = EgressPolicy((ip_network("0.0.0.0/0"), ip_network("::/0")))

PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "[2606:4700:4700::1111]", "[2a00:1450::200e]"]
FORBIDDEN = [
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "203.0.113.9",
    "2852039166",  # 169.254.169.254
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "10.1",
    "[::1]",
    "[::ffff:10.0.0.1]",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::10.0.0.1]",
    "[64:ff9b:1::1]",
    "[2001:db8::1]",
    "[2002:a00:1::1]",
    "[2001:0:a00:1::f5ff:fffe]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[fec0::1]",
    "[5f00::1]",
]
NEVER_CONNECTED_TO = ["0.0.0.0", "224.0.0.1", "255.255.255.255", "[::]", "[fe80::1]", "[ff02::1]", "240.0.0.1"]


def main(folder: Path) -> None:
    _replace(Path("/etc/resolv.conf"), folder / "resolv.conf", "nameserver 127.0.0.1\noptions attempts:1 timeout:1\n")
    mixed = "".join(f"{address} mixed.test\n" for address in ("10.9.9.9", "fd00::9", "8.8.8.8", "169.254.169.254"))
    numbered = "".join(f"127.0.0.1 name-{number}.test\n" for number in range(20))
    _replace(Path("/etc/hosts"), folder / "hosts", f"{HOSTS}{mixed}{numbered}")
    _run("ip link set lo up")
    report: dict[str, Any] = {}
    with Sender(EVERYTHING) as sender:
        report["no_route"] = _told(sender.post("http://8.8.8.8/"))
        report["no_resolver"] = _told(sender.post("http://unknown.test/"))
    _run("ip route add local 0.0.0.0/0 dev lo")
    _run("ip -6 route add local ::/0 dev lo")
    # Two on one port, of both families.
    with Receiver(host="0.0.0.0") as four, Receiver(host="::", port=four.port) as six:
        port = four.port
        with Sender(EgressPolicy()) as sender:
            before = _traffic()
            report["refused"] = _send(sender, [*FORBIDDEN, *NEVER_CONNECTED_TO], port)
            report["packets_while_refused"] = _traffic() - before
            report["connections_while_refused"] = four.connections + six.connections
            report["public"] = _send(sender, PUBLIC, port)
            seen = len(four.requests)
            report["mixed_name"] = _told(sender.post(f"http://mixed.test:{port}/"))
            report["mixed_name_reached"] = [request.peer[0] for request in four.requests[seen:]]
            report["private_name"] = _told(sender.post(f"http://private.test:{port}/"))
        with Sender(EVERYTHING) as sender:
            report["reachable"] = _send(sender, FORBIDDEN, port)
            report["unknown_name"] = _told(sender.post("http://unknown.test/"))
        with Sender(EgressPolicy((ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")))) as sender:
            report["with_allowance"] = _send(sender, ["10.1.2.3", "10.2.2.3", "[fd00:1::5]", "[fd00:2::5]"], port)
        with Sender(EVERYTHING) as sender:
            durations = [sender.post(f"http://name-{number}.test:{port}/").duration for number in range(20)]
            report["shortest_with_a_new_name"] = min(durations)
        report["hostile"] = {
            place: _hostile(four, six, own_process=place == "process") for place in ("thread", "process")
        }
        report["rebinding"] = _rebind(folder / "hosts", four)
        report["rebinding_noticed_later"] = _rebind_between_two_searches(folder / "hosts", four)
    json.dump(report, sys.stdout)


def _send(sender: Sender, hosts: Iterable[str], port: int) -> dict[str, Any]:
    hosts = list(hosts)
    exchanges = sender.send([sender.request(f"http://{host}:{port}/") for host in hosts])
    return {host: _told(exchange) for host, exchange in zip(hosts, exchanges, strict=True)}


def _hostile(four: Receiver, six: Receiver, *, own_process: bool) -> dict[str, Any]:
    """What becomes of the hostile URLs: as they are read, and as they were written, should nobody read them."""
    urls = [url.format(port=four.port) for url in (*BLOCKED, *INVALID)]
    ends: dict[str, str] = {}
    readable = {}
    packets = 0
    for url in urls:
        try:
            readable[url] = parse(url).url
        except ValueError:
            ends[url] = "invalid"
    seen = len(four.requests), len(six.requests)
    connected = four.connections + six.connections
    with Sender(EgressPolicy(), own_process=own_process) as sender:
        for url, sent in readable.items():
            before = _traffic_at_rest()
            ends[url] = f"{sender.post(sent).failure}"
            if not _is_name(sent):  # a name may have been asked for
                packets += _traffic() - before
        connections = four.connections + six.connections - connected
        sender.send([sender.request(url, timeout=1.0) for url in urls])
    reached = {one.peer[0] for one in (*four.requests[seen[0] :], *six.requests[seen[1] :])}
    with Sender(EVERYTHING, own_process=own_process) as sender:
        unguarded = sender.send([sender.request(url, timeout=1.0) for url in readable.values()])
    return {
        "ends": ends,
        "packets": packets,
        "connections": connections,
        "reached_as_written": sorted(reached),
        "reached_without_guard": sum(end.status == 200 for end in unguarded),
    }


def _is_name(url: str) -> bool:
    try:
        ip_address(parse(url).host)
    except ValueError:
        return True
    return False


def _rebind(hosts: Path, receiver: Receiver) -> list[Any]:
    """A name that is public when it is first looked up, and private a moment later."""
    slot._RESOLVED_FOR = slot._STALE_DROPPED_EVERY = 0
    ends = []
    with Sender(EgressPolicy()) as sender:
        for address in ("8.8.8.8", "10.9.9.9", "127.0.0.1", "169.254.169.254", "8.8.8.8"):
            hosts.write_text(f"{address} rebinding.test\n")
            ends.append(_told(sender.post(f"http://rebinding.test:{receiver.port}/"))["failure"])
            receiver.drop_connections()
    return ends


def _rebind_between_two_searches(hosts: Path, receiver: Receiver) -> bool:
    """Whether a name is looked up again at all where the addresses that are too old are dropped now and then."""
    slot._RESOLVED_FOR, slot._STALE_DROPPED_EVERY = 0, 1
    with Sender(EgressPolicy()) as sender:
        deadline = time.monotonic() + 10
        for address in ("8.8.8.8", "8.8.8.8", "10.9.9.9"):
            hosts.write_text(f"{address} rebinding.test\n")
            exchange = sender.post(f"http://rebinding.test:{receiver.port}/")
            receiver.drop_connections()
        while exchange.failure is None and time.monotonic() < deadline:
            time.sleep(0.01)
            exchange = sender.post(f"http://rebinding.test:{receiver.port}/")
            receiver.drop_connections()
    return exchange.failure is FailureKind.BLOCKED


def _told(exchange: Exchange) -> dict[str, Any]:
    return {
        "status": exchange.status,
        "failure": exchange.failure,
        "never_left": exchange.never_left,
        "detail": exchange.detail,
    }


def _traffic_at_rest() -> int:
    """Once nothing moves any more of what went before, such as the ends of connections."""
    while True:
        seen = _traffic()
        time.sleep(0.005)
        if _traffic() == seen:
            return seen


def _traffic() -> int:
    """Packets that this namespace has sent: it has one device."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[9])
    raise RuntimeError("there is no loopback device")


def _replace(target: Path, source: Path, text: str) -> None:
    """Only for this namespace: the machine's own file stays as it is."""
    source.write_text(text)
    _run(f"mount --bind {source} {target.resolve()}")


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True, timeout=30, stdout=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
