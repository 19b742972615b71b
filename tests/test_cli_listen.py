"""``aiosfstream listen``, as a process of its own."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aiosfstream.testing import StreamingServer
from tests.commands import PATIENCE, environment, ids, run, start
from tests.support import EVENT, TOPIC, held, soon


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
    assert "--api-version" in told


async def test_channels_before_and_after_options(server: StreamingServer) -> None:
    wanted = [server.publish(channel) for channel in (EVENT, TOPIC)]
    status, lines, told = await run(
        *("listen", EVENT, "--replay", "all", TOPIC, "--count", "2"), env=environment(server)
    )
    assert (status, told) == (0, "")
    assert sorted(ids(lines)) == sorted(wanted)
    status, _, told = await run(
        "listen", EVENT, "--count", "1", "--nonsense", env=environment(server)
    )
    assert status == 2
    assert "--nonsense" in told


async def test_an_event_on_several_lines(server: StreamingServer) -> None:
    wanted = [server.publish(EVENT) for _ in range(2)]
    status, lines, _ = await run(
        "listen", EVENT, "--replay", "all", "--count", "2", "--pretty", env=environment(server)
    )
    assert status == 0
    text = "\n".join(lines)
    first, end = json.JSONDecoder().raw_decode(text)
    second = json.loads(text[end:])
    assert [event["data"]["event"]["replayId"] for event in (first, second)] == wanted
    assert lines[1].startswith("  ")


@pytest.mark.parametrize("fallback", ["new", "all"])
async def test_a_fallback_that_is_used_is_told(server: StreamingServer, fallback: str) -> None:
    server.publish(EVENT)
    process = await start(
        "listen", f"{EVENT}@777", "--fallback", fallback, "--count", "1", env=environment(server)
    )
    await held(server)
    server.publish(EVENT)
    output, errors = await soon(process.communicate(), PATIENCE)
    assert process.returncode == 0
    assert len(output.splitlines()) == 1
    told = errors.decode()
    assert told.count("\n") == 1
    assert " WARNING " in told
    assert EVENT in told
    assert f"--fallback {fallback}" in told
    assert "ReplayOption" not in told


async def test_a_loss_that_nobody_can_mend_is_told(server: StreamingServer) -> None:
    process = await start("listen", EVENT, env=environment(server))
    await held(server)
    server.publish(TOPIC)
    server.expire_sessions()
    await server.wait_for(lambda server: server.count("/meta/handshake") == 2, PATIENCE)
    await held(server)
    process.send_signal(signal.SIGINT)
    _, errors = await soon(process.communicate(), PATIENCE)
    assert EVENT in errors.decode()
    assert " WARNING " in errors.decode()


@pytest.mark.parametrize(
    ("before", "after", "debug", "warning"),
    [
        ([], [], False, True),
        (["--verbose"], [], True, True),
        ([], ["--verbose"], True, True),
        (["--log-level", "debug"], [], True, True),
        ([], ["--log-level", "error"], False, False),
        (["--log-level", "error"], [], False, False),
        (["--log-level", "error"], ["--verbose"], True, True),
    ],
)
async def test_what_is_logged(
    server: StreamingServer, before: list[str], after: list[str], debug: bool, warning: bool
) -> None:
    wanted = [server.publish(EVENT)]
    command = ["listen", f"{EVENT}@777", "--fallback", "all", "--count", "1"]
    status, lines, told = await run(*before, *command, *after, env=environment(server))
    assert (status, ids(lines)) == (0, wanted)
    assert (" DEBUG aiosfstream." in told) is debug
    assert (" WARNING aiosfstream." in told) is warning
    if "debug" not in before:
        assert " DEBUG asyncio" not in told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_every_end_says_goodbye(server: StreamingServer, number: signal.Signals) -> None:
    process = await start("listen", EVENT, env=environment(server))
    await held(server)
    process.send_signal(number)
    output, errors = await soon(process.communicate(), PATIENCE)
    assert (process.returncode, output, errors) == (0, b"", b"")
    assert server.count("/meta/disconnect") == 1
    assert server.sessions == []


async def test_nohup_outlives_the_terminal(server: StreamingServer) -> None:
    process = await start("listen", EVENT, env=environment(server), preexec_fn=ignore_hangup)
    await held(server)
    process.send_signal(signal.SIGHUP)
    wanted = server.publish(EVENT)
    assert process.stdout is not None
    line = await soon(process.stdout.readline(), PATIENCE)
    assert ids([line.decode()]) == [wanted]
    process.terminate()
    await soon(process.communicate(), PATIENCE)


def ignore_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--timeout", "-5"], "not less than zero"),
        (["--timeout", "nan"], "not less than zero"),
        (["--timeout", "inf"], "not less than zero"),
        (["--timeout", "soon"], "--timeout"),
        (["--replay", "foo"], "new, all or a replay id"),
        (["--replay", "-7"], "new, all or a replay id"),
        (["--replay", ""], "new, all or a replay id"),
        (["--fallback", "7"], "--fallback"),
        (["--count", "0"], "above zero"),
        (["--count", "1.5"], "--count"),
        (["--api-version", "sixty"], "--api-version"),
        (["--log-level", "loud"], "--log-level"),
        (["--proxy", "socks5://127.0.0.1:1"], "--proxy"),
        (["--proxy", "http://"], "--proxy"),
        (["--proxy", "http://user:hidden@[x"], "--proxy"),
        (["--cacert", "/nonexistent"], "--cacert /nonexistent"),
        (["--cacert", "/dev/null"], "no certificates"),
        (["/event/X__e@"], "/event/X__e@"),
        (["/event/X__e@foo"], "'foo'"),
        (["event/X__e"], "start with a slash"),
        (["/event/"], "like /event/My_Event__e"),
    ],
)
async def test_what_cannot_be_understood(
    server: StreamingServer, arguments: list[str], text: str
) -> None:
    status, lines, told = await run("listen", EVENT, *arguments, env=environment(server))
    assert (status, lines) == (2, [])
    assert text in told
    assert "Traceback" not in told
    assert "hidden" not in told
    for word in (
        "connection_timeout",
        "api_version",
        "login_url",
        "ReplayOption",
        "could not convert",
    ):
        assert word not in told
    assert server.requests == []


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["CONSUMER_KEY", "CONSUMER_SECRET"], ["LOGIN_URL"]),
        (["CONSUMER_KEY"], ["REFRESH_TOKEN"]),
        (["CONSUMER_KEY", "USERNAME"], ["PRIVATE_KEY", "REFRESH_TOKEN"]),
        (["CONSUMER_KEY", "CONSUMER_SECRET", "USERNAME"], ["PASSWORD", "LOGIN_URL"]),
        (["ACCESS_TOKEN"], ["INSTANCE_URL"]),
        (["USERNAME", "PASSWORD", "CONSUMER_SECRET"], ["CONSUMER_KEY"]),
        (["REFRESH_TOKEN"], ["CONSUMER_KEY"]),
        ([], ["CONSUMER_KEY", "CONSUMER_SECRET", "LOGIN_URL"]),
    ],
)
async def test_the_variable_that_is_missing_is_named(given: list[str], named: list[str]) -> None:
    variables = {f"SALESFORCE_{name}": "hidden" for name in given}
    status, _, told = await run("listen", EVENT, env=environment(None, **variables))
    assert status == 2
    assert told.count("\n") == 1
    for name in named:
        assert f"SALESFORCE_{name}" in told
    assert "login_url" not in told
    assert "hidden" not in told
