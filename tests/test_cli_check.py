"""``aiosfstream check``, as a process of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aiosfstream.testing import OAuthError, Status, StreamingServer
from tests.commands import environment, run
from tests.support import EVENT, TOPIC


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server."""
    async with StreamingServer() as server:
        yield server


async def test_who_logs_in_where(server: StreamingServer) -> None:
    status, lines, told = await run("check", env=environment(server))
    assert (status, told) == (0, "")
    facts = dict(line.split(": ", 1) for line in lines)
    facts = {name: value.strip() for name, value in facts.items()}
    assert facts["User"] == f"{server.oauth.username} ({server.oauth.user_id})"
    assert facts["Org"] == server.oauth.org_id
    assert facts["Instance"] == server.instance_url
    assert facts["Login"] == "username-password flow"
    assert facts["API version"] == "66.0"
    assert facts["Streaming API"] == "connected"
    assert server.sessions == []


async def test_a_user_whose_name_is_not_told(server: StreamingServer) -> None:
    server.add_fault(Status(403, "no scope for that"), on="identity")
    env = environment(server)
    del env["SALESFORCE_USERNAME"], env["SALESFORCE_PASSWORD"]
    status, lines, told = await run("check", env=env)
    assert (status, told) == (0, "")
    assert f"User:           {server.oauth.user_id}" in lines


@pytest.mark.parametrize(
    "text", ["<html>", "[]", "[" * 9999, '{"username": "\\u001b[2J"}', "9" * 99999]
)
async def test_nonsense_instead_of_a_name(server: StreamingServer, text: str) -> None:
    server.add_fault(Status(200, text), on="identity")
    status, lines, told = await run("check", env=environment(server))
    assert (status, told) == (0, "")
    assert "\x1b" not in "".join(lines)


async def test_each_channel_is_tried(server: StreamingServer) -> None:
    server.deny("/event/Nope__e", "403::Unknown channel")
    status, lines, told = await run(
        *("check", EVENT, "/event/Nope__e", f"{TOPIC}@777", TOPIC), env=environment(server)
    )
    assert (status, told) == (1, "")
    assert f"{EVENT}: can be subscribed to" in lines
    assert f"{TOPIC}: can be subscribed to" in lines
    refused = [line for line in lines if ": refused. " in line]
    assert len(refused) == 2
    assert refused[0].startswith("/event/Nope__e: ")
    assert "403::Unknown channel" in refused[0]
    assert "777" in refused[1]
    assert "CHANNEL@new or CHANNEL@all" in refused[1]
    assert "--" not in refused[1]
    assert server.sessions == []


@pytest.mark.parametrize(
    ("error", "description", "words"),
    [
        ("invalid_grant", "authentication failure", "SALESFORCE_PASSWORD"),
        ("invalid_client_id", "client identifier invalid", "SALESFORCE_CONSUMER_KEY"),
        ("invalid_client", "invalid client credentials", "SALESFORCE_CONSUMER_SECRET"),
        ("invalid_grant", "request not supported on this domain", "SALESFORCE_LOGIN_URL=https"),
        ("unsupported_grant_type", "grant type not supported", "SALESFORCE_LOGIN_URL"),
    ],
)
async def test_what_is_wrong_is_said_with_the_variable_to_set(
    server: StreamingServer, error: str, description: str, words: str
) -> None:
    server.add_fault(OAuthError(error, description), on="token")
    status, lines, told = await run("check", EVENT, env=environment(server))
    assert (status, lines) == (1, [])
    assert told.count("\n") == 1
    assert description in told
    assert words in told


async def test_who_it_is_is_said_even_where_the_streaming_api_refuses_them(
    server: StreamingServer,
) -> None:
    server.add_fault(Status(403, "no"), on="/meta/handshake", times=9)
    status, lines, told = await run("check", env=environment(server))
    assert status == 1
    assert any(line.startswith("User: ") for line in lines)
    assert not any(line.startswith("Streaming API") for line in lines)
    assert told.count("\n") == 1


@pytest.mark.parametrize("arguments", [["nonsense"], [f"{EVENT}@"], ["--api-version", "12.0"]])
async def test_what_cannot_be_understood(server: StreamingServer, arguments: list[str]) -> None:
    status, lines, told = await run("check", *arguments, env=environment(server))
    assert (status, lines) == (2, [])
    assert told.count("\n") == 1
    assert server.requests == []
