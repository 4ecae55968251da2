"""What the doctor says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    PROBLEM = "problem"  # callbacks are lost, or do not go out, or will not soon
    WARNING = "warning"  # somebody should look at it
    NOTE = "note"  # good to know
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``todo`` is what to do about it; empty where nothing is to be done."""

    severity: Severity
    check: str
    found: str
    todo: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(Severity.OK, check, found)


def note(check: str, found: str, todo: str = "") -> Finding:
    return Finding(Severity.NOTE, check, found, todo)


def warning(check: str, found: str, todo: str) -> Finding:
    return Finding(Severity.WARNING, check, found, todo)


def problem(check: str, found: str, todo: str) -> Finding:
    return Finding(Severity.PROBLEM, check, found, todo)
