"""Print every event of a channel, including those published between two runs."""

import asyncio
import os

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ReplayOption,
    SQLiteStorage,
)


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    async with SQLiteStorage(
        "markers.db", default_id=ReplayOption.ALL_EVENTS
    ) as storage:
        client = Client(
            authenticator, replay=storage, replay_fallback=ReplayOption.ALL_EVENTS
        )
        async with client:
            await client.subscribe("/event/Low_Ink__e")
            async for message in client:
                print(message["data"]["payload"])


if __name__ == "__main__":
    asyncio.run(main())
