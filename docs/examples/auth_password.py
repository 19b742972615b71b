"""Log in with a username and a password, where an org still allows it."""

import os

from aiosfstream import SalesforceStreamingClient, run_program


async def main() -> None:
    async with SalesforceStreamingClient(
        consumer_key=os.environ["SALESFORCE_CONSUMER_KEY"],
        consumer_secret=os.environ["SALESFORCE_CONSUMER_SECRET"],
        username=os.environ["SALESFORCE_USERNAME"],
        # Append the security token to the password, without a space.
        password=os.environ["SALESFORCE_PASSWORD"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    ) as client:
        await client.subscribe("/event/Low_Ink__e")
        async for message in client:
            print(message["data"]["payload"])


if __name__ == "__main__":
    run_program(main())
