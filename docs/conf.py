"""Sphinx configuration."""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

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
# A reference into the package must lead somewhere. Foreign ones would need an inventory from the
# network, and the names of type aliases have no page.
nitpicky = True
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(aiocometd|aiohttp|asyncio|collections|contextlib|datetime|enum|functools|json|logging)\..*",
    ),
    (
        r"py:.*",
        r"(numbers|os|pathlib|pytest|redis|shelve|sqlite3|ssl|types|typing|yarl)\..*",
    ),
    (r"py:.*", r"[A-Za-z]+"),
    (r"py:class", r"aiosfstream\._.*|aiosfstream\.exceptions\.FuncT"),
]

html_theme = "furo"
html_title = f"aiosfstream {release}"
html_copy_source = False

# What the reader needs to know of a private alias is what it stands for.
ALIASES = {
    "_http.Dumper": "Callable[[Any], str | bytes]",
    "_http.Loader": "Callable[[Any], Any]",
    "ssl_module.SSLContext": "ssl.SSLContext",
}


def resolve_alias(
    app: Sphinx, env: BuildEnvironment, node: nodes.Element, content: nodes.Element
) -> nodes.Node | None:
    meaning = ALIASES.get(node.get("reftarget", ""))
    return None if meaning is None else nodes.emphasis(meaning, meaning)


def setup(app: Sphinx) -> None:
    app.connect("missing-reference", resolve_alias)
