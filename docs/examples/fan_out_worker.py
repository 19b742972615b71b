"""Take events from a Redis Stream. Run as many of these as you like."""

import asyncio
import json
import os
import socket
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

STREAM, GROUP = "orders", "workers"
NAME = f"{socket.gethostname()}-{os.getpid()}"
#: Milliseconds after which an unacknowledged event is given to another worker. This
#: must be longer than processing an event ever takes.
IDLE = int(os.environ.get("IDLE", "60000"))


async def process(message: dict[str, Any]) -> None:
    print("processed", message["data"]["payload"]["Number__c"], flush=True)


async def take(redis: "Redis") -> list[Any]:
    """Wait for an event: one that a dead worker has left, or a new one."""
    left: Any = await redis.xautoclaim(STREAM, GROUP, NAME, min_idle_time=IDLE, count=1)
    if left[1]:
        return list(left[1])
    block = min(IDLE, 1000)
    found: Any = await redis.xreadgroup(
        GROUP, NAME, {STREAM: ">"}, count=1, block=block
    )
    return [entry for _, entries in found or [] for entry in entries]


async def main() -> None:
    async with Redis.from_url(os.environ["REDIS_URL"]) as redis:
        try:
            await redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        while True:
            for entry, fields in await take(redis):
                await process(json.loads(fields[b"event"]))
                # Only now: a worker that dies before has not processed it.
                done: Any = redis.pipeline(transaction=True)
                await done.xack(STREAM, GROUP, entry).xdel(STREAM, entry).execute()


if __name__ == "__main__":
    asyncio.run(main())
