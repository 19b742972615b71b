"""The way to Salesforce: proxies and certificate authorities."""

from __future__ import annotations

import argparse
import functools
import os
import ssl
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from .console import UsageError

__all__ = ["Network", "network_from"]


@dataclass(frozen=True)
class Network:
    """How requests are made.

    :ivar session_factory: makes a session, as a client takes it
    :ivar ssl: how TLS is verified, as aiohttp takes it; None: as usual
    """

    session_factory: Callable[..., aiohttp.ClientSession]
    ssl: ssl.SSLContext | None


def network_from(options: argparse.Namespace) -> Network:
    """Give the way that ``--proxy``, ``--cacert`` and the environment ask for.

    :param options: the command line
    :raises UsageError: if one of them cannot be used
    """
    context = None if options.cacert is None else _trusting(options.cacert)
    if options.proxy is not None:
        proxy = _proxy_url(options.proxy, "--proxy")
        return Network(functools.partial(aiohttp.ClientSession, proxy=proxy), context)
    found = urllib.request.getproxies().get("https", "")
    if not found:
        return Network(aiohttp.ClientSession, context)
    # As it is read by aiohttp, which looks at NO_PROXY for each host.
    os.environ["https_proxy"] = _proxy_url(found, "HTTPS_PROXY")
    # Only this machine is ever reached without TLS, and not by way of another.
    for name in ("http_proxy", "HTTP_PROXY"):
        os.environ.pop(name, None)
    # Where aiohttp takes the environment's proxy it takes passwords from ~/.netrc as well, for Salesforce's
    # hosts too, where they would be sent in place of the token.
    os.environ["NETRC"] = os.devnull
    return Network(functools.partial(aiohttp.ClientSession, trust_env=True), context)


def _proxy_url(text: str, name: str) -> str:
    """Give the URL of a proxy, which may be given without its scheme."""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        valid = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        # Not quoted: there may be a password in it.
        raise UsageError(
            f"{name} should be the URL of an HTTP proxy, such as http://proxy.example.com:3128"
        )
    return url


def _trusting(path: Path) -> ssl.SSLContext:
    """Trust the authorities in a file, besides the usual ones."""
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise UsageError(
            f"--cacert {path} holds no certificates: it should be a file in PEM format"
        ) from error
    except OSError as error:
        raise UsageError(
            f"--cacert {path} cannot be read: {error.strerror}. Check the name."
        ) from error
    return context
