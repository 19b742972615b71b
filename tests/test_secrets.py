"""No password, secret, token or key in a representation, a log record or an exception."""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

import aiosfstream
from aiosfstream import (
    AccessTokenAuthenticator,
    AiosfstreamException,
    AuthenticatorBase,
    ClientCredentialsAuthenticator,
    JWTBearerAuthenticator,
    PasswordAuthenticator,
    RefreshTokenAuthenticator,
    ReplayOption,
)
from aiosfstream.testing import Garble, OAuthError, RevokeTokens, Status, StreamingServer
from tests.support import EVENT, FastAuthClient, receive

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PRIVATE = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
PUBLIC = KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
FLOWS = ["password", "refresh", "client credentials", "jwt", "access token"]


def make(flow: str, server: StreamingServer) -> AuthenticatorBase:
    """Make an authenticator for *server*."""
    url, oauth = server.url, server.oauth
    key, secret = oauth.consumer_key, oauth.consumer_secret
    if flow == "password":
        return PasswordAuthenticator(key, secret, oauth.username, oauth.password, login_url=url)
    if flow == "refresh":
        return RefreshTokenAuthenticator(key, secret, oauth.refresh_token, login_url=url)
    if flow == "client credentials":
        return ClientCredentialsAuthenticator(key, secret, login_url=url)
    if flow == "jwt":
        return JWTBearerAuthenticator(key, oauth.username, PRIVATE, login_url=url)

    async def token() -> str:
        return server.new_access_token()

    return AccessTokenAuthenticator(url, token)


def secrets_of(flow: str, server: StreamingServer) -> list[str]:
    """Give everything that the flow knows and nobody may see."""
    oauth = server.oauth
    return {
        "password": [oauth.consumer_secret, oauth.password],
        "refresh": [oauth.consumer_secret, oauth.refresh_token],
        "client credentials": [oauth.consumer_secret],
        "jwt": [PRIVATE.splitlines()[3]],
        "access token": [],
    }[flow]


@pytest.mark.parametrize("flow", FLOWS)
async def test_nothing_secret_comes_out(flow: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []
    issued: set[str] = set()
    async with StreamingServer(jwt_public_key=PUBLIC) as server:
        oauth = server.oauth
        remembered = oauth.issue

        def issue() -> str:
            issued.add(token := remembered())
            return token

        oauth.issue = issue  # type: ignore[method-assign]
        # A private key is never sent, so no server can send it back.
        sent = [] if flow == "jwt" else secrets_of(flow, server)
        echo = "you sent " + " ".join(sent)
        troubles: list[Any] = [
            (OAuthError("invalid_grant", echo), "token"),
            (Status(500, echo), "token"),
            (Status(200, echo), "token"),
            (Status(404, echo), "token"),
            (Garble(echo.encode()), "token"),
            (Status(404, "token"), "/meta/handshake"),
            (Status(400, "token"), "/meta/connect"),
        ]
        for fault, on in troubles:
            server.add_fault(fault, on=on)
            client = FastAuthClient(make(flow, server))
            try:
                await client.open()
            except AiosfstreamException as error:
                texts += ["".join(traceback.format_exception(error)), repr(error), str(error.args)]
                texts.append(str(vars(error)))
            else:
                await client.close()
            server.clear_faults()
            texts += [repr(client), repr(client.auth)]
        client = FastAuthClient(make(flow, server), replay=ReplayOption.ALL_EVENTS)
        async with client:
            await client.subscribe(EVENT)
            wanted = [server.publish(EVENT)]
            assert await receive(client) == wanted
            texts += [repr(client), repr(client.auth), str(client.auth)]
            server.add_fault(RevokeTokens(), on="/meta/connect")
            wanted = [server.publish(EVENT), server.publish(EVENT)]
            assert await receive(client, 2) == wanted
            for task in asyncio.all_tasks():
                texts.append(repr(task))
        records = [
            record
            for record in caplog.records
            if record.name.startswith(("aiosfstream", "aiocometd"))
        ]
        assert records
        texts += [record.getMessage() for record in records]
        texts += [str(record.__dict__) for record in records]
        everything = "\n".join(texts)
        for secret in (*secrets_of(flow, server), *issued):
            assert secret not in everything
        assert issued or flow == "access token"


def test_short_secrets_are_not_shown_either() -> None:
    authenticator = PasswordAuthenticator("thekey", "s3", "me", "p4")
    assert "s3" not in repr(authenticator)
    assert "p4" not in repr(authenticator)
    assert "thekey" in repr(authenticator)
    assert aiosfstream.__version__
