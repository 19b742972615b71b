"""Put every event into a Redis Stream, from which any number of workers takes them."""

import asyncio
import json
import os

from redis.asyncio import Redis

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ReplayMarkerStoragePolicy,
    ReplayOption,
)
from aiosfstream.storages.redis import RedisStorage


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    async with Redis.from_url(os.environ["REDIS_URL"]) as redis:
        client = Client(
            authenticator,
            replay=RedisStorage(
                redis, prefix="orders:markers:", default_id=ReplayOption.ALL_EVENTS
            ),
            replay_storage_policy=ReplayMarkerStoragePolicy.MANUAL,
        )
        async with client:
            await client.subscribe("/event/Order__e")
            async for message in client:
                # The marker is stored when the event is in the stream, and not before.
                async with client.replay_storage(message):
                    await redis.xadd("orders", {"event": json.dumps(message)})


if __name__ == "__main__":
    asyncio.run(main())
