"""Programs written for release 0.5.0 and earlier run unchanged.

Each is written as a user of that release would write it, and streams through a lost session and a
revoked token. What such programs reach into is not always public: it is what they do.
"""

from __future__ import annotations

import shelve
from collections import UserDict, defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import aiosfstream.auth
import aiosfstream.client
import aiosfstream.exceptions
from aiosfstream import (
    AuthenticationError,
    Client,
    ConstantReplayId,
    DefaultMappingStorage,
    DurableStorage,
    MappingStorage,
    PasswordAuthenticator,
    RefreshTokenAuthenticator,
    ReplayError,
    ReplayMarker,
    ReplayMarkerStoragePolicy,
    ReplayOption,
    SalesforceStreamingClient,
)
from aiosfstream.auth import AuthenticatorBase
from aiosfstream.replay import DefaultReplayIdMixin, ReplayMarkerStorageContextManager
from aiosfstream.testing import OAuthError, StreamingServer
from tests.old_programs import (
    TOKEN_PATH,
    Asking,
    Extending,
    Mark,
    Plain,
    names_of_ours,
    next_id,
    password_of,
    stream,
    stream_on,
    taking,
    token_request,
)
from tests.support import EVENT, TOPIC, replay_id, soon


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """An org, whose credentials are those of the programs."""
    async with StreamingServer() as org:
        yield org
        assert org.violations == []


# The token URL


def token_url_as_a_property(server: StreamingServer) -> AuthenticatorBase:
    class MyDomain(PasswordAuthenticator):
        @property
        def _token_url(self) -> str:
            return server.url + TOKEN_PATH

    return MyDomain(**password_of(server))


def token_url_as_a_class_attribute(server: StreamingServer) -> AuthenticatorBase:
    class MyDomain(PasswordAuthenticator):
        _token_url = server.url + TOKEN_PATH

    return MyDomain(**password_of(server))


def token_url_set_in_the_constructor(server: StreamingServer) -> AuthenticatorBase:
    class MyDomain(PasswordAuthenticator):
        def __init__(self, host: str, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self._token_url = host + TOKEN_PATH  # type: ignore[misc]

    return MyDomain(server.url, **password_of(server))


def token_url_set_before_the_constructor(server: StreamingServer) -> AuthenticatorBase:
    class MyDomain(PasswordAuthenticator):
        def __init__(self, host: str, **kwargs: Any) -> None:
            self.host = host
            super().__init__(**kwargs)

        @property
        def _token_url(self) -> str:
            return self.host + TOKEN_PATH

    return MyDomain(server.url, **password_of(server))


def token_url_set_from_outside(server: StreamingServer) -> AuthenticatorBase:
    authenticator = PasswordAuthenticator(**password_of(server))
    authenticator._token_url = server.url + TOKEN_PATH  # type: ignore[misc]
    return authenticator


def token_url_of_a_refresh_token(server: StreamingServer) -> AuthenticatorBase:
    class MyDomain(RefreshTokenAuthenticator):
        @property
        def _token_url(self) -> str:
            return server.url + TOKEN_PATH

    given = server.refresh_token_credentials
    return MyDomain(given["consumer_key"], given["consumer_secret"], given["refresh_token"])


def token_url_from_a_mixin(server: StreamingServer) -> AuthenticatorBase:
    class AtMyDomain:
        @property
        def _token_url(self) -> str:
            return server.url + TOKEN_PATH

    class MyDomain(AtMyDomain, PasswordAuthenticator):
        pass

    return MyDomain(**password_of(server))


TOKEN_URLS = [
    token_url_as_a_property,
    token_url_as_a_class_attribute,
    token_url_set_in_the_constructor,
    token_url_set_before_the_constructor,
    token_url_set_from_outside,
    token_url_of_a_refresh_token,
    token_url_from_a_mixin,
]


@pytest.mark.parametrize("make", TOKEN_URLS, ids=lambda make: make.__name__)
async def test_a_token_url_of_ones_own(
    server: StreamingServer, make: Callable[[StreamingServer], AuthenticatorBase]
) -> None:
    authenticator = make(server)
    await stream(server, Client(authenticator))
    assert server.count("token") == 2
    assert authenticator._token_url == server.url + TOKEN_PATH


@pytest.mark.parametrize("sandbox", [False, True])
@pytest.mark.parametrize("late", [False, True])
async def test_the_urls_of_the_module_are_patched(
    server: StreamingServer, monkeypatch: pytest.MonkeyPatch, sandbox: bool, late: bool
) -> None:
    def patch() -> None:
        name = "SANDBOX_TOKEN_URL" if sandbox else "TOKEN_URL"
        monkeypatch.setattr(aiosfstream.auth, name, server.url + TOKEN_PATH)

    if not late:
        patch()
    client = SalesforceStreamingClient(**password_of(server), sandbox=sandbox)
    if late:
        patch()
    await stream(server, client)
    assert server.count("token") == 2


@pytest.mark.parametrize("sandbox", [False, True])
async def test_the_url_is_read_for_a_request_of_ones_own(
    server: StreamingServer, monkeypatch: pytest.MonkeyPatch, sandbox: bool
) -> None:
    name = "SANDBOX_TOKEN_URL" if sandbox else "TOKEN_URL"
    monkeypatch.setattr(aiosfstream.auth, name, server.url + TOKEN_PATH)

    class Mine(AuthenticatorBase):
        async def _authenticate(self) -> tuple[int, Any]:
            given = server.credentials
            form = {"grant_type": "password", "client_id": given["consumer_key"]}
            form.update(client_secret=given["consumer_secret"], username=given["username"])
            form["password"] = given["password"]
            async with (
                aiohttp.ClientSession(json_serialize=self.json_dumps) as session,
                session.post(self._token_url, data=form) as response,
            ):
                return response.status, await response.json(loads=self.json_loads)

    await stream(server, Client(Mine(sandbox=sandbox)))


async def test_the_sandbox_flag_is_read(server: StreamingServer) -> None:
    class Mine(Asking):
        async def _authenticate(self) -> tuple[int, Any]:
            assert self._sandbox is False
            assert self._token_url == "https://login.salesforce.com/services/oauth2/token"
            return await super()._authenticate()

    await stream(server, Client(Mine(server)))
    sandbox = PasswordAuthenticator("k", "s", "u", "p", True)
    assert sandbox._sandbox is True
    assert sandbox._token_url == "https://test.salesforce.com/services/oauth2/token"


async def test_the_sandbox_flag_is_changed(
    server: StreamingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aiosfstream.auth, "SANDBOX_TOKEN_URL", server.url + TOKEN_PATH)
    client = SalesforceStreamingClient(**password_of(server))
    authenticator: Any = client.auth
    authenticator._sandbox = True
    await stream(server, client)


# Mappings


class Computed(dict[str, Any]):
    """A mapping that works its values out."""

    def __init__(self, marker: Any) -> None:
        super().__init__()
        self.marker = marker

    def __getitem__(self, channel: str) -> Any:
        return super().get(channel, self.marker)


class Missing(dict[str, Any]):
    """A mapping with a default of its own."""

    def __init__(self, marker: Any) -> None:
        super().__init__()
        self.marker = marker

    def __missing__(self, channel: str) -> Any:
        return self.marker


class Prefixed(UserDict[str, Any]):
    """A mapping that is no dict, with keys of its own."""

    def __init__(self, marker: Any) -> None:
        super().__init__({"x" + EVENT: marker})

    def __getitem__(self, channel: str) -> Any:
        return self.data["x" + channel]

    def __setitem__(self, channel: str, marker: Any) -> None:
        if not channel.startswith("x"):
            channel = "x" + channel
        self.data[channel] = marker


def with_a_default(marker: Any) -> Any:
    return defaultdict(lambda: marker)


@pytest.mark.parametrize("make", [with_a_default, Computed, Missing, Prefixed])
@pytest.mark.parametrize(
    "write",
    [
        lambda number: ReplayMarker("2020-01-01T00:00:00Z", number),
        lambda number: ("2020-01-01T00:00:00Z", number),
        lambda number: {"date": "2020-01-01T00:00:00Z", "replay_id": number},
        lambda number: number,
    ],
    ids=["marker", "pair", "dict", "id"],
)
async def test_mappings_are_asked(
    server: StreamingServer, make: Callable[[Any], Any], write: Callable[[Any], Any]
) -> None:
    first, second = server.publish(EVENT), server.publish(EVENT)
    mapping = make(write(first))
    async with SalesforceStreamingClient(**server.credentials, replay=mapping) as client:
        await client.subscribe(EVENT)
        assert await next_id(client) == second
        await stream_on(server, client, EVENT)
        assert mapping[EVENT].replay_id == server.replay_ids(EVENT)[-1]


async def test_a_shelf(server: StreamingServer, tmp_path: Path) -> None:
    with shelve.open(str(tmp_path / "markers")) as shelf:
        await stream(server, SalesforceStreamingClient(**server.credentials, replay=shelf))
    wanted = server.publish(EVENT)
    with shelve.open(str(tmp_path / "markers")) as shelf:
        assert shelf[EVENT].replay_id == server.replay_ids(EVENT)[-2]
        client = SalesforceStreamingClient(**server.credentials, replay=shelf)
        async with client:
            await client.subscribe(EVENT)
            assert await next_id(client) == wanted


NO_IDS = [None, b"5", True, [5], object()]


@pytest.mark.parametrize(
    "value",
    [
        *(b"5", [1, 2, 3], ("date",), {"date": "x"}, object(), 5j, True),
        # What a server has sent is kept as it is, however odd.
        *(
            ReplayMarker("2026-01-01T00:00:00.000Z", replay_id)  # type: ignore[arg-type]
            for replay_id in (None, b"5", True, object())
        ),
        *(("2026-01-01T00:00:00.000Z", replay_id) for replay_id in NO_IDS),
    ],
)
async def test_what_is_no_marker_is_told(server: StreamingServer, value: Any) -> None:
    client = SalesforceStreamingClient(
        **server.credentials,
        replay={EVENT: value},
        replay_fallback=ReplayOption.ALL_EVENTS,
    )
    async with client:
        with pytest.raises(ReplayError) as refused:
            await client.subscribe(EVENT)
    assert EVENT in str(refused.value)
    assert server.count("/meta/subscribe") == 0


async def test_a_key_error_means_no_marker(server: StreamingServer) -> None:
    class Strict(dict[str, Any]):
        def __getitem__(self, channel: str) -> Any:
            if channel not in self:
                raise KeyError(channel)
            return super().__getitem__(channel)

        def get(self, *_: Any) -> Any:
            raise AssertionError("a mapping was asked by [] in 0.5.0")

    mapping = Strict()
    await stream(server, SalesforceStreamingClient(**server.credentials, replay=mapping))
    assert mapping[EVENT].replay_id == server.replay_ids(EVENT)[-1]


# Exceptions


async def test_an_authentication_error_of_ones_own(server: StreamingServer) -> None:
    class Careful(Asking):
        async def authenticate(self) -> None:
            try:
                await super().authenticate()
            except AuthenticationError as error:
                raise AuthenticationError("it did not work", error.args[1]) from error

    server.add_fault(OAuthError("invalid_grant", "authentication failure"), on="token")
    client = Client(Careful(server))
    with pytest.raises(AuthenticationError) as refused:
        await client.open()
    assert refused.value.args == (
        "it did not work",
        {"error": "invalid_grant", "error_description": "authentication failure"},
    )
    await stream(server, client)


async def test_the_reply_of_the_token_endpoint_is_told(server: StreamingServer) -> None:
    server.add_fault(OAuthError("inactive_user", "user is inactive"), on="token")
    client = SalesforceStreamingClient(**server.credentials)
    with pytest.raises(AuthenticationError) as refused:
        await client.open()
    assert refused.value.args[1]["error"] == "inactive_user"
    assert refused.value.args[1]["error_description"] == "user is inactive"
    await stream(server, client)


# Authenticators


def sets_the_attributes_itself(server: StreamingServer) -> AuthenticatorBase:
    class Mine(AuthenticatorBase):
        async def _authenticate(self) -> tuple[int, Any]:
            status, reply = await token_request(server)
            assert status == 200
            self.access_token = reply["access_token"]
            self.token_type = reply["token_type"]
            self.instance_url = reply["instance_url"]
            return 200, {}

    return Mine()


def gives_a_list(server: StreamingServer) -> AuthenticatorBase:
    class Mine(AuthenticatorBase):
        async def _authenticate(self) -> Any:
            return list(await token_request(server))

    return Mine()


def makes_no_base(server: StreamingServer) -> AuthenticatorBase:
    class Mine(AuthenticatorBase):
        def __init__(self) -> None:
            self.mine = 1

        async def _authenticate(self) -> tuple[int, Any]:
            return await token_request(server)

    return Mine()


def gives_numbers(server: StreamingServer) -> AuthenticatorBase:
    class Mine(AuthenticatorBase):
        async def _authenticate(self) -> tuple[int, Any]:
            status, reply = await token_request(server)
            return status, {**reply, "id": 17, "issued_at": 1278448832702}

    return Mine()


def authenticates_by_itself(server: StreamingServer) -> AuthenticatorBase:
    class Mine(AuthenticatorBase):
        async def authenticate(self) -> None:
            _, reply = await token_request(server)
            self.access_token, self.token_type = reply["access_token"], "Bearer"
            self.instance_url = reply["instance_url"]

        async def _authenticate(self) -> tuple[int, Any]:
            raise AssertionError("authenticate() is overridden")

    return Mine()


OWN_LOG_INS = [
    sets_the_attributes_itself,
    gives_a_list,
    makes_no_base,
    gives_numbers,
    authenticates_by_itself,
]


@pytest.mark.parametrize("make", OWN_LOG_INS, ids=lambda make: make.__name__)
async def test_a_log_in_of_ones_own(
    server: StreamingServer, make: Callable[[StreamingServer], AuthenticatorBase]
) -> None:
    await stream(server, Client(make(server)))
    assert server.count("token") == 2


async def test_numbers_become_text(server: StreamingServer) -> None:
    authenticator = gives_numbers(server)
    await stream(server, Client(authenticator))
    assert (authenticator.id, authenticator.issued_at) == ("17", "1278448832702")


async def test_a_refusal_without_the_constructor_of_the_base(server: StreamingServer) -> None:
    server.add_fault(OAuthError("invalid_client", "invalid client credentials"), on="token")
    client = Client(makes_no_base(server))
    with pytest.raises(AuthenticationError, match="invalid client credentials"):
        await client.open()
    await stream(server, client)


# Storages


@pytest.mark.parametrize("policy", list(ReplayMarkerStoragePolicy))
async def test_a_storage_of_ones_own(
    server: StreamingServer, policy: ReplayMarkerStoragePolicy
) -> None:
    storage = Plain()
    client = SalesforceStreamingClient(
        **server.credentials, replay=storage, replay_storage_policy=policy
    )
    await stream(server, client)
    stored = {EVENT: server.replay_ids(EVENT)[-1]}
    if policy is ReplayMarkerStoragePolicy.AUTOMATIC:
        assert {key: marker.replay_id for key, marker in storage.markers.items()} == stored
    wanted = server.publish(EVENT)
    async with client:
        await client.subscribe(EVENT, replay=server.replay_ids(EVENT)[-2])
        message = await soon(client.receive())
        async with client.replay_storage(message):
            pass
    assert storage.markers[EVENT].replay_id == wanted


async def test_the_default_of_a_storage_of_ones_own(server: StreamingServer) -> None:
    class WithDefault(DefaultReplayIdMixin, Plain):
        def __init__(self, default_id: int) -> None:
            self.default_id = default_id
            self.markers = {}

    first = server.publish(EVENT)
    async with SalesforceStreamingClient(
        **server.credentials, replay=WithDefault(ReplayOption.ALL_EVENTS)
    ) as client:
        await client.subscribe(EVENT)
        assert await next_id(client) == first
        await stream_on(server, client, EVENT)


async def test_the_default_mixin_alone(server: StreamingServer) -> None:
    class Looked:
        def __init__(self, marker: ReplayMarker | None = None) -> None:
            self.marker = marker

        async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
            return self.marker

    class Ids(DefaultReplayIdMixin, Looked):
        pass

    ids: Any = Ids(default_id=-2)
    assert await ids.get_replay_id(EVENT) == -2
    ids.marker = ReplayMarker("2026", 7)
    assert await ids.get_replay_id(EVENT) == 7

    class Delegating(Plain):
        async def get_replay_id(self, subscription: str) -> Any:
            return await ids.get_replay_id(subscription)

    ids.marker = None
    first = server.publish(EVENT)
    async with SalesforceStreamingClient(**server.credentials, replay=Delegating()) as client:
        await client.subscribe(EVENT)
        assert await next_id(client) == first


async def test_a_constant_with_arguments_for_others(server: StreamingServer) -> None:
    class Named:
        def __init__(self, name: str = "", **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.name = name

    class Constant(ConstantReplayId, Named):
        pass

    constant = Constant(ReplayOption.ALL_EVENTS, name="mine")
    assert (constant.default_id, constant.name) == (-2, "mine")
    first = server.publish(EVENT)
    async with SalesforceStreamingClient(**server.credentials, replay=constant) as client:
        await client.subscribe(EVENT)
        assert await next_id(client) == first
        await stream_on(server, client, EVENT)


async def test_the_context_manager_is_looked_at(server: StreamingServer) -> None:
    storage = Plain()
    client = SalesforceStreamingClient(
        **server.credentials,
        replay=storage,
        replay_storage_policy=ReplayMarkerStoragePolicy.MANUAL,
    )
    async with client:
        await client.subscribe(EVENT)
        server.publish(EVENT)
        message = await soon(client.receive())
        manager = client.replay_storage(message)
        assert isinstance(manager, ReplayMarkerStorageContextManager)
        assert manager.message is message
        assert manager.replay_storage is storage
        async with manager:
            assert storage.markers == {}
        assert storage.markers[EVENT].replay_id == replay_id(message)
        server.publish(EVENT)
        message = await soon(client.receive())
        async with ReplayMarkerStorageContextManager(replay_storage=storage, message=message):
            pass
        assert storage.markers[EVENT].replay_id == replay_id(message)
        await stream_on(server, client, EVENT)


async def test_a_fallback_set_on_a_storage(server: StreamingServer) -> None:
    storage = Plain()
    first = server.publish(EVENT)
    async with SalesforceStreamingClient(**server.credentials, replay=storage) as client:
        client.replay_storage.replay_fallback = ReplayOption.ALL_EVENTS
        await client.subscribe(EVENT)
        assert await next_id(client) == first
        assert not getattr(storage, "replay_fallback", None)
        server.publish(TOPIC)
        # It was for one subscription.
        await client.subscribe(TOPIC)
        await stream_on(server, client, TOPIC)


async def test_a_date_of_ones_own(server: StreamingServer) -> None:
    class Dated(Plain):
        @staticmethod
        def get_message_date(message: Any) -> str:
            return "2026-01-01" if message else ""

        async def extract_replay_id(self, message: Any) -> None:
            await super().extract_replay_id(message)

    storage = Dated()
    await stream(server, SalesforceStreamingClient(**server.credentials, replay=storage))
    assert storage.markers[EVENT].date == "2026-01-01"


# Names that subclasses took


async def test_names_that_an_authenticator_took(server: StreamingServer) -> None:
    class Mine(PasswordAuthenticator):
        authorization = None

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.request_timeout = aiohttp.ClientTimeout(total=5)  # type: ignore[assignment]
            self._flight: Any = "mine"

        def _verify(self) -> None:
            raise AssertionError("it is not called")

        _keep = _reset = _post = _refusal = _verify

    authenticator: Any = Mine(**server.credentials)
    await stream(server, Client(authenticator))
    assert authenticator.authorization is None
    assert authenticator._flight == "mine"


async def test_names_that_a_storage_took(server: StreamingServer) -> None:
    class Mine(Plain):
        _buffered = True
        replay_fallback = None

        def __init__(self) -> None:
            self._lines: Any = "mine"
            self._warned = self._forced = self._aliases = self._lines
            self.markers = {}
            self.flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    storage: Any = Mine()
    await stream(server, SalesforceStreamingClient(**server.credentials, replay=storage))
    assert storage.markers[EVENT].replay_id == server.replay_ids(EVENT)[-1]
    assert (storage._lines, storage._aliases, storage.flushed) == ("mine", "mine", 0)


def authenticators(server: StreamingServer) -> dict[str, tuple[type[Any], Any]]:
    """Give the authenticators with their arguments."""
    return {
        "AuthenticatorBase": (Asking, {"server": server}),
        "PasswordAuthenticator": (PasswordAuthenticator, server.credentials),
        "RefreshTokenAuthenticator": (RefreshTokenAuthenticator, server.refresh_token_credentials),
        "ClientCredentialsAuthenticator": (
            aiosfstream.ClientCredentialsAuthenticator,
            server.client_credentials,
        ),
        "JWTBearerAuthenticator": (aiosfstream.JWTBearerAuthenticator, server.jwt_credentials),
        "AccessTokenAuthenticator": (
            aiosfstream.AccessTokenAuthenticator,
            {"instance_url": server.instance_url, "access_token": _issuing(server)},
        ),
    }


def _issuing(server: StreamingServer) -> Any:
    async def token() -> str:
        return server.new_access_token()

    return token


AUTHENTICATORS = [name for name in aiosfstream.__all__ if "Authenticator" in name]


@pytest.mark.parametrize("name", AUTHENTICATORS)
async def test_an_authenticator_that_takes_every_name_of_ours(
    server: StreamingServer, name: str
) -> None:
    base, options = authenticators(server)[name]
    names, mark = names_of_ours(base(**options), Extending()), Mark()
    authenticator = taking(base, names, mark)(**options)
    await stream(server, Client(authenticator))
    assert all(vars(authenticator)[taken] is mark for taken in names)


class Durable(DurableStorage):
    """A storage of one's own that is newer."""

    def __init__(self) -> None:
        self.markers: dict[str, ReplayMarker] = {}

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        return self.markers.get(subscription)

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        self.markers[subscription] = replay_marker


def storages(folder: Path) -> dict[str, tuple[type[Any], tuple[Any, ...]]]:
    """Give the storages with their arguments."""
    return {
        "ReplayMarkerStorage": (Plain, ()),
        "DurableStorage": (Durable, ()),
        "MappingStorage": (MappingStorage, ({},)),
        "DefaultMappingStorage": (DefaultMappingStorage, ({}, ReplayOption.NEW_EVENTS)),
        "ConstantReplayId": (ConstantReplayId, (ReplayOption.NEW_EVENTS,)),
        "SQLiteStorage": (aiosfstream.SQLiteStorage, (folder / "markers.db",)),
    }


STORAGES = [
    name for name in aiosfstream.__all__ if name.endswith("Storage") or name == "ConstantReplayId"
]


@pytest.mark.parametrize("name", STORAGES)
@pytest.mark.parametrize("policy", list(ReplayMarkerStoragePolicy))
async def test_a_storage_that_takes_every_name_of_ours(
    server: StreamingServer, tmp_path: Path, name: str, policy: ReplayMarkerStoragePolicy
) -> None:
    base, arguments = storages(tmp_path)[name]
    names, mark = names_of_ours(base(*arguments), Extending()), Mark()
    storage = taking(base, names, mark)(*arguments)
    client = SalesforceStreamingClient(
        **server.credentials, replay=storage, replay_storage_policy=policy
    )
    async with client:
        await client.subscribe(EVENT)
        await stream_on(server, client, EVENT)
        server.publish(EVENT)
        message = await soon(client.receive())
        async with client.replay_storage(message):
            pass
        if name != "ConstantReplayId":
            marker = await storage.get_replay_marker(EVENT)
            assert marker.replay_id == replay_id(message)
    assert all(vars(storage)[taken] is mark for taken in names)


def test_the_names_that_are_taken_are_found() -> None:
    class Sample:
        _of_the_class = 1

        def __init__(self) -> None:
            self._of_the_object = 2
            self.__hidden = 3

        def _method(self) -> None: ...

    wanted = {"_of_the_class", "_of_the_object", "_method", "_Sample__hidden"}
    assert names_of_ours(Sample(), object.__new__(Extending)) == wanted
