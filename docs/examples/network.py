"""Go through a proxy, and trust a certificate authority of your own."""

import os
import ssl
from functools import partial
from typing import Any

import aiohttp

from aiosfstream import Client, ClientCredentialsAuthenticator, run, run_program


async def show(message: dict[str, Any]) -> None:
    print(message["data"]["payload"], flush=True)


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    proxy = os.environ.get("PROXY")
    client = Client(
        authenticator,
        session_factory=partial(aiohttp.ClientSession, proxy=proxy),
        ssl=ssl.create_default_context(cafile=os.environ.get("CA_FILE")),
        # This proxy cuts connections that are silent for a minute: get answers sooner.
        poll_timeout=45.0,
    )
    await run(client, {"/event/Low_Ink__e": show})


if __name__ == "__main__":
    run_program(main())
