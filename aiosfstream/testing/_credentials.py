"""Where an org is and what its clients log in with."""

from __future__ import annotations

import functools
from typing import TypedDict

from ._parts import Controlled, control


class Credentials(TypedDict):
    """The arguments that a client needs to log in with a password."""

    consumer_key: str
    consumer_secret: str
    username: str
    password: str
    login_url: str


class RefreshTokenCredentials(TypedDict):
    """The arguments of a ``RefreshTokenAuthenticator``."""

    consumer_key: str
    consumer_secret: str
    refresh_token: str
    login_url: str


class ClientCredentials(TypedDict):
    """The arguments of a ``ClientCredentialsAuthenticator``."""

    consumer_key: str
    consumer_secret: str
    login_url: str


class JWTCredentials(TypedDict):
    """The arguments of a ``JWTBearerAuthenticator``."""

    consumer_key: str
    username: str
    private_key: str
    login_url: str


class AccessTokenCredentials(TypedDict):
    """The arguments of an ``AccessTokenAuthenticator``."""

    instance_url: str
    access_token: str


class LoggingIn(Controlled):
    """Where an org is, and who may log in."""

    #: Whether ``instance_url`` ends with a slash.
    slash: bool

    @property
    def url(self) -> str:
        """Where it was started."""
        return self.parts.addresses.url(self.parts.addresses.port)

    @property
    def login_url(self) -> str:
        """The ``login_url`` of authenticators."""
        return self.url

    @property
    def instance_url(self) -> str:
        """What the token endpoint answers with."""
        addresses = self.parts.addresses
        if self.parts.successor is not None:
            return self.parts.successor.instance_url
        port = addresses.port if addresses.instance_port is None else addresses.instance_port
        return addresses.url(port) + ("/" if self.slash else "")

    def admit(self, token: str) -> None:
        """Let a token in where the org is now."""
        if self.parts.successor is not None:
            self.parts.successor.parts.oauth.tokens.add(token)
            self.parts.successor.admit(token)

    @property
    def credentials(self) -> Credentials:
        """The arguments of a ``SalesforceStreamingClient`` or ``PasswordAuthenticator``."""
        oauth = self.parts.oauth
        return {
            "consumer_key": oauth.consumer_key,
            "consumer_secret": oauth.consumer_secret,
            "username": oauth.username,
            "password": oauth.password,
            "login_url": self.login_url,
        }

    @property
    def refresh_token_credentials(self) -> RefreshTokenCredentials:
        """The arguments of a ``RefreshTokenAuthenticator``."""
        oauth = self.parts.oauth
        return {
            "consumer_key": oauth.consumer_key,
            "consumer_secret": oauth.consumer_secret,
            "refresh_token": oauth.refresh_token,
            "login_url": self.login_url,
        }

    @property
    def client_credentials(self) -> ClientCredentials:
        """The arguments of a ``ClientCredentialsAuthenticator``."""
        oauth = self.parts.oauth
        return {
            "consumer_key": oauth.consumer_key,
            "consumer_secret": oauth.consumer_secret,
            "login_url": self.login_url,
        }

    @property
    def jwt_credentials(self) -> JWTCredentials:
        """The arguments of a ``JWTBearerAuthenticator``, with a private key that is made for the tests.

        :raises RuntimeError: if the server verifies with a key of one's own, or cryptography is missing
        """
        private_key, public_key = key_pair()
        oauth = self.parts.oauth
        if oauth.public_key not in (None, public_key):
            raise RuntimeError(
                "the server was given jwt_public_key: use the private key that belongs to it"
            )
        oauth.public_key = public_key
        return {
            "consumer_key": oauth.consumer_key,
            "username": oauth.username,
            "private_key": private_key,
            "login_url": self.login_url,
        }

    @property
    def access_token_credentials(self) -> AccessTokenCredentials:
        """The arguments of an ``AccessTokenAuthenticator``, with a token that is made for them."""
        return {"instance_url": self.instance_url, "access_token": self.new_access_token()}

    @property
    def refresh_token(self) -> str:
        """The refresh token that is valid."""
        return self.parts.oauth.refresh_token

    @control
    def new_access_token(self) -> str:
        """Make an access token that is valid."""
        token = self.parts.oauth.issue()
        self.admit(token)
        return token


@functools.cache
def key_pair() -> tuple[str, str]:
    """Make the private and the public key of JWT assertions, once for all servers.

    :raises RuntimeError: if cryptography is missing
    """
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa
    except ImportError as error:
        raise RuntimeError(
            "The test server makes the keys of JWT assertions with cryptography: pip install"
            " aiosfstream[jwt]"
        ) from error
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private_key = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public_key = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private_key.decode(), public_key.decode()
