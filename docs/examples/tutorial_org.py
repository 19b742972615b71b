"""A small org for the tutorial. It publishes an order each second until Ctrl-C."""

import asyncio
import contextlib
import os
from pathlib import Path

from aiosfstream.testing import StreamingServer

PORT = int(os.environ.get("PORT", "8123"))
# The org keeps its events in this file, one to a line, when it is stopped.
EVENTS = Path("org-events.jsonl")


def published() -> int:
    return len(EVENTS.read_text().splitlines()) if EVENTS.exists() else 0


async def main() -> None:
    number = published()
    async with StreamingServer(port=PORT, events_file=EVENTS) as org:
        print(f"export SALESFORCE_LOGIN_URL={org.login_url}")
        print(f"export SALESFORCE_CONSUMER_KEY={org.credentials['consumer_key']}")
        secret = org.credentials["consumer_secret"]
        print(f"export SALESFORCE_CONSUMER_SECRET={secret}", flush=True)
        while True:
            await asyncio.sleep(1)
            number += 1
            org.publish("/event/Order__e", {"Number__c": number})


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
