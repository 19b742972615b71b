"""The credentials that the environment has, and the flow that they are for."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .. import auth
from .console import CommandError, UsageError
from .files import SecretFile, read_secret
from .words import in_words

__all__ = ["Credentials", "Flow", "authenticator_from", "credentials_from"]

LOGGER = logging.getLogger(__name__)

PRODUCTION: Final = "https://login.salesforce.com"
SANDBOX: Final = "https://test.salesforce.com"
#: What switches something on.
_ON: Final = ("1", "true", "yes", "on")
_OFF: Final = ("", "0", "false", "no", "off")


class Credentials:
    """The variables ``SALESFORCE_*``: each is in the environment, or in a file that ``…_FILE`` names.

    :param environment: the environment
    :param token_file: the file with the refresh token; None: that is a variable as well
    """

    def __init__(self, environment: Mapping[str, str], token_file: Path | None = None) -> None:
        self._environment = environment
        self._token_file = token_file

    def has(self, name: str) -> bool:
        """Say whether a variable is set.

        :param name: its name without ``SALESFORCE_``
        """
        return bool(self._value(name) or self._file(name))

    def get(self, name: str) -> str:
        """Give the value of a variable; empty if it is not set.

        :param name: its name without ``SALESFORCE_``
        :raises CommandError: if the file that it is in cannot be read
        :raises UsageError: if it is set in both ways
        """
        value, file = self._value(name), self._file(name)
        if value and file:
            raise UsageError(
                f"SALESFORCE_{name} and {self._file_option(name)} are both given: take one away"
            )
        return read_secret(file, self._file_option(name)) if file else value

    def is_on(self, name: str) -> bool:
        """Say whether a variable switches something on.

        :param name: its name without ``SALESFORCE_``
        :raises UsageError: if it says neither yes nor no
        """
        value = self.get(name).strip().lower()
        if value not in _ON + _OFF:
            raise UsageError(f"SALESFORCE_{name} should be 1 or 0, not {value!r}")
        return value in _ON

    @property
    def login_url(self) -> str:
        """Where to log in."""
        return self.get("LOGIN_URL") or (SANDBOX if self.is_on("SANDBOX") else PRODUCTION)

    def store_refresh_token(self, token: str) -> None:
        """Put a new refresh token where the old one came from.

        :param token: the token that Salesforce has given in exchange
        :raises CommandError: if it came from ``--token-file`` and cannot be written there
        """
        file, option = self._file("REFRESH_TOKEN"), self._file_option("REFRESH_TOKEN")
        if file is None:
            LOGGER.warning(
                "Salesforce has replaced the refresh token: the one in SALESFORCE_REFRESH_TOKEN is not valid"
                " any more. Log in again with --output FILE, and use --token-file FILE."
            )
            return
        try:
            SecretFile(file, option).write(token)
        except CommandError as error:
            if self._token_file is not None:
                raise
            LOGGER.warning(
                "Salesforce has replaced the refresh token, and the new one could not be kept: %s",
                error,
            )

    def check_token_file(self) -> None:
        """See that a new refresh token can be stored, before the old one is used.

        :raises CommandError: if ``--token-file`` is given and cannot be written
        """
        if self._token_file is not None:
            SecretFile(self._token_file, "--token-file").check()

    def _value(self, name: str) -> str:
        return self._environment.get(f"SALESFORCE_{name}", "")

    def _file(self, name: str) -> Path | None:
        if name == "REFRESH_TOKEN" and self._token_file is not None:
            return self._token_file
        text = self._environment.get(f"SALESFORCE_{name}_FILE", "")
        return Path(text) if text else None

    def _file_option(self, name: str) -> str:
        if name == "REFRESH_TOKEN" and self._token_file is not None:
            return "--token-file"
        return f"SALESFORCE_{name}_FILE"


def _access_token(credentials: Credentials) -> auth.AuthenticatorBase:
    return auth.AccessTokenAuthenticator(
        credentials.get("INSTANCE_URL"), credentials.get("ACCESS_TOKEN")
    )


def _refresh_token(credentials: Credentials) -> auth.AuthenticatorBase:
    credentials.check_token_file()
    return auth.RefreshTokenAuthenticator(
        credentials.get("CONSUMER_KEY"),
        credentials.get("CONSUMER_SECRET"),
        credentials.get("REFRESH_TOKEN").strip(),
        login_url=credentials.login_url,
        on_token_refreshed=credentials.store_refresh_token,
    )


def _jwt_bearer(credentials: Credentials) -> auth.AuthenticatorBase:
    # In a variable the ends of the lines are often written as \n.
    key = credentials.get("PRIVATE_KEY").replace("\\n", "\n")
    return auth.JWTBearerAuthenticator(
        credentials.get("CONSUMER_KEY"),
        credentials.get("USERNAME"),
        key,
        credentials.is_on("SANDBOX"),
        login_url=credentials.get("LOGIN_URL") or None,
        audience=credentials.get("AUDIENCE") or None,
    )


def _password(credentials: Credentials) -> auth.AuthenticatorBase:
    return auth.PasswordAuthenticator(
        credentials.get("CONSUMER_KEY"),
        credentials.get("CONSUMER_SECRET"),
        credentials.get("USERNAME"),
        credentials.get("PASSWORD"),
        login_url=credentials.login_url,
    )


def _client_credentials(credentials: Credentials) -> auth.AuthenticatorBase:
    return auth.ClientCredentialsAuthenticator(
        credentials.get("CONSUMER_KEY"),
        credentials.get("CONSUMER_SECRET"),
        login_url=credentials.get("LOGIN_URL"),
    )


@dataclass(frozen=True)
class Flow:
    """A way to log in.

    :ivar name: what it is called
    :ivar needs: the variables that have to be set, without ``SALESFORCE_``
    :ivar make: makes its authenticator
    """

    name: str
    needs: tuple[str, ...]
    make: Callable[[Credentials], auth.AuthenticatorBase]


#: In the order in which they are tried.
FLOWS: Final = (
    Flow("access token", ("ACCESS_TOKEN", "INSTANCE_URL"), _access_token),
    Flow("refresh token flow", ("CONSUMER_KEY", "REFRESH_TOKEN"), _refresh_token),
    Flow("JWT bearer flow", ("CONSUMER_KEY", "USERNAME", "PRIVATE_KEY"), _jwt_bearer),
    Flow(
        "username-password flow",
        ("CONSUMER_KEY", "CONSUMER_SECRET", "USERNAME", "PASSWORD"),
        _password,
    ),
    Flow(
        "client credentials flow",
        ("CONSUMER_KEY", "CONSUMER_SECRET", "LOGIN_URL"),
        _client_credentials,
    ),
)


def credentials_from(token_file: Path | None = None) -> Credentials:
    """Give the credentials of the process's environment.

    :param token_file: the file with the refresh token
    """
    return Credentials(os.environ, token_file)


def authenticator_from(credentials: Credentials) -> tuple[Flow, auth.AuthenticatorBase]:
    """Choose the flow that there are credentials for.

    :param credentials: the credentials
    :return: the flow, and what logs in
    :raises UsageError: if there are credentials for none, or they cannot be right
    :raises CommandError: if a file with one of them cannot be read
    """
    for flow in FLOWS:
        if all(map(credentials.has, flow.needs)):
            try:
                return flow, flow.make(credentials)
            except ValueError as error:
                raise UsageError(in_words(str(error))) from error
    raise UsageError(_what_is_missing(credentials))


def _what_is_missing(credentials: Credentials) -> str:
    """Say which variables would complete a flow: those that need the fewest more."""
    missing = {
        flow: [name for name in flow.needs if not credentials.has(name)]
        for flow in FLOWS
        if any(map(credentials.has, flow.needs))
    }
    if not missing:
        return (
            "no credentials: set SALESFORCE_CONSUMER_KEY, SALESFORCE_CONSUMER_SECRET and SALESFORCE_LOGIN_URL,"
            " or the variables of another flow; see aiosfstream listen --help"
        )
    fewest = min(map(len, missing.values()))
    ways = [
        f"{' and '.join(f'SALESFORCE_{name}' for name in names)} for the {flow.name}"
        for flow, names in missing.items()
        if len(names) == fewest
    ]
    return (
        f"the credentials are not complete: set {', or '.join(ways)}. A variable can also be in a file that the"
        " one with _FILE at its end names. See aiosfstream listen --help"
    )
