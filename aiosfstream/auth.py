"""OAuth flows: how a client gets its token.

Facts about the flows come from Salesforce's help pages on OAuth and from its REST API Developer Guide.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import inspect
import ipaddress
import json
import logging
import re
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import aiohttp
from aiocometd.extensions import AuthExtension
from aiocometd.typing import Headers, Payload, SSLValidationMode

from . import _http
from .exceptions import AuthenticationError

__all__ = [
    "SANDBOX_TOKEN_URL",
    "TOKEN_URL",
    "AccessTokenAuthenticator",
    "AuthenticatorBase",
    "ClientCredentialsAuthenticator",
    "JWTBearerAuthenticator",
    "PasswordAuthenticator",
    "RefreshTokenAuthenticator",
]

LOGGER = logging.getLogger(__name__)

LOGIN_URL: Final = "https://login.salesforce.com"
SANDBOX_LOGIN_URL: Final = "https://test.salesforce.com"
TOKEN_PATH: Final = "/services/oauth2/token"
AUTHORIZE_PATH: Final = "/services/oauth2/authorize"
#: Where production and Developer Edition orgs log in.
TOKEN_URL: Final = LOGIN_URL + TOKEN_PATH
#: Where sandboxes log in.
SANDBOX_TOKEN_URL: Final = SANDBOX_LOGIN_URL + TOKEN_PATH

#: Seconds for a token request.
REQUEST_TIMEOUT: Final = 30.0
#: Seconds that a JWT assertion is valid. Salesforce documents "a few minutes".
ASSERTION_LIFETIME: Final = 180
#: Seconds that a cancelled refresh may take to bring home a token that the server has rotated.
ROTATION_GRACE: Final = 5.0

_FIELDS: Final = ("access_token", "token_type", "instance_url", "id", "signature", "issued_at")
_FORM_HEADERS: Final = {
    "Content-Type": "application/x-www-form-urlencoded",
    "Accept": "application/json",
}

_LENT: ContextVar[tuple[aiohttp.ClientSession, SSLValidationMode | None] | None] = ContextVar(
    "aiosfstream_lent_session", default=None
)

#: Called with each new refresh token before the access token that came with it is used.
TokenCallback = Callable[[str], "Awaitable[None] | None"]


@contextmanager
def lend_session(session: aiohttp.ClientSession, ssl: SSLValidationMode | None) -> Iterator[None]:
    """Let token requests made in the block use a client's session, with its proxy and its TLS.

    :param session: the session
    :param ssl: how TLS is verified, as aiohttp takes it
    """
    token = _LENT.set((session, ssl))
    try:
        yield
    finally:
        _LENT.reset(token)


class AuthenticatorBase(AuthExtension):
    """Logs in, keeps the token, and puts it into every request.

    A subclass writes :meth:`_authenticate`, which makes one request to a token endpoint. The base does
    the rest: it checks the answer, lets one request be under way however many ask for it, and turns
    every failure into :exc:`~aiosfstream.AuthenticationError`.

    :param sandbox: whether to log in at test.salesforce.com
    :param json_dumps: serialises what is sent, to str or bytes
    :param json_loads: parses what is received
    :param login_url: a My Domain or Experience Cloud URL to log in at instead, with or without scheme
    :raises ValueError: if *login_url* cannot be logged in at
    """

    #: Seconds that a token request may take.
    request_timeout: float = REQUEST_TIMEOUT
    #: Seconds that the request goes on when nobody waits for it any more.
    _grace: float = 0.0

    def __init__(
        self,
        sandbox: bool = False,
        json_dumps: _http.Dumper = json.dumps,
        json_loads: _http.Loader = json.loads,
        *,
        login_url: str | None = None,
    ) -> None:
        default = SANDBOX_LOGIN_URL if sandbox else LOGIN_URL
        self._login_url = default if login_url is None else normalize_login_url(login_url)
        self._token_url = self._login_url + TOKEN_PATH
        #: Serialises what is sent.
        self.json_dumps = json_dumps
        #: Parses what is received.
        self.json_loads = json_loads
        self._reset()
        self._flight: asyncio.Task[None] | None = None
        self._waiting = 0

    def _reset(self) -> None:
        #: The access token, or None before a successful :meth:`authenticate` and after a refusal.
        self.access_token: str | None = None
        #: The kind of token, ``Bearer``.
        self.token_type: str | None = None
        #: The base URL of the org's API.
        self.instance_url: str | None = None
        #: The identity URL of the user.
        self.id: str | None = None
        #: The signature over ``id`` and ``issued_at``.
        self.signature: str | None = None
        #: When the token was issued, in milliseconds since the epoch, as text.
        self.issued_at: str | None = None

    def __repr__(self) -> str:
        """Name what identifies the user; nothing secret."""
        return f"{type(self).__name__}(login_url={self._login_url!r})"

    @abstractmethod
    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        """Make one request to the token endpoint.

        :return: the HTTP status and the parsed answer
        """

    @property
    def authorization(self) -> str | None:
        """The value of the ``Authorization`` header, or None without a token."""
        if self.access_token is None:
            return None
        return f"{self.token_type} {self.access_token}"

    async def outgoing(self, payload: Payload, headers: Headers) -> None:
        """Put the token into a request's *headers*.

        :raises AuthenticationError: if there is none
        """
        authorization = self.authorization
        if authorization is None:
            raise AuthenticationError(
                "Unauthorized: send no requests without authenticating first."
            )
        headers["Authorization"] = authorization

    async def incoming(self, payload: Payload, headers: Headers | None = None) -> None:
        """Do nothing."""

    async def reauthenticate(self, refused: str | None) -> None:
        """Get a token in place of a refused one, unless somebody else has done so already.

        :param refused: the ``Authorization`` header that was refused
        :raises AuthenticationError: as :meth:`authenticate`
        """
        if self.authorization in (None, refused):
            await self.authenticate()

    async def authenticate(self) -> None:
        """Get a token.

        One request at a time: who calls it while one is under way waits for that one. If the caller
        is cancelled, the others are not.

        :raises AuthenticationError: if the credentials are refused (the token is forgotten then), or
            if the token endpoint cannot be reached or understood; see its attributes
        """
        loop = asyncio.get_running_loop()
        task = self._flight
        if task is None or task.done() or task.get_loop() is not loop:
            task = self._flight = loop.create_task(self._log_in(), name="aiosfstream log-in")
            self._waiting = 0
        self._waiting += 1
        try:
            await asyncio.wait([task])
        finally:
            self._waiting -= 1
            if not task.done() and not self._waiting:
                await self._give_up(task)
        if task.cancelled():
            raise AuthenticationError("The token request was cancelled.", retryable=True)
        task.result()

    async def _give_up(self, task: asyncio.Task[None]) -> None:
        """End a request that nobody waits for, and be sure that it has ended."""
        if self._grace:
            await _wait_uninterrupted(task, self._grace)
        task.cancel()
        await _wait_uninterrupted(task, self.request_timeout)
        if not task.cancelled() and task.done():
            task.exception()

    async def _log_in(self) -> None:
        try:
            status, reply = await self._authenticate()
            reply = dict(reply)
        except AuthenticationError:
            raise
        except Exception as error:
            raise AuthenticationError(
                f"Network request failed: the token endpoint {self._token_url} could not be asked:"
                f" {self._clean(str(error) or type(error).__name__)}",
                retryable=True,
            ) from error
        if status == 200:
            await self._accept(reply)
        else:
            self._reset()
            raise self._refusal(status, reply)

    async def _accept(self, reply: dict[str, Any]) -> None:
        fields = {name: value for name in _FIELDS if isinstance(value := reply.get(name), str)}
        token, instance_url = fields.get("access_token", ""), fields.get("instance_url", "")
        if not token or not instance_url:
            raise self._nonsense("its answer has no access_token or no instance_url")
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise self._nonsense("the access token has characters that no header may have")
        if not re.fullmatch(r"[A-Za-z-]+", fields.setdefault("token_type", "Bearer")):
            raise self._nonsense("its token_type is no word")
        if not is_secure(instance_url):
            raise self._nonsense(f"its instance_url {instance_url!r:.200} is not an https URL")
        await self._verify(reply)
        await self._keep(reply)
        self._reset()
        for name, value in fields.items():
            setattr(self, name, value)

    async def _verify(self, reply: dict[str, Any]) -> None:
        """Check what else a flow can check of an answer."""

    async def _keep(self, reply: dict[str, Any]) -> None:
        """Keep what else a flow gets, before the access token is used."""

    def _nonsense(self, what: str) -> AuthenticationError:
        return AuthenticationError(
            f"Network request failed: the token endpoint {self._token_url} is not understood: {what}",
            status=200,
            retryable=True,
        )

    def _refusal(self, status: int, reply: dict[str, Any]) -> AuthenticationError:
        error, description = (
            self._clean(value) if isinstance(value := reply.get(name), str) else None
            for name in ("error", "error_description")
        )
        said = ": ".join(text for text in (error, description) if text) or f"HTTP status {status}"
        advice, retryable = advise(error or "", description or "", status)
        return AuthenticationError(
            f"Authentication failed at {self._token_url}: {said}. {advice}".rstrip(),
            error=error,
            error_description=description,
            status=status,
            retryable=retryable,
        )

    def _secrets(self) -> tuple[str, ...]:
        """Give what must not be quoted, whatever a server echoes."""
        return ()

    def _clean(self, text: str) -> str:
        for secret in (*self._secrets(), self.access_token or ""):
            if len(secret) > 3:
                text = text.replace(secret, "...")
        return text[:500]

    async def _post(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """Post a form to the token endpoint, with the client's session or one of its own.

        :param form: the fields
        :return: the HTTP status and the parsed answer
        :raises AuthenticationError: if there is no answer, or none that is understood
        """
        lent = _LENT.get()
        if lent is not None:
            return await self._post_with(lent[0], lent[1], form)
        async with aiohttp.ClientSession() as session:
            return await self._post_with(session, None, form)

    async def _post_with(
        self, session: aiohttp.ClientSession, ssl: SSLValidationMode | None, form: dict[str, str]
    ) -> tuple[int, dict[str, Any]]:
        answer = await _http.post(
            session,
            self._token_url,
            urlencode(form).encode(),
            _FORM_HEADERS,
            timeout=aiohttp.ClientTimeout(total=self.request_timeout),
            ssl=ssl,
        )
        if isinstance(answer, _http.Failure):
            raise AuthenticationError(
                f"Network request failed: {self._clean(str(answer.error))}", retryable=True
            ) from answer.error
        try:
            reply = _http.parse_json(answer.body, self.json_loads)
        except ValueError:
            reply = None
        if not isinstance(reply, dict) or answer.status >= 500 or answer.status == 429:
            raise AuthenticationError(
                f"Network request failed: {self._token_url} answered with HTTP status {answer.status} and"
                f" {'an error' if isinstance(reply, dict) else 'no JSON object'}",
                status=answer.status,
                # A redirect or a missing page is a wrong URL; anything else may pass.
                retryable=not 300 <= answer.status < 500 or answer.status in (408, 429),
            )
        return answer.status, reply


class SecretMixin(AuthenticatorBase):
    """What the flows with a consumer key and secret share.

    :param consumer_key: the consumer key
    :param consumer_secret: the consumer secret
    :param verify_signature: whether the answer's signature is checked
    """

    def __init__(
        self,
        consumer_key: str,
        consumer_secret: str,
        sandbox: bool = False,
        json_dumps: _http.Dumper = json.dumps,
        json_loads: _http.Loader = json.loads,
        *,
        login_url: str | None = None,
        verify_signature: bool = False,
    ) -> None:
        super().__init__(sandbox, json_dumps, json_loads, login_url=login_url)
        #: The consumer key.
        self.client_id = consumer_key
        #: The consumer secret.
        self.client_secret = consumer_secret
        self._verify_signature = verify_signature

    def __repr__(self) -> str:
        """Name the consumer key; nothing secret."""
        return (
            f"{type(self).__name__}(consumer_key={self.client_id!r}, login_url={self._login_url!r})"
        )

    def _secrets(self) -> tuple[str, ...]:
        return (self.client_secret,)

    async def _verify(self, reply: dict[str, Any]) -> None:
        if not self._verify_signature:
            return
        message = f"{reply.get('id')}{reply.get('issued_at')}".encode()
        digest = hmac.new(self.client_secret.encode(), message, hashlib.sha256).digest()
        expected = base64.b64encode(digest)
        if not hmac.compare_digest(expected, str(reply.get("signature")).encode()):
            raise AuthenticationError(
                "Authentication failed: the signature of the token endpoint's answer does not fit the"
                " consumer secret, so the answer may have been changed on the way. If the secret is being"
                " rotated, try its new value.",
                status=200,
            )


class PasswordAuthenticator(SecretMixin):
    """The OAuth 2.0 username-password flow.

    Orgs created in Summer '23 or later block it by default, and it is announced to end: use another
    one where you can.

    :param consumer_key: the consumer key of the connected app
    :param consumer_secret: its consumer secret
    :param username: the user
    :param password: the password, with the security token behind it where one is needed
    :param sandbox: whether to log in at test.salesforce.com
    :param json_dumps: serialises what is sent
    :param json_loads: parses what is received
    :param login_url: a My Domain URL to log in at instead
    :param verify_signature: whether the answer's signature is checked
    :raises ValueError: if *login_url* cannot be logged in at
    """

    def __init__(
        self,
        consumer_key: str,
        consumer_secret: str,
        username: str,
        password: str,
        sandbox: bool = False,
        json_dumps: _http.Dumper = json.dumps,
        json_loads: _http.Loader = json.loads,
        *,
        login_url: str | None = None,
        verify_signature: bool = False,
    ) -> None:
        super().__init__(
            consumer_key,
            consumer_secret,
            sandbox,
            json_dumps,
            json_loads,
            login_url=login_url,
            verify_signature=verify_signature,
        )
        #: The user.
        self.username = username
        #: The password.
        self.password = password

    def __repr__(self) -> str:
        """Name the consumer key and the user; nothing secret."""
        return (
            f"{type(self).__name__}(consumer_key={self.client_id!r}, username={self.username!r},"
            f" login_url={self._login_url!r})"
        )

    def _secrets(self) -> tuple[str, ...]:
        return (*super()._secrets(), self.password)

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        return await self._post(
            {
                "grant_type": "password",
                "client_id": self.client_id,
                "client_secret": self.client_secret,
                "username": self.username,
                "password": self.password,
            }
        )


class RefreshTokenAuthenticator(SecretMixin):
    """The OAuth 2.0 refresh token flow.

    With refresh token rotation the server gives a new refresh token each time and the old one is dead
    at once. The new one takes its place here, and is handed to *on_token_refreshed* before the access
    token is used: store it there. A request that is cancelled is given a few seconds to bring it home.

    :param consumer_key: the consumer key of the app
    :param consumer_secret: its consumer secret
    :param refresh_token: the refresh token
    :param sandbox: whether to log in at test.salesforce.com
    :param json_dumps: serialises what is sent
    :param json_loads: parses what is received
    :param login_url: a My Domain or Experience Cloud URL to log in at instead
    :param on_token_refreshed: called with each new refresh token; plain or async
    :param verify_signature: whether the answer's signature is checked
    :raises ValueError: if *login_url* cannot be logged in at
    """

    _grace = ROTATION_GRACE

    def __init__(
        self,
        consumer_key: str,
        consumer_secret: str,
        refresh_token: str,
        sandbox: bool = False,
        json_dumps: _http.Dumper = json.dumps,
        json_loads: _http.Loader = json.loads,
        *,
        login_url: str | None = None,
        on_token_refreshed: TokenCallback | None = None,
        verify_signature: bool = False,
    ) -> None:
        super().__init__(
            consumer_key,
            consumer_secret,
            sandbox,
            json_dumps,
            json_loads,
            login_url=login_url,
            verify_signature=verify_signature,
        )
        #: The refresh token; the newest one, where they rotate.
        self.refresh_token = refresh_token
        self._on_token_refreshed = on_token_refreshed

    def _secrets(self) -> tuple[str, ...]:
        return (*super()._secrets(), self.refresh_token)

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        form = {
            "grant_type": "refresh_token",
            "client_id": self.client_id,
            "refresh_token": self.refresh_token,
        }
        if self.client_secret:
            form["client_secret"] = self.client_secret
        return await self._post(form)

    async def _keep(self, reply: dict[str, Any]) -> None:
        token = reply.get("refresh_token")
        if not isinstance(token, str) or not token or token == self.refresh_token:
            return
        self.refresh_token = token
        if self._on_token_refreshed is None:
            return
        try:
            outcome = self._on_token_refreshed(token)
            if inspect.isawaitable(outcome):
                await outcome
        except Exception as error:
            raise AuthenticationError(
                "Authentication failed: on_token_refreshed could not store the new refresh token"
                f" ({type(error).__name__}); it is kept in memory, and the old one is not valid any more",
                retryable=True,
            ) from error


class ClientCredentialsAuthenticator(SecretMixin):
    """The OAuth 2.0 client credentials flow, for an app with an execution ("Run As") user.

    :param consumer_key: the consumer key of the app
    :param consumer_secret: its consumer secret
    :param login_url: the org's My Domain URL; this flow works nowhere else
    :param json_dumps: serialises what is sent
    :param json_loads: parses what is received
    :param verify_signature: whether the answer's signature is checked
    :raises ValueError: if *login_url* cannot be logged in at
    """

    def __init__(
        self,
        consumer_key: str,
        consumer_secret: str,
        *,
        login_url: str,
        json_dumps: _http.Dumper = json.dumps,
        json_loads: _http.Loader = json.loads,
        verify_signature: bool = False,
    ) -> None:
        super().__init__(
            consumer_key,
            consumer_secret,
            False,
            json_dumps,
            json_loads,
            login_url=login_url,
            verify_signature=verify_signature,
        )

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        return await self._post(
            {
                "grant_type": "client_credentials",
                "client_id": self.client_id,
                "client_secret": self.client_secret,
            }
        )


class JWTBearerAuthenticator(AuthenticatorBase):
    """The OAuth 2.0 JWT bearer flow: server to server, with a certificate instead of a secret.

    :param consumer_key: the consumer key of the app that the certificate was uploaded to
    :param username: the user, who must be pre-authorized for the app
    :param private_key: the RSA private key, PEM
    :param sandbox: whether to log in at test.salesforce.com
    :param json_dumps: serialises what is sent
    :param json_loads: parses what is received
    :param login_url: a My Domain or Experience Cloud URL to log in at instead
    :param audience: the assertion's ``aud``; None: the right one for the login URL
    :raises ImportError: if PyJWT is not installed
    :raises ValueError: if *private_key* or *login_url* cannot be used
    """

    def __init__(
        self,
        consumer_key: str,
        username: str,
        private_key: str | bytes,
        sandbox: bool = False,
        json_dumps: _http.Dumper = json.dumps,
        json_loads: _http.Loader = json.loads,
        *,
        login_url: str | None = None,
        audience: str | None = None,
    ) -> None:
        super().__init__(sandbox, json_dumps, json_loads, login_url=login_url)
        #: The consumer key.
        self.client_id = consumer_key
        #: The user.
        self.username = username
        self._audience = audience or audience_of(self._login_url)
        self._key = _load_private_key(private_key)

    def __repr__(self) -> str:
        """Name the consumer key and the user; nothing secret."""
        return (
            f"{type(self).__name__}(consumer_key={self.client_id!r}, username={self.username!r},"
            f" login_url={self._login_url!r})"
        )

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        import jwt

        claims = {
            "iss": self.client_id,
            "sub": self.username,
            "aud": self._audience,
            "exp": int(time.time()) + ASSERTION_LIFETIME,
        }
        return await self._post(
            {
                "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
                "assertion": jwt.encode(claims, self._key, algorithm="RS256"),
            }
        )


class AccessTokenAuthenticator(AuthenticatorBase):
    """A token that was obtained elsewhere: from a secret manager, the Salesforce CLI, another service.

    :param instance_url: the base URL of the org's API
    :param access_token: the token, or an async callable that gives it, which is called again when the
        token is refused
    :raises ValueError: if *instance_url* is not https
    """

    def __init__(self, instance_url: str, access_token: str | Callable[[], Awaitable[str]]) -> None:
        super().__init__(login_url=instance_url)
        self._source = access_token

    def __repr__(self) -> str:
        """Name the instance; nothing secret."""
        return f"{type(self).__name__}(instance_url={self._login_url!r})"

    def _secrets(self) -> tuple[str, ...]:
        return (self._source,) if isinstance(self._source, str) else ()

    async def reauthenticate(self, refused: str | None) -> None:
        """Ask for another token.

        :raises AuthenticationError: if the token is fixed, or the callable fails
        """
        if isinstance(self._source, str) and self.authorization in (None, refused):
            raise AuthenticationError(
                "Authentication failed: the access token was refused, and a fixed token cannot be renewed;"
                " open a client with a new one, or give AccessTokenAuthenticator an async callable"
            )
        await super().reauthenticate(refused)

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        token: Any = self._source
        if not isinstance(token, str):
            try:
                token = await token()
            except Exception as error:
                raise AuthenticationError(
                    "Network request failed: the callable that should give an access token raised"
                    f" {type(error).__name__}",
                    retryable=True,
                ) from error
        return 200, {"access_token": token, "instance_url": self._login_url}


def normalize_login_url(url: str) -> str:
    """Give the base of the OAuth endpoints for what a user calls their login URL.

    :param url: a host or URL, with or without scheme, path and trailing slash
    :return: scheme, host and path without a slash at the end
    :raises ValueError: if it cannot be logged in at
    """
    text = url.strip() if isinstance(url, str) else ""
    if not text:
        raise ValueError(
            "login_url should be a URL such as 'https://MyDomainName.my.salesforce.com'"
        )
    parts = urlsplit(text if "://" in text else f"https://{text}")
    host = (parts.hostname or "").lower()
    if not host or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(
            f"login_url should be a host with nothing but a path behind it, not {url!r:.200}"
        )
    if not is_secure(parts.geturl()):
        raise ValueError(
            f"login_url should be an https URL, since a password goes there: {url!r:.200}"
        )
    better = _my_domain_of(host)
    if better is not None:
        raise ValueError(
            f"{host} is a host of the user interface, nobody can log in there: use {better}"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.removesuffix(TOKEN_PATH).rstrip('/')}"


def _my_domain_of(host: str) -> str | None:
    """Give the host to use instead of one of the user interface."""
    for suffix in (".lightning.force.com", ".my.salesforce-setup.com", ".salesforce-setup.com"):
        if host.endswith(suffix):
            return host.removesuffix(suffix) + ".my.salesforce.com"
    return None


def is_secure(url: str) -> bool:
    """Say whether a token or password may be sent to *url*: https, or this machine.

    :param url: a URL
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme == "https":
        return bool(host)
    return parts.scheme == "http" and is_loopback(host)


def is_loopback(host: str) -> bool:
    """Say whether *host* is this machine.

    :param host: a host name or address
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def audience_of(login_url: str) -> str:
    """Give the audience of a JWT assertion.

    A My Domain URL is not documented as one: production and sandbox hosts stand for it. An Experience
    Cloud site is its own audience.

    :param login_url: a normalized login URL
    :return: the ``aud`` claim
    """
    host = urlsplit(login_url).hostname or ""
    if host.endswith((".my.site.com", ".force.com")):
        return login_url
    if host == "test.salesforce.com" or ".sandbox.my." in host:
        return SANDBOX_LOGIN_URL
    return LOGIN_URL


_TEMPORARY: Final = {
    "rate_limit_exceeded": "Too many log-ins; wait, up to an hour.",
    "server_error": "Salesforce has a problem; try again later.",
    "service_unavailable": "Salesforce is not available; try again later.",
    "system_down": "Salesforce is down; try again later.",
    "slow_down": "Too many requests; try again later.",
    "unknown_error": "Salesforce does not say why; try again later.",
}

#: What to do, by what the token endpoint says; the first that fits.
_ADVICE: Final = (
    (
        r"authentication failure",
        "Check the username, and the password with the security token behind it. Orgs created in Summer '23"
        " or later block the username-password flow: allow it in Setup > OAuth and OpenID Connect Settings,"
        " or use another flow. The user's Login History shows the true reason.",
    ),
    (
        r"expired access/refresh token",
        "The refresh token has expired, was revoked or was rotated; a person must authorize the app again.",
    ),
    (
        r"user hasn.t approved this consumer",
        'Pre-authorize the user: set the app\'s policy to "Admin approved users are pre-authorized" and add'
        " the user's profile or permission set.",
    ),
    (
        r"audience",
        "The assertion's audience should be https://login.salesforce.com, https://test.salesforce.com for a"
        " sandbox, or the Experience Cloud site's URL: check sandbox, login_url and audience.",
    ),
    (
        r"expired authorization code",
        "The assertion had expired when it arrived: check this machine's clock.",
    ),
    (
        r"invalid assertion",
        "Check that the private key belongs to the certificate that was uploaded to the app.",
    ),
    (
        r"not supported on this domain",
        "This flow needs the org's My Domain: give login_url='https://MyDomainName.my.salesforce.com'.",
    ),
    (
        r"no client credentials user",
        'Choose an execution user ("Run As") for the client credentials flow in the app\'s policies.',
    ),
)

_ADVICE_BY_CODE: Final = {
    "invalid_client_id": "Check the consumer key; that of a new app can take ten minutes to be known.",
    "invalid_client": "Check the consumer secret.",
    "invalid_request": "The request was not understood; check login_url.",
    "unsupported_grant_type": "This login URL does not offer the flow.",
    "oauth_flow_disabled": "Enable the flow in the app or in Setup > OAuth and OpenID Connect Settings.",
    "invalid_app_access": "Give the user access to the app.",
    "app_blocked": "An administrator has blocked the app; unblock it.",
    "app_not_found": "The app is not installed in this org.",
    "oauth_policy_not_found": "The app has no OAuth policy in this org; install it.",
    "invalid_scope": 'The app lacks the scope "api".',
    "inactive_user": "The user is deactivated.",
    "inactive_org": "The org is locked, closed or suspended; contact Salesforce.",
}


def advise(error: str, description: str, status: int) -> tuple[str, bool]:
    """Say what to do about a refusal, and whether trying again later can help.

    :param error: the token endpoint's error code
    :param description: its explanation
    :param status: the HTTP status
    :return: a sentence, which may be empty, and whether the same request may succeed later
    """
    if error in _TEMPORARY:
        return _TEMPORARY[error], True
    if re.search(r"\brate\b", f"{error} {description}", re.I):
        return _TEMPORARY["rate_limit_exceeded"], True
    for pattern, advice in _ADVICE:
        if re.search(pattern, description, re.I):
            return advice, False
    return _ADVICE_BY_CODE.get(error, ""), status >= 500 or status in (408, 429)


def _load_private_key(private_key: str | bytes) -> Any:
    try:
        from jwt.algorithms import RSAAlgorithm
    except ImportError as error:
        raise ImportError(
            "JWTBearerAuthenticator needs PyJWT with cryptography: pip install 'aiosfstream[jwt]'"
        ) from error
    try:
        return RSAAlgorithm(RSAAlgorithm.SHA256).prepare_key(private_key)
    except Exception:
        # Not chained: the cause might quote the key.
        raise ValueError(
            "private_key should be an RSA private key in PEM format, without a passphrase"
        ) from None


async def _wait_uninterrupted(task: asyncio.Task[None], timeout: float) -> None:
    """Wait for *task*, also while the calling task is cancelled once more."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    cancelled = False
    while not task.done() and (left := deadline - loop.time()) > 0:
        try:
            await asyncio.wait([task], timeout=left)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
