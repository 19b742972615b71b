"""Sphinx configuration."""

from aiosfstream import __version__

project = "aiosfstream"
author = "aiosfstream contributors"
copyright = "aiosfstream contributors"  # noqa: A001 - the name that Sphinx reads
release = __version__
version = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
nitpicky = True
html_theme = "furo"
html_title = f"aiosfstream {release}"
