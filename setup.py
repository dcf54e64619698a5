"""What pyproject.toml cannot say: a wheel and a source archive carry the viewer's NiiVue, which npm brings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

SCRIPT = Path(__file__).parent / "scripts" / "vendor_niivue.py"


def vendor() -> None:
    """Runs the script, which says on stderr what is missing when it fails."""
    if subprocess.run([sys.executable, str(SCRIPT)]).returncode:
        raise SystemExit("the viewer's NiiVue is missing, see above; radglint is not built without it")


class BuildWithViewer(build_py):
    """An editable install takes NiiVue from the working tree, where `make setup` or the script puts it."""

    def run(self) -> None:
        """Vendors, then builds."""
        if not self.editable_mode:
            vendor()
        super().run()


class SourceWithViewer(sdist):
    """A source archive holds NiiVue, so that a wheel can be built from it without npm."""

    def run(self) -> None:
        """Vendors, then packs."""
        vendor()
        super().run()


setup(cmdclass={"build_py": BuildWithViewer, "sdist": SourceWithViewer})
