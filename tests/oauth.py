"""A token endpoint that answers whatever a test wants, and authenticators for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from aiosfstream import (
    AuthenticationError,
    AuthenticatorBase,
    JWTBearerAuthenticator,
    PasswordAuthenticator,
    RefreshTokenAuthenticator,
)
from tests.support import soon, until

KEY, SECRET, USER, PASSWORD = "consumer-key", "consumer-secret", "user@example.com", "p+&%=é 1"
INSTANCE = "https://MyDomainName.my.salesforce.com"
TOKEN = "00Dx0000000BV7z!AR8AQ.P0jIT_N80"
REPLY: dict[str, Any] = {
    "access_token": TOKEN,
    "instance_url": INSTANCE,
    "id": "https://login.salesforce.com/id/00Dx/005x",
    "token_type": "Bearer",
    "issued_at": "1278448384422",
    "signature": "CMJ4l+CCaPQiKjoOEwEig9H4wqhpuLSk4J2urAe+fVg=",
    "scope": "id api refresh_token",
}
LOGGED_IN = {name: REPLY[name] for name in REPLY if name != "scope"}
LOGGED_OUT = dict.fromkeys(LOGGED_IN)

Json = dict[str, Any]


def answer(
    reply: Any, status: int = 200, headers: dict[str, str] | None = None, extra: int = 0
) -> bytes:
    """Make an HTTP response; *extra* bytes are promised beyond those that come."""
    body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
    lines = {"Content-Length": str(len(body) + extra), "Connection": "close", **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} Some Reason\r\n{head}\r\n".encode() + body


def refusal(error: str, description: str = "", status: int = 400) -> bytes:
    return answer({"error": error, "error_description": description}, status)


class Endpoint:
    """A token endpoint on loopback.

    :ivar answers: the answers in their order, the last one for all further requests
    :ivar forms: the forms that were posted
    """

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers) or [answer(REPLY)]
        self.forms: list[dict[str, str]] = []
        self.heads: list[str] = []
        self.url = ""
        self.open = 0
        #: Answers are held back until it is set.
        self.gate = asyncio.Event()
        self.gate.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            sizes = [
                line for line in head.splitlines() if line.lower().startswith("content-length")
            ]
            body = await reader.readexactly(int(sizes[0].partition(":")[2]))
            self.heads.append(head)
            self.forms.append(dict(parse_qsl(body.decode(), strict_parsing=True)))
            await self.gate.wait()
            writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def endpoint(*answers: bytes) -> AsyncIterator[Endpoint]:
    """Run a token endpoint, and see that nothing is left of what used it."""
    before = asyncio.all_tasks()
    served = Endpoint(*answers)
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    served.url = f"http://127.0.0.1:{port}"
    try:
        yield served
        left = asyncio.all_tasks() - before
        names = {task.get_name() for task in left}
        assert "aiosfstream log-in" not in names, "a log-in is left behind"
    finally:
        served.gate.set()
        server.close()
        await until(lambda: not served.open)


def password(url: str | None = None, **options: Any) -> PasswordAuthenticator:
    return PasswordAuthenticator(KEY, SECRET, USER, PASSWORD, login_url=url, **options)


def refreshing(url: str | None = None, **options: Any) -> RefreshTokenAuthenticator:
    return RefreshTokenAuthenticator(KEY, SECRET, "first-token", login_url=url, **options)


def fields(authenticator: AuthenticatorBase) -> Json:
    return {name: getattr(authenticator, name) for name in LOGGED_IN}


async def failure(authenticator: AuthenticatorBase) -> AuthenticationError:
    with pytest.raises(AuthenticationError) as caught:
        await soon(authenticator.authenticate())
    return caught.value


def pem(key: Any, password: bytes | None = None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    data: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    return data


PRIVATE_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PUBLIC_PEM = PRIVATE_KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def bearer(url: str | None = None, **options: Any) -> JWTBearerAuthenticator:
    return JWTBearerAuthenticator(KEY, USER, pem(PRIVATE_KEY), login_url=url, **options)


class Mine(AuthenticatorBase):
    """What a program of its own may have written."""

    def __init__(self, outcome: Any, **options: Any) -> None:
        super().__init__(**options)
        self.outcome = outcome

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        result: tuple[int, dict[str, Any]] = self.outcome
        return result
