"""Process every order, including those published while this program was stopped."""

import asyncio
import contextlib
import os

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ReplayMarkerStoragePolicy,
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
        async with Client(
            authenticator,
            replay=storage,
            replay_storage_policy=ReplayMarkerStoragePolicy.MANUAL,
        ) as client:
            await client.subscribe("/event/Order__e")
            async for message in client:
                async with client.replay_storage(message):
                    print("order", message["data"]["payload"]["Number__c"], flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
