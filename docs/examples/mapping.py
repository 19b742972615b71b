"""Keep the markers in a mapping: a dict for as long as the program runs, or a shelf."""

import os
import shelve

from aiosfstream import Client, ClientCredentialsAuthenticator, run_program


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    # A shelf holds pickles: whoever can write the file can run code in this program.
    os.umask(0o077)
    with shelve.open("markers") as markers:
        async with Client(authenticator, replay=markers) as client:
            await client.subscribe("/event/Low_Ink__e")
            async for message in client:
                print(message["data"]["payload"])


if __name__ == "__main__":
    run_program(main())
