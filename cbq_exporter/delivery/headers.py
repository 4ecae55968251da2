"""Headers that are not written in the configuration: what may be in them."""

from __future__ import annotations

import re

from cbq_exporter.config.kinds import RESERVED_HEADERS

# Idempotency and signatures are ours to make.
OWN = frozenset({"webhook-id", "webhook-timestamp", "webhook-signature"})

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_VALUE = re.compile(r"(?=[\t ]*[!-~])[\t\x20-\x7e]{1,8192}")  # libcurl leaves out a header that is blank


def line(name: object, value: object) -> str:
    """As it goes out. Raises ValueError, which never repeats the value."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError("a header's name must be letters, digits and !#$%&'*+.^_`|~-")
    if name.lower() in RESERVED_HEADERS or name.lower() in OWN:
        raise ValueError(f"the header {name} is set for each request and cannot be given")
    if not isinstance(value, str) or not _VALUE.fullmatch(value):
        raise ValueError(f"the header {name} must be printable ASCII on one line, not blank and up to 8,192 characters")
    return f"{name}: {value}"
