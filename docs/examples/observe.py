"""Tell a person on call what happens to the connection."""

import os
from typing import Any

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ConnectionEvent,
    run,
    run_program,
)


def tell(event: ConnectionEvent) -> None:
    again = event.delay and f"again in {event.delay:.1f} s"
    details = [event.channel, event.error, again]
    print(event.kind.value, *filter(None, details), flush=True)


async def show(message: dict[str, Any]) -> None:
    print(message["data"]["payload"], flush=True)


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    client = Client(authenticator, replay={}, observer=tell)
    await run(client, {"/event/Low_Ink__e": show})


if __name__ == "__main__":
    run_program(main())
