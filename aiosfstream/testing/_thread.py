"""A server in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final

from ._server import StreamingServer

#: Seconds that starting or stopping must not take.
PATIENCE: Final = 10


@contextmanager
def serve_in_thread(**options: Any) -> Iterator[StreamingServer]:
    """Run a server in a thread of its own, for tests that have no event loop or several.

    A context manager, which gives the :class:`StreamingServer`.

    :param options: the arguments of :class:`StreamingServer`
    :raises Exception: what failed in the server, at the end of the block
    """
    started: Future[StreamingServer] = Future()
    stop: Future[None] = Future()
    ended: Future[None] = Future()

    async def serve() -> None:
        async with StreamingServer(**options) as server:
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
    try:
        yield server
    finally:
        stop.set_result(None)
        thread.join(PATIENCE)
    ended.result(0)
