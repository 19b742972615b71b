"""The URLs of the OAuth endpoints, and where a token or a password may be sent."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from functools import lru_cache
from typing import Final
from urllib.parse import SplitResult, urlsplit

from .._text import fit

LOGIN_URL: Final = "https://login.salesforce.com"
SANDBOX_LOGIN_URL: Final = "https://test.salesforce.com"
TOKEN_PATH: Final = "/services/oauth2/token"  # noqa: S105 - a path
AUTHORIZE_PATH: Final = "/services/oauth2/authorize"

#: A scheme that was mistyped, or is there twice.
_SLIP: Final = re.compile(
    r"(?i)(?:https?(?::(?!//)|;|//|:///+)/*)(?!\d+(?:/|$))|(?:https?://)+(?=https?[:/])(?:https?:?/*)"
)


def normalize_login_url(url: str, name: str = "login_url") -> str:
    """Give the base of the OAuth endpoints for what a user calls their login URL.

    :param url: a host or URL, with or without scheme, path and trailing slash
    :param name: what an error calls it
    :return: scheme, host and path without a slash at the end
    :raises ValueError: if it cannot be logged in at; the error names the URL that was probably meant
    """
    return _normalized(url.strip() if isinstance(url, str) else "", name)


# Thousands of clients have the same few URLs.
@lru_cache(maxsize=64)
def _normalized(text: str, name: str) -> str:
    """Do for :func:`normalize_login_url` what can be remembered."""
    slip = _SLIP.match(text)
    if slip is not None and "@" not in text and (rest := text[slip.end() :]):
        raise ValueError(
            f"{name} should begin with 'https://' or with the host: use {_meant(rest)!r} in place of"
            f" {fit(text)!r}"
        )
    url = text if "://" in text else f"https://{text}"
    parts = _split(url)
    if not text or parts is None or parts.hostname in ("http", "https"):
        raise ValueError(
            f"{name} should be a host or a URL, such as 'https://MyDomainName.my.salesforce.com'"
        )
    # Not quoted: what stands there may be a password.
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"{name} should be a host with nothing but a path: no user, no query")
    if not is_secure(url):
        raise ValueError(
            f"{name} should be an https URL, since credentials go there: {fit(text)!r}"
        )
    host = parts.hostname or ""
    if (better := _host_meant(host)) is not None:
        raise ValueError(
            f"{name} should be a host of the org, and {host} is none: use {better}, as in 'https://{better}'"
        )
    path = parts.path.rstrip("/").removesuffix(TOKEN_PATH).removesuffix(AUTHORIZE_PATH).rstrip("/")
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def _meant(text: str) -> str:
    """Give the URL that was probably meant by a text whose scheme was mistyped."""
    host, slash, path = text.partition("/")
    return f"https://{_host_meant(host.lower()) or host}{slash}{path}".rstrip("/")


def _split(url: str) -> SplitResult | None:
    """Split a URL, or give None for what is none."""
    if not re.fullmatch(r"[!-~]+", url):
        return None
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except (ValueError, IndexError):
        return None
    return parts if re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]+", host) else None


def _host_meant(host: str) -> str | None:
    """Give the host to use instead of one where nobody of that org can log in, or None if it is right."""
    host = host.rstrip(".")
    for suffix in (".lightning.force.com", ".my.salesforce-setup.com", ".salesforce-setup.com"):
        if host.endswith(suffix):
            return host.removesuffix(suffix) + ".my.salesforce.com"
    if host in ("login", "test"):
        return f"{host}.salesforce.com"
    # What other libraries call a domain; acme.my is a stranger's.
    if host.endswith((".my", ".my.salesforce")):
        return host.removesuffix(".salesforce") + ".salesforce.com"
    is_name = "." not in host and ":" not in host
    return f"{host}.my.salesforce.com" if is_name and not is_loopback(host) else None


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
    """Say whether the path of an API can be appended to *url*, and a token be sent there.

    :param url: a URL
    """
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
    host = host.lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_is_allowed(url: str, allowed_hosts: Collection[str] | None) -> bool:
    """Say whether a token may be sent to the host of *url*.

    :param url: the URL, such as an instance URL
    :param allowed_hosts: host names; one that begins with a dot, or with ``*.``, stands for all below it.
        None: any host
    """
    if allowed_hosts is None:
        return True
    parts = _split(url)
    host = (parts.hostname or "").rstrip(".") if parts is not None else ""
    names = {name.lower().rstrip(".").removeprefix("*") for name in allowed_hosts}
    return bool(host) and any(
        host.endswith(name) and host != name if name.startswith(".") else host == name
        for name in names
    )


def host_of(url: str) -> str:
    """Give the host of *url*, or "unknown".

    :param url: a URL
    """
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
    # Before enhanced domains a sandbox had no label of its own, just two dashes before its name.
    if sandbox or host == "test.salesforce.com" or is_named_so or "--" in name:
        return SANDBOX_LOGIN_URL
    return LOGIN_URL
