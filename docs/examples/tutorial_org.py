"""A small org for the tutorial. It publishes an order each second until Ctrl-C."""

import asyncio
import contextlib
import itertools
import os
import threading

from aiosfstream.testing import StreamingServer


async def obey_the_keyboard(org: StreamingServer) -> None:
    """Take the org away when Enter is pressed, and bring it back at the next Enter."""
    while os.read(0, 1024):
        await org.pause()
        print("# The org is away. Press Enter to start it again.", flush=True)
        os.read(0, 1024)
        await org.restart()
        print("# The org is back, at the same address and with its events.", flush=True)


def watch_the_keyboard(org: StreamingServer) -> None:
    asyncio.run(obey_the_keyboard(org))


async def main() -> None:
    async with StreamingServer() as org:
        print(f"export SALESFORCE_LOGIN_URL={org.login_url}")
        print(f"export SALESFORCE_CONSUMER_KEY={org.credentials['consumer_key']}")
        secret = org.credentials["consumer_secret"]
        print(f"export SALESFORCE_CONSUMER_SECRET={secret}", flush=True)
        # Reading the keyboard blocks, so it is done in a thread of its own.
        threading.Thread(target=watch_the_keyboard, args=[org], daemon=True).start()
        for number in itertools.count(1):
            await asyncio.sleep(1)
            org.publish("/event/Order__e", {"Number__c": number})


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
