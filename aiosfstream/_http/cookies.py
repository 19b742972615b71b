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
    """A cookie jar that remembers the header of the server's requests, while its cookies do not change.

    A client sends all of its requests to one URL, and aiohttp looks up the cookies of each and writes them
    anew: with a cookie in the jar, that is a tenth of what a request costs.
    """

    def __init__(self) -> None:
        # Unsafe: a server may be known by its address only. Unquoted: load balancers look for the value
        # that they have sent.
        super().__init__(quote_cookie=False, unsafe=True)
        self._header: str | None = None
        self._header_for = ""
        #: The URL that :meth:`header` was asked for.
        self.url: URL | None = None
        self._header_until = 0.0

    def header(self, url: str) -> str:
        """Give the ``Cookie`` header of requests to *url*, which whoever calls this puts into them.

        :param url: the URL; :meth:`filter_cookies` gives no cookies for it any more, until this is asked
            for another
        :return: the header's value; empty if there are no cookies for it
        :raises ValueError: if *url* is none
        """
        now = time.monotonic()
        header = self._header
        if header is None or url != self._header_for or now >= self._header_until:
            self._header_for, self.url = url, URL(url)
            # The same text that aiohttp would make of them.
            cookies = super().filter_cookies(self.url)
            header = self._header = cookies.output(header="", sep=";").strip()
            self._header_until = now + REMEMBERED_FOR
        return header

    def filter_cookies(self, request_url: URL = _NO_URL) -> BaseCookie[str]:
        """Give the cookies that aiohttp has to put into a request to *request_url*."""
        if request_url is self.url or request_url == self.url:
            return BaseCookie()
        return super().filter_cookies(request_url)

    def update_cookies(self, cookies: Any, response_url: URL = _NO_URL) -> None:
        """Take *cookies*, which *response_url* has set, into the jar."""
        self._header = None
        super().update_cookies(cookies, response_url)

    def update_cookies_from_headers(self, headers: Sequence[str], response_url: URL) -> None:
        """Take the cookies of the ``Set-Cookie`` *headers* of *response_url* into the jar."""
        self._header = None
        super().update_cookies_from_headers(headers, response_url)

    def clear(self, predicate: Any = None) -> None:
        """Drop the cookies of which *predicate* says so, or all."""
        self._header = None
        super().clear(predicate)
