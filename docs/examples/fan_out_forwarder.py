"""Put every event into a Redis Stream, from which any number of workers takes them."""

import json
import os
from typing import Any

from redis.asyncio import Redis

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ReplayOption,
    run,
    run_program,
)
from aiosfstream.storages.redis import RedisStorage


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    start = ReplayOption.ALL_EVENTS
    async with Redis.from_url(os.environ["REDIS_URL"]) as redis:

        async def forward(message: dict[str, Any]) -> None:
            # The marker is stored when the event is in the stream, and not before.
            await redis.xadd("orders", {"event": json.dumps(message)})
            print("forwarded", message["data"]["payload"]["Number__c"], flush=True)

        storage = RedisStorage(redis, prefix="orders:markers:", default_id=start)
        client = Client(authenticator, replay=storage, replay_fallback=start)
        await run(client, {"/event/Order__e": forward})


if __name__ == "__main__":
    run_program(main())
