"""The credentials that the environment has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .console import UsageError

if TYPE_CHECKING:
    from ..auth import AuthenticatorBase

__all__ = ["authenticator_from"]


def authenticator_from(environment: Mapping[str, str]) -> AuthenticatorBase:
    """Choose the flow that the environment has the credentials for.

    :raises UsageError: if it has them for none
    """
    from .. import auth

    def get(name: str) -> str:
        return environment.get(f"SALESFORCE_{name}", "")

    key, secret, username = get("CONSUMER_KEY"), get("CONSUMER_SECRET"), get("USERNAME")
    login_url = get("LOGIN_URL") or None
    sandbox = get("SANDBOX").lower() in ("1", "true", "yes")
    try:
        if get("ACCESS_TOKEN") and get("INSTANCE_URL"):
            return auth.AccessTokenAuthenticator(get("INSTANCE_URL"), get("ACCESS_TOKEN"))
        if key and get("REFRESH_TOKEN"):
            return auth.RefreshTokenAuthenticator(
                key, secret, get("REFRESH_TOKEN"), sandbox, login_url=login_url
            )
        if key and username and get("PRIVATE_KEY_FILE"):
            pem = Path(get("PRIVATE_KEY_FILE")).read_bytes()
            return auth.JWTBearerAuthenticator(key, username, pem, sandbox, login_url=login_url)
        if key and secret and username and get("PASSWORD"):
            return auth.PasswordAuthenticator(
                key, secret, username, get("PASSWORD"), sandbox, login_url=login_url
            )
        if key and secret and login_url:
            return auth.ClientCredentialsAuthenticator(key, secret, login_url=login_url)
    except ValueError as error:
        raise UsageError(str(error)) from error
    raise UsageError(
        "no credentials: set SALESFORCE_CONSUMER_KEY, SALESFORCE_CONSUMER_SECRET, SALESFORCE_USERNAME and"
        " SALESFORCE_PASSWORD, or those of another flow; see aiosfstream listen --help"
    )
