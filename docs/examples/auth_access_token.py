"""Use the token of an org that the Salesforce CLI is logged in to."""

import asyncio
import json
import os
from asyncio.subprocess import PIPE
from typing import Any

from aiosfstream import AccessTokenAuthenticator, Client, run_program

ORG = os.environ.get("SALESFORCE_ORG", "my-org")


async def sf(*arguments: str) -> Any:
    """Ask the Salesforce CLI."""
    command = ("sf", *arguments, "--target-org", ORG, "--json")
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"sf {' '.join(arguments)} failed for {ORG}")
    return json.loads(output)["result"]


async def access_token() -> str:
    """Get a token that is valid now: the CLI renews it if need be."""
    result = await sf("org", "auth", "show-access-token")
    return str(result["accessToken"])


async def main() -> None:
    org = await sf("org", "display")
    async with Client(
        AccessTokenAuthenticator(org["instanceUrl"], access_token)
    ) as client:
        await client.subscribe("/event/Low_Ink__e")
        async for message in client:
            print(message["data"]["payload"])


if __name__ == "__main__":
    run_program(main())
