"""The landing page: one look at what this is and how it is doing. Pure: values in, HTML out; no script, no image."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from cbq_exporter import __version__
from cbq_exporter.model import QueueView, Snapshot, State
from cbq_exporter.phrases import age
from cbq_exporter.policy.troubles import store_troubles, troubles
from cbq_exporter.web.status import text
from cbq_exporter.web.style import CSS

# Nothing may be loaded or run; the style is named by its hash.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()}'"
)

_LINKS = (
    ("/metrics", "Metrics for Prometheus"),
    ("/-/healthy", "Whether its loops are alive"),
    ("/-/ready", "Whether it can do its work now"),
    ("/api/v1/status", "This page's numbers as JSON"),
)
_COMMANDS = (
    ("cbq-exporter status --watch", "The queues, live in a terminal"),
    ("cbq-exporter doctor", "What is wrong, and what mends it"),
    ("cbq-exporter dead list", "What was given up, and why"),
    ("cbq-exporter enqueue --help", "Put a callback into a queue"),
    ("cbq-exporter check-config", "Check the configuration"),
)
_COLUMNS = (
    ("Queue", ""),
    ("State", ""),
    ("Mode", ""),
    ("Pending", "number"),
    ("Processing", "number"),
    ("Retry", "number"),
    ("Dead", "number"),
    ("Oldest waiting", "number"),
    ("Last batch", "number"),
    ("Send lock", "lock"),
)
_MOST_LOCK = 40  # characters of its value
_UNKNOWN = '<span class="soft" title="unknown">?</span>'
_NONE = '<span class="soft">–</span>'


def page(snapshot: Snapshot, *, not_healthy: Sequence[str], not_ready: Sequence[str]) -> str:
    """``not_healthy`` and ``not_ready`` are reasons; none is good."""
    down = () if snapshot.up else (text(snapshot.error) or "Redis is down",)
    reasons = dict.fromkeys((*down, *not_healthy, *not_ready, *store_troubles(snapshot)))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>cbq-exporter</title>
<style>{CSS}</style>
</head>
<body>
<main>
<header>
<h1>cbq-exporter</h1>
<span class="soft">{escape(__version__)}</span>
<span class="right">{_pill("healthy", not not_healthy)}{_pill("ready", not not_ready)}</span>
</header>
<p class="soft">Delivers the HTTP callbacks that wait in a Redis queue, watches them and heals what gets stuck.</p>
{_notice(reasons)}
<h2>Queues</h2>
{_queues(snapshot)}
<p class="soft below">{_store(snapshot)}</p>
<div class="halves">
<section>
<h2>Endpoints</h2>
{_pairs((f'<a href="{path}">{path}</a>', what) for path, what in _LINKS)}
</section>
<section>
<h2>On the command line</h2>
{_pairs((f"<code>{command}</code>", what) for command, what in _COMMANDS)}
<p class="soft below">Every metric, setting and page: <code>cbq-exporter explain</code>.</p>
</section>
</div>
</main>
</body>
</html>
"""


def _pill(word: str, good: bool) -> str:
    return f'<span class="pill {"good" if good else "bad"}">{word if good else f"not {word}"}</span>'


def _notice(reasons: Iterable[str]) -> str:
    lines = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    return f'<div class="notice bad"><ul>{lines}</ul></div>' if lines else ""


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{left}</dt><dd>{right}</dd>" for left, right in pairs)
    return f'<div class="card"><dl>{rows}</dl></div>'


def _queues(snapshot: Snapshot) -> str:
    head = "".join(f'<th scope="col" class="{style}">{name}</th>' for name, style in _COLUMNS)
    rows = "".join(_row(view, snapshot) for view in snapshot.queues)
    if not rows:
        rows = f'<tr><td colspan="{len(_COLUMNS)}">{_UNKNOWN}</td></tr>'
    return f'<div class="card"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(view: QueueView, snapshot: Snapshot) -> str:
    known = snapshot.up and view.error is None
    found = [] if not snapshot.up else [text(one) or "" for one in (view.newer, *troubles(view, snapshot.at)) if one]
    cells = [_state(view, snapshot, found), escape(view.mode)]
    for state in (State.PENDING, State.PROCESSING, State.RETRY, State.DEAD):
        length = view.lengths.get(state) if snapshot.up else None
        cells.append(_UNKNOWN if length is None else f"{length:,}")
    for at, suffix in ((view.oldest_at.get(State.PENDING), ""), (view.last_send_at, " ago")):
        shown = _age(at, snapshot.at, suffix) if snapshot.up else None
        cells.append(shown or (_NONE if known else _UNKNOWN))
    cells.append(_lock(view) if known or view.lock else _UNKNOWN)
    row = f'<tr><th scope="row">{escape(view.queue)}</th>'
    for (name, style), cell in zip(_COLUMNS[1:], cells, strict=True):
        span = ' rowspan="2"' if found and style == "lock" else ""
        row += f'<td class="{style}" data-label="{name}"{span}>{cell}</td>'  # the label is shown on narrow screens
    row += "</tr>"
    if found:
        why = escape("; ".join(found))
        row += f'<tr class="why"><td></td><td colspan="{len(_COLUMNS) - 2}">{why}</td></tr>'
    return row


def _age(at: float | None, now: float, suffix: str) -> str | None:
    if at is None:
        return None
    try:
        exact = datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return escape(age(now - at) + suffix)
    return f'<time datetime="{exact}" title="{exact}">{escape(age(now - at) + suffix)}</time>'


def _lock(view: QueueView) -> str:
    lock = view.lock
    if lock is None:
        return '<span class="soft">free</span>'
    left = "no expiry" if lock.ttl is None else f"{age(lock.ttl)} left"
    value = text(lock.value) or ""
    shown = value if len(value) <= _MOST_LOCK else value[: _MOST_LOCK - 1] + "…"
    holder = "this daemon" if lock.ours else f"<code>{escape(shown)}</code>"
    return f"{holder}<br><span class='soft'>{escape(left)}</span>"


def _state(view: QueueView, snapshot: Snapshot, found: Sequence[str]) -> str:
    if not snapshot.up:
        return '<span class="soft">unknown</span>'
    if view.error is not None:
        return '<span class="pill bad">unreadable</span>'
    if view.paused:
        return '<span class="pill warn">paused</span>'
    if found:
        return '<span class="pill warn">attention</span>'
    busy = any(view.lengths.get(state) for state in (State.PENDING, State.PROCESSING, State.RETRY))
    return '<span class="pill good">working</span>' if busy else '<span class="pill calm">idle</span>'


def _store(snapshot: Snapshot) -> str:
    if not snapshot.up:
        return "Store: down. What is in the queues is unknown until it is back."
    parts = [escape(text(snapshot.server) or "unknown server")]
    if snapshot.memory_used is not None:
        most = "" if snapshot.memory_max is None else f" of {snapshot.memory_max / 2**20:,.1f} MiB"
        parts.append(f"{snapshot.memory_used / 2**20:,.1f} MiB used{most}")
    parts.append(f"read in {snapshot.duration * 1000:.0f} ms")
    return "Store: " + ", ".join(parts) + "."
