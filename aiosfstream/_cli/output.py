"""The standard output, and whether somebody takes what is written there."""

from __future__ import annotations

import array
import asyncio
import os
import select
import stat
import sys
from contextlib import suppress
from typing import Final

from .console import CommandError

__all__ = ["Output", "standard_output"]

#: Bytes that are written at once. A pipe that can be written to has room for so many.
CHUNK: Final = 4096
#: Seconds between two looks at a socket that the other side writes to.
LOOK: Final = 0.05


class Output:
    """A descriptor that is written to without ever blocking the event loop.

    Where another program reads it, this knows how much of what was written that program has taken, and
    when it is gone: on Linux, and for sockets elsewhere as well.

    :param descriptor: the number of an open file
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        mode = os.fstat(descriptor).st_mode
        #: Whether another program reads this: it is a pipe or a socket.
        self.is_read = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        #: Whether this is a terminal.
        self.is_terminal = os.isatty(descriptor)
        self._waits = (self.is_read or self.is_terminal) and os.name == "posix"
        self._unread = _unread_request(mode)
        #: Bytes that were written.
        self.written = 0
        #: Whether a line has begun that is not complete yet.
        self.is_in_line = False

    async def write(self, text: str) -> None:
        """Write all of *text*, waiting where there is no room.

        :param text: whole lines
        :raises BrokenPipeError: if the reader is gone
        :raises CommandError: if it cannot be written, as on a full disk
        """
        data = memoryview(text.encode("utf-8"))
        self.is_in_line = True
        try:
            while data:
                if self._waits and not self._events(select.POLLOUT):
                    await self._ready(for_reading=False)
                count = self._write(data[:CHUNK])
                self.written += count
                data = data[count:]
        finally:
            self.is_in_line = bool(data)

    def _write(self, data: memoryview) -> int:
        try:
            return os.write(self.descriptor, data)
        except BlockingIOError:
            # Another program has made it so; it is tried again when there is room.
            return 0
        except (BrokenPipeError, ConnectionResetError) as error:
            raise BrokenPipeError(*error.args) from error
        except OSError as error:
            raise CommandError(
                f"the standard output cannot be written to: {error.strerror}. Look where it goes."
            ) from error

    def _events(self, wanted: int) -> int:
        """Say which of the *wanted* events of :func:`select.poll` there are, and whether it is broken."""
        poll = select.poll()
        poll.register(self.descriptor, wanted)
        return next((events for _, events in poll.poll(0)), 0)

    @property
    def taken(self) -> int:
        """How many of the bytes that were written have left: are no longer in a pipe or socket."""
        if self._unread is None or not self.written:
            return self.written
        from fcntl import ioctl

        count = array.array("i", [0])
        try:
            ioctl(self.descriptor, self._unread, count)
        except OSError:
            return self.written
        return self.written - min(count[0], self.written)

    async def reader_gone(self) -> None:
        """Wait until nobody reads this any more. Where nobody ever does, that is for ever.

        :raises BrokenPipeError: then
        """
        if not self.is_read or not self._waits:
            await asyncio.get_running_loop().create_future()
        while not self.is_broken:
            # The writing end of a pipe is never readable, but this wakes up when its reader is gone.
            await self._ready(for_reading=True)
            # A socket that the other side writes to is ready again at once.
            await asyncio.sleep(LOOK)
        raise BrokenPipeError("nobody reads the standard output any more")

    async def _ready(self, *, for_reading: bool) -> None:
        """Wait until the descriptor is ready, or broken."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        watch, leave = (
            (loop.add_reader, loop.remove_reader)
            if for_reading
            else (loop.add_writer, loop.remove_writer)
        )
        watch(self.descriptor, _finish, ready)
        try:
            await ready
        finally:
            leave(self.descriptor)

    @property
    def is_broken(self) -> bool:
        """Whether it is known that the reader is gone."""
        broken = select.POLLERR | select.POLLHUP | select.POLLNVAL if self._waits else 0
        return self._waits and bool(self._events(0) & broken)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _unread_request(mode: int) -> int | None:
    """Give the request that tells how much a reader has not taken yet; None where there is none."""
    with suppress(ImportError):
        import termios

        if stat.S_ISSOCK(mode):
            return termios.TIOCOUTQ
        if stat.S_ISFIFO(mode) and sys.platform == "linux":
            return termios.FIONREAD
    return None


def standard_output() -> Output:
    """Give the standard output.

    :raises CommandError: if it is closed
    """
    if sys.stdout is None:
        raise CommandError(
            "the standard output is closed: give it a terminal, a file or a program to write to"
        )
    sys.stdout.flush()
    return Output(sys.stdout.fileno())
