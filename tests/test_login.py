"""``aiosfstream login``: the web server flow with PKCE."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
import trustme

from aiosfstream import AuthenticationError, RefreshTokenAuthenticator
from aiosfstream._cli.login import Tokens, challenge_of, code_of, log_in
from aiosfstream.testing import CutAfter, Delay, Garble, OAuthError, Status, StreamingServer
from tests.commands import PATIENCE, end, environment, start
from tests.proxy import Proxy
from tests.support import EVENT, FastAuthClient, receive, soon, until


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    async with StreamingServer() as server:
        yield server
        assert server.violations == []


# Logging in with a browser


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Person:
    """Somebody with a browser, who opens what they are shown.

    :param visit: what they do with the URL
    """

    def __init__(self, visit: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        self._visit = visit
        self.urls: list[str] = []
        self.pages: list[tuple[int, str]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, url: str) -> None:
        self.urls.append(url)
        self._tasks.add(asyncio.create_task(self._visit(url)))

    async def done(self) -> None:
        await asyncio.gather(*self._tasks)


async def browse(url: str) -> tuple[int, str]:
    """Open *url* and go wherever it leads."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


def login_arguments(server: StreamingServer, port: int) -> dict[str, Any]:
    return {"login_url": server.login_url, "port": port, "timeout": 10.0}


def asked(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


async def test_a_login_gives_a_refresh_token_that_works(server: StreamingServer) -> None:
    pages: list[tuple[int, str]] = []

    async def visit(url: str) -> None:
        pages.append(await browse(url))

    person, port = Person(visit), free_port()
    oauth = server.oauth
    tokens = await log_in(
        oauth.consumer_key, oauth.consumer_secret, show=person, **login_arguments(server, port)
    )
    await person.done()
    assert tokens == Tokens(oauth.refresh_token, server.instance_url)
    assert oauth.refresh_token not in repr(tokens)
    assert [(status, "You are logged in" in page) for status, page in pages] == [(200, True)]
    query = asked(person.urls[0])
    assert query["redirect_uri"] == f"http://localhost:{port}/callback"
    assert query["code_challenge_method"] == "S256"
    assert query["scope"] == "api refresh_token"
    form = next(request.form for request in server.requests if request.kind == "token")
    assert challenge_of(form["code_verifier"]) == query["code_challenge"]
    assert 43 <= len(form["code_verifier"]) <= 128
    assert form["code_verifier"] not in person.urls[0]
    assert oauth.consumer_secret not in person.urls[0]
    authenticator = RefreshTokenAuthenticator(
        oauth.consumer_key, oauth.consumer_secret, tokens.refresh_token, login_url=server.login_url
    )
    async with FastAuthClient(authenticator) as client:
        await client.subscribe(EVENT)
        wanted = server.publish(EVENT)
        assert await receive(client) == [wanted]


async def test_a_login_of_an_app_without_a_secret_sends_none(server: StreamingServer) -> None:
    async def visit(url: str) -> None:
        await browse(url)

    person = Person(visit)
    await log_in(server.oauth.consumer_key, "", show=person, **login_arguments(server, free_port()))
    await person.done()
    form = next(request.form for request in server.requests if request.kind == "token")
    assert "client_secret" not in form


async def test_a_redirect_of_somebody_else_is_ignored(server: StreamingServer) -> None:
    pages: list[int] = []

    async def visit(url: str) -> None:
        callback = asked(url)["redirect_uri"]
        forged = ("code=stolen", "code=stolen&state=x", "error=access_denied&state=%FF", "")
        visits = [f"{callback}?{query}" for query in forged]
        for address in (*visits, callback.replace("callback", "other"), url):
            status, _ = await browse(address)
            pages.append(status)

    person = Person(visit)
    tokens = await log_in(
        server.oauth.consumer_key, "", show=person, **login_arguments(server, free_port())
    )
    await person.done()
    assert tokens.refresh_token == server.refresh_token
    assert pages == [400, 400, 400, 400, 404, 200]
    assert server.count("token") == 1


async def test_a_login_that_is_denied_says_so(server: StreamingServer) -> None:
    pages: list[Any] = []

    async def visit(url: str) -> None:
        query = asked(url)
        denied = f"error=access_denied&error_description=end-user+denied&state={query['state']}"
        twice = [browse(f"{query['redirect_uri']}?{denied}") for _ in range(2)]
        pages.extend(await asyncio.gather(*twice, return_exceptions=True))

    person = Person(visit)
    with pytest.raises(AuthenticationError, match="access_denied: end-user denied") as caught:
        await log_in(
            server.oauth.consumer_key, "", show=person, **login_arguments(server, free_port())
        )
    await person.done()
    assert caught.value.error == "access_denied"
    assert any(page[0] == 400 for page in pages if isinstance(page, tuple))
    assert server.count("token") == 0


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({}, "it was denied"),
        ({"code": ""}, "it was denied"),
        ({"error": "access_denied"}, "did not allow it"),
        ({"error": "redirect_uri_mismatch"}, "callback URLs"),
        ({"error": "x\x1b[2J\r\ny" + "z" * 9999}, "x [2J yzzz"),
    ],
)
def test_a_redirect_without_a_code_is_an_error_fit_for_a_terminal(
    answer: dict[str, str], said: str
) -> None:
    with pytest.raises(AuthenticationError) as caught:
        code_of(answer)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


async def test_a_login_that_nobody_answers_ends(server: StreamingServer) -> None:
    port = free_port()
    with pytest.raises(AuthenticationError, match=r"nobody authorized the app within 0\.05"):
        await log_in("key", "", login_url=server.login_url, port=port, show=str, timeout=0.05)
    with pytest.raises(OSError):  # noqa: PT011 - whichever way it is refused
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_login_on_a_port_that_is_taken_says_so(server: StreamingServer) -> None:
    port = urlsplit(server.url).port
    assert port is not None
    shown: list[str] = []
    with pytest.raises(AuthenticationError, match=f"port {port}") as caught:
        await log_in("key", "", login_url=server.login_url, port=port, show=shown.append)
    assert isinstance(caught.value.__cause__, OSError)
    assert shown == []


async def test_a_login_with_a_host_that_cannot_be_right_is_refused_first() -> None:
    shown: list[str] = []
    with pytest.raises(ValueError, match=r"use a\.my\.salesforce\.com"):
        await log_in(
            "key", "", login_url="a.lightning.force.com", port=free_port(), show=shown.append
        )
    assert shown == []


async def test_a_login_that_is_cancelled_leaves_nothing(server: StreamingServer) -> None:
    port = free_port()
    shown: list[str] = []
    login = asyncio.create_task(
        log_in("key", "", login_url=server.login_url, port=port, show=shown.append)
    )
    await until(lambda: shown)
    before = asyncio.all_tasks()
    login.cancel()
    await asyncio.wait({login})
    assert login.cancelled()
    assert asyncio.all_tasks() <= before
    with pytest.raises(OSError):  # noqa: PT011 - whichever way it is refused
        await asyncio.open_connection("127.0.0.1", port)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (OAuthError("invalid_grant", "invalid code verifier"), "invalid code verifier"),
        (OAuthError("invalid_client", "invalid client credentials"), "consumer secret"),
        (
            Garble(json.dumps({"access_token": "x", "instance_url": "https://a.com"}).encode()),
            "scope",
        ),
        (
            Garble(
                json.dumps(
                    {"access_token": "x", "instance_url": "https://a.com", "refresh_token": 7}
                ).encode()
            ),
            "scope",
        ),
        (Garble(b'{"refresh_token": "x"}'), "no access_token"),
        (Status(503), "Network request failed"),
        (CutAfter(), "Network request failed"),
    ],
)
async def test_a_code_that_is_not_exchanged_is_an_error_without_it(
    server: StreamingServer, fault: Any, message: str
) -> None:
    async def visit(url: str) -> None:
        await browse(url)

    server.add_fault(fault, on="token")
    person = Person(visit)
    with pytest.raises(AuthenticationError, match=message) as caught:
        await log_in(
            server.oauth.consumer_key,
            server.oauth.consumer_secret,
            show=person,
            **login_arguments(server, free_port()),
        )
    await person.done()
    form = next(request.form for request in server.requests if request.kind == "token")
    for secret in (form["code"], form["code_verifier"], server.oauth.consumer_secret):
        assert secret not in f"{caught.value} {caught.value!r}"


def test_a_challenge_is_the_one_of_the_specification() -> None:
    # RFC 7636, appendix B
    verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    assert challenge_of(verifier) == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


# As a process


async def test_logging_in_with_the_browser(server: StreamingServer, tmp_path: Path) -> None:
    output = tmp_path / "token"
    env = environment(server)
    process = await start(
        "login", "--no-browser", "--port", "17171", "--output", str(output), env=env
    )
    assert process.stderr is not None
    await soon(process.stderr.readline(), PATIENCE)
    url = (await soon(process.stderr.readline(), PATIENCE)).decode().strip()
    async with aiohttp.ClientSession() as browser:
        # Somebody else's answer is not followed.
        async with browser.get("http://localhost:17171/callback?state=wrong&code=x") as answer:
            assert answer.status == 400
        async with browser.get(url) as answer:
            assert answer.status == 200
            assert "logged in" in await answer.text()
    assert await end(process) == 0
    assert output.read_text().strip() == server.refresh_token
    assert stat.S_IMODE(output.stat().st_mode) == 0o600


async def test_a_log_in_that_is_denied(server: StreamingServer) -> None:
    process = await start("login", "--no-browser", "--port", "17172", env=environment(server))
    assert process.stderr is not None
    await soon(process.stderr.readline(), PATIENCE)
    url = (await soon(process.stderr.readline(), PATIENCE)).decode().strip()
    state = url.partition("state=")[2].partition("&")[0]
    denial = (
        f"http://localhost:17172/callback?state={state}&error=access_denied&error_description=no"
    )
    async with aiohttp.ClientSession() as browser, browser.get(denial) as answer:
        assert answer.status == 400
    output, errors = await soon(process.communicate(), PATIENCE)
    assert process.returncode == 1
    assert output == b""
    assert b"access_denied: no" in errors


async def begin(
    *arguments: str, env: dict[str, str], **options: Any
) -> tuple[asyncio.subprocess.Process, str, int]:
    """Start ``login``, and give the URL that it shows and the port that it listens on."""
    port = free_port()
    process = await start("login", "--port", str(port), *arguments, env=env, **options)
    assert process.stderr is not None
    await soon(process.stderr.readline(), PATIENCE)
    url = (await soon(process.stderr.readline(), PATIENCE)).decode().strip()
    return process, url, port


def browser_of(folder: Path, script: str) -> dict[str, str]:
    """Make a program that stands in for a browser."""
    program = folder / "browser"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {"BROWSER": str(program)}


async def test_the_page_has_the_headers_of_one_with_a_secret_in_its_url(
    server: StreamingServer,
) -> None:
    process, url, port = await begin("--no-browser", env=environment(server))
    async with aiohttp.ClientSession() as session:
        for address in (f"http://localhost:{port}/callback?code=x", url):
            async with session.get(address) as answer:
                assert answer.headers["Cache-Control"] == "no-store"
                assert answer.headers["Referrer-Policy"] == "no-referrer"
    output, _ = await soon(process.communicate(), PATIENCE)
    assert output.decode().strip() == server.refresh_token


async def test_the_page_says_so_only_when_the_code_was_worth_something(
    server: StreamingServer,
) -> None:
    server.add_fault(OAuthError("invalid_grant", "expired authorization code"), on="token")
    process, url, _ = await begin("--no-browser", env=environment(server))
    status, page = await browse(url)
    assert status == 400
    assert "logged in" not in page.replace("not logged in", "")
    output, errors = await soon(process.communicate(), PATIENCE)
    assert (process.returncode, output) == (1, b"")
    assert b"expired authorization code" in errors


async def test_the_page_waits_until_it_is_known(server: StreamingServer) -> None:
    server.add_fault(Delay(1.0), on="token")
    process, url, _ = await begin("--no-browser", env=environment(server))
    loop = asyncio.get_running_loop()
    began = loop.time()
    status, page = await browse(url)
    assert loop.time() - began >= 1.0
    assert (status, "You are logged in" in page) == (200, True)
    await soon(process.communicate(), PATIENCE)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_it_listens_wherever_localhost_may_be(server: StreamingServer, host: str) -> None:
    if host == "[::1]":
        need_ipv6()
    process, url, port = await begin("--no-browser", env=environment(server))
    state = asked(url)["state"]
    async with aiohttp.ClientSession() as session:
        async with session.get(url, allow_redirects=False) as answer:
            code = asked(answer.headers["Location"])["code"]
        async with session.get(
            f"http://{host}:{port}/callback?state={state}&code={code}"
        ) as answer:
            assert answer.status == 200
    output, _ = await soon(process.communicate(), PATIENCE)
    assert output.decode().strip() == server.refresh_token


def need_ipv6() -> None:
    """Skip a test on a machine without IPv6; in CI, fail."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"this machine has no IPv6: {error}")


async def test_a_port_that_somebody_has_on_the_other_loopback(server: StreamingServer) -> None:
    need_ipv6()
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        process = await start("login", "--no-browser", "--port", str(port), env=environment(server))
        _, errors = await soon(process.communicate(), PATIENCE)
    assert process.returncode == 1
    assert f"port {port}" in errors.decode()


async def test_the_browser_gets_no_secret(server: StreamingServer, tmp_path: Path) -> None:
    seen = tmp_path / "environment"
    env = environment(
        server, **browser_of(tmp_path, f'env > "{seen}.new"; mv "{seen}.new" "{seen}"')
    )
    process, url, _ = await begin(env=env)
    await until(seen.exists, PATIENCE)
    text = seen.read_text()
    assert "PATH=" in text
    assert "SALESFORCE_" not in text
    for secret in (server.oauth.consumer_secret, server.oauth.password):
        assert secret not in text
    await browse(url)
    assert await end(process) == 0


@pytest.mark.parametrize("form", ["", " %s", " -x %s"])
async def test_a_browser_in_the_foreground_holds_nothing_up(
    server: StreamingServer, tmp_path: Path, form: str
) -> None:
    """Like w3m: it is open while the log-in goes on, and ends when the person leaves it."""
    pid = tmp_path / "pid"
    variables = browser_of(tmp_path, f'echo noise; echo $$ > "{pid}"; exec sleep 60')
    variables["BROWSER"] += form
    process, url, _ = await begin(env=environment(server, **variables))
    await until(lambda: pid.exists() and pid.read_text().strip(), PATIENCE)
    status, _ = await browse(url)
    assert status == 200
    assert process.stdout is not None
    output = await soon(process.stdout.read(), PATIENCE)
    # What the browser says does not go where the token goes.
    assert output.decode() == server.refresh_token + "\n"
    # Until then it has the standard error open.
    os.kill(int(pid.read_text()), signal.SIGKILL)
    assert await end(process) == 0


async def test_a_module_in_the_working_directory_is_not_run(
    server: StreamingServer, tmp_path: Path
) -> None:
    (tmp_path / "webbrowser.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    seen = tmp_path / "url"
    env = environment(server, **browser_of(tmp_path, f'echo "$1" > "{seen}"'))
    env["PYTHONPATH"] = str(Path(__file__).parent.parent)
    process, url, _ = await begin(env=env, cwd=str(tmp_path))
    await until(lambda: seen.exists() and seen.read_text(), PATIENCE)
    assert seen.read_text().strip() == url
    assert not (tmp_path / "run").exists()
    await browse(url)
    assert await end(process) == 0


async def test_the_url_that_a_browser_elsewhere_ends_at_can_be_pasted(
    server: StreamingServer,
) -> None:
    process, url, _ = await begin(
        "--no-browser", env=environment(server), stdin=asyncio.subprocess.PIPE
    )
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, allow_redirects=False) as answer,
    ):
        target = answer.headers["Location"]
    assert process.stdin is not None
    process.stdin.write(b"\nhttp://localhost/callback?state=wrong&code=x\n" + b"nonsense\xff\n")
    process.stdin.write(f"  {target} \r\n".encode())
    output, errors = await soon(process.communicate(), PATIENCE)
    assert process.returncode == 0
    assert output.decode() == server.refresh_token + "\n"
    assert errors.decode().count("That is not where this log-in ended") == 2


async def test_an_input_that_ends_does_not_end_the_login(server: StreamingServer) -> None:
    process, url, _ = await begin(
        "--no-browser", env=environment(server), stdin=asyncio.subprocess.DEVNULL
    )
    await asyncio.sleep(0.2)
    assert (await browse(url))[0] == 200
    assert await end(process) == 0


@pytest.mark.parametrize("port", ["0", "-1", "70000", "65536", "x", "1.5"])
async def test_what_is_no_port(server: StreamingServer, port: str) -> None:
    process = await start("login", "--no-browser", "--port", port, env=environment(server))
    output, errors = await soon(process.communicate(), PATIENCE)
    assert (process.returncode, output) == (2, b"")
    assert b"--port" in errors
    assert b"Traceback" not in errors


@pytest.mark.parametrize("kind", ["no folder", "folder", "link"])
async def test_an_output_that_cannot_be_written_is_found_out_first(
    server: StreamingServer, tmp_path: Path, kind: str
) -> None:
    output = tmp_path / "token"
    if kind == "no folder":
        output = output / "token"
    elif kind == "folder":
        output.mkdir()
    else:
        output.symlink_to(tmp_path / "elsewhere")
    seen = tmp_path / "seen"
    env = environment(server, **browser_of(tmp_path, f'touch "{seen}"'))
    process = await start("login", "--output", str(output), env=env)
    _, errors = await soon(process.communicate(), PATIENCE)
    assert process.returncode == 1
    assert errors.decode().startswith(f"aiosfstream: --output {str(output)!r}")
    assert errors.count(b"\n") == 1
    assert not seen.exists()
    assert not (tmp_path / "elsewhere").exists()


async def test_a_token_that_cannot_be_written_after_all_is_printed(
    server: StreamingServer, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    process, url, _ = await begin(
        "--no-browser", "--output", str(folder / "token"), env=environment(server)
    )
    folder.rmdir()
    await browse(url)
    output, errors = await soon(process.communicate(), PATIENCE)
    assert process.returncode == 1
    assert output.decode() == server.refresh_token + "\n"
    assert "cannot be written" in errors.decode()
    assert server.refresh_token not in errors.decode()


async def test_a_token_is_printed_escaped(server: StreamingServer, tmp_path: Path) -> None:
    token = "5Aep\x1b]0;owned\x07\r\nforged\u202e\u00fc"
    reply = {"access_token": "x", "instance_url": server.instance_url, "refresh_token": token}
    server.add_fault(Garble(json.dumps(reply).encode()), on="token")
    process, url, _ = await begin("--no-browser", env=environment(server))
    await browse(url)
    output, _ = await soon(process.communicate(), PATIENCE)
    assert process.returncode == 0
    assert output == rb"5Aep\x1b]0;owned\x07\r\nforged\u202e\xfc" + b"\n"


async def test_secrets_may_come_from_files(server: StreamingServer, tmp_path: Path) -> None:
    env = environment(server)
    file = tmp_path / "secret"
    file.write_text(env.pop("SALESFORCE_CONSUMER_SECRET") + "\n")
    env["SALESFORCE_CONSUMER_SECRET_FILE"] = str(file)
    process, url, _ = await begin("--no-browser", env=env)
    assert (await browse(url))[0] == 200
    assert await end(process) == 0


async def test_the_code_goes_by_way_of_the_proxy(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with Proxy() as proxy, StreamingServer(ssl_context=context) as server:
        process, url, _ = await begin(
            *("--no-browser", "--proxy", f"http://{proxy.address}"),
            *("--cacert", str(tmp_path / "ca.pem")),
            env=environment(server),
        )
        async with aiohttp.ClientSession() as session, session.get(url, ssl=trusting) as answer:
            assert answer.status == 200
        output, _ = await soon(process.communicate(), PATIENCE)
        assert output.decode().strip() == server.refresh_token
        assert proxy.targets == [server.url.partition("://")[2]]


async def test_ctrl_c_ends_it_at_once(server: StreamingServer, tmp_path: Path) -> None:
    env = environment(server, **browser_of(tmp_path, "exec sleep 3"))
    process, _, port = await begin(env=env)
    process.send_signal(signal.SIGINT)
    assert await end(process) == 0
    with pytest.raises(OSError):  # noqa: PT011 - whichever way it is refused
        await asyncio.open_connection("127.0.0.1", port)
