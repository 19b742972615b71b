"""Authenticators as programs wrote them for earlier releases: none of their names is in the way."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from aiocometd.extensions import AuthExtension

import aiosfstream.auth
from aiosfstream import (
    AccessTokenAuthenticator,
    AuthenticationError,
    AuthenticatorBase,
    ClientCredentialsAuthenticator,
    JWTBearerAuthenticator,
    PasswordAuthenticator,
    RefreshTokenAuthenticator,
)
from aiosfstream._oauth.flight import authorization_of, log_in, log_in_again
from aiosfstream.testing import StreamingServer
from tests.oauth import (
    INSTANCE,
    REPLY,
    TOKEN,
    USER,
    Mine,
    answer,
    endpoint,
    failure,
    refusal,
)
from tests.support import EVENT, FastAuthClient, receive
from tests.test_secrets import PRIVATE, PUBLIC

PATH = "/services/oauth2/token"

# The token URL


def as_property(url: str) -> type[PasswordAuthenticator]:
    class Own(PasswordAuthenticator):
        @property
        def _token_url(self) -> str:
            return url + PATH

    return Own


def as_attribute(url: str) -> type[PasswordAuthenticator]:
    class Own(PasswordAuthenticator):
        _token_url = url + PATH

    return Own


def assigned_before(url: str) -> type[PasswordAuthenticator]:
    class Own(PasswordAuthenticator):
        def __init__(self, *args: Any, **options: Any) -> None:
            self.__setattr__("_token_url", url + PATH)
            super().__init__(*args, **options)

    return Own


def assigned_after(url: str) -> type[PasswordAuthenticator]:
    class Own(PasswordAuthenticator):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.__setattr__("_token_url", url + PATH)

    return Own


def by_sandbox(url: str) -> type[PasswordAuthenticator]:
    class Own(PasswordAuthenticator):
        @property
        def _token_url(self) -> str:
            return url + PATH if self._sandbox else "https://wrong.invalid"

    return Own


@pytest.mark.parametrize(
    "make", [as_property, as_attribute, assigned_before, assigned_after, by_sandbox]
)
async def test_a_subclass_gives_its_own_token_url(
    make: Callable[[str], type[PasswordAuthenticator]],
) -> None:
    async with endpoint() as served:
        authenticator = make(served.url)("key", "secret", USER, "password", sandbox=True)
        await authenticator.authenticate()
        assert authenticator.access_token == TOKEN
        assert len(served.forms) == 1
        assert authenticator._token_url == served.url + PATH
        assert served.url in repr(authenticator)


@pytest.mark.parametrize("sandbox", [False, True])
async def test_the_constants_are_read_when_they_are_needed(
    monkeypatch: pytest.MonkeyPatch, sandbox: bool
) -> None:
    authenticator = PasswordAuthenticator("key", "secret", USER, "password", sandbox)
    async with endpoint() as served:
        name = "SANDBOX_TOKEN_URL" if sandbox else "TOKEN_URL"
        monkeypatch.setattr(aiosfstream.auth, name, served.url + PATH)
        await authenticator.authenticate()
        assert len(served.forms) == 1
    assert authenticator._sandbox is sandbox


async def test_the_sandbox_may_be_chosen_later(monkeypatch: pytest.MonkeyPatch) -> None:
    authenticator = PasswordAuthenticator("key", "secret", USER, "password")
    assert authenticator._token_url == aiosfstream.auth.TOKEN_URL
    authenticator._sandbox = True
    assert authenticator._token_url == aiosfstream.auth.SANDBOX_TOKEN_URL


# Names


NAMES = [
    "authorization",
    "reauthenticate",
    "request_timeout",
    *[
        "_" + name
        for name in [
            "verify",
            "keep",
            "reset",
            "clean",
            "secrets",
            "post",
            "post_with",
            "flight",
            "login_url",
        ]
    ],
    *[
        "_" + name
        for name in [
            "unreachable",
            "useless",
            "refusal",
            "failure",
            "checked",
            "accept",
            "log_in",
            "lead",
        ]
    ],
    *[
        "_" + name
        for name in ["clock_lag", "no_answer", "finish_when_cancelled", "waits_for_nothing"]
    ],
    *[
        "_" + name
        for name in [
            "key",
            "assertion",
            "audience",
            "source",
            "ask",
            "assert",
            "hand_over",
            "unstored",
        ]
    ],
    *[
        "_" + name
        for name in ["on_token_refreshed", "verify_signature", "clock_advice", "state", "flow"]
    ],
    *[
        "_" + name
        for name in ["values", "rotation", "signer", "signed", "token", "session", "loan"]
    ],
]
#: Names of 0.5.0, which mean what they meant.
MEANT = {"_sandbox", "_token_url", "_authenticate"}

ARGUMENTS: dict[type[AuthenticatorBase], Callable[[StreamingServer], dict[str, Any]]] = {
    PasswordAuthenticator: lambda server: {
        "consumer_key": server.oauth.consumer_key,
        "consumer_secret": server.oauth.consumer_secret,
        "username": server.oauth.username,
        "password": server.oauth.password,
    },
    RefreshTokenAuthenticator: lambda server: {
        "consumer_key": server.oauth.consumer_key,
        "consumer_secret": server.oauth.consumer_secret,
        "refresh_token": server.oauth.refresh_token,
    },
    ClientCredentialsAuthenticator: lambda server: {
        "consumer_key": server.oauth.consumer_key,
        "consumer_secret": server.oauth.consumer_secret,
    },
    JWTBearerAuthenticator: lambda server: {
        "consumer_key": server.oauth.consumer_key,
        "username": server.oauth.username,
        "private_key": PRIVATE,
    },
}


def all_names() -> list[str]:
    """Give every name of ours on a class or an object, and all that there were once."""
    objects = [
        PasswordAuthenticator("key", "secret", USER, "password"),
        RefreshTokenAuthenticator("key", "secret", "token"),
        ClientCredentialsAuthenticator("key", "secret", login_url=INSTANCE),
        JWTBearerAuthenticator("key", USER, PRIVATE),
        AccessTokenAuthenticator(INSTANCE, TOKEN),
    ]
    found = {name for one in objects for name in (*dir(one), *vars(one))}
    theirs = set(dir(AuthExtension)) | MEANT
    private = {
        name
        for name in found - theirs
        if name.startswith("_") and not name.startswith("__") and name.isidentifier()
    }
    return sorted(private | set(NAMES))


def test_no_private_name_is_ours() -> None:
    assert set(all_names()) == set(NAMES)


def method(self: object, *arguments: object) -> object:
    """Be in the way."""
    raise AssertionError("a method of the application's was called")


def in_the_class(base: type[AuthenticatorBase], value: object) -> type[AuthenticatorBase]:
    return type("Own", (base,), dict.fromkeys(all_names(), value))


def in_init(base: type[AuthenticatorBase], value: object) -> type[AuthenticatorBase]:
    def init(self: Any, *args: Any, **options: Any) -> None:
        for name in all_names():
            setattr(self, name, value)
        base.__init__(self, *args, **options)
        for name in all_names():
            assert getattr(self, name) is value, name

    return type("Own", (base,), {"__init__": init})


def without_init(base: type[AuthenticatorBase], value: object) -> type[AuthenticatorBase]:
    def init(self: Any, **options: Any) -> None:
        self._token_url = options.pop("login_url") + PATH
        self.client_id = options.pop("consumer_key")
        if "consumer_secret" in options:
            self.client_secret = options.pop("consumer_secret")
        vars(self).update(options)
        for name in all_names():
            setattr(self, name, value)

    return type("Own", (base,), {"__init__": init})


@pytest.mark.parametrize("value", [None, "text", 7, method], ids=["None", "text", "7", "method"])
@pytest.mark.parametrize(
    ("base", "make"),
    [
        (base, make)
        for base in ARGUMENTS
        for make in (in_the_class, in_init, without_init)
        # Without its constructor it has no key.
        if (base, make) != (JWTBearerAuthenticator, without_init)
    ],
)
async def test_a_subclass_may_use_any_name(
    base: type[AuthenticatorBase],
    make: Callable[[type[AuthenticatorBase], object], type[AuthenticatorBase]],
    value: object,
) -> None:
    async with StreamingServer(jwt_public_key=PUBLIC) as server:
        authenticator = make(base, value)(**ARGUMENTS[base](server), login_url=server.login_url)
        async with FastAuthClient(authenticator) as client:
            await client.subscribe(EVENT)
            published = [server.publish(EVENT)]
            assert await receive(client) == published
            await log_in_again(authenticator, authorization_of(authenticator))
            assert authenticator.access_token in server.oauth.tokens
        assert repr(authenticator).startswith("Own(")


async def test_a_refresh_token_rotates_without_the_constructor() -> None:
    class Own(RefreshTokenAuthenticator):
        def __init__(self, url: str) -> None:
            self.client_id, self.client_secret, self.refresh_token = "key", "secret", "first"
            self.__setattr__("_token_url", url)

    async with endpoint(answer({**REPLY, "refresh_token": "second"})) as served:
        authenticator = Own(served.url + PATH)
        await authenticator.authenticate()
        assert authenticator.refresh_token == "second"
        await authenticator.authenticate()
    assert [form["refresh_token"] for form in served.forms] == ["first", "second"]


# What _authenticate() may do


class Assigning(AuthenticatorBase):
    """Sets the attributes itself."""

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        self.access_token, self.token_type, self.instance_url = TOKEN, "OAuth", INSTANCE
        return 200, {}


class Updating(AuthenticatorBase):
    """Sets the attributes as 0.5.0 did."""

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        self.__dict__.update(REPLY)
        return 200, {}


class Listing(AuthenticatorBase):
    """Returns a list, and knows its instance already."""

    def __init__(self) -> None:
        self.instance_url = INSTANCE

    async def _authenticate(self) -> Any:
        return [200, {"access_token": TOKEN, "id": 7, "issued_at": 1278448384422}]


class Vault(AuthenticatorBase):
    """Has properties of its own."""

    @property
    def access_token(self) -> str:  # type: ignore[override]
        return TOKEN

    @property
    def instance_url(self) -> str:  # type: ignore[override]
        return INSTANCE

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        return 200, {}


@pytest.mark.parametrize("kind", [Assigning, Updating, Listing, Vault])
async def test_authenticate_may_set_the_attributes_itself(kind: type[AuthenticatorBase]) -> None:
    authenticator = kind()
    for _ in range(2):
        await authenticator.authenticate()
        assert (authenticator.access_token, authenticator.instance_url) == (TOKEN, INSTANCE)
        headers: dict[str, str] = {}
        await authenticator.outgoing([], headers)
        assert headers["Authorization"].endswith(f" {TOKEN}")


async def test_numbers_become_text() -> None:
    authenticator = Listing()
    await authenticator.authenticate()
    assert authenticator.id == "7"
    assert authenticator.issued_at == "1278448384422"


async def test_an_answer_without_a_token_is_none_even_if_there_was_one() -> None:
    async with endpoint(answer(REPLY), answer({})) as served:
        authenticator = PasswordAuthenticator(
            "key", "secret", USER, "password", login_url=served.url
        )
        await authenticator.authenticate()
        error = await failure(authenticator)
    assert "has no access_token" in str(error)


async def test_what_the_last_answer_said_is_not_kept_for_the_next() -> None:
    class Sometimes(PasswordAuthenticator):
        reply: Any = None

        async def _authenticate(self) -> tuple[int, dict[str, Any]]:
            return self.reply or await super()._authenticate()

    busy = answer({"error": "slow_down"}, 429, {"Retry-After": "5"})
    async with endpoint(answer(REPLY), busy) as served:
        authenticator = Sometimes("key", "secret", USER, "password", login_url=served.url)
        await authenticator.authenticate()
        assert (await failure(authenticator)).retry_after == 5
        authenticator.reply = 429, {"error": "slow_down"}
        assert (await failure(authenticator)).retry_after is None
        # It does not come from an endpoint, so it may leave out what was said once.
        authenticator.reply = 200, {"access_token": "another"}
        await authenticator.authenticate()
    assert (authenticator.access_token, authenticator.instance_url) == ("another", INSTANCE)


async def test_a_refusal_without_the_constructor_is_an_authentication_error() -> None:
    class Own(AuthenticatorBase):
        def __init__(self) -> None:
            pass

        async def _authenticate(self) -> tuple[int, dict[str, Any]]:
            return 400, {"error": "invalid_grant", "error_description": "authentication failure"}

    error = await failure(Own())
    assert error.error == "invalid_grant"
    assert error.args[1] == {
        "error": "invalid_grant",
        "error_description": "authentication failure",
    }
    with pytest.raises(AuthenticationError, match="authenticating first"):
        await Own().outgoing([], {})


# An authenticate() of its own


class Fixed(AuthenticatorBase):
    """Was made with a token."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self.access_token, self.token_type, self.instance_url = token, "Bearer", INSTANCE
        self.calls = 0

    async def authenticate(self) -> None:
        self.calls += 1

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        raise AssertionError


async def test_an_authenticate_of_its_own_is_called() -> None:
    authenticator = Fixed(TOKEN)
    await log_in(authenticator)
    # The token is the refused one still.
    assert not await log_in_again(authenticator, f"Bearer {TOKEN}")
    assert authenticator.calls == 2
    assert await log_in_again(authenticator, "Bearer another")
    assert authenticator.calls == 2
    assert await log_in_again(authenticator, None)
    assert authenticator.calls == 3


@pytest.mark.parametrize(
    ("raised", "text", "retryable"),
    [
        (KeyError("x"), r"Fails\.authenticate\(\) raised KeyError at test_old_auth", False),
        (OSError("no route"), r"raised OSError: no route; try again", True),
        (AuthenticationError("no way"), "no way", False),
    ],
)
async def test_whatever_an_override_raises_is_an_authentication_error(
    raised: Exception, text: str, retryable: bool
) -> None:
    class Fails(Fixed):
        async def authenticate(self) -> None:
            raise raised

    with pytest.raises(AuthenticationError, match=text) as caught:
        await log_in(Fails(TOKEN))
    assert caught.value.retryable is retryable


async def test_an_override_of_outgoing_is_compared_with_what_it_sends() -> None:
    class Other(Fixed):
        async def outgoing(self, payload: Any, headers: Any) -> None:
            headers["Authorization"] = f"OAuth {self.access_token}"

    authenticator = Other(TOKEN)
    await log_in_again(authenticator, f"OAuth {TOKEN}")
    assert authenticator.calls == 1
    await log_in_again(authenticator, "OAuth another")
    assert authenticator.calls == 1


# Errors


async def test_the_reply_is_in_the_arguments_without_secrets() -> None:
    async with endpoint(refusal("invalid_grant", "no password for you")) as served:
        error = await failure(
            PasswordAuthenticator("key", "secret", USER, "password", login_url=served.url)
        )
    reply = {"error": "invalid_grant", "error_description": "no ... for you"}
    for one in (error, copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert one.args[1] == reply
        assert one.error == "invalid_grant"
        assert one.status == 400
        assert str(one) == one.args[0] == str(error)


def test_an_authentication_error_can_be_made_as_before() -> None:
    error = AuthenticationError(
        "text", {"error": "x", "error_description": "y", "access_token": "z"}
    )
    assert error.args == ("text", {"error": "x", "error_description": "y"})
    assert str(error) == "text"
    assert (error.error, error.error_description) == ("x", "y")
    assert AuthenticationError("text").args == ("text",)
    assert str(AuthenticationError()) == ""


async def test_a_copy_and_a_pickle_log_in() -> None:
    async with endpoint() as served:
        first = PasswordAuthenticator("key", "secret", USER, "password", login_url=served.url)
        for other in (pickle.loads(pickle.dumps(first)), copy.deepcopy(first), copy.copy(first)):
            await other.authenticate()
            assert other.access_token == TOKEN
            assert first.access_token is None, "the copy is another one"


def test_attributes_are_what_they_were() -> None:
    authenticator = PasswordAuthenticator("key", "secret", USER, "password")
    assert authenticator.client_id == "key"
    assert (authenticator.client_secret, authenticator.password) == ("secret", "password")
    authenticator.password = "another"
    assert authenticator.password == "another"
    del authenticator.password
    with pytest.raises(AttributeError, match="has no password yet"):
        _ = authenticator.password
    assert Mine(None).access_token is None
    assert Mine(None).authorization is None
