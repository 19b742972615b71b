"""Print what changes in the accounts of an org."""

import asyncio
import os

from aiosfstream import Client, ClientCredentialsAuthenticator
from aiosfstream.types import is_change_event


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    async with Client(authenticator) as client:
        await client.subscribe("/data/AccountChangeEvent")
        async for message in client:
            if is_change_event(message):
                payload = message["data"]["payload"]
                header = payload["ChangeEventHeader"]
                print(header["changeType"], header["recordIds"], payload.get("Name"))


if __name__ == "__main__":
    asyncio.run(main())
