"""The command line, as processes of its own."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import shelve
import signal
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aiosfstream import ReplayMarker, SQLiteStorage
from aiosfstream.__main__ import main
from aiosfstream._cli.console import UsageError
from aiosfstream._cli.credentials import authenticator_from
from aiosfstream._cli.listen import parse_channel
from aiosfstream.testing import StreamingServer
from tests.support import EVENT, TOPIC, soon

PATIENCE = 20


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server."""
    async with StreamingServer() as server:
        yield server


def environment(server: StreamingServer | None = None, **variables: str) -> dict[str, str]:
    """Give an environment with the credentials for *server*."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith("SALESFORCE_")
    }
    if server is not None:
        credentials = server.credentials
        clean |= {
            "SALESFORCE_CONSUMER_KEY": credentials["consumer_key"],
            "SALESFORCE_CONSUMER_SECRET": credentials["consumer_secret"],
            "SALESFORCE_USERNAME": credentials["username"],
            "SALESFORCE_PASSWORD": credentials["password"],
            "SALESFORCE_LOGIN_URL": credentials["login_url"],
        }
    return clean | variables


async def start(*arguments: str, env: dict[str, str], **options: Any) -> asyncio.subprocess.Process:
    """Start the command."""
    options = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE} | options
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "aiosfstream", *arguments, env=env, **options
    )


async def run(*arguments: str, env: dict[str, str]) -> tuple[int, list[str], str]:
    """Run the command to its end: exit status, lines of output, errors."""
    process = await start(*arguments, env=env)
    output, errors = await soon(process.communicate(), PATIENCE)
    assert process.returncode is not None
    return process.returncode, output.decode().splitlines(), errors.decode()


def ids(lines: list[str]) -> list[Any]:
    """Give the replay ids of printed events."""
    return [json.loads(line)["data"]["event"]["replayId"] for line in lines]


async def test_the_demo() -> None:
    status, lines, told = await run("demo", "--events", "10", env=environment())
    assert status == 0, told
    found = ids(lines)
    assert len(found) == 10
    assert found == sorted(set(found))
    assert "Every event arrived once and in order" in told
    for trouble in ("cut", "forgets", "revoked", "restarts"):
        assert trouble in told


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
    ("arguments", "text"),
    [
        (["listen", "nonsense"], "should start with a slash"),
        (["listen", EVENT], "no credentials"),
        (["listen"], "required"),
        (["listen", EVENT, "--count", "0"], "above zero"),
        (["login"], "SALESFORCE_CONSUMER_KEY"),
        ([], "COMMAND"),
        (["dance"], "invalid choice"),
    ],
)
async def test_what_cannot_be_understood(arguments: list[str], text: str) -> None:
    status, lines, told = await run(*arguments, env=environment())
    assert (status, lines) == (2, [])
    assert text in told
    assert "Traceback" not in told


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


async def test_help_is_for_newcomers() -> None:
    for arguments in (["--help"], ["listen", "--help"]):
        status, lines, _ = await run(*arguments, env=environment())
        text = "\n".join(lines)
        assert status == 0
        assert "SALESFORCE_CONSUMER_KEY" in text
        assert "Exit status" in text


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


def read_all(descriptor: int) -> str:
    """Read what was written to a terminal that is gone."""
    text = b""
    while True:
        try:
            piece = os.read(descriptor, 4096)
        except OSError:
            break
        if not piece:
            break
        text += piece
    os.close(descriptor)
    return text.decode()


async def test_logging_in_with_the_browser(server: StreamingServer, tmp_path: Path) -> None:
    output = tmp_path / "token"
    env = environment(server)
    process = await start(
        "login", "--no-browser", "--port", "17171", "--output", str(output), env=env
    )
    assert process.stderr is not None
    await soon(process.stderr.readline(), PATIENCE)
    url = (await soon(process.stderr.readline(), PATIENCE)).decode().strip()
    async with aiohttp.ClientSession() as browser:
        # Somebody else's answer is not followed.
        async with browser.get("http://localhost:17171/callback?state=wrong&code=x") as answer:
            assert answer.status == 400
        async with browser.get(url) as answer:
            assert answer.status == 200
            assert "logged in" in await answer.text()
    assert await soon(process.wait(), PATIENCE) == 0
    assert output.read_text().strip() == server.refresh_token
    assert stat.S_IMODE(output.stat().st_mode) == 0o600


async def test_a_log_in_that_is_denied(server: StreamingServer) -> None:
    process = await start("login", "--no-browser", "--port", "17172", env=environment(server))
    assert process.stderr is not None
    await soon(process.stderr.readline(), PATIENCE)
    url = (await soon(process.stderr.readline(), PATIENCE)).decode().strip()
    state = url.partition("state=")[2].partition("&")[0]
    denial = (
        f"http://localhost:17172/callback?state={state}&error=access_denied&error_description=no"
    )
    async with aiohttp.ClientSession() as browser, browser.get(denial) as answer:
        assert answer.status == 400
    output, errors = await soon(process.communicate(), PATIENCE)
    assert process.returncode == 1
    assert output == b""
    assert b"access_denied: no" in errors


async def test_importing_markers(tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    markers = tmp_path / "markers.json"
    markers.write_text(json.dumps({EVENT: 5, "/topic/T?x=1": ["2020-01-01T00:00:00Z", 7]}))
    status, _, told = await run(
        "import-markers", str(markers), "--state", str(state), env=environment()
    )
    assert status == 0, told
    with shelve.open(str(tmp_path / "shelf")) as shelf:
        shelf[TOPIC] = ReplayMarker("2021-01-01T00:00:00Z", 9)
    status, _, told = await run(
        "import-markers", str(tmp_path / "shelf"), "--state", str(state), env=environment()
    )
    assert status == 0, told
    async with SQLiteStorage(state) as storage:
        assert await storage.get_replay_id(EVENT) == 5
        assert await storage.get_replay_marker("/topic/T") == ("2020-01-01T00:00:00Z", 7)
        assert await storage.get_replay_id(TOPIC) == 9


@pytest.mark.parametrize(
    "content", [None, "", "5", "{}", '{"x": 5}', '{"/event/A": null}', "\x00\x01"]
)
async def test_what_cannot_be_imported(tmp_path: Path, content: str | None) -> None:
    source = tmp_path / "source"
    if content is not None:
        source.write_text(content)
    status, _, told = await run(
        "import-markers", str(source), "--state", str(tmp_path / "s"), env=environment()
    )
    assert status == 1
    assert told.startswith("aiosfstream: ")
    assert str(source) in told
    assert told.count("\n") == 1


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


def test_the_flow_is_chosen_by_the_environment(tmp_path: Path) -> None:
    key, secret = {"SALESFORCE_CONSUMER_KEY": "k"}, {"SALESFORCE_CONSUMER_SECRET": "s"}
    url = {"SALESFORCE_LOGIN_URL": "x.my.salesforce.com"}
    user = {"SALESFORCE_USERNAME": "u"}
    flows: list[tuple[dict[str, str], str]] = [
        ({"SALESFORCE_ACCESS_TOKEN": "t", "SALESFORCE_INSTANCE_URL": "https://x"}, "AccessToken"),
        (key | {"SALESFORCE_REFRESH_TOKEN": "r"}, "RefreshToken"),
        (key | secret | user | {"SALESFORCE_PASSWORD": "p"}, "Password"),
        (key | secret | url, "ClientCredentials"),
    ]
    for variables, name in flows:
        assert type(authenticator_from(variables)).__name__ == f"{name}Authenticator"
    sandbox = key | secret | user | {"SALESFORCE_PASSWORD": "p", "SALESFORCE_SANDBOX": "1"}
    assert "test.salesforce.com" in repr(authenticator_from(sandbox))
    with pytest.raises(UsageError):
        authenticator_from(key)


def test_main_gives_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["listen", "nonsense"]) == 2
    assert "slash" in capsys.readouterr().err
