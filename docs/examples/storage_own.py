"""Process every event exactly once: store its marker together with the result."""

import os
import sqlite3

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ReplayMarker,
    ReplayMarkerStorage,
    ReplayMarkerStoragePolicy,
    run_program,
)


class ResultsStorage(ReplayMarkerStorage):
    """Keeps the markers in the database of the results."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database
        with database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS markers (channel PRIMARY KEY, date, id)"
            )
            database.execute("CREATE TABLE IF NOT EXISTS results (printer, ink)")

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        query = "SELECT date, id FROM markers WHERE channel = ?"
        row = self.database.execute(query, (subscription,)).fetchone()
        return None if row is None else ReplayMarker(*row)

    async def set_replay_marker(
        self, subscription: str, replay_marker: ReplayMarker
    ) -> None:
        # Commits what the application has written since the last marker as well.
        with self.database:
            self.database.execute(
                "REPLACE INTO markers VALUES (?, ?, ?)", (subscription, *replay_marker)
            )


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    # The file is for this user alone.
    os.umask(0o077)
    database = sqlite3.connect("results.db")
    storage = ResultsStorage(database)
    client = Client(
        authenticator,
        replay=storage,
        replay_storage_policy=ReplayMarkerStoragePolicy.MANUAL,
    )
    try:
        async with client:
            await client.subscribe("/event/Low_Ink__e")
            async for message in client:
                async with client.replay_storage(message):
                    fields = message["data"]["payload"]
                    values = (fields["Printer__c"], fields["Ink_Percentage__c"])
                    database.execute("INSERT INTO results VALUES (?, ?)", values)
    finally:
        # What was written without its marker is rolled back, and arrives again.
        database.close()


if __name__ == "__main__":
    run_program(main())
