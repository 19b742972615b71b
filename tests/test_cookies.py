"""The cookie jar of a client: what it remembers, and when it looks again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from http.cookies import SimpleCookie

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer as Server
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from aiosfstream._http.cookies import REMEMBERED_FOR, CookieJar

HERE = URL("http://127.0.0.1:8080/cometd/60.0")
ELSEWHERE = URL("http://127.0.0.2:8080/cometd/60.0")


class Clock:
    """A clock that goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(time, "time", clock)
    return clock


@pytest.fixture
async def jar(clock: Clock) -> CookieJar:
    jar = CookieJar()
    set_cookie(jar, "routing=a!//b=; Path=/")
    return jar


def set_cookie(jar: CookieJar, header: str) -> None:
    """Take a ``Set-Cookie`` header, by the one way that every aiohttp has."""
    jar.update_cookies(SimpleCookie(header), HERE)


def sent(jar: CookieJar, url: URL = HERE) -> str:
    return jar.header(str(url))


async def test_what_was_given_is_given_again(jar: CookieJar) -> None:
    first = jar.header(str(HERE))
    assert first == "routing=a!//b="
    assert jar.header(str(HERE)) is first


async def test_each_server_gets_its_own(jar: CookieJar) -> None:
    assert sent(jar) == "routing=a!//b="
    assert sent(jar, ELSEWHERE) == ""
    assert sent(jar) == "routing=a!//b="


async def test_what_is_in_the_header_is_not_given_to_aiohttp_as_well(jar: CookieJar) -> None:
    assert list(jar.filter_cookies(HERE)) == ["routing"]
    jar.header(str(HERE))
    assert list(jar.filter_cookies(HERE)) == []
    # A request for a token to the same host, for which nobody writes a header.
    token = HERE.with_path("/services/oauth2/token")
    assert list(jar.filter_cookies(token)) == ["routing"]
    jar.header(str(ELSEWHERE))
    assert list(jar.filter_cookies(HERE)) == ["routing"]


async def test_the_header_of_what_is_no_url(jar: CookieJar) -> None:
    with pytest.raises(ValueError, match="port"):
        jar.header("http://nowhere:port")


CHANGES: dict[str, tuple[Callable[[CookieJar], None], str]] = {
    "another value": (lambda jar: set_cookie(jar, "routing=c; Path=/"), "routing=c"),
    "another cookie": (
        lambda jar: set_cookie(jar, "browser=1; Path=/"),
        "browser=1; routing=a!//b=",
    ),
    "deleted by the server": (lambda jar: set_cookie(jar, "routing=a; Path=/; Max-Age=0"), ""),
    "cleared": (lambda jar: jar.clear(), ""),
    "cleared by choice": (lambda jar: jar.clear(lambda cookie: cookie.key == "routing"), ""),
    "cleared by domain": (lambda jar: jar.clear_domain("127.0.0.1"), ""),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_is_seen_at_once(jar: CookieJar, change: str) -> None:
    assert sent(jar) == "routing=a!//b="
    make, expected = CHANGES[change]
    make(jar)
    assert sent(jar) == expected


async def test_each_answer_may_change_them() -> None:
    received: list[str] = []

    async def count(request: web.Request) -> web.Response:
        received.append(request.headers.get("Cookie", "none"))
        answer = web.Response()
        answer.set_cookie("count", str(len(received)))
        return answer

    app = web.Application()
    app.router.add_get("/", count)
    async with Server(app) as server, aiohttp.ClientSession(cookie_jar=CookieJar()) as http:
        for _ in range(3):
            async with http.get(server.make_url("/")) as response:
                assert response.status == 200
    assert received == ["none", "count=1", "count=2"]


async def test_a_cookie_that_ran_out_is_sent_no_longer_than_promised(
    jar: CookieJar, clock: Clock
) -> None:
    set_cookie(jar, "session=1; Path=/; Max-Age=3")
    assert sent(jar) == "routing=a!//b=; session=1"
    clock.now += REMEMBERED_FOR
    assert sent(jar) == "routing=a!//b="


names = st.text("abcXYZ09!#$%&'*+-.^_`|~", min_size=1, max_size=6)
# What servers send: base64, slashes and signs that Python's own cookies would put into quotes.
values = st.text("abcXYZ09!#$%&'()*+-./:<=>?@[]^_`{|}~", max_size=12)
headers = st.lists(
    st.builds("{}={}; Path={}".format, names, values, st.sampled_from(["/", "/cometd", "/other"])),
    max_size=5,
)


@given(headers)
def test_the_header_is_the_one_that_aiohttp_would_write(set_cookies: list[str]) -> None:
    async def header_of_aiohttp() -> tuple[str, str]:
        jar = CookieJar()
        for one in set_cookies:
            set_cookie(jar, one)
        async with aiohttp.ClientSession() as http:
            request = aiohttp.ClientRequest(
                "POST", HERE, loop=asyncio.get_running_loop(), session=http
            )
            request.update_cookies(jar.filter_cookies(HERE))
        return request.headers.get("Cookie", ""), jar.header(str(HERE))

    expected, header = asyncio.run(header_of_aiohttp())
    assert header == expected
