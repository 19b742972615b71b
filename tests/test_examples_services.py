"""Every example that streams, as a program of its own, through what a service meets.

Each goes through a lost connection, a lost session, an event that is lost for good, refused
credentials and SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from aiosfstream.testing import OAuthError, StreamingServer
from tests.postgres_server import PostgresServer
from tests.programs import EXAMPLES, Program, Programs, wait_until
from tests.redis_server import RedisServer, free_port

ROOT = Path(__file__).parent.parent
INK, ORDER, CHANGE = "/event/Low_Ink__e", "/event/Order__e", "/data/AccountChangeEvent"


def ink(number: int) -> dict[str, Any]:
    """Return the fields of an event that can be told from others."""
    return {"Serial_Number__c": f"P-{number}-", "Ink_Percentage__c": 0.1}


def order(number: int) -> dict[str, Any]:
    """Return the fields of an order."""
    return {"Number__c": number, "Amount__c": 10, "Product__c": "paper"}


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
    stopped: int = 0
    refused: int = 77


def orders(name: str, word: str, **more: Any) -> Example:
    """Make an example that prints a word and the number of each order."""
    return Example(name, ORDER, order, word + " {number}", **more)


#: Of a process that ended by the signal itself, as uvicorn's does.
BY_SIGTERM = -signal.SIGTERM
CANCELLED = 128 + signal.SIGTERM

SERVICES = [
    Example("resume"),
    Example("health"),
    Example("metrics_prometheus"),
    Example("metrics_opentelemetry"),
    Example("logging_json"),
    Example("network", goes_on=False),
    Example("observe", goes_on=False),
    orders("service", "order"),
    orders("fan_out_forwarder", "forwarded", needs="redis"),
    orders("celery_orders", "handed over", needs="redis"),
    orders("sql_orders", "stored", needs="postgres"),
    orders("django_stream_orders", "saved", command=("-m", "django", "stream_orders")),
    Example(
        "fastapi_app",
        shown="noted P-{number}-",
        command=("-m", "uvicorn", "fastapi_app:app", "--log-level=warning"),
        stopped=BY_SIGTERM,
        refused=BY_SIGTERM,
    ),
    Example("quickstart", goes_on=False, stopped=CANCELLED),
    Example("timeout", goes_on=False, stopped=CANCELLED),
    Example("errors", shown="event {replay_id}", goes_on=False, stopped=CANCELLED),
    Example("start_points", shown=INK + " {replay_id}", goes_on=False),
]


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
        self._programs = Programs(
            folder,
            org,
            **urls,
            PYTHONUNBUFFERED=1,
            PYTHONPATH=os.pathsep.join(map(str, [folder, ROOT, EXAMPLES])),
            DJANGO_SETTINGS_MODULE="settings",
            LAST_ORDER=-1,
        )
        self.program = self._start()

    def _start(self) -> Program:
        for name in ("HEALTH_PORT", "METRICS_PORT", "UVICORN_PORT"):
            self._programs.set(name, free_port())
        return self._programs.start(self.example.name, command=self.example.command)

    async def start_again(self) -> None:
        """Start it a second time, and wait until it streams."""
        self.program = self._start()
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

    async def shows(self, text: str) -> None:
        """Wait until it has printed something."""
        await wait_until(
            lambda: text in "\n".join(self.program.lines()) or not self.program.running
        )
        assert text in "\n".join(self.program.lines()), self.program.errors

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


#: How many examples run at the same time: most of the time they wait.
AT_A_TIME = 5


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, BaseException | None]:
    """Run all examples whose tests are selected, several at a time, and give what was raised."""
    selected: list[Example] = [
        cast(Example, item.callspec.params["example"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_what_a_service_meets"
    ]
    folder = tmp_path_factory.mktemp("services")
    with ExitStack() as servers:
        urls = {}
        needs = {example.needs for example in selected}
        if "redis" in needs:
            urls["REDIS_URL"] = servers.enter_context(RedisServer(folder)).url
        if "postgres" in needs:
            urls["DATABASE_URL"] = servers.enter_context(PostgresServer()).url
        found = asyncio.run(run_all(selected, folder, urls))
    return dict(zip((example.name for example in selected), found, strict=True))


async def run_all(
    examples: list[Example], folder: Path, urls: dict[str, str]
) -> list[BaseException | None]:
    """Run examples, and give what each has raised."""
    places = asyncio.Semaphore(AT_A_TIME)

    async def run_one(example: Example) -> None:
        async with places:
            await asyncio.gather(
                stays_alive(example, folder / f"{example.name}-lives", urls),
                is_refused(example, folder / f"{example.name}-refused", urls),
            )

    return await asyncio.gather(*map(run_one, examples), return_exceptions=True)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("example", SERVICES, ids=lambda example: example.name)
def test_what_a_service_meets(example: Example, outcomes: dict[str, BaseException | None]) -> None:
    error = outcomes[example.name]
    if error is not None:
        raise error


async def stays_alive(example: Example, folder: Path, urls: dict[str, str]) -> None:
    async with scene(example, folder, urls) as it:
        await it.streaming()
        await it.shows(it.publish())
        # A lost connection.
        await it.org.pause()
        text = it.publish()
        await it.org.resume()
        await it.shows(text)
        # A lost session, and a token that is not valid any more.
        it.org.expire_sessions()
        it.org.revoke_tokens()
        await it.shows(it.publish())
        assert "Traceback" not in it.program.errors
        await loses_an_event(it)
        await it.program.end(signal.SIGTERM)
        assert it.program.status == example.stopped, it.program.errors
        assert "Traceback" not in it.program.errors
        assert it.org.sessions == [], "it left without a goodbye"


async def loses_an_event(it: Scene) -> None:
    """Let the events be gone that it would resume behind: it has to say so."""
    await it.streaming()
    it.org.discard_events()
    it.org.expire_sessions()
    if it.example.goes_on:
        await it.shows(it.publish())
        assert re.search(f"WARNING.*{it.example.channel}.*fallback", it.program.errors)
    else:
        assert await it.ended() == 69
        assert re.search(f"ERROR.*{it.example.channel}", it.program.errors)
        await it.start_again()


async def is_refused(example: Example, folder: Path, urls: dict[str, str]) -> None:
    """Ends with one log-in: too many lock the user."""
    async with StreamingServer() as org:
        org.add_fault(
            OAuthError("invalid_client", "invalid client credentials"), on="token", times=99
        )
        it = Scene(example, org, folder, urls)
        try:
            assert await it.ended() == example.refused, it.program.errors
        finally:
            await it.stop()
        assert "ERROR" in it.program.errors
        assert "invalid client credentials" in it.program.errors
        assert "Traceback" not in it.program.errors
        assert org.count("token") == 1
