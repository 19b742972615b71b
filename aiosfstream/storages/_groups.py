"""Writing markers in groups, by a thread, so that neither the disk nor another process holds up the loop."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, TypeVar

from ..exceptions import ReplayError
from ..replay import ReplayMarker, should_store
from ._marker_file import MarkerFile, Row, explain
from ._values import as_json

__all__ = ["GROUP_DELAY", "Groups", "Pending"]

LOGGER = logging.getLogger("aiosfstream.storages.sqlite")

ResultT = TypeVar("ResultT")

#: Seconds that a marker may wait for a turn of the event loop to be committed with others.
GROUP_DELAY: Final = 0.05


@dataclass
class Pending:
    """A marker that is not committed yet.

    :ivar marker: the marker
    :ivar overwrites: whether it replaces the stored one even if that is newer
    """

    marker: ReplayMarker
    overwrites: bool = False

    def merge(self, later: Pending) -> None:
        """Become what would be stored if both were, one after the other.

        :param later: the one that was handed over later
        """
        if later.overwrites or should_store(self.marker, later.marker):
            self.marker = later.marker
            self.overwrites = self.overwrites or later.overwrites


class Groups:
    """Markers on their way into a file.

    :param file: the file
    """

    def __init__(self, file: MarkerFile) -> None:
        self.file = file
        #: The group that is written next, and when it was begun.
        self.pending: dict[str, Pending] = {}
        self.pending_since = 0.0
        # The group that the thread is writing; both are dropped, or the group put back, by _reap().
        self.writing: dict[str, Pending] = {}
        self.job: Future[None] | None = None
        self.job_loop: asyncio.AbstractEventLoop | None = None
        #: What tasks of that loop wait with for its end; woken together, since each wake-up crosses threads.
        self.waiters: list[asyncio.Future[None]] = []
        #: Why the last attempt has failed; None if it went well.
        self.failure: BaseException | None = None
        self.thread: ThreadPoolExecutor | None = None
        #: The event loop in which markers were stored last.
        self.loop: asyncio.AbstractEventLoop | None = None
        self._scheduled: asyncio.Handle | None = None
        _ALL.add(self)

    # Taking markers in

    def add(self, key: str, new: Pending) -> None:
        """Put a marker into the group that is written next.

        :param key: its channel
        :param new: the marker
        """
        if not self.pending:
            self.pending_since = time.monotonic()
        waiting = self.pending.setdefault(key, new)
        if waiting is not new:
            waiting.merge(new)
        if self._scheduled is None:
            self.loop = asyncio.get_running_loop()
            self._scheduled = self.loop.call_soon(self._turn_ended)
        elif time.monotonic() - self.pending_since >= GROUP_DELAY:
            self._write_next()

    async def read(self, channel: str) -> ReplayMarker | None:
        """Give the last marker, committed or not.

        :param channel: its channel
        :raises ReplayError: if the file cannot be read
        """
        # Looked up before the file is read, so that what is committed meanwhile is not missed.
        groups = (self.writing, self.pending)
        uncommitted = [group[channel] for group in groups if channel in group]
        stored = await self.in_thread(functools.partial(self.file.read, channel))
        for later in uncommitted:
            if later.overwrites or should_store(stored, later.marker):
                stored = later.marker
        return stored

    # Committing

    def begin(self) -> None:
        """Begin to commit what is pending.

        :raises ReplayError: the failure of the last attempt; another one has begun
        """
        self._stop_waiting_for_more()
        self._reap()
        failure = self.failure if self.job is None else None
        self._write_next()
        if failure is not None:
            raise failure

    def _stop_waiting_for_more(self) -> None:
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None

    async def flush(self) -> None:
        """Commit what is pending.

        :raises ReplayError: if that fails; it stays pending and is tried again with the next group
        """
        self._stop_waiting_for_more()
        # The group under way lacks what is pending. If it fails, it is written again with that.
        with suppress(ReplayError):
            await self._job_done()
        self._write_next()
        await self._job_done()

    async def close(self) -> None:
        """Commit what is pending, close the file and end the thread.

        :raises ReplayError: if something cannot be committed; the file is closed nevertheless
        """
        try:
            await self.flush()
        finally:
            if self.thread is not None:
                closing = self._submit(self.file.close)
                self._end_thread()
                await asyncio.shield(asyncio.wrap_future(closing))

    def drop(self) -> None:
        """Have the file closed soon. Takes no lock, so that a destructor may call it."""
        if self.thread is not None:
            _CLOSER.take(self)

    def let_go(self) -> None:
        """Close the file and end the thread, without waiting for it."""
        if self.thread is not None:
            with suppress(RuntimeError):
                self._submit(self.file.close)
            self._end_thread()

    def _end_thread(self) -> None:
        thread, self.thread = self.thread, None
        if thread is not None:
            thread.shutdown(wait=False)
            del _RUNNING[thread]

    async def _job_done(self) -> None:
        """Wait for the group that is being written; raises what makes it fail."""
        job, loop = self.job, asyncio.get_running_loop()
        if job is None:
            return
        try:
            # It is written even if the caller is cancelled: that can be done only as a whole.
            while not job.done() and loop is self.job_loop:
                waiter: asyncio.Future[None] = loop.create_future()
                self.waiters.append(waiter)
                await waiter
            if not job.done():
                # It was begun in another event loop, and wakes only those that wait there.
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
        if self.job is None and self.pending:
            self.writing, self.pending = self.pending, {}
            self.job = self._submit(functools.partial(self._write, self.writing))
            loop = asyncio.get_running_loop()
            if loop is not self.job_loop:
                # Those of a loop that has ended can be woken no more.
                self.job_loop, self.waiters = loop, []
            self.job.add_done_callback(functools.partial(_wake, loop, self._job_ended))

    def _job_ended(self) -> None:
        self._reap()
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        # What has failed waits for the next message or flush: it would fail again at once.
        if self.failure is None:
            self._write_next()

    def _reap(self) -> None:
        """Note the outcome of the group that was written."""
        if self.job is None or not self.job.done():
            return
        before, group = self.failure, self.writing
        self.failure = self.job.exception()
        self.job, self.writing = None, {}
        if self.failure is None:
            return
        for channel, later in self.pending.items():
            earlier = group.setdefault(channel, later)
            if earlier is not later:
                earlier.merge(later)
        self.pending = group
        if before is None:
            LOGGER.warning("%s It is tried again.", self.failure)

    # In the thread

    def _write(self, group: dict[str, Pending]) -> None:
        self.file.write([_row(*item) for item in group.items()])

    async def in_thread(self, work: Callable[[], ResultT]) -> ResultT:
        """Do *work* with the file.

        :param work: done to its end even if the caller is cancelled
        :return: what it returns
        :raises ReplayError: if it fails
        """
        return await asyncio.shield(asyncio.wrap_future(self._submit(work)))

    def _submit(self, work: Callable[[], ResultT]) -> Future[ResultT]:
        if self.thread is None:
            _CLOSER.start()
            self.thread = ThreadPoolExecutor(1, thread_name_prefix="aiosfstream sqlite")
            _RUNNING[self.thread] = self.file
        return self.thread.submit(self._explained, work)

    def _explained(self, work: Callable[[], ResultT]) -> ResultT:
        try:
            return work()
        except ReplayError:
            raise
        except Exception as error:
            # The next attempt opens the file anew: it may be another one by then.
            self.file.close()
            raise ReplayError(explain(self.file.path, error)) from error

    def leave_to_parent(self) -> None:
        """Forget, in a process that was just forked, what belongs to the one that it came from."""
        if self.thread is not None:
            del _RUNNING[self.thread]
        self.pending, self.writing, self.waiters = {}, {}, []
        self.job = self.job_loop = self.thread = self.loop = self._scheduled = None
        self.failure = None


class _Closer:
    """Closes the files of storages that were dropped without being closed.

    The garbage collector may run a destructor anywhere, even where its thread has just taken the locks that
    it takes to give work to a thread: waiting for these would last for ever. So a destructor puts what is left
    to do into a queue that is made for that, and a thread of its own does it.
    """

    def __init__(self) -> None:
        self._dropped: SimpleQueue[Groups] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, args=(self._dropped,), name="aiosfstream closer", daemon=True
            )
            self._thread.start()

    def take(self, groups: Groups) -> None:
        """Have the file of *groups* closed soon."""
        self._dropped.put(groups)

    @staticmethod
    def _run(dropped: SimpleQueue[Groups]) -> None:
        while True:
            groups = dropped.get()
            loop = groups.loop
            try:
                if loop is None:
                    groups.let_go()
                else:
                    # It may have callbacks of the groups, which are used by one thread at a time.
                    loop.call_soon_threadsafe(groups.let_go)
            except RuntimeError:
                # A loop that is closed calls nothing back.
                groups.let_go()
            del groups


_CLOSER = _Closer()


def _row(channel: str, pending: Pending) -> Row:
    marker = pending.marker
    return Row(channel, marker.date, as_json(channel, marker), pending.overwrites)


def _wake(
    loop: asyncio.AbstractEventLoop, callback: Callable[[], None], _job: Future[None]
) -> None:
    # A loop that is closed has nobody left to wake.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(callback)


#: The threads that run, and their files. If a storage is dropped as part of a cycle, the garbage collector must
#: not come before the destructor that has the file closed: it would end the thread, and close the connection
#: itself, of which Python 3.13 warns.
_RUNNING: Final[dict[ThreadPoolExecutor, MarkerFile]] = {}
_ALL: Final[weakref.WeakSet[Groups]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # Of threads, a child process has only the one that has forked.
    global _CLOSER  # noqa: PLW0603
    _CLOSER = _Closer()
    for groups in list(_ALL):
        groups.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
