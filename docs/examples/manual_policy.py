"""Process every event at least once, whatever happens to this program."""

import os
import sys
from typing import Any

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ReplayMarkerStoragePolicy,
    ReplayOption,
    SQLiteStorage,
    run_program,
)


async def process(message: dict[str, Any]) -> None:
    if message["data"]["payload"]["Ink_Percentage__c"] is None:
        raise ValueError("no ink level")
    print(message["data"]["payload"])


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
            await client.subscribe("/event/Low_Ink__e")
            async for message in client:
                async with client.replay_storage(message):
                    await process(message)


if __name__ == "__main__":
    try:
        run_program(main())
    except ValueError as error:
        sys.exit(f"stopped, and this event arrives again at the next start: {error}")
