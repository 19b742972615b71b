"""Which credentials of the environment are used."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from aiosfstream._cli.console import CommandError, UsageError
from aiosfstream._cli.credentials import Credentials, authenticator_from
from aiosfstream._cli.files import SecretFile, read_secret
from aiosfstream.testing import RevokeTokens, StreamingServer
from tests.commands import environment, ids, run, start
from tests.support import EVENT, held, soon

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
PUBLIC_PEM = KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
LISTEN = ("listen", EVENT, "--replay", "all", "--count", "1")


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server that knows every flow, and has an event."""
    async with StreamingServer(jwt_public_key=PUBLIC_PEM, rotate_refresh_tokens=True) as server:
        server.publish(EVENT)
        yield server


def variables(server: StreamingServer, *names: str) -> dict[str, str]:
    """Give the environment of a flow."""
    oauth = server.oauth
    known = {
        "CONSUMER_KEY": oauth.consumer_key,
        "CONSUMER_SECRET": oauth.consumer_secret,
        "USERNAME": oauth.username,
        "PASSWORD": oauth.password,
        "REFRESH_TOKEN": oauth.refresh_token,
        "LOGIN_URL": server.login_url,
        "INSTANCE_URL": server.instance_url,
        "ACCESS_TOKEN": server.new_access_token(),
        "PRIVATE_KEY": PEM,
    }
    return {f"SALESFORCE_{name}": known[name] for name in names}


FLOWS = {
    "access token": ("INSTANCE_URL", "ACCESS_TOKEN"),
    "refresh token flow": ("CONSUMER_KEY", "CONSUMER_SECRET", "REFRESH_TOKEN", "LOGIN_URL"),
    "JWT bearer flow": ("CONSUMER_KEY", "USERNAME", "PRIVATE_KEY", "LOGIN_URL"),
    "username-password flow": (
        *("CONSUMER_KEY", "CONSUMER_SECRET", "USERNAME", "PASSWORD", "LOGIN_URL"),
    ),
    "client credentials flow": ("CONSUMER_KEY", "CONSUMER_SECRET", "LOGIN_URL"),
}


@pytest.mark.parametrize("way", ["variables", "files", "escaped"])
@pytest.mark.parametrize("flow", FLOWS)
async def test_each_flow_from_variables_and_from_files(
    server: StreamingServer, tmp_path: Path, flow: str, way: str
) -> None:
    env = environment(None, **variables(server, *FLOWS[flow]))
    if way == "escaped":
        env = {name: value.replace("\n", "\\n") for name, value in env.items()}
    if way == "files":
        for name in FLOWS[flow]:
            file = tmp_path / name
            file.write_text(env.pop(f"SALESFORCE_{name}") + "\n")
            env[f"SALESFORCE_{name}_FILE"] = str(file)
    status, lines, told = await run(*LISTEN, env=env)
    assert (status, ids(lines)) == (0, server.replay_ids(EVENT)), told
    if "SALESFORCE_REFRESH_TOKEN" in env:
        # The first log-in has replaced it.
        env["SALESFORCE_REFRESH_TOKEN"] = server.refresh_token
    status, lines, _ = await run("check", env=env)
    assert status == 0
    assert f"Login:          {flow}" in lines


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe", b"x" * 70000])
@pytest.mark.parametrize("name", ["PASSWORD", "PRIVATE_KEY", "CONSUMER_SECRET"])
async def test_a_file_that_holds_no_secret(
    server: StreamingServer, tmp_path: Path, name: str, content: bytes | None
) -> None:
    flow = "JWT bearer flow" if name == "PRIVATE_KEY" else "username-password flow"
    env = environment(None, **variables(server, *FLOWS[flow]))
    del env[f"SALESFORCE_{name}"]
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    env[f"SALESFORCE_{name}_FILE"] = str(file)
    status, _, told = await run(*LISTEN, env=env)
    assert status == 1
    assert told.startswith(f"aiosfstream: SALESFORCE_{name}_FILE names {str(file)!r}")
    assert told.count("\n") == 1
    assert server.requests == []


async def test_a_secret_that_is_given_twice(server: StreamingServer, tmp_path: Path) -> None:
    env = environment(server, SALESFORCE_PASSWORD_FILE=str(tmp_path / "x"))
    status, _, told = await run(*LISTEN, env=env)
    assert status == 2
    assert "SALESFORCE_PASSWORD and SALESFORCE_PASSWORD_FILE" in told


async def test_the_audience_of_an_assertion(server: StreamingServer) -> None:
    env = environment(None, **variables(server, *FLOWS["JWT bearer flow"]))
    status, _, told = await run(*LISTEN, env=env | {"SALESFORCE_AUDIENCE": "https://wrong.example"})
    assert status == 1
    assert "SALESFORCE_AUDIENCE" in told
    assert "login_url" not in told
    status, _, _ = await run(
        *LISTEN, env=env | {"SALESFORCE_AUDIENCE": "https://login.salesforce.com"}
    )
    assert status == 0


@pytest.mark.parametrize("value", ["maybe", "2", "sandbox"])
async def test_a_switch_says_yes_or_no(server: StreamingServer, value: str) -> None:
    env = environment(server, SALESFORCE_SANDBOX=value)
    del env["SALESFORCE_LOGIN_URL"]
    status, _, told = await run(*LISTEN, env=env)
    assert status == 2
    assert f"SALESFORCE_SANDBOX should be 1 or 0, not '{value}'" in told


# The file with the refresh token


def token_environment(server: StreamingServer) -> dict[str, str]:
    names = [name for name in FLOWS["refresh token flow"] if name != "REFRESH_TOKEN"]
    return environment(None, **variables(server, *names))


async def test_each_new_refresh_token_is_kept_in_its_file(
    server: StreamingServer, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(server.refresh_token + "\n")
    file.chmod(0o644)
    seen = {server.refresh_token}
    options = ("--token-file", str(file))
    for count in range(2):
        status, lines, told = await run(*LISTEN, *options, env=token_environment(server))
        assert (status, ids(lines)) == (0, server.replay_ids(EVENT)), told
        assert file.read_text() == server.refresh_token + "\n"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        seen.add(server.refresh_token)
        assert len(seen) == count + 2
    assert os.listdir(tmp_path) == ["token"]  # noqa: PTH208


async def test_a_token_that_is_replaced_in_mid_stream(
    server: StreamingServer, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(server.refresh_token)
    process = await start("listen", EVENT, "--token-file", str(file), env=token_environment(server))
    await held(server)
    before = file.read_text()
    server.add_fault(RevokeTokens(), on="/meta/connect")
    server.publish(EVENT)
    await server.wait_for(lambda server: server.count("token") == 2, 20)
    await held(server)
    assert file.read_text() != before
    assert file.read_text() == server.refresh_token + "\n"
    process.terminate()
    await soon(process.communicate(), 20)


async def test_the_file_of_the_variable_is_kept_up_to_date_too(
    server: StreamingServer, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(server.refresh_token)
    env = token_environment(server) | {"SALESFORCE_REFRESH_TOKEN_FILE": str(file)}
    status, _, told = await run(*LISTEN, env=env)
    assert (status, told) == (0, "")
    assert file.read_text() == server.refresh_token + "\n"
    # Where it cannot be written to, that is told, and the command goes on.
    link = tmp_path / "link"
    link.symlink_to(file)
    status, _, told = await run(*LISTEN, env=env | {"SALESFORCE_REFRESH_TOKEN_FILE": str(link)})
    assert status == 0
    assert "could not be kept" in told
    assert "symbolic link" in told


async def test_a_token_in_a_variable_that_is_replaced_is_told(server: StreamingServer) -> None:
    env = environment(None, **variables(server, *FLOWS["refresh token flow"]))
    status, _, told = await run(*LISTEN, env=env)
    assert status == 0
    assert "--token-file" in told
    assert server.refresh_token not in told


@pytest.mark.parametrize("kind", ["missing", "folder", "link", "no folder", "fifo"])
async def test_a_token_file_that_cannot_be_used(
    server: StreamingServer, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "token"
    if kind == "folder":
        file.mkdir()
    elif kind == "link":
        (tmp_path / "other").write_text(server.refresh_token)
        file.symlink_to(tmp_path / "other")
    elif kind == "no folder":
        file = tmp_path / "nowhere" / "token"
    elif kind == "fifo":
        os.mkfifo(file)
    status, _, told = await run(*LISTEN, "--token-file", str(file), env=token_environment(server))
    assert status == 1
    assert told.startswith("aiosfstream: --token-file")
    assert told.count("\n") == 1
    assert server.requests == []


# Files with secrets


def test_a_secret_file_is_its_owners_from_the_first_moment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    previous = os.umask(0)
    try:
        SecretFile(file, "--output").write("secret")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_secret(file, "--output") == "secret"


def test_a_secret_file_takes_the_place_of_one_that_others_may_read(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    file.chmod(0o666)
    with file.open() as reader:
        SecretFile(file, "--output").write("new")
        # Who has the old one open does not see the new one.
        assert reader.read() == "old"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text() == "new\n"


@pytest.mark.parametrize("target", ["file", "nothing"])
def test_a_symbolic_link_is_not_followed(tmp_path: Path, target: str) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    if target == "file":
        victim.write_text("precious")
    link.symlink_to(victim)
    for act in (
        SecretFile(link, "--output").check,
        lambda: SecretFile(link, "--output").write("x"),
    ):
        with pytest.raises(CommandError, match="symbolic link"):
            act()
    assert link.is_symlink()
    assert victim.exists() is (target == "file")
    assert not victim.exists() or victim.read_text() == "precious"


def test_a_file_that_cannot_be_replaced_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CommandError, match="No space left on device"):
        SecretFile(file, "--output").write("new")
    assert file.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["token"]


def test_the_end_of_a_line_is_no_part_of_a_secret(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    for content, secret in (
        ("a b \n", "a b "),
        ("x\r\n", "x"),
        ("\u00fc", "\u00fc"),
        ("1\n2\n", "1\n2"),
    ):
        file.write_bytes(content.encode())
        assert read_secret(file, "X") == secret


# Without a process


def test_the_flow_is_chosen_by_the_environment(tmp_path: Path) -> None:
    key, secret = {"SALESFORCE_CONSUMER_KEY": "k"}, {"SALESFORCE_CONSUMER_SECRET": "s"}
    url = {"SALESFORCE_LOGIN_URL": "x.my.salesforce.com"}
    user = {"SALESFORCE_USERNAME": "u"}
    flows: list[tuple[dict[str, str], str]] = [
        (
            {
                "SALESFORCE_ACCESS_TOKEN": "t",
                "SALESFORCE_INSTANCE_URL": "https://x.my.salesforce.com",
            },
            "AccessToken",
        ),
        (key | {"SALESFORCE_REFRESH_TOKEN": "r"}, "RefreshToken"),
        (key | secret | user | {"SALESFORCE_PASSWORD": "p"}, "Password"),
        (key | secret | url, "ClientCredentials"),
    ]
    for variables, name in flows:
        assert (
            type(authenticator_from(Credentials(variables))[1]).__name__ == f"{name}Authenticator"
        )
    sandbox = key | secret | user | {"SALESFORCE_PASSWORD": "p", "SALESFORCE_SANDBOX": "1"}
    assert "test.salesforce.com" in repr(authenticator_from(Credentials(sandbox))[1])
    with pytest.raises(UsageError):
        authenticator_from(Credentials(key))
