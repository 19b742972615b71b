"""What the programs of earlier releases share: how they stream, and what they are made of."""

from __future__ import annotations

from typing import Any

import aiocometd
import aiohttp

from aiosfstream import (
    Client,
    ReplayMarker,
    ReplayMarkerStorage,
)
from aiosfstream.auth import AuthenticatorBase
from aiosfstream.testing import StreamingServer
from tests.support import EVENT, held, replay_id, soon

TOKEN_PATH = "/services/oauth2/token"


def password_of(server: StreamingServer) -> Any:
    """Give the arguments that the release 0.5.0 had: there was no login_url."""
    credentials: Any = dict(server.credentials)
    del credentials["login_url"]
    return credentials


async def token_request(server: StreamingServer) -> tuple[int, Any]:
    """Ask for a token, as authenticators that programs wrote themselves do."""
    given = server.credentials
    form = {
        "grant_type": "password",
        "client_id": given["consumer_key"],
        "client_secret": given["consumer_secret"],
        "username": given["username"],
        "password": given["password"],
    }
    async with (
        aiohttp.ClientSession() as session,
        session.post(server.url + TOKEN_PATH, data=form) as response,
    ):
        return response.status, await response.json()


async def next_id(client: Client) -> Any:
    """Give the replay id of the next event."""
    return replay_id(await soon(client.receive()))


async def stream(server: StreamingServer, client: Client, channel: str = EVENT) -> None:
    """Receive each event once, through a lost session and a revoked token."""
    async with client:
        await client.subscribe(channel)
        await stream_on(server, client, channel)


async def stream_on(server: StreamingServer, client: Client, channel: str) -> None:
    for trouble in (None, server.expire_sessions, server.revoke_tokens):
        await held(server)
        if trouble is not None:
            trouble()
        wanted = server.publish(channel, {"Value__c": "x"})
        assert await next_id(client) == wanted
    await held(server)
    wanted = server.publish(channel, {"Value__c": "last"})
    async for message in client:
        assert replay_id(message) == wanted
        break


class Asking(AuthenticatorBase):
    """A log-in of one's own, as the old documentation shows it.

    :param server: where it logs in
    """

    def __init__(self, server: StreamingServer) -> None:
        super().__init__()
        self.server = server

    async def _authenticate(self) -> tuple[int, Any]:
        return await token_request(self.server)


class Plain(ReplayMarkerStorage):
    """A storage as the old documentation shows it, which does not call the base's constructor."""

    def __init__(self) -> None:
        self.markers: dict[str, ReplayMarker] = {}

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        return self.markers.get(subscription)

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        self.markers[subscription] = replay_marker


#: What subclasses may override, or what is aiocometd's own.
EXTENSION_POINTS = {"_authenticate", "_token_url", "_sandbox"}


def private_names(made: object) -> set[str]:
    """Give the names that begin with one underscore, of an object and its class."""
    names = {*dir(type(made)), *vars(made)}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def names_of_ours(made: object, foreign: object) -> set[str]:
    """Give the private names of an object that are neither aiocometd's nor extension points."""
    given = private_names(foreign) | EXTENSION_POINTS | {"_abc_impl"}
    return private_names(made) - given


def taking(base: type[Any], names: set[str], mark: Any) -> type[Any]:
    """Make a subclass that has each name on the class and on its objects."""

    class Taking(base):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            for name in names:
                setattr(self, name, mark)
            super().__init__(*arguments, **options)
            for name in names:
                setattr(self, name, mark)

    for name in names:
        setattr(Taking, name, mark)
    return Taking


class Mark:
    """What a program keeps under a name of its own; nothing of ours can use it."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("this is the program's own")

    def __bool__(self) -> bool:
        raise AssertionError("this is the program's own")

    __enter__ = __getitem__ = __iter__ = __len__ = __call__


class Extending(aiocometd.Extension):
    """An extension that has nothing but what aiocometd's have."""

    async def incoming(self, payload: Any, headers: Any = None) -> None: ...

    async def outgoing(self, payload: Any, headers: Any) -> None: ...
