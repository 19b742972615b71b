"""Tell a person on call what happens to the connection."""

import asyncio
import os

from aiosfstream import Client, ClientCredentialsAuthenticator, ConnectionEvent


def tell(event: ConnectionEvent) -> None:
    details = [
        event.channel,
        event.error,
        event.delay and f"again in {event.delay:.1f} s",
    ]
    print(event.kind.value, *filter(None, details))


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    async with Client(authenticator, replay={}, observer=tell) as client:
        await client.subscribe("/event/Low_Ink__e")
        async for message in client:
            print(message["data"]["payload"])


if __name__ == "__main__":
    asyncio.run(main())
