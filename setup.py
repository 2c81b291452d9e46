"""Hook the man page into the build; everything else stands in setup.cfg."""

import sys
from pathlib import Path

# A PEP 517 build leaves the project's own directory off the path, and the man page is made from our parser.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from build_manpages import build_manpages, get_build_py_cmd, get_install_cmd
from setuptools import setup

setup(
    cmdclass={
        "build_manpages": build_manpages,
        "build_py": get_build_py_cmd(),
        "install": get_install_cmd(),
    }
)
