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

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"show-inheritance": True}

# A reference into the package must lead somewhere. Foreign ones would need an inventory from the
# network, and the names of type aliases have no page.
nitpicky = True
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(aiocometd|aiohttp|asyncio|collections|contextlib|datetime|enum|json|logging)\..*",
    ),
    (r"py:.*", r"(numbers|os|pathlib|pytest|redis|shelve|sqlite3|ssl|types|typing|yarl)\..*"),
    (r"py:.*", r"[A-Za-z]+"),
    (r"py:class", r"aiosfstream\._.*"),
]

html_theme = "furo"
html_title = f"aiosfstream {release}"
html_copy_source = False
