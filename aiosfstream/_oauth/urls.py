"""The URLs of the OAuth endpoints, and where a token or a password may be sent."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Final
from urllib.parse import SplitResult, urlsplit

LOGIN_URL: Final = "https://login.salesforce.com"
SANDBOX_LOGIN_URL: Final = "https://test.salesforce.com"
TOKEN_PATH: Final = "/services/oauth2/token"  # noqa: S105 - a path
AUTHORIZE_PATH: Final = "/services/oauth2/authorize"


def normalize_login_url(url: str, name: str = "login_url") -> str:
    """Give the base of the OAuth endpoints for what a user calls their login URL.

    :param url: a host or URL, with or without scheme, path and trailing slash
    :param name: what an error calls it
    :return: scheme, host and path without a slash at the end
    :raises ValueError: if it cannot be logged in at
    """
    return _normalized(url.strip() if isinstance(url, str) else "", name)


# Thousands of clients have the same few URLs.
@lru_cache(maxsize=64)
def _normalized(text: str, name: str) -> str:
    """Do for :func:`normalize_login_url` what can be remembered."""
    parts = _split(text if "://" in text else f"https://{text}")
    if not text or parts is None:
        raise ValueError(
            f"{name} should be a host or a URL, such as 'https://MyDomainName.my.salesforce.com'"
        )
    # Not quoted: what stands there may be a password.
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"{name} should be a host with nothing but a path: no user, no query")
    if not is_secure(text if "://" in text else f"https://{text}"):
        raise ValueError(
            f"{name} should be an https URL, since credentials go there: {text!r:.200}"
        )
    host = parts.hostname or ""
    better = _my_domain_of(host)
    if better is not None:
        raise ValueError(
            f"{name} should not be {host}, which serves the user interface only: use {better}"
        )
    path = parts.path.rstrip("/").removesuffix(TOKEN_PATH).removesuffix(AUTHORIZE_PATH).rstrip("/")
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def _split(url: str) -> SplitResult | None:
    """Split a URL, or give None for what is none."""
    if not re.fullmatch(r"[!-~]+", url):
        return None
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return None
    return parts if re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]+", host) else None


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
    parts = _split(url)
    if parts is None:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))


@lru_cache(maxsize=64)
def is_base_url(url: str) -> bool:
    """Say whether the path of an API can be put behind *url*, and a token be sent there."""
    parts = _split(url)
    return (
        parts is not None
        and is_secure(url)
        and "@" not in parts.netloc
        and "?" not in url
        and "#" not in url
    )


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


def host_of(url: str) -> str:
    parts = _split(url)
    return (parts.hostname if parts is not None else None) or "unknown"


def audience_of(login_url: str, *, sandbox: bool = False) -> str:
    """Give the audience of a JWT assertion.

    A My Domain URL is not documented as one: login.salesforce.com stands for those of production,
    test.salesforce.com for those of sandboxes and scratch orgs. An Experience Cloud site, on Salesforce's
    domain or one of its own, is its own audience.

    :param login_url: a normalized login URL
    :param sandbox: whether the org is known to be a sandbox
    :return: the ``aud`` claim
    """
    parts = urlsplit(login_url)
    host = parts.hostname or ""
    is_org = host.endswith(".salesforce.com") or is_loopback(host)
    if parts.path or not is_org:
        return login_url
    name, *kind = host.split(".")
    is_named_so = kind[:2] in (["sandbox", "my"], ["scratch", "my"])
    # Before enhanced domains a sandbox had no label of its own, just its name behind two dashes.
    if sandbox or host == "test.salesforce.com" or is_named_so or "--" in name:
        return SANDBOX_LOGIN_URL
    return LOGIN_URL
