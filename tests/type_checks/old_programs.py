"""How programs of earlier releases use the package, for the type checkers: nothing here is run."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import aiohttp
from typing_extensions import assert_type

from aiosfstream import (
    Client,
    PasswordAuthenticator,
    RefreshTokenAuthenticator,
    ReplayMarker,
    ReplayMarkerStorage,
    ReplayOption,
    SalesforceStreamingClient,
)
from aiosfstream.auth import AuthenticatorBase


class Subscribing(Client):
    """A client that knows nothing of the keywords that are newer."""

    async def subscribe(self, channel: str) -> None:
        await super().subscribe(channel)

    @staticmethod
    def get_cometd_url(instance_url: str) -> str:
        return f"{instance_url}/cometd/42.0"


class SubscribingToo(SalesforceStreamingClient):
    """The same below the other client."""

    async def subscribe(self, channel: str) -> None:
        await super().subscribe(channel)

    @staticmethod
    def get_cometd_url(instance_url: str) -> str:
        return SalesforceStreamingClient.get_cometd_url(instance_url)


class MyDomain(PasswordAuthenticator):
    """The token URL as a property."""

    @property
    def _token_url(self) -> str:
        return "https://acme.my.salesforce.com/services/oauth2/token"


class Asking(AuthenticatorBase):
    """A log-in of one's own."""

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        async with (
            aiohttp.ClientSession(json_serialize=self.json_dumps) as session,
            session.post(self._token_url, data={"sandbox": str(self._sandbox)}) as response,
        ):
            return response.status, await response.json(loads=self.json_loads)


class Markers(ReplayMarkerStorage):
    """A storage of one's own."""

    replay_fallback = None

    def __init__(self) -> None:
        self.markers: dict[str, ReplayMarker] = {}

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        return self.markers.get(subscription)

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        self.markers[subscription] = replay_marker

    def flush(self) -> None:
        self.markers.clear()


async def stream() -> None:
    """Use them."""
    authenticator = MyDomain(
        consumer_key="", consumer_secret="", username="", password="", sandbox=True
    )

    markers: defaultdict[str, ReplayMarker] = defaultdict(lambda: ReplayMarker("", 1))
    async with Subscribing(authenticator, replay=markers) as client:
        await client.subscribe("/event/Low_Ink__e")
        async for message in client:
            assert_type(message, dict[str, Any])
    async with Client(Asking(sandbox=True), replay=Markers()) as plain:
        await plain.subscribe("/event/Low_Ink__e", replay=ReplayOption.ALL_EVENTS)
        plain.subscribe(5)  # type: ignore[arg-type, unused-coroutine]  # pyright: ignore[reportArgumentType, reportUnusedCoroutine]
    print(Client.get_cometd_url("https://x"), Client.get_cometd_url("https://x", "60.0"))
    RefreshTokenAuthenticator("", "", "")
