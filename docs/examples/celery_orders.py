"""Hand every event over to Celery.

``python celery_orders.py`` takes the events, ``celery -A celery_orders worker``
processes them, on as many machines as you like.
"""

import os
from typing import Any

from celery import Celery

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ReplayOption,
    SQLiteStorage,
    run,
    run_program,
)

app = Celery("celery_orders", broker=os.environ["REDIS_URL"])
# A task is done when it has returned: a worker that dies leaves it to another.
app.conf.task_acks_late = True
app.conf.task_reject_on_worker_lost = True
app.conf.broker_connection_retry_on_startup = True


@app.task(autoretry_for=(Exception,), retry_backoff=True, max_retries=10)
def process(message: dict[str, Any]) -> None:
    number = message["data"]["payload"]["Number__c"]
    print(f"processed {number}", flush=True)


def hand_over(message: dict[str, Any]) -> None:
    """Return when the broker has the task: then the marker is stored."""
    # Waits for the broker, so it is no coroutine function and runs in a thread.
    process.delay(message)
    print("handed over", message["data"]["payload"]["Number__c"], flush=True)


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    start = ReplayOption.ALL_EVENTS
    async with SQLiteStorage("markers.db", default_id=start) as storage:
        client = Client(authenticator, replay=storage, replay_fallback=start)
        await run(client, {"/event/Order__e": hand_over})


if __name__ == "__main__":
    run_program(main())
