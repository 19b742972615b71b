"""Cookies are sent back byte for byte, to those that they are for (RFC 6265)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from http.cookies import SimpleCookie

import aiohttp
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from aiosfstream._http import cookies
from aiosfstream._http.cookies import CookieJar, default_path, parse_date, path_matches
from aiosfstream._http.deadline import limits_for
from aiosfstream._http.post import Answer, post

HERE = URL("http://127.0.0.1:8080/cometd/60.0")
ELSEWHERE = URL("http://127.0.0.2:8080/cometd/60.0")
NOW = 1_800_000_000.0


class Clock:
    """A clock that goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


@pytest.fixture
async def jar(clock: Clock) -> CookieJar:
    return CookieJar()


def take(jar: CookieJar, *headers: str, url: URL | str = HERE) -> str:
    """Take ``Set-Cookie`` headers, and give what is sent then."""
    jar.update_cookies_from_headers(headers, URL(url))
    return jar.header(URL(url))


@pytest.mark.parametrize(
    "value",
    [
        "a!//b==",
        '"quoted"',
        '"quo\\"ted; not',
        '"a b"',
        "a,b c",
        "{json:[1]}",
        "",
        "naïve",
        "x" * 4000,
        'in"side',
        '"',
        "a=b=c",
        "%20\\054",
    ],
)
async def test_values_stay_as_they_are(jar: CookieJar, value: str) -> None:
    assert take(jar, f"routing={value}; Path=/") == f"routing={value.partition(';')[0]}"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "novalue",
        "=value",
        "a=1\t2",
        "a\tb=1",
        "a\x00=1",
        "a=1\x7f",
        "a=\udcff",
        "x=" + "y" * 4096,
        ";a=1",
        "Path=/",
    ],
)
async def test_what_is_no_cookie(jar: CookieJar, header: str) -> None:
    # A cookie may well be called "Path".
    assert take(jar, header) == (header if header == "Path=/" else "")


@pytest.mark.parametrize(
    "attributes",
    [
        "Partitioned",
        "Priority=High",
        "Partitioned; Priority=High; SameSite=None; HttpOnly",
        "Version=1",
        "unknown",
        "un known=a b",
        "=",
        ";;",
        "Max-Age=soon",
        "Max-Age=",
        "Expires=never",
        "Expires=" + "1" * 5000,
        "Domain",
        "Domain=",
        "Path",
        "Path=relative",
        'Comment="a; b=2"',
    ],
)
async def test_attributes_neither_drop_a_cookie_nor_become_one(
    jar: CookieJar, attributes: str
) -> None:
    assert take(jar, f"a=1; {attributes}") == "a=1"
    assert len(jar) == 1


async def test_two_of_one_name_go_by_their_paths(jar: CookieJar) -> None:
    take(jar, "a=root; Path=/", "b=1; Path=/", "a=deep; Path=/cometd", "c=2; Path=/cometd/60.0")
    assert jar.header(HERE) == "c=2; a=deep; a=root; b=1"
    assert jar.header(HERE.with_path("/services/oauth2/token")) == "a=root; b=1"
    assert len(jar) == 4


async def test_one_that_is_replaced_keeps_its_place(jar: CookieJar) -> None:
    take(jar, "a=1", "b=2")
    assert take(jar, "a=3") == "a=3; b=2"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("", "/"),
        ("/cometd", "/"),
        ("/cometd/", "/cometd"),
        ("/cometd/60.0", "/cometd"),
        ("/a/b/c", "/a/b"),
        ("relative", "/"),
    ],
)
def test_the_path_of_a_cookie_without_one(path: str, expected: str) -> None:
    assert default_path(path) == expected


@pytest.mark.parametrize(
    ("path", "cookie_path", "expected"),
    [
        ("/cometd", "/cometd", True),
        ("/cometd/60.0", "/cometd", True),
        ("/cometd/60.0", "/cometd/", True),
        ("/cometd", "/cometd/", False),
        ("/cometdx", "/cometd", False),
        ("/", "/", True),
        ("/other", "/", True),
        ("/Cometd", "/cometd", False),
    ],
)
def test_which_paths_match(path: str, cookie_path: str, expected: bool) -> None:
    assert path_matches(path, cookie_path) is expected


async def test_the_path_of_the_request_counts(jar: CookieJar) -> None:
    assert take(jar, "a=1", url="https://x.example/cometd/60.0") == "a=1"
    assert jar.header(URL("https://x.example/cometd/59.0")) == "a=1"
    assert jar.header(URL("https://x.example/other")) == ""
    assert jar.header(URL("https://x.example/")) == ""


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("a=2; Expires=Thu, 01 Jan 1970 00:00:00 GMT", ""),
        ("a=; Max-Age=0", ""),
        ("a=2; Max-Age=-1", ""),
        ("a=2; Max-Age=0; Expires=Fri, 01 Jan 2100 00:00:00 GMT", ""),
        ("a=2; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=60", "a=2"),
        ("a=2; max-age=60; Max-Age=0", ""),
        ("a=2; Expires=Thursday, 01-Jan-70 00:00:01 GMT", ""),
        ("a=2; Expires=Thu Jan  1 00:00:01 1970", ""),
        ("a=2; Expires=Fri, 01-Jan-2100 00:00:00 GMT", "a=2"),
        ("a=2; Max-Age=1e9", "a=2"),
        ("a=2; Max-Age=999999999999999999", "a=2"),
    ],
)
async def test_what_deletes_a_cookie(jar: CookieJar, header: str, expected: str) -> None:
    assert take(jar, "a=1") == "a=1"
    assert take(jar, header) == expected
    assert len(jar) == bool(expected)


async def test_one_of_another_path_is_not_deleted(jar: CookieJar) -> None:
    take(jar, "a=1; Path=/", "a=2; Path=/cometd")
    assert take(jar, "a=; Path=/; Max-Age=0") == "a=2"


async def test_cookies_end(jar: CookieJar, clock: Clock) -> None:
    take(jar, "a=1; Max-Age=10", "b=2")
    clock.now += 9.9
    assert jar.header(HERE) == "a=1; b=2"
    clock.now += 0.2
    assert jar.header(HERE) == "b=2"
    assert len(jar) == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 784111777),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 784111777),
        ("Sun Nov  6 08:49:37 1994", 784111777),
        ("Sun, 06-Nov-1994 08:49:37 GMT", 784111777),
        ("6 nOvember 94 8:49:37", 784111777),
        ("01 Jan 69 00:00:00", 3124224000),
        ("01 Jan 1600 00:00:00", None),
        ("31 Feb 2020 00:00:00", None),
        ("01 Jan 2020 24:00:00", None),
        ("01 Jan 2020 00:60:00", 1577840400),
        ("01 Jan 2020", None),
        ("00:00:00 2020", None),
        ("Jan 1 2020 1:2", None),
        ("", None),
        ("soon", None),
    ],
)
def test_dates(text: str, seconds: int | None) -> None:
    assert parse_date(text) == seconds


BELOW = ["a.my.example.com", "b.my.example.com", "x.a.my.example.com"]
WEB = "https://a.my.example.com/cometd"


@pytest.mark.parametrize(
    ("domain", "goes_to"),
    [
        ("", ["a.my.example.com"]),
        ("a.my.example.com", ["a.my.example.com", "x.a.my.example.com"]),
        ("my.example.com", ["my.example.com", *BELOW]),
        (".My.Example.COM", ["my.example.com", *BELOW]),
        ("com", []),
        ("b.my.example.com", []),
        ("y.example.com", []),
        ("other.com", []),
    ],
)
async def test_the_hosts_that_a_cookie_is_for(
    jar: CookieJar, domain: str, goes_to: list[str]
) -> None:
    take(jar, f"a=1; Path=/; Domain={domain}" if domain else "a=1; Path=/", url=WEB)
    hosts = {"a.my.example.com", "x.a.my.example.com", "b.my.example.com", "my.example.com"}
    sent = {host for host in hosts | {"evil.com"} if jar.header(URL(f"https://{host}/"))}
    assert sent == set(goes_to)
    assert len(jar.host_only_cookies) == (not domain)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
async def test_hosts_without_a_name(jar: CookieJar, host: str) -> None:
    url = f"http://{host}:8080/"
    assert take(jar, "a=1", url=url) == "a=1"
    assert take(jar, f"b=2; Domain={host.strip('[]')}", url=url) == "a=1; b=2"
    assert jar.header(URL("http://127.0.0.2:8080/")) == ""


async def test_an_address_has_no_hosts_below_it(jar: CookieJar) -> None:
    assert take(jar, "a=1; Domain=0.0.1", url="http://127.0.0.1/") == ""


async def test_secure_cookies_go_over_tls_only(jar: CookieJar) -> None:
    take(jar, "a=1; Secure", "b=2", url="https://x.example/")
    assert jar.header(URL("https://x.example/")) == "a=1; b=2"
    assert jar.header(URL("http://x.example/")) == "b=2"


async def test_the_jar_is_bounded(jar: CookieJar) -> None:
    take(jar, *(f"c{number}=1" for number in range(1000)))
    assert len(jar) == cookies.MAX_COOKIES
    assert "c999=1" in jar.header(HERE)
    assert "c0=1" not in jar.header(HERE)


CLEAR: dict[str, tuple[Callable[[CookieJar], None], str]] = {
    "all": (lambda jar: jar.clear(), ""),
    "by choice": (lambda jar: jar.clear(lambda cookie: cookie.key == "a"), "b=2"),
    "of the host": (lambda jar: jar.clear_domain("127.0.0.1"), ""),
    "of another": (lambda jar: jar.clear_domain("0.0.1"), "a=1; b=2"),
}


@pytest.mark.parametrize("way", CLEAR)
async def test_clearing(jar: CookieJar, way: str) -> None:
    take(jar, "a=1", "b=2")
    clear, expected = CLEAR[way]
    clear(jar)
    assert jar.header(HERE) == expected


async def test_clearing_a_domain_clears_what_is_below_it(jar: CookieJar) -> None:
    take(jar, "a=1", url=WEB)
    jar.clear_domain("example.com")
    assert len(jar) == 0


async def test_what_aiohttp_is_told(jar: CookieJar) -> None:
    take(jar, 'a="x y"; Path=/', "a=2; Path=/cometd", "b=3; Secure")
    found = jar.filter_cookies(HERE)
    assert {name: morsel.coded_value for name, morsel in found.items()} == {"a": "2"}
    assert [cookie.key for cookie in jar] == ["a", "a", "b"]
    assert set(jar.cookies) == {("127.0.0.1", "/"), ("127.0.0.1", "/cometd")}
    assert (jar.unsafe, jar.quote_cookie) == (True, False)
    written = cookies.WRITTEN.set(True)
    assert not jar.filter_cookies(HERE)
    cookies.WRITTEN.reset(written)


async def test_cookies_of_the_application(jar: CookieJar) -> None:
    jar.update_cookies({"a": "1"})
    jar.update_cookies(SimpleCookie('b="q r"; Path=/cometd; Max-Age=60; Secure'), HERE)
    jar.update_cookies([("c", "3")], ELSEWHERE)
    assert jar.header(HERE) == "a=1"
    assert jar.header(HERE.with_scheme("https")) == 'b="q r"; a=1'
    assert jar.header(ELSEWHERE) == "c=3; a=1"
    nested = SimpleCookie("d=4")
    jar.update_cookies({"ignored": nested}, HERE)
    assert "d=4" in jar.header(HERE)


class Peer:
    """A server that writes down the ``Cookie`` header of each request."""

    def __init__(self) -> None:
        self.answer = [b""]
        self.received: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
                lines = [
                    line for line in head.split(b"\r\n") if line.lower().startswith(b"cookie:")
                ]
                self.received.append(b"|".join(line[7:].strip() for line in lines))
                answer = b"".join(b"Set-Cookie: %b\r\n" % line for line in self.answer if line)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + answer + b"\r\n")
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()


@pytest.fixture
def peer() -> Peer:
    return Peer()


SENT = [
    b'load="balancer; Path=/',
    b'quoted="a b,c"; Path=/; Partitioned',
    b"z=last/but==first; Path=/; Priority=High",
    b"quoted=deep; Path=/cometd",
    "name=naïve; HttpOnly".encode(),
    b"gone=1; Max-Age=0",
    b"app[]=1",
]
ARRIVES = 'quoted=deep; name=naïve; app[]=1; load="balancer; quoted="a b,c"; z=last/but==first'


async def test_what_arrives(peer: Peer) -> None:
    """Over a real connection, since it is aiohttp that would write cookies anew."""
    listener = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/cometd/60.0"
    jar = CookieJar()
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        peer.answer = SENT
        for _ in range(3):
            answer = await post(session, url, b"[]", {}, limits=limits_for(5))
            assert isinstance(answer, Answer)
        assert peer.received == [b"", ARRIVES.encode(), ARRIVES.encode()]
        own = {"cookie": "of=extension"}
        await post(session, url, b"[]", own, limits=limits_for(5))
        assert peer.received[-1] == b"of=extension; " + ARRIVES.encode()
        assert own == {"cookie": "of=extension"}
        jar.clear()
        peer.answer = []
        await post(session, url, b"[]", {}, limits=limits_for(5))
        assert peer.received[-1] == b""
        # A request of the application's own has cookies as well.
        jar.update_cookies_from_headers(["own=1"], URL(url))
        async with session.post(url, data=b"[]") as response:
            assert response.status == 200
        assert peer.received[-1] == b"own=1"
    listener.close()
    await listener.wait_closed()


async def test_the_jar_of_an_application_is_left_to_aiohttp(peer: Peer) -> None:
    listener = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
    peer.answer = [b"a=1"]
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        for _ in range(2):
            await post(session, url, b"[]", {}, limits=limits_for(5))
    assert peer.received == [b"", b"a=1"]
    listener.close()
    await listener.wait_closed()


names = st.text("abcXYZ09!#$%&'*+-.^_`|~", min_size=1, max_size=6)
values = st.text(
    st.characters(codec="utf-8", min_codepoint=0x20, exclude_characters=";\x7f"), max_size=12
)


@given(st.lists(st.tuples(names, values, st.sampled_from(["/", "/cometd", "/other"])), max_size=5))
def test_any_sound_cookie_comes_back(given_cookies: list[tuple[str, str, str]]) -> None:
    async def header() -> str:
        return take(CookieJar(), *(f"{n}={v}; Path={p}" for n, v, p in given_cookies))

    kept = {(name, path): value.strip(" \t") for name, value, path in given_cookies}
    order = sorted(
        (item for item in kept.items() if item[0][1] != "/other"), key=lambda i: -len(i[0][1])
    )
    assert asyncio.run(header()) == "; ".join(f"{name}={value}" for (name, _), value in order)


@given(st.text())
@example("a=1; Expires=Mon, 99 Jan 99999 99:99:99")
@example("a=1; Max-Age=" + "9" * 30)
@example("a=1; Domain=[::1]")
@example("a=1; Domain=..")
def test_any_header_can_be_taken(header: str) -> None:
    async def taken() -> str:
        return take(CookieJar(), header)

    assert "\n" not in asyncio.run(taken())


@given(st.text("0123456789: JanFebMarGMT-,+", max_size=60))
def test_any_date_can_be_read(text: str) -> None:
    seconds = parse_date(text)
    assert seconds is None or abs(seconds) < 1e12


def test_reading_is_linear() -> None:
    async def seconds_for(size: int) -> float:
        started = time.process_time()
        take(CookieJar(), "a=1" + "; b=2" * size, "a=1; Expires=" + "1 " * size, "=" * size)
        return time.process_time() - started

    for _ in range(3):
        small, large = (asyncio.run(seconds_for(size)) for size in (20_000, 200_000))
        if large < 30 * small:
            return
    pytest.fail(f"ten times as much takes {large / small:.0f} times as long")
