"""An SQLite file of replay markers. Everything here waits for the disk, so it runs in a thread."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

from .._dates import AHEAD
from ..exceptions import ReplayError
from ..replay import ReplayMarker
from ._values import NO_DATE, moment_of, short_id, sound

__all__ = ["BUSY_TIMEOUT", "MarkerFile", "Row", "explain"]

LOGGER = logging.getLogger("aiosfstream.storages.sqlite")

#: Seconds to wait for another process that writes to the same file.
BUSY_TIMEOUT: Final = 5.0
#: Seconds to wait until no other process keeps a file of an earlier release from being changed over.
CHANGE_OVER_TIMEOUT: Final = 0.5
#: Marks a file as one of ours ("sfmk").
APPLICATION_ID: Final = 0x73666D6B
#: Written at every opening, so that a file that cannot be written is found out before it is needed.
VERSION: Final = 1

CREATE_MARKERS: Final = """
CREATE TABLE IF NOT EXISTS replay_markers (
    channel TEXT PRIMARY KEY,
    date TEXT NOT NULL,
    instant REAL NOT NULL,
    replay_id TEXT NOT NULL
) WITHOUT ROWID
"""
_CREATE_STORE: Final = """
CREATE TABLE IF NOT EXISTS replay_store (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID
"""
# One statement, so that two processes that write at once cannot move a marker back. The rule is that of
# should_store(): ids are JSON, and those that are whole numbers are compared by length and text.
_UPSERT: Final = """
INSERT INTO replay_markers (channel, date, instant, replay_id)
VALUES (:channel, :date, :instant, :replay_id)
ON CONFLICT (channel) DO UPDATE
SET date = excluded.date, instant = excluded.instant, replay_id = excluded.replay_id
WHERE :overwrites
   OR excluded.instant > replay_markers.instant
   OR replay_markers.instant > :latest
   OR (excluded.instant = replay_markers.instant AND (
           excluded.instant = :unknown
        OR excluded.replay_id GLOB '*[^0-9]*'
        OR replay_markers.replay_id GLOB '*[^0-9]*'
        OR length(excluded.replay_id) > length(replay_markers.replay_id)
        OR (length(excluded.replay_id) = length(replay_markers.replay_id)
            AND excluded.replay_id >= replay_markers.replay_id)))
"""
_SELECT: Final = "SELECT date, replay_id FROM replay_markers WHERE channel = ?"
_SELECT_ORG: Final = "SELECT value FROM replay_store WHERE name = 'org'"
_SELECT_ALL: Final = "SELECT channel, date, replay_id FROM replay_markers ORDER BY channel"
_DELETE: Final = "DELETE FROM replay_markers WHERE channel = ?"
_SELECT_CONSUMERS: Final = "SELECT value FROM replay_store WHERE name GLOB 'consumer:*'"
_STORE_CONSUMER: Final = "REPLACE INTO replay_store VALUES ('consumer:' || ?, ?)"
_DELETE_CONSUMER: Final = "DELETE FROM replay_store WHERE name = 'consumer:' || ?"
_STORE_ORG: Final = "REPLACE INTO replay_store VALUES ('org', ?)"


class Row(NamedTuple):
    """A marker to be written."""

    #: The channel.
    channel: str
    #: The date of the marker.
    date: str
    #: Its replay id, as JSON.
    replay_id: str
    #: Whether it replaces whatever is stored.
    overwrites: bool


class MarkerFile:
    """A file of markers, opened when it is needed. One thread at a time uses it.

    :param path: the file
    :param survives_power_loss: whether every commit does; if not, those of the last seconds may be lost
    """

    def __init__(self, path: str, *, survives_power_loss: bool = False) -> None:
        self.path = path
        self._survives_power_loss = survives_power_loss
        self._synchronous = ""
        # Channel -> what the size of its row depends on.
        self._sizes: dict[str, tuple[int, int, bool]] = {}
        self._database: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._must_checkpoint = False
        # Held while the file is used, so that a process is never forked in the middle of a transaction.
        self._lock = threading.Lock()
        _FILES.add(self)

    @property
    def lock(self) -> threading.Lock:
        """Held while the file is used."""
        return self._lock

    def open(self) -> None:
        """Open the file, unless it is open; everything that would fail later fails here."""
        with self._lock:
            self._connected()

    def read(self, channel: str) -> ReplayMarker | None:
        """Return the stored marker.

        :param channel: the channel
        """
        with self._lock:
            row = self._connected().execute(_SELECT, (sound(channel),)).fetchone()
        return None if row is None else ReplayMarker(row[0], json.loads(row[1]))

    def write(self, rows: Sequence[Row]) -> None:
        """Store markers, in one transaction. Afterwards they are in the file alone.

        :param rows: the markers
        """
        latest = time.time() + AHEAD
        values = [
            {
                "channel": sound(row.channel),
                "date": sound(row.date),
                "instant": moment_of(row.date),
                "replay_id": row.replay_id,
                "overwrites": row.overwrites,
                "latest": latest,
                "unknown": NO_DATE,
            }
            for row in rows
        ]
        with self._lock:
            database = self._connected()
            self._choose_synchronous(database, values)
            if len(values) == 1:
                # A transaction of its own. For each further statement this thread would wait until that of
                # the event loop lets it run again.
                database.execute(_UPSERT, values[0])
            else:
                with _Transaction(database):
                    database.executemany(_UPSERT, values)
            if self._must_checkpoint:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def read_all(self) -> dict[str, ReplayMarker]:
        """Give every stored marker, by channel."""
        with self._lock:
            rows = self._connected().execute(_SELECT_ALL).fetchall()
        return {channel: ReplayMarker(date, json.loads(value)) for channel, date, value in rows}

    def delete(self, channel: str) -> None:
        """Take a marker away.

        :param channel: its channel
        """
        with self._lock:
            self._connected().execute(_DELETE, (sound(channel),))

    # Consumers

    def note_consumer(self, name: str, note: str) -> None:
        """Keep what a consumer says about itself.

        :param name: tells it from others
        :param note: what it says
        """
        with self._lock:
            self._connected().execute(_STORE_CONSUMER, (name, note))

    def forget_consumer(self, name: str) -> None:
        """Take a consumer's note away.

        :param name: its name
        """
        with self._lock:
            self._connected().execute(_DELETE_CONSUMER, (name,))

    def consumers(self) -> list[str]:
        """Give the notes of consumers, whether or not they are still there."""
        with self._lock:
            rows = self._connected().execute(_SELECT_CONSUMERS).fetchall()
        return [note for (note,) in rows]

    def _choose_synchronous(
        self, database: sqlite3.Connection, values: list[dict[str, Any]]
    ) -> None:
        """Wait for the disk where the file would not stay sound without it.

        A row that is replaced by one of the same size is overwritten in its place, on its own page: whichever
        of these writes reach the disk, the file is sound. Anything else changes several pages, which must get
        there in order. So nearly every commit takes 0.03 ms in place of 0.3, or of 20 on a busy disk.
        """
        sizes = {value["channel"]: _size_of(value) for value in values}
        in_place = all(self._sizes.get(channel) == size for channel, size in sizes.items())
        self._sizes |= sizes
        self._synchronize(database, full=self._survives_power_loss or not in_place)

    def _synchronize(self, database: sqlite3.Connection, *, full: bool) -> None:
        wanted = "FULL" if full else "OFF"
        if self._synchronous != wanted:
            database.execute(f"PRAGMA synchronous = {wanted}")
            self._synchronous = wanted

    def note_org(self, org_id: str, *, may_start_anew: bool) -> None:
        """Note whose markers these are, and refuse or drop those of another org.

        :param org_id: the id of the org
        :param may_start_anew: whether markers of another org are dropped
        :raises ReplayError: if there are markers of another org
        """
        with self._lock:
            self._synchronize(self._connected(), full=True)
            with _Transaction(self._connected()) as database:
                self._note_org(database, org_id, may_start_anew)

    def _note_org(self, database: sqlite3.Connection, org_id: str, may_start_anew: bool) -> None:
        row = database.execute(_SELECT_ORG).fetchone()
        if row is None:
            database.execute(_STORE_ORG, (sound(org_id),))
        elif short_id(row[0]) != short_id(org_id):
            self._change_org(database, row[0], org_id, may_start_anew)

    def _change_org(
        self, database: sqlite3.Connection, known: str, org_id: str, may_start_anew: bool
    ) -> None:
        if not may_start_anew:
            raise ReplayError(
                f"The marker file {self.path!r} belongs to the org {known}, and this client is of {org_id:.18}: its"
                " markers mean nothing there. Give each org a file of its own, or pass other_org='start-anew'"
                " to drop the old markers, for example after a sandbox was refreshed."
            )
        LOGGER.warning(
            "Dropped the markers of the org %s from %r: from now on it belongs to %s",
            known,
            self.path,
            org_id,
        )
        database.execute("DELETE FROM replay_markers")
        self._sizes = {}
        database.execute(_STORE_ORG, (sound(org_id),))

    def close(self) -> None:
        """Close the file, if it is open."""
        with self._lock:
            self._close()

    def leave_to_parent(self) -> None:
        """Forget, in a process that was just forked, what belongs to the one that it came from."""
        # SQLite forbids to close it here, and at the end of this process it does no harm: it is idle.
        if self._database is not None:
            _LEFT.append(self._database)
        self._database, self._lock = None, threading.Lock()

    def _close(self) -> None:
        database, self._database = self._database, None
        if database is None:
            return
        if not self._must_checkpoint:
            # Removes the empty journal, unless another process is using it.
            with suppress(sqlite3.Error):
                database.execute("PRAGMA journal_mode = DELETE").fetchall()
        database.close()

    # Opening

    def _connected(self) -> sqlite3.Connection:
        if self._database is not None and self._identity != _identity_of(self.path):
            self._close()
            raise sqlite3.DatabaseError("it was deleted or replaced while it was open")
        if self._database is None:
            self._database = self._connect()
        return self._database

    def _connect(self) -> sqlite3.Connection:
        with _MAKING:
            _make_private(self.path)
            # Used by one thread at a time only, though not always by the same one.
            database = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT, check_same_thread=False, isolation_level=None
            )
        try:
            self._identity = _identity_of(self.path)
            if self._identity is None:
                raise sqlite3.DatabaseError("it is no regular file")
            self._prepare(database)
        except BaseException:
            database.close()
            raise
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        with _Transaction(database):
            (application,) = database.execute("PRAGMA application_id").fetchone()
            (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables and application != APPLICATION_ID:
                raise sqlite3.DatabaseError("it is a database of something else")
            if not tables:
                database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                database.execute(CREATE_MARKERS)
            database.execute(_CREATE_STORE)
            database.execute(f"PRAGMA user_version = {VERSION}")
        # What is committed must be in the file alone, which may be all that is mounted or copied. So there is no
        # write-ahead log: with a checkpoint for each group, it waits for the disk as often (three times) and takes
        # more CPU (0.16 against 0.13 ms).
        self._must_checkpoint = not _use_no_log(database)
        self._sizes, self._synchronous = {}, ""


def _size_of(value: dict[str, Any]) -> tuple[int, int, bool]:
    """Give what the size of a row depends on: SQLite keeps a REAL without a fraction as a short integer."""
    return len(value["date"]), len(value["replay_id"]), value["instant"].is_integer()


class _Transaction:
    """A transaction that has the right to write from its beginning on.

    Begun by us, since the module's own way of beginning them would begin too late for the reads.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> sqlite3.Connection:
        self._database.execute("BEGIN IMMEDIATE")
        return self._database

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


def _use_no_log(database: sqlite3.Connection) -> bool:
    """Have commits written to the file itself, and say whether that is so.

    A file of an earlier release has a log, which stays as long as another process uses it.
    """
    deadline = time.monotonic() + CHANGE_OVER_TIMEOUT
    while True:
        with suppress(sqlite3.OperationalError):
            (mode,) = database.execute("PRAGMA journal_mode = TRUNCATE").fetchone()
            if mode != "wal":
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)


#: Held while a file is made: closing a file drops the locks that this process has on it.
_MAKING: Final = threading.Lock()


def _make_private(path: str) -> None:
    """Make the file, if there is none, for nobody but its owner; or take others' rights to it away.

    SQLite gives its journal the same mode.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        # What goes wrong here goes wrong again when SQLite opens the file, and it says what.
        with suppress(OSError):
            os.close(os.open(path, flags, 0o600))
        return
    except OSError:
        return
    if stat.S_ISLNK(mode):
        raise sqlite3.DatabaseError("it is a symbolic link")
    if os.name == "posix" and stat.S_ISREG(mode) and mode & 0o077:
        try:
            Path(path).chmod(stat.S_IMODE(mode) & ~0o077)
        except PermissionError as error:
            if os.access(path, os.W_OK):
                raise sqlite3.DatabaseError("others may use it too") from error
            return
        LOGGER.warning("Took the rights of others away from the marker file %r", path)


def _identity_of(path: str) -> tuple[int, int] | None:
    """Say which file this is, or None if there is none."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


# A connection must not be used on both sides of a fork, nor be forked in the middle of a transaction: the
# child would take that back when it exits, and the file would be damaged.

_FILES: Final[weakref.WeakSet[MarkerFile]] = weakref.WeakSet()
_held: Final[list[threading.Lock]] = []
#: Connections of the process that this one was forked from.
_LEFT: Final[list[sqlite3.Connection]] = []


def _before_fork() -> None:
    _held[:] = [file.lock for file in list(_FILES) if file.lock.acquire(timeout=2 * BUSY_TIMEOUT)]


def _after_fork() -> None:
    while _held:
        _held.pop().release()


def _after_fork_in_child() -> None:
    _after_fork()
    for file in list(_FILES):
        file.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )

#: What a text of SQLite means for the person who reads it.
ADVICE: Final = {
    "not a database": "Give the storage a path of its own.",
    "something else": "Give the storage a path of its own.",
    "deleted or replaced": "It is made anew, and channels without new events have no marker then: look"
    " what removes it.",
    "symbolic link": "Give the path of the file itself.",
    "no regular file": "Give the storage a path of its own.",
    "others may use it": "Make it a file of the user that runs this program, with mode 600.",
    "readonly": "Allow this program to write the file and its folder.",
    "unable to open": "Look whether its folder exists and this program may write there.",
    "full": "Make room on the disk.",
    "disk I/O": "Look at the disk, which may be full or failing.",
    "locked": "Another process keeps it locked: wait for that, or give the storage a path of its own.",
}


def explain(path: str, error: Exception) -> str:
    """Say what happened to a file, and what to do.

    :param path: the file
    :param error: what SQLite has raised
    """
    advice = [text for part, text in ADVICE.items() if part in str(error)]
    step = [*advice, "Look whether it is a file that this program may read and write."][0]
    return f"The marker file {path!r} cannot be used: {error}. {step}"
