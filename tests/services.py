"""The examples that stream, each in a folder and with an org of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiosfstream.testing import Status, StreamingServer
from aiosfstream.testing._plan import PlannedFaults
from tests.programs import EXAMPLES, Program, Programs, wait_until
from tests.redis_server import free_port

ROOT = Path(__file__).parent.parent
INK, ORDER, CHANGE = "/event/Low_Ink__e", "/event/Order__e", "/data/AccountChangeEvent"


def ink(number: int) -> dict[str, Any]:
    """Return the fields of an event that can be told from others."""
    return {"Serial_Number__c": f"P-{number}-", "Ink_Percentage__c": 0.1}


def order(number: int) -> dict[str, Any]:
    """Return the fields of an order."""
    return {"Number__c": number, "Amount__c": 10, "Product__c": "paper"}


def account(number: int) -> dict[str, Any]:
    """Return a change event of an account that was made."""
    return change("CREATE", f"R-{number}-", Name=f"Number {number}")


def change(kind: str, *ids: str, **fields: Any) -> dict[str, Any]:
    """Return a change event of accounts."""
    return {"ChangeEventHeader": {"changeType": kind, "recordIds": list(ids)}, **fields}


def answer_queries(org: StreamingServer, **names: str) -> PlannedFaults:
    """Let an org answer each query with accounts, given as ids and names."""
    records = [{"Id": number, "Name": name, "Phone": None} for number, name in names.items()]
    body = json.dumps({"done": True, "records": records})
    return org.add_fault(Status(200, body, content_type="application/json"), on="other", times=None)


@dataclass(frozen=True)
class Example:
    """What the tests know of an example.

    :ivar name: its file, without the ending
    :ivar channel: a channel that it is subscribed to
    :ivar fields: the fields of an event
    :ivar shown: what it prints of an event, made from its number and its replay id
    :ivar command: arguments for Python that start it, if it is not the file itself
    :ivar needs: the server that must run
    :ivar goes_on: whether it goes on after a lost event; it ends otherwise
    :ivar recovers: what it prints when it has made up for a lost event by itself
    :ivar stopped: its exit status after SIGTERM
    :ivar refused: its exit status when the credentials are refused
    """

    name: str
    channel: str = INK
    fields: Callable[[int], dict[str, Any]] = ink
    shown: str = "P-{number}-"
    command: tuple[str, ...] = ()
    needs: str = ""
    goes_on: bool = True
    recovers: str = ""
    stopped: int = 0
    refused: int = 77


class Scene:
    """An example, in a folder of its own, with an org of its own.

    :param example: the example
    :param org: where it logs in
    :param folder: where it runs
    :param urls: of the servers that it needs
    """

    def __init__(
        self, example: Example, org: StreamingServer, folder: Path, urls: dict[str, str]
    ) -> None:
        folder.mkdir()
        self.example, self.org, self.folder = example, org, folder
        self._number = 0
        if example.name == "django_stream_orders":
            make_django_project(folder)
            urls = {**urls, "DJANGO_SETTINGS_MODULE": "settings"}
        #: How the org answers queries.
        self.answers = answer_queries(org)
        self._programs = Programs(
            folder,
            org,
            **urls,
            PYTHONUNBUFFERED=1,
            PYTHONPATH=os.pathsep.join(map(str, [folder, ROOT, EXAMPLES])),
            LAST_ORDER=-1,
            SALESFORCE_USERNAME=org.credentials["username"],
            SALESFORCE_PASSWORD=org.credentials["password"],
        )
        self.start()

    def start(self) -> None:
        """Start the example, on ports that nobody uses."""
        self.port = free_port()
        for name in ("HEALTH_PORT", "METRICS_PORT", "UVICORN_PORT"):
            self._programs.set(name, self.port)
        self.program = self._programs.start(self.example.name, command=self.example.command)

    def answer_queries(self, **names: str) -> None:
        """Let the org answer each query with these accounts, and no others."""
        self.org.clear_faults(self.answers)
        self.answers = answer_queries(self.org, **names)

    def start_other(self, name: str, *command: str) -> Program:
        """Start another program beside the example."""
        return self._programs.start(self.example.name, name, command=command)

    async def start_again(self) -> None:
        """Start it a second time, and wait until it streams."""
        self.start()
        await self.streaming()

    async def streaming(self) -> None:
        """Wait until it waits for events."""
        channel = self.example.channel
        await wait_until(lambda: channel in self.org.subscriptions and self.org.held_connects)

    def publish(self) -> str:
        """Publish an event, and give what the example prints of it."""
        self._number += 1
        replay_id = self.org.publish(self.example.channel, self.example.fields(self._number))
        return self.example.shown.format(number=self._number, replay_id=replay_id)

    async def shows(self, text: str, times: int = 1) -> None:
        """Wait until it has printed something."""

        def count() -> int:
            return sum(text in line for line in self.program.lines())

        await wait_until(lambda: count() >= times or not self.program.running)
        assert count() >= times, self.program.errors

    async def ended(self) -> int | None:
        """Wait until it has ended, and give its exit status."""
        await wait_until(lambda: not self.program.running)
        return self.program.status

    async def stop(self) -> None:
        """Kill what is left of it."""
        await self._programs.stop()


def make_django_project(folder: Path) -> None:
    """Make the project that the example is a command of."""
    commands = folder / "orders" / "management" / "commands"
    commands.mkdir(parents=True)
    (commands / "stream_orders.py").write_text(
        (EXAMPLES / "django_stream_orders.py").read_text("utf-8"), "utf-8"
    )
    (folder / "orders" / "models.py").write_text(
        "from django.db import models\n\n\n"
        "class Order(models.Model):\n"
        "    number = models.IntegerField(primary_key=True)\n"
        "    amount = models.IntegerField()\n"
    )
    (folder / "settings.py").write_text(
        "INSTALLED_APPS = ['orders']\n"
        "SECRET_KEY = 'x'\n"
        "DEFAULT_AUTO_FIELD = 'django.db.models.AutoField'\n"
        f"DATABASES = {{'default': {{'ENGINE': 'django.db.backends.sqlite3', 'NAME': '{folder}/db'}}}}\n"
    )
    for package in (folder / "orders", commands.parent, commands):
        (package / "__init__.py").touch()
    subprocess.run(
        [sys.executable, "-m", "django", "migrate", "--run-syncdb", "--verbosity=0"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "DJANGO_SETTINGS_MODULE": "settings"},
        check=True,
    )


@asynccontextmanager
async def scene(example: Example, folder: Path, urls: dict[str, str]) -> AsyncIterator[Scene]:
    """Run an example against an org of its own."""
    async with StreamingServer() as org:
        scene = Scene(example, org, folder, urls)
        try:
            yield scene
        finally:
            await scene.stop()
        assert org.violations == []
