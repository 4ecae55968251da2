"""Which addresses the guard refuses: the decision alone, then through an engine, and where no packet can leave."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pycurl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbq_exporter.delivery import slot
from cbq_exporter.delivery.egress import EgressPolicy
from cbq_exporter.delivery.surroundings import Surroundings
from cbq_exporter.delivery.url import parse
from cbq_exporter.model import FailureKind
from tests.support.hostile_urls import BLOCKED, INVALID
from tests.support.receiver import Receiver
from tests.support.sender import LOOPBACK, Sender
from tests.support.skips import skip_or_fail

NOTHING_ALLOWED = EgressPolicy()

REFUSED = [
    ("0.0.0.0", "the unspecified address"),
    ("0.0.0.1", "an address of this network"),
    ("0.255.255.255", "an address of this network"),
    ("10.0.0.0", "a private address"),
    ("10.255.255.255", "a private address"),
    ("100.64.0.0", "a carrier-grade NAT address"),
    ("100.127.255.255", "a carrier-grade NAT address"),
    ("100.100.100.200", "a cloud metadata address"),
    ("127.0.0.0", "a loopback address"),
    ("127.0.0.1", "a loopback address"),
    ("127.255.255.255", "a loopback address"),
    ("168.63.129.16", "a cloud metadata address"),
    ("169.254.0.0", "a link-local address"),
    ("169.254.169.254", "a cloud metadata address"),
    ("169.254.170.2", "a link-local address"),
    ("169.254.255.255", "a link-local address"),
    ("172.16.0.0", "a private address"),
    ("172.31.255.255", "a private address"),
    ("192.0.0.0", "a protocol assignment"),
    ("192.0.0.8", "a protocol assignment"),
    ("192.0.0.192", "a cloud metadata address"),
    ("192.0.0.255", "a protocol assignment"),
    ("192.0.2.1", "a documentation address"),
    ("192.88.99.1", "a 6to4 relay address"),
    ("192.168.0.0", "a private address"),
    ("192.168.255.255", "a private address"),
    ("198.18.0.0", "a benchmarking address"),
    ("198.19.255.255", "a benchmarking address"),
    ("198.51.100.7", "a documentation address"),
    ("203.0.113.7", "a documentation address"),
    ("224.0.0.0", "a multicast address"),
    ("224.0.0.251", "a multicast address"),
    ("239.255.255.255", "a multicast address"),
    ("240.0.0.0", "a reserved address"),
    ("255.255.255.254", "a reserved address"),
    ("255.255.255.255", "the broadcast address"),
    ("::", "the unspecified address"),
    ("::1", "a loopback address"),
    ("::2", "an IPv4-compatible address"),
    ("::7f00:1", "an IPv4-compatible address"),
    ("::8.8.8.8", "an IPv4-compatible address"),
    ("::ffff:127.0.0.1", "an IPv4-mapped address"),
    ("::ffff:10.0.0.1", "an IPv4-mapped address"),
    ("::ffff:8.8.8.8", "an IPv4-mapped address"),
    ("::ffff:a9fe:a9fe", "an IPv4-mapped address"),
    ("::ffff:0:127.0.0.1", "an IPv4-translated address"),
    ("::ffff:0:8.8.8.8", "an IPv4-translated address"),
    ("64:ff9b::", "a NAT64 address"),
    ("64:ff9b::127.0.0.1", "a NAT64 address"),
    ("64:ff9b::169.254.169.254", "a NAT64 address"),
    ("64:ff9b::8.8.8.8", "a NAT64 address"),
    ("64:ff9b:1::1", "a local NAT64 address"),
    ("64:ff9b:1:ffff:ffff:ffff:ffff:ffff", "a local NAT64 address"),
    ("64:ff9c::1", "not a global unicast address"),
    ("100::1", "a discard-only address"),
    ("100:0:0:1::1", "not a global unicast address"),
    ("1fff:ffff::1", "not a global unicast address"),
    ("2001::", "a Teredo address"),
    ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "a Teredo address"),
    ("2001:1::1", "a protocol assignment"),
    ("2001:2::1", "a benchmarking address"),
    ("2001:3::1", "a protocol assignment"),
    ("2001:10::1", "a protocol assignment"),
    ("2001:20::1", "a protocol assignment"),
    ("2001:1ff:ffff::1", "a protocol assignment"),
    ("2001:db8::1", "a documentation address"),
    ("2001:db8:ffff:ffff::1", "a documentation address"),
    ("2002::1", "a 6to4 address"),
    ("2002:7f00:1::1", "a 6to4 address"),
    ("2002:808:808::1", "a 6to4 address"),
    ("3fff::1", "a documentation address"),
    ("3fff:fff::1", "a documentation address"),
    ("4000::1", "not a global unicast address"),
    ("5f00::1", "not a global unicast address"),
    ("8000::1", "not a global unicast address"),
    ("fc00::1", "a private address"),
    ("fd00::1", "a private address"),
    ("fd00:ec2::254", "a cloud metadata address"),
    ("fd20:ce::254", "a cloud metadata address"),
    ("fdff:ffff::1", "a private address"),
    ("fe00::1", "not a global unicast address"),
    ("fe80::1", "a link-local address"),
    ("fe80::1%eth0", "a link-local address"),
    ("febf::1", "a link-local address"),
    ("fec0::1", "a site-local address"),
    ("feff::1", "a site-local address"),
    ("ff00::1", "a multicast address"),
    ("ff02::1", "a multicast address"),
    ("ff0e::1", "a multicast address"),
    # not an address at all: the resolver is to have made it one
    ("127.1", "not an IP address"),
    ("2130706433", "not an IP address"),
    ("0177.0.0.1", "not an IP address"),
    ("0x7f.0.0.1", "not an IP address"),
    ("localhost", "not an IP address"),
    ("[::1]", "not an IP address"),
    ("", "not an IP address"),
    ("/run/docker.sock", "not an IP address"),
]

ALLOWED = [
    "1.0.0.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.0.3.0",
    "192.88.98.255",
    "192.88.100.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2000::1",
    "2001:200::1",
    "2001:db7:ffff::1",
    "2001:db9::1",
    "2003::1",
    "2606:4700:4700::1111",
    "2a00:1450:4001:80e::200e",
    "3ffe:ffff::1",
    "3fff:1000::1",
]

WITH_ALLOWANCE = [
    # networks allowed, address, what the reason contains (None: it is let through)
    (["127.0.0.0/8"], "127.0.0.1", None),
    (["127.0.0.1/32"], "127.0.0.2", "loopback"),
    (["127.0.0.0/8"], "::1", "loopback"),
    (["127.0.0.0/8"], "::ffff:127.0.0.1", None),
    (["127.0.0.0/8"], "::ffff:10.0.0.1", "mapped"),
    (["127.0.0.0/8"], "::127.0.0.1", "compatible"),
    (["127.0.0.0/8"], "64:ff9b::127.0.0.1", "NAT64"),
    (["10.0.0.0/8"], "169.254.169.254", "metadata"),
    (["169.254.0.0/16"], "169.254.169.254", None),
    (["8.8.8.8/32"], "10.0.0.1", "private"),
    (["64:ff9b::/96"], "64:ff9b::8.8.8.8", None),
    (["64:ff9b::/96"], "64:ff9b::10.0.0.1", "leads to 10.0.0.1 is a private address"),
    (["64:ff9b::/96", "10.0.0.0/8"], "64:ff9b::10.0.0.1", None),
    (["::ffff:0:0/96"], "::ffff:127.0.0.1", "leads to 127.0.0.1"),
    (["2002::/16"], "2002:808:808::1", None),
    (["2002::/16"], "2002:a00:1::1", "leads to 10.0.0.1"),
    (["2001::/32"], "2001:0:808:808::f7f7:f7f7", None),
    (["2001::/32"], "2001:0:808:808::f5ff:fffe", "leads to 10.0.0.1"),
    (["2001::/32"], "2001:0:a00:1::f7f7:f7f7", "leads to 10.0.0.1"),
    (["fd00:1::/32"], "fd00:1::5", None),
    (["fd00:1::/32"], "fd00:2::5", "private"),
    (["0.0.0.0/0"], "127.0.0.1", None),
    (["0.0.0.0/0"], "::1", "loopback"),
    (["0.0.0.0/0", "::/0"], "::ffff:127.0.0.1", None),
]


@pytest.mark.parametrize(("address", "why"), REFUSED)
def test_refused(address: str, why: str) -> None:
    reason = NOTHING_ALLOWED.verdict(address)
    assert reason is not None
    assert reason.endswith(why)
    assert NOTHING_ALLOWED.verdict(address) == reason


@pytest.mark.parametrize("address", ALLOWED)
def test_let_through(address: str) -> None:
    assert NOTHING_ALLOWED.verdict(address) is None


@pytest.mark.parametrize(("allow", "address", "why"), WITH_ALLOWANCE)
def test_allowance(allow: list[str], address: str, why: str | None) -> None:
    reason = EgressPolicy(tuple(ip_network(network) for network in allow)).verdict(address)
    assert reason is None if why is None else why in (reason or "let through")


@settings(max_examples=500)
@given(st.ip_addresses())
def test_nothing_is_let_through_that_the_standard_library_calls_not_global(address: IPv4Address | IPv6Address) -> None:
    if NOTHING_ALLOWED.verdict(str(address)) is None:
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_reserved


def test_ports() -> None:
    policy = EgressPolicy(ports=frozenset((443, 8443)))
    assert policy.verdict_on_port(443) is None
    assert policy.verdict_on_port(22) == "port 22 is none of 443, 8443"
    assert NOTHING_ALLOWED.verdict_on_port(22) is None
    with Receiver() as receiver, Receiver() as other:
        with Sender(EgressPolicy(LOOPBACK.allow, frozenset((receiver.port,)))) as sender:
            assert sender.post(receiver.url()).status == 200
            refused = sender.post(other.url())
            assert (refused.failure, refused.never_left) == (FailureKind.BLOCKED, True)
            assert f"port {other.port} is none of {receiver.port}" in refused.detail
        assert other.connections == 0


def test_what_is_remembered_is_bounded() -> None:
    policy = EgressPolicy()
    for number in range(10_000):
        assert policy.verdict(str(ip_address(0x0A000000 + number))) is not None
    assert len(policy._known) < 5000


# --- through an engine --------------------------------------------------------------------------

DISGUISES = [
    "127.0.0.1",
    "127.1",
    "127.255.255.254",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "0.0.0.0",
    "0",
    "[::]",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[0:0:0:0:0:0:0:1]",
]


@pytest.mark.parametrize("as_parsed", [True, False], ids=["as parsed", "as written"])
def test_loopback_is_refused_in_every_disguise(as_parsed: bool) -> None:
    """Written straight into a request too: the guard does not depend on how the URL was read."""
    with Receiver() as four, Receiver(host="::1") as six, Sender(NOTHING_ALLOWED) as sender:
        urls = [f"http://{host}:{port}/" for host in DISGUISES for port in (four.port, six.port)]
        exchanges = sender.send([sender.request(parse(url).url if as_parsed else url) for url in urls])
        ends = {url: (end.failure, end.never_left, end.detail) for url, end in zip(urls, exchanges, strict=True)}
        for failure, never_left, detail in ends.values():
            assert (failure, never_left) == (FailureKind.BLOCKED, True), ends
            assert detail.startswith("blocked: ")
        assert four.connections == six.connections == 0


@contextmanager
def names(monkeypatch: pytest.MonkeyPatch, **addresses: str) -> Iterator[None]:
    """Names that resolve as told, in every engine started inside."""
    make = slot.Slot.__init__

    def make_with_names(self: slot.Slot, around: Surroundings) -> None:
        make(self, around)
        self.curl.setopt(pycurl.RESOLVE, [f"{name}.test:{answer}" for name, answer in addresses.items()])

    with monkeypatch.context() as patch:
        patch.setattr(slot.Slot, "__init__", make_with_names)
        yield


def test_mixed_answers_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each address is judged by itself: a good one does not open the way to a bad one."""
    only_one = EgressPolicy((ip_network("127.0.0.1/32"),))
    with Receiver() as good, Receiver(host="127.0.0.2") as bad:
        assert bad.port != good.port
        both = f"{good.port}:127.0.0.2,127.0.0.1"
        unreachable = f"{bad.port}:127.0.0.2,127.0.0.1"
        with (
            names(monkeypatch, both=both, unreachable=unreachable, refused=f"{bad.port}:127.0.0.2,::1"),
            Sender(only_one) as sender,
        ):
            assert sender.post(f"http://both.test:{good.port}/").status == 200
            # The allowed address does not answer at that port: that is a connect failure, not a refusal of ours.
            assert sender.post(f"http://unreachable.test:{bad.port}/").failure == FailureKind.CONNECT
            refused = sender.post(f"http://refused.test:{bad.port}/")
            assert refused.failure == FailureKind.BLOCKED
            assert refused.never_left
        assert bad.connections == 0
        assert good.connections == 1


def test_kept_connections_are_not_shared_between_engines() -> None:
    with Receiver() as receiver, Sender(LOOPBACK) as open_one, Sender(NOTHING_ALLOWED) as strict:
        assert open_one.post(receiver.url()).status == 200
        assert receiver.open_connections == 1
        assert strict.post(receiver.url()).failure == FailureKind.BLOCKED
        assert open_one.post(receiver.url()).status == 200
        assert receiver.connections == 1
        assert len(receiver.requests) == 2


def test_a_redirect_to_a_forbidden_address_is_not_followed(receiver: Receiver, sender: Sender) -> None:
    with Receiver(host="127.0.0.2") as other:
        for status in (301, 302, 303, 307, 308):
            receiver.on("/away", _redirect(status, other.url("/secret")))
            exchange = sender.post(receiver.url("/away"))
            assert (exchange.status, exchange.failure) == (status, FailureKind.HTTP_3XX)
        assert other.connections == 0


def _redirect(status: int, to: str) -> Any:
    from tests.support.receiver import redirect

    return redirect(to, status)


def test_no_proxy_of_the_environment_is_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, proxy.url(""))
        with Sender() as sender:
            assert sender.post(receiver.url()).status == 200
        assert proxy.connections == 0


# --- where no packet can leave ------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed_network(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``tests.support.closed_network`` saw inside a network namespace that has only loopback."""
    for program in ("unshare", "ip", "mount"):
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            skip_or_fail(f"the {program} program is needed")
    root = Path(__file__).resolve().parents[2]
    folder = tmp_path_factory.mktemp("network")
    inside = [sys.executable, "-m", "tests.support.closed_network", str(folder)]
    for options in (["--net", "--mount"], ["--map-root-user", "--net", "--mount"]):
        if subprocess.run(["unshare", *options, "true"], capture_output=True, timeout=30).returncode == 0:
            break
    else:
        skip_or_fail("a network namespace cannot be made here")
    run = subprocess.run(["unshare", *options, *inside], cwd=root, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    report: dict[str, Any] = json.loads(run.stdout)
    return report


def test_every_address_can_be_reached_there(closed_network: dict[str, Any]) -> None:
    """Without this the next test would prove nothing."""
    reachable = closed_network["reachable"]
    assert len(reachable) > 20
    assert all(end["status"] == 200 for end in reachable.values()), reachable


def test_no_packet_goes_to_a_refused_address(closed_network: dict[str, Any]) -> None:
    refused = closed_network["refused"]
    assert len(refused) > 20
    for url, end in refused.items():
        assert (end["failure"], end["never_left"]) == ("blocked", True), (url, end)
    assert closed_network["packets_while_refused"] == 0
    assert closed_network["connections_while_refused"] == 0


def test_public_addresses_and_allowed_networks_go_through(closed_network: dict[str, Any]) -> None:
    assert closed_network["public"]
    assert all(end["status"] == 200 for end in closed_network["public"].values()), closed_network["public"]
    assert {host: end["failure"] for host, end in closed_network["with_allowance"].items()} == {
        "10.1.2.3": None,
        "10.2.2.3": "blocked",
        "[fd00:1::5]": None,
        "[fd00:2::5]": "blocked",
    }


def test_a_name_with_a_public_and_a_private_address_reaches_only_the_public_one(closed_network: dict[str, Any]) -> None:
    assert closed_network["mixed_name"]["status"] == 200
    assert closed_network["mixed_name_reached"] == ["8.8.8.8"]
    assert closed_network["private_name"]["failure"] == "blocked"


@pytest.mark.parametrize("place", ["thread", "process"])
def test_hostile_urls(closed_network: dict[str, Any], place: str) -> None:
    """No connect comes of any, nor any other packet where no name had to be looked up."""
    seen = closed_network["hostile"][place]
    assert len(seen["ends"]) == len({*BLOCKED, *INVALID}) > 150
    assert [url for url, end in seen["ends"].items() if end not in ("blocked", "invalid")] == []
    assert sum(end == "blocked" for end in seen["ends"].values()) == len(BLOCKED)
    assert (seen["packets"], seen["connections"]) == (0, 0)
    # Nobody has to read a URL for the guard to hold: what some parsers call the host is public, though.
    assert set(seen["reached_as_written"]) <= {"8.8.8.8"}
    # They are dangerous: without the guard most of them arrive.
    assert seen["reached_without_guard"] > 80


def test_a_name_that_changes_its_mind(closed_network: dict[str, Any]) -> None:
    assert closed_network["rebinding"] == [None, "blocked", "blocked", "blocked", None]
    assert closed_network["rebinding_noticed_later"]


def test_a_name_is_used_as_soon_as_it_is_resolved(closed_network: dict[str, Any]) -> None:
    """libcurl's own looks for the resolver's answer come up to 25 ms late."""
    assert 0 < closed_network["shortest_with_a_new_name"] < 0.015


def test_trouble_on_our_side_is_told_from_the_receivers(closed_network: dict[str, Any]) -> None:
    assert closed_network["no_route"]["failure"] == "local"
    assert closed_network["no_resolver"]["failure"] == "local"
    assert closed_network["unknown_name"]["failure"] == "dns"
