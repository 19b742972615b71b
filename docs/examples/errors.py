"""Receive messages without run(), and know what each error asks for."""

import asyncio
import os

from aiosfstream import (
    AuthenticationError,
    Client,
    ClientCredentialsAuthenticator,
    ReplayError,
    TransportTimeoutError,
    run_program,
)


async def stream(client: Client) -> None:
    while not client.closed:
        try:
            async for message in client:
                print("event", message["data"]["event"]["replayId"], flush=True)
        except TransportTimeoutError as error:
            # The client keeps trying; the next round of the loop waits for it.
            print("no connection:", error.__cause__, flush=True)
        except AuthenticationError as error:
            if not error.retryable:
                # Only a person can help. Too many attempts lock the user.
                raise
            print("cannot log in for now:", error, flush=True)
        except ReplayError as error:
            # The message is not lost: the next round gets it again.
            print("cannot store the marker:", error, flush=True)
            await asyncio.sleep(1)
        # A ServerError names the channel that is lost: continuing would mean waiting
        # for events that never come. So it ends the program, as does any other error.


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
    run_program(main())
