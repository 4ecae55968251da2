"""Why a request cannot be made from an item; apart from what makes them, which is imported only where it is used."""

from __future__ import annotations


class RenderError(ValueError):
    """What and where, on one line."""


class OutputTooLarge(RenderError):
    """More came out than a body may have."""
