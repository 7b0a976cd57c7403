"""Sphinx configuration of the documentation site: `make docs` builds it, and a warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from sphinx.application import Sphinx

from heavytail import __version__
from heavytail.report.theory import write_theory

project = "heavytail"
author = "the heavytail authors"
copyright = "2026, the heavytail authors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.doctest",
    "sphinx_copybutton",
    "figure_pages",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "heavytail"
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
html_math_renderer = "mathjax"
suppress_warnings = ["myst.xref_missing_outside"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_use_ivar = True
copybutton_prompt_text = "$ "


def _escape_pipes(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings write |x| for an absolute value, which reStructuredText takes for a substitution."""
    lines[:] = [line if line.lstrip().startswith(">>>") else line.replace("|", r"\|") for line in lines]


def _write_theory(app: Sphinx, error: Exception | None) -> None:
    """Write the page with sliders, to which docs/theory.md links."""
    if error is None and app.builder.format == "html":
        write_theory(Path(app.outdir) / "theory-sliders.html")


def setup(app: Sphinx) -> None:
    """Register the hooks."""
    app.connect("autodoc-process-docstring", _escape_pipes)
    app.connect("build-finished", _write_theory)
