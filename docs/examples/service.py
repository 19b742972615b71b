"""A service: two channels, ten events at a time, and a file for what fails."""

import json
import os
from pathlib import Path
from typing import Any

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    HandlerFailure,
    Handlers,
    ReplayOption,
    Retry,
    SQLiteStorage,
    run,
    run_program,
)

handlers = Handlers()


@handlers.on("/event/Order__e")
async def take_order(message: dict[str, Any]) -> None:
    fields = message["data"]["payload"]
    if fields["Number__c"] < 0:
        raise ValueError("there are no such orders")
    print("order", fields["Number__c"], flush=True)


@handlers.on("/event/Low_Ink__e")
async def refill(message: dict[str, Any]) -> None:
    print("refill", message["data"]["payload"], flush=True)


def put_aside(failure: HandlerFailure) -> None:
    """Keep the event where a person finds it. What this raises ends the service."""
    entry = {"error": repr(failure.error), "message": failure.message}
    with Path("put_aside.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    start = ReplayOption.ALL_EVENTS
    async with SQLiteStorage("markers.db", default_id=start) as storage:
        client = Client(authenticator, replay=storage, replay_fallback=start)
        await run(
            client,
            handlers,
            concurrency=10,
            on_error=Retry(attempts=3, initial=0.5, then=put_aside),
        )


if __name__ == "__main__":
    run_program(main())
