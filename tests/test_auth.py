"""The authenticators against a token endpoint that answers whatever a test wants."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import gc
import hashlib
import hmac
import json
import logging
import subprocess
import sys
import time
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus

import aiohttp
import jwt
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosfstream import (
    AccessTokenAuthenticator,
    AuthenticationError,
    AuthenticatorBase,
    ClientCredentialsAuthenticator,
    JWTBearerAuthenticator,
    PasswordAuthenticator,
    RefreshTokenAuthenticator,
    TransportError,
)
from aiosfstream._cli.login import CodeExchange
from aiosfstream._oauth import flight
from aiosfstream._oauth.answers import is_signed
from aiosfstream._oauth.state import assign
from aiosfstream._oauth.urls import is_secure
from aiosfstream.auth import ASSERTION_LIFETIME, lend_session
from tests.oauth import (
    INSTANCE,
    KEY,
    LOGGED_IN,
    LOGGED_OUT,
    PASSWORD,
    PRIVATE_KEY,
    PUBLIC_PEM,
    REPLY,
    SECRET,
    TOKEN,
    USER,
    Endpoint,
    Json,
    Mine,
    answer,
    bearer,
    endpoint,
    failure,
    fields,
    password,
    pem,
    refreshing,
    refusal,
)
from tests.support import soon, until

# A successful log-in


async def test_a_log_in_posts_a_form_and_keeps_the_answer() -> None:
    async with endpoint() as served:
        authenticator = password(served.url)
        assert fields(authenticator) == LOGGED_OUT
        await authenticator.authenticate()
    assert fields(authenticator) == LOGGED_IN
    assert served.forms == [
        {
            "grant_type": "password",
            "client_id": KEY,
            "client_secret": SECRET,
            "username": USER,
            "password": PASSWORD,
        }
    ]
    head = served.heads[0].lower()
    assert head.startswith("post /services/oauth2/token http/1.1\r\n")
    assert "content-type: application/x-www-form-urlencoded\r\n" in head
    assert "accept: application/json\r\n" in head
    assert "authorization:" not in head


async def test_the_header_comes_from_the_answer() -> None:
    authenticator = Mine((200, {**REPLY, "token_type": "OAuth"}))
    headers = {"X": "y"}
    with pytest.raises(AuthenticationError, match="authenticating first"):
        await authenticator.outgoing([], headers)
    assert headers == {"X": "y"}
    assert authenticator.authorization is None
    await authenticator.authenticate()
    await authenticator.outgoing([], headers)
    assert headers == {"X": "y", "Authorization": f"OAuth {TOKEN}"}
    assert authenticator.authorization == f"OAuth {TOKEN}"


async def test_incoming_messages_are_let_through() -> None:
    payload: list[Json] = [{"channel": "/meta/connect"}]
    headers = {"Authorization": "x"}
    await Mine(None).incoming(payload, headers)
    await Mine(None).incoming(payload)
    assert payload == [{"channel": "/meta/connect"}]
    assert headers == {"Authorization": "x"}


async def test_nothing_but_the_known_fields_is_taken() -> None:
    reply = {
        **REPLY,
        "json_loads": "x",
        "authenticate": "x",
        "_token_url": "https://evil.example/",
        "client_id": "x",
        "__class__": "x",
        "id": {"not": "text"},
        "issued_at": 1278448384422,
    }
    async with endpoint(answer(reply)) as served:
        authenticator = password(served.url)
        await authenticator.authenticate()
        assert fields(authenticator) == {**LOGGED_IN, "id": None}
        await authenticator.authenticate()
    assert authenticator.json_loads is json.loads
    assert authenticator.client_id == KEY
    assert authenticator._token_url == f"{served.url}/services/oauth2/token"


async def test_an_answer_replaces_the_one_before_as_a_whole() -> None:
    authenticator = Mine((200, REPLY))
    await authenticator.authenticate()
    authenticator.outcome = (200, {"access_token": "second", "instance_url": INSTANCE})
    await authenticator.authenticate()
    assert fields(authenticator) == {
        **LOGGED_OUT,
        "access_token": "second",
        "instance_url": INSTANCE,
        "token_type": "Bearer",
    }


@pytest.mark.parametrize("token_type", [None, "", 7, ["Bearer"]])
async def test_a_token_without_a_type_is_a_bearer_token(token_type: Any) -> None:
    authenticator = Mine((200, {**REPLY, "token_type": token_type}))
    await authenticator.authenticate()
    assert authenticator.authorization == f"Bearer {TOKEN}"


async def test_the_instance_url_stays_as_it_was_sent() -> None:
    authenticator = Mine((200, {**REPLY, "instance_url": INSTANCE + "/"}))
    await authenticator.authenticate()
    assert authenticator.instance_url == INSTANCE + "/"


async def test_another_json_function_reads_the_answer() -> None:
    async with endpoint() as served:
        authenticator = password(served.url, json_dumps=orjson.dumps, json_loads=orjson.loads)
        await authenticator.authenticate()
    assert fields(authenticator) == LOGGED_IN
    assert authenticator.json_dumps is orjson.dumps


# Refusals and failures


@pytest.mark.parametrize(
    "refused",
    [
        (400, {"error": "invalid_grant", "error_description": "authentication failure"}),
        (401, {}),
        (403, {"error": None}),
        (201, REPLY),
    ],
)
async def test_a_refusal_takes_the_token_away(refused: Any) -> None:
    authenticator = Mine((200, REPLY))
    await authenticator.authenticate()
    authenticator.outcome = refused
    error = await failure(authenticator)
    assert str(error).startswith("Authentication failed")
    assert error.status == refused[0]
    assert not error.retryable
    assert fields(authenticator) == LOGGED_OUT
    with pytest.raises(AuthenticationError, match="authenticating first"):
        await authenticator.outgoing([], {})


@pytest.mark.parametrize(
    "passing",
    [
        refusal("rate_limit_exceeded"),
        refusal("invalid_grant", "login rate exceeded"),
        answer({}, 429),
    ],
)
async def test_a_refusal_that_may_pass_leaves_the_token(passing: bytes) -> None:
    async with endpoint(answer(REPLY), passing) as served:
        authenticator = password(served.url)
        await authenticator.authenticate()
        error = await failure(authenticator)
    assert error.retryable
    assert fields(authenticator) == LOGGED_IN


NO_ANSWERS = {
    "a broken gateway": (answer(b"<html>Bad gateway</html>", 502), 502, True),
    "a JSON error of the server": (refusal("server_error", "sorry", 500), 500, True),
    "a refusal with a status of the server": (refusal("invalid_grant", "", 503), 503, True),
    "a status of the server alone": (answer({}, 503), 503, True),
    "a time-out on the way": (answer({}, 408), 408, True),
    "a login page": (answer(b"<html>Please log in</html>"), 200, True),
    "a page with a refusal": (answer(b"<html>Forbidden</html>", 403), 403, True),
    "nothing": (answer(b""), 200, True),
    "a list": (answer([REPLY]), 200, True),
    "a text": (answer("ok"), 200, True),
    "null": (answer(b"null"), 200, True),
    "half of the JSON": (answer(json.dumps(REPLY).encode()[:-5]), 200, True),
    "half of the answer": (answer(REPLY, extra=10), None, True),
    "no UTF-8": (answer(b'{"access_token": "\xff"}'), 200, True),
    "deep nesting": (answer(b"[" * 100_000), 200, True),
    "no HTTP": (b"220 smtp.example.com ESMTP\r\n\r\n", None, True),
    "silence": (b"", None, True),
    "no token": (answer({"instance_url": INSTANCE}), 200, True),
    "a token that is no text": (answer({**REPLY, "access_token": 7}), 200, True),
    "no instance": (answer({"access_token": TOKEN}), 200, True),
    "an instance that is no text": (answer({**REPLY, "instance_url": None}), 200, True),
    "a wrong path": (answer(b"<html>Not found</html>", 404), 404, False),
    "a redirect": (answer(b"", 302, {"Location": "https://org.example/x"}), 302, False),
    "a redirect with JSON": (answer(REPLY, 307, {"Location": "//org.example"}), 307, False),
    "a redirect to nowhere": (answer(b"", 301), 301, False),
}


@pytest.mark.parametrize("case", NO_ANSWERS)
async def test_what_is_no_answer_says_nothing_about_the_token(case: str) -> None:
    raw, status, retryable = NO_ANSWERS[case]
    async with endpoint(answer(REPLY), raw) as served:
        authenticator = password(served.url)
        await authenticator.authenticate()
        error = await failure(authenticator)
        assert len(served.forms) == 2
    assert str(error).startswith("Network request failed")
    assert served.url in str(error)
    assert error.status == status
    assert error.retryable is retryable
    assert fields(authenticator) == LOGGED_IN


async def test_a_redirect_is_named_and_not_followed() -> None:
    async with endpoint() as elsewhere:
        sent_on = answer(b"", 302, {"Location": elsewhere.url})
        async with endpoint(sent_on) as served:
            error = await failure(password(served.url))
        assert "'127.0.0.1'" in str(error)
        assert "login_url" in str(error)
        assert elsewhere.forms == []


async def test_an_endpoint_that_is_not_there_is_a_network_failure() -> None:
    async with endpoint() as served:
        pass
    error = await failure(password(served.url))
    assert str(error).startswith("Network request failed")
    assert isinstance(error.__cause__, TransportError)
    assert error.retryable


async def test_an_endpoint_that_hangs_is_given_up() -> None:
    async with endpoint() as served:
        served.gate.clear()
        authenticator = password(served.url)
        assert authenticator.request_timeout == 14.0
        # The answer may have a new refresh token in it.
        assert RefreshTokenAuthenticator.request_timeout == 30.0
        authenticator.request_timeout = 0.05
        error = await failure(authenticator)
    assert str(error).startswith("Network request failed")
    assert error.retryable
    assert len(served.forms) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"instance_url": "http://org.example"},
        {"instance_url": "org.example"},
        {"instance_url": "https://"},
        {"instance_url": "https://org.example\r\n"},
        {"instance_url": "https://user@org.example"},
        {"instance_url": "https://org.example?x"},
        {"instance_url": "https://org.example#x"},
        {"instance_url": "https://org.example:x"},
        {"access_token": "two\r\nX-Header: lines"},
        {"access_token": "two\nlines"},
        {"access_token": "nul\x00"},
        {"access_token": "bell\x7f"},
        {"access_token": "naïve"},
        {"access_token": "snow\u2603"},
        {"access_token": "half\ud800"},
        {"access_token": " "},
        {"token_type": "two words"},
        {"token_type": "Bearer\r\n"},
    ],
)
async def test_what_must_not_go_into_a_request_is_refused(change: Json) -> None:
    async with endpoint(answer(REPLY), answer({**REPLY, **change})) as served:
        authenticator = password(served.url)
        await authenticator.authenticate()
        error = await failure(authenticator)
    assert str(error).startswith("Authentication failed")
    assert not error.retryable
    assert fields(authenticator) == LOGGED_IN


async def test_a_loopback_instance_may_do_without_tls() -> None:
    authenticator = Mine((200, {**REPLY, "instance_url": "http://127.0.0.1:8080"}))
    await authenticator.authenticate()
    assert authenticator.instance_url == "http://127.0.0.1:8080"


@pytest.mark.parametrize("url", ["http://login.example/services/oauth2/token", "no URL", ""])
async def test_no_credential_leaves_for_a_token_url_without_tls(url: str) -> None:
    authenticator = password()
    assign(authenticator, "_token_url", url)
    error = await failure(authenticator)
    assert "https" in str(error)
    assert not error.retryable


# Subclasses


@pytest.mark.parametrize(
    ("raised", "retryable", "start"),
    [
        (aiohttp.ClientError("gone"), True, "Network request failed"),
        (asyncio.TimeoutError(), True, "Network request failed"),
        (ConnectionResetError("reset"), True, "Network request failed"),
        (json.JSONDecodeError("Expecting value", "", 0), True, "Network request failed"),
        (TransportError("broken"), True, "Network request failed"),
        (KeyError("access_token"), False, "Authentication failed"),
        (RuntimeError("Session is closed"), False, "Authentication failed"),
    ],
)
async def test_whatever_a_subclass_raises_is_an_authentication_error(
    raised: Exception, retryable: bool, start: str
) -> None:
    authenticator = Mine((200, REPLY))
    await authenticator.authenticate()
    authenticator.outcome = raised
    error = await failure(authenticator)
    assert str(error).startswith(start)
    assert error.__cause__ is raised
    assert error.retryable is retryable
    assert fields(authenticator) == LOGGED_IN


async def test_a_subclass_may_say_itself_what_is_wrong() -> None:
    raised = AuthenticationError("the vault is sealed", retryable=True)
    error = await failure(Mine(raised))
    assert error is raised


@pytest.mark.parametrize("outcome", [None, 200, (200,), ("200", REPLY), (200, REPLY, 1), REPLY])
async def test_a_subclass_that_returns_something_else_is_told_so(outcome: Any) -> None:
    error = await failure(Mine(outcome))
    assert "Mine._authenticate() should return" in str(error)
    assert not error.retryable


@pytest.mark.parametrize("reply", [None, [], "text", 7])
async def test_an_answer_of_a_subclass_that_is_no_object_is_nonsense(reply: Any) -> None:
    error = await failure(Mine((200, reply)))
    assert str(error).startswith("Network request failed")
    assert error.retryable


async def test_a_subclass_that_hangs_is_given_up() -> None:
    class Hanging(Mine):
        request_timeout = 0.02

        async def _authenticate(self) -> tuple[int, dict[str, Any]]:
            await asyncio.Event().wait()
            raise AssertionError

    error = await failure(Hanging(None))
    assert str(error).startswith("Network request failed")
    assert error.retryable


async def test_a_log_in_that_cancels_itself_is_a_failure() -> None:
    error = await failure(Mine(asyncio.CancelledError()))
    assert "cancelled" in str(error)
    assert error.retryable


async def test_a_subclass_may_override_authenticate() -> None:
    class Counting(Mine):
        count = 0

        async def authenticate(self) -> None:
            self.count += 1
            await super().authenticate()

    authenticator = Counting((200, REPLY))
    await authenticator.reauthenticate(None)
    assert authenticator.count == 1
    assert authenticator.authorization == f"Bearer {TOKEN}"


# Signatures


def signed(secret: str, **changes: Any) -> Json:
    message = REPLY["id"] + REPLY["issued_at"]
    digest = hmac.new(secret.encode(), message.encode(), hashlib.sha256).digest()
    return {**REPLY, "signature": base64.b64encode(digest).decode(), **changes}


def with_secret(kind: str, url: str, **options: Any) -> AuthenticatorBase:
    if kind == "password":
        return password(url, **options)
    if kind == "refresh token":
        return refreshing(url, **options)
    return ClientCredentialsAuthenticator(KEY, SECRET, login_url=url, **options)


@pytest.mark.parametrize("kind", ["password", "refresh token", "client credentials"])
async def test_a_signature_is_checked_where_it_is_asked_for(kind: str) -> None:
    good, bad = answer(signed(SECRET)), answer(signed("another"))
    async with endpoint(good, bad, bad) as served:
        authenticator = with_secret(kind, served.url, verify_signature=True)
        await authenticator.authenticate()
        error = await failure(authenticator)
        assert "signature" in str(error)
        assert not error.retryable
        assert authenticator.signature == signed(SECRET)["signature"]
        await with_secret(kind, served.url).authenticate()


@pytest.mark.parametrize("name", ["id", "issued_at", "signature"])
@pytest.mark.parametrize("value", [None, 1278448384422, "", "x", "\ud800"])
def test_what_is_not_signed_as_a_whole_is_not_signed(name: str, value: Any) -> None:
    assert is_signed(signed(SECRET), SECRET)
    assert not is_signed({**signed(SECRET), name: value}, SECRET)
    assert not is_signed({key: item for key, item in REPLY.items() if key != name}, SECRET)


# Refresh tokens


async def test_a_refresh_token_that_does_not_rotate_stays() -> None:
    told: list[str] = []
    async with endpoint() as served:
        authenticator = refreshing(served.url, on_token_refreshed=told.append)
        await authenticator.authenticate()
    assert served.forms == [
        {
            "grant_type": "refresh_token",
            "client_id": KEY,
            "client_secret": SECRET,
            "refresh_token": "first-token",
        }
    ]
    assert authenticator.refresh_token == "first-token"
    assert told == []


async def test_an_app_without_a_secret_sends_none() -> None:
    async with endpoint() as served:
        await RefreshTokenAuthenticator(KEY, "", "token", login_url=served.url).authenticate()
    assert "client_secret" not in served.forms[0]


def rotated(token: Any, **changes: Any) -> bytes:
    return answer({**REPLY, "refresh_token": token, **changes})


@pytest.mark.parametrize("plain", [True, False])
async def test_a_new_refresh_token_is_handed_over_before_the_access_token_is_used(
    plain: bool,
) -> None:
    told: list[tuple[str, str | None]] = []

    def note(token: str) -> None:
        told.append((token, authenticator.access_token))

    async def store(token: str) -> None:
        await asyncio.sleep(0)
        note(token)

    async with endpoint(rotated("second-token"), rotated("third-token")) as served:
        authenticator = refreshing(served.url, on_token_refreshed=note if plain else store)
        await authenticator.authenticate()
        assert told == [("second-token", None)]
        assert authenticator.access_token == TOKEN
        await authenticator.authenticate()
    assert [form["refresh_token"] for form in served.forms] == ["first-token", "second-token"]
    assert [token for token, _ in told] == ["second-token", "third-token"]
    assert authenticator.refresh_token == "third-token"


async def test_a_new_refresh_token_is_kept_without_anybody_to_tell() -> None:
    async with endpoint(rotated("second-token")) as served:
        authenticator = refreshing(served.url)
        await authenticator.authenticate()
        await authenticator.authenticate()
    assert [form["refresh_token"] for form in served.forms] == ["first-token", "second-token"]


@pytest.mark.parametrize("token", [None, 7, "", " ", ["x"]])
async def test_what_is_no_refresh_token_does_not_replace_one(token: Any) -> None:
    async with endpoint(rotated(token)) as served:
        authenticator = refreshing(served.url)
        await authenticator.authenticate()
    assert authenticator.refresh_token == "first-token"


@pytest.mark.parametrize("plain", [True, False])
async def test_a_new_refresh_token_that_cannot_be_stored_is_handed_over_again(plain: bool) -> None:
    told: list[str] = []
    broken = [OSError("disk full: second-token"), OSError("disk full"), None]

    def note(token: str) -> None:
        told.append(token)
        error = broken.pop(0)
        if error is not None:
            raise error

    async def store(token: str) -> None:
        await asyncio.sleep(0)
        note(token)

    async with endpoint(rotated("second-token"), answer(REPLY)) as served:
        authenticator = refreshing(served.url, on_token_refreshed=note if plain else store)
        for _ in range(2):
            error = await failure(authenticator)
            assert "on_token_refreshed" in str(error)
            assert "second-token" not in str(error)
            assert isinstance(error.__cause__, OSError)
            assert error.retryable
            assert authenticator.refresh_token == "second-token"
            assert authenticator.access_token is None
        assert len(served.forms) == 1, "it rotated once more what it could not store"
        await authenticator.authenticate()
        assert served.forms[1]["refresh_token"] == "second-token"
        await authenticator.authenticate()
    assert told == ["second-token"] * 3
    assert authenticator.access_token == TOKEN


async def test_storing_a_refresh_token_is_not_waited_for_without_end() -> None:
    async def store(token: str) -> None:
        await asyncio.Event().wait()

    async with endpoint(rotated("second-token")) as served:
        authenticator = refreshing(served.url, on_token_refreshed=store)
        authenticator.request_timeout = 0.3
        error = await failure(authenticator)
    assert "on_token_refreshed" in str(error)
    assert authenticator.refresh_token == "second-token"


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"access_token": None}, {}),
        ({"instance_url": "http://org.example"}, {}),
        ({"signature": "wrong"}, {"verify_signature": True}),
    ],
)
async def test_an_answer_of_no_use_still_rotates_the_token(changes: Json, options: Json) -> None:
    told: list[str] = []
    async with endpoint(rotated("second-token", **changes)) as served:
        authenticator = refreshing(served.url, on_token_refreshed=told.append, **options)
        await failure(authenticator)
    assert authenticator.refresh_token == "second-token"
    assert told == ["second-token"]
    assert authenticator.access_token is None


# JWT


def claims_of(form: dict[str, str], audience: str) -> Json:
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    assert set(form) == {"grant_type", "assertion"}
    assert jwt.get_unverified_header(form["assertion"])["alg"] == "RS256"
    claims: Json = jwt.decode(
        form["assertion"],
        PUBLIC_PEM,
        algorithms=["RS256"],
        audience=audience,
        options={"verify_exp": False},
    )
    return claims


@pytest.mark.parametrize(
    ("options", "audience"),
    [
        ({}, "https://login.salesforce.com"),
        ({"sandbox": True}, "https://test.salesforce.com"),
        ({"audience": "https://a.my.site.com/x"}, "https://a.my.site.com/x"),
    ],
)
async def test_an_assertion_says_who_and_for_whom(options: Json, audience: str) -> None:
    async with endpoint() as served:
        await bearer(served.url, **options).authenticate()
    claims = claims_of(served.forms[0], audience)
    assert claims.pop("exp") == pytest.approx(time.time() + 180, abs=20)
    assert claims == {"iss": KEY, "sub": USER, "aud": audience}


async def test_every_log_in_has_an_assertion_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async with endpoint() as served:
        authenticator = bearer(served.url)
        await authenticator.authenticate()
        monkeypatch.setattr(time, "time", lambda now=time.time: now() + 3600)
        await authenticator.authenticate()
    first, second = (claims_of(form, "https://login.salesforce.com") for form in served.forms)
    assert second["exp"] - first["exp"] == pytest.approx(3600, abs=20)


def expired(date: str | None = None) -> bytes:
    body = {"error": "invalid_grant", "error_description": "expired authorization code"}
    return answer(body, 400, {} if date is None else {"Date": date})


def date_in(seconds: float) -> str:
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize(("ahead", "word"), [(600, "behind"), (-600, "ahead of")])
async def test_an_assertion_that_expired_is_made_again_by_the_clock_of_the_server(
    caplog: pytest.LogCaptureFixture, ahead: float, word: str
) -> None:
    async with endpoint(expired(date_in(ahead)), answer(REPLY)) as served:
        authenticator = bearer(served.url)
        await authenticator.authenticate()
    assert authenticator.access_token == TOKEN
    first, second = (claims_of(form, "https://login.salesforce.com") for form in served.forms)
    assert second["exp"] - first["exp"] == pytest.approx(ahead, abs=20)
    assert f"seconds {word} that of {served.url}" in caplog.text


@pytest.mark.parametrize("ahead", [2 * 3600, -2 * 3600, 7000 * 365 * 86400])
async def test_the_clock_of_the_server_moves_ours_by_an_hour_at_most(ahead: float) -> None:
    far = date_in(ahead) if abs(ahead) < 1e6 else "Fri, 31 Dec 9999 23:59:59 GMT"
    async with endpoint(expired(far), answer(REPLY)) as served:
        before = time.time()
        await bearer(served.url).authenticate()
    first, second = (expiry_of(form) for form in served.forms)
    limit = ASSERTION_LIFETIME + 3600
    assert before + ASSERTION_LIFETIME - 1 <= first <= time.time() + ASSERTION_LIFETIME
    assert second <= time.time() + limit
    assert abs(second - first) <= 3600 + 2


def expiry_of(form: dict[str, str]) -> float:
    claims = jwt.decode(form["assertion"], options={"verify_signature": False})
    return float(claims["exp"])


async def test_an_assertion_is_made_again_once_only() -> None:
    async with endpoint(expired(date_in(600))) as served:
        error = await failure(bearer(served.url))
    assert len(served.forms) == 2
    assert "expired authorization code" in str(error)
    assert "seconds behind" in str(error)
    assert not error.retryable


@pytest.mark.parametrize("date", [None, "yesterday", "Mon, 32 Nov 2026 10:00:00 GMT"])
async def test_without_a_clock_to_go_by_an_assertion_is_not_made_again(date: str | None) -> None:
    async with endpoint(expired(date)) as served:
        error = await failure(bearer(served.url))
    assert len(served.forms) == 1
    assert "check this machine's clock" in str(error)


async def test_a_clock_that_is_right_is_not_blamed(caplog: pytest.LogCaptureFixture) -> None:
    async with endpoint(expired(date_in(0)), answer(REPLY)) as served:
        await bearer(served.url).authenticate()
        served.answers = [expired(date_in(0))]
        error = await failure(bearer(served.url))
    assert "expired on its way" in caplog.text
    assert "seconds" not in caplog.text
    assert "seconds" not in str(error)


def test_importing_costs_nothing_that_only_some_flows_need() -> None:
    program = """
import sys
import aiohttp, aiocometd
before = set(sys.modules)
import aiosfstream.auth
new = {name.partition(".")[0] for name in set(sys.modules) - before}
assert new.isdisjoint({"jwt", "cryptography", "secrets", "webbrowser", "sqlite3"}), new
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# A token from elsewhere


async def test_a_fixed_token_needs_no_request() -> None:
    authenticator = AccessTokenAuthenticator(INSTANCE + "/", TOKEN + "\n")
    assert authenticator.authorization is None
    await authenticator.authenticate()
    assert authenticator.authorization == f"Bearer {TOKEN}"
    assert authenticator.instance_url == INSTANCE.lower()


async def test_a_fixed_token_that_was_refused_is_not_used_again() -> None:
    authenticator = AccessTokenAuthenticator(INSTANCE, TOKEN)
    await authenticator.authenticate()
    for _ in range(2):
        with pytest.raises(AuthenticationError, match="fixed token cannot be renewed") as caught:
            await authenticator.reauthenticate(f"Bearer {TOKEN}")
        assert str(caught.value).startswith("Authentication failed")
        assert not caught.value.retryable
        assert authenticator.authorization is None
    await authenticator.reauthenticate(None)
    assert authenticator.authorization == f"Bearer {TOKEN}"


async def test_a_fixed_token_may_be_replaced_by_hand() -> None:
    authenticator = AccessTokenAuthenticator(INSTANCE, TOKEN)
    await authenticator.authenticate()
    authenticator.access_token = "another"
    await authenticator.reauthenticate(f"Bearer {TOKEN}")
    assert authenticator.authorization == "Bearer another"


@pytest.mark.parametrize("plain", [True, False])
async def test_a_callable_is_asked_again_when_its_token_is_refused(plain: bool) -> None:
    tokens = ["first", "second\n"]

    def give() -> str:
        return tokens.pop(0)

    async def fetch() -> str:
        await asyncio.sleep(0)
        return give()

    authenticator = AccessTokenAuthenticator(INSTANCE, give if plain else fetch)
    await authenticator.authenticate()
    assert authenticator.authorization == "Bearer first"
    await authenticator.reauthenticate("Bearer first")
    assert authenticator.authorization == "Bearer second"
    await authenticator.reauthenticate("Bearer first")
    assert tokens == []


async def test_a_callable_that_gives_the_refused_token_again_is_tried_later() -> None:
    async def fetch() -> str:
        return TOKEN

    authenticator = AccessTokenAuthenticator(INSTANCE, fetch)
    await authenticator.authenticate()
    with pytest.raises(AuthenticationError, match=r"gave the one that \S+ refused") as caught:
        await authenticator.reauthenticate(f"Bearer {TOKEN}")
    assert caught.value.retryable


async def test_a_callable_that_fails_may_do_better_later() -> None:
    raised = LookupError("the vault is sealed: s3cr3t")

    async def fetch() -> str:
        raise raised

    error = await failure(AccessTokenAuthenticator(INSTANCE, fetch))
    assert error.__cause__ is raised
    assert "LookupError" in str(error)
    assert "s3cr3t" not in str(error)
    assert error.retryable


async def test_a_callable_may_say_that_it_is_final() -> None:
    raised = AuthenticationError("the account is closed")

    async def fetch() -> str:
        raise raised

    assert await failure(AccessTokenAuthenticator(INSTANCE, fetch)) is raised


async def test_a_callable_that_hangs_is_given_up() -> None:
    async def fetch() -> str:
        await asyncio.Event().wait()
        raise AssertionError

    authenticator = AccessTokenAuthenticator(INSTANCE, fetch)
    authenticator.request_timeout = 0.02
    error = await failure(authenticator)
    assert "the callable gave no access token within 0.02 seconds" in str(error)
    assert error.retryable


@pytest.mark.parametrize("token", [None, 7, b"token", "", " \n", "two\nlines", "snow\u2603"])
async def test_what_a_callable_gives_has_to_be_a_token(token: Any) -> None:
    error = await failure(AccessTokenAuthenticator(INSTANCE, lambda: token))
    assert str(error).startswith("Authentication failed")
    assert not error.retryable


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (KeyError("x"), "Wrong._authenticate() raised KeyError"),
        (OSError(f"no {TOKEN}"), "Wrong._authenticate() raised OSError: no ...; try"),
    ],
)
async def test_a_subclass_of_it_may_fail_as_any_other(raised: Exception, expected: str) -> None:
    class Wrong(AccessTokenAuthenticator):
        async def _authenticate(self) -> tuple[int, dict[str, Any]]:
            raise raised

    assert expected in str(await failure(Wrong(INSTANCE, TOKEN)))


@pytest.mark.parametrize("token", [None, 7, b"token"])
def test_a_token_is_text_or_callable(token: Any) -> None:
    with pytest.raises(TypeError, match="access_token should be a str or a callable"):
        AccessTokenAuthenticator(INSTANCE, token)


@pytest.mark.parametrize("token", ["", " ", "two\nlines", "snow\u2603"])
def test_a_fixed_token_has_to_fit_into_a_header(token: str) -> None:
    with pytest.raises(ValueError, match="access_token should be text"):
        AccessTokenAuthenticator(INSTANCE, token)


def test_an_instance_is_called_by_its_name_in_errors() -> None:
    with pytest.raises(ValueError, match="instance_url should be an https URL"):
        AccessTokenAuthenticator("http://org.example", TOKEN)


# One log-in at a time


async def test_however_many_ask_there_is_one_request() -> None:
    async with endpoint() as served:
        served.gate.clear()
        authenticator = password(served.url)
        asking = [asyncio.create_task(authenticator.authenticate()) for _ in range(20)]
        asking += [asyncio.create_task(authenticator.reauthenticate("x")) for _ in range(20)]
        await until(lambda: served.forms)
        served.gate.set()
        await soon(asyncio.gather(*asking))
        assert len(served.forms) == 1
        await authenticator.authenticate()
        assert len(served.forms) == 2


async def test_whoever_comes_after_the_new_token_takes_that() -> None:
    second = answer({**REPLY, "access_token": "second"})
    async with endpoint(answer(REPLY), second) as served:
        authenticator = password(served.url)
        await authenticator.authenticate()
        for _ in range(3):
            await authenticator.reauthenticate(f"Bearer {TOKEN}")
        assert authenticator.authorization == "Bearer second"
        assert len(served.forms) == 2


async def test_a_log_in_is_tried_again_after_a_refusal() -> None:
    async with endpoint(answer(REPLY), refusal("invalid_grant"), answer(REPLY)) as served:
        authenticator = password(served.url)
        await authenticator.authenticate()
        with pytest.raises(AuthenticationError):
            await authenticator.reauthenticate(f"Bearer {TOKEN}")
        await authenticator.reauthenticate(f"Bearer {TOKEN}")
        assert authenticator.authorization == f"Bearer {TOKEN}"


async def test_a_failure_reaches_everybody_who_waits() -> None:
    async with endpoint(refusal("invalid_grant", "authentication failure")) as served:
        served.gate.clear()
        authenticator = password(served.url)
        asking = [asyncio.create_task(authenticator.authenticate()) for _ in range(5)]
        await until(lambda: served.forms)
        served.gate.set()
        outcomes = await soon(asyncio.gather(*asking, return_exceptions=True))
    assert len(served.forms) == 1
    assert all(isinstance(outcome, AuthenticationError) for outcome in outcomes)


async def started(served: Endpoint, authenticator: AuthenticatorBase, count: int) -> list[Any]:
    """Let *count* callers wait for one log-in; the first of them has begun it."""
    served.gate.clear()
    asking = [asyncio.create_task(authenticator.authenticate()) for _ in range(count)]
    await until(lambda: served.forms)
    return asking


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    assert task.cancelled()


async def test_who_waits_may_be_cancelled_alone() -> None:
    async with endpoint() as served:
        authenticator = password(served.url)
        first, second, third = await started(served, authenticator, 3)
        await cancelled(second)
        served.gate.set()
        await soon(asyncio.gather(first, third))
    assert len(served.forms) == 1
    assert authenticator.access_token == TOKEN


async def test_who_began_it_may_be_cancelled_alone() -> None:
    async with endpoint() as served:
        authenticator = password(served.url)
        first, second, third = await started(served, authenticator, 3)
        first.cancel()
        await asyncio.sleep(0)
        served.gate.set()
        await soon(asyncio.gather(second, third))
        assert len(served.forms) == 1
        await asyncio.wait({first}, timeout=10)
        assert first.cancelled()


async def test_a_log_in_that_nobody_waits_for_ends() -> None:
    async with endpoint() as served:
        authenticator = password(served.url)
        (only,) = await started(served, authenticator, 1)
        before = time.monotonic()
        await cancelled(only)
        assert time.monotonic() - before < flight.GRACE
        served.gate.set()
        assert authenticator.access_token is None
        await authenticator.authenticate()
        assert authenticator.access_token == TOKEN


async def test_who_waits_takes_over_when_the_first_is_gone_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flight, "GRACE", 0.05)
    async with endpoint() as served:
        authenticator = password(served.url)
        first, second, third = await started(served, authenticator, 3)
        await cancelled(first)
        await until(lambda: len(served.forms) == 2)
        served.gate.set()
        await soon(asyncio.gather(second, third))
    assert len(served.forms) == 2
    assert authenticator.access_token == TOKEN


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_refresh_brings_the_rotated_token_home(times: int) -> None:
    told: list[str] = []
    async with endpoint(rotated("second-token")) as served:
        authenticator = refreshing(served.url, on_token_refreshed=told.append)
        (only,) = await started(served, authenticator, 1)
        for _ in range(times):
            only.cancel()
            await asyncio.sleep(0.01)
        assert not only.done()
        served.gate.set()
        await asyncio.wait({only}, timeout=10)
        assert only.cancelled()
    assert authenticator.refresh_token == "second-token"
    assert told == ["second-token"]
    assert authenticator.access_token == TOKEN


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_refresh_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr(flight, "GRACE", 0.1)
    async with endpoint(rotated("second-token")) as served:
        authenticator = refreshing(served.url)
        (only,) = await started(served, authenticator, 1)
        for _ in range(times):
            only.cancel()
            await asyncio.sleep(0)
        await asyncio.wait({only}, timeout=10)
        assert only.cancelled()


async def test_code_that_resists_its_cancellation_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flight, "GRACE", 0.05)
    release = asyncio.Event()
    complaints: list[Json] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))

    class Stubborn(Mine):
        async def _authenticate(self) -> tuple[int, dict[str, Any]]:
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue
            raise KeyError("too late")

    asking = asyncio.create_task(Stubborn(None).authenticate())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await cancelled(asking)
    release.set()
    await until(lambda: len(asyncio.all_tasks()) == 1)
    del asking
    gc.collect()
    assert complaints == [], "its end was reported though nobody waits for it"


def test_one_authenticator_serves_one_event_loop_after_another() -> None:
    authenticator = password("http://127.0.0.1:9")

    async def log_in() -> None:
        async with endpoint() as served:
            assign(authenticator, "_token_url", f"{served.url}/services/oauth2/token")
            await asyncio.gather(*(authenticator.authenticate() for _ in range(3)))
            assert len(served.forms) == 1

    async def give_up() -> None:
        async with endpoint() as served:
            assign(authenticator, "_token_url", f"{served.url}/services/oauth2/token")
            (only,) = await started(served, authenticator, 1)
            await cancelled(only)

    for main in (log_in, give_up, log_in):
        asyncio.run(main())
    assert authenticator.access_token == TOKEN


def test_the_log_in_of_another_event_loop_is_left_alone() -> None:
    waiting: list[asyncio.Future[None]] = []

    class Holding(Mine):
        async def _authenticate(self) -> tuple[int, dict[str, Any]]:
            waiting.append(asyncio.get_running_loop().create_future())
            await waiting[-1]
            return await super()._authenticate()

    authenticator = Holding((200, REPLY))
    stopped, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        first = stopped.create_task(authenticator.authenticate())
        stopped.run_until_complete(asyncio.sleep(0.01))
        # Nobody drives the first log-in any more, so nobody else may wait for it.
        second = other.create_task(authenticator.authenticate())
        other.run_until_complete(asyncio.sleep(0.01))
        assert len(waiting) == 2
        first.cancel()
        stopped.run_until_complete(asyncio.wait({first}))
        assert first.cancelled()
        # The end of the first must not hide the second from whoever comes next.
        third = other.create_task(authenticator.authenticate())
        other.run_until_complete(asyncio.sleep(0.01))
        assert len(waiting) == 2
        waiting[1].set_result(None)
        other.run_until_complete(asyncio.gather(second, third))
        assert authenticator.access_token == TOKEN
    finally:
        stopped.close()
        other.close()


# Sessions


async def test_a_log_in_uses_the_session_that_it_is_lent() -> None:
    async with endpoint() as served:
        authenticator = password(served.url)
        async with aiohttp.ClientSession(headers={"X-Lent": "yes"}) as session:
            with lend_session(session, None):
                await authenticator.authenticate()
            await authenticator.authenticate()
            assert not session.closed
        with lend_session(session, None):
            await authenticator.authenticate()
    assert ["x-lent" in head.lower() for head in served.heads] == [True, False, False]


async def test_who_waits_is_not_hurt_by_the_session_of_who_began() -> None:
    async with endpoint() as served:
        authenticator = password(served.url)

        async def like_a_client() -> None:
            async with aiohttp.ClientSession() as session:
                with lend_session(session, None):
                    await authenticator.authenticate()

        served.gate.clear()
        first, second = (asyncio.create_task(like_a_client()) for _ in range(2))
        await until(lambda: served.forms)
        first.cancel()
        await asyncio.sleep(0.01)
        served.gate.set()
        await soon(second)
        await asyncio.wait({first}, timeout=10)
        assert first.cancelled()
    assert len(served.forms) == 1


# Secrets


def all_kinds(url: str) -> list[AuthenticatorBase]:
    async def fetch() -> str:
        return TOKEN

    return [
        password(url),
        refreshing(url),
        ClientCredentialsAuthenticator(KEY, SECRET, login_url=url),
        bearer(url),
        AccessTokenAuthenticator(url, TOKEN),
        AccessTokenAuthenticator(url, fetch),
        Mine((200, REPLY)),
    ]


def secrets_of(authenticator: AuthenticatorBase) -> list[str]:
    known = [
        SECRET,
        PASSWORD,
        "first-token",
        TOKEN,
        "BEGIN PRIVATE KEY",
        "the-code",
        "the-verifier",
    ]
    assertion = getattr(authenticator, "_assertion", "")
    plain = [*known, *([assertion] if assertion else [])]
    return [form(text) for text in plain for form in (str, quote, quote_plus)]


async def test_a_repr_names_whom_it_is_for_and_nothing_secret() -> None:
    async with endpoint() as served:
        for authenticator in all_kinds(served.url):
            await authenticator.authenticate()
            text = repr(authenticator)
            assert text.startswith(type(authenticator).__name__ + "(")
            assert not any(secret in text for secret in secrets_of(authenticator))
    assert f"consumer_key={KEY!r}, username={USER!r}" in repr(password())
    assert f"consumer_key={KEY!r}" in repr(refreshing())
    assert f"consumer_key={KEY!r}, username={USER!r}" in repr(bearer())
    assert INSTANCE.lower() in repr(AccessTokenAuthenticator(INSTANCE, TOKEN))


def told_by(error: BaseException) -> str:
    """Give all that an error and its causes would put into a log."""
    parts = []
    cause: BaseException | None = error
    while cause is not None:
        parts += [str(cause), repr(cause), repr(cause.args), repr(vars(cause))]
        cause = cause.__cause__
    return "\n".join(parts)


@pytest.mark.parametrize("status", [200, 400, 503])
async def test_a_server_that_echoes_everything_makes_nothing_public(
    caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level(logging.DEBUG)

    class Echo(Endpoint):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            size = next(line for line in head.splitlines() if "content-length" in line.lower())
            body = (await reader.readexactly(int(size.partition(":")[2]))).decode()
            told = " ".join([body, *dict(parse_qsl(body)).values()])
            writer.write(
                answer(
                    {"error": told, "error_description": told, "token_type": told, told: told},
                    status,
                    {"Location": "https://x/" + quote(told), "X-Echo": quote(told)},
                )
            )
            writer.close()

    server = await asyncio.start_server(Echo().serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    exchange = CodeExchange(
        KEY, SECRET, code="the-code", verifier="the-verifier", redirect_uri="x", login_url=url
    )
    for authenticator in [*all_kinds(url)[:4], exchange]:
        error = await failure(authenticator)
        for text in (told_by(error), caplog.text, repr(authenticator)):
            assert [secret for secret in secrets_of(authenticator) if secret in text] == []
    server.close()


async def test_of_a_refusal_with_many_fields_a_few_are_kept() -> None:
    fields = {f"field {number}": "x" for number in range(10_000)}
    body = {**fields, "error": "invalid_grant", "error_description": "authentication failure"}
    async with endpoint(answer(body, 400)) as served:
        error = await failure(password(served.url))
    assert error.error == "invalid_grant"
    assert "authentication failure" in str(error)
    assert len(error.args[1]) < 100


async def test_what_a_server_says_fits_into_a_log() -> None:
    description = "line\r\nforged: line\x1b[31m\u202e" + "x" * 10_000
    async with endpoint(refusal("invalid_grant", description)) as served:
        error = await failure(password(served.url))
    assert error.error_description is not None
    assert error.error_description.isprintable()
    assert str(error).isprintable()
    assert len(str(error)) < 1000


# Anything


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
replies = st.fixed_dictionaries(
    {},
    optional={
        "access_token": json_values | st.just(TOKEN),
        "instance_url": json_values | st.just(INSTANCE),
        "error": json_values | st.sampled_from(["invalid_grant", SECRET, PASSWORD]),
        "error_description": json_values | st.just("authentication failure"),
        **dict.fromkeys(("token_type", "id", "signature", "issued_at"), json_values),
        "refresh_token": json_values | st.just("second-token"),
    },
)
statuses = st.integers(100, 599) | st.just(200)
header_values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)


async def survives(raw: bytes) -> None:
    """See that any answer makes either a sound log-in or an error of ours."""
    async with endpoint(raw) as served:
        authenticator = refreshing(served.url, verify_signature=False)
        authenticator.request_timeout = 5.0
        try:
            await soon(authenticator.authenticate())
        except AuthenticationError as error:
            text = told_by(error)
            assert str(error).startswith(("Authentication failed", "Network request failed"))
            assert SECRET not in text
            assert "first-token" not in text
            assert fields(authenticator) == LOGGED_OUT
        else:
            headers: dict[str, str] = {}
            await authenticator.outgoing([], headers)
            assert headers["Authorization"].isprintable()
            assert authenticator.instance_url is not None
            assert is_secure(authenticator.instance_url)
        assert isinstance(authenticator.refresh_token, str)
        assert authenticator.json_loads is json.loads


@given(replies | json_values, statuses)
def test_any_json_is_an_answer_or_an_error(reply: Any, status: int) -> None:
    async def run() -> None:
        authenticator = Mine((status, reply))
        try:
            await authenticator.authenticate()
        except AuthenticationError:
            assert authenticator.access_token is None
        else:
            assert status == 200
            assert authenticator.authorization is not None

    asyncio.run(run())
    if status >= 200:  # 1xx is not the end of an answer
        asyncio.run(survives(answer(reply, status)))


@given(st.binary(max_size=200), statuses.filter(lambda status: status >= 200), header_values)
def test_any_body_is_an_answer_or_an_error(body: bytes, status: int, value: str) -> None:
    headers = {"Location": value, "Date": value, "Content-Type": value, "Retry-After": value}
    asyncio.run(survives(answer(body, status, headers)))


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_an_error(raw: bytes) -> None:
    asyncio.run(survives(raw))


# What was left out


REQUIRED: list[tuple[Any, dict[str, Any], list[str]]] = [
    (
        PasswordAuthenticator,
        {"consumer_key": "k", "consumer_secret": "s", "username": "u", "password": "p"},
        ["consumer_key", "consumer_secret", "username", "password"],
    ),
    (
        RefreshTokenAuthenticator,
        {"consumer_key": "k", "consumer_secret": "s", "refresh_token": "r"},
        ["consumer_key", "refresh_token"],
    ),
    (
        ClientCredentialsAuthenticator,
        {"consumer_key": "k", "consumer_secret": "s", "login_url": INSTANCE},
        ["consumer_key", "consumer_secret"],
    ),
    (
        JWTBearerAuthenticator,
        {"consumer_key": "k", "username": "u", "private_key": pem(PRIVATE_KEY)},
        ["consumer_key", "username", "private_key"],
    ),
]


@pytest.mark.parametrize("value", [None, "", " ", "\n"])
@pytest.mark.parametrize(
    ("kind", "arguments", "name"),
    [(kind, arguments, name) for kind, arguments, names in REQUIRED for name in names],
)
def test_what_was_left_out_is_named_and_nothing_sent(
    kind: Any, arguments: Json, name: str, value: Any
) -> None:
    kind(**arguments)
    with pytest.raises((TypeError, ValueError), match=f"^{name} should"):
        kind(**{**arguments, name: value})


def test_an_app_may_have_no_secret_but_not_none() -> None:
    assert RefreshTokenAuthenticator("k", "", "r").client_secret == ""
    with pytest.raises(TypeError, match="^consumer_secret should be a str"):
        RefreshTokenAuthenticator("k", None, "r")  # type: ignore[arg-type]


async def test_no_asyncio_object_outlives_a_log_in() -> None:
    async with endpoint(answer(REPLY), refusal("invalid_grant")) as served:
        authenticator = password(served.url)
        await authenticator.authenticate()
        await failure(authenticator)
        gc.collect()
        tasks = [thing for thing in gc.get_objects() if isinstance(thing, asyncio.Task)]
        assert "aiosfstream log-in" not in [task.get_name() for task in tasks]
    assert authenticator.access_token is None
