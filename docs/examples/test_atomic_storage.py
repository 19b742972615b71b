"""A storage that two consumers may use at once, and its test."""

import asyncio
import json
import sqlite3
from pathlib import Path

from aiosfstream import DurableStorage, ReplayMarker
from aiosfstream.replay import should_store
from aiosfstream.testing import check_marker_storage


class SharedTable(DurableStorage):
    """Keeps the markers in a table that other programs write to as well."""

    def __init__(self, path: Path) -> None:
        self.database = sqlite3.connect(path, isolation_level=None)
        self.database.execute(
            "CREATE TABLE IF NOT EXISTS markers (channel PRIMARY KEY, date, id)"
        )

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        query = "SELECT date, id FROM markers WHERE channel = ?"
        row = self.database.execute(query, (subscription,)).fetchone()
        return None if row is None else ReplayMarker(row[0], json.loads(row[1]))

    async def set_replay_marker(
        self, subscription: str, replay_marker: ReplayMarker
    ) -> None:
        # As JSON, since a replay id may be a number or a text.
        values = (
            subscription,
            replay_marker.date,
            json.dumps(replay_marker.replay_id),
        )
        self.database.execute("REPLACE INTO markers VALUES (?, ?, ?)", values)

    async def set_unless_newer(
        self, subscription: str, replay_marker: ReplayMarker
    ) -> None:
        # Nobody else writes until the end of the transaction. With another database,
        # SELECT ... FOR UPDATE locks the row of the channel alone.
        self.database.execute("BEGIN IMMEDIATE")
        with self.database:
            stored = await self.get_replay_marker(subscription)
            if should_store(stored, replay_marker):
                await self.set_replay_marker(subscription, replay_marker)


def test_atomic_storage(tmp_path: Path) -> None:
    tables: list[SharedTable] = []

    def make() -> SharedTable:
        tables.append(SharedTable(tmp_path / "markers.db"))
        return tables[-1]

    asyncio.run(check_marker_storage(make, overlapping=True))
    for table in tables:
        table.database.close()
