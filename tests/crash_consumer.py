"""A consumer that is made to be killed: ``python tests/crash_consumer.py URL STATE OUTPUT POLICY``."""

from __future__ import annotations

import asyncio
import os
import sys
import time

from aiosfstream import (
    ReplayMarkerStoragePolicy,
    ReplayOption,
    SalesforceStreamingClient,
    SQLiteStorage,
)

CHANNEL = "/event/Low_Ink__e"


async def main(url: str, state: str, output: str, policy: str) -> None:
    """Append process, replay id and time of each event to a file, without any buffer in between."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    storage = SQLiteStorage(state, default_id=ReplayOption.ALL_EVENTS)
    client = SalesforceStreamingClient(
        consumer_key="consumer-key",
        consumer_secret="consumer-secret",
        username="user@example.com",
        password="password-and-security-token",
        login_url=url,
        replay=storage,
        replay_storage_policy=ReplayMarkerStoragePolicy[policy],
    )

    def process(replay_id: int) -> None:
        os.write(descriptor, f"{os.getpid()} {replay_id} {time.monotonic()}\n".encode())

    async with client:
        await client.subscribe(CHANNEL)
        async for message in client:
            replay_id = message["data"]["event"]["replayId"]
            if client.replay_storage_policy is ReplayMarkerStoragePolicy.MANUAL:
                async with client.replay_storage(message):
                    process(replay_id)
            else:
                process(replay_id)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
