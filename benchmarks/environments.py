"""The competitors' environments under ``benchmarks/.env``, made on the first run and when their lists change."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pycurl

from benchmarks.processes import BenchmarkError
from benchmarks.servers import program, version_of

HERE = Path(__file__).resolve().parent
WORKERS = HERE / "workers"
PYTHON = HERE / ".env/python"
ARQ = HERE / ".env/arq"
NODE = HERE / ".env/node"
_INSTALL_TIMEOUT = 600


def prepare() -> None:
    """Installs what is missing. The workers in Node run from NODE, where their packages are."""
    program("node", "nodejs")
    for folder, listed in ((PYTHON, HERE / "requirements.txt"), (ARQ, HERE / "requirements-arq.txt")):
        if _is_stale(folder, listed):
            shutil.rmtree(folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(folder)])
            pip = [str(folder / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            _run([*pip, "-r", str(listed)])
            _mark(folder, listed)
    listed = HERE / "package.json"
    if _is_stale(NODE, listed):
        shutil.rmtree(NODE, ignore_errors=True)
        NODE.mkdir(parents=True)
        shutil.copy(listed, NODE)
        npm = [program("npm", "npm"), "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
        _run(npm, NODE)
        _mark(NODE, listed)
    shutil.copy(WORKERS / "bullmq.mjs", NODE)


def _fingerprint(listed: Path) -> str:
    return hashlib.sha256(listed.read_bytes()).hexdigest()


def _is_stale(folder: Path, listed: Path) -> bool:
    mark = folder / ".installed"
    return not mark.exists() or mark.read_text() != _fingerprint(listed)


def _mark(folder: Path, listed: Path) -> None:
    (folder / ".installed").write_text(_fingerprint(listed))


def _run(command: Sequence[str], folder: Path | None = None) -> None:
    print(f"installing: {' '.join(command)}", file=sys.stderr)
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT, check=False)
    if ran.returncode:
        raise BenchmarkError(f"{' '.join(command)} failed:\n{ran.stderr[-2000:]}")


def versions() -> dict[str, dict[str, str]]:
    """Package to version, by who uses it; of the competitors only what is installed."""
    redis_version = re.search(r"v=(\S+)", version_of([program("redis-server", "redis-server"), "--version"]))
    nginx_version = re.search(r"nginx/(\S+)", version_of([program("nginx", "nginx-light"), "-v"]))
    python = sys.version.split()[0]
    ours = ("cbq-exporter", "pycurl", "redis", "hiredis", "msgspec", "uvloop")
    found = {
        "servers": {
            "Redis": redis_version[1] if redis_version else "unknown",
            "nginx": nginx_version[1] if nginx_version else "unknown",
        },
        "cbq-exporter": {"Python": python, "libcurl": _libcurl(), **{name: metadata.version(name) for name in ours}},
    }
    for whose, folder, names in (
        ("Celery, dramatiq, taskiq, bare pycurl", PYTHON, _listed(HERE / "requirements.txt")),
        ("arq", ARQ, _listed(HERE / "requirements-arq.txt")),
    ):
        if (folder / ".installed").exists():
            found[whose] = {"Python": python, **names}
    if (NODE / ".installed").exists():
        node = version_of(["node", "--version"]).removeprefix("v")
        found["BullMQ"] = {"Node": node, **json.loads((HERE / "package.json").read_text())["dependencies"]}
    return found


def _listed(requirements: Path) -> dict[str, str]:
    """The lists name exact versions, and an environment is made anew when its list changes."""
    return dict(re.findall(r"^([\w-]+)(?:\[\w+\])?==(\S+)$", requirements.read_text(), re.MULTILINE))


def _libcurl() -> str:
    found = re.search(r"libcurl/(\S+)", pycurl.version)
    return found[1] if found else "unknown"


def machine() -> dict[str, str]:
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    kernel = Path("/proc/sys/kernel/osrelease").read_text().strip()
    cores = re.findall(r"^processor\s*:", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "CPU": cpu[1] if cpu else "unknown",
        "cores": str(len(cores)),
        "memory": f"{int(memory[1]) / 2**20:.0f} GiB" if memory else "unknown",
        "Linux": kernel,
    }
