"""Keep the markers in Redis, so that the program can continue on another machine."""

import os

from redis.asyncio import Redis

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ReplayOption,
    run_program,
)
from aiosfstream.storages.redis import RedisStorage


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    async with Redis.from_url(os.environ["REDIS_URL"]) as redis:
        storage = RedisStorage(redis, prefix="ink:", default_id=ReplayOption.ALL_EVENTS)
        async with Client(authenticator, replay=storage) as client:
            await client.subscribe("/event/Low_Ink__e")
            async for message in client:
                print(message["data"]["payload"])


if __name__ == "__main__":
    run_program(main())
