"""The kinds of value that options take."""

from __future__ import annotations

import re
from typing import Any

import click

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(s|m|h|d)\Z")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Duration(click.ParamType[float]):
    """Such as 30s, 15m, 12h or 7d; seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = _DURATION.match(value)
        if match is None:
            self.fail(f"{value!r} is not a duration such as 30s, 15m, 12h or 7d", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]
