"""Process every order, including those published while this program was stopped."""

import os
from typing import Any

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ReplayOption,
    SQLiteStorage,
    run,
    run_program,
)


async def process(message: dict[str, Any]) -> None:
    print("order", message["data"]["payload"]["Number__c"], flush=True)


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    start = ReplayOption.ALL_EVENTS
    async with SQLiteStorage("markers.db", default_id=start) as storage:
        client = Client(authenticator, replay=storage)
        await run(client, {"/event/Order__e": process})


if __name__ == "__main__":
    run_program(main())
