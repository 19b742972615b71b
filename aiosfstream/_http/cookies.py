"""The cookies of one client, sent back byte for byte as they came (RFC 6265)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from http.cookies import BaseCookie, Morsel, SimpleCookie
from ipaddress import ip_address
from types import MappingProxyType
from typing import Final

from aiohttp.abc import AbstractCookieJar, ClearCookiePredicate
from aiohttp.typedefs import LooseCookies
from yarl import URL

#: Whether the request that is being made has its ``Cookie`` header already: aiohttp would write it anew,
#: and ask the jar for cookies to add.
WRITTEN: ContextVar[bool] = ContextVar("aiosfstream_cookies_written", default=False)

#: Characters that a name with its value, and an attribute, may have; browsers draw the line there as well.
MAX_PAIR: Final = 4096
MAX_ATTRIBUTE: Final = 1024
#: Cookies that a jar keeps; a new one takes the place of the oldest.
MAX_COOKIES: Final = 200

_NO_URL: Final = URL()
#: What no header can carry: control characters, and bytes that are not UTF-8.
_UNFIT: Final = re.compile("[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_BLANK: Final = " \t"

# The parts of a date, RFC 6265, 5.1.1.
_DELIMITERS: Final = re.compile("[\t\x20-\x2f\x3b-\x40\x5b-\x60\x7b-\x7e]+")
_TIME: Final = re.compile(r"(\d{1,2}):(\d{1,2}):(\d{1,2})(?!\d)", re.ASCII)
_DAY: Final = re.compile(r"(\d{1,2})(?!\d)", re.ASCII)
_YEAR: Final = re.compile(r"(\d{2,4})(?!\d)", re.ASCII)
_AGE: Final = re.compile(r"-?[0-9]{1,18}")
_MONTHS: Final = (
    "jan",
    "feb",
    "mar",
    "apr",
    "may",
    "jun",
    "jul",
    "aug",
    "sep",
    "oct",
    "nov",
    "dec",
)


@dataclass(frozen=True)
class Cookie:
    """A cookie.

    :ivar name: its name
    :ivar value: its value as it came, with quotes if it has any
    :ivar domain: the host that it is for; empty: any
    :ivar path: the path that it is for, with all below
    :ivar host_only: whether it is for that host only, and not for those below it
    :ivar secure: whether it goes over TLS only
    :ivar expires: when it ends, as time.time() counts; None: never
    """

    name: str
    value: str
    domain: str
    path: str
    host_only: bool
    secure: bool
    expires: float | None

    def is_for(self, host: str, path: str, is_secure: bool) -> bool:
        """Say whether it goes into a request to *host* and *path*, over TLS or not (RFC 6265, 5.4)."""
        if self.secure and not is_secure:
            return False
        if self.domain not in ("", host) and (self.host_only or not is_below(host, self.domain)):
            return False
        return path_matches(path, self.path)

    def has_ended(self, now: float) -> bool:
        """Say whether it is sent no longer at *now*."""
        return self.expires is not None and self.expires <= now

    def morsel(self) -> Morsel[str]:
        """Give it in the form that Python's library has for cookies."""
        morsel: Morsel[str] = Morsel()
        # There is no other way to keep Python from putting the value into quotes.
        morsel.__setstate__({"key": self.name, "value": self.value, "coded_value": self.value})  # type: ignore[attr-defined]
        morsel["domain"], morsel["path"] = self.domain, self.path
        if self.secure:
            morsel["secure"] = True
        return morsel


class CookieJar(AbstractCookieJar):
    """Takes ``Set-Cookie`` headers as they are, and gives them back as a ``Cookie`` header.

    aiohttp's own jar reads them as Python's library does, which puts values into quotes or takes these away,
    sorts cookies by their names, and has room for only one of a name. Load balancers look for the very bytes
    that they have sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[tuple[str, str, str], Cookie] = {}

    @property
    def unsafe(self) -> bool:
        """Whether cookies of hosts that are known by their address only are kept."""
        return True

    @property
    def quote_cookie(self) -> bool:
        """Whether values are put into quotes."""
        return False

    @property
    def cookies(self) -> MappingProxyType[tuple[str, str], SimpleCookie]:
        """The cookies by domain and path."""
        found: dict[tuple[str, str], SimpleCookie] = {}
        for cookie in self._kept.values():
            place = found.setdefault((cookie.domain, cookie.path), SimpleCookie())
            place[cookie.name] = cookie.morsel()
        return MappingProxyType(found)

    @property
    def host_only_cookies(self) -> frozenset[tuple[str, str, str]]:
        """The domain, path and name of each cookie that is for one host only."""
        return frozenset(key for key, cookie in self._kept.items() if cookie.host_only)

    def __iter__(self) -> Iterator[Morsel[str]]:
        """Give each cookie."""
        return (cookie.morsel() for cookie in self._kept.values())

    def __len__(self) -> int:
        """Give how many cookies there are."""
        return len(self._kept)

    def header(self, url: URL) -> str:
        """Give the ``Cookie`` header of a request to *url*.

        :param url: where the request goes to
        :return: the header's value; empty if there are no cookies for it
        """
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in self._cookies_for(url))

    def filter_cookies(self, request_url: URL = _NO_URL) -> BaseCookie[str]:
        """Give aiohttp the cookies that it has to write into a request to *request_url*.

        There are none where :data:`WRITTEN` says that the request has its header already. Of several cookies
        of one name, aiohttp can write the first only.
        """
        found = SimpleCookie()
        if not WRITTEN.get():
            for cookie in self._cookies_for(request_url):
                if cookie.name not in found:
                    found[cookie.name] = cookie.morsel()
        return found

    def update_cookies_from_headers(self, headers: Sequence[str], response_url: URL) -> None:
        """Take the cookies of the ``Set-Cookie`` *headers* of *response_url* (RFC 6265, 5.2)."""
        for header in headers:
            pair, *attributes = header.split(";")
            name, equals, value = (part.strip(_BLANK) for part in pair.partition("="))
            if equals and name and "\t" not in name + value and not _UNFIT.search(header):
                self._take(name, value, _attributes(attributes), response_url)

    def update_cookies(self, cookies: LooseCookies, response_url: URL = _NO_URL) -> None:
        """Take *cookies* that an application gives; without a URL, for all hosts."""
        for name, value in cookies.items() if isinstance(cookies, Mapping) else cookies:
            if isinstance(value, BaseCookie):
                self.update_cookies(value, response_url)
            elif isinstance(value, Morsel):
                given = {key: str(item) for key, item in value.items() if item}
                self._take(name, value.coded_value, given, response_url)
            else:
                self._take(name, str(value), {}, response_url)

    def clear(self, predicate: ClearCookiePredicate | None = None) -> None:
        """Drop the cookies of which *predicate* says so, or all."""
        for key, cookie in list(self._kept.items()):
            if predicate is None or predicate(cookie.morsel()):
                del self._kept[key]

    def clear_domain(self, domain: str) -> None:
        """Drop the cookies of *domain* and of the hosts below it."""
        for key, cookie in list(self._kept.items()):
            if cookie.domain == domain or is_below(cookie.domain, domain):
                del self._kept[key]

    def _cookies_for(self, url: URL) -> list[Cookie]:
        """Give the cookies for *url*, longer paths first, then older ones."""
        if not self._kept:
            return []
        now, host, path, is_secure = time.time(), _host_of(url), url.raw_path, url.scheme == "https"
        found = []
        for key, cookie in list(self._kept.items()):
            if cookie.has_ended(now):
                del self._kept[key]
            elif cookie.is_for(host, path, is_secure):
                found.append(cookie)
        return sorted(found, key=lambda cookie: -len(cookie.path))

    def _take(self, name: str, value: str, attributes: Mapping[str, str], url: URL) -> None:
        """Take one cookie, or what deletes one (RFC 6265, 5.3)."""
        host = _host_of(url)
        domain = attributes.get("domain", "").removeprefix(".").lower()
        if len(name) + len(value) > MAX_PAIR or not _may_set(host, domain):
            return
        path = attributes.get("path", "")
        cookie = Cookie(
            name,
            value,
            domain=domain or host,
            path=path if path.startswith("/") else default_path(url.raw_path),
            host_only=bool(host) and not domain,
            secure="secure" in attributes,
            expires=_end_of(attributes),
        )
        key = (cookie.domain, cookie.path, name)
        if cookie.has_ended(time.time()):
            self._kept.pop(key, None)
            return
        # One that is replaced keeps its place: it is as old as before.
        self._kept[key] = cookie
        if len(self._kept) > MAX_COOKIES:
            del self._kept[next(iter(self._kept))]


def default_path(path: str) -> str:
    """Give the path of a cookie that came without one, from *path* (RFC 6265, 5.1.4)."""
    return (path.startswith("/") and path[: path.rfind("/")]) or "/"


def path_matches(path: str, cookie_path: str) -> bool:
    """Say whether a cookie of *cookie_path* is for *path* (RFC 6265, 5.1.4)."""
    if not path.startswith(cookie_path):
        return False
    return cookie_path.endswith("/") or path[len(cookie_path) :][:1] in ("", "/")


def is_below(host: str, domain: str) -> bool:
    """Say whether *host* is a name below *domain* (RFC 6265, 5.1.3)."""
    return host.endswith("." + domain) and not _is_address(host)


def parse_date(text: str) -> float | None:
    """Read the date of a cookie, in any of the forms that servers write (RFC 6265, 5.1.1).

    :param text: the date
    :return: seconds since 1970, or None if it is no date
    """
    clock = day = month = year = None
    for token in _DELIMITERS.split(text):
        if clock is None and (match := _TIME.match(token)):
            clock = timedelta(hours=int(match[1]), minutes=int(match[2]), seconds=int(match[3]))
        elif day is None and (match := _DAY.match(token)):
            day = int(match[1])
        elif month is None and token[:3].lower() in _MONTHS:
            month = _MONTHS.index(token[:3].lower()) + 1
        elif year is None and (match := _YEAR.match(token)):
            year = int(match[1])
    if clock is None or day is None or month is None or year is None:
        return None
    if year < 100:
        year += 1900 if year >= 70 else 2000
    if year < 1601 or clock >= timedelta(days=1):
        return None
    try:
        return (datetime(year, month, day, tzinfo=timezone.utc) + clock).timestamp()
    except (ValueError, OverflowError):
        return None


def _host_of(url: URL) -> str:
    return (url.raw_host or "").lower()


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _may_set(host: str, domain: str) -> bool:
    """Say whether *host* may set a cookie for *domain*: not for all of ``.com``."""
    return domain in ("", host) or not host or ("." in domain and is_below(host, domain))


def _attributes(parts: list[str]) -> dict[str, str]:
    """Read the attributes of a cookie by their names; the last of a name counts."""
    found = {}
    for part in parts:
        name, _, value = (piece.strip(_BLANK) for piece in part.partition("="))
        if len(value) <= MAX_ATTRIBUTE:
            found[name.lower()] = value
    return found


def _end_of(attributes: Mapping[str, str]) -> float | None:
    """Give when a cookie with *attributes* ends."""
    age = attributes.get("max-age", "")
    if _AGE.fullmatch(age):
        return time.time() + int(age) if not age.startswith("-") else 0.0
    return parse_date(attributes.get("expires", ""))
