"""Sphinx configuration."""

import re
from html import escape, unescape
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

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
autodoc_preserve_defaults = True
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
        r"(numbers|os|pathlib|pytest|redis|shelve|signal|sqlite3|ssl|types|typing|yarl)\..*",
    ),
    (r"py:.*", r"[A-Za-z]+"),
    (r"py:class", r"aiosfstream\.(.*\.)?_.*|aiosfstream\.exceptions\.Func.*"),
]

html_theme = "furo"
html_title = f"aiosfstream {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["tables.js"]

# Addresses of pages that have moved, those of the documentation of 0.5.0 among them, and where what
# stood there stands now.
REDIRECTS = {
    "install": "installation",
    "guide": "index",
    "changes": "changelog",
    "api": "reference/index",
    "howto/migrate": "from/aiosfstream-0.5",
}

# What the reader needs to know of a private alias is what it stands for.
ALIASES = {
    "_http.Dumper": "Callable[[Any], str | bytes]",
    "_http.Loader": "Callable[[Any], Any]",
    "ssl_module.SSLContext": "ssl.SSLContext",
}

# What stands in a signature for a private name, or for one that says nothing to the reader.
DEFAULTS = {
    "_NOT_GIVEN": "API_VERSION",
    "MAX_ANSWER_SIZE": "64 * 1024 * 1024",
    "RETRY_THEN_STOP": "Retry()",
}


def resolve_alias(
    app: Sphinx, env: BuildEnvironment, node: nodes.Element, content: nodes.Element
) -> nodes.Node | None:
    meaning = ALIASES.get(node.get("reftarget", ""))
    return None if meaning is None else nodes.emphasis(meaning, meaning)


def write_defaults(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    signature: str,
    result: str,
) -> tuple[str, str]:
    """Write default values as the reader knows them."""
    for default, meaning in DEFAULTS.items():
        signature = signature and signature.replace(f"={default}", f"={meaning}")
    return signature, result


class Picture(SphinxDirective):
    """An SVG as part of the page, so that it takes the colours of the page's theme."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Return a figure, with the directive's content as its caption."""
        name, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(name)
        alt = escape(self.options["alt"], quote=True)
        html = f'<div class="picture" role="img" aria-label="{alt}">{Path(path).read_text("utf-8")}</div>'
        figure = nodes.figure("", nodes.raw("", html, format="html"))
        if self.content:
            caption, *_ = self.parse_content_to_nodes()
            figure += nodes.caption("", "", *caption.children)
        return [figure]


def break_words(
    app: Sphinx,
    name: str,
    template: str,
    context: dict[str, Any],
    doctree: nodes.Node | None,
) -> None:
    """Say where words of code may be broken: short ones, such as ``--replay``, nowhere."""

    def broken(match: re.Match[str]) -> str:
        word, length = match[1], len(unescape(match[1]))
        if length < 25:
            return f'<span class="pre whole">{word}</span>'
        if length > 36:
            word = re.sub(r"([:/,?_(=.])", r"\1<wbr>", word)
        return f'<span class="pre">{word}</span>'

    if "body" in context:
        context["body"] = re.sub(
            r'<span class="pre">([^<]*)</span>', broken, context["body"]
        )


STUB = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Moved</title>
<link rel="canonical" href="{target}">
<meta http-equiv="refresh" content="0; url={target}">
</head>
<body><p>This page has moved <a href="{target}">here</a>.</p></body>
</html>
"""


def write_redirects(app: Sphinx, exception: Exception | None) -> None:
    """Leave a page at each old address that leads to the new one."""
    if exception is not None or app.builder.format != "html":
        return
    for old, new in REDIRECTS.items():
        stub = Path(app.outdir, f"{old}.html")
        target = "../" * old.count("/") + f"{new}.html"
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(STUB.format(target=target), encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.add_directive("picture", Picture)
    app.connect("missing-reference", resolve_alias)
    app.connect("autodoc-process-signature", write_defaults)
    app.connect("html-page-context", break_words)
    app.connect("build-finished", write_redirects)
