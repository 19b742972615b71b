"""Runs the CometD project's own server for the tests."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import aiohttp

HERE = Path(__file__).parent
#: Seconds that nothing here should need.
PATIENCE = 20.0


def install(folder: Path) -> None:
    """Install the npm packages of *folder*, unless they are there as its lock file wants them.

    Several processes may call it at once: one of them installs.
    """
    lock = folder / "package-lock.json"
    with lock.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        installed = folder / "node_modules" / ".package-lock.json"
        if installed.exists() and installed.stat().st_mtime >= lock.stat().st_mtime:
            return
        command = [program("npm"), "ci", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=170, check=False
        )
        assert done.returncode == 0, f"npm ci failed in {folder.name}: {done.stderr}"
        os.utime(installed)


def program(name: str) -> str:
    """Find a program of Node.js; where it is missing, the test fails."""
    path = shutil.which(name)
    assert path is not None, f"{name} is missing: these tests need Node.js with npm"
    return path


class NodeProcess:
    """The server in a process of its own, killed at the end whatever happens."""

    def __init__(self) -> None:
        #: Where the token endpoint and ``/cometd`` are.
        self.url = ""
        #: Where commands are sent.
        self.control = ""
        self._errors: list[str] = []

    def __enter__(self) -> NodeProcess:
        """Start it."""
        install(HERE)
        self._process = subprocess.Popen(
            [program("node"), str(HERE / "server.js")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        lines: queue.Queue[str] = queue.Queue()
        self._readers = [
            self._read(self._process.stdout, lines.put),
            self._read(self._process.stderr, self._errors.append),
        ]
        try:
            said = json.loads(lines.get(timeout=PATIENCE))
        except (queue.Empty, ValueError):
            self._stop()
            raise AssertionError(f"the server does not start: {self.errors}") from None
        self.url = said["url"]
        self.control = said["control"]
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Kill it."""
        self._stop()

    @property
    def errors(self) -> str:
        """What it wrote to its standard error."""
        return "".join(self._errors)

    @staticmethod
    def _read(stream: IO[str] | None, take: Any) -> threading.Thread:
        """Pass on the lines of a stream, and an empty one at its end."""
        assert stream is not None

        def run() -> None:
            with stream:
                for line in stream:
                    take(line)
            take("")

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)
        assert self._process.stdin is not None
        self._process.stdin.close()
        for reader in self._readers:
            reader.join(PATIENCE)


class NodeServer:
    """A server in its first state, with what steers it.

    An async context manager.

    :param process: a process to use; None: one of its own
    """

    def __init__(self, process: NodeProcess | None = None) -> None:
        self._owned = process is None
        self.process = NodeProcess() if process is None else process
        self._ids = itertools.count(1000, 3)

    async def __aenter__(self) -> NodeServer:
        """Start it, or bring it back to its first state."""
        if self._owned:
            await asyncio.to_thread(self.process.__enter__)
        self._http = aiohttp.ClientSession()
        try:
            await self.call("reset")
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Stop it if it is its own."""
        await self._http.close()
        if self._owned:
            await asyncio.to_thread(self.process.__exit__, exc_type, exc_val, exc_tb)

    @property
    def url(self) -> str:
        """The login URL."""
        return self.process.url

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

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a command line that logs in here."""
        others = {name: value for name, value in os.environ.items() if "SALESFORCE" not in name}
        ours = {name.upper(): value for name, value in self.credentials.items()}
        return others | {f"SALESFORCE_{name}": value for name, value in ours.items()}

    async def call(self, command: str, **options: Any) -> Any:
        """Give the server a command; see ``commands`` in server.js.

        :return: its result
        """
        try:
            async with self._http.post(
                self.process.control, json={"command": command, **options}
            ) as answer:
                result = await answer.json()
        except aiohttp.ClientError as error:
            raise AssertionError(f"the server is gone: {self.process.errors}") from error
        assert answer.status == 200, result
        return result

    # Events

    async def publish(self, *channels: str, ids: Sequence[Any] | None = None) -> list[Any]:
        """Publish an event on each of *channels*, all at once: one answer has them all.

        :param ids: their replay ids; None: new ones, with gaps between them
        :return: their replay ids
        """
        chosen = [next(self._ids) for _ in channels] if ids is None else list(ids)
        events = [
            [channel, envelope(channel, replay_id)]
            for channel, replay_id in zip(channels, chosen, strict=True)
        ]
        await self.call("publish", events=events)
        return chosen

    async def discard(self, channel: str, *, keep: int = 0) -> None:
        """Let all but the last *keep* events of a channel fall out of the retention window."""
        await self.call("discard", channel=channel, keep=keep)

    async def deny(self, channel: str, error: str) -> None:
        """Refuse subscriptions to *channel*."""
        await self.call("deny", channel=channel, error=error)

    async def limit(self, *channels: str) -> None:
        """Let these be the only channels of platform events that there are."""
        await self.call("limit", channels=channels)

    # Trouble

    async def fault(self, kind: str, *, on: str | None = None, **options: Any) -> None:
        """Let the next requests on channel *on* meet with a fault; see faults.js.

        :param kind: which one
        :param on: a channel, ``"token"`` for log-ins, or None for whatever comes next
        :param options: ``times``, and what the fault takes; ``delay`` is in milliseconds
        """
        await self.call("fault", kind=kind, on=on, **options)

    async def revoke(self) -> None:
        """Make all access tokens invalid."""
        await self.call("revoke")

    async def expire(self) -> None:
        """Forget all sessions, as if their clients had stayed away for too long."""
        await self.call("expire")

    async def restart(self) -> None:
        """Put a new server in the place of this one: no sessions, and no connection goes on."""
        await self.call("restart")

    async def down(self) -> None:
        """Refuse connections from now on, and forget all sessions."""
        await self.call("down")

    async def up(self) -> None:
        """Take connections again."""
        await self.call("up")

    async def reroute(self) -> None:
        """Let the routing cookies expire; needs ``behave(salesforce=True)``."""
        await self.call("reroute")

    async def disconnect(self) -> None:
        """Disconnect all clients without being asked to."""
        await self.call("disconnect")

    async def cut(self) -> None:
        """Cut all connections."""
        await self.call("cut")

    # Settings

    async def behave(self, **options: bool) -> None:
        """Set how it differs from CometD's own: ``salesforce``, ``unauthorizedPages``."""
        await self.call("behave", **options)

    async def login(self, **options: Any) -> None:
        """Change what the token endpoint accepts and answers; see login.js."""
        await self.call("login", **options)

    async def cometd(self, **options: Any) -> None:
        """Set options of the CometD server, times in milliseconds, and start it anew."""
        await self.call("cometd", **options)

    # What it knows

    async def sessions(self) -> int:
        """Count the sessions."""
        return int(await self.call("sessions"))

    async def subscriptions(self) -> list[str]:
        """List the subscribed channels of all sessions."""
        return list(await self.call("subscriptions"))

    async def requests(self, channel: str | None = None) -> list[dict[str, Any]]:
        """List the requests so far: ``channel``, ``messages``, ``cookie`` and ``host`` of each.

        :param channel: only those; ``"token"`` for log-ins
        """
        every: list[dict[str, Any]] = await self.call("requests")
        return [one for one in every if channel in (None, one["channel"])]

    async def count(self, channel: str) -> int:
        """Count the requests on a channel; ``"token"`` for log-ins."""
        return len(await self.requests(channel))

    async def wait_until(self, what: str, wanted: Any) -> None:
        """Wait until a command gives *wanted*, such as the number of ``"sessions"``."""
        found = await self.call("wait", what=what, wanted=wanted, seconds=PATIENCE)
        assert found == wanted, f"{what}: {found} instead of {wanted}"

    async def held(self, count: int = 1) -> None:
        """Wait until so many clients wait for events."""
        await self.wait_until("held", count)

    async def check(self) -> None:
        """Check what should hold at the end of a test.

        No client broke a rule of the protocol, every fault was met with, and the server's script did
        not fail.
        """
        for trouble in ("violations", "failures", "unmet"):
            found = await self.call(trouble)
            assert not found, f"{trouble}: {found}"
        assert not self.process.errors, self.process.errors


def envelope(channel: str, replay_id: Any) -> dict[str, Any]:
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
