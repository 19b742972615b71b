"""What the library says comes out in the words of the command line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

import aiosfstream
from aiosfstream._cli.words import in_words
from tests.test_error_texts import ADVISING, PACKAGE, SITES

#: The modules whose errors a command can end with.
MODULES = ("auth", "_oauth", "client", "exceptions", "_http", "_cometd", "replay", "storages")
#: What the wire calls it, which a person may look up.
WIRE = {
    "access_token",
    "token_type",
    "instance_url",
    "refresh_token",
    "refresh_token, offline_access",
}
#: Errors that no command can cause: its own code would have to be wrong.
OURS = re.compile(
    r"_authenticate\(\)|callable|verify_signature|should be an instance|is not a valid type"
    r"|belongs (behind|after) handshake|message creation date|json_dumps|processing of a message"
    r"|needs redis-py|a str\b|constructor|Give it a ReplayMarker|session_factory|^other_org should"
    r"|^allowed_hosts should|incoming\(\) raised|takes a handshake\(\) first"
)


def logged() -> Iterator[str]:
    """Give every text that is logged, at whatever level a person sees."""
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if module not in (*MODULES, "_reporter", "_in_flight", "_policy"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            shown = isinstance(node, ast.Call) and ast.unparse(node.func) in (
                *("LOGGER.warning", "LOGGER.error", "LOGGER.exception"),
            )
            table = isinstance(node, ast.Dict) and path.stem in ("_reporter", "events")
            if shown or table:
                yield from (
                    re.sub(r"\{[^}]*\}", "X", part.value)
                    for part in ast.walk(node)
                    if isinstance(part, ast.Constant)
                    and isinstance(part.value, str)
                    and " " in part.value
                )


TEXTS = sorted(
    {
        re.sub(r"\{[^}]*\}", "X", site.text)
        for site in SITES
        if site.module.partition(".")[0] in MODULES and site.text and not OURS.search(site.text)
    }
    | {text for text in (*ADVISING, *logged()) if not OURS.search(text)}
)
PYTHON = re.compile(
    r"\b[a-z]+_[a-z_]+\b|\b\w+\(\)|\b(?:"
    + "|".join(sorted({*aiosfstream.__all__} - {"Client"}))
    + r")\b"
)


@pytest.mark.parametrize("text", TEXTS)
def test_no_words_of_python_are_left(text: str) -> None:
    found = set(PYTHON.findall(in_words(text))) - WIRE
    assert not found, f"{in_words(text)!r} has {found}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("check login_url", "check SALESFORCE_LOGIN_URL"),
        ("give it as login_url", "give it as SALESFORCE_LOGIN_URL"),
        ("use login_url='https://a.b'", "use SALESFORCE_LOGIN_URL=https://a.b"),
        ("or ReplayOption.NEW_EVENTS.", "--replay new or --fallback new."),
        ("from <ReplayOption.ALL_EVENTS: -2>", "from all"),
        ("from the fallback -1 instead", "from --fallback new instead"),
        ("api_version 12.0 is too old", "--api-version 12.0 is too old"),
        ("no access_token or no instance_url", "no access_token or no instance_url"),
        ("nothing to say otherwise", "nothing to say otherwise"),
    ],
)
def test_words(text: str, words: str) -> None:
    assert in_words(text) == words
