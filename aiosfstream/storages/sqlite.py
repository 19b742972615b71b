"""Replay markers in an SQLite file."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TypeVar

from aiocometd.typing import JsonObject

from ..exceptions import ReplayError
from ..replay import (
    DefaultReplayIdMixin,
    DurableStorage,
    Hooks,
    ReplayMarker,
    attachment_of,
    date_and_id,
    follows,
    instant,
    make_marker,
    should_store,
)

__all__ = ["SQLiteStorage"]

LOGGER = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

#: Seconds that a marker may wait for a turn of the event loop to be committed with others.
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
INSERT INTO replay_markers (channel, date, instant, replay_id) VALUES (?, ?, ?, ?)
ON CONFLICT (channel) DO UPDATE
SET date = excluded.date, instant = excluded.instant, replay_id = excluded.replay_id
WHERE ? OR excluded.instant >= replay_markers.instant
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

    def merge(self, later: _Pending) -> None:
        """Take the place that both have, stored one after the other."""
        if later.forced or should_store(self.marker, later.marker):
            self.marker = later.marker
            self.forced = self.forced or later.forced


class SQLiteStorage(DefaultReplayIdMixin, DurableStorage):
    """Keeps markers in an SQLite file, one row a channel, safe across crashes and processes.

    Markers are committed in groups, by a thread, so that neither the disk nor another process holds
    up the event loop: those of one turn of the event loop together, or of 50 milliseconds where the
    turn takes longer; and at the latest before the client's next request, before ``receive()`` waits,
    and at ``close()``.

    A stored marker never runs ahead of the application. If the program is killed, the next run
    delivers again what was handed over since the last commit: one turn of the event loop, 50
    milliseconds at most, and the time of one commit. If the machine loses power, the file stays
    sound (it has a write-ahead log), but commits that the operating system had not written to the
    disk yet are gone, and their messages are delivered again as well. With *commit_each* every marker
    is on the disk before its message is handed over, or its block has ended: then neither costs
    anything, and each message waits for the disk.

    :param path: the file; it is made if there is none
    :param default_id: a replay option or replay id for channels without a marker; None: new events
    :param commit_each: commit every marker by itself, and wait until it is on the disk
    """

    buffers = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        default_id: int | None = None,
        commit_each: bool = False,
    ) -> None:
        self._path = os.fspath(path)
        super().__init__(default_id)
        self._commit_each = commit_each
        self._pending: dict[str, _Pending] = {}
        self._pending_since = 0.0
        # The group that the thread is writing; both are dropped, or the group put back, by _reap().
        self._writing: dict[str, _Pending] = {}
        self._job: Future[None] | None = None
        self._job_loop: asyncio.AbstractEventLoop | None = None
        #: Of those in that loop who wait for its end: woken together, since each wake-up crosses threads.
        self._waiters: list[asyncio.Future[None]] = []
        self._failing = False
        self._scheduled: asyncio.Handle | None = None
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
        """Commit what is pending and close the file; see :meth:`close`."""
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

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        """Give the last marker, committed or not.

        :raises ReplayError: if the file cannot be read
        """
        # Looked up before the file is read: what is committed meanwhile is in one of both then.
        groups = (self._writing, self._pending)
        uncommitted = [group[subscription] for group in groups if subscription in group]
        stored = await self._in_thread(functools.partial(self._read, subscription))
        for later in uncommitted:
            if later.forced or should_store(stored, later.marker):
                stored = later.marker
        return stored

    def _read(self, subscription: str) -> ReplayMarker | None:
        row = self._connect().execute(_SELECT, (_sound(subscription),)).fetchone()
        return None if row is None else ReplayMarker(row[0], json.loads(row[1]))

    # Taking markers in

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Store a marker whatever is stored, and commit it.

        :raises ReplayError: if it is nothing that JSON can express, or cannot be committed
        """
        try:
            json.dumps(replay_marker.replay_id)
        except (TypeError, ValueError) as error:
            raise ReplayError(
                f"A replay id of {subscription} cannot be stored: {error}. It should be something that JSON has."
            ) from error
        self._add(subscription, _Pending(replay_marker, forced=True))
        await self.flush()

    async def set_unless_newer(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Store a marker, unless the stored one is newer; committed with its group.

        :raises ReplayError: if each is to be committed by itself and that fails
        """
        self._add(subscription, _Pending(replay_marker))
        if self._commit_each:
            await self.flush()

    def direct_store(self) -> Callable[[JsonObject], bool] | None:
        """Give what puts a marker into the group, unless each is committed or storing is replaced."""
        if self._commit_each or not _HOOKS.are_those_of(self):
            return None
        client, clock = attachment_of(self), time.monotonic
        aliases = client.aliases

        def store(message: JsonObject) -> bool:
            try:
                channel = message["channel"]
                date, replay_id = date_and_id(message)
                if (
                    channel not in client.ordinary
                    or channel in aliases
                    or not (date[-1:] == "Z" or date.isdigit())
                ):
                    return False
            except (KeyError, TypeError, AttributeError):
                return False
            marker = make_marker(ReplayMarker, (date, replay_id))
            waiting = self._pending.get(channel)
            if (
                waiting is not None
                and follows(waiting.marker, date, replay_id)
                and clock() - self._pending_since < GROUP_DELAY
            ):
                waiting.marker = marker
            else:
                self._add(channel, _Pending(marker))
            return True

        return store

    def _add(self, key: str, new: _Pending) -> None:
        if not self._pending:
            self._pending_since = time.monotonic()
        waiting = self._pending.setdefault(key, new)
        if waiting is not new:
            waiting.merge(new)
        if self._scheduled is None:
            self._scheduled = asyncio.get_running_loop().call_soon(self._turn_ended)
        elif time.monotonic() - self._pending_since >= GROUP_DELAY:
            self._write_next()

    # Committing

    async def flush(self) -> None:
        """Commit what is pending.

        :raises ReplayError: if that fails; it stays pending and is tried again with the next group
        """
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        # A group that is under way may lack what is pending now. If it fails, it goes along.
        with suppress(ReplayError):
            await self._job_done()
        self._write_next()
        await self._job_done()

    async def _job_done(self) -> None:
        """Wait for the group that is being written; raises what makes it fail."""
        job, loop = self._job, asyncio.get_running_loop()
        if job is None:
            return
        try:
            # It is written all the same when the caller is cancelled: that can be done only as a whole.
            while not job.done() and loop is self._job_loop:
                waiter: asyncio.Future[None] = loop.create_future()
                self._waiters.append(waiter)
                await waiter
            if not job.done():
                # That of another event loop tells its end to none of this one.
                await asyncio.shield(asyncio.wrap_future(job))
            job.result()
        finally:
            self._reap()

    def _turn_ended(self) -> None:
        self._scheduled = None
        self._write_next()

    def _write_next(self) -> None:
        """Have the thread write what is pending, unless it is still writing."""
        self._reap()
        if self._job is None and self._pending:
            self._writing, self._pending = self._pending, {}
            self._job = self._submit(functools.partial(self._write, self._writing))
            loop = asyncio.get_running_loop()
            if loop is not self._job_loop:
                # Those of a loop that has ended can be woken no more.
                self._job_loop, self._waiters = loop, []
            wake = functools.partial(_wake, loop, self._job_ended)
            self._job.add_done_callback(wake)

    def _job_ended(self) -> None:
        self._reap()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        # What has failed waits for the next message or flush: it would fail again at once.
        if not self._failing:
            self._write_next()

    def _reap(self) -> None:
        """Take note of what became of the group that was written."""
        if self._job is None or not self._job.done():
            return
        error, group = self._job.exception(), self._writing
        self._job, self._writing = None, {}
        if error is None:
            self._failing = False
            return
        for channel, later in self._pending.items():
            earlier = group.setdefault(channel, later)
            if earlier is not later:
                earlier.merge(later)
        self._pending = group
        if not self._failing:
            self._failing = True
            LOGGER.warning("%s It is tried again.", error)

    def _write(self, group: dict[str, _Pending]) -> None:
        rows = [
            (
                _sound(channel),
                _sound(pending.marker.date),
                max(instant(pending.marker.date), _NO_DATE),
                json.dumps(pending.marker.replay_id),
                pending.forced,
            )
            for channel, pending in group.items()
        ]
        database = self._connect()
        if len(rows) == 1:
            # A transaction by itself. Each statement more would have to wait for the event loop's thread to let
            # this one run again.
            database.execute(_UPSERT, rows[0])
            return
        with _Transaction(database):
            database.executemany(_UPSERT, rows)

    # The thread

    def _submit(self, work: Callable[[], ResultT]) -> Future[ResultT]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="aiosfstream sqlite")
        return self._thread.submit(self._explained, work)

    async def _in_thread(self, work: Callable[[], ResultT]) -> ResultT:
        return await asyncio.shield(asyncio.wrap_future(self._submit(work)))

    def _explained(self, work: Callable[[], ResultT]) -> ResultT:
        try:
            return work()
        except Exception as error:
            # The next attempt opens the file anew: it may be another one by then.
            self._disconnect()
            raise ReplayError(_explanation(self._path, error)) from error

    # The file

    def _connect(self) -> sqlite3.Connection:
        if self._database is None:
            # Used by one thread at a time only, though not always by the same one.
            database = sqlite3.connect(
                self._path, timeout=BUSY_TIMEOUT, check_same_thread=False, isolation_level=None
            )
            try:
                self._prepare(database)
            except BaseException:
                database.close()
                raise
            self._database = database
        return self._database

    def _prepare(self, database: sqlite3.Connection) -> None:
        # For writing, so that a file that cannot be written is found out before it is needed.
        with _Transaction(database):
            (application,) = database.execute("PRAGMA application_id").fetchone()
            (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables and application != APPLICATION_ID:
                raise sqlite3.DatabaseError("it is a database of something else")
            if not tables:
                database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                database.execute(_CREATE)
        # Without the log, which not every file system can have, only FULL keeps the file sound.
        logged = _use_log(database)
        full = self._commit_each or not logged
        database.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")

    def _disconnect(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def __del__(self) -> None:
        database: Any = self.__dict__.get("_database")
        thread: Any = self.__dict__.get("_thread")
        if thread is not None:
            thread.shutdown(wait=False)
        if database is not None:
            database.close()


_HOOKS: Final = Hooks(SQLiteStorage, "set_unless_newer")


class _Transaction:
    """A transaction that has the right to write from its beginning on.

    Begun by us, since the module's own way of beginning them would begin too late for the reads.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self._database.execute("COMMIT")
        elif self._database.in_transaction:
            self._database.execute("ROLLBACK")


def _use_log(database: sqlite3.Connection) -> bool:
    """Have commits written to a log, and say whether the file system allows it."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            (mode,) = database.execute("PRAGMA journal_mode = WAL").fetchone()
            return bool(mode == "wal")
        except sqlite3.OperationalError as error:
            # SQLite does not wait here while another process does the same.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _wake(
    loop: asyncio.AbstractEventLoop, callback: Callable[[], None], _job: Future[None]
) -> None:
    # A loop that is closed has nobody left to wake.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(callback)


def _sound(text: object) -> str:
    """Give *text* without what cannot be written as UTF-8."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


#: What a text of SQLite means for the person who reads it.
_ADVICE: Final = {
    "not a database": "Give the storage a path of its own.",
    "something else": "Give the storage a path of its own.",
    "readonly": "Allow this program to write the file and its folder.",
    "unable to open": "Look whether its folder exists and this program may write there.",
    "full": "Make room on the disk.",
    "disk I/O": "Look at the disk, which may be full or failing.",
    "locked": "Another process keeps it locked: wait for that, or give the storage a path of its own.",
}


def _explanation(path: str, error: Exception) -> str:
    advice = [text for part, text in _ADVICE.items() if part in str(error)]
    step = [*advice, "Look whether it is a file that this program may read and write."][0]
    return f"The marker file {path!r} cannot be used: {error}. {step}"
