"""OAuth flows: how a client gets its token.

Facts about the flows come from Salesforce's help pages on OAuth and from its REST API Developer Guide.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import logging
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Generic, TypedDict, TypeVar

from aiocometd.extensions import AuthExtension
from aiocometd.typing import Headers, Payload

from ._http.bodies import Dumper, Loader
from ._internals import Slot
from ._oauth.answers import (
    is_expired,
    is_header_safe,
    is_signed,
    place_of,
)
from ._oauth.flight import authorization_of, in_time, log_in_again, share
from ._oauth.flows import Flow, has_flow
from ._oauth.keys import load_private_key, text_of_key
from ._oauth.login import LogIn, forget
from ._oauth.request import Form, ask, lend_session
from ._oauth.state import (
    REQUEST_TIMEOUT,
    STATE,
    Owned,
    OwnedSlot,
    hidden,
    hide,
    read,
    require,
    secrets_of,
    timeout_of,
)
from ._oauth.urls import (
    LOGIN_URL,
    SANDBOX_LOGIN_URL,
    TOKEN_PATH,
    audience_of,
    normalize_login_url,
)
from ._text import Secret, fit
from ._typing import Unpack
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
    "lend_session",
]

LOGGER = logging.getLogger(__name__)

#: Where production and Developer Edition orgs log in. Read when it is needed, so it may be patched.
TOKEN_URL = LOGIN_URL + TOKEN_PATH
#: Where sandboxes log in. Read when it is needed, so it may be patched.
SANDBOX_TOKEN_URL = SANDBOX_LOGIN_URL + TOKEN_PATH

#: Seconds that a JWT assertion is valid. Salesforce documents "a few minutes".
ASSERTION_LIFETIME: Final = 180
#: Seconds by which this machine's clock may be wrong without a warning.
CLOCK_TOLERANCE: Final = 5.0
#: Seconds by which the token endpoint's clock may correct ours, at most.
MAX_CLOCK_CORRECTION: Final = 3600.0

#: Called with each new refresh token before the access token that came with it is used.
TokenCallback = Callable[[str], "Awaitable[None] | None"]
#: Gives an access token.
TokenSource = Callable[[], "Awaitable[str] | str"]

StateT = TypeVar("StateT")


class LoginOptions(TypedDict, total=False):
    """The keywords that all flows share."""

    login_url: str | None


class SecretOptions(LoginOptions, total=False):
    """The keywords that the flows with a consumer secret share."""

    verify_signature: bool


class _Shown(Generic[StateT]):
    """A property that gives way to an attribute of the same name, which a subclass may assign.

    :param give: gives the value
    """

    def __init__(self, give: Callable[[object], StateT]) -> None:
        self._give = give
        self.__doc__ = give.__doc__

    def __get__(self, instance: object, owner: type | None = None) -> StateT:
        """Give the value."""
        return self if instance is None else self._give(instance)  # type: ignore[return-value]


class AuthenticatorBase(AuthExtension):
    """Logs in, keeps the token, and puts it into every request.

    A subclass writes :meth:`_authenticate`, which asks a token endpoint. The base does the rest: it
    checks the answer, makes one log-in at a time, however many callers ask for it, and turns every
    failure into :exc:`~aiosfstream.AuthenticationError`.

    Several clients may share an authenticator, and it may be used in one event loop after another.

    A subclass may set another token URL, as a property or attribute ``_token_url`` of the class, or by
    assigning ``self._token_url``.

    :param sandbox: log in at test.salesforce.com
    :param json_dumps: serialises what is sent, to str or bytes
    :param json_loads: parses what is received, from str (or bytes, if it is orjson's)
    :param login_url: a My Domain or Experience Cloud URL to log in at instead, with or without scheme
    :raises ValueError: if *login_url* cannot be used
    """

    #: Seconds that a log-in may take.
    request_timeout: float = REQUEST_TIMEOUT
    #: The access token, or None before a successful :meth:`authenticate` and after a refusal.
    access_token: str | None = hidden(None)
    #: The kind of token, ``Bearer``.
    token_type: str | None = None
    #: The base URL of the org's API.
    instance_url: str | None = None
    #: The identity URL of the user.
    id: str | None = None
    #: The signature over ``id`` and ``issued_at``.
    signature: str | None = None
    #: When the token was issued, in milliseconds since the epoch, as text.
    issued_at: str | None = None
    #: Serialises what is sent.
    json_dumps: Callable[[Any], Any] = staticmethod(json.dumps)
    #: Parses what is received.
    json_loads: Callable[[Any], Any] = staticmethod(json.loads)
    #: The value of the ``Authorization`` header, or None without a token.
    authorization = _Shown(authorization_of)

    _sandbox: bool = False

    def __init__(
        self,
        sandbox: bool = False,
        json_dumps: Dumper = json.dumps,
        json_loads: Loader = json.loads,
        *,
        login_url: str | None = None,
    ) -> None:
        self._sandbox = sandbox
        self.json_dumps = json_dumps
        self.json_loads = json_loads
        STATE.of(self).login_url = None if login_url is None else normalize_login_url(login_url)

    @property
    def _token_url(self) -> str:
        state = STATE.of(self)
        if state.token_url is not None:
            return str(state.token_url)
        if state.login_url is not None:
            return state.login_url + TOKEN_PATH
        return SANDBOX_TOKEN_URL if self._sandbox else TOKEN_URL

    if not TYPE_CHECKING:
        # To type checkers it is read-only, as ever, so that a subclass's property may be as well.
        @_token_url.setter
        def _token_url(self, url: str) -> None:
            STATE.of(self).token_url = url

    def __repr__(self) -> str:
        """Name what identifies the user; nothing secret."""
        return f"{type(self).__name__}(login_url={_login_url_of(self)!r})"

    @abstractmethod
    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        """Ask the token endpoint.

        The only method that a subclass must write. An exception that it raises becomes an
        :exc:`~aiosfstream.AuthenticationError`, which is retryable if the cause was the network, a
        timeout or parsing. An AuthenticationError of its own is passed on. The method may assign
        ``access_token`` and ``instance_url`` itself, and return ``200, {}``.

        :return: the HTTP status and the parsed answer
        """

    async def outgoing(self, payload: Payload, headers: Headers) -> None:
        """Put the token into a request's *headers*.

        :raises AuthenticationError: if there is no token
        """
        authorization = authorization_of(self)
        if authorization is None:
            raise AuthenticationError(
                f"Unauthorized: there is no access token of {_login_url_of(self)}. Send no requests without"
                " authenticating first."
            )
        headers["Authorization"] = authorization

    async def incoming(self, payload: Payload, headers: Headers | None = None) -> None:
        """Do nothing."""

    async def reauthenticate(self, refused: str | None) -> None:
        """Replace a refused token, unless another caller has done so already.

        :param refused: the ``Authorization`` header that was refused
        :raises AuthenticationError: like :meth:`authenticate`, and if no other token can be obtained
        """
        hidden_header = None if refused is None else Secret(refused)
        del refused
        await log_in_again(self, hidden_header)

    async def authenticate(self) -> None:
        """Get a token.

        There is one log-in at a time. A second caller waits for the first log-in. Cancelling one caller
        does not cancel the others, and leaves nothing running.

        :raises AuthenticationError: if the credentials are refused, and the token is forgotten. Also if
            the token endpoint cannot be reached or understood, or asks to come back later. Then the token
            stays. The attributes of the exception tell these cases apart
        """
        error = await share(
            self, LogIn(self, self._authenticate, functools.partial(_token_url_of, self))
        )
        if error is not None:
            raise error


def _token_url_of(authenticator: AuthenticatorBase) -> str:
    """Give the token URL for an error: a subclass's own may be anything."""
    try:
        return fit(authenticator._token_url, secrets=secrets_of(authenticator))
    except Exception:  # noqa: BLE001 - whatever a property of the application's raises
        return "the token URL"


def _login_url_of(authenticator: AuthenticatorBase) -> str:
    """Give the base of the OAuth endpoints, to name whom an authenticator is for."""
    return _token_url_of(authenticator).removesuffix(TOKEN_PATH)


async def post_form(authenticator: AuthenticatorBase, form: Form) -> tuple[int, dict[str, Any]]:
    """Post a form to the authenticator's token URL, with the client's session or one of its own.

    :param authenticator: who asks
    :param form: the fields, the secret ones as :class:`~aiosfstream._text.Secret`
    :return: the HTTP status and the parsed answer
    :raises AuthenticationError: if there is no answer, or none that is understood
    """
    state = STATE.of(authenticator)
    state.asked = str(authenticator._token_url)
    reply = await ask(
        authenticator,
        state.asked,
        form,
        timeout=timeout_of(authenticator),
        loads=authenticator.json_loads,
    )
    if isinstance(reply, AuthenticationError):
        raise reply
    state.retry_after = reply.retry_after
    state.clock_lag = state.clock_lag if reply.clock_lag is None else reply.clock_lag
    return reply.status, reply.content


class SecretMixin(AuthenticatorBase):
    """What the flows with a consumer key and secret share.

    :param consumer_key: the consumer key
    :param consumer_secret: the consumer secret
    :param sandbox: log in at test.salesforce.com
    :param json_dumps: serialises what is sent
    :param json_loads: parses what is received
    :param login_url: a My Domain or Experience Cloud URL to log in at instead
    :param verify_signature: check the answer's signature
    :raises TypeError: if the key or the secret is not text
    :raises ValueError: if the key is empty, or *login_url* cannot be logged in at
    """

    #: The consumer key.
    client_id: str
    #: The consumer secret.
    client_secret: str = hidden()

    def __init__(
        self,
        consumer_key: str,
        consumer_secret: str | Secret,
        sandbox: bool = False,
        json_dumps: Dumper = json.dumps,
        json_loads: Loader = json.loads,
        *,
        login_url: str | None = None,
        verify_signature: bool = False,
    ) -> None:
        # No frame that an exception passes has a secret in the open.
        consumer_secret = Secret.of(consumer_secret)
        require(consumer_key=consumer_key)
        super().__init__(sandbox, json_dumps, json_loads, login_url=login_url)
        self.client_id = consumer_key
        self.client_secret = consumer_secret.reveal()
        _SIGNED.put(self, verify_signature)

    def __repr__(self) -> str:
        """Name the consumer key; nothing secret."""
        return _repr(self, "client_id")


def _repr(authenticator: AuthenticatorBase, *names: str) -> str:
    """Name the class and what identifies the user."""
    known = {"client_id": "consumer_key"}
    parts = [f"{known.get(name, name)}={read(authenticator, name)!r}" for name in names]
    parts.append(f"login_url={_login_url_of(authenticator)!r}")
    return f"{type(authenticator).__name__}({', '.join(parts)})"


#: Whether the answer's signature is checked.
_SIGNED: Final = Slot("signature", bool)


class _WithSecret(Flow):
    def doubt(self, authenticator: Any, reply: dict[str, Any]) -> str | None:
        if not _SIGNED.of(authenticator) or is_signed(reply, authenticator.client_secret):
            return None
        return (
            "its signature is missing or does not fit the consumer secret, so it may have been changed"
            " on the way. While a secret is being rotated the answer may be signed with the other one: try"
            " that, or do without verify_signature"
        )


has_flow(_WithSecret())(SecretMixin)


class PasswordAuthenticator(SecretMixin):
    """The OAuth 2.0 username-password flow.

    Orgs created since the Summer 2023 release block it by default, and Salesforce has announced its end. Use
    another flow if you can.

    :param consumer_key: the consumer key of the connected app
    :param consumer_secret: its consumer secret
    :param username: the user
    :param password: the password, followed by the security token if one is needed
    :param sandbox: log in at test.salesforce.com
    :param json_dumps: serialises what is sent
    :param json_loads: parses what is received
    :param login_url: a My Domain URL to log in at instead
    :param verify_signature: check the answer's signature, which covers its ``id`` and ``issued_at`` only
    :raises TypeError: if the key, the secret, the user or the password is not text
    :raises ValueError: if one of these is empty, or *login_url* cannot be logged in at
    """

    #: The user.
    username: str
    #: The password.
    password: str = hidden()

    def __init__(
        self,
        consumer_key: str,
        consumer_secret: str,
        username: str,
        password: str,
        sandbox: bool = False,
        json_dumps: Dumper = json.dumps,
        json_loads: Loader = json.loads,
        **options: Unpack[SecretOptions],
    ) -> None:
        secret, hidden_password = Secret(consumer_secret), Secret(password)
        del consumer_secret, password
        require(consumer_secret=secret, username=username, password=hidden_password)
        super().__init__(consumer_key, secret, sandbox, json_dumps, json_loads, **options)
        self.username = username
        self.password = hidden_password.reveal()

    def __repr__(self) -> str:
        """Name the consumer key and the user; nothing secret."""
        return _repr(self, "client_id", "username")

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        return await post_form(
            self,
            {
                "grant_type": "password",
                "client_id": self.client_id,
                "client_secret": Secret(self.client_secret),
                "username": self.username,
                "password": Secret(self.password),
            },
        )


class _Rotation(Owned):
    """What becomes of new refresh tokens.

    :ivar callback: stores them
    :ivar is_unstored: whether the newest one is not stored yet
    """

    __slots__ = ("callback", "is_unstored")

    def __init__(self) -> None:
        super().__init__()
        self.callback: TokenCallback | None = None
        self.is_unstored = False


_ROTATION: Final = OwnedSlot("rotation", _Rotation)


class _Refreshing(_WithSecret):
    finishes_when_cancelled = True

    async def keep(self, authenticator: Any, reply: dict[str, Any]) -> AuthenticationError | None:
        token = reply.get("refresh_token")
        if not isinstance(token, str) or not token.strip() or token == authenticator.refresh_token:
            return None
        authenticator.refresh_token = token
        _ROTATION.of(authenticator).is_unstored = True
        return await _hand_over(authenticator)


@has_flow(_Refreshing())
class RefreshTokenAuthenticator(SecretMixin):
    """The OAuth 2.0 refresh token flow.

    With refresh token rotation the server returns a new refresh token each time, and the old one stops
    working at once. The authenticator uses the new token from then on, and passes it to
    *on_token_refreshed* before it uses the access token: store it there. If that fails, the log-in fails.
    The new token is kept, and the next log-in passes it on before anything else. A cancelled log-in has
    three seconds to receive and store the new token. Two authenticators must not use the same refresh
    token at once.

    :param consumer_key: the consumer key of the app
    :param consumer_secret: its consumer secret; an empty string if the app needs none
    :param refresh_token: the refresh token
    :param sandbox: log in at test.salesforce.com
    :param json_dumps: serialises what is sent
    :param json_loads: parses what is received
    :param login_url: a My Domain or Experience Cloud URL to log in at instead
    :param on_token_refreshed: called with each new refresh token; a coroutine function, or a function
        that does not block
    :param verify_signature: check the answer's signature, which covers its ``id`` and ``issued_at`` only
    :raises TypeError: if the key, the secret or the refresh token is not text
    :raises ValueError: if the key or the refresh token is empty, or *login_url* cannot be logged in at
    """

    #: Seconds that a log-in may take: more than others, since the new refresh token is in the answer.
    request_timeout: float = 30.0
    #: The refresh token; the newest one if they rotate.
    refresh_token: str = hidden()

    def __init__(
        self,
        consumer_key: str,
        consumer_secret: str,
        refresh_token: str,
        sandbox: bool = False,
        json_dumps: Dumper = json.dumps,
        json_loads: Loader = json.loads,
        *,
        on_token_refreshed: TokenCallback | None = None,
        **options: Unpack[SecretOptions],
    ) -> None:
        secret, token = Secret(consumer_secret), Secret(refresh_token)
        del consumer_secret, refresh_token
        require(refresh_token=token)
        if secret.reveal() != "":
            require(consumer_secret=secret)
        super().__init__(consumer_key, secret, sandbox, json_dumps, json_loads, **options)
        self.refresh_token = token.reveal()
        _ROTATION.of(self).callback = on_token_refreshed

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        # Not before the last one is stored: another rotation would only make matters worse.
        error = await _hand_over(self)
        if error is not None:
            raise error
        form: dict[str, str | Secret] = {
            "grant_type": "refresh_token",
            "client_id": self.client_id,
            "refresh_token": Secret(self.refresh_token),
        }
        if self.client_secret:
            form["client_secret"] = Secret(self.client_secret)
        return await post_form(self, form)


async def _hand_over(authenticator: RefreshTokenAuthenticator) -> AuthenticationError | None:
    """Have the application store a new refresh token, if there is one."""
    rotation = _ROTATION.of(authenticator)
    if not rotation.is_unstored or rotation.callback is None:
        return None
    try:
        outcome = rotation.callback(authenticator.refresh_token)
        if inspect.isawaitable(outcome):
            await in_time(outcome, timeout_of(authenticator))
    except Exception as error:  # noqa: BLE001 - the application's code may raise anything
        told = AuthenticationError(
            "Authentication failed: on_token_refreshed could not store the new refresh token"
            f" ({type(error).__name__}{place_of(error)}). It is kept in memory, and the next log-in hands it"
            " over again; the old one is not valid any more",
            retryable=True,
        )
        told.__cause__ = error
        return told
    rotation.is_unstored = False
    return None


class ClientCredentialsAuthenticator(SecretMixin):
    """The OAuth 2.0 client credentials flow, for an app with an execution ("Run As") user.

    :param consumer_key: the consumer key of the app
    :param consumer_secret: its consumer secret
    :param login_url: the org's My Domain URL; this flow works nowhere else
    :param json_dumps: serialises what is sent
    :param json_loads: parses what is received
    :param verify_signature: check the answer's signature, which covers its ``id`` and ``issued_at`` only
    :raises TypeError: if the key or the secret is not text
    :raises ValueError: if one of these is empty, or if *login_url* cannot be logged in at, or is
        login.salesforce.com or test.salesforce.com
    """

    def __init__(
        self,
        consumer_key: str,
        consumer_secret: str,
        *,
        login_url: str,
        json_dumps: Dumper = json.dumps,
        json_loads: Loader = json.loads,
        verify_signature: bool = False,
    ) -> None:
        secret = Secret(consumer_secret)
        del consumer_secret
        require(consumer_secret=secret)
        base = normalize_login_url(login_url)
        if base in (LOGIN_URL, SANDBOX_LOGIN_URL):
            raise ValueError(
                f"the client credentials flow does not work at {base}: login_url should be the org's My Domain,"
                " such as 'https://MyDomainName.my.salesforce.com'"
            )
        super().__init__(
            consumer_key,
            secret,
            False,
            json_dumps,
            json_loads,
            login_url=base,
            verify_signature=verify_signature,
        )

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        return await post_form(
            self,
            {
                "grant_type": "client_credentials",
                "client_id": self.client_id,
                "client_secret": Secret(self.client_secret),
            },
        )


class _Signer:
    """What signs assertions.

    :ivar key: the private key
    :ivar audience: the ``aud`` claim; None: the right one for the login URL
    """

    __slots__ = ("audience", "key")

    def __init__(self) -> None:
        self.key: Any = None
        self.audience: str | None = None


_SIGNER: Final = Slot("signer", _Signer)


class _Asserting(Flow):
    def hint(self, authenticator: Any, reply: dict[str, Any]) -> str:
        return _clock_advice(authenticator) if is_expired(reply) else ""


@has_flow(_Asserting())
class JWTBearerAuthenticator(AuthenticatorBase):
    r"""The OAuth 2.0 JWT bearer flow: server to server, with a certificate instead of a secret.

    An assertion is valid for three minutes by this machine's clock. If the org says that it had expired
    on arrival, the next one uses the org's clock, but is at most an hour away from this machine's.

    :param consumer_key: the consumer key of the app that the certificate was uploaded to
    :param username: the user, who must be pre-authorized for the app
    :param private_key: the RSA private key in PEM, also with ``\n`` written out or encoded as base64, as
        in environment variables
    :param sandbox: log in at test.salesforce.com
    :param json_dumps: serialises what is sent
    :param json_loads: parses what is received
    :param login_url: a My Domain or Experience Cloud URL to log in at instead
    :param audience: the assertion's ``aud``; None: the right one for the login URL
    :raises ImportError: if PyJWT is not installed
    :raises TypeError: if the key, the user or *private_key* is not text
    :raises ValueError: if one of these is empty, or *private_key* or *login_url* cannot be used
    """

    #: The consumer key.
    client_id: str
    #: The user.
    username: str

    def __init__(
        self,
        consumer_key: str,
        username: str,
        private_key: str | bytes,
        sandbox: bool = False,
        json_dumps: Dumper = json.dumps,
        json_loads: Loader = json.loads,
        *,
        audience: str | None = None,
        **options: Unpack[LoginOptions],
    ) -> None:
        pem = text_of_key(private_key)
        del private_key
        require(consumer_key=consumer_key, username=username)
        super().__init__(sandbox, json_dumps, json_loads, **options)
        self.client_id = consumer_key
        self.username = username
        signer = _SIGNER.of(self)
        signer.key = load_private_key(pem)
        signer.audience = audience

    def __repr__(self) -> str:
        """Name the consumer key and the user; nothing secret."""
        return _repr(self, "client_id", "username")

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        status, reply = await _assert(self, time.time())
        lag = STATE.of(self).clock_lag
        if is_expired(reply) and lag is not None:
            correction = max(-MAX_CLOCK_CORRECTION, min(lag, MAX_CLOCK_CORRECTION))
            status, reply = await _assert(self, time.time() + correction)
            if status == 200:
                LOGGER.warning(
                    "%s",
                    _clock_advice(self)
                    or (
                        f"A JWT assertion expired on its way to {_token_url_of(self)}; the next one was accepted"
                    ),
                )
        return status, reply


async def _assert(authenticator: JWTBearerAuthenticator, now: float) -> tuple[int, dict[str, Any]]:
    """Send an assertion that is valid from *now* on, in seconds since the epoch."""
    import jwt

    signer = _SIGNER.of(authenticator)
    login_url = str(authenticator._token_url).removesuffix(TOKEN_PATH)
    claims = {
        "iss": authenticator.client_id,
        "sub": authenticator.username,
        "aud": signer.audience or audience_of(login_url, sandbox=bool(authenticator._sandbox)),
        "exp": int(now) + ASSERTION_LIFETIME,
    }
    assertion = Secret(jwt.encode(claims, signer.key, algorithm="RS256"))
    hide(authenticator, assertion)
    return await post_form(
        authenticator,
        {
            "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
            "assertion": assertion,
        },
    )


def _clock_advice(authenticator: JWTBearerAuthenticator) -> str:
    lag = STATE.of(authenticator).clock_lag
    if lag is None or abs(lag) < CLOCK_TOLERANCE:
        return ""
    direction = "behind" if lag > 0 else "ahead of"
    return (
        f"This machine's clock is {abs(lag):.0f} seconds {direction} that of"
        f" {_login_url_of(authenticator)}: set it right."
    )


#: The token, or what gives it.
_SOURCE: Final[Slot[Secret | TokenSource]] = Slot("source", lambda: Secret(""))


class _Given(Flow):
    def asks_nobody(self, authenticator: Any) -> bool:
        plain = type(authenticator)._authenticate is AccessTokenAuthenticator._authenticate
        return plain and isinstance(_SOURCE.of(authenticator), Secret)

    def failure(self, authenticator: Any, error: Exception) -> AuthenticationError | None:
        if not isinstance(error, asyncio.TimeoutError):
            return None
        return AuthenticationError(
            "Network request failed: the callable gave no access token within"
            f" {timeout_of(authenticator):g} seconds; it is asked again for {_login_url_of(authenticator)}",
            retryable=True,
        )

    def before_renewal(self, authenticator: Any) -> AuthenticationError | None:
        if not isinstance(_SOURCE.of(authenticator), Secret):
            return None
        forget(authenticator)
        return AuthenticationError(
            f"Authentication failed: {_login_url_of(authenticator)} refused the access token, and a fixed"
            " token cannot be renewed; open a client with a new one, or give AccessTokenAuthenticator an"
            " async callable"
        )

    def after_renewal(self, authenticator: Any) -> AuthenticationError | None:
        return AuthenticationError(
            "Authentication failed: the callable that should give a new access token gave the one that"
            f" {_login_url_of(authenticator)} refused",
            retryable=True,
        )


@has_flow(_Given())
class AccessTokenAuthenticator(AuthenticatorBase):
    """A token that was obtained elsewhere: from a secret manager, the Salesforce CLI, another service.

    If the function raises an exception, that counts as temporary, and it is called again while the
    client recovers. If trying again is pointless, let it raise :exc:`~aiosfstream.AuthenticationError`.

    :param instance_url: the base URL of the org's API, with or without scheme
    :type instance_url: str
    :param access_token: the token, or a function that returns it (a coroutine function or a plain
        one), which is called again when the token is refused
    :type access_token: str | Callable[[], str | Awaitable[str]]
    :raises TypeError: if *access_token* is neither
    :raises ValueError: if *instance_url* is not https, or a fixed *access_token* cannot be one
    """

    def __init__(self, instance_url: str, access_token: str | TokenSource) -> None:
        kind = type(access_token)
        source = Secret(access_token.strip()) if isinstance(access_token, str) else access_token
        del access_token
        super().__init__()
        STATE.of(self).login_url = normalize_login_url(instance_url, "instance_url")
        if isinstance(source, Secret):
            if not is_header_safe(source.reveal()):
                raise ValueError("access_token should be text of printable ASCII characters")
            hide(self, source)
        elif not callable(source):
            del source
            raise TypeError(
                f"access_token should be a str or a callable that gives one, not {kind.__name__!r}"
            )
        _SOURCE.put(self, source)

    def __repr__(self) -> str:
        """Name the instance; nothing secret."""
        return f"{type(self).__name__}(instance_url={_login_url_of(self)!r})"

    async def _authenticate(self) -> tuple[int, dict[str, Any]]:
        source = _SOURCE.of(self)
        token = source.reveal() if isinstance(source, Secret) else await _given(self, source)
        return 200, {"access_token": token, "instance_url": STATE.of(self).login_url}


async def _given(authenticator: AccessTokenAuthenticator, source: TokenSource) -> str:
    """Have the application give a token."""
    where = _login_url_of(authenticator)
    try:
        token: Any = source()
        if inspect.isawaitable(token):
            token = await token
    except AuthenticationError:
        raise
    except Exception as error:
        raise AuthenticationError(
            f"Network request failed: the callable that should give an access token of {where} raised"
            f" {type(error).__name__}{place_of(error)}, see the cause",
            retryable=True,
        ) from error
    if not isinstance(token, str):
        raise AuthenticationError(
            f"Authentication failed: the callable should give an access token of {where} as a str, not as"
            f" {type(token).__name__!r}"
        )
    if not is_header_safe(token.strip()):
        raise AuthenticationError(
            f"Authentication failed: the access token of {where} from the callable is empty, or has"
            " characters that no header may have; it should give the token and nothing else"
        )
    return token.strip()
