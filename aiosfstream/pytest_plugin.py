"""The pytest plugin: installed with the package, it costs nothing until its fixture is used."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .testing import StreamingServer

#: Seconds that starting or stopping must not take.
PATIENCE = 10


@pytest.fixture
def salesforce_server_options() -> dict[str, Any]:
    """Give the arguments of ``salesforce_server``; override it to have others than the defaults."""
    return {}


@pytest.fixture
def salesforce_server(salesforce_server_options: dict[str, Any]) -> Iterator[StreamingServer]:
    """Give a Salesforce-like org on loopback, new for each test.

    It runs in a thread of its own, so it serves synchronous tests and those of any asyncio plugin
    alike. What fails in it fails the test.
    """
    from .testing import StreamingServer

    started: Future[StreamingServer] = Future()
    stop: Future[None] = Future()
    ended: Future[None] = Future()

    async def serve() -> None:
        async with StreamingServer(**salesforce_server_options) as server:
            started.set_result(server)
            await asyncio.wrap_future(stop)

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            (ended if started.done() else started).set_exception(error)
        else:
            ended.set_result(None)

    thread = threading.Thread(target=run, name="salesforce_server", daemon=True)
    thread.start()
    server = started.result(PATIENCE)
    yield server
    stop.set_result(None)
    ended.result(PATIENCE)
    thread.join(PATIENCE)
