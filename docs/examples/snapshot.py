"""Keep a copy of all accounts: a snapshot first, and every change after it."""

import asyncio
import os
import sqlite3
from typing import Any

import aiohttp

from aiosfstream import (
    AuthenticatorBase,
    Client,
    ClientCredentialsAuthenticator,
    ConnectionEvent,
    ConnectionEventKind,
    ReplayOption,
    SQLiteStorage,
    run,
    run_program,
)

CHANNEL = "/data/AccountChangeEvent"
API = "/services/data/v66.0"
ALL = "SELECT Id, Name, Phone FROM Account"
UPDATES = {
    "Name": "UPDATE accounts SET Name = ? WHERE id = ?",
    "Phone": "UPDATE accounts SET Phone = ? WHERE id = ?",
}


class Org:
    """Runs queries with the token of the client's authenticator."""

    def __init__(self, authenticator: AuthenticatorBase) -> None:
        self.authenticator = authenticator

    async def query(self, soql: str) -> list[dict[str, Any]]:
        page = await self.get(f"{API}/query", q=soql)
        records: list[dict[str, Any]] = page["records"]
        while not page["done"]:
            page = await self.get(page["nextRecordsUrl"])
            records += page["records"]
        return records

    async def get(self, path: str, **parameters: str) -> Any:
        used = f"Bearer {self.authenticator.access_token}"
        try:
            return await self.get_once(path, parameters)
        except aiohttp.ClientResponseError as error:
            if error.status != 401:
                raise
        # Gets a new token, unless the client already has one.
        await self.authenticator.reauthenticate(used)
        return await self.get_once(path, parameters)

    async def get_once(self, path: str, parameters: dict[str, str]) -> Any:
        url = f"{self.authenticator.instance_url}{path}"
        headers = {"Authorization": f"Bearer {self.authenticator.access_token}"}
        async with aiohttp.ClientSession(raise_for_status=True) as session:
            async with session.get(url, params=parameters, headers=headers) as answer:
                return await answer.json()


class Copy:
    """The copy, and how changes get into it."""

    def __init__(self, database: sqlite3.Connection, org: Org) -> None:
        self.database = database
        self.org = org
        self.is_complete = False
        self.outdated = asyncio.Event()
        database.execute(
            "CREATE TABLE IF NOT EXISTS accounts (id PRIMARY KEY, Name, Phone)"
        )

    async def take_snapshot(self) -> None:
        # Changes that get lost during the query ask for another snapshot.
        self.outdated.clear()
        records = await self.org.query(ALL)
        with self.database:
            self.database.execute("DELETE FROM accounts")
            self.save(records)
        self.is_complete = not self.outdated.is_set()
        print("snapshot", len(records), flush=True)

    async def fetch(self, ids: list[str]) -> None:
        """Get records again whose changes Salesforce could not send."""
        wanted = ", ".join(f"'{number}'" for number in ids)
        records = await self.org.query(f"{ALL} WHERE Id IN ({wanted})")
        with self.database:
            self.delete(ids)
            self.save(records)

    async def change(self, message: dict[str, Any]) -> None:
        payload = message["data"]["payload"]
        header = payload["ChangeEventHeader"]
        kind, ids = header["changeType"], header["recordIds"]
        if kind == "GAP_OVERFLOW":
            await self.take_snapshot()
        elif kind.startswith("GAP_"):
            await self.fetch(ids)
        with self.database:
            if kind == "DELETE":
                self.delete(ids)
            elif kind in ("CREATE", "UNDELETE"):
                self.save([{**payload, "Id": number} for number in ids])
            elif kind == "UPDATE":
                self.update(ids, payload)
        print(kind, *ids, flush=True)

    def save(self, records: list[dict[str, Any]]) -> None:
        rows = [(row["Id"], row.get("Name"), row.get("Phone")) for row in records]
        self.database.executemany("REPLACE INTO accounts VALUES (?, ?, ?)", rows)

    def delete(self, ids: list[str]) -> None:
        rows = [(number,) for number in ids]
        self.database.executemany("DELETE FROM accounts WHERE id = ?", rows)

    def update(self, ids: list[str], payload: dict[str, Any]) -> None:
        # The event has the fields that have changed, with null for what was emptied.
        for field in payload.keys() & UPDATES.keys():
            rows = [(payload[field], number) for number in ids]
            self.database.executemany(UPDATES[field], rows)

    def observe(self, event: ConnectionEvent) -> None:
        if event.kind is ConnectionEventKind.FALLBACK_USED:
            # Changes are missing: they are too old to be sent.
            self.is_complete = False
            self.outdated.set()


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    database = sqlite3.connect("accounts.db")
    copy = Copy(database, Org(authenticator))
    async with SQLiteStorage("markers.db") as storage:
        client = Client(
            authenticator,
            replay=storage,
            replay_fallback=ReplayOption.NEW_EVENTS,
            observer=copy.observe,
        )
        async with client:
            copy.is_complete = await storage.get_replay_marker(CHANNEL) is not None
            # Subscribed before the query, so changes during the query are applied too.
            await client.subscribe(CHANNEL)
            while True:
                while not copy.is_complete:
                    await copy.take_snapshot()
                await run(client, {CHANNEL: copy.change}, stop=copy.outdated)
                if copy.is_complete:
                    # It was not the copy that stopped it, but a signal.
                    break
    database.close()


if __name__ == "__main__":
    run_program(main())
