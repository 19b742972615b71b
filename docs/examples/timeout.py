"""Do something else when no event comes for a while."""

import asyncio
import os

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    TransportTimeoutError,
    run_program,
)


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    patience = float(os.environ.get("PATIENCE", "60"))
    async with Client(authenticator) as client:
        await client.subscribe("/event/Low_Ink__e")
        while True:
            try:
                message = await asyncio.wait_for(client.receive(), patience)
            except TransportTimeoutError as error:
                print("no connection:", error.__cause__, flush=True)
            except asyncio.TimeoutError:
                print("nothing new,", client.state.name.lower(), flush=True)
            else:
                print(message["data"]["payload"], flush=True)


if __name__ == "__main__":
    run_program(main())
