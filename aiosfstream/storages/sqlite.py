"""Replay markers in an SQLite file."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TypeVar

from aiocometd.typing import JsonObject

from ..exceptions import ReplayError
from ..replay import (
    ReplayMarker,
    ReplayMarkerStorage,
    date_and_id,
    instant,
    make_marker,
    should_store,
)

__all__ = ["SQLiteStorage"]

LOGGER = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

#: Seconds that a marker may wait for others to be committed with it.
GROUP_DELAY: Final = 0.05
#: Seconds to wait for another process that writes to the same file.
BUSY_TIMEOUT: Final = 5.0
#: Marks a file as one of ours ("sfmk").
APPLICATION_ID: Final = 0x73666D6B

_CREATE: Final = """
CREATE TABLE IF NOT EXISTS replay_markers (
    channel TEXT PRIMARY KEY,
    date TEXT NOT NULL,
    instant REAL NOT NULL,
    replay_id TEXT NOT NULL
) WITHOUT ROWID
"""
# One statement, so that two processes that write at once cannot move a marker back.
_UPSERT: Final = """
INSERT INTO replay_markers (channel, date, instant, replay_id) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (channel) DO UPDATE
SET date = excluded.date, instant = excluded.instant, replay_id = excluded.replay_id
WHERE ?5 OR excluded.instant >= replay_markers.instant
"""
_SELECT: Final = "SELECT date, replay_id FROM replay_markers WHERE channel = ?"
#: Older than any date, and a number that every comparison in SQL understands.
_NO_DATE: Final = -1e300


@dataclass
class _Pending:
    """A marker that is not committed yet.

    :ivar marker: the marker
    :ivar forced: whether it replaces the stored one whatever that says
    """

    marker: ReplayMarker
    forced: bool = False


class SQLiteStorage(ReplayMarkerStorage):
    """Keeps markers in an SQLite file, one row a channel, safe across crashes and processes.

    Markers are committed in groups: before the client's next request, before ``receive()`` waits, at
    ``close()``, and 50 milliseconds after they were handed over at the latest. Writing is done in a
    thread, so the event loop is not held up by the disk or by another process.

    A stored marker never runs ahead of the application. If the program is killed, what was handed over
    since the last commit is delivered again by the next run: at most the messages of the last 50
    milliseconds. If the machine loses power, the file stays sound (write-ahead log), but commits that
    the operating system had not written to the disk yet may be gone; these messages come again as
    well.

    :param path: the file; it is made if there is none
    :param default_id: a replay option or replay id for channels without a marker; None: new events
    :param commit_each: commit every marker before the next message is handed over
    """

    _buffered = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        default_id: int | None = None,
        commit_each: bool = False,
    ) -> None:
        self._path = os.fspath(path)
        #: Where a channel without a marker starts.
        self.default_id = default_id
        self._commit_each = commit_each
        self._pending: dict[str, _Pending] = {}
        self._writing: dict[str, _Pending] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timed_flush: asyncio.Task[None] | None = None
        self._lock: asyncio.Lock | None = None
        self._lock_loop: asyncio.AbstractEventLoop | None = None
        self._database: sqlite3.Connection | None = None
        self._thread: ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        """Name the file."""
        return f"{type(self).__name__}({self._path!r}, default_id={self.default_id!r})"

    async def __aenter__(self) -> SQLiteStorage:
        """Open the file.

        :raises ReplayError: if it cannot be used
        """
        await self._in_thread(self._connect)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Commit what is pending and close the file."""
        await self.close()

    async def close(self) -> None:
        """Commit what is pending and close the file. It is opened again when it is needed.

        :raises ReplayError: if something cannot be committed; the file is closed all the same
        """
        try:
            await self.flush()
        finally:
            if self._thread is not None:
                await self._in_thread(self._disconnect)
                self._thread.shutdown(wait=False)
                self._thread = None

    # Reading

    async def get_replay_id(self, subscription: str) -> int | None:
        """Give the id of the stored marker, or the default."""
        replay_id = await super().get_replay_id(subscription)
        return self.default_id if replay_id is None else replay_id

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        """Give the last marker, committed or not.

        :raises ReplayError: if the file cannot be read
        """
        uncommitted = self._uncommitted(subscription)
        stored = await self._in_thread(lambda: self._read(subscription))
        if uncommitted is None or not (
            uncommitted.forced or should_store(stored, uncommitted.marker)
        ):
            return stored
        return uncommitted.marker

    def _uncommitted(self, subscription: str) -> _Pending | None:
        return self._pending.get(subscription) or self._writing.get(subscription)

    def _read(self, subscription: str) -> ReplayMarker | None:
        row = self._connect().execute(_SELECT, (subscription,)).fetchone()
        return None if row is None else ReplayMarker(row[0], json.loads(row[1]))

    # Writing

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Store a marker whatever is stored, and commit it.

        :raises ReplayError: if it cannot be committed
        """
        self._pending[subscription] = _Pending(replay_marker, forced=True)
        await self.flush()

    async def extract_replay_id(self, message: JsonObject) -> None:
        """Store the marker of a message, unless the stored one is newer; committed with the group.

        :raises ReplayError: if each is to be committed at once and that fails
        """
        self.store_nowait(message)
        if self._commit_each:
            await self.flush()

    def direct_store(self) -> Callable[[JsonObject], None] | None:
        """Give what puts a marker into the group, unless each is committed or storing is replaced."""
        plain = (
            type(self).extract_replay_id is SQLiteStorage.extract_replay_id
            and type(self).get_message_date is ReplayMarkerStorage.get_message_date
            and "extract_replay_id" not in self.__dict__
        )
        if not plain or self._commit_each:
            return None
        aliases, forced = self._aliases, self._forced

        def store(message: JsonObject) -> None:
            try:
                # The common case: the group has an earlier event of the same kind and channel.
                date, replay_id = date_and_id(message)
                waiting = self._pending[message["channel"]]
                known = waiting.marker[0]
                if (
                    known <= date
                    and len(known) == len(date)
                    and known[-1] == date[-1]
                    and not forced
                    and message["channel"] not in aliases
                ):
                    waiting.marker = make_marker(ReplayMarker, (date, replay_id))
                    return
            except (KeyError, TypeError, IndexError):
                # Anything out of the ordinary is looked at again, with care.
                pass
            self.store_nowait(message)

        return store

    def store_nowait(self, message: JsonObject) -> None:
        """Put the marker of a message into the group that is committed next.

        :param message: an event
        """
        marker = self._marker_of(message)
        if marker is None:
            return
        key = self._subscription_of(message)
        forced = bool(self._forced) and self._forced.pop(id(message), None) is not None
        waiting = self._pending.get(key)
        if waiting is None:
            self._pending[key] = _Pending(marker, forced)
        elif forced or should_store(waiting.marker, marker):
            waiting.marker = marker
            waiting.forced = waiting.forced or forced
        if self._timer is None:
            self._start_timer()

    def _start_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(GROUP_DELAY, self._flush_in_background, loop)

    def _flush_in_background(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._pending:
            self._timed_flush = loop.create_task(self._flush_quietly())

    async def _flush_quietly(self) -> None:
        try:
            await self.flush()
        except ReplayError as error:
            LOGGER.warning("%s; it is tried again", error)

    async def flush(self) -> None:
        """Commit what is pending.

        :raises ReplayError: if that fails; it stays pending and is tried again with the next group
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._pending and not self._writing:
            return
        async with self._turn():
            group, self._pending = self._pending, {}
            if not group:
                return
            self._writing = group
            try:
                await self._in_thread(lambda: self._write(group))
            except BaseException:
                self._keep(group)
                raise
            finally:
                self._writing = {}

    def _keep(self, group: dict[str, _Pending]) -> None:
        """Put back what could not be committed, behind what came meanwhile."""
        for channel, pending in group.items():
            later = self._pending.setdefault(channel, pending)
            later.forced = later.forced or pending.forced

    def _turn(self) -> asyncio.Lock:
        """Give the lock of the running event loop: a storage may outlive a loop."""
        loop = asyncio.get_running_loop()
        if self._lock is None or self._lock_loop is not loop:
            self._lock_loop, self._lock = loop, asyncio.Lock()
        return self._lock

    def _write(self, group: dict[str, _Pending]) -> None:
        rows = [
            (
                channel,
                pending.marker.date,
                max(instant(pending.marker.date), _NO_DATE),
                json.dumps(pending.marker.replay_id),
                pending.forced,
            )
            for channel, pending in group.items()
        ]
        database = self._connect()
        with database:
            database.executemany(_UPSERT, rows)

    # The file

    async def _in_thread(self, work: Callable[[], ResultT]) -> ResultT:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="aiosfstream sqlite")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError, ValueError) as error:
            raise ReplayError(f"The marker file {self._path!r} cannot be used: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        if self._database is not None:
            return self._database
        # Used by one thread at a time only, though not always by the same one.
        database = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT, check_same_thread=False)
        try:
            self._prepare(database)
        except BaseException:
            database.close()
            raise
        self._database = database
        return database

    @staticmethod
    def _prepare(database: sqlite3.Connection) -> None:
        (known,) = database.execute("PRAGMA application_id").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and known != APPLICATION_ID:
            raise sqlite3.DatabaseError("it is a database, but not one of replay markers")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        if not tables:
            with database:
                database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                database.execute(_CREATE)

    def _disconnect(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def __del__(self) -> None:
        database: Any = self.__dict__.get("_database")
        thread: Any = self.__dict__.get("_thread")
        if database is not None:
            database.close()
        if thread is not None:
            thread.shutdown(wait=False)
