"""What pyproject.toml cannot say: two things go into what is built that are not in the package here.

- The commit, for ``--version`` and ``cbq_build_info``: CBQ_REVISION names it; without that it is the one checked out
  here. A source distribution carries it on.
- The pages of the documentation, those of the alerts among them, for ``explain``.
"""

import os
import shutil
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
            for name, folder in {"pages": "docs", "runbooks": "docs/runbooks"}.items():
                built = Path(self.build_lib) / "cbq_exporter" / name
                built.mkdir(exist_ok=True)
                for page in sorted((ROOT / folder).glob("*.md")):
                    shutil.copy(page, built)


class BuildSource(sdist):
    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        note(Path(base_dir))


setup(cmdclass={"build_py": BuildPackage, "sdist": BuildSource})
