"""``aiosfstream listen``, as a process of its own."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aiosfstream._cli.listen import parse_channel
from aiosfstream.testing import StreamingServer
from tests.commands import PATIENCE, environment, ids, read_all, run, start
from tests.support import EVENT, TOPIC, soon


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server."""
    async with StreamingServer() as server:
        yield server


async def test_listening_from_the_start(server: StreamingServer) -> None:
    wanted = [server.publish(EVENT) for _ in range(3)]
    status, lines, told = await run(
        "listen", EVENT, "--replay", "all", "--count", "3", env=environment(server)
    )
    assert (status, told) == (0, "")
    assert ids(lines) == wanted


async def test_events_are_printed_at_once_and_ctrl_c_is_an_ordinary_end(
    server: StreamingServer,
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        process = await start("listen", EVENT, TOPIC, env=environment(server))
        await server.wait_for(lambda server: server.subscriptions == {EVENT, TOPIC}, PATIENCE)
        await server.wait_for(lambda server: server.held_connects, PATIENCE)
        for channel in (EVENT, TOPIC):
            wanted = server.publish(channel)
            assert process.stdout is not None
            line = await soon(process.stdout.readline(), PATIENCE)
            assert ids([line.decode()]) == [wanted]
        process.send_signal(number)
        output, errors = await soon(process.communicate(), PATIENCE)
        assert (process.returncode, output, errors) == (0, b"", b"")
        assert server.sessions == []


async def test_the_state_file(server: StreamingServer, tmp_path: Path) -> None:
    state = str(tmp_path / "state.db")
    wanted = [server.publish(EVENT) for _ in range(5)]
    options = ["--state", state, "--replay", "all"]
    status, lines, _ = await run("listen", EVENT, *options, "--count", "2", env=environment(server))
    assert (status, ids(lines)) == (0, wanted[:2])
    status, lines, _ = await run("listen", EVENT, *options, "--count", "3", env=environment(server))
    assert (status, ids(lines)) == (0, wanted[2:])
    channel = f"{EVENT}@{wanted[0]}"
    status, lines, _ = await run(
        "listen", channel, *options, "--count", "4", env=environment(server)
    )
    assert (status, ids(lines)) == (0, wanted[1:])


async def test_a_replay_id_that_is_not_known(server: StreamingServer) -> None:
    wanted = [server.publish(EVENT)]
    status, lines, told = await run("listen", f"{EVENT}@777", env=environment(server))
    assert (status, lines) == (1, [])
    assert told.count("\n") == 1
    assert told.startswith("aiosfstream: ")
    assert "777" in told
    status, lines, _ = await run(
        "listen", f"{EVENT}@777", "--fallback", "all", "--count", "1", env=environment(server)
    )
    assert (status, ids(lines)) == (0, wanted)


async def test_a_reader_that_has_had_enough(server: StreamingServer) -> None:
    wanted = server.publish_many([(EVENT, {"Text__c": "x" * 5000})] * 50)
    command = f"{sys.executable} -m aiosfstream listen {EVENT} --replay all | head -1; echo ${{PIPESTATUS[0]}}"
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        command,
        env=environment(server),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await soon(process.communicate(), PATIENCE)
    first, status = output.decode().splitlines()
    assert ids([first]) == wanted[:1]
    assert (status, errors) == ("0", b"")


@pytest.mark.parametrize(
    ("variables", "status", "text"),
    [
        ({"SALESFORCE_PASSWORD": "wrong-password"}, 1, "authentication failure"),
        ({"SALESFORCE_LOGIN_URL": "http://example.com"}, 2, "https"),
        ({"SALESFORCE_LOGIN_URL": "https://x.lightning.force.com"}, 2, "x.my.salesforce.com"),
        ({"SALESFORCE_LOGIN_URL": "http://127.0.0.1:1"}, 1, "Network request failed"),
        ({"SALESFORCE_PRIVATE_KEY_FILE": "/nonexistent"}, 1, "/nonexistent"),
    ],
)
async def test_what_fails_is_told_in_one_line(
    server: StreamingServer, variables: dict[str, str], status: int, text: str
) -> None:
    found, lines, told = await run("listen", EVENT, env=environment(server, **variables))
    assert (found, lines) == (status, [])
    assert text in told
    assert told.count("\n") == 1
    assert "wrong-password" not in told


async def test_the_other_options(server: StreamingServer) -> None:
    wanted = [server.publish(EVENT)]
    status, lines, told = await run(
        "--verbose",
        "listen",
        EVENT,
        "--replay",
        "all",
        "--count",
        "1",
        "--api-version",
        "60.0",
        "--timeout",
        "30",
        env=environment(server),
    )
    assert (status, ids(lines)) == (0, wanted)
    assert "/cometd/60.0" in {request.path for request in server.requests} or any(
        "60.0" in request.path for request in server.requests
    )
    assert "DEBUG" in told
    status, _, told = await run("listen", EVENT, "--api-version", "12.0", env=environment(server))
    assert status == 2
    assert "api_version" in told


async def test_the_status_line_on_a_terminal(server: StreamingServer) -> None:
    ours, theirs = pty.openpty()
    process = await start(
        "listen", EVENT, "--replay", "all", env=environment(server), stderr=theirs
    )
    os.close(theirs)
    server.publish(EVENT)
    assert process.stdout is not None
    await soon(process.stdout.readline(), PATIENCE)
    await server.wait_for(lambda server: server.held_connects, PATIENCE)
    process.send_signal(signal.SIGINT)
    assert await soon(process.wait(), PATIENCE) == 0
    await process.stdout.read()
    shown = await asyncio.to_thread(read_all, ours)
    assert "1 channel, connected" in shown
    assert shown.endswith("\x1b[K")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        (EVENT, (EVENT, None)),
        (f"{EVENT}@5", (EVENT, 5)),
        (f"{EVENT}@abc", (EVENT, "abc")),
        (f"{EVENT}@all", (EVENT, -2)),
        (f"{EVENT}@", (EVENT, None)),
    ],
)
def test_channels_with_ids(text: str, parsed: Any) -> None:
    assert parse_channel(text) == parsed
