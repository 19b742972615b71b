"""Start each channel somewhere else."""

import os
from typing import Any

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ReplayOption,
    run,
    run_program,
)


async def show(message: dict[str, Any]) -> None:
    print(message["channel"], message["data"]["event"]["replayId"], flush=True)


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    # The last event of this channel that another program has seen.
    last_order = int(os.environ["LAST_ORDER"])
    async with Client(authenticator, replay=ReplayOption.NEW_EVENTS) as client:
        await client.subscribe("/event/Low_Ink__e")
        await client.subscribe("/event/Order__e", replay=last_order)
        await client.subscribe(
            "/data/AccountChangeEvent", replay=ReplayOption.ALL_EVENTS
        )
        await run(client, dict.fromkeys(client.subscriptions, show))


if __name__ == "__main__":
    run_program(main())
