"""Programs of earlier releases run unchanged: what they do with the client itself."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import aiocometd
import pytest

import aiosfstream.auth
import aiosfstream.client
import aiosfstream.exceptions
from aiosfstream import (
    AuthenticationError,
    Client,
    ConstantReplayId,
    MappingStorage,
    PasswordAuthenticator,
    RefreshTokenAuthenticator,
    ReplayOption,
    SalesforceStreamingClient,
    ServerError,
    TransportTimeoutError,
)
from aiosfstream.auth import AuthenticatorBase
from aiosfstream.testing import StreamingServer
from tests.old_programs import (
    Extending,
    Mark,
    Plain,
    names_of_ours,
    next_id,
    stream,
    taking,
)
from tests.support import EVENT, held, soon
from tests.test_typing import pyright


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """An org, whose credentials are those of the programs."""
    async with StreamingServer() as org:
        yield org
        assert org.violations == []


# The CometD URL


async def test_the_cometd_url_is_made_by_the_program(server: StreamingServer) -> None:
    class Mine(Client):
        @staticmethod
        def get_cometd_url(instance_url: str) -> str:
            return f"{instance_url}/cometd/42.0"

    await stream(server, Mine(PasswordAuthenticator(**server.credentials)))
    assert {r.path for r in server.requests if r.kind == "cometd"} == {"/cometd/42.0"}


async def test_the_cometd_url_is_asked_for_as_before(
    server: StreamingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{server.url}/cometd/42.0"
    asked = Mock(return_value=url)
    monkeypatch.setattr(Client, "get_cometd_url", asked)
    await stream(server, SalesforceStreamingClient(**server.credentials))
    assert {one.args for one in asked.call_args_list} == {(server.instance_url,)}
    assert {r.path for r in server.requests if r.kind == "cometd"} == {"/cometd/42.0"}


@pytest.mark.parametrize("api_version", [{}, {"api_version": "60.0"}], ids=["none", "a version"])
async def test_the_cometd_url_is_made_by_a_builtin(
    server: StreamingServer, api_version: Any
) -> None:
    class Mine(SalesforceStreamingClient):
        get_cometd_url = "{}/cometd/42.0".format

    await stream(server, Mine(**server.credentials, **api_version))
    assert {r.path for r in server.requests if r.kind == "cometd"} == {"/cometd/42.0"}


async def test_a_version_is_passed_to_a_method_that_takes_it(server: StreamingServer) -> None:
    class Mine(SalesforceStreamingClient):
        @classmethod
        def get_cometd_url(cls, instance_url: str, api_version: str) -> str:
            return super().get_cometd_url(instance_url, api_version)

    await stream(server, Mine(**server.credentials))
    await stream(server, Mine(**server.credentials, api_version="60.0"))
    assert {r.path for r in server.requests if r.kind == "cometd"} == {
        "/cometd/66.0",
        "/cometd/60.0",
    }


async def test_the_api_version_of_the_module_is_set(
    server: StreamingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aiosfstream.client, "API_VERSION", "48.0")
    await stream(server, SalesforceStreamingClient(**server.credentials))
    assert {r.path for r in server.requests if r.kind == "cometd"} == {"/cometd/48.0"}
    assert Client.get_cometd_url("https://x") == "https://x/cometd/48.0"


async def test_names_that_programs_import(server: StreamingServer) -> None:
    from aiosfstream import _metadata
    from aiosfstream.client import ReplayParameter
    from aiosfstream.exceptions import Func, FuncType, translate_errors

    for name in ("TITLE", "DESCRIPTION", "VERSION", "URL", "AUTHOR"):
        assert isinstance(getattr(_metadata, name), str)
    assert aiosfstream.__version__ == _metadata.VERSION

    def client(replay: ReplayParameter) -> Client:
        return SalesforceStreamingClient(**server.credentials, replay=replay)

    def twice(function: Func) -> Func:
        return translate_errors(translate_errors(function))

    assert FuncType is not None

    @twice
    async def run() -> None:
        await stream(server, client(ReplayOption.ALL_EVENTS))

    await run()


# Calls through super()


class Recording(aiocometd.Client):
    """A mix-in between the client and aiocometd's, which sees each call."""

    calls: list[str]

    async def open(self) -> Any:
        self.calls.append("open")
        await super().open()
        return "opened"

    async def close(self) -> Any:
        self.calls.append("close")
        await super().close()
        return "closed"

    async def subscribe(self, channel: str) -> Any:
        self.calls.append(f"subscribe {channel}")
        await super().subscribe(channel)
        return "subscribed"

    async def unsubscribe(self, channel: str) -> Any:
        self.calls.append(f"unsubscribe {channel}")
        await super().unsubscribe(channel)
        return "unsubscribed"

    async def publish(self, channel: str, data: Any) -> Any:
        self.calls.append(f"publish {channel}")
        return {"published": await super().publish(channel, data)}

    async def receive(self) -> Any:
        self.calls.append("receive")
        return await super().receive()

    async def __aenter__(self) -> Any:
        self.calls.append("__aenter__")
        return await super().__aenter__()

    async def __aexit__(self, *exception: Any) -> None:  # noqa: PYI036
        self.calls.append("__aexit__")
        await super().__aexit__(*cast("Any", exception))

    def __aiter__(self) -> Any:
        self.calls.append("__aiter__")
        return super().__aiter__()


class Recorded(SalesforceStreamingClient, Recording):
    """A client with that mix-in."""

    def __init__(self, **options: Any) -> None:
        self.calls = []
        super().__init__(**options)


async def test_a_mixin_sees_each_call(server: StreamingServer) -> None:
    client: Any = Recorded(**server.credentials)
    await stream(server, client)
    assert client.calls[:3] == ["__aenter__", "open", f"subscribe {EVENT}"]
    assert client.calls[-2:] == ["__aexit__", "close"]
    assert client.calls.count("receive") >= 3
    assert "__aiter__" in client.calls


async def test_what_a_mixin_returns_is_passed_on(server: StreamingServer) -> None:
    client: Any = Recorded(**server.credentials)
    assert await client.open() == "opened"
    assert await client.subscribe(EVENT) == "subscribed"
    with pytest.raises(ServerError):
        await client.publish(EVENT, {})
    assert await client.unsubscribe(EVENT) == "unsubscribed"
    assert await client.close() == "closed"
    assert client.calls == [
        "open",
        f"subscribe {EVENT}",
        f"publish {EVENT}",
        f"unsubscribe {EVENT}",
        "close",
    ]


async def test_a_mixin_sees_the_calls_of_a_closed_client(server: StreamingServer) -> None:
    client: Any = Recorded(**server.credentials)
    for call in (
        lambda: client.subscribe(EVENT),
        lambda: client.unsubscribe(EVENT),
        lambda: client.publish(EVENT, {}),
        client.receive,
    ):
        with pytest.raises(aiosfstream.ClientInvalidOperation):
            await call()
    await client.close()
    assert client.calls == [
        f"subscribe {EVENT}",
        f"unsubscribe {EVENT}",
        f"publish {EVENT}",
        "receive",
        "close",
    ]


@pytest.mark.parametrize("name", ["open", "subscribe", "unsubscribe", "publish", "receive"])
async def test_the_methods_of_aiocometd_are_replaced(
    server: StreamingServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As unit tests of programs do, with mocks that return or raise."""
    arguments: tuple[Any, ...] = {
        "subscribe": (EVENT,),
        "unsubscribe": (EVENT,),
        "publish": (EVENT, {"a": 1}),
    }.get(name, ())
    seen: list[Any] = []

    async def replacement(self: Any, *given: Any) -> Any:
        seen.append(given)
        return {"channel": EVENT, "data": {"event": {"replayId": 5, "createdDate": "2026"}}}

    monkeypatch.setattr(aiosfstream.client.CometdClient, name, replacement)
    client = SalesforceStreamingClient(**server.credentials)
    result = await getattr(client, name)(*arguments)
    assert seen == [arguments]
    assert result["channel"] == EVENT

    async def failing(self: Any, *given: Any) -> Any:
        raise aiocometd.exceptions.TransportError("it broke")

    monkeypatch.setattr(aiosfstream.client.CometdClient, name, failing)
    with pytest.raises(aiosfstream.TransportError, match="it broke"):
        await getattr(client, name)(*arguments)
    monkeypatch.undo()
    await stream(server, SalesforceStreamingClient(**server.credentials))


async def test_errors_of_the_constructor_are_translated(
    server: StreamingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise aiocometd.exceptions.ClientError("no such connection type")

    with monkeypatch.context() as patched:
        patched.setattr(aiosfstream.client.CometdClient, "__init__", failing)
        with pytest.raises(aiosfstream.ClientError, match="no such connection type"):
            SalesforceStreamingClient(**server.credentials)
    await stream(server, SalesforceStreamingClient(**server.credentials))


async def test_a_token_that_nothing_renews(server: StreamingServer) -> None:
    class Given(AuthenticatorBase):
        def __init__(self, token: str, instance_url: str) -> None:
            super().__init__()
            self.access_token, self.token_type = token, "Bearer"
            self.instance_url = instance_url

        async def authenticate(self) -> None:
            """There is nothing to do."""

        async def _authenticate(self) -> tuple[int, Any]:
            raise AssertionError("there is nothing to log in with")

    authenticator = Given(server.new_access_token(), server.instance_url)
    client = Client(authenticator, connection_timeout=0.2)
    async with client:
        await client.subscribe(EVENT)
        wanted = server.publish(EVENT)
        assert await next_id(client) == wanted
        await held(server)
        server.expire_sessions()
        wanted = server.publish(EVENT)
        assert await next_id(client) == wanted
        await held(server)
        server.revoke_tokens()
        with pytest.raises(AuthenticationError) as refused:
            await soon(_until_refused(client), 20)
        assert "just" not in str(refused.value)


async def _until_refused(client: Client) -> None:
    while True:
        with suppress(TransportTimeoutError):
            await client.receive()


async def test_names_that_a_client_took(server: StreamingServer) -> None:
    class Mine(SalesforceStreamingClient):
        _messages = 0
        _mailbox = "mine"

        def __init__(self, **kwargs: Any) -> None:
            self._endpoint = "mine"
            super().__init__(**kwargs)
            self.authenticator: Any = "mine"
            self.state: Any = "starting"
            self._session: Any = SimpleNamespace(closed=True)

        def _report(self, *_: Any) -> None:
            raise AssertionError("it is not called")

        async def receive(self) -> Any:
            self._messages += 1
            return await super().receive()

    client: Any = Mine(**server.credentials)
    await stream(server, client)
    assert client._messages >= 3
    assert (client.authenticator, client.state, client._endpoint) == ("mine", "starting", "mine")


FOREIGN_CLIENT = aiocometd.Client("http://127.0.0.1", loop=cast("Any", SimpleNamespace()))


def client_kinds(server: StreamingServer) -> list[tuple[type[Any], Any]]:
    """Give the clients with their arguments."""
    authenticator = PasswordAuthenticator(**server.credentials)
    return [
        (Client, {"authenticator": authenticator}),
        (SalesforceStreamingClient, server.credentials),
    ]


@pytest.mark.parametrize("index", [0, 1], ids=["Client", "SalesforceStreamingClient"])
async def test_a_client_that_takes_every_name_of_ours(server: StreamingServer, index: int) -> None:
    base, options = client_kinds(server)[index]
    names, mark = names_of_ours(base(**options), FOREIGN_CLIENT), Mark()
    client = taking(base, names, mark)(**options)
    await stream(server, client)
    assert all(vars(client)[name] is mark for name in names)


#: The public names of 0.5.0, and of aiocometd's classes below: what subclasses had to know.
PUBLIC_THEN = {
    "client": {
        "replay_storage",
        "replay_fallback",
        "replay_storage_policy",
        "create_replay_storage",
    }
    | {"get_cometd_url", "auth", "extensions", "url", "connection_timeout", "ssl"},
    "authenticator": {"authenticate", "access_token", "token_type", "instance_url", "id"}
    | {"signature", "issued_at", "json_dumps", "json_loads", "client_id", "client_secret"}
    | {"username", "password", "refresh_token", "incoming", "outgoing", "server"},
    "storage": {"get_replay_marker", "set_replay_marker", "get_replay_id", "extract_replay_id"}
    | {"get_message_date", "insert_replay_id", "incoming", "outgoing", "mapping", "default_id"}
    | {"markers", "replay_fallback"},
}


def newer_names(made: object, kind: str, foreign: object) -> set[str]:
    """Give the public names of an object that 0.5.0 did not have."""
    names = {
        name for name in {*dir(type(made)), *vars(made)} if name[0] != "_" and name.isidentifier()
    }
    return names - PUBLIC_THEN[kind] - {*dir(foreign)}


async def test_public_names_that_are_newer_may_be_taken_too(server: StreamingServer) -> None:
    mark = Mark()
    base, options = SalesforceStreamingClient, server.credentials
    names = newer_names(base(**options), "client", FOREIGN_CLIENT)
    assert "state" in names
    await stream(server, taking(base, names, mark)(**options))
    for maker in (PasswordAuthenticator, RefreshTokenAuthenticator):
        given: Any = (
            server.credentials
            if maker is PasswordAuthenticator
            else server.refresh_token_credentials
        )
        names = newer_names(maker(**given), "authenticator", Extending())
        await stream(server, Client(taking(maker, names, mark)(**given)))
    for kind, arguments in ((Plain, ()), (MappingStorage, ({},)), (ConstantReplayId, (-1,))):
        names = newer_names(kind(*arguments), "storage", Extending())
        storage = taking(kind, names, mark)(*arguments)
        await stream(server, SalesforceStreamingClient(**server.credentials, replay=storage))


def test_type_checkers_understand_old_programs(tmp_path: Path) -> None:
    """Mypy looks at the same file among the tests."""
    source = Path(__file__).parent / "type_checks" / "old_programs.py"
    copied = Path(shutil.copy(source, tmp_path))
    assert [(one["range"]["start"]["line"] + 1, one["message"]) for one in pyright(copied)] == []
