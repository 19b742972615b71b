"""Log in with a refresh token from a file, and keep that file up to date."""

import os
from pathlib import Path

from aiosfstream import Client, RefreshTokenAuthenticator, run_program

TOKEN_FILE = Path("refresh-token")


def stored() -> str:
    return TOKEN_FILE.read_text(encoding="utf-8").strip()


def store(token: str) -> None:
    """Replace the token in one step, so that the file never holds half of one."""
    new = TOKEN_FILE.with_suffix(".new")
    new.unlink(missing_ok=True)
    # A new file, which nobody else can read from its first moment on.
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(token)
        file.flush()
        os.fsync(file.fileno())
    new.replace(TOKEN_FILE)


async def main() -> None:
    authenticator = RefreshTokenAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        stored(),
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
        on_token_refreshed=store,
    )
    async with Client(authenticator) as client:
        await client.subscribe("/event/Low_Ink__e")
        async for message in client:
            print(message["data"]["payload"])


if __name__ == "__main__":
    run_program(main())
