"""Count events and changes of the connection for Prometheus."""

import asyncio
import os

from prometheus_client import Counter, Gauge, start_http_server

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ConnectionEvent,
    ConnectionEventKind,
    ReplayOption,
    SQLiteStorage,
)

EVENTS = Counter("salesforce_events_total", "Events processed", ["channel"])
CHANGES = Counter(
    "salesforce_connection_changes_total", "Changes of the connection", ["kind"]
)
CONNECTED = Gauge("salesforce_connected", "1 while there is a connection, otherwise 0")
PENDING = Gauge(
    "salesforce_pending_events", "Events received that wait to be processed"
)

# Create each counter at once: alerts compare a counter with what it was before.
for kind in ConnectionEventKind:
    CHANGES.labels(kind.name.lower())


def observe(event: ConnectionEvent) -> None:
    CHANGES.labels(event.kind.name.lower()).inc()
    if event.kind is ConnectionEventKind.CONNECTED:
        CONNECTED.set(1)
    elif event.kind in (
        ConnectionEventKind.CONNECTION_LOST,
        ConnectionEventKind.CLOSED,
    ):
        CONNECTED.set(0)


async def main() -> None:
    start_http_server(int(os.environ.get("METRICS_PORT", "9100")))
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    async with SQLiteStorage(
        "markers.db", default_id=ReplayOption.ALL_EVENTS
    ) as storage:
        client = Client(authenticator, replay=storage, observer=observe)
        PENDING.set_function(lambda: client.pending_count if not client.closed else 0)
        async with client:
            await client.subscribe("/event/Low_Ink__e")
            async for message in client:
                print(message["data"]["payload"])
                EVENTS.labels(message["channel"]).inc()


if __name__ == "__main__":
    asyncio.run(main())
