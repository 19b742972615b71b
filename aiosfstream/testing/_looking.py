"""Looking at what has happened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from ._parts import Controlled, control
from ._requests import Request
from ._sessions import Session

if TYPE_CHECKING:
    from ._server import StreamingServer


class Looking(Controlled):
    """What an org has seen."""

    @property
    @control
    def requests(self) -> list[Request]:
        """The requests so far, the last 100,000 of them."""
        return self.parts.log.all()

    def count(self, what: str) -> int:
        """Count requests.

        :param what: ``token``, ``authorize``, ``identity``, or the channel of the first message
        """
        return self.parts.log.count(what)

    @property
    @control
    def sessions(self) -> list[Session]:
        """The sessions that are alive."""
        self.parts.bayeux.expire_idle()
        return list(self.parts.bayeux.sessions)

    @property
    @control
    def subscriptions(self) -> set[str]:
        """The channels that sessions are subscribed to."""
        return {channel for session in self.sessions for channel in session.subscriptions}

    @property
    @control
    def held_connects(self) -> int:
        """How many connects are held."""
        return sum(session.held is not None for session in self.parts.bayeux.sessions)

    async def wait_for(
        self, predicate: Callable[[StreamingServer], object], timeout: float = 5.0
    ) -> None:
        """Wait until *predicate* holds. It is called whenever a request arrives or is answered.

        :param predicate: called with the server, in its thread
        :param timeout: seconds
        :raises TimeoutError: if it does not hold in time
        """
        waiting = self.parts.changes.until(self._check(predicate), timeout)
        loop = self.parts.loop
        if loop is asyncio.get_running_loop() or loop is None:
            await waiting
        else:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(waiting, loop))

    def wait_until(
        self, predicate: Callable[[StreamingServer], object], timeout: float = 5.0
    ) -> None:
        """Wait like :meth:`wait_for`, in a thread other than the server's.

        :raises TimeoutError: if it does not hold in time
        :raises RuntimeError: in the server's own thread, which would stand still
        """
        loop = self.parts.loop
        if loop is None or not self.parts.is_elsewhere():
            raise RuntimeError(
                "wait_until() is for other threads than the server's: use wait_for()"
            )
        waiting = self.parts.changes.until(self._check(predicate), timeout)
        asyncio.run_coroutine_threadsafe(waiting, loop).result(timeout + 5)

    def _check(self, predicate: Callable[[StreamingServer], object]) -> Callable[[], object]:
        server = cast("StreamingServer", self)
        return lambda: predicate(server)
