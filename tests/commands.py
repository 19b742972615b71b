"""Running the command as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from aiosfstream.testing import StreamingServer
from tests.support import soon

#: Seconds that no command should need.
PATIENCE = 20.0


def environment(server: StreamingServer | None = None, **variables: str) -> dict[str, str]:
    """Give an environment with the credentials for *server*."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith("SALESFORCE_")
    }
    if server is not None:
        credentials = server.credentials
        clean |= {
            "SALESFORCE_CONSUMER_KEY": credentials["consumer_key"],
            "SALESFORCE_CONSUMER_SECRET": credentials["consumer_secret"],
            "SALESFORCE_USERNAME": credentials["username"],
            "SALESFORCE_PASSWORD": credentials["password"],
            "SALESFORCE_LOGIN_URL": credentials["login_url"],
        }
    return clean | variables


async def start(*arguments: str, env: dict[str, str], **options: Any) -> asyncio.subprocess.Process:
    """Start the command."""
    options = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE} | options
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "aiosfstream", *arguments, env=env, **options
    )


async def end(process: asyncio.subprocess.Process) -> int:
    """Wait until the command has ended, read what is left of its output, and give its status."""
    await soon(process.communicate(), PATIENCE)
    assert process.returncode is not None
    return process.returncode


async def run(*arguments: str, env: dict[str, str]) -> tuple[int, list[str], str]:
    """Run the command to its end: exit status, lines of output, errors."""
    process = await start(*arguments, env=env)
    output, errors = await soon(process.communicate(), PATIENCE)
    assert process.returncode is not None
    return process.returncode, output.decode().splitlines(), errors.decode()


def ids(lines: list[str]) -> list[Any]:
    """Give the replay ids of printed events."""
    return [json.loads(line)["data"]["event"]["replayId"] for line in lines]


def read_all(descriptor: int) -> str:
    """Read what was written to a terminal that is gone."""
    text = b""
    while True:
        try:
            piece = os.read(descriptor, 4096)
        except OSError:
            break
        if not piece:
            break
        text += piece
    os.close(descriptor)
    return text.decode()
