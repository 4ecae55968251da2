"""``healthcheck`` beside real daemons."""

from __future__ import annotations

import json
import signal
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import bcrypt
import pytest
from click.testing import CliRunner, Result

from cbq_exporter.cli.main import app
from tests.support.daemons import Daemon, queue
from tests.support.servers import Server
from tests.web import certificates


def check(folder: Path, netloc: str, *words: str, web_yml: Path | None = None) -> Result:
    """Ask the daemon at ``netloc``, by a configuration that names it."""
    file = folder / "asked.yaml"
    web = {"listen_address": netloc, "config_file": str(web_yml) if web_yml else None}
    file.write_text(json.dumps({"web": web}))
    return CliRunner().invoke(app, ["healthcheck", "-c", str(file), *words], env={"CBQ_REDIS_URL": None})


def test_a_daemon_is_alive_without_redis_but_not_ready(tmp_path: Path) -> None:
    with Server("valkey", folder=tmp_path) as store, Daemon(store.url) as daemon:
        daemon.wait_until_ready()
        netloc = urlsplit(daemon.url).netloc
        for words, said in (([], "healthy\n"), (["--ready"], "ready\n")):
            result = check(tmp_path, netloc, *words)
            assert (result.exit_code, result.stdout, result.stderr) == (0, said, "")
        everywhere = check(tmp_path, netloc.replace("127.0.0.1", "0.0.0.0"))
        assert everywhere.exit_code == 0

        store.kill()
        daemon.wait_until_not_ready("redis")
        assert check(tmp_path, netloc).exit_code == 0
        result = check(tmp_path, netloc, "--ready")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"cbq-exporter: {daemon.url}/-/ready says: ")
        assert "Redis at unix://" in result.stderr

        daemon.pause()
        hung = check(tmp_path, netloc, "--timeout", "0.2")
        assert (hung.exit_code, hung.stderr) == (
            1,
            f"cbq-exporter: the daemon does not answer at {daemon.url}/-/healthy within 0.2 s\n",
        )
        daemon.resume()
        daemon.stop(signal.SIGTERM)
        gone = check(tmp_path, netloc)
        assert gone.exit_code == 1
        assert gone.stderr.startswith(f"cbq-exporter: no daemon answers at {daemon.url}/-/healthy: ")


def test_another_program_at_that_address_reaches_no_terminal(tmp_path: Path) -> None:
    body = "\x9b31mhealthy\u202e\nready\n".encode()

    def answer() -> None:
        client, _ = listening.accept()
        with client:
            client.recv(65536)
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        other = threading.Thread(target=answer)
        other.start()
        result = check(tmp_path, f"127.0.0.1:{listening.getsockname()[1]}")
        other.join(20)
    assert (result.exit_code, result.stdout) == (0, "\\x9b31mhealthy\\u202e\nready\n")


@pytest.mark.parametrize("client", ["NoClientCert", "RequireAndVerifyClientCert"])
def test_a_protected_daemon_is_alive_when_it_asks_who_is_there(client: str, server: Server, tmp_path: Path) -> None:
    authority = certificates.authority(tmp_path)
    own = certificates.server(tmp_path, authority)
    web_yml = tmp_path / "web.yml"
    tls = {"cert_file": str(own.certificate), "key_file": str(own.key), "client_auth_type": client}
    if client != "NoClientCert":
        tls["client_ca_file"] = str(authority.certificate)
    users = {"prometheus": bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()}
    web_yml.write_text(json.dumps({"tls_server_config": tls, "basic_auth_users": users}))
    wanted = "a password" if client == "NoClientCert" else "a client's certificate"
    with Daemon(server.url, queue(mode="observe"), web={"config_file": str(web_yml)}) as daemon:
        netloc = urlsplit(daemon.url).netloc
        result = check(tmp_path, netloc, web_yml=web_yml)
        assert (result.exit_code, result.stdout) == (0, f"it answers, and asks for {wanted}\n"), result.stderr
        result = check(tmp_path, netloc, "--ready", web_yml=web_yml)
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"asks for {wanted}" in result.stderr


def test_what_listens_there_may_be_no_daemon(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        port = foreign.getsockname()[1]
        assert check(tmp_path, f"127.0.0.1:{port}", "--timeout", "0.2").exit_code == 1
    result = check(tmp_path, "127.0.0.1:0")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
