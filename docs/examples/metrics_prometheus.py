"""Count events and changes of the connection for Prometheus."""

import os
from typing import Any

from prometheus_client import Counter, Gauge, start_http_server

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ConnectionEvent,
    ConnectionEventKind,
    HandlerFailure,
    ReplayOption,
    Retry,
    SQLiteStorage,
    run,
    run_program,
)

EVENTS = Counter("salesforce_events_total", "Events processed", ["channel"])
FAILURES = Counter("salesforce_handler_failures_total", "Attempts that failed")
CHANGES = Counter(
    "salesforce_connection_changes_total", "Changes of the connection", ["kind"]
)
CONNECTED = Gauge("salesforce_connected", "1 while there is a connection, otherwise 0")
PENDING = Gauge("salesforce_pending_events", "Events received, not yet processed")

# An alert compares a counter with what it was, so it must be there from the start.
for kind in ConnectionEventKind:
    CHANGES.labels(kind.name.lower())

LOST = (ConnectionEventKind.CONNECTION_LOST, ConnectionEventKind.CLOSED)
RETRY = Retry()


def observe(event: ConnectionEvent) -> None:
    CHANGES.labels(event.kind.name.lower()).inc()
    if event.kind is ConnectionEventKind.CONNECTED:
        CONNECTED.set(1)
    elif event.kind in LOST:
        CONNECTED.set(0)


def count_and_retry(failure: HandlerFailure) -> Any:
    FAILURES.inc()
    return RETRY(failure)


async def process(message: dict[str, Any]) -> None:
    print(message["data"]["payload"], flush=True)
    EVENTS.labels(message["channel"]).inc()


async def main() -> None:
    start_http_server(int(os.environ.get("METRICS_PORT", "9100")))
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    start = ReplayOption.ALL_EVENTS
    async with SQLiteStorage("markers.db", default_id=start) as storage:
        client = Client(
            authenticator, replay=storage, replay_fallback=start, observer=observe
        )
        PENDING.set_function(lambda: 0 if client.closed else client.pending_count)
        await run(client, {"/event/Low_Ink__e": process}, on_error=count_and_retry)


if __name__ == "__main__":
    run_program(main())
