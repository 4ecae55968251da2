"""``check-url``: whether callbacks could be sent to a URL, and why not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cbq_exporter.cli import options, output
from cbq_exporter.cli.running import queue_config
from cbq_exporter.errors import RefusedError

if TYPE_CHECKING:
    from cbq_exporter.delivery.explaining import Explanation

_MOST_URL = 500  # characters that are shown


@click.command("check-url")
@click.argument("url")
@options.config
@options.queue
@options.output
@options.debug
def check_url(url: str, config_path: Path | None, queue_name: str | None, as_json: bool) -> int:
    """Say what sending would make of a URL: how it is read, where it leads, what the egress guard says of each address,
    and which destination applies. Looks the name up, and sends nothing.

    Exit code 0 where it can be sent to, 3 where it is refused, 1 where its name leads nowhere now.
    """
    from cbq_exporter.config import load
    from cbq_exporter.delivery.explaining import explain

    config = load(config_path).config
    explained = explain(url, queue_config(config, queue_name), config.destinations)
    if as_json:
        output.print_json(explained)
    else:
        click.echo(_render(explained))
    if explained.refused is not None:
        return RefusedError.exit_code
    return 0 if explained.unresolved is None else 1


def _render(explained: Explanation) -> str:
    lines = [("url", output.text(explained.url or explained.given, _MOST_URL))]
    if explained.url is not None:
        if explained.match is None:
            entry = "no entry of destinations matches: its host"
        else:
            entry = f"the entry that matches {explained.match}"
        paused = ", paused in the configuration" if explained.paused else ""
        lines.append(("host", f"{explained.host}, port {explained.port}"))
        lines.append(("destination", f"{explained.destination} ({entry}){paused}"))
        lines.append(("tls", _tls(explained)))
        lines.append(("proxy", explained.proxy or "none"))
    width = max(len(name) for name, _ in lines)
    text = "\n".join(f"{name:{width}}  {value}" for name, value in lines)
    if explained.addresses:
        rows = [[one.address, "allowed" if one.refused is None else one.refused] for one in explained.addresses]
        text += f"\n\n{output.table(['address', 'verdict'], rows)}"
    return f"{text}\n\n{_verdict(explained)}"


def _tls(explained: Explanation) -> str:
    if not explained.tls:
        return "no"
    trusted = explained.ca_file or "the system's authorities"
    ours = f", showing {explained.cert_file}" if explained.cert_file else ""
    return f"yes, trusting {trusted}{ours}"


def _verdict(explained: Explanation) -> str:
    if explained.refused is not None:
        way = "" if explained.setting is None else f": where it is meant to be sent to, add it to {explained.setting}"
        return output.paint(f"refused: {explained.refused}{way}", "red")
    if explained.unresolved is not None:
        return output.paint(f"its name leads nowhere now: {explained.unresolved}", "yellow")
    if explained.proxy is not None:
        return output.paint("it may be sent to; what its name leads to, the proxy judges", "green")
    return output.paint("it may be sent to", "green")
