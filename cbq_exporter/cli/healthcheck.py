"""``healthcheck``: what a container or a script asks whether the daemon beside it is well."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cbq_exporter.cli import options
from cbq_exporter.errors import CbqError, UsageError
from cbq_exporter.logs import printable

if TYPE_CHECKING:
    from cbq_exporter.config import Config

_MOST_ANSWER = 10_000  # characters


@click.command
@options.config
@click.option("--ready", is_flag=True, help="Ask whether it can do its work now: that needs Redis too.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1, max=60),
    default=4.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for its answer.",
)
@options.debug
def healthcheck(config_path: Path | None, ready: bool, timeout: float) -> int:
    """Ask the daemon that serves this configuration on this machine whether all of its loops are alive.

    Exit code 0 where it is well, 1 where it is not, or nothing answers. A daemon that asks for a password or a
    client's certificate counts as alive when it asks; whether it is ready it cannot be asked then.
    """
    from cbq_exporter.config import load

    click.echo(_ask(load(config_path).config, "/-/ready" if ready else "/-/healthy", timeout))
    return 0


def _ask(config: Config, path: str, timeout: float) -> str:
    """What it says; raises CbqError with its reasons where it is not well."""
    import http.client
    import ssl

    host, port = _here(config.web.host), config.web.port
    if port == 0:
        raise UsageError("web.listen_address names no port: nobody knows which one the daemon has taken")
    secured, certified = _protection(config)
    url = f"{'https' if secured else 'http'}://{f'[{host}]' if ':' in host else host}:{port}{path}"
    if secured:
        # It is asked at an address of this machine, and nothing is told to it.
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host,
            port,
            timeout=timeout,
            context=ssl._create_unverified_context(),  # noqa: S323
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.connect()
        if certified:
            return _alive_for_all_that_is_known(path, "a client's certificate")
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read(_MOST_ANSWER).decode("utf-8", "replace")
    except TimeoutError:
        raise CbqError(f"the daemon does not answer at {url} within {timeout:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise CbqError(f"no daemon answers at {url}: {error}") from error
    finally:
        connection.close()
    if answer.status == http.client.UNAUTHORIZED:
        return _alive_for_all_that_is_known(path, "a password")
    if answer.status != http.client.OK:
        raise CbqError(f"{url} says: {'; '.join(text.split(chr(10))).strip('; ')}")
    return "\n".join(printable(line) for line in text.strip().split("\n"))


def _here(host: str) -> str:
    """An address at which a daemon that listens on ``host`` can be reached from its own machine."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


def _protection(config: Config) -> tuple[bool, bool]:
    """Whether it speaks TLS, and whether it insists on a client's certificate."""
    if config.web.config_file is None:
        return False, False
    from cbq_exporter.web import web_config

    tls = web_config.read(config.web.config_file).tls_server_config
    return tls is not None, tls is not None and tls.client_auth_type == "RequireAndVerifyClientCert"


def _alive_for_all_that_is_known(path: str, wanted: str) -> str:
    if path == "/-/ready":
        raise CbqError(f"the daemon asks for {wanted}: whether it is ready cannot be asked from here")
    return f"it answers, and asks for {wanted}"
