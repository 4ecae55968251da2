"""The unit that is shipped, run by a systemd that is the first process of a machine, hardening and all."""

from __future__ import annotations

import re
import time

import pytest

from tests.install.machine import ROOT, Machine, machine
from tests.support.daemons import until

CONFIG = "/etc/cbq-exporter/config.yaml"
AS_THE_DAEMON = ("setpriv", "--reuid=cbq-exporter", "--regid=cbq-exporter", "--clear-groups")
# Of the daemon: systemd itself takes a minute, and calls it dead by then.
QUICK_WATCHDOG = "[Service]\nWatchdogSec=3s\nRestartSec=100ms\n"


def shown(inside: Machine, name: str) -> str:
    return inside.ask("systemctl", "show", "--value", f"--property={name}", "cbq-exporter")


def pending(inside: Machine) -> str:
    command = ("env", "-C", "/var/lib/cbq-exporter", "cbq-exporter", "status", "-c", CONFIG)
    return inside.ask(*AS_THE_DAEMON, *command)


def documented() -> list[str]:
    """The commands of docs/install.md; asked is nobody here."""
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    section = page.partition("\n## systemd\n")[2].partition("\n## ")[0]
    block = re.findall(r"```sh\n(.*?)```", section, re.S)[0]
    return [line.replace("cbq-exporter init", "cbq-exporter init --yes") for line in block.splitlines()]


@pytest.mark.slow
def test_it_is_installed_as_documented_and_kept_alive_by_systemd() -> None:
    with machine() as inside:
        for line in documented():
            inside.ask("sh", "-euc", f"cd /repository && {line}", timeout=120)

        # Type=notify: it works as soon as it is started, as a user of its own, confined.
        assert shown(inside, "ActiveState") == "active"
        assert shown(inside, "StatusText").startswith("serves callbacks (dispatch); store: cbq-data")
        daemon = shown(inside, "MainPID")
        status = inside.ask("cat", f"/proc/{daemon}/status")
        assert re.search(r"^CapEff:\s+0+$", status, re.M)
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.M)
        assert re.search(r"^Seccomp:\s+2$", status, re.M)
        assert inside.ask("id", "-u", "cbq-exporter") == re.findall(r"^Uid:\s+(\d+)", status, re.M)[0] != "0"
        inside.ask("cbq-exporter", "healthcheck", "--ready", "-c", CONFIG)

        # A reload is over when systemctl says so, and a wrong one is survived.
        inside.ask("sed", "-i", "s/^    mode: dispatch/    mode: supervise/", CONFIG)
        inside.ask("systemctl", "reload", "cbq-exporter")
        until(lambda: shown(inside, "StatusText").startswith("serves callbacks (supervise)"))
        kept = inside.ask("sh", "-c", f"cp -p {CONFIG} /run/kept && echo 'teleport: mars' >> {CONFIG} && echo kept")
        assert kept == "kept"
        inside.run("systemctl", "reload", "cbq-exporter")
        inside.ask("mv", "/run/kept", CONFIG)
        assert shown(inside, "MainPID") == daemon

        enqueue = ("cbq-exporter", "enqueue", "--url", "https://x.invalid/", "-c", CONFIG)
        inside.ask(*AS_THE_DAEMON, "env", "-C", "/var/lib/cbq-exporter", *enqueue)

        # The watchdog: one that stands still is ended and started again, with all that it had.
        drop_in = "/etc/systemd/system/cbq-exporter.service.d"
        inside.ask("sh", "-c", f'printf "%s" "$1" > {drop_in}/quick.conf', "sh", QUICK_WATCHDOG)
        inside.ask("systemctl", "daemon-reload")
        inside.ask("systemctl", "restart", "cbq-exporter", timeout=120)
        daemon = shown(inside, "MainPID")
        time.sleep(4)  # it is alive, and says so
        assert shown(inside, "MainPID") == daemon
        inside.ask("kill", "-STOP", daemon)
        until(lambda: shown(inside, "NRestarts") == "1", 60)
        until(lambda: shown(inside, "ActiveState") == "active", 60)
        assert shown(inside, "MainPID") not in ("0", daemon)
        assert "watchdog" in inside.ask("journalctl", "--no-pager", "-u", "cbq-exporter").lower()
        assert re.search(r"callbacks +supervise +1 ", pending(inside))

        # A stop is a good end, and nothing is left.
        inside.ask("systemctl", "stop", "cbq-exporter", timeout=120)
        assert shown(inside, "Result") == "success"
        assert shown(inside, "ExecMainStatus") == "0"
        assert inside.run("pgrep", "-u", "cbq-exporter").stdout == ""
        assert inside.ask("stat", "-c", "%U %a", "/var/lib/cbq-exporter") == "cbq-exporter 700"
