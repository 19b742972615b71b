"""Connections that are used again, and die of it.

A proxy or a firewall may close a connection that is kept for the next request without a word, or just as that
request is on its way. Whether a request that gets no answer has met such a connection can be told from
whether the connection has carried an answer before.
"""

from __future__ import annotations

import asyncio
from typing import Final
from weakref import WeakKeyDictionary, WeakSet

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import StreamWriter
from aiohttp.payload import BytesPayload

#: How many times a request is made at most: each time a connection that was kept may turn out to be dead.
ATTEMPTS: Final = 4
#: Seconds for which a session keeps no connections, after one that it had kept has died.
CAUTION: Final = 300.0

#: Connections that have carried an answer.
_used: WeakSet[ResponseHandler] = WeakSet()
#: Sessions that keep no connections, and until when by the event loop's clock.
_cautious: WeakKeyDictionary[aiohttp.ClientSession, float] = WeakKeyDictionary()


class RequestBody(BytesPayload):
    """The body of one request, which knows the connection that it was written to.

    :param body: the bytes
    :param is_last: whether the connection is closed after the answer, whatever the server says
    :ivar connection: the connection; None as long as nothing of the request was sent
    """

    def __init__(self, body: bytes, is_last: bool) -> None:
        super().__init__(body)
        self._is_last = is_last
        self.connection: ResponseHandler | None = None

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        """Write the body; aiohttp sends the headers with it."""
        if isinstance(writer, StreamWriter) and isinstance(writer.protocol, ResponseHandler):
            self.connection = writer.protocol
            if self._is_last:
                self.connection.force_close()
        await super().write_with_length(writer, content_length)


def note_answer(body: RequestBody) -> None:
    """Take note that the request with *body* was answered."""
    if body.connection is not None:
        _used.add(body.connection)


def has_died_of_reuse(
    session: aiohttp.ClientSession, body: RequestBody, error: aiohttp.ClientConnectionError
) -> bool:
    """Say whether a request has met a connection that was kept and was dead.

    :param session: the session, which from then on keeps no connections for a while
    :param body: the body of the request
    :param error: why there was no answer
    """
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError)):
        return False
    if isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str):
        # Some of the answer has come.
        return False
    if body.connection is not None and body.connection not in _used:
        return False
    _cautious[session] = asyncio.get_running_loop().time() + CAUTION
    return True


def keeps_connections(session: aiohttp.ClientSession) -> bool:
    """Say whether connections of *session* may be used again."""
    until = _cautious.get(session)
    if until is not None and until <= asyncio.get_running_loop().time():
        del _cautious[session]
        until = None
    return until is None
