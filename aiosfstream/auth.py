"""OAuth flows: how a client gets its token.

Facts about the flows come from Salesforce's help pages on OAuth and from its REST API Developer Guide.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final
from urllib.parse import quote, quote_plus, urlencode

import aiohttp
from aiocometd.extensions import AuthExtension
from aiocometd.typing import Headers, Payload, SSLValidationMode

from ._http import post as _http
from ._http.deadline import Limits
from ._oauth.advice import advise
from ._oauth.answers import clock_lag, is_expired, is_signed
from ._oauth.flight import in_time, retrieve, wait_patiently
from ._oauth.keys import load_private_key
from ._oauth.urls import (
    LOGIN_URL,
    SANDBOX_LOGIN_URL,
    TOKEN_PATH,
    audience_of,
    host_of,
    is_base_url,
    is_secure,
    normalize_login_url,
)
from .exceptions import AuthenticationError, TransportError

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

#: Where production and Developer Edition orgs log in.
TOKEN_URL: Final = LOGIN_URL + TOKEN_PATH
#: Where sandboxes log in.
SANDBOX_TOKEN_URL: Final = SANDBOX_LOGIN_URL + TOKEN_PATH

#: Seconds for a token request.
REQUEST_TIMEOUT: Final = 30.0
#: Seconds that a JWT assertion is valid. Salesforce documents "a few minutes".
ASSERTION_LIFETIME: Final = 180
#: Seconds that a log-in goes on for the sake of others, or of a rotated token, once its caller is
#: cancelled; and seconds that code which resists its cancellation is waited for.
GRACE: Final = 3.0
#: Seconds by which this machine's clock may be wrong without a word about it.
CLOCK_TOLERANCE: Final = 5.0

_TOKEN: Final = re.compile(r"[!-~]([ -~]*[!-~])?")
_TOKEN_TYPE: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_FIELDS: Final = ("access_token", "token_type", "instance_url", "id", "signature", "issued_at")
_ERROR_FIELDS: Final = ("error", "error_description")
_FORM_HEADERS: Final = {
    "Content-Type": "application/x-www-form-urlencoded",
    "Accept": "application/json",
}
#: What a subclass that makes its own request may raise because of the network or the answer.
_NETWORK_ERRORS: Final = (
    aiohttp.ClientError,
    asyncio.TimeoutError,
    OSError,
    TransportError,
    ValueError,
)
#: Statuses that say that there is no token endpoint at the URL.
_WRONG_URL: Final = (404, 405, 410)

_LENT: ContextVar[tuple[aiohttp.ClientSession, SSLValidationMode | None] | None] = ContextVar(
    "aiosfstream_lent_session", default=None
)

#: Called with each new refresh token before the access token that came with it is used.
TokenCallback = Callable[[str], "Awaitable[None] | None"]
#: Gives an access token.
TokenSource = Callable[[], "Awaitable[str] | str"]


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


class _Flight:
    """A log-in under way.

    :ivar task: what logs in
    :ivar followers: how many callers wait for it besides the one who began it
    """

    __slots__ = ("followers", "task")

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self.followers = 0


class AuthenticatorBase(AuthExtension):
    """Logs in, keeps the token, and puts it into every request.

    A subclass writes :meth:`_authenticate`, which asks a token endpoint. The base does the rest: it
    checks the answer, lets one log-in be under way however many ask for it, and turns every failure
    into :exc:`~aiosfstream.AuthenticationError`.

    An authenticator may be shared by several clients, and be used in one event loop after another.

    :param sandbox: whether to log in at test.salesforce.com
    :param json_dumps: serialises what is sent, to str or bytes
    :param json_loads: parses what is received, from str (or bytes, if it is orjson's)
    :param login_url: a My Domain or Experience Cloud URL to log in at instead, with or without scheme
    :raises ValueError: if *login_url* cannot be logged in at
    """

    #: Seconds that a log-in may take.
    request_timeout: float = REQUEST_TIMEOUT
    #: Whether a log-in that nobody waits for any more is finished rather than ended.
    _finish_when_cancelled: bool = False
    #: How many seconds the token endpoint's clock is ahead of ours, if it has said so.
    _clock_lag: float | None = None
    # No asyncio object outlives a log-in, so the authenticator belongs to no event loop.
    _flight: _Flight | None = None

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
        """Ask the token endpoint.

        The one method that a subclass writes. What it raises becomes an
        :exc:`~aiosfstream.AuthenticationError`: retryable if it is an error of the network, of time
        or of parsing; it may raise one of its own as well, which is passed on.

        :return: the HTTP status and the parsed answer
        """

    @property
    def authorization(self) -> str | None:
        """The value of the ``Authorization`` header, or None without a token."""
        if self.access_token is None:
            return None
        return f"{self.token_type or 'Bearer'} {self.access_token}"

    async def outgoing(self, payload: Payload, headers: Headers) -> None:
        """Put the token into a request's *headers*.

        :raises AuthenticationError: if there is none
        """
        authorization = self.authorization
        if authorization is None:
            raise AuthenticationError(
                f"Unauthorized: there is no access token of {self._login_url}. Send no requests without"
                " authenticating first."
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

        One log-in at a time: who calls this while one is under way waits for that one. A caller that
        is cancelled takes none of the others along, and leaves nothing running behind it.

        :raises AuthenticationError: if the credentials are refused: the token is forgotten then. If
            the token endpoint cannot be reached or understood, or asks to come back later: that says
            nothing about the token, which stays. Its attributes tell them apart
        """
        if self._waits_for_nothing():
            await self._log_in()
            return
        loop = asyncio.get_running_loop()
        while (flight := self._flight) is not None and not flight.task.done():
            if flight.task.get_loop() is not loop:
                break
            flight.followers += 1
            try:
                await asyncio.wait({flight.task})
            finally:
                flight.followers -= 1
            if not flight.task.cancelled():
                flight.task.result()
                return
        await self._lead(loop)

    def _waits_for_nothing(self) -> bool:
        """Say whether a log-in asks nobody, so that it need not be shared, nor limited in time."""
        return False

    async def _lead(self, loop: asyncio.AbstractEventLoop) -> None:
        """Log in, for those as well who ask for it meanwhile.

        The log-in has a task of its own, since it may have to survive the cancellation of the caller;
        the caller stays until it has ended, since it may use the session that the caller lends.
        """
        task = loop.create_task(self._log_in(), name="aiosfstream log-in")
        task.add_done_callback(retrieve)
        flight = self._flight = _Flight(task)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            if self._finish_when_cancelled or flight.followers:
                await wait_patiently(task, GRACE)
            raise
        finally:
            if not task.done():
                task.cancel()
                await wait_patiently(task, GRACE)
            if self._flight is flight:
                self._flight = None
        if task.cancelled():
            raise self._unreachable(f"the log-in at {self._token_url} was cancelled; try again")
        task.result()

    async def _log_in(self) -> None:
        try:
            asking = self._authenticate()
            if not self._waits_for_nothing():
                asking = in_time(asking, self.request_timeout)
            outcome: Any = await asking
        except AuthenticationError:
            raise
        except Exception as error:
            raise self._failure(error) from error
        status, reply = self._checked(outcome)
        if status == 200:
            await self._accept(reply)
            return
        refusal = self._refusal(status, reply)
        if not refusal.retryable:
            self._reset()
        raise refusal

    def _failure(self, error: Exception) -> AuthenticationError:
        if isinstance(error, asyncio.TimeoutError):
            return self._unreachable(
                f"no answer of {self._token_url} within {self.request_timeout:g} seconds; try again later"
            )
        if isinstance(error, _NETWORK_ERRORS):
            return self._unreachable(
                f"{self._token_url} could not be asked: {str(error) or type(error).__name__}; try again later"
            )
        return AuthenticationError(
            f"Authentication failed: {type(self).__name__}._authenticate() raised"
            f" {type(error).__name__}, see the cause"
        )

    def _checked(self, outcome: Any) -> tuple[int, dict[str, Any]]:
        """Check the types of what ``_authenticate()`` has returned."""
        if not isinstance(outcome, tuple) or len(outcome) != 2 or not isinstance(outcome[0], int):
            raise AuthenticationError(
                f"Authentication failed: {type(self).__name__}._authenticate() should return an HTTP"
                f" status and a dict, not {type(outcome).__name__!r}"
            )
        status, reply = outcome
        if not isinstance(reply, Mapping):
            raise self._unreachable(
                f"the answer of {self._token_url}, with HTTP status {status:d}, is no JSON object; check"
                " login_url",
                status=status,
            )
        return status, dict(reply)

    async def _accept(self, reply: dict[str, Any]) -> None:
        # First of all: the answer may be of no use otherwise, but what it rotated is gone.
        await self._keep(reply)
        fields = {name: value for name in _FIELDS if isinstance(value := reply.get(name), str)}
        token, instance_url = fields.get("access_token"), fields.get("instance_url")
        if not token or not instance_url:
            raise self._unreachable(
                f"the answer of {self._token_url} has no access_token or no instance_url; check login_url",
                status=200,
            )
        fields["token_type"] = fields.get("token_type") or "Bearer"
        if not _is_header_safe(token):
            raise self._useless(
                "its access token has characters that no header may have; check login_url"
            )
        if not _TOKEN_TYPE.fullmatch(fields["token_type"]):
            raise self._useless("its token_type is no word; check login_url")
        if not is_base_url(instance_url):
            raise self._useless("its instance_url is not the https URL of a host; check login_url")
        self._verify(reply)
        self._reset()
        for name, value in fields.items():
            setattr(self, name, value)

    def _verify(self, reply: dict[str, Any]) -> None:
        """Check what else a flow can check of an answer."""

    async def _keep(self, reply: dict[str, Any]) -> None:
        """Keep what else a flow gets, before the access token is used."""

    def _unreachable(
        self,
        what: str,
        *,
        status: int | None = None,
        error: str | None = None,
        description: str | None = None,
        retryable: bool = True,
    ) -> AuthenticationError:
        return AuthenticationError(
            f"Network request failed: {self._clean(what)}",
            error=error,
            error_description=description,
            status=status,
            retryable=retryable,
        )

    def _useless(self, what: str) -> AuthenticationError:
        return AuthenticationError(
            f"Authentication failed: the answer of {self._token_url} cannot be used: {what}",
            status=200,
        )

    def _refusal(self, status: int, reply: dict[str, Any]) -> AuthenticationError:
        raw_error, raw_description = (
            value if isinstance(value := reply.get(name), str) else "" for name in _ERROR_FIELDS
        )
        error, description = self._clean(raw_error) or None, self._clean(raw_description) or None
        said = ": ".join(text for text in (error, description) if text) or "it does not say why"
        if status >= 500 or status == 408:
            return self._unreachable(
                f"{self._token_url} answered with HTTP status {status:d}: {said.rstrip('.')}. Try again later.",
                status=status,
                error=error,
                description=description,
            )
        advice, retryable = advise(raw_error, raw_description, status)
        return AuthenticationError(
            f"Authentication failed: {self._token_url} answered with HTTP status {status:d}:"
            f" {said.rstrip('.')}. {advice}",
            error=error,
            error_description=description,
            status=status,
            retryable=retryable,
        )

    def _secrets(self) -> tuple[str, ...]:
        """Give what must not be quoted, whatever a server echoes."""
        return ()

    def _clean(self, text: str) -> str:
        """Make a text that came from elsewhere fit for a log: one line, of bounded length, no secret."""
        secrets = {secret for secret in (self.access_token, *self._secrets()) if secret}
        forms = secrets.union(
            encode(secret, errors="replace") for secret in secrets for encode in (quote, quote_plus)
        )
        for secret in sorted(forms, key=len, reverse=True):
            # Anything shorter is no secret, and would tear every sentence apart.
            if len(secret) > 3:
                text = text.replace(secret, "...")
        text = "".join(character if character.isprintable() else " " for character in text[:500])
        return text.strip()

    async def _post(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """Post a form to the token endpoint, with the client's session or one of its own.

        :param form: the fields
        :return: the HTTP status and the parsed answer
        :raises AuthenticationError: if there is no answer, or none that is understood
        """
        if not is_secure(self._token_url):
            raise AuthenticationError(
                f"Authentication failed: the token URL at {host_of(self._token_url)} is not an https URL,"
                " nothing was sent there; set another login_url"
            )
        session, ssl = _LENT.get() or (None, None)
        if session is not None and not session.closed:
            return await self._post_with(session, ssl, form)
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
            limits=Limits(*[self.request_timeout] * 3),
            ssl=ssl,
        )
        if isinstance(answer, _http.Failure):
            raise self._unreachable(
                str(answer.error), retryable=answer.trouble is not _http.Trouble.REJECTED
            ) from answer.error
        lag = clock_lag(answer.headers.get("Date", ""))
        self._clock_lag = self._clock_lag if lag is None else lag
        try:
            reply = _http.parse_json(answer.body, self.json_loads)
        except ValueError:
            # Not chained: it might quote the body, and that a token.
            reply = None
        if isinstance(reply, dict) and not 300 <= answer.status < 400:
            return answer.status, reply
        raise self._no_answer(answer)

    def _no_answer(self, answer: _http.Answer) -> AuthenticationError:
        status = answer.status
        what, step = f"answered with HTTP status {status} and no JSON object", "try again later"
        retryable = not (300 <= status < 400 or status in _WRONG_URL)
        if 300 <= status < 400:
            host = host_of(answer.headers.get("Location", ""))
            what = (
                f"sends elsewhere, with HTTP status {status} to host {host!r}, where the credentials do"
                " not go unasked"
            )
            step = "if it is the org's host, give it as login_url"
        elif status in _WRONG_URL:
            step = "nobody can log in there, check login_url"
        return self._unreachable(
            f"{self._token_url} {what}: {step}", status=status, retryable=retryable
        )


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

    def _verify(self, reply: dict[str, Any]) -> None:
        if self._verify_signature and not is_signed(reply, self.client_secret):
            raise self._useless(
                "its signature is missing or does not fit the consumer secret, so it may have been changed"
                " on the way. While a secret is being rotated the answer may be signed with the other one:"
                " try that, or do without verify_signature"
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
    token is used: store it there. If that fails, so does the log-in; the new token is kept here, and the
    next log-in hands it over before anything else. A log-in that is cancelled is given three seconds to
    bring the new token home. One refresh token must not be used by two authenticators at once.

    :param consumer_key: the consumer key of the app
    :param consumer_secret: its consumer secret
    :param refresh_token: the refresh token
    :param sandbox: whether to log in at test.salesforce.com
    :param json_dumps: serialises what is sent
    :param json_loads: parses what is received
    :param login_url: a My Domain or Experience Cloud URL to log in at instead
    :param on_token_refreshed: called with each new refresh token; plain, then it must not block, or
        async
    :param verify_signature: whether the answer's signature is checked
    :raises ValueError: if *login_url* cannot be logged in at
    """

    _finish_when_cancelled = True

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
        self._unstored = False

    def _secrets(self) -> tuple[str, ...]:
        return (*super()._secrets(), self.refresh_token)

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        # Not before the last one is stored: another rotation would only make matters worse.
        await self._hand_over()
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
        if not isinstance(token, str) or not token.strip() or token == self.refresh_token:
            return
        self.refresh_token = token
        self._unstored = True
        await self._hand_over()

    async def _hand_over(self) -> None:
        """Have the application store a new refresh token, if there is one."""
        callback = self._on_token_refreshed
        if not self._unstored or callback is None:
            return
        try:
            outcome = callback(self.refresh_token)
            if inspect.isawaitable(outcome):
                await in_time(outcome, self.request_timeout)
        except Exception as error:
            raise AuthenticationError(
                "Authentication failed: on_token_refreshed could not store the new refresh token"
                f" ({type(error).__name__}). It is kept in memory, and the next log-in hands it over again;"
                " the old one is not valid any more",
                retryable=True,
            ) from error
        self._unstored = False


class ClientCredentialsAuthenticator(SecretMixin):
    """The OAuth 2.0 client credentials flow, for an app with an execution ("Run As") user.

    :param consumer_key: the consumer key of the app
    :param consumer_secret: its consumer secret
    :param login_url: the org's My Domain URL; this flow works nowhere else
    :param json_dumps: serialises what is sent
    :param json_loads: parses what is received
    :param verify_signature: whether the answer's signature is checked
    :raises ValueError: if *login_url* cannot be logged in at, or is login.salesforce.com or
        test.salesforce.com
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
        if self._login_url in (LOGIN_URL, SANDBOX_LOGIN_URL):
            raise ValueError(
                f"the client credentials flow does not work at {self._login_url}: login_url should be the"
                " org's My Domain, such as 'https://MyDomainName.my.salesforce.com'"
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
        self._audience = audience or audience_of(self._login_url, sandbox=sandbox)
        self._key = load_private_key(private_key)
        self._assertion = ""

    def __repr__(self) -> str:
        """Name the consumer key and the user; nothing secret."""
        return (
            f"{type(self).__name__}(consumer_key={self.client_id!r}, username={self.username!r},"
            f" login_url={self._login_url!r})"
        )

    def _secrets(self) -> tuple[str, ...]:
        return (self._assertion,)

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        status, reply = await self._assert(time.time())
        if is_expired(reply) and self._clock_lag is not None:
            status, reply = await self._assert(time.time() + self._clock_lag)
            if status == 200:
                LOGGER.warning(
                    "%s",
                    self._clock_advice()
                    or (
                        f"A JWT assertion expired on its way to {self._token_url}; the next one was accepted"
                    ),
                )
        return status, reply

    async def _assert(self, now: float) -> tuple[int, dict[str, Any]]:
        """Send an assertion that is valid from *now* on, in seconds since the epoch."""
        import jwt

        claims = {
            "iss": self.client_id,
            "sub": self.username,
            "aud": self._audience,
            "exp": int(now) + ASSERTION_LIFETIME,
        }
        self._assertion = jwt.encode(claims, self._key, algorithm="RS256")
        return await self._post(
            {
                "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
                "assertion": self._assertion,
            }
        )

    def _refusal(self, status: int, reply: dict[str, Any]) -> AuthenticationError:
        refusal = super()._refusal(status, reply)
        if is_expired(reply):
            refusal.args = (f"{refusal} {self._clock_advice()}".rstrip(),)
        return refusal

    def _clock_advice(self) -> str:
        if self._clock_lag is None or abs(self._clock_lag) < CLOCK_TOLERANCE:
            return ""
        direction = "behind" if self._clock_lag > 0 else "ahead of"
        return (
            f"This machine's clock is {abs(self._clock_lag):.0f} seconds {direction} that of"
            f" {self._login_url}: set it right."
        )


class AccessTokenAuthenticator(AuthenticatorBase):
    """A token that was obtained elsewhere: from a secret manager, the Salesforce CLI, another service.

    What a callable raises counts as a failure that may pass, and is tried again while the client
    recovers; to say otherwise, let it raise :exc:`~aiosfstream.AuthenticationError`.

    :param instance_url: the base URL of the org's API, with or without scheme
    :param access_token: the token, or an async (or plain) callable that gives it, which is called again
        when the token is refused
    :raises TypeError: if *access_token* is neither
    :raises ValueError: if *instance_url* is not https, or a fixed *access_token* cannot be one
    """

    def __init__(self, instance_url: str, access_token: str | TokenSource) -> None:
        super().__init__()
        self._login_url = self._token_url = normalize_login_url(instance_url, "instance_url")
        if isinstance(access_token, str):
            access_token = access_token.strip()
            if not _is_header_safe(access_token):
                raise ValueError("access_token should be text of printable ASCII characters")
        elif not callable(access_token):
            raise TypeError(
                "access_token should be a str or a callable that gives one, not"
                f" {type(access_token).__name__!r}"
            )
        self._source = access_token

    def __repr__(self) -> str:
        """Name the instance; nothing secret."""
        return f"{type(self).__name__}(instance_url={self._login_url!r})"

    def _secrets(self) -> tuple[str, ...]:
        return (self._source,) if isinstance(self._source, str) else ()

    async def reauthenticate(self, refused: str | None) -> None:
        """Ask for another token, unless somebody else has done so already.

        :param refused: the ``Authorization`` header that was refused
        :raises AuthenticationError: if the token is fixed; if the callable fails, or gives the refused
            token once more
        """
        if self.authorization not in (None, refused):
            return
        if isinstance(self._source, str) and refused is not None:
            self._reset()
            raise AuthenticationError(
                f"Authentication failed: {self._login_url} refused the access token, and a fixed token cannot"
                " be renewed; open a client with a new one, or give AccessTokenAuthenticator an async callable"
            )
        await super().reauthenticate(refused)
        if self.authorization == refused:
            raise AuthenticationError(
                "Authentication failed: the callable that should give a new access token gave the one that"
                f" {self._login_url} refused",
                retryable=True,
            )

    def _waits_for_nothing(self) -> bool:
        plain = type(self)._authenticate is AccessTokenAuthenticator._authenticate
        return plain and isinstance(self._source, str)

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        token: Any = self._source
        if not isinstance(token, str):
            token = await self._ask(token)
        return 200, {"access_token": token, "instance_url": self._login_url}

    async def _ask(self, source: TokenSource) -> str:
        try:
            token: Any = source()
            if inspect.isawaitable(token):
                token = await token
        except AuthenticationError:
            raise
        except Exception as error:
            raise AuthenticationError(
                f"Network request failed: the callable that should give an access token of {self._login_url}"
                f" raised {type(error).__name__}, see the cause",
                retryable=True,
            ) from error
        if not isinstance(token, str):
            raise AuthenticationError(
                f"Authentication failed: the callable should give an access token of {self._login_url} as a str,"
                f" not as {type(token).__name__!r}"
            )
        if not _is_header_safe(token.strip()):
            raise AuthenticationError(
                f"Authentication failed: the access token of {self._login_url} from the callable is empty, or"
                " has characters that no header may have; it should give the token and nothing else"
            )
        return token.strip()

    def _failure(self, error: Exception) -> AuthenticationError:
        if isinstance(error, asyncio.TimeoutError):
            return AuthenticationError(
                "Network request failed: the callable gave no access token within"
                f" {self.request_timeout:g} seconds; it is asked again for {self._login_url}",
                retryable=True,
            )
        return super()._failure(error)


def _is_header_safe(token: str) -> bool:
    return _TOKEN.fullmatch(token) is not None
