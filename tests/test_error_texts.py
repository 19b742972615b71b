"""Each error names what happened, on which channel or URL, and what to do: all places are walked."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from aiosfstream import exceptions
from aiosfstream._http import failures
from aiosfstream._oauth import advice
from aiosfstream.storages import _marker_file, redis

PACKAGE = Path(__file__).parent.parent / "aiosfstream"

OURS = {name for name in exceptions.__all__ if isinstance(getattr(exceptions, name), type)}
BUILTIN = {
    "AssertionError",
    "AttributeError",
    "ImportError",
    "KeyError",
    "LookupError",
    "RuntimeError",
    "TimeoutError",
    "TypeError",
    "ValueError",
}
OTHER = {
    "ArgumentTypeError",
    "BrokenPipeError",
    "CommandError",
    "DatabaseError",
    "EncodingError",
    "InvalidURL",
    "PickleError",
    "UnreadableError",
    "UsageError",
}
CLASSES = OURS | BUILTIN | OTHER

#: The modules that build errors with the functions of the first.
OAUTH = ("_oauth.answers", "_oauth.request", "_oauth.flight", "_oauth.login", "auth")

#: Functions that build an error around a text that each of their callers gives, and which argument
#: that is. The text is held to the rules at each call, and not in the function.
AROUND = {
    **{(module, "unreachable"): "what" for module in OAUTH},
    **{(module, "useless"): "what" for module in OAUTH},
}

#: Functions that build an error of their own, and are held to the rules there.
BUILDERS = {
    "_closed_error",
    "_closing_error",
    "_ended_error",
    "explain",
    "_explained",
    "_failed",
    "_failure",
    "_no_answer",
    "_renewal_error",
    "storing_failed",
    "token_refused",
    "_unusable_error",
    "failed",
    "loss_error",
    "refusal",
    "translate",
}

#: Parts of a text that are advice: the tables behind them are held to the rules as well.
ADVICE = {
    "_NEXT_STEPS[trouble]",
    "advice",
    "kind.step",
    "step",
}

#: What is raised as it is, having been made elsewhere.
PASSED_ON = {
    ("_http.post", "post", "bare"): "a cancellation, or a bug",
    ("storages._groups", "Groups.begin", "failure"): "of the last attempt",
    ("_cometd.client", "raise_untold", "error"): "what ended the session",
    ("_policy", "Policy._raise_translated", "error"): "one of this package's",
    ("_within", "within", "explained"): "made by its caller's function",
    ("_cometd.mailbox", "Mailbox.take", "item"): "an error put in by the transport",
    (
        "_cometd.transport",
        "LongPollingTransport._advance",
        "self._session.recovery.stop_error",
    ): "made in the session",
    ("_cometd.requests", "_reply_of", "result.error"): "made in _http.failures",
    ("_tasks", "uninterrupted", "cancellation"): "the one that came",
    ("_oauth.flight", "log_in", "error"): "a log-in's",
    ("_oauth.flight", "log_in_again", "error"): "a log-in's, or a flow's",
    ("auth", "AuthenticatorBase.authenticate", "error"): "a log-in's",
    ("auth", "RefreshTokenAuthenticator._authenticate", "error"): "made by _hand_over()",
    ("auth", "post_form", "reply"): "made by ask()",
    (
        "testing._server",
        "StreamingServer.__aexit__",
        "self.parts.errors[0]",
    ): "of the server's thread",
    ("service", "Retry.__call__", "failure.error"): "a handler's",
    ("service", "_Service.serve", "self._error"): "a handler's, or the client's",
    ("service", "_Service._survive", "error"): "the client's",
}

#: What says nothing of its own, and why that is right.
NOT_TOLD = {
    ("__init__", "__getattr__", "AttributeError"): "Python's own sentence",
    ("testing.__init__", "__getattr__", "AttributeError"): "Python's own sentence",
    ("_cli.listen", "_make_client", "UsageError"): "says what the ValueError says",
    ("_cli.check", "run_check", "UsageError"): "says what the ValueError says",
    ("_cli.output", "standard_output", "CommandError"): "the output has no other name",
    ("_cli.output", "Output._write", "BrokenPipeError"): "an ordinary end, told to nobody",
    ("_cli.output", "Output.reader_gone", "BrokenPipeError"): "an ordinary end, told to nobody",
    ("_cli.credentials", "authenticator_from", "UsageError"): "says what the ValueError says",
    ("_cli.login", "run_login", "UsageError"): "says what the ValueError says",
    ("_cometd.salesforce", "_refusal_of", "ServerError"): "takes a reply apart, and is not raised",
    (
        "_http.bodies",
        "parse_json",
        "UnreadableError",
    ): "caught by each caller, which has a sentence for it",
    ("_cli.pickles", "read_pickle", "PickleError"): "quoted by the reader of shelves",
    ("_cli.pickles", "_rebuild", "PickleError"): "quoted by the reader of shelves",
    ("_cli.pickles", "find", "PickleError"): "quoted by the reader of shelves",
    ("_cli.pickles", "_Machine._build", "PickleError"): "quoted by the reader of shelves",
    ("_cli.pickles", "_Machine.result", "PickleError"): "quoted by the reader of shelves",
    ("_cli.pickles", "_call", "PickleError"): "quoted by the reader of shelves",
    ("_http.encodings", "Decoder.__init__", "EncodingError"): "quoted by error_failure()",
    ("_http.encodings", "Decoder._inflate", "EncodingError"): "quoted by error_failure()",
    ("_http.encodings", "Decoder.end", "EncodingError"): "quoted by error_failure()",
    ("_http.post", "_parsed", "InvalidURL"): "error_failure() has a sentence for it",
    ("_oauth.answers", "refusal", "AuthenticationError"): "has the advice of advise()",
    (
        "_oauth.login",
        "LogIn._accept",
        "useless",
    ): "the sentence of problem_of(), or of a flow's doubt()",
    ("_oauth.request", "ask", "unreachable"): "the sentence of _http.post",
    ("exceptions", "translate", "ServerError"): "aiocometd's sentence; str() adds the rest",
    (
        "storages._marker_file",
        "MarkerFile._connected",
        "DatabaseError",
    ): "quoted by explain()",
    ("storages._marker_file", "MarkerFile._connect", "DatabaseError"): "quoted by explain()",
    ("storages._marker_file", "MarkerFile._prepare", "DatabaseError"): "quoted by explain()",
    ("storages._marker_file", "_make_private", "DatabaseError"): "quoted by explain()",
    ("storages._groups", "Groups._explained", "ReplayError"): "the sentence of explain()",
    ("storages.redis", "RedisStorage._ask", "ReplayError"): "the sentence of explain()",
    ("testing.conformance", "_demand", "AssertionError"): "the sentence of the caller",
    ("testing.conformance", "_check_processing", "LookupError"): "fails a block on purpose",
}

#: Internal exceptions of the test server: the answers that a client gets, not errors for a person.
ANSWERS = {"Denied", "Refused", "Cut"}

NEXT_STEP = re.compile(
    r"\b(should|takes?|use|set|give|gives|needs?|needed|install|try|tried|open|close|call|check|wait|see|"
    r"log in|look|subscribe|send|import|choose|add|move|make|delete|fix|allow|enable|ask|"
    r"activate|unblock|has to|asked again|comes again|next|still trying|renewed|run)\b",
    re.I,
)
WORDS = 5


@dataclass(frozen=True)
class Site:
    """A place where an error is made or raised."""

    module: str
    function: str
    line: int
    #: The class of the error, or the expression that is raised.
    what: str
    #: The text, with expressions in braces; None: it has none of its own.
    text: str | None

    def __str__(self) -> str:
        return f"{self.module}:{self.line} {self.function} {self.what}: {self.text}"

    @property
    def key(self) -> tuple[str, str, str]:
        return self.module, self.function, self.what


class Walker(ast.NodeVisitor):
    """Finds the places of one module.

    :param module: its name in the package
    :param tree: its source
    """

    def __init__(self, module: str, tree: ast.Module) -> None:
        self.module = module
        self.sites: list[Site] = []
        self._scope: list[str] = []
        self._functions: list[ast.AST] = [tree]
        self._made: set[int] = set()
        self._constants = {
            name.id: value
            for node in tree.body
            for name, value in _assigned(node)
            if isinstance(name, ast.Name)
        }
        self.visit(tree)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._inside(node, node.name)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._inside(node, node.name)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._inside(node, node.name)

    def _inside(self, node: ast.AST, name: str) -> None:
        self._scope.append(name)
        self._functions.append(node)
        self.generic_visit(node)
        self._functions.pop()
        self._scope.pop()

    def visit_Raise(self, node: ast.Raise) -> None:
        raised = node.exc
        # A bare "raise" lets go on what is being handled.
        if raised is not None and not (
            isinstance(raised, ast.Call) and self._is_known(raised.func)
        ):
            self._add(node, _last(raised) if _is_class(raised) else ast.unparse(raised), None)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = _last(node.func)
        if self._is_error(node.func):
            self._add(node, name, self._render(node.args[0]) if node.args else None)
        elif (self.module, name) in AROUND:
            # Trouble and URL come before it; a text under a name is looked up.
            given = [
                argument
                for argument in node.args
                if self._is_text(argument) or ast.unparse(argument) == AROUND[self.module, name]
            ]
            self._add(node, name, self._render(given[0]) if given else None)
        self.generic_visit(node)

    def _is_error(self, function: ast.expr) -> bool:
        name = _last(function)
        return name in CLASSES | ANSWERS | {"CancelledError"} and (
            isinstance(function, ast.Name) or name in OTHER | {"CancelledError"}
        )

    def _is_known(self, function: ast.expr) -> bool:
        name = _last(function)
        return self._is_error(function) or (self.module, name) in AROUND or name in BUILDERS

    @staticmethod
    def _is_text(node: ast.expr) -> bool:
        return _is_literal(node) or ast.unparse(node) == "str(answer.error)"

    def _add(self, node: ast.AST, what: str, text: str | None) -> None:
        line = getattr(node, "lineno", 0)
        self.sites.append(Site(self.module, ".".join(self._scope), line, what, text))

    def _render(self, node: ast.expr) -> str:
        """Write a text with the expressions in it in braces."""
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(map(self._render, node.values))
        if isinstance(node, ast.FormattedValue):
            named = isinstance(node.value, ast.Name) and self._named(node.value.id)
            return named or "{" + ast.unparse(node.value) + "}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            return self._render(node.func.value)
        if isinstance(node, ast.Name):
            return self._named(node.id) or "{" + node.id + "}"
        return "{" + ast.unparse(node) + "}"

    def _named(self, name: str) -> str:
        return " ".join([*self._local(name), *self._constant(name)])

    def _constant(self, name: str) -> list[str]:
        return [self._render(self._constants[name])] if name in self._constants else []

    def _local(self, name: str) -> list[str]:
        return [
            self._render(value)
            for node in ast.walk(self._functions[-1])
            for target, value in _assigned(node)
            if isinstance(target, ast.Name) and target.id == name and _is_literal(value)
        ]


def _assigned(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                yield from zip(target.elts, node.value.elts, strict=False)
            else:
                yield target, node.value
    elif isinstance(node, (ast.AnnAssign, ast.AugAssign)) and node.value is not None:
        yield node.target, node.value


def _is_literal(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _last(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


def _is_class(node: ast.expr) -> bool:
    name = _last(node)
    return name.endswith(("Error", "Cut")) and name.lstrip("_")[:1].isupper()


def walk(module: str, source: str) -> list[Site]:
    """Give the places of one module where an error is made or raised."""
    return Walker(module, ast.parse(source)).sites


def all_sites() -> list[Site]:
    """Give those of the package."""
    return [
        site
        for path in sorted(PACKAGE.rglob("*.py"))
        for site in walk(
            ".".join(path.relative_to(PACKAGE).with_suffix("").parts), path.read_text("utf-8")
        )
    ]


SITES = all_sites()
#: The text that each function of :data:`AROUND` puts around another.
TEMPLATES = {
    (site.module, site.function.rpartition(".")[2]): site.text or ""
    for site in SITES
    if site.what in OURS and (site.module, site.function.rpartition(".")[2]) in AROUND
}
TEMPLATES |= {
    (module, name): text
    for (home, name), text in TEMPLATES.items()
    if home == OAUTH[0]
    for module in OAUTH
}


def faults_of(site: Site) -> list[str]:
    """Say what is wrong with the text of a place; nothing if it is accounted for."""
    if site.what in ANSWERS or site.key in PASSED_ON or site.key in NOT_TOLD:
        return []
    function = site.function.rpartition(".")[2]
    if (site.module, function) in AROUND:
        # What it is made around is held to the rules at each call.
        return []
    if site.text is None:
        return ["it has no text"]
    return list(_faults_of_text(site))


def _faults_of_text(site: Site) -> Iterator[str]:
    text = site.text or ""
    if site.what == "ServerError":
        # Its str() adds the channel, the server's reasons, and what to do about them.
        text += " (channel {channel}): {reasons}. {advice}"
    if (site.module, site.what) in AROUND:
        around = TEMPLATES[site.module, site.what]
        part = re.compile(r"\{[^}]*\b" + AROUND[site.module, site.what] + r"\b[^}]*\}")
        assert part.search(around), f"{site.what}() leaves out what it is given"
        text = part.sub(lambda _: site.text or "", around)
    plain = re.sub(r"\{[^}]*\}", "X", text)
    if len(plain.split()) < WORDS:
        yield f"it has fewer than {WORDS} words"
    first = plain.split()[0]
    if not (
        first[0].isupper() or "_" in first or site.what in BUILTIN | {"CommandError", "UsageError"}
    ):
        yield "it begins with a small letter that is not a parameter's"
    if not re.search(r"\{[^}]*\}", text) and not re.search(
        r"[a-z]_[a-z]|[A-Z]\w+[A-Z_]|/meta/", text
    ):
        yield "it names no channel, URL, file, parameter or value"
    advised = any("{" + part + "}" in text for part in ADVICE)
    if not advised and not NEXT_STEP.search(plain):
        yield "it does not say what to do or what comes next"


@pytest.mark.parametrize("site", SITES, ids=lambda site: f"{site.module}-{site.line}-{site.what}")
def test_the_text_says_what_where_and_what_to_do(site: Site) -> None:
    assert faults_of(site) == [], str(site)


def test_every_place_is_found() -> None:
    """What a walker overlooks it cannot judge: counted another way, these are all of them."""
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found = {site.line for site in SITES if site.module == module}
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Raise) or node.exc is None:
                continue
            known = isinstance(node.exc, ast.Call) and _last(node.exc.func) in BUILDERS
            assert known or node.exc.lineno in found or node.lineno in found, ast.unparse(node)
    assert len(SITES) > 100


def test_the_tables_have_nothing_that_is_not_there() -> None:
    keys = {site.key for site in SITES}
    assert set(PASSED_ON) | set(NOT_TOLD) <= keys
    source = "".join(path.read_text("utf-8") for path in PACKAGE.rglob("*.py"))
    for name in BUILDERS | {name for _, name in AROUND}:
        assert f"def {name}(" in source


ADVISING = [
    *(kind.step for kind in failures.KINDS),
    *(text for _, text in exceptions._ADVICE),
    exceptions._LOOK_IT_UP,
    *(text for _, text in advice._ADVICE),
    *advice._ADVICE_BY_CODE.values(),
    *advice._TEMPORARY.values(),
    advice._LOOK_IT_UP,
    *_marker_file.ADVICE.values(),
    *redis.ADVICE.values(),
]


@pytest.mark.parametrize("text", ADVISING)
def test_advice_says_what_to_do(text: str) -> None:
    assert NEXT_STEP.search(text)


def test_every_kind_of_failed_request_is_told() -> None:
    assert {kind.trouble for kind in failures.KINDS} == set(failures.Trouble)


@pytest.mark.parametrize("kind", failures.KINDS)
def test_a_failed_request_is_told_in_one_sentence(kind: failures.Kind) -> None:
    assert kind.what.format("details") + "; " + kind.step
    assert not kind.what[0].isupper()
    assert not kind.step[0].isupper()
    assert "." not in kind.what + kind.step


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("def f(url):\n    raise ReplayError()", "no text"),
        ("def f(url):\n    raise ReplayError", "no text"),
        ("def f(url):\n    raise ReplayError(f'Gone at {url}.')", "words"),
        ("def f(url):\n    raise TransportError('The request has failed, try again.')", "names no"),
        (
            "def f(url):\n    raise TransportError(f'The request to {url} has gone wrong.')",
            "what to do",
        ),
        ("def f(url):\n    error = ClientError('oh no')\n    raise error", "words"),
        ("def f(url):\n    raise other.error", "no text"),
        ("def f(url):\n    raise somewhere(url)", "no text"),
        (
            "def f(url):\n    raise ReplayError(f'the store at {url} is gone: mend it')",
            "small letter",
        ),
        ("def f(url):\n    raise OSError(f'The store at {url} is gone: mend it')", "no text"),
    ],
)
def test_the_rules_can_fail(source: str, fault: str) -> None:
    assert fault in str([faults_of(site) for site in walk("somewhere", source)])
