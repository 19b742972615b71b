"""Print what changes in the accounts of an org."""

import os
from typing import Any

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    SQLiteStorage,
    run,
    run_program,
)


async def process(message: dict[str, Any]) -> None:
    payload = message["data"]["payload"]
    header = payload["ChangeEventHeader"]
    print(header["changeType"], header["recordIds"], payload.get("Name"), flush=True)


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    async with SQLiteStorage("markers.db") as storage:
        client = Client(authenticator, replay=storage)
        await run(client, {"/data/AccountChangeEvent": process})


if __name__ == "__main__":
    run_program(main())
