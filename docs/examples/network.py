"""Go through a proxy, and trust a certificate authority of one's own."""

import asyncio
import os
import ssl
from functools import partial

import aiohttp

from aiosfstream import Client, ClientCredentialsAuthenticator


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    async with Client(
        authenticator,
        session_factory=partial(aiohttp.ClientSession, proxy=os.environ.get("PROXY")),
        ssl=ssl.create_default_context(cafile=os.environ.get("CA_FILE")),
        # This proxy cuts connections that are silent for a minute.
        poll_timeout=45.0,
    ) as client:
        await client.subscribe("/event/Low_Ink__e")
        async for message in client:
            print(message["data"]["payload"])


if __name__ == "__main__":
    asyncio.run(main())
