"""The OAuth endpoints of an org."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

BAD_CREDENTIALS = ("invalid_grant", "authentication failure")
AUDIENCES = ("https://login.salesforce.com", "https://test.salesforce.com")


class Denied(Exception):
    """A token request that is denied: error code and description."""


@dataclass
class OAuth:
    """Who may log in, and with what. All of it may be changed while the server runs.

    :ivar consumer_key: the app's key, which is its client id as well
    :ivar consumer_secret: the app's secret; the JWT flow and an authorization with PKCE do without
    :ivar username: the user who logs in
    :ivar password: the password with the security token
    :ivar refresh_token: the refresh token that is valid
    :ivar rotate: whether each refresh gives a new refresh token and ends the old one
    :ivar public_key: verifies JWT assertions, PEM
    :ivar my_domain: whether the host is a My Domain; client credentials work on no other
    :ivar org_id: the org's id, which is in the identity URL and in the tokens
    :ivar user_id: the user's id
    :ivar tokens: the access tokens that are valid
    :ivar codes: authorization code -> redirect URI and PKCE challenge
    """

    consumer_key: str = "consumer-key"
    consumer_secret: str = field(default="consumer-secret", repr=False)
    username: str = "user@example.com"
    password: str = field(default="password-and-security-token", repr=False)
    refresh_token: str = field(default="refresh-token-0", repr=False)
    rotate: bool = False
    public_key: str | bytes | None = None
    my_domain: bool = True
    org_id: str = "00D000000000001AAA"
    user_id: str = "005000000000001AAA"
    tokens: set[str] = field(default_factory=set, repr=False)
    codes: dict[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    _numbers: Any = field(default_factory=lambda: itertools.count(1), init=False, repr=False)

    def issue(self) -> str:
        """Make an access token that is valid."""
        token = f"{self.org_id[:15]}!AQ.test_{next(self._numbers)}_token"
        self.tokens.add(token)
        return token

    def answer(self, form: Mapping[str, str], instance_url: str, host_url: str) -> dict[str, Any]:
        """Answer a token request.

        :raises Denied: if it is denied
        """
        flows: dict[str, Callable[[Mapping[str, str]], dict[str, Any]]] = {
            "password": self._password,
            "refresh_token": self._refresh,
            "client_credentials": self._client_credentials,
            "authorization_code": self._code,
            "urn:ietf:params:oauth:grant-type:jwt-bearer": self._jwt,
        }
        flow = flows.get(form.get("grant_type", ""))
        if flow is None:
            raise Denied("unsupported_grant_type", "grant type not supported")
        fields = flow(form)
        identity = f"{host_url}/id/{self.org_id}/{self.user_id}"
        answer = {
            "access_token": self.issue(),
            "instance_url": instance_url,
            "id": identity,
            "token_type": "Bearer",
            **fields,
        }
        # Nothing is signed where no secret is shared.
        if flow != self._jwt:
            issued_at = str(int(time.time() * 1000))
            answer.update(issued_at=issued_at, signature=self.sign(identity, issued_at))
        return answer

    def identity(self, url: str, token: str | None) -> dict[str, Any]:
        """Say who an access token belongs to.

        :param url: the identity URL
        :raises Denied: if the token is not valid
        """
        if token not in self.tokens:
            raise Denied("Missing_OAuth_Token" if token is None else "Bad_OAuth_Token")
        return {
            "id": url,
            "user_id": self.user_id,
            "organization_id": self.org_id,
            "username": self.username,
            "display_name": "Test User",
            "email": self.username,
            "active": True,
        }

    def sign(self, identity: str, issued_at: str) -> str:
        """Sign an answer as Salesforce does."""
        key, message = self.consumer_secret.encode(), (identity + issued_at).encode()
        return base64.b64encode(hmac.new(key, message, hashlib.sha256).digest()).decode()

    def _check_client(self, form: Mapping[str, str]) -> None:
        if form.get("client_id") != self.consumer_key:
            raise Denied("invalid_client_id", "client identifier invalid")
        if form.get("client_secret") != self.consumer_secret:
            raise Denied("invalid_client", "invalid client credentials")

    def _password(self, form: Mapping[str, str]) -> dict[str, Any]:
        self._check_client(form)
        if (form.get("username"), form.get("password")) != (self.username, self.password):
            raise Denied(*BAD_CREDENTIALS)
        return {}

    def _refresh(self, form: Mapping[str, str]) -> dict[str, Any]:
        self._check_client(form)
        if form.get("refresh_token") != self.refresh_token:
            raise Denied("invalid_grant", "expired access/refresh token")
        fields = {"scope": "api refresh_token"}
        if self.rotate:
            self.refresh_token = f"refresh-token-{next(self._numbers)}"
            fields["refresh_token"] = self.refresh_token
        return fields

    def _client_credentials(self, form: Mapping[str, str]) -> dict[str, Any]:
        if not self.my_domain:
            raise Denied("invalid_grant", "request not supported on this domain")
        self._check_client(form)
        return {"scope": "api"}

    def _jwt(self, form: Mapping[str, str]) -> dict[str, Any]:
        try:
            import jwt
        except ImportError as error:
            raise RuntimeError(
                "The test server verifies JWT assertions with PyJWT: pip install aiosfstream[jwt]"
            ) from error

        if self.public_key is None:
            raise Denied("invalid_grant", "user hasn't approved this consumer")
        try:
            claims = jwt.decode(
                form.get("assertion", ""),
                self.public_key,
                algorithms=["RS256"],
                audience=AUDIENCES,
                options={"require": ["iss", "sub", "aud", "exp"]},
            )
        except jwt.ExpiredSignatureError:
            raise Denied("invalid_grant", "expired authorization code") from None
        except jwt.InvalidAudienceError:
            raise Denied("invalid_grant", "audience is invalid") from None
        except jwt.InvalidTokenError:
            raise Denied("invalid_grant", "invalid assertion") from None
        if claims["iss"] != self.consumer_key:
            raise Denied("invalid_client_id", "client identifier invalid")
        if claims["sub"] != self.username:
            raise Denied("invalid_grant", "user hasn't approved this consumer")
        return {"scope": "id full"}

    def authorize(self, query: Mapping[str, str]) -> str:
        """Approve an authorization request at once.

        :return: the URL to redirect to
        :raises Denied: if the request is not understood
        """
        if query.get("client_id") != self.consumer_key:
            raise Denied("invalid_client_id", "client identifier invalid")
        if query.get("response_type") != "code" or "redirect_uri" not in query:
            raise Denied("invalid_request", "response_type=code and redirect_uri are required")
        code = f"code-{next(self._numbers)}"
        self.codes[code] = (query["redirect_uri"], query.get("code_challenge", ""))
        separator = "&" if "?" in query["redirect_uri"] else "?"
        answer = urlencode({"code": code, "state": query.get("state", "")})
        return f"{query['redirect_uri']}{separator}{answer}"

    def _code(self, form: Mapping[str, str]) -> dict[str, Any]:
        redirect_uri, challenge = self.codes.pop(form.get("code", ""), ("", ""))
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        proved = base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == challenge
        if not redirect_uri or form.get("redirect_uri") != redirect_uri:
            raise Denied("invalid_grant", "expired authorization code")
        if challenge and not proved:
            raise Denied("invalid_grant", "invalid code verifier")
        if form.get("client_id") != self.consumer_key:
            raise Denied("invalid_client_id", "client identifier invalid")
        # Who has proved to be the one who asked needs no secret.
        otherwise = self.consumer_secret if challenge else None
        if form.get("client_secret", otherwise) != self.consumer_secret:
            raise Denied("invalid_client", "invalid client credentials")
        return {"refresh_token": self.refresh_token, "scope": "api refresh_token"}
