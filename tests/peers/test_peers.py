"""The test server, proved by clients that know nothing of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from aiosfstream.testing import StreamingServer
from tests.interop.harness import install, program
from tests.support import EVENT, soon

HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    """Install the clients."""
    install(HERE)


async def start(
    server: StreamingServer, script: str, *arguments: str
) -> asyncio.subprocess.Process:
    """Start a client."""
    return await asyncio.create_subprocess_exec(
        program("node"),
        str(HERE / script),
        f"{server.url}/cometd/66.0",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize(
    ("script", "mistakes"),
    [
        ("cometd_client.mjs", set()),
        # Bayeux allows it; Salesforce takes it amiss.
        ("faye_client.cjs", {"several messages in one request"}),
    ],
)
async def test_a_foreign_client(script: str, mistakes: set[str]) -> None:
    async with StreamingServer() as server:
        first, second = server.publish(EVENT), server.publish(EVENT)
        token = server.new_access_token()
        process = await start(server, script, token, EVENT, str(first))
        try:
            await server.wait_for(lambda server: server.held_connects, 10)
            third = server.publish(EVENT, {"Last__c": True})
            output, errors = await soon(process.communicate(), 20)
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()
        said = [json.loads(line) for line in output.decode().splitlines()]
        assert process.returncode == 0, (said, errors.decode())
        assert {"what": "handshake", "value": True} in said
        assert {"what": "subscribed", "value": True} in said
        assert [line["value"] for line in said if line["what"] == "event"] == [second, third]
        assert said[-2:] == [
            {"what": "unsubscribed", "value": True},
            {"what": "disconnected", "value": True},
        ]
        assert server.sessions == []
        assert set(server.violations) == mistakes
        asked = [request for request in server.requests if request.kind == "cometd"]
        assert {request.headers["Authorization"] for request in asked} == {f"Bearer {token}"}
        assert {message["channel"] for request in asked for message in request.messages} == {
            "/meta/handshake",
            "/meta/connect",
            "/meta/subscribe",
            "/meta/unsubscribe",
            "/meta/disconnect",
        }
