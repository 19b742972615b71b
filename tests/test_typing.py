"""What type checkers and editors make of the package, and whether the types tell the truth."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
import typing
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aiosfstream import Client, SalesforceStreamingClient, types
from aiosfstream.client import ClientOptions
from aiosfstream.testing import StreamingServer
from tests.support import client_for, soon

ROOT = Path(__file__).parent.parent
USAGE = ROOT / "tests" / "type_checks" / "usage.py"
KINDS = {
    "/event/Low_Ink__e": ("is_platform_event", types.PlatformEventMessage),
    "/data/AccountChangeEvent": ("is_change_event", types.ChangeEventMessage),
    "/topic/Invoices": ("is_push_topic_event", types.PushTopicMessage),
    "/u/Notices": ("is_generic_event", types.GenericEventMessage),
}


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    async with StreamingServer() as org:
        yield org


def pyright(path: Path) -> list[dict[str, Any]]:
    """Return what pyright has to say of a file."""
    config = path.with_name("pyrightconfig.json")
    config.write_text(
        json.dumps(
            {
                "typeCheckingMode": "strict",
                "extraPaths": [str(ROOT)],
                "reportUnnecessaryTypeIgnoreComment": "error",
                "enableTypeIgnoreComments": False,
                "reportUnusedExpression": "none",
            }
        )
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pyright",
            "--outputjson",
            "--pythonpath",
            sys.executable,
            "-p",
            str(config),
        ],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1
    return [one for one in report["generalDiagnostics"] if one["severity"] == "error"]


def test_pyright_understands_how_programs_use_it(tmp_path: Path) -> None:
    usage = Path(shutil.copy(USAGE, tmp_path))
    assert [(one["range"]["start"]["line"], one["message"]) for one in pyright(usage)] == []
    text = usage.read_text(encoding="utf-8")
    text, mistakes = re.subn(r"  # pyright: ignore\[\w+\]", "", text)
    usage.write_text(text, encoding="utf-8")
    assert len(pyright(usage)) >= mistakes > 3


@pytest.mark.parametrize("channel", KINDS)
async def test_an_event_is_of_its_kind_and_of_no_other(
    server: StreamingServer, channel: str
) -> None:
    async with client_for(server) as client:
        await client.subscribe(channel)
        server.publish(channel, "a text" if channel.startswith("/u/") else {"Name": "x"})
        message = await soon(client.receive())
    told = [name for name, _ in KINDS.values() if getattr(types, name)(message)]
    name = KINDS[channel][0]
    kind: Any = KINDS[channel][1]
    assert told == [name]
    assert set(message) == set(kind.__required_keys__)
    data: Any = typing.get_type_hints(kind)["data"]
    assert set(message["data"]) == set(data.__required_keys__)
    event: Any = typing.get_type_hints(data)["event"]
    assert event.__required_keys__ <= set(message["data"]["event"])


@pytest.mark.parametrize("message", [{}, {"data": None}, {"data": {"event": 1}}, {"data": {}}])
def test_what_is_no_event_is_of_no_kind(message: dict[str, Any]) -> None:
    assert not any(getattr(types, name)(message) for name, _ in KINDS.values())


def test_the_options_are_those_of_the_client() -> None:
    keywords = [
        name
        for name, parameter in inspect.signature(Client).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    assert list(ClientOptions.__annotations__) == keywords


def test_hints_can_be_resolved_when_the_program_runs() -> None:
    """As containers and validators do that fill in the arguments of a class."""
    hints = typing.get_type_hints(SalesforceStreamingClient.__init__)
    (options,) = typing.get_args(hints["options"]) or (hints["options"],)
    assert options is ClientOptions
    assert (
        typing.get_type_hints(ClientOptions).keys() <= typing.get_type_hints(Client.__init__).keys()
    )


@pytest.mark.parametrize("name", [name for name in types.__all__ if name.startswith("is_")])
def test_a_guard_names_the_kind_that_it_tells(name: str) -> None:
    (kind,) = typing.get_args(typing.get_type_hints(getattr(types, name))["return"])
    assert (name, kind) in KINDS.values()
