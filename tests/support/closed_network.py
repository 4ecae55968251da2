"""Run inside a network namespace of its own: drives the egress guard where no packet can leave, and reports.

    unshare --net --mount python -m tests.support.closed_network FOLDER

Every address of both families leads to this machine's loopback device, so that a receiver listening on all of
them sees whatever the guard lets through. Prints one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from cbq_exporter.delivery.egress import EgressPolicy
from cbq_exporter.delivery.engine import Exchange
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
    _replace(Path("/etc/hosts"), folder / "hosts", f"127.0.0.1 localhost\n10.9.9.9 private.test\n{mixed}{numbered}")
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
    json.dump(report, sys.stdout)


def _send(sender: Sender, hosts: Iterable[str], port: int) -> dict[str, Any]:
    hosts = list(hosts)
    exchanges = sender.send([sender.request(f"http://{host}:{port}/") for host in hosts])
    return {host: _told(exchange) for host, exchange in zip(hosts, exchanges, strict=True)}


def _told(exchange: Exchange) -> dict[str, Any]:
    return {
        "status": exchange.status,
        "failure": exchange.failure,
        "never_left": exchange.never_left,
        "detail": exchange.detail,
    }


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
