"""Process several events at a time, and lose none, whatever happens to this program."""

import asyncio
import os
from contextlib import AbstractAsyncContextManager
from typing import Any

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ReplayMarkerStoragePolicy,
    ReplayOption,
    SQLiteStorage,
    run_program,
)

WORKERS = 5

Task = tuple[dict[str, Any], AbstractAsyncContextManager[None]]


async def process(message: dict[str, Any]) -> None:
    number = message["data"]["payload"]["Number__c"]
    await asyncio.sleep(number % WORKERS / 100)
    if number < 0:
        raise ValueError("there are no such orders")
    print("processed", number, flush=True)


async def work(queue: "asyncio.Queue[Task]") -> None:
    while True:
        message, in_flight = await queue.get()
        async with in_flight:
            # The marker passes a block that has failed, so decide in here what to do
            # with an event that cannot be processed: try again, put it aside, or stop.
            try:
                await process(message)
            except ValueError as error:
                print(
                    "put aside",
                    message["data"]["payload"]["Number__c"],
                    error,
                    flush=True,
                )


async def receive(client: Client, queue: "asyncio.Queue[Task]") -> None:
    await client.subscribe("/event/Order__e")
    async for message in client:
        # In flight from here on. Call it in order of arrival, before queueing.
        in_flight = client.replay_storage(message)
        await queue.put((message, in_flight))


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    # Bounded, so that a slow worker slows down the receiver and nothing piles up.
    queue: asyncio.Queue[Task] = asyncio.Queue(maxsize=WORKERS)
    async with SQLiteStorage(
        "orders.db", default_id=ReplayOption.ALL_EVENTS
    ) as storage:
        async with Client(
            authenticator,
            replay=storage,
            replay_storage_policy=ReplayMarkerStoragePolicy.MANUAL,
        ) as client:
            tasks = [asyncio.create_task(work(queue)) for _ in range(WORKERS)]
            tasks.append(asyncio.create_task(receive(client, queue)))
            try:
                # Ends when one of them fails: then all do, and nothing is passed.
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    run_program(main())
