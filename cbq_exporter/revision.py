"""Which commit this program was built from."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

FILE = "revision.txt"  # in the package; only a build writes it, see setup.py
UNKNOWN = "unknown"
_SHOWN = 12  # characters: enough to be one of a kind in any repository


def revision() -> str:
    """As the build noted it, else of the repository that this runs in, else ``unknown``."""
    try:
        noted = resources.files("cbq_exporter").joinpath(FILE).read_text("ascii").strip()
    except (OSError, ValueError):
        noted = checked_out(Path(__file__).resolve().parent.parent) or ""
    return noted[:_SHOWN] or UNKNOWN


def checked_out(folder: Path) -> str | None:
    """The commit that ``folder``, the top of a Git repository, is at; read without git, which may not be there."""
    try:
        head = _line(folder / ".git/HEAD")
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        try:
            return _line(folder / ".git" / name)
        except OSError:
            packed = (folder / ".git/packed-refs").read_text("ascii").splitlines()
            return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)
    except (OSError, ValueError):
        return None


def _line(file: Path) -> str:
    return file.read_text("ascii").strip()
