"""The test server, proved by clients that know nothing of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from aiosfstream.testing import StreamingServer
from tests.interop.harness import install
from tests.support import EVENT, soon

HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    """Install the clients."""
    install(HERE)


@pytest.mark.parametrize("script", ["cometd_client.mjs", "faye_client.cjs"])
async def test_a_foreign_client(script: str) -> None:
    async with StreamingServer() as server:
        first, second = server.publish(EVENT), server.publish(EVENT)
        process = await asyncio.create_subprocess_exec(
            "node",
            str(HERE / script),
            f"{server.url}/cometd/66.0",
            server.new_access_token(),
            EVENT,
            str(first),
            stdout=asyncio.subprocess.PIPE,
        )
        await server.wait_for(lambda server: server.held_connects, 10)
        third = server.publish(EVENT, {"Last__c": True})
        output, _ = await soon(process.communicate(), 20)
        said = [json.loads(line) for line in output.decode().splitlines()]
        assert process.returncode == 0, said
        assert {"what": "handshake", "value": True} in said
        assert {"what": "subscribed", "value": True} in said
        assert [line["value"] for line in said if line["what"] == "event"] == [second, third]
        assert {"what": "unsubscribed", "value": True} in said
        assert {"what": "disconnected", "value": True} in said
        assert server.sessions == []
        assert [text for text in server.violations if "routing cookie" in text] == []
