"""How programs use the package, for the type checkers: nothing here is run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import aiohttp
from typing_extensions import Unpack, assert_type

from aiosfstream import (
    AccessTokenAuthenticator,
    AuthenticationError,
    Client,
    PasswordAuthenticator,
    RefreshTokenAuthenticator,
    ReplayMarker,
    ReplayMarkerStorage,
    ReplayMarkerStoragePolicy,
    ReplayOption,
    SalesforceStreamingClient,
    ServerError,
    SQLiteStorage,
)
from aiosfstream.auth import AuthenticatorBase
from aiosfstream.client import ClientOptions
from aiosfstream.types import (
    ChangeEventPayload,
    Envelope,
    Message,
    PlatformEventMessage,
    is_change_event,
    is_generic_event,
    is_platform_event,
    is_push_topic_event,
)


class AccountChange(ChangeEventPayload, total=False):
    """A payload with the fields of one's own."""

    Name: str


class Markers(ReplayMarkerStorage):
    """A storage of one's own."""

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        return ReplayMarker(date="2026-01-01T00:00:00Z", replay_id=1)

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        assert_type(replay_marker.replay_id, int)


class Wrong(ReplayMarkerStorage):
    """A storage whose markers are none."""

    async def get_replay_marker(self, subscription: str) -> str:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return "5"

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None: ...


class Vault(AuthenticatorBase):
    """A log-in of one's own."""

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        return 200, {"access_token": "", "instance_url": "", "token_type": "Bearer"}


class Sandboxed(PasswordAuthenticator):
    """A log-in elsewhere, as programs have written it since the first release."""

    @property
    def _token_url(self) -> str:
        return "https://acme--dev.sandbox.my.salesforce.com/services/oauth2/token"


class Renamed(RefreshTokenAuthenticator):
    """One whose keywords are passed on."""

    def __init__(self, refresh_token: str) -> None:
        super().__init__("key", "secret", refresh_token, login_url="acme.my.salesforce.com")


async def fetch(authenticator: AuthenticatorBase) -> None:
    """Use what an authenticator has for requests of one's own."""
    async with aiohttp.ClientSession(json_serialize=authenticator.json_dumps) as session:
        headers = {"Authorization": authenticator.authorization or ""}
        await session.get(authenticator.instance_url or "", headers=headers)
    assert_type(authenticator.access_token, str | None)
    assert_type(authenticator.authorization, str | None)
    try:
        await authenticator.authenticate()
    except AuthenticationError as error:
        assert_type(error.retry_after, float | None)
        assert_type(error.retryable, bool)


class Hasty(Client):
    """A client of one's own, which passes the keywords on."""

    def __init__(self, **options: Unpack[ClientOptions]) -> None:
        super().__init__(Vault(sandbox=True), **options)


async def stream(authenticator: AuthenticatorBase) -> None:
    """Receive, in every way."""
    async with Client(authenticator, replay=Markers()) as client:
        assert_type(client, Client)
        await client.subscribe("/event/Low_Ink__e", replay=ReplayOption.ALL_EVENTS)
        assert_type(await client.receive(), dict[str, Any])
        async for message in client:
            assert_type(message, dict[str, Any])
            handle(message)
            async with client.replay_storage(message):
                pass
            event = cast(PlatformEventMessage, message)
            async with client.replay_storage(event):
                pass


def handle(message: dict[str, Any]) -> None:
    """Tell the kinds apart."""
    if is_change_event(message):
        payload = message["data"]["payload"]
        assert_type(payload["ChangeEventHeader"]["recordIds"], list[str])
        assert_type(payload["ChangeEventHeader"]["commitTimestamp"], int)
        fields = cast(AccountChange, payload)
        assert_type(fields.get("Name"), str | None)
        payload["ChangeEventHeader"]["changeTyp"]  # type: ignore[typeddict-item]  # pyright: ignore[reportGeneralTypeIssues]
    elif is_platform_event(message):
        assert_type(message["data"]["event"]["replayId"], int)
        assert_type(message["data"]["payload"]["Ink__c"], Any)
    elif is_push_topic_event(message):
        assert_type(message["data"]["event"]["createdDate"], str)
        assert_type(message["data"]["sobject"], dict[str, Any])
    elif is_generic_event(message):
        assert_type(message["data"]["payload"], str)


def channel_of(message: Message) -> str:
    """Take any kind of message."""
    if is_change_event(message):
        assert_type(message["data"]["payload"]["ChangeEventHeader"]["entityName"], str)
    return message["channel"]


def replay_of(message: dict[str, Any]) -> Any:
    """Take an event of a shape that is not known."""
    envelope = cast(Envelope, message)
    assert_type(envelope["data"], dict[str, Any])
    channel_of(message)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return envelope["data"].get("event")


def clients() -> None:
    """Make clients, rightly and wrongly."""
    SalesforceStreamingClient(
        consumer_key="",
        consumer_secret="",
        username="",
        password="",
        replay={"/event/Low_Ink__e": 5},
        replay_storage_policy=ReplayMarkerStoragePolicy.MANUAL,
        connection_timeout=None,
    )
    SalesforceStreamingClient(  # type: ignore[call-arg]
        consumer_key="",
        consumer_secret="",
        username="",
        password="",
        reply=None,  # pyright: ignore[reportCallIssue]
    )
    SalesforceStreamingClient(
        consumer_key="",
        consumer_secret="",
        username="",
        password="",
        max_pending_count="many",  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    )
    Client(AccessTokenAuthenticator("https://example.my.salesforce.com", "token"), replay=None)
    Hasty(poll_timeout=30, observer=print)
    Hasty(poll_timeout="30")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Client("token")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def storages() -> None:
    """Use a storage by itself."""
    async with SQLiteStorage("markers.db") as storage:
        assert_type(storage, SQLiteStorage)
        assert_type(await storage.get_replay_marker("/event/Low_Ink__e"), ReplayMarker | None)


def errors(error: ServerError) -> None:
    """Look at an error."""
    assert_type(error.error_code, int | None)
    assert_type(error.error_message, str | None)


def iterate(client: Client) -> AsyncIterator[dict[str, Any]]:
    """Get the iterator itself."""
    return aiter(client)
