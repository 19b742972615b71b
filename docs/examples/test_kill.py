"""A test that kills the application in the middle of its work, and starts it again."""

import json
import os
import subprocess
import sys
from pathlib import Path

from aiosfstream.testing import StreamingServer

CHANNEL = "/event/Order__e"

APPLICATION = """
import asyncio, json, os, sys
from aiosfstream import SalesforceStreamingClient, SQLiteStorage
from aiosfstream import ReplayMarkerStoragePolicy


async def main():
    client = SalesforceStreamingClient(
        **json.loads(os.environ["CREDENTIALS"]),
        replay=SQLiteStorage("markers.db", default_id=-2),
        replay_storage_policy=ReplayMarkerStoragePolicy.MANUAL,
    )
    async with client:
        await client.subscribe(sys.argv[1])
        async for message in client:
            async with client.replay_storage(message):
                print(message["data"]["payload"]["Number__c"], flush=True)


asyncio.run(main())
"""


def start(server: StreamingServer, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", APPLICATION, CHANNEL],
        cwd=folder,
        env={**os.environ, "CREDENTIALS": json.dumps(server.credentials)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_no_order_is_left_out(
    salesforce_server: StreamingServer, tmp_path: Path
) -> None:
    server = salesforce_server
    done: list[int] = []
    server.publish_many([(CHANNEL, {"Number__c": number}) for number in range(100)])
    for count in (30, 60, 100):
        with start(server, tmp_path) as application:
            assert application.stdout is not None
            while len(set(done)) < count:
                done.append(int(application.stdout.readline()))
            application.kill()
            # What it had done already before it was killed.
            done += map(int, application.stdout.read().split())
    assert sorted(set(done)) == list(range(100))
