"""One log-in at a time, however many ask for it; and what a client asks of its authenticator.

Functions, not methods of the authenticator, whose names a subclass may have for something else. What a
subclass may override, and earlier releases called, is called: ``authenticate()``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, Final, Protocol

from .._frames import without_frames
from .._text import Secret
from ..exceptions import AuthenticationError
from .answers import failed, unreachable
from .flows import flow_of
from .state import Owned, OwnedSlot, read, secrets_of

__all__ = ["authorization_of", "in_time", "log_in", "log_in_again", "share"]

#: Seconds that a log-in goes on for the sake of others, or of a rotated token, once its caller is
#: cancelled; and seconds that code which resists its cancellation is waited for.
GRACE: Final = 3.0


class Authenticator(Protocol):
    """Who can log in."""

    async def authenticate(self) -> None:
        """Get a token."""

    async def outgoing(self, payload: Any, headers: Any) -> None:
        """Put it into a request's headers."""


class Shareable(Protocol):
    """A log-in that several may wait for."""

    @property
    def where(self) -> str:
        """The URL that is asked, for an error."""

    @property
    def asks_nobody(self) -> bool:
        """Whether it need not be shared."""

    @property
    def is_finished_when_cancelled(self) -> bool:
        """Whether it is finished rather than ended when nobody waits for it any more."""

    async def run(self) -> AuthenticationError | None:
        """Log in, and give the reason for a failure instead of raising it."""


class _Flight:
    """A log-in under way.

    :ivar task: what logs in
    :ivar followers: how many callers wait for it besides the one who began it
    """

    __slots__ = ("followers", "task")

    def __init__(self, task: asyncio.Task[AuthenticationError | None]) -> None:
        self.task = task
        self.followers = 0


class _Tower(Owned):
    """Knows the log-in under way; no asyncio object outlives it, so no event loop is kept.

    :ivar flight: the log-in
    """

    __slots__ = ("flight",)

    def __init__(self) -> None:
        super().__init__()
        self.flight: _Flight | None = None

    def copied(self) -> _Tower:
        """Give the state of a copy, which has no log-in under way."""
        return _Tower()

    def __reduce__(self) -> tuple[type[_Tower], tuple[()]]:
        """Pickle no task."""
        return _Tower, ()


_TOWERS: Final = OwnedSlot("log-in under way", _Tower)


def authorization_of(authenticator: object) -> str | None:
    """Give the value of the ``Authorization`` header, or None without a token.

    :param authenticator: the authenticator
    """
    token, kind = read(authenticator, "access_token"), read(authenticator, "token_type")
    return f"{kind or 'Bearer'} {token}" if token else None


async def log_in(authenticator: Authenticator) -> None:
    """Get a token.

    :param authenticator: the authenticator, whose own ``authenticate()`` is called
    :raises AuthenticationError: whatever goes wrong, an override's own exceptions included
    """
    error = await _outcome(authenticator)
    if error is not None:
        raise error


async def log_in_again(authenticator: Authenticator, refused: str | Secret | None) -> bool:
    """Get a token in place of a refused one, unless there is another one already.

    :param authenticator: the authenticator, whose own ``authenticate()`` is called
    :param refused: the ``Authorization`` header that was refused; None: there must be a new token
    :return: whether the token is another one now. If not, nobody may say that it was just issued: an
        override may do nothing, and an org may give the same token again
    :raises AuthenticationError: if there is no other token to be had; as :func:`log_in` otherwise
    """
    # Nothing secret in a frame that an exception passes.
    refused = Secret(refused) if isinstance(refused, str) else refused
    if await _has_another(authenticator, refused):
        return True
    flow = flow_of(authenticator)
    error = flow.before_renewal(authenticator) if refused is not None else None
    error = error or await _outcome(authenticator)
    is_same = _is_in_use(authenticator, refused)
    if error is None and is_same:
        error = flow.after_renewal(authenticator)
    if error is not None:
        raise error
    return not is_same


async def _has_another(authenticator: Authenticator, refused: Secret | None) -> bool:
    """Say whether the authenticator would send something else than what was refused."""
    if refused is None or authorization_of(authenticator) is None:
        return False
    headers: dict[str, str] = {}
    try:
        await authenticator.outgoing([], headers)
    except Exception:  # noqa: BLE001 - an override may raise anything
        return False
    return Secret(headers.get("Authorization", "")) != refused


def _is_in_use(authenticator: Authenticator, refused: Secret | None) -> bool:
    current = authorization_of(authenticator)
    return current is not None and refused == Secret(current)


async def _outcome(authenticator: Authenticator) -> AuthenticationError | None:
    """Log in, and give the failure instead of raising it, without the frames that it has passed."""
    error: AuthenticationError
    try:
        await authenticator.authenticate()
    except AuthenticationError as raised:
        error = raised
    except Exception as raised:  # noqa: BLE001 - an override may raise anything
        what = f"{type(authenticator).__name__}.authenticate()"
        error = failed(what, raised, secrets_of(authenticator))
    else:
        return None
    return without_frames(error, secrets=secrets_of(authenticator))


async def share(owner: object, log_in: Shareable) -> AuthenticationError | None:
    """Log in, or wait for the log-in that is under way.

    Cancelling one caller cancels none of the others, and leaves nothing running.

    :param owner: whose log-in it is
    :param log_in: the log-in, if there is none under way
    :return: why it has failed, or None
    """
    if log_in.asks_nobody:
        return await log_in.run()
    tower, loop = _TOWERS.of(owner), asyncio.get_running_loop()
    while (flight := tower.flight) is not None and not flight.task.done():
        if flight.task.get_loop() is not loop:
            break
        flight.followers += 1
        try:
            await asyncio.wait({flight.task})
        finally:
            flight.followers -= 1
        if not flight.task.cancelled():
            return flight.task.result()
    return await _lead(tower, log_in)


async def _lead(tower: _Tower, log_in: Shareable) -> AuthenticationError | None:
    """Log in, for those as well who ask for it meanwhile.

    The log-in has a task of its own, since it may have to survive the cancellation of the caller;
    the caller stays until it has ended, since it may use the session that the caller lends.
    """
    task = asyncio.get_running_loop().create_task(log_in.run(), name="aiosfstream log-in")
    task.add_done_callback(_retrieve)
    flight = tower.flight = _Flight(task)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        if log_in.is_finished_when_cancelled or flight.followers:
            await _wait_patiently(task, GRACE)
        raise
    finally:
        if not task.done():
            task.cancel()
            await _wait_patiently(task, GRACE)
        if tower.flight is flight:
            tower.flight = None
    if task.cancelled():
        return unreachable(f"the log-in at {log_in.where} was cancelled; try again")
    return task.result()


async def in_time(awaitable: Awaitable[Any], seconds: float) -> Any:
    """Await the application's code for so long and no longer.

    :param awaitable: what to wait for
    :param seconds: how long
    :raises asyncio.TimeoutError: if it takes longer
    """
    # Until Python 3.11 `wait_for` lets go of what fails while it is being cancelled.
    future = asyncio.ensure_future(awaitable)
    future.add_done_callback(_retrieve)
    return await asyncio.wait_for(future, seconds)


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Take note of an exception that nobody may wait for any more."""
    if not future.cancelled():
        future.exception()


async def _wait_patiently(task: asyncio.Task[Any], timeout: float) -> None:
    """Wait for *task*, whether or not the caller is cancelled once more meanwhile."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not task.done() and (left := deadline - loop.time()) > 0:
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task}, timeout=left)
