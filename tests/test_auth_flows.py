"""Each OAuth flow with a client and an org: opened, revoked mid-stream, refused, recovered."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import logging
import os
import ssl
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from aiosfstream import (
    AccessTokenAuthenticator,
    AuthenticationError,
    AuthenticatorBase,
    ClientCredentialsAuthenticator,
    JWTBearerAuthenticator,
    PasswordAuthenticator,
    RefreshTokenAuthenticator,
    TransportTimeoutError,
)
from aiosfstream._oauth.state import assign
from aiosfstream.testing import (
    CutAfter,
    CutBefore,
    Garble,
    Hang,
    OAuthError,
    Redirect,
    Status,
    StreamingServer,
    Truncate,
)
from tests.support import (
    EVENT,
    FastAuthClient,
    authenticator_for,
    cancelled_at,
    held,
    receive,
    soon,
    until,
)

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PRIVATE_PEM = KEY.private_bytes(
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
)
PUBLIC_PEM = KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def refresh_token(server: StreamingServer, **options: Any) -> RefreshTokenAuthenticator:
    oauth = server.oauth
    return RefreshTokenAuthenticator(
        oauth.consumer_key,
        oauth.consumer_secret,
        oauth.refresh_token,
        login_url=server.login_url,
        **options,
    )


def client_credentials(server: StreamingServer, **options: Any) -> ClientCredentialsAuthenticator:
    oauth = server.oauth
    return ClientCredentialsAuthenticator(
        oauth.consumer_key, oauth.consumer_secret, login_url=server.login_url, **options
    )


def jwt_bearer(server: StreamingServer, **options: Any) -> JWTBearerAuthenticator:
    oauth = server.oauth
    options.setdefault("login_url", server.login_url)
    return JWTBearerAuthenticator(oauth.consumer_key, oauth.username, PRIVATE_PEM, **options)


def access_token(server: StreamingServer) -> AccessTokenAuthenticator:
    async def fetch() -> str:
        return server.new_access_token()

    return AccessTokenAuthenticator(server.instance_url, fetch)


Flow = Callable[[StreamingServer], AuthenticatorBase]
FLOWS: dict[str, Flow] = {
    "password": authenticator_for,
    "refresh token": refresh_token,
    "client credentials": client_credentials,
    "jwt": jwt_bearer,
    "access token": access_token,
}
#: Those that ask the token endpoint.
ASKING = [name for name in FLOWS if name != "access token"]


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    async with StreamingServer(
        jwt_public_key=PUBLIC_PEM, rotate_refresh_tokens=True, advise_multiple_clients=False
    ) as server:
        yield server
        assert server.violations == []


def client_of(authenticator: AuthenticatorBase, **options: Any) -> FastAuthClient:
    options.setdefault("request_timeout", 2.0)
    return FastAuthClient(authenticator, **options)


async def event(client: FastAuthClient, server: StreamingServer) -> None:
    """See that an event that is published now is received."""
    published = server.publish(EVENT)
    assert await receive(client) == [published]


def token_count(server: StreamingServer) -> int:
    return server.count("token")


# Each flow


@pytest.mark.parametrize("flow", FLOWS)
async def test_a_flow_opens_and_comes_back_when_its_token_is_revoked(
    server: StreamingServer, flow: str
) -> None:
    authenticator = FLOWS[flow](server)
    async with client_of(authenticator) as client:
        await client.subscribe(EVENT)
        for _ in range(3):
            await event(client, server)
            before = authenticator.authorization
            server.revoke_tokens()
            await event(client, server)
            assert authenticator.authorization not in (None, before)
    assert token_count(server) == (4 if flow in ASKING else 0)


@pytest.mark.parametrize("flow", FLOWS)
async def test_a_flow_works_over_tls(flow: str) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with StreamingServer(ssl_context=context, jwt_public_key=PUBLIC_PEM) as server:
        assert server.login_url.startswith("https://")
        if flow in ASKING:
            distrusting = client_of(FLOWS[flow](server))
            with pytest.raises(AuthenticationError, match="Network request failed") as caught:
                await distrusting.open()
            assert "certificate" in str(caught.value).lower()
            assert token_count(server) == 0
        async with client_of(FLOWS[flow](server), ssl=trusting) as client:
            await client.subscribe(EVENT)
            await event(client, server)
            server.revoke_tokens()
            await event(client, server)
        assert server.violations == []


@pytest.mark.parametrize("flow", ASKING)
async def test_the_token_request_goes_the_way_of_the_client(
    server: StreamingServer, flow: str
) -> None:
    factory = functools.partial(aiohttp.ClientSession, headers={"X-Mine": flow})
    async with client_of(FLOWS[flow](server), session_factory=factory) as client:
        await client.subscribe(EVENT)
        await event(client, server)
        server.revoke_tokens()
        await event(client, server)
    asked = [request for request in server.requests if request.kind == "token"]
    assert len(asked) == 2
    assert {request.headers["X-Mine"] for request in asked} == {flow}
    assert {urlsplit(request.path).path for request in asked} == {"/services/oauth2/token"}


@pytest.mark.parametrize("flow", ASKING)
async def test_another_json_function_of_the_client_reads_the_answer_too(
    server: StreamingServer, flow: str
) -> None:
    authenticator = FLOWS[flow](server)
    async with client_of(authenticator, json_dumps=orjson.dumps, json_loads=orjson.loads) as client:
        await client.subscribe(EVENT)
        await event(client, server)
    assert authenticator.json_loads is orjson.loads


@pytest.mark.parametrize("flow", ["password", "refresh token", "client credentials"])
async def test_the_signature_of_an_org_is_good(server: StreamingServer, flow: str) -> None:
    oauth = server.oauth
    login: dict[str, Any] = {"login_url": server.login_url, "verify_signature": True}
    flows: dict[str, AuthenticatorBase] = {
        "password": PasswordAuthenticator(
            oauth.consumer_key, oauth.consumer_secret, oauth.username, oauth.password, **login
        ),
        "refresh token": refresh_token(server, verify_signature=True),
        "client credentials": client_credentials(server, verify_signature=True),
    }
    async with client_of(flows[flow]) as client:
        await client.subscribe(EVENT)
        await event(client, server)
        assert flows[flow].signature is not None


# Two clients, one authenticator


@pytest.mark.parametrize("flow", FLOWS)
async def test_clients_that_share_an_authenticator_log_in_together(
    server: StreamingServer, flow: str
) -> None:
    authenticator = FLOWS[flow](server)
    clients = [client_of(authenticator) for _ in range(3)]
    await asyncio.gather(*(client.open() for client in clients))
    try:
        assert token_count(server) == (1 if flow in ASKING else 0)
        await asyncio.gather(*(client.subscribe(EVENT) for client in clients))
        await server.wait_for(lambda server: server.held_connects == 3, 10)
        published = server.publish(EVENT)
        for client in clients:
            assert await receive(client) == [published]
        server.revoke_tokens()
        published = server.publish(EVENT)
        for client in clients:
            assert await receive(client) == [published]
        assert token_count(server) == (2 if flow in ASKING else 0)
    finally:
        await asyncio.gather(*(client.close() for client in clients))


async def test_one_client_may_go_while_both_wait_for_a_log_in(server: StreamingServer) -> None:
    release = asyncio.Event()
    told: list[str] = []

    async def store(token: str) -> None:
        await release.wait()
        told.append(token)

    authenticator = refresh_token(server, on_token_refreshed=store)
    first, second = client_of(authenticator), client_of(authenticator)
    opening = [asyncio.create_task(client.open()) for client in (first, second)]
    await until(lambda: token_count(server) == 1)
    opening[0].cancel()
    await asyncio.sleep(0)
    release.set()
    await soon(opening[1])
    await asyncio.wait(opening)
    assert opening[0].cancelled()
    await second.subscribe(EVENT)
    await event(second, server)
    await second.close()
    assert token_count(server) == 1
    assert told == [server.refresh_token]


def test_a_client_logs_in_again_in_another_event_loop() -> None:
    made: list[FastAuthClient] = []

    async def stream(index: int) -> None:
        async with StreamingServer() as server:
            if not made:
                made.append(client_of(authenticator_for(server)))
            client = made[0]
            assign(client.authenticator, "_token_url", f"{server.login_url}/services/oauth2/token")
            async with client:
                await client.subscribe(EVENT)
                await event(client, server)
                server.revoke_tokens()
                await event(client, server)
            assert token_count(server) == 2

    for index in range(2):
        asyncio.run(stream(index))


# Rotation


async def test_every_rotated_token_is_stored_in_its_order(server: StreamingServer) -> None:
    told: list[str] = []
    authenticator = refresh_token(server, on_token_refreshed=told.append)
    async with client_of(authenticator) as client:
        await client.subscribe(EVENT)
        await event(client, server)
        for _ in range(3):
            server.revoke_tokens()
            await event(client, server)
    sent = [request.form["refresh_token"] for request in server.requests if request.kind == "token"]
    assert sent == ["refresh-token-0", *told[:-1]]
    assert told[-1] == authenticator.refresh_token == server.refresh_token
    assert len(set(told)) == 4


async def test_a_store_that_fails_for_a_while_costs_no_token_and_no_event(
    server: StreamingServer,
) -> None:
    stored: list[str] = []
    tried: list[str] = []
    failures = [True, True]

    def store(token: str) -> None:
        tried.append(token)
        if len(stored) == 1 and failures:
            raise OSError("disk full", failures.pop())
        stored.append(token)

    authenticator = refresh_token(server, on_token_refreshed=store)
    async with client_of(authenticator) as client:
        await client.subscribe(EVENT)
        await event(client, server)
        server.revoke_tokens()
        await event(client, server)
    assert stored[-1] == authenticator.refresh_token == server.refresh_token
    assert [tried.count(token) for token in stored] == [1, 3, 1]
    assert token_count(server) == len(stored), "a token was rotated that was not stored"


async def test_cancelling_open_at_any_point_never_loses_a_rotated_token(
    server: StreamingServer,
) -> None:
    authenticator = refresh_token(server)
    reached = True
    for number in range(1, 200):
        client = client_of(authenticator)
        reached, _ = await cancelled_at(client.open(), number)
        await client.close()
        assert client.closed
        assert authenticator.refresh_token == server.refresh_token, f"lost at {number}"
        if not reached:
            break
    assert not reached
    async with client_of(authenticator) as client:
        await client.subscribe(EVENT)
        await event(client, server)


# Failures of the token endpoint


@pytest.mark.parametrize("flow", ASKING)
@pytest.mark.parametrize(
    ("error", "description", "advice"),
    [
        ("invalid_grant", "authentication failure", "Login History"),
        ("invalid_grant", "expired access/refresh token", "aiosfstream login"),
        ("invalid_grant", "user hasn't approved this consumer", "Pre-authorize"),
        ("invalid_grant", "audience is invalid", "login_url and audience"),
        ("invalid_grant", "request not supported on this domain", "My Domain"),
        ("invalid_client_id", "client identifier invalid", "consumer key"),
        ("invalid_client", "invalid client credentials", "consumer secret"),
        ("inactive_user", "user is inactive", "administrator"),
        ("inactive_org", "organization is not active", "Salesforce"),
    ],
)
async def test_credentials_refused_mid_stream_reach_the_consumer(
    server: StreamingServer, flow: str, error: str, description: str, advice: str
) -> None:
    authenticator = FLOWS[flow](server)
    async with client_of(authenticator) as client:
        await client.subscribe(EVENT)
        await event(client, server)
        server.add_fault(OAuthError(error, description), on="token")
        server.revoke_tokens()
        with pytest.raises(AuthenticationError, match="Authentication failed") as caught:
            await soon(client.receive())
        refused = caught.value
        assert (refused.error, refused.error_description) == (error, description)
        assert refused.status == 400
        assert not refused.retryable
        assert advice in str(refused)
        assert not client.closed
        await event(client, server)


PASSING = {
    "a rate limit": OAuthError("rate_limit_exceeded"),
    "a rate limit in words": OAuthError("invalid_grant", "login rate exceeded"),
    "a busy server": OAuthError("server_error", "", 500),
    "a broken gateway": Status(502),
    "a login page": Garble(),
    "a cut": CutBefore(),
    "half an answer": Truncate(),
}


@pytest.mark.parametrize("case", PASSING)
@pytest.mark.parametrize("flow", ASKING)
async def test_trouble_with_the_token_endpoint_passes_unseen(
    server: StreamingServer, flow: str, case: str
) -> None:
    if flow == "refresh token":
        # What was rotated and not received is lost, and nobody can bring it back.
        server.oauth.rotate = False
    async with client_of(FLOWS[flow](server)) as client:
        await client.subscribe(EVENT)
        await event(client, server)
        server.add_fault(PASSING[case], on="token", times=2)
        server.revoke_tokens()
        await event(client, server)
    assert token_count(server) == 4


async def test_a_rotated_token_whose_answer_was_lost_is_reported(server: StreamingServer) -> None:
    async with client_of(refresh_token(server)) as client:
        await client.subscribe(EVENT)
        await event(client, server)
        server.add_fault(CutAfter(), on="token")
        server.revoke_tokens()
        with pytest.raises(AuthenticationError, match="authorize the app again") as caught:
            await soon(client.receive())
        assert caught.value.error_description == "expired access/refresh token"


async def test_trouble_that_lasts_is_reported_with_its_cause(server: StreamingServer) -> None:
    async with client_of(authenticator_for(server), connection_timeout=0.3) as client:
        await client.subscribe(EVENT)
        await event(client, server)
        server.add_fault(Status(503), on="token", times=10_000)
        server.revoke_tokens()
        with pytest.raises(TransportTimeoutError) as caught:
            await soon(client.receive())
        assert isinstance(caught.value.__cause__, AuthenticationError)
        server.clear_faults()
        await event(client, server)


@pytest.mark.parametrize("flow", ASKING)
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Status(503), "Network request failed"),
        (Redirect("https://org.example/services/oauth2/token"), r"'org\.example'"),
        (OAuthError("invalid_grant", "authentication failure"), "Authentication failed"),
    ],
)
async def test_a_client_that_cannot_log_in_does_not_open(
    server: StreamingServer, flow: str, fault: Any, message: str
) -> None:
    client = client_of(FLOWS[flow](server))
    server.add_fault(fault, on="token")
    with pytest.raises(AuthenticationError, match=message):
        await client.open()
    assert client.closed
    assert server.count("/meta/handshake") == 0
    async with client:
        await client.subscribe(EVENT)
        await event(client, server)


@pytest.mark.parametrize("flow", ASKING)
async def test_closing_does_not_wait_for_a_token_endpoint_that_hangs(
    server: StreamingServer, flow: str
) -> None:
    loop = asyncio.get_running_loop()
    client = client_of(FLOWS[flow](server))
    await client.open()
    server.add_fault(Hang(), on="token")
    server.revoke_tokens()
    await server.wait_for(lambda server: server.count("token") == 2, 10)
    before = loop.time()
    await client.close()
    assert loop.time() - before < 5.0
    assert "aiosfstream log-in" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_a_wrong_host_for_client_credentials_is_named() -> None:
    async with StreamingServer(my_domain=False) as server:
        client = client_of(client_credentials(server))
        with pytest.raises(AuthenticationError, match="request not supported") as caught:
            await client.open()
        assert "My Domain" in str(caught.value)


async def test_a_key_that_is_not_the_apps_is_refused(server: StreamingServer) -> None:
    server.oauth.public_key = (
        rsa.generate_private_key(public_exponent=65537, key_size=2048)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(AuthenticationError, match="certificate that was uploaded"):
        await client_of(jwt_bearer(server)).open()


async def test_an_audience_that_is_not_the_orgs_is_refused(server: StreamingServer) -> None:
    with pytest.raises(AuthenticationError, match="check sandbox, login_url and audience"):
        await client_of(jwt_bearer(server, audience="https://a.my.site.com")).open()
    async with client_of(jwt_bearer(server, sandbox=True)) as client:
        await client.subscribe(EVENT)
        await event(client, server)


async def test_a_fixed_token_that_is_revoked_is_reported(server: StreamingServer) -> None:
    authenticator = AccessTokenAuthenticator(server.instance_url, server.new_access_token())
    async with client_of(authenticator) as client:
        await client.subscribe(EVENT)
        await event(client, server)
        server.revoke_tokens()
        with pytest.raises(AuthenticationError, match="fixed token cannot be renewed"):
            await soon(client.receive())
        authenticator.access_token = server.new_access_token()
        authenticator.token_type = "Bearer"
        authenticator.instance_url = server.instance_url
        await event(client, server)


async def test_a_callable_that_fails_for_a_while_is_asked_until_it_answers(
    server: StreamingServer,
) -> None:
    sealed = 1

    async def fetch() -> str:
        nonlocal sealed
        sealed -= 1
        if sealed >= 0:
            raise LookupError("the vault is sealed")
        return server.new_access_token()

    authenticator = AccessTokenAuthenticator(server.instance_url, fetch)
    with pytest.raises(AuthenticationError, match="LookupError"):
        await client_of(authenticator).open()
    async with client_of(authenticator) as client:
        await client.subscribe(EVENT)
        await event(client, server)
        sealed = 3
        server.revoke_tokens()
        await event(client, server)
        assert sealed == -1


# Secrets


@pytest.mark.parametrize("flow", FLOWS)
async def test_no_secret_is_logged_on_any_way_through_a_stream(
    server: StreamingServer, flow: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    authenticator = FLOWS[flow](server)
    async with client_of(authenticator) as client:
        await client.subscribe(EVENT)
        await event(client, server)
        server.revoke_tokens()
        await event(client, server)
        server.add_fault(Status(503), on="token")
        server.revoke_tokens()
        await event(client, server)
        text = "\n".join([caplog.text, repr(client), repr(authenticator)])
    assert "aiosfstream" in text
    secrets = {server.oauth.consumer_secret, server.oauth.password, *server.oauth.tokens}
    secrets |= {
        value for request in server.requests for value in request.headers.values() if "00D" in value
    }
    forms = [request.form for request in server.requests if request.kind == "token"]
    secrets |= {
        form[name] for form in forms for name in ("assertion", "refresh_token") if name in form
    }
    assert [secret for secret in secrets if secret in text] == []


# The examples


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def credentials(
    server: StreamingServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> StreamingServer:
    """Put all that the examples need into an empty folder and the environment."""
    monkeypatch.chdir(tmp_path)
    for name, value in server.credentials.items():
        monkeypatch.setenv(f"SALESFORCE_{name.upper()}", str(value))
    (tmp_path / "key.pem").write_bytes(PRIVATE_PEM)
    monkeypatch.setenv("SALESFORCE_PRIVATE_KEY_FILE", str(tmp_path / "key.pem"))
    (tmp_path / "refresh-token").write_text(server.refresh_token + "\n")
    cli = tmp_path / "bin" / "sf"
    cli.parent.mkdir()
    cli.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        "assert sys.argv[-3:] == ['--target-org', 'my-org', '--json'], sys.argv\n"
        "token = open(os.environ['TOKEN']).read()\n"
        "shown = {'instanceUrl': os.environ['INSTANCE'], 'accessToken': '[REDACTED]'}\n"
        "if sys.argv[1:4] == ['org', 'auth', 'show-access-token']:\n"
        "    shown = {'accessToken': token}\n"
        "else:\n"
        "    assert sys.argv[1:3] == ['org', 'display']\n"
        "print(json.dumps({'status': 0, 'result': shown, 'warnings': []}))\n"
    )
    cli.chmod(0o700)
    monkeypatch.setenv("PATH", str(cli.parent), prepend=os.pathsep)
    monkeypatch.setenv("INSTANCE", server.instance_url)
    monkeypatch.setenv("TOKEN", str(tmp_path / "token"))
    (tmp_path / "token").write_text(server.new_access_token())
    return server


EXAMPLE_NAMES = [
    "auth_client_credentials",
    "auth_jwt",
    "auth_refresh_token",
    "auth_access_token",
    "auth_password",
    "auth_errors",
]


@pytest.mark.parametrize("name", EXAMPLE_NAMES)
async def test_an_example_streams_and_survives_a_revoked_token(
    credentials: StreamingServer, name: str, tmp_path: Path
) -> None:
    server = credentials
    module = load(name)
    printed: asyncio.Queue[Any] = asyncio.Queue()
    vars(module)["print"] = printed.put_nowait
    running = asyncio.create_task(module.main())
    try:
        await server.wait_for(lambda server: EVENT in server.subscriptions, 10)
        await held(server)
        for level in (0.1, 0.2):
            server.publish(EVENT, {"Ink_Percentage__c": level})
            assert (await soon(printed.get()))["Ink_Percentage__c"] == level
            server.revoke_tokens()
            (tmp_path / "token").write_text(server.new_access_token())
    finally:
        running.cancel()
        await asyncio.wait({running})
    assert running.cancelled()


async def test_the_example_keeps_its_refresh_token_for_the_next_start(
    credentials: StreamingServer, tmp_path: Path
) -> None:
    server, file = credentials, tmp_path / "refresh-token"
    # Left by somebody else.
    other = tmp_path / "other"
    other.write_text("not to be touched")
    file.with_suffix(".new").symlink_to(other)
    for _ in range(2):
        running = asyncio.create_task(load("auth_refresh_token").main())
        await held(server)
        running.cancel()
        await asyncio.wait({running})
        assert file.read_text() == server.refresh_token
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        file.with_suffix(".new").write_text("stale")
        file.with_suffix(".new").chmod(0o644)
    assert other.read_text() == "not to be touched"
    assert server.refresh_token != "refresh-token-0"


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        (OAuthError("invalid_grant", "authentication failure"), "a person must look at this"),
        (Status(503), "try again later"),
    ],
)
async def test_the_example_tells_failures_apart(
    credentials: StreamingServer, fault: Any, verdict: str
) -> None:
    credentials.add_fault(fault, on="token")
    module = load("auth_errors")
    printed: list[Any] = []
    vars(module)["print"] = printed.append
    await soon(module.main())
    assert printed[0] == verdict
    assert isinstance(printed[1], AuthenticationError)


def test_the_examples_need_nothing_that_is_not_installed() -> None:
    for name in EXAMPLE_NAMES:
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "error",
                "-c",
                f"import runpy; runpy.run_path({str(EXAMPLES / name) + '.py'!r})",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
