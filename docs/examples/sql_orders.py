"""Process every event exactly once: its results and its marker in one transaction.

For PostgreSQL with ``pip install 'sqlalchemy[asyncio]' asyncpg``, or any other database
that SQLAlchemy has an asyncio driver for.
"""

import os
from typing import Any

from sqlalchemy import (
    JSON,
    CheckConstraint,
    Column,
    Integer,
    MetaData,
    String,
    Table,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    HandlerFailure,
    ReplayMarker,
    ReplayMarkerStorage,
    ReplayOption,
    Retry,
    run,
    run_program,
)
from aiosfstream.replay import DefaultReplayIdMixin

TABLES = MetaData()
ORDERS = Table("orders", TABLES, Column("number", Integer))
STOCK = Table(
    "stock",
    TABLES,
    Column("product", String, primary_key=True),
    Column("pieces", Integer, CheckConstraint("pieces >= 0")),
)
PUT_ASIDE = Table("put_aside", TABLES, Column("message", JSON), Column("error", String))
MARKERS = Table(
    "markers",
    TABLES,
    Column("channel", String, primary_key=True),
    Column("date", String),
    Column("replay_id", JSON),
)


class SqlMarkers(DefaultReplayIdMixin, ReplayMarkerStorage):
    """Keeps the markers in the database of the results."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(default_id=ReplayOption.ALL_EVENTS)
        self.engine = engine

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        query = select(MARKERS.c.date, MARKERS.c.replay_id)
        async with self.engine.connect() as connection:
            found = await connection.execute(
                query.where(MARKERS.c.channel == subscription)
            )
            row = found.one_or_none()
        return None if row is None else ReplayMarker(*row)

    async def set_replay_marker(
        self, subscription: str, replay_marker: ReplayMarker
    ) -> None:
        async with self.engine.begin() as connection:
            await write(connection, subscription, replay_marker)

    async def extract_replay_id(self, message: dict[str, Any]) -> None:
        """Do nothing: the marker was stored with the results."""

    async def store_with(
        self, connection: AsyncConnection, message: dict[str, Any]
    ) -> None:
        """Store the marker of *message* in the transaction of *connection*."""
        replay_id = message["data"]["event"]["replayId"]
        marker = ReplayMarker(self.get_message_date(message), replay_id)
        await write(connection, message["channel"], marker)


async def write(
    connection: AsyncConnection, channel: str, marker: ReplayMarker
) -> None:
    change = update(MARKERS).where(MARKERS.c.channel == channel)
    changed = await connection.execute(change.values(**marker._asdict()))
    if changed.rowcount == 0:
        new = insert(MARKERS).values(channel=channel, **marker._asdict())
        await connection.execute(new)


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    engine = create_async_engine(os.environ["DATABASE_URL"])
    storage = SqlMarkers(engine)

    async def process(message: dict[str, Any]) -> None:
        fields = message["data"]["payload"]
        piece = update(STOCK).where(STOCK.c.product == fields["Product__c"])
        # Committed at the end of the block, or rolled back if anything in it fails.
        async with engine.begin() as connection:
            await storage.store_with(connection, message)
            await connection.execute(insert(ORDERS).values(number=fields["Number__c"]))
            await connection.execute(piece.values(pieces=STOCK.c.pieces - 1))
        print("stored", fields["Number__c"], flush=True)

    async def put_aside(failure: HandlerFailure) -> None:
        message, error = failure.message, str(failure.error)
        async with engine.begin() as connection:
            await storage.store_with(connection, message)
            await connection.execute(
                insert(PUT_ASIDE).values(message=message, error=error)
            )

    try:
        async with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                # Two programs may start at the same time.
                lock = text("SELECT pg_advisory_xact_lock(1)")
                await connection.execute(lock)
            await connection.run_sync(TABLES.create_all)
        client = Client(
            authenticator, replay=storage, replay_fallback=ReplayOption.ALL_EVENTS
        )
        # One at a time: each transaction stores the marker of its own event.
        retry = Retry(attempts=3, initial=0.1, then=put_aside)
        await run(client, {"/event/Order__e": process}, on_error=retry)
    finally:
        await engine.dispose()


if __name__ == "__main__":
    run_program(main())
