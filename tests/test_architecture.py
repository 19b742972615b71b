"""Imports point one way, and each module touches only what it is meant to touch."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import aiocometd
import pytest

PACKAGE = Path(__file__).parent.parent / "aiosfstream"

#: Each module and all that it may import from the package, from the bottom up: a module's imports
#: stand above it. ``testing.*`` stands for the modules of the test server, which may import each
#: other and nothing else, so that the server cannot share the client's mistakes.
ARROWS: dict[str, set[str]] = {
    "_text": set(),
    "_tasks": set(),
    "_typing": set(),
    "_frames": {"_text"},
    "exceptions": {"_text"},
    "events": set(),
    "types": set(),
    "_http": set(),
    "_http.cookies": set(),
    "_http.deadline": set(),
    "_http.bodies": {"_text", "exceptions"},
    "_http.encodings": set(),
    "_http.reuse": set(),
    "_http.failures": {"_frames", "_http.bodies", "_http.encodings", "_text", "exceptions"},
    "_http.post": {
        "_frames",
        "_tasks",
        "_http.bodies",
        "_http.cookies",
        "_http.deadline",
        "_http.encodings",
        "_http.failures",
        "_http.reuse",
    },
    "_internals": set(),
    "_channels": {"_text"},
    # What the session fills and the storages look at.
    "_holds": set(),
    "_cometd": set(),
    # What waits and runs, without a word of Bayeux.
    "_cometd.mailbox": set(),
    "_cometd.iteration": {"_channels", "_cometd.mailbox", "_text", "exceptions"},
    # The session without I/O.
    "_cometd.retry": set(),
    "_cometd.backlog": set(),
    "_cometd.once": set(),
    "_cometd.messages": {"_http.bodies", "_http.failures", "exceptions"},
    "_cometd.pace": {"_cometd.messages"},
    "_cometd.writer": {"_cometd.messages"},
    "_cometd.salesforce": {"_cometd.messages", "_http.failures", "exceptions"},
    "_cometd.sharing": {"_holds"},
    "_cometd.channels": {
        "_channels",
        "_cometd.backlog",
        "_cometd.once",
        "_cometd.messages",
        "_cometd.salesforce",
        "_cometd.sharing",
        "_text",
    },
    "_cometd.states": {"_cometd.salesforce", "_text"},
    "_cometd.tokens": {"_cometd.retry", "_cometd.states", "_http.failures", "exceptions"},
    "_cometd.recovery": {
        "_cometd.retry",
        "_cometd.salesforce",
        "_cometd.states",
        "_cometd.tokens",
        "_http.failures",
        "events",
        "exceptions",
    },
    "_cometd.renewal": {
        "_cometd.channels",
        "_cometd.messages",
        "_cometd.recovery",
        "_cometd.salesforce",
        "_cometd.states",
        "_http.failures",
        "events",
        "exceptions",
    },
    "_cometd.session": {
        "_channels",
        "_cometd.channels",
        "_cometd.messages",
        "_cometd.once",
        "_cometd.pace",
        "_cometd.recovery",
        "_cometd.renewal",
        "_cometd.retry",
        "_cometd.salesforce",
        "_cometd.states",
        "_cometd.writer",
        "_http.failures",
        "events",
        "exceptions",
    },
    # What sends and receives for it.
    "_cometd.exchange": {
        "_cometd.channels",
        "_cometd.mailbox",
        "_cometd.messages",
        "_cometd.session",
        "_cometd.states",
        "_frames",
        "_text",
        "_http.bodies",
        "_http.deadline",
        "_http.failures",
        "_http.post",
        "events",
        "exceptions",
    },
    "_cometd.requests": {
        "_cometd.exchange",
        "_cometd.mailbox",
        "_cometd.messages",
        "_cometd.salesforce",
        "_cometd.session",
        "_cometd.states",
        "_tasks",
        "_cometd.tokens",
        "_http.failures",
        "exceptions",
    },
    "_cometd.polling": {
        "_cometd.exchange",
        "_cometd.mailbox",
        "_cometd.requests",
        "_cometd.session",
        "_cometd.states",
        "_tasks",
        "_frames",
        "_http.failures",
        "events",
        "exceptions",
    },
    "_cometd.transport": {
        "_cometd.exchange",
        "_cometd.mailbox",
        "_cometd.polling",
        "_cometd.requests",
        "_cometd.salesforce",
        "_cometd.session",
        "_cometd.states",
        "_tasks",
        "exceptions",
    },
    "_cometd.client": {
        "_cometd.mailbox",
        "_cometd.states",
        "_tasks",
        "_cometd.transport",
        "_http.bodies",
        "_internals",
        "_text",
        "exceptions",
    },
    "_oauth": set(),
    "_oauth.urls": {"_text"},
    "_oauth.advice": set(),
    "_oauth.keys": {"_text"},
    "_oauth.state": {"_internals", "_text"},
    "_oauth.flows": {"exceptions"},
    "_oauth.answers": {"_oauth.advice", "_oauth.urls", "_text", "exceptions"},
    "_oauth.request": {
        "_oauth.answers",
        "_oauth.state",
        "_oauth.urls",
        "_http.bodies",
        "_http.deadline",
        "_http.post",
        "_frames",
        "_text",
        "exceptions",
    },
    "_oauth.flight": {
        "_oauth.answers",
        "_oauth.flows",
        "_oauth.state",
        "_frames",
        "_text",
        "exceptions",
    },
    "_oauth.login": {
        "_oauth.answers",
        "_oauth.flight",
        "_oauth.flows",
        "_oauth.state",
        "_frames",
        "exceptions",
    },
    "auth": {
        "_oauth.answers",
        "_oauth.login",
        "_oauth.flight",
        "_oauth.flows",
        "_oauth.keys",
        "_oauth.request",
        "_oauth.state",
        "_oauth.urls",
        "_http.bodies",
        "_frames",
        "_internals",
        "_text",
        "_typing",
        "exceptions",
    },
    "_dates": set(),
    "_in_flight": {"_channels", "_holds"},
    "_notes": {"_channels", "_holds", "_in_flight"},
    "_within": {"_tasks"},
    "replay": {
        "_channels",
        "_dates",
        "_holds",
        "_in_flight",
        "_internals",
        "_notes",
        "_text",
        "_within",
        "exceptions",
    },
    "_policy": {
        "_holds",
        "_cometd.client",
        "_cometd.exchange",
        "_cometd.iteration",
        "_cometd.mailbox",
        "_cometd.retry",
        "_cometd.session",
        "_cometd.transport",
        "_http.cookies",
        "_http.post",
        "_oauth.flight",
        "_oauth.request",
        "_oauth.urls",
        "_text",
        "_within",
        "auth",
        "events",
        "exceptions",
        "replay",
    },
    "client": {
        "_cometd.client",
        "_cometd.iteration",
        "_cometd.transport",
        "_http.bodies",
        "_http.post",
        "_internals",
        "_policy",
        "_typing",
        "auth",
        "events",
        "exceptions",
        "replay",
    },
    "storages": set(),
    "storages._values": {"_dates", "replay", "exceptions"},
    "storages._marker_file": {"_dates", "storages._values", "replay", "exceptions"},
    "storages._groups": {"storages._marker_file", "storages._values", "replay", "exceptions"},
    "storages._presence": set(),
    "storages.sqlite": {
        "_internals",
        "storages._presence",
        "storages._groups",
        "storages._marker_file",
        "storages._values",
        "replay",
        "exceptions",
    },
    "storages.redis": {
        "_dates",
        "storages._presence",
        "storages._values",
        "replay",
        "exceptions",
    },
    "service": {"_channels", "_cometd.salesforce", "_text", "client", "replay", "exceptions"},
    "__init__": {"auth", "client", "events", "exceptions", "replay", "service", "storages.sqlite"},
    "_metadata": {"__init__"},
    "testing.conformance": {"replay", "exceptions"},
    # The package hands on the check of storages, when it is asked for.
    "testing.*": {"testing.*", "testing.conformance"},
    "pytest_plugin": set(),
    "_cli": set(),
    "_cli.words": set(),
    "_cli.running": set(),
    "_cli.browser": set(),
    "_cli.pickles": {"replay"},
    "_cli.console": {"_cli.words"},
    "_cli.files": {"_cli.console"},
    "_cli.output": {"_cli.console"},
    "_cli.status": {"_cli.console", "_cli.output", "events"},
    "_cli.network": {"_cli.console"},
    "_cli.channels": {"_cli.console", "replay"},
    "_cli.credentials": {"_cli.console", "_cli.files", "_cli.words", "auth"},
    "_cli.import_markers": {
        "_cli.console",
        "_cli.pickles",
        "exceptions",
        "replay",
        "storages.sqlite",
    },
    "_cli.markers": {
        "_cli.channels",
        "_cli.console",
        "_cli.files",
        "_cli.import_markers",
        "_cli.output",
        "replay",
        "storages.redis",
        "storages.sqlite",
    },
    "_cli.listen": {
        "_cli.channels",
        "_cli.console",
        "_cli.credentials",
        "_cli.network",
        "_cli.output",
        "_cli.status",
        "_cli.words",
        "client",
        "replay",
        "storages.sqlite",
    },
    "_cli.check": {
        "_cli.channels",
        "_cli.console",
        "_cli.credentials",
        "_cli.network",
        "_cli.output",
        "_cli.words",
        "_text",
        "auth",
        "client",
        "exceptions",
    },
    "_cli.demo": {
        "_cli.console",
        "_cli.listen",
        "_cli.output",
        "client",
        "events",
        "replay",
        "testing.*",
    },
    "_cli.login": {
        "_cli.browser",
        "_cli.console",
        "_cli.credentials",
        "_cli.files",
        "_cli.network",
        "_cli.output",
        "_cli.words",
        "_oauth.advice",
        "_oauth.state",
        "_oauth.urls",
        "_text",
        "auth",
        "exceptions",
    },
    "__main__": {
        "__init__",
        "_cli.check",
        "_cli.console",
        "_cli.demo",
        "_cli.import_markers",
        "_cli.listen",
        "_cli.login",
        "_cli.markers",
        "_cli.running",
        "_cli.words",
        "exceptions",
    },
}

#: The session is decided without I/O, clock or event loop.
WITHOUT_A_LOOP = {"asyncio", "aiohttp", "time", "socket", "threading"}
PURE = {
    **{
        f"_cometd.{name}": WITHOUT_A_LOOP
        for name in (
            "backlog",
            "channels",
            "messages",
            "pace",
            "recovery",
            "renewal",
            "retry",
            "salesforce",
            "session",
            "states",
            "tokens",
            "writer",
        )
    },
    "_channels": WITHOUT_A_LOOP,
    "exceptions": WITHOUT_A_LOOP,
    "_text": WITHOUT_A_LOOP,
    # It knows asyncio's cancellation by name.
    "events": WITHOUT_A_LOOP - {"asyncio"},
}

SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES = {name.removesuffix(".__init__"): path for name, path in SOURCES.items()}


def place(module: str) -> str:
    """Return the row of the table that *module* belongs to."""
    if module not in ARROWS and (module == "testing" or module.startswith("testing.")):
        return "testing.*"
    return module


def imported(module: str) -> Iterator[str]:
    """Yield the modules that *module* imports, as absolute dotted names."""
    path = MODULES[module]
    package = ["aiosfstream", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, node.module or ""]).rstrip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name.removeprefix("aiosfstream.") in MODULES else base


def top_level(module: str) -> set[str]:
    """Return the distributions and parts of the standard library that *module* imports."""
    return {name.partition(".")[0] for name in imported(module)}


def internal_imports(module: str) -> set[str]:
    """Return the rows of the table that *module* imports from."""
    internal = {name for name in imported(module) if name.partition(".")[0] == "aiosfstream"}
    return {place(name.partition(".")[2] or "__init__") for name in internal}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_below_it(module: str) -> None:
    assert place(module) in ARROWS, f"{module} has no place among the arrows: give it one"
    allowed = ARROWS[place(module)]
    assert internal_imports(module) - {place(module)} <= allowed, (
        f"{module} may import {sorted(allowed)} only"
    )


def test_the_arrows_point_one_way() -> None:
    above: set[str] = set()
    for module, allowed in ARROWS.items():
        assert allowed - {module} <= above | {"testing.*"}, f"{module} points upwards"
        above.add(module)


def test_the_table_names_no_module_that_is_gone() -> None:
    assert set(ARROWS) - {"testing.*"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_the_command_line(module: str) -> None:
    assert "aiosfstream.__main__" not in set(imported(module))


@pytest.mark.parametrize(("module", "forbidden"), PURE.items())
def test_a_pure_module_imports_no_io(module: str, forbidden: set[str]) -> None:
    assert top_level(module).isdisjoint(forbidden)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "pytest_plugin"])
def test_pytest_is_needed_by_its_plugin_alone(module: str) -> None:
    assert "pytest" not in top_level(module)


def is_private(name: str) -> bool:
    """Tell whether *name* begins with one underscore."""
    return name.startswith("_") and not name.startswith("__")


def private_names(tree: ast.AST) -> set[str]:
    """Return the underscore names that the code in *tree* reads, sets or defines on an object."""
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return {name for name in names if is_private(name)}


#: The underscore names of the classes of aiocometd that this package derives from.
AIOCOMETD_PRIVATE = private_names(ast.parse(inspect.getsource(aiocometd.Client)))


@pytest.mark.parametrize("module", [name for name in MODULES if name != "_cometd.client"])
def test_only_one_module_uses_the_underscore_names_of_aiocometd(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for name in imported(module):
        head, *parts = name.split(".")
        if head == "aiocometd":
            assert not any(is_private(part) for part in parts), f"{module} imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and derives_from_client(module, node.name):
            assert private_names(node) & AIOCOMETD_PRIVATE == set(), "leave these to _cometd.client"


def derives_from_client(module: str, name: str) -> bool:
    """Tell whether the class *name* of *module* derives from aiocometd's client."""
    if place(module) not in (
        "client",
        "_cometd.transport",
        "_cometd.session",
        "auth",
        "replay",
    ):
        return False
    found = getattr(importlib.import_module(f"aiosfstream.{module}"), name, None)
    return inspect.isclass(found) and issubclass(found, aiocometd.Client)


def test_the_client_is_among_the_classes_looked_at() -> None:
    assert derives_from_client("client", "Client")
    assert derives_from_client("client", "SalesforceStreamingClient")
    assert {"_get_message", "_negotiate_transport", "_incoming_queue"} <= AIOCOMETD_PRIVATE


# Underscore names


def defined_in(tree: ast.AST) -> set[str]:
    """Return the underscore names that a module defines: functions, fields and attributes of its own."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            own = isinstance(node, ast.Name) or _is_own(node)
            names |= {node.id if isinstance(node, ast.Name) else node.attr} if own else set()
        elif isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__slots__" for target in node.targets
        ):
            names |= {
                part.value
                for part in ast.walk(node.value)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            }
    return {name for name in names if is_private(name)}


def _is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}


def imported_modules(tree: ast.AST) -> set[str]:
    """Return the names that a module gives to the modules that it imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def reaches(tree: ast.AST, known: set[str]) -> Iterator[str]:
    """Yield where the code in *tree* uses an underscore name of another module.

    :param known: the underscore names of others that it may use
    """
    own, modules = defined_in(tree) | known | NAMED_TUPLES, imported_modules(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if is_private(alias.name) and (node.module or alias.name not in PARTS):
                    yield f"line {node.lineno} imports {alias.name}"
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            holder = node.value.id if isinstance(node.value, ast.Name) else None
            if node.attr not in own or (holder in modules and node.attr not in known):
                yield f"line {node.lineno} uses {ast.unparse(node)}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {
            "getattr",
            "setattr",
            "hasattr",
            "delattr",
        }:
            name = node.args[1] if len(node.args) > 1 else None
            found = str(name.value) if isinstance(name, ast.Constant) else ""
            if is_private(found) and found not in own:
                yield f"line {node.lineno} uses {found} by its name"


#: The private modules of the package and their folders, which are imported like any other.
PARTS = {part for module in MODULES for part in module.split(".") if is_private(part)}
#: The methods of named tuples, which have an underscore so that fields may have any name.
NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}
#: Which underscore names of others a module may use: none of this package.
MAY_USE: dict[str, set[str]] = {
    # Each is named with its reason there.
    "_cometd.client": AIOCOMETD_PRIVATE,
    # The type of what zlib.decompressobj() gives, which has no other name.
    "_http.encodings": {"_Decompress"},
    # Where aiohttp keeps the proxy of a session, and tells it nowhere else.
    "_oauth.request": {"_default_proxy"},
}


@pytest.mark.parametrize("module", MODULES)
def test_no_module_uses_the_underscore_names_of_another(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert list(reaches(tree, MAY_USE.get(module, set()))) == []


@pytest.mark.parametrize(
    "source",
    [
        "from .replay import _marker_of",
        "from . import replay\nreplay._marker_of()",
        "import aiosfstream.replay\naiosfstream.replay._marker_of()",
        "def f(storage):\n    storage._flush()",
        "def f(storage):\n    storage._flush = None",
        "class A(B):\n    def f(self):\n        self._of_b()",
        "def f(storage):\n    return getattr(storage, '_flush', None)",
        "from . import advice\n_TABLE = advice._TABLE",
    ],
)
def test_a_use_of_an_underscore_name_is_found(source: str) -> None:
    assert len(list(reaches(ast.parse(source), set()))) == 1


def test_what_is_a_modules_own_is_no_reach() -> None:
    source = """
from .._http import post
from . import _notes

class A:
    _count = 0
    def __init__(self, other):
        self._other = other
    def _same(self, other):
        return other._other, self._count, A._same, self.__dict__
"""
    assert list(reaches(ast.parse(source), set())) == []
