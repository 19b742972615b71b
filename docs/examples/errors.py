"""Tell apart the failures that the client cannot fix by itself."""

import asyncio
import os

from aiosfstream import (
    AuthenticationError,
    Client,
    ClientCredentialsAuthenticator,
    ReplayError,
    ServerError,
    TransportTimeoutError,
)


async def stream(client: Client) -> None:
    while not client.closed:
        try:
            async for message in client:
                print("event", message["data"]["event"]["replayId"])
        except TransportTimeoutError as error:
            # The client keeps trying; the next round of the loop waits for it again.
            print("no connection:", error.__cause__)
        except AuthenticationError as error:
            if not error.retryable:
                raise
            print("cannot log in for now:", error)
        except ServerError as error:
            # A channel that could not be resumed is named here; the others go on.
            # If the whole session has ended, the client is closed and this loop ends.
            print("refused:", error)
        except ReplayError as error:
            # The message was not lost: it comes again.
            print("cannot store the marker:", error)


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    async with Client(authenticator, replay={}, connection_timeout=0.5) as client:
        await client.subscribe("/event/Low_Ink__e")
        await stream(client)


if __name__ == "__main__":
    asyncio.run(main())
