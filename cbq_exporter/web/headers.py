"""What every answer has, so that no browser keeps it, guesses its type, puts it into a frame or runs something."""

from __future__ import annotations

from collections.abc import Mapping

from cbq_exporter.web.page import CONTENT_SECURITY_POLICY

HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "cbq-exporter",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
