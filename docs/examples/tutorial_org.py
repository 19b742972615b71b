"""An org of one's own for the tutorial: it publishes an event a second until Ctrl-C."""

import asyncio
import contextlib
import itertools

from aiosfstream.testing import StreamingServer


async def main() -> None:
    async with StreamingServer() as org:
        print(f"export SALESFORCE_LOGIN_URL={org.login_url}")
        print(f"export SALESFORCE_CONSUMER_KEY={org.credentials['consumer_key']}")
        print(
            f"export SALESFORCE_CONSUMER_SECRET={org.credentials['consumer_secret']}",
            flush=True,
        )
        for number in itertools.count(1):
            await asyncio.sleep(1)
            org.publish("/event/Order__e", {"Number__c": number})


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
