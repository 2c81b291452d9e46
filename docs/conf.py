"""Sphinx's configuration."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent / "_ext")]

import queuedtask  # noqa: E402

project = "queuedtask"
author = "the queuedtask contributors"
copyright = f"2026, {author}"  # noqa: A001
version = release = queuedtask.__version__

extensions = ["reference", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"queuedtask {version}"
highlight_language = "python"
nitpicky = True
smartquotes = False  # they would make one dash of the two in --json
autodoc_member_order = "bysource"
autodoc_typehints = "none"
