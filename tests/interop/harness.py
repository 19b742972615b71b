"""Runs the CometD project's own server for the tests."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

HERE = Path(__file__).parent
PATIENCE = 20.0


def install(folder: Path) -> None:
    """Install the npm packages of *folder*, unless they are there as its lock file wants them."""
    installed = folder / "node_modules" / ".package-lock.json"
    lock = folder / "package-lock.json"
    if installed.exists() and installed.stat().st_mtime >= lock.stat().st_mtime:
        return
    npm = shutil.which("npm")
    assert npm is not None, "these tests need Node.js with npm"
    subprocess.run(
        [npm, "ci", "--no-audit", "--no-fund", "--loglevel=error"],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=300,
    )
    os.utime(installed)


class NodeServer:
    """The server in a process of its own, with commands to steer it.

    An async context manager.
    """

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._control = ""
        self._http: aiohttp.ClientSession | None = None
        self._ids = itertools.count(1)
        self.url = ""

    async def __aenter__(self) -> NodeServer:
        """Start it."""
        await asyncio.to_thread(install, HERE)
        self._process = await asyncio.create_subprocess_exec(
            "node",
            str(HERE / "server.js"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE)
        ports = json.loads(line)
        self.url = f"http://127.0.0.1:{ports['port']}"
        self._control = f"http://127.0.0.1:{ports['control']}"
        self._http = aiohttp.ClientSession()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Stop it."""
        assert self._process is not None
        assert self._http is not None
        await self._http.close()
        self._process.kill()
        await self._process.communicate()

    @property
    def credentials(self) -> dict[str, Any]:
        """The arguments of a ``SalesforceStreamingClient``."""
        return {
            "consumer_key": "consumer-key",
            "consumer_secret": "consumer-secret",
            "username": "user@example.com",
            "password": "password-and-security-token",
            "login_url": self.url,
        }

    async def call(self, command: str, **options: Any) -> Any:
        """Give the server a command; see ``commands`` in server.js."""
        assert self._http is not None
        async with self._http.post(self._control, json={"command": command, **options}) as answer:
            return (await answer.json())["result"]

    async def publish(self, *channels: str) -> list[int]:
        """Publish an event on each of *channels*, all at once.

        :return: their replay ids
        """
        events = []
        ids = []
        for channel in channels:
            replay_id = next(self._ids)
            ids.append(replay_id)
            events.append([channel, envelope(channel, replay_id)])
        await self.call("publish", events=events)
        return ids

    async def fault(self, kind: str, *, on: str | None = None, **options: Any) -> None:
        """Let the next request on channel *on* meet with a fault."""
        await self.call("fault", kind=kind, on=on, **options)

    async def count(self, what: str) -> int:
        """Count the requests with that channel; ``token`` for token requests."""
        return sum(request["channel"] == what for request in await self.call("requests"))

    async def wait_until(self, command: str, wanted: Any) -> None:
        """Wait until *command* gives *wanted*."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while (found := await self.call(command)) != wanted:
            assert asyncio.get_running_loop().time() < deadline, f"{command}: {found}"
            await asyncio.sleep(0.01)


def envelope(channel: str, replay_id: int) -> dict[str, Any]:
    """Wrap an event as Salesforce does for the kind of channel."""
    now = datetime.now(timezone.utc)
    date = now.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    if channel.startswith("/topic/"):
        event = {"createdDate": date, "replayId": replay_id, "type": "created"}
        return {"event": event, "sobject": {"Name": "INV-0001"}}
    if channel.startswith("/u/"):
        return {
            "event": {"createdDate": date, "replayId": replay_id},
            "payload": "This is a message.",
        }
    if channel.startswith("/data/"):
        header = {"entityName": "Account", "commitTimestamp": int(now.timestamp() * 1000)}
        payload: dict[str, Any] = {"ChangeEventHeader": header, "Name": "Acme"}
    else:
        payload = {"CreatedDate": date, "Ink_Percentage__c": 0.2}
    return {
        "schema": "dffQ2QLzDNHqwB8_sHMxdA",
        "payload": payload,
        "event": {"replayId": replay_id},
    }
