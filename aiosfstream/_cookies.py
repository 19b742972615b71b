"""The cookies of one client, which hardly ever change."""

from __future__ import annotations

import time
from collections.abc import Sequence
from http.cookies import BaseCookie
from typing import Any

import aiohttp
from yarl import URL

#: For how long, in seconds, cookies are sent again without a look at their expiry. A server that counts an
#: expiry to the second has to bear more than that from the clock of its client.
REMEMBERED_FOR = 5.0

_NO_URL = URL()


class CookieJar(aiohttp.CookieJar):
    """A cookie jar that remembers what it gave for the last URL, while its cookies do not change.

    A client sends all of its requests to one server, and aiohttp looks up the cookies of each anew: with a
    cookie in the jar, that is a twentieth of what a request costs.
    """

    def __init__(self) -> None:
        # Unsafe: a server may be known by its address only. Unquoted: load balancers look for the value
        # that they have sent.
        super().__init__(quote_cookie=False, unsafe=True)
        self._given: BaseCookie[str] | None = None
        self._given_for = _NO_URL
        self._given_until = 0.0

    def filter_cookies(self, request_url: URL = _NO_URL) -> BaseCookie[str]:
        """Give the cookies for *request_url*."""
        now = time.monotonic()
        given = self._given
        if given is None or request_url != self._given_for or now >= self._given_until:
            given = self._given = super().filter_cookies(request_url)
            self._given_for, self._given_until = request_url, now + REMEMBERED_FOR
        return given

    def update_cookies(self, cookies: Any, response_url: URL = _NO_URL) -> None:
        """Take *cookies*, which *response_url* has set, into the jar."""
        self._given = None
        super().update_cookies(cookies, response_url)

    def update_cookies_from_headers(self, headers: Sequence[str], response_url: URL) -> None:
        """Take the cookies of the ``Set-Cookie`` *headers* of *response_url* into the jar."""
        self._given = None
        super().update_cookies_from_headers(headers, response_url)

    def clear(self, predicate: Any = None) -> None:
        """Drop the cookies of which *predicate* says so, or all."""
        self._given = None
        super().clear(predicate)
