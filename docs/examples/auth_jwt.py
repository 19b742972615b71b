"""Log in with a certificate, as any user that is pre-authorized for the app."""

import os
from pathlib import Path

from aiosfstream import Client, JWTBearerAuthenticator, run_program


def private_key() -> bytes:
    return Path(os.environ["SALESFORCE_PRIVATE_KEY_FILE"]).read_bytes()


async def main() -> None:
    authenticator = JWTBearerAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_USERNAME"],
        private_key(),
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    async with Client(authenticator) as client:
        await client.subscribe("/event/Low_Ink__e")
        async for message in client:
            print(message["data"]["payload"])


if __name__ == "__main__":
    run_program(main())
