"""The least that a client in Python can do: aiohttp, ``json.loads`` and the requests, nothing else.

No error is handled, nothing is resumed, no marker is kept: it is the limit to measure against.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import aiohttp

from benchmarks.script import CHANNEL

PATH: Final = "/cometd/66.0"
_HEADERS: Final = {
    "Content-Type": "application/json;charset=UTF-8",
    "Authorization": "Bearer 00Dx0000000BV7z!token",
}


class BareClient:
    """A session on the server; an async context manager.

    :param url: the server
    :param loads: parses the answers, from bytes
    """

    def __init__(self, url: str, loads: Callable[[bytes], Any] = json.loads) -> None:
        self._url = url + PATH
        self._loads = loads
        self.client_id = ""
        self._count = 0
        # A jar like the client's, since both have to carry the server's cookie.
        jar = aiohttp.CookieJar(unsafe=True, quote_cookie=False)
        self.http = aiohttp.ClientSession(cookie_jar=jar)

    async def __aenter__(self) -> BareClient:
        await self.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._post({"channel": "/meta/disconnect"})
        await self.http.close()

    async def open(self) -> None:
        """Handshake, connect and subscribe: the three requests that any client makes."""
        reply = await self._post(
            {
                "channel": "/meta/handshake",
                "version": "1.0",
                "supportedConnectionTypes": ["long-polling"],
                "ext": {"replay": True},
            }
        )
        self.client_id = reply[0]["clientId"]
        await self.connect(advice={"timeout": 0})
        await self._post(
            {
                "channel": "/meta/subscribe",
                "subscription": CHANNEL,
                "ext": {"replay": {CHANNEL: -1}},
            }
        )

    async def connect(self, **fields: Any) -> list[dict[str, Any]]:
        """Make a connect and give the messages of its answer."""
        return await self._post(
            {"channel": "/meta/connect", "connectionType": "long-polling", **fields}
        )

    def connect_body(self) -> bytes:
        """Encode a connect, for who sends it by other means."""
        message = {"channel": "/meta/connect", "clientId": self.client_id, "id": "1"}
        return json.dumps([message]).encode()

    async def _post(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        self._count += 1
        message["id"] = str(self._count)
        if self.client_id:
            message["clientId"] = self.client_id
        async with self.http.post(
            self._url, data=json.dumps([message]), headers=_HEADERS
        ) as response:
            messages: list[dict[str, Any]] = self._loads(await response.read())
            return messages
