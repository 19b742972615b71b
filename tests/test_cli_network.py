"""Proxies and certificate authorities, as the command line and the environment give them."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from aiosfstream.testing import StreamingServer
from tests.commands import environment, ids, run
from tests.proxy import Proxy
from tests.support import EVENT

COMMAND = ("listen", EVENT, "--replay", "all", "--count", "1")


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return authority


@pytest.fixture
async def server(authority: trustme.CA) -> AsyncIterator[StreamingServer]:
    """A server that speaks TLS, as Salesforce does."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with StreamingServer(ssl_context=context) as server:
        server.publish(EVENT)
        yield server


def clean(server: StreamingServer, **variables: str) -> dict[str, str]:
    """Give an environment without the proxies of this machine."""
    env = {
        name: value
        for name, value in environment(server).items()
        if not name.lower().endswith("_proxy")
    }
    return env | variables


async def test_an_authority_of_ones_own(server: StreamingServer, tmp_path: Path) -> None:
    status, _, told = await run(*COMMAND, env=clean(server))
    assert status == 1
    assert "certificate" in told.lower()
    assert server.count("token") == 0
    cacert = ("--cacert", str(tmp_path / "ca.pem"))
    status, lines, told = await run(*COMMAND, *cacert, env=clean(server))
    assert (status, told) == (0, "")
    assert ids(lines) == server.replay_ids(EVENT)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "--proxy"])
@pytest.mark.parametrize("scheme", ["http://", "", "http://user:hidden@"])
async def test_a_proxy(server: StreamingServer, tmp_path: Path, name: str, scheme: str) -> None:
    async with Proxy() as proxy:
        url = f"{scheme}{proxy.address}"
        options, variables = ([name, url], {}) if name == "--proxy" else ([], {name: url})
        status, lines, told = await run(
            *COMMAND,
            *("--cacert", str(tmp_path / "ca.pem"), *options),
            env=clean(server, **variables),
        )
        assert (status, told) == (0, "")
        assert ids(lines) == server.replay_ids(EVENT)
        assert set(proxy.targets) == {server.url.partition("://")[2]}
        assert len(proxy.authorizations) == ("hidden" in scheme and len(proxy.targets))


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
async def test_a_host_that_needs_no_proxy(
    server: StreamingServer, tmp_path: Path, name: str
) -> None:
    async with Proxy() as proxy:
        variables = {"HTTPS_PROXY": f"http://{proxy.address}", name: "example.com,127.0.0.1"}
        cacert = ("--cacert", str(tmp_path / "ca.pem"))
        status, _, told = await run(*COMMAND, *cacert, env=clean(server, **variables))
        assert (status, told) == (0, "")
        assert proxy.targets == []


async def test_a_password_in_netrc_does_not_take_the_place_of_the_token(
    server: StreamingServer, tmp_path: Path
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password hidden")
    async with Proxy() as proxy:
        url = f"http://{proxy.address}"
        variables = {"HTTPS_PROXY": url, "NETRC": str(netrc), "HOME": str(tmp_path)}
        cacert = ("--cacert", str(tmp_path / "ca.pem"))
        status, _, told = await run(*COMMAND, *cacert, env=clean(server, **variables))
        assert (status, told) == (0, "")
        assert proxy.targets
    for request in server.requests:
        assert not request.headers.get("Authorization", "").startswith("Basic")


async def test_what_goes_without_tls_goes_to_no_proxy() -> None:
    async with Proxy() as proxy, StreamingServer() as server:
        server.publish(EVENT)
        url = f"http://{proxy.address}"
        variables = {"HTTPS_PROXY": url, "HTTP_PROXY": url, "http_proxy": url}
        status, _, told = await run(*COMMAND, env=clean(server, **variables))
        assert (status, told) == (0, "")
        assert proxy.targets == []


@pytest.mark.parametrize("command", ["check", "login"])
async def test_the_other_commands_have_the_same_options(
    server: StreamingServer, tmp_path: Path, command: str
) -> None:
    variables = {"HTTPS_PROXY": "socks5://user:hidden@127.0.0.1:1"}
    status, _, told = await run(command, env=clean(server, **variables))
    assert status == 2
    assert told.splitlines()[-1].startswith("aiosfstream: HTTPS_PROXY should be")
    assert "hidden" not in told
