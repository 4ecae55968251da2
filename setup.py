"""What pyproject.toml cannot say: the commit goes into what is built, for ``--version`` and ``cbq_build_info``.

CBQ_REVISION names it; without that it is the one checked out here. A source distribution carries it on.
"""

import os
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from cbq_exporter.revision import FILE, checked_out  # noqa: E402


def note(folder: Path) -> None:
    """Write it into the package in ``folder``, unless it is not known or was written by the source distribution."""
    known = os.environ.get("CBQ_REVISION") or checked_out(ROOT)
    if known:
        (folder / "cbq_exporter" / FILE).write_text(f"{known}\n", "ascii")


class BuildPackage(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            note(Path(self.build_lib))


class BuildSource(sdist):
    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        note(Path(base_dir))


setup(cmdclass={"build_py": BuildPackage, "sdist": BuildSource})
