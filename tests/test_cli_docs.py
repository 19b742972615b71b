"""What the page about the command line shows is what the command does."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiosfstream import ReplayMarker, SQLiteStorage
from aiosfstream.__main__ import make_parser, parse
from aiosfstream.testing import StreamingServer
from tests.commands import environment, run

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "commandline.rst").read_text("utf-8")
PAGES = sorted(path for path in DOCS.rglob("*.rst") if "_build" not in path.parts)


def sessions() -> Iterator[list[tuple[list[str], list[str]]]]:
    """Give each console of the page: commands, and the lines that they print."""
    for block in re.findall(r"code-block:: console\n\n((?:   .*\n|\n)+)", PAGE):
        lines = [line[3:] for line in block.rstrip().splitlines()]
        starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
        yield [
            (shlex.split(lines[start].removeprefix("$ aiosfstream ")), lines[start + 1 : end])
            for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)
        ]


SESSIONS = {" ".join(console[0][0][:2]): console for console in sessions()}


def commands() -> Iterator[str]:
    """Give every command that a page shows."""
    for path in (*PAGES, DOCS.parent / "README.rst"):
        text = path.read_text("utf-8").replace("\\\n", " ")
        yield from re.findall(r"^ +(?:\$ |\S*bin/)?(aiosfstream [a-z].*)$", text, re.MULTILINE)


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_that_a_page_shows_is_understood(command: str) -> None:
    words = shlex.split(command.partition(" | ")[0].partition(" > ")[0])
    assert callable(parse(words[1:]).command)


def test_the_page_lists_every_command_and_every_option() -> None:
    for name, parser in choices_of(make_parser()).items():
        section = re.search(rf"^``aiosfstream {name}``$", PAGE, re.MULTILINE)
        assert section, f"the page has no section on {name}"
        texts = [parser.format_help(), *(p.format_help() for p in choices_of(parser).values())]
        for option in set(re.findall(r"--[a-z-]+", " ".join(texts))) - {"--help", "--events"}:
            assert option in PAGE, f"the page lacks {option}"


def choices_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Give the commands of a parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def assert_shown(printed: str, shown: str) -> None:
    """Compare what is printed with what the page shows, which ends with dots if there is more."""
    start = shown.removesuffix("...")
    assert printed[: len(start)] == start
    assert shown != start or printed == shown


async def test_check() -> None:
    async with StreamingServer() as server:
        server.deny("/event/Order__e", "403::Unknown channel")
        env = environment(server)
        del env["SALESFORCE_USERNAME"], env["SALESFORCE_PASSWORD"]
        [(arguments, shown)] = SESSIONS["check /event/Low_Ink__e"]
        status, lines, _ = await run(*arguments, env=env)
        assert status == 1
        for line, expected in zip(lines, shown, strict=True):
            assert_shown(anonymous(line, server), anonymous(expected))
        [(arguments, shown)] = SESSIONS["check"]
        del env["SALESFORCE_LOGIN_URL"]
        status, _, told = await run(*arguments, env=env)
        assert status == 2
        assert_shown(told.strip(), " ".join(shown))


def anonymous(line: str, server: StreamingServer | None = None) -> str:
    """Give a line without what differs from org to org."""
    if server is not None:
        line = line.replace(server.url, "https://MyDomainName.my.salesforce.com")
    return re.sub(r"\b00[D5]\w{15}\b", "(an id)", line)


async def test_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with SQLiteStorage("state.db") as storage:
        for channel, date, replay_id in (
            ("/event/Low_Ink__e", "2026-11-26T09:00:00.000Z", 42),
            ("/event/Order__e", "2026-11-26T09:00:01.000Z", 7),
        ):
            await storage.set_replay_marker(channel, ReplayMarker(date, replay_id))
    console = SESSIONS["markers show"]
    assert len(console) == 4
    for arguments, shown in console:
        status, lines, told = await run(*arguments, env=environment())
        assert (status, lines, told) == (0, shown, "")
    json.loads("\n".join(console[-1][1]))
