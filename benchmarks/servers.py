"""A Redis and an nginx of the benchmark's own, each with its own settings, port and folder."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import redis

from benchmarks.processes import BenchmarkError, Program

_START_TIMEOUT = 20.0

# One worker, connections kept for ever. The answer goes out once the whole body has been read, which needs
# the echo module: `return 200` would answer first and throw the body away afterwards. One line of log for each
# request says when it was answered; it is buffered, because a write for each would cost as much as the request.
_NGINX = """
daemon off;
worker_processes 1;
worker_rlimit_nofile 16500;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
load_module {echo};
events {{ worker_connections 16384; }}
http {{
    log_format request '$msec $status $content_length';
    log_format visit '$msec $http_host $arg_n';
    log_format body escape=none '$request_body';
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_body_buffer_size 1m;
    client_body_in_single_buffer on;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    tcp_nodelay on;
    default_type text/plain;
    server {{
        {listen}
        access_log {folder}/requests.log request buffer=64k flush=50ms;
        location / {{ echo_read_request_body; echo -n ""; }}
        location /visit {{
            access_log {folder}/visits.log visit buffer=64k flush=50ms;
            echo_read_request_body;
            echo -n "";
        }}
        location /check {{
            access_log {folder}/requests.log request;
            access_log {folder}/bodies.log body;
            echo_read_request_body;
            echo -n "";
        }}
    }}
}}
"""
_ECHO = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/local/lib/nginx/modules")


def program(name: str, package: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise BenchmarkError(f"{name} is needed. On Debian and Ubuntu: apt install {package}")
    return found


def _echo_module() -> str:
    for folder in _ECHO:
        module = Path(folder, "ngx_http_echo_module.so")
        if module.exists():
            return str(module)
    raise BenchmarkError("nginx's echo module is needed. On Debian and Ubuntu: apt install libnginx-mod-http-echo")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """An empty Redis on a port of 127.0.0.1. Without ``durable`` it writes nothing to disk; with it, each write
    is on disk (AOF, appendfsync always) before it is answered.
    """

    def __init__(self, *, durable: bool = False) -> None:
        self._durable = durable
        self._folder = Path(tempfile.mkdtemp(prefix="cbq-bench-redis-"))
        self._program: Program | None = None
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis(port=self.port, socket_timeout=60)

    def __enter__(self) -> Self:
        command = [program("redis-server", "redis-server"), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--dir", str(self._folder)]
        command += ["--appendonly", "yes", "--appendfsync", "always"] if self._durable else ["--appendonly", "no"]
        self._program = Program(command, self._folder / "log")
        deadline = time.monotonic() + _START_TIMEOUT
        try:
            while True:
                with contextlib.suppress(redis.ConnectionError):
                    self.client.ping()
                    return self
                self._program.check()
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"redis-server does not answer{self._program.last_words()}")
                time.sleep(0.01)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self.client.close()
        if self._program is not None:
            self._program.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


class CommandCount:
    """Redis commands, those inside of scripts included, and CPU seconds since it was made, without its own.

    Nothing but ``ask`` may use the server's ``client`` meanwhile.
    """

    def __init__(self, server: RedisServer) -> None:
        self._client = server.client
        self._client.ping()  # connecting takes commands too
        self._own = 0
        self._commands, self._cpu = self._read()

    def ask(self, *command: Any) -> Any:
        self._own += 1
        return self._client.execute_command(*command)  # type: ignore[no-untyped-call]

    def since(self) -> tuple[int, float]:
        commands, cpu = self._read()
        return commands - self._commands, cpu - self._cpu

    def _read(self) -> tuple[int, float]:
        own = self._own  # an INFO does not count itself
        entries = self.ask("INFO", "commandstats")
        cpu = self.ask("INFO", "cpu")
        return sum(entry["calls"] for entry in entries.values()) - own, cpu["used_cpu_user"] + cpu["used_cpu_sys"]


class Nginx:
    """Answers 200 to every request on a port of ``addresses``, of this machine, and keeps a line of each."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses or ("127.0.0.1",)
        self._folder = Path(tempfile.mkdtemp(prefix="cbq-bench-nginx-"))
        self._folder.chmod(0o755)  # its worker may run as another user
        self._program: Program | None = None
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/callback"
        self.check_url = f"http://127.0.0.1:{self.port}/check"
        self.requests_log = self._folder / "requests.log"
        self.visits_log = self._folder / "visits.log"  # when, which host, which number (n=) of requests to /visit
        self.bodies_log = self._folder / "bodies.log"

    def __enter__(self) -> Self:
        settings = self._folder / "nginx.conf"
        listen = " ".join(f"listen {address}:{self.port} backlog=4096;" for address in self._addresses)
        settings.write_text(_NGINX.format(folder=self._folder, listen=listen, echo=_echo_module()))
        command = [program("nginx", "nginx-light libnginx-mod-http-echo"), "-p", str(self._folder), "-c", str(settings)]
        command += ["-e", str(self._folder / "error.log")]
        self._program = Program(command, self._folder / "log")
        deadline = time.monotonic() + _START_TIMEOUT
        try:
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                    return self
                self._program.check()
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"nginx does not answer{self._program.last_words()}")
                time.sleep(0.01)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        if self._program is not None:
            self._program.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def version_of(command: list[str]) -> str:
    """What the program says of its version; nginx says it on standard error."""
    ran = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return (ran.stdout or ran.stderr).strip()
