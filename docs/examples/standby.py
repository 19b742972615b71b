"""Run this on two machines: one works, the other takes over when it is gone."""

import asyncio
import contextlib
import os
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.lock import Lock
from redis.exceptions import LockError, RedisError

from aiosfstream import (
    AiosfstreamException,
    Client,
    ClientCredentialsAuthenticator,
    ReplayMarkerStoragePolicy,
    ReplayOption,
    run_program,
)
from aiosfstream.storages.redis import RedisStorage

#: Seconds until the lock of a machine that has died is free.
LEASE = float(os.environ.get("LEASE", "10"))


async def process(message: dict[str, Any]) -> None:
    print("processed", message["data"]["payload"]["Number__c"], flush=True)


async def consume(redis: "Redis") -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
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
            async with client.replay_storage(message):
                await process(message)


async def keep(lock: Lock) -> None:
    while True:
        await asyncio.sleep(LEASE / 4)
        # Fails if another machine has it by now, or if Redis takes too long.
        await asyncio.wait_for(lock.extend(LEASE, replace_ttl=True), LEASE / 4)


async def lead(redis: "Redis", lock: Lock) -> None:
    """Process events until that fails or the lock is lost."""
    tasks = [asyncio.create_task(consume(redis)), asyncio.create_task(keep(lock))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


async def main() -> None:
    async with Redis.from_url(os.environ["REDIS_URL"]) as redis:
        while True:
            lock = redis.lock("orders:leader", timeout=LEASE, sleep=LEASE / 20)
            try:
                await lock.acquire()
                print("active", flush=True)
                try:
                    await lead(redis, lock)
                finally:
                    with contextlib.suppress(LockError):
                        await lock.release()
            except (AiosfstreamException, RedisError, asyncio.TimeoutError) as error:
                print("standing by:", error, flush=True)
                await asyncio.sleep(LEASE / 10)


if __name__ == "__main__":
    run_program(main())
