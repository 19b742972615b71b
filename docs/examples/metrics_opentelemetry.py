"""Report events, and what happens to the connection, by OpenTelemetry."""

import os
from typing import Any

from opentelemetry import metrics, trace

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ConnectionEvent,
    ReplayOption,
    SQLiteStorage,
    run,
    run_program,
)

# Whoever starts the program configures where all this goes.
meter = metrics.get_meter("salesforce-events")
tracer = trace.get_tracer("salesforce-events")
events = meter.create_counter("salesforce.events", unit="{event}")
changes = meter.create_counter("salesforce.connection.changes", unit="{change}")


def observe(event: ConnectionEvent) -> None:
    attributes = {"kind": event.kind.name.lower()}
    if event.channel is not None:
        attributes["channel"] = event.channel
    changes.add(1, attributes)


async def process(message: dict[str, Any]) -> None:
    channel = message["channel"]
    with tracer.start_as_current_span(
        f"process {channel}",
        kind=trace.SpanKind.CONSUMER,
        attributes={
            "messaging.system": "salesforce",
            "messaging.destination.name": channel,
            "messaging.message.id": str(message["data"]["event"]["replayId"]),
        },
    ):
        print(message["data"]["payload"], flush=True)
    events.add(1, {"channel": channel})


async def main() -> None:
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
        await run(client, {"/event/Low_Ink__e": process})


if __name__ == "__main__":
    run_program(main())
