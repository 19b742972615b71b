"""Tell credentials that are wrong from a log-in that may work later."""

import os

from aiosfstream import (
    AuthenticationError,
    Client,
    ClientCredentialsAuthenticator,
    run_program,
)


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    try:
        async with Client(authenticator) as client:
            await client.subscribe("/event/Low_Ink__e")
            async for message in client:
                print(message["data"]["payload"])
    except AuthenticationError as error:
        print("try again later" if error.retryable else "a person must look at this")
        print(error)


if __name__ == "__main__":
    run_program(main())
