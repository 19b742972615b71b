"""Run handlers for events, for months: ``await run(client, {channel: handler})``.

This is a layer on top of :class:`~aiosfstream.Client` that uses its public interface only; which refusals
pass it looks up in the engine's table of them. It does what a service needs besides receiving: it waits out outages, stores the marker of an event when its handler has
succeeded, decides what becomes of an event whose handler fails, and ends cleanly when it is asked to.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, NoReturn, TypeVar

from aiocometd.typing import JsonObject

from ._channels import shown
from ._cometd.salesforce import may_pass
from ._text import fit
from .client import Client, ReplayMarkerStoragePolicy
from .exceptions import (
    AiosfstreamException,
    AuthenticationError,
    ClientInvalidOperation,
    ReplayError,
    ServerError,
    TransportError,
    TransportTimeoutError,
)
from .replay import ConstantReplayId

__all__ = [
    "ExitStatus",
    "Handler",
    "HandlerFailure",
    "Handlers",
    "OnError",
    "Retry",
    "exit_status",
    "run",
    "run_program",
]

LOGGER = logging.getLogger(__name__)

#: Processes an event, given as the client delivers it. A plain function is called in a thread, so it may
#: block; a coroutine function is called in the event loop, and must not.
Handler = Callable[[Any], object]
HandlerT = TypeVar("HandlerT", bound=Handler)

#: Seconds until the next attempt to open the client or to receive, doubled up to the second.
FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 60.0
#: Seconds after which a refused log-in has nothing to do with the one before. The client waits less than
#: that between two attempts.
REFUSALS_FORGOTTEN: Final = 1800.0


class ExitStatus(IntEnum):
    """The exit statuses of :func:`~aiosfstream.run_program`; the numbers are those of ``sysexits.h``."""

    #: It has stopped as it was asked to.
    STOPPED = 0
    #: A handler failed for good, or another exception ended the program.
    FAILED = 1
    #: The server refuses a channel or the session, or there is no streaming endpoint at its address.
    UNAVAILABLE = 69
    #: The replay markers cannot be read or stored.
    STORAGE = 74
    #: The credentials are refused. Starting again will not help, and too many attempts lock the user.
    REFUSED = 77


@dataclass(frozen=True)
class HandlerFailure:
    """A handler has failed: what ``on_error`` of :func:`run` is called with.

    :ivar message: the event, as the client delivered it
    :ivar error: what the handler raised
    :ivar attempt: how many times the handler has been called with this event
    """

    message: JsonObject
    error: Exception
    attempt: int


#: Decides what becomes of an event whose handler has failed. It gives the seconds until the handler is
#: called again, or None if the event has been dealt with, such as put aside; what it raises ends the
#: service. It may be a coroutine function.
OnError = Callable[[HandlerFailure], "float | Awaitable[float | None] | None"]


@dataclass(frozen=True)
class Retry:
    """Calls a handler that fails again, after delays that double; an ``on_error`` for :func:`run`.

    :param attempts: how many times the handler is called with one event; ``math.inf``: until it succeeds
    :param initial: seconds before the second attempt
    :param cap: the longest delay in seconds
    :param then: the ``on_error`` to ask after the last attempt, such as a function that puts the event
        aside; None: the error ends the service
    """

    attempts: float = 10
    initial: float = 1.0
    cap: float = 60.0
    then: OnError | None = None

    def __call__(self, failure: HandlerFailure) -> float | Awaitable[float | None] | None:
        """Return the delay before the next attempt, or what ``then`` decides after the last.

        :raises Exception: the handler's error, after the last attempt without a ``then``
        """
        if failure.attempt < self.attempts:
            return min(self.cap, self.initial * 2.0 ** min(failure.attempt - 1, 60))
        if self.then is None:
            raise failure.error
        return self.then(failure)


#: About four minutes of attempts, after which the service ends and the event stays unprocessed.
RETRY_THEN_STOP: Final = Retry()


class Handlers(dict[str, Handler]):
    """The handlers of a service by channel: a dict with a decorator.

    ::

        handlers = Handlers()

        @handlers.on("/event/Order__e")
        async def take_order(message):
            ...
    """

    def on(self, *channels: str) -> Callable[[HandlerT], HandlerT]:
        """Register the decorated function for the events of channels.

        :param channels: one channel or more
        :raises ValueError: if a channel has a handler already
        """

        def register(handler: HandlerT) -> HandlerT:
            for channel in channels:
                if channel in self:
                    raise ValueError(
                        f"The channel {channel} has a handler already: call both from one function."
                    )
                self[channel] = handler
            return handler

        return register


async def run(
    client: Client,
    handlers: Mapping[str, Handler],
    *,
    concurrency: int = 1,
    on_error: OnError = RETRY_THEN_STOP,
    replay_storage_policy: ReplayMarkerStoragePolicy = ReplayMarkerStoragePolicy.MANUAL,
    login_attempts: int = 3,
    pause_when_refused: float = 0.0,
    grace: float = 10.0,
    stop: asyncio.Event | None = None,
    signals: Collection[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
) -> None:
    """Open a client, subscribe to channels and call their handlers until asked to stop.

    Outages are waited out, however long they last. The marker of an event is stored when its handler has
    succeeded, and never passes an event that is still being processed: a program that is killed receives
    again what it had not finished. When it is asked to stop, no more events are taken, handlers that are
    running may finish, their markers are stored and the client is closed.

    A client that is open already stays open at the end. It keeps its subscriptions, so a channel that was
    subscribed with a starting point of its own starts there.

    :param client: the client; its ``replay`` says where the markers are kept
    :param handlers: channels and what processes their events
    :param concurrency: how many events are processed at a time; one at a time keeps their order
    :param on_error: decides what becomes of an event whose handler fails. The default tries again for about
        four minutes, then ends the service with the handler's error; the event comes again at its next start
    :param replay_storage_policy: used by the client while this runs. AUTOMATIC stores the marker before the
        handler is called: an event that it fails for, or that a kill interrupts, is not delivered again
    :param login_attempts: how many refused log-ins in a row end a service that was logged in before; they are
        spaced by the client, from 5 s on. A log-in that is refused at the start ends it at once
    :param pause_when_refused: seconds to wait before refused credentials end it, where something starts it
        again without much delay
    :param grace: seconds that running handlers may take to finish; after them, and at a second signal, they
        are cancelled
    :param stop: stops the service when it is set
    :param signals: stop the service. They are handled while this runs, if it runs in the main thread and the
        event loop can; give ``()`` where something else handles them
    :raises AuthenticationError: if the credentials are refused
    :raises ServerError: if the server refuses a channel, or ends the session for good
    :raises TransportError: if there is no streaming endpoint at the server's address
    :raises ReplayError: if the marker of a channel cannot be read at the start
    :raises ClientError: if the server does not offer long polling
    :raises Exception: what *on_error* raises, usually the handler's error
    :raises TypeError: if a handler cannot be called
    :raises ValueError: if there is no handler, or one of the numbers is out of range
    """
    _check_numbers(concurrency, login_attempts, grace)
    service = _Service(
        client,
        _Router(handlers),
        on_error=on_error,
        policy=replay_storage_policy,
        concurrency=concurrency,
        credentials=_Credentials(login_attempts, pause_when_refused),
        grace=grace,
    )
    was_open, policy_before = not client.closed, client.replay_storage_policy
    client.replay_storage_policy = replay_storage_policy
    with _handling(signals, service.ask_to_stop):
        try:
            await service.serve(stop)
        finally:
            client.replay_storage_policy = policy_before
            if not was_open:
                await client.close()
    LOGGER.info("Stopped")


def run_program(
    main: Coroutine[Any, Any, object], *, log_level: int | str = logging.WARNING
) -> NoReturn:
    """Run the coroutine of a program, and end the process with the exit status for its outcome.

    Log records go to standard error, unless logging has been set up already. SIGTERM cancels the
    coroutine as Ctrl-C does, so that ``async with client`` ends the session; while :func:`run`
    runs, both signals are its own.

    :param main: the coroutine, such as one that calls :func:`run`
    :param log_level: the least severe records that are shown
    :raises SystemExit: with an :class:`ExitStatus`; 130 or 143 if SIGINT or SIGTERM cancelled the coroutine
    :raises Exception: an error that is none of this package's, which shows its traceback and has status 1
    """
    _set_up_logging(log_level)
    try:
        asyncio.run(_cancelled_by_sigterm(main))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)
    except AiosfstreamException as error:
        LOGGER.error("%s", error)
        sys.exit(exit_status(error))
    sys.exit(ExitStatus.STOPPED)


def exit_status(error: BaseException | None) -> ExitStatus:
    """Return the exit status for what :func:`run` raised.

    :param error: the error; None: it was asked to stop
    """
    if error is None:
        return ExitStatus.STOPPED
    if isinstance(error, AuthenticationError):
        return ExitStatus.REFUSED
    if isinstance(error, ReplayError):
        return ExitStatus.STORAGE
    return ExitStatus.UNAVAILABLE if isinstance(error, AiosfstreamException) else ExitStatus.FAILED


def is_passing(error: AiosfstreamException) -> bool:
    """Say whether time alone may help against an error of the client.

    :param error: what opening, subscribing or receiving raised
    :return: False if only a person can help
    """
    if isinstance(error, AuthenticationError):
        return error.retryable
    return isinstance(error, (ServerError, TransportError)) and may_pass(error)


class _Router:
    """Finds the handler of an event.

    :param handlers: channels and handlers
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        if not isinstance(handlers, Mapping):
            raise TypeError(
                f"handlers is a {type(handlers).__name__!r}: give a mapping of channels to functions."
            )
        if not handlers:
            raise ValueError(
                f"handlers is {handlers!r}: give at least one channel and its handler."
            )
        self.channels = list(handlers)
        self._handlers: dict[str, Handler] = {}
        for channel, handler in handlers.items():
            if not callable(handler):
                raise TypeError(
                    f"The handler of {channel} should be a function, not {type(handler).__name__!r}."
                )
            if _has_yield(handler):
                raise TypeError(
                    f"The handler of {channel} has a yield, so calling it would do nothing: use a function without one."
                )
            # Two filters of one topic have one name in their events.
            if self._handlers.setdefault(_name_of(channel), handler) is not handler:
                raise ValueError(
                    f"The events of {channel} have another handler already: call both from one function."
                )

    async def call(self, message: JsonObject) -> None:
        """Call the handler of *message*.

        :raises LookupError: if it came on a channel without one
        """
        channel = str(message.get("channel"))
        handler = self._handlers.get(_name_of(channel)) or self._wider(channel)
        if handler is None:
            raise LookupError(
                f"An event came on {shown(channel)}, which has no handler: add one for this channel."
            )
        if _is_async(handler):
            outcome = handler(message)
        else:
            outcome = await asyncio.to_thread(_called, handler, message)
        if inspect.isawaitable(outcome):
            await outcome
        elif inspect.isgenerator(outcome) or inspect.isasyncgen(outcome):
            raise TypeError(
                f"The handler of {channel} gives a generator, which does nothing by itself: give a coroutine."
            )

    def _wider(self, channel: str) -> Handler | None:
        """Give the first handler of a wildcard or custom channel that may bring events of *channel*."""
        for name, handler in self._handlers.items():
            stem = name.rstrip("*")
            if stem != name and channel.startswith(stem):
                return handler
            # A custom channel, or the one of all change events.
            is_custom = name.endswith(("__chn", "/ChangeEvents"))
            if is_custom and channel.rpartition("/")[0] == name.rpartition("/")[0]:
                return handler
        return None


class _Service:
    """What one call of :func:`run` does and keeps.

    :param client: the client
    :param router: the handlers
    :param on_error: decides about an event whose handler failed
    :param policy: when the marker of an event is stored
    :param concurrency: how many events are processed at a time
    :param credentials: decides about refused log-ins
    :param grace: seconds that running handlers may take to finish
    """

    def __init__(
        self,
        client: Client,
        router: _Router,
        *,
        on_error: OnError,
        policy: ReplayMarkerStoragePolicy,
        concurrency: int,
        credentials: _Credentials,
        grace: float,
    ) -> None:
        self._client = client
        self._router = router
        self._on_error = on_error
        self._manual = policy is ReplayMarkerStoragePolicy.MANUAL
        self._concurrency = concurrency
        self._credentials = credentials
        self._grace = grace
        self._failures = 0
        self._ending = asyncio.Event()
        self._stop_asked = False
        self._cancelling = False
        self._error: BaseException | None = None
        self._workers: set[asyncio.Task[None]] = set()
        # Events that were not processed stay in flight until the end, so that no marker passes them.
        self._unfinished: list[AbstractAsyncContextManager[None]] = []

    def ask_to_stop(self, reason: str) -> None:
        """Stop; asked a second time, cancel the handlers that are still running."""
        if self._stop_asked:
            if self._workers:
                running = len(self._workers)
                LOGGER.warning("%s again: cancelling handlers that still run: %d", reason, running)
                self._cancel_workers()
            return
        LOGGER.info("%s: stopping; events being processed: %d", reason, len(self._workers))
        self._stop_asked = True
        self._ending.set()

    async def serve(self, stop: asyncio.Event | None) -> None:
        """Receive and process events until the end."""
        receiving = asyncio.create_task(self._receive())
        receiving.add_done_callback(lambda _: self._ending.set())
        watching = asyncio.create_task(self._watch(stop))
        try:
            await self._ending.wait()
            receiving.cancel()
            await asyncio.wait([receiving])
            if self._workers:
                await asyncio.wait(self._workers, timeout=self._grace)
        finally:
            await self._clean_up(receiving, watching)
        if self._error is None and not receiving.cancelled():
            self._error = receiving.exception()
        if self._error is not None:
            raise self._error

    async def _watch(self, stop: asyncio.Event | None) -> None:
        if stop is not None:
            await stop.wait()
            self.ask_to_stop("The stop event is set")

    async def _clean_up(self, *tasks: asyncio.Task[None]) -> None:
        self._ending.set()
        self._cancel_workers()
        for task in tasks:
            task.cancel()
        # A handler may take its time to be cancelled, but nothing of it may be left.
        await asyncio.gather(*tasks, *self._workers, return_exceptions=True)
        if self._unfinished:
            LOGGER.warning(
                "Events that were not processed: %d; they come again at the next start if their markers are kept",
                len(self._unfinished),
            )
        self._unfinished.clear()

    def _cancel_workers(self) -> None:
        self._cancelling = True
        for worker in self._workers:
            worker.cancel()

    # Receiving

    async def _receive(self) -> None:
        """Open the client and start the processing of each event, as many at a time as wanted."""
        await self._open()
        self._failures = 0
        while True:
            while len(self._workers) >= self._concurrency:
                await asyncio.wait(self._workers, return_when=asyncio.FIRST_COMPLETED)
            message = await self._next()
            if message is None:
                LOGGER.info("The client was closed")
                return
            # In flight from here on: called in the order of arrival.
            in_flight = self._client.replay_storage(message) if self._manual else nullcontext()
            worker = asyncio.create_task(self._process(message, in_flight))
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _open(self) -> None:
        """Open the client if it is closed and subscribe to what it is not subscribed to, however long it takes."""
        client = self._client
        while True:
            try:
                if client.closed:
                    await client.open()
                for channel in self._missing_channels():
                    await client.subscribe(channel)
            except AiosfstreamException as error:
                if not is_passing(error):
                    await self._credentials.pause_before(error)
                    raise
                await self._wait_out(error, "Cannot start streaming")
            else:
                break
        LOGGER.info("Streaming %s", ", ".join(self._router.channels))
        if isinstance(client.replay_storage, ConstantReplayId):
            LOGGER.info(
                "No markers are kept: what is published while this does not run is not seen"
            )

    def _missing_channels(self) -> list[str]:
        # A slash at the end makes no other channel.
        subscribed = {name.rstrip("/") for name in self._client.subscriptions}
        return [name for name in self._router.channels if name.rstrip("/") not in subscribed]

    async def _next(self) -> JsonObject | None:
        """Give the next event; None if somebody has closed the client."""
        while True:
            try:
                message = await self._client.receive()
            except ClientInvalidOperation:
                return None
            except AiosfstreamException as error:
                await self._survive(error)
            else:
                self._failures = 0
                return message

    async def _survive(self, error: AiosfstreamException) -> None:
        """Wait until receiving may be tried again, or raise what only a person can fix."""
        if isinstance(error, TransportTimeoutError):
            # Raised by the client no more often than each connection_timeout.
            self._failures += 1
            level = logging.WARNING if self._failures == 1 else logging.INFO
            LOGGER.log(level, "%s", error)
        elif self._credentials.may_try_again(error):
            LOGGER.error("The log-in was refused, it is tried again soon: %s", error)
        elif isinstance(error, ReplayError) or is_passing(error):
            await self._wait_out(error, "Cannot receive")
            if self._client.closed:
                await self._end_workers()
            await self._open()
        else:
            await self._credentials.pause_before(error)
            raise error

    async def _end_workers(self) -> None:
        # What is being processed would come again from its stored marker.
        if self._workers:
            await asyncio.wait(self._workers)

    async def _wait_out(self, error: AiosfstreamException, what: str) -> None:
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(self._failures, 60))
        delay *= random.uniform(0.5, 1.0)
        self._failures += 1
        LOGGER.warning("%s, trying again in %.0f s: %s", what, delay, error)
        await asyncio.sleep(delay)

    # Processing

    async def _process(
        self, message: JsonObject, in_flight: AbstractAsyncContextManager[None]
    ) -> None:
        try:
            processed = await self._handle(message)
            if processed:
                await self._store_marker(message, in_flight)
                return
        except (asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit):
            self._unfinished.append(in_flight)
            raise
        except BaseException as error:  # noqa: BLE001 - a handler may raise anything, also a BaseExceptionGroup
            self._end_with(error, message)
        self._unfinished.append(in_flight)

    @staticmethod
    async def _store_marker(
        message: JsonObject, in_flight: AbstractAsyncContextManager[None]
    ) -> None:
        try:
            async with in_flight:
                # Leaving this block stores the marker.
                pass
        except ReplayError as error:
            LOGGER.error(
                "%s was processed, but its marker cannot be stored; it is stored with the next: %s",
                _describe(message),
                error,
            )

    def _end_with(self, error: BaseException, message: JsonObject) -> None:
        LOGGER.error("Stopping, since %s cannot be processed: %r", _describe(message), error)
        if self._error is None:
            self._error = error
        self._ending.set()

    async def _handle(self, message: JsonObject) -> bool:
        """Call the handler until it succeeds or the event is dealt with.

        :return: False if the end came first
        :raises Exception: what ends the service
        """
        attempt = 0
        while True:
            attempt += 1
            error = await self._failure_of(message)
            if error is None:
                return True
            delay = await self._decide(HandlerFailure(message, error, attempt))
            if delay is None:
                return True
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ending.wait(), delay)
            if self._ending.is_set():
                return False

    async def _failure_of(self, message: JsonObject) -> Exception | None:
        """Call the handler once and give what it raised."""
        try:
            await self._router.call(message)
        except Exception as error:  # noqa: BLE001 - a handler may raise anything
            return error
        except asyncio.CancelledError as error:
            if self._cancelling:
                raise
            wrapped = RuntimeError(
                f"The handler of {_describe(message)} was cancelled, but not by this service: look for what cancels it."
            )
            wrapped.__cause__ = error
            return wrapped
        return None

    async def _decide(self, failure: HandlerFailure) -> float | None:
        """Ask what is to become of an event, and log it."""
        what = _describe(failure.message)
        LOGGER.warning(
            "Processing %s failed, attempt %d: %s: %s",
            what,
            failure.attempt,
            type(failure.error).__name__,
            fit(failure.error),
            exc_info=failure.error if failure.attempt == 1 else None,
        )
        outcome: object = self._on_error(failure)
        if inspect.isawaitable(outcome):
            outcome = await outcome
        if outcome is None:
            LOGGER.warning("%s was put aside by on_error; the next events follow", what)
            return None
        if isinstance(outcome, bool) or not isinstance(outcome, (int, float)):
            raise TypeError(
                f"on_error should give a delay in seconds or None, not {type(outcome).__name__!r}."
            ) from failure.error
        LOGGER.info("%s is processed again in %.1f s", what, outcome)
        return max(0.0, outcome)


class _Credentials:
    """Decides how often a log-in that is refused is tried again.

    :param attempts: refusals in a row that end the service
    :param pause: seconds before refused credentials end it
    """

    def __init__(self, attempts: int, pause: float) -> None:
        self._attempts = attempts
        self._pause = pause
        self._refusals = 0
        self._last = 0.0

    def may_try_again(self, error: AiosfstreamException) -> bool:
        """Count a refusal in mid-stream, and say whether the next attempt may be made."""
        if not _is_refusal(error):
            return False
        now = asyncio.get_running_loop().time()
        if now - self._last > REFUSALS_FORGOTTEN:
            self._refusals = 0
        self._last = now
        self._refusals += 1
        return self._refusals < self._attempts

    async def pause_before(self, error: AiosfstreamException) -> None:
        """Wait before *error* ends the service, if it is about refused credentials."""
        if _is_refusal(error) and self._pause > 0:
            LOGGER.error("The log-in was refused, this ends in %.0f s: %s", self._pause, error)
            await asyncio.sleep(self._pause)


def _is_refusal(error: AiosfstreamException) -> bool:
    return isinstance(error, AuthenticationError) and not error.retryable


def _check_numbers(concurrency: int, login_attempts: int, grace: float) -> None:
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency!r}; it should be 1 or more.")
    if login_attempts < 1:
        raise ValueError(f"login_attempts is {login_attempts!r}; it should be 1 or more.")
    if grace < 0:
        raise ValueError(f"grace is {grace!r}; it should be 0 seconds or more.")


def _name_of(channel: str) -> str:
    """Give the name that is in the events of a channel."""
    return channel.partition("?")[0].rstrip("/")


def _is_async(handler: Handler) -> bool:
    called = getattr(handler, "__call__", None)  # noqa: B004 - an object with an async __call__
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(called)


def _has_yield(handler: Handler) -> bool:
    called = getattr(handler, "__call__", None)  # noqa: B004 - an object with such a __call__
    return any(
        inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one)
        for one in (handler, called)
    )


def _called(handler: Handler, message: JsonObject) -> object:
    """Call a plain function, in a thread."""
    try:
        return handler(message)
    except StopIteration as error:
        # No future can hold one, so nobody would ever learn of it.
        raise RuntimeError(
            "The handler raised StopIteration: give its next() a default."
        ) from error


def _describe(message: JsonObject) -> str:
    data = message.get("data")
    event = data.get("event") if isinstance(data, dict) else None
    replay_id = event.get("replayId") if isinstance(event, dict) else None
    return f"event {replay_id!r:.50} on {shown(message.get('channel'))}"


@contextmanager
def _handling(signals: Collection[signal.Signals], act: Callable[[str], None]) -> Iterator[None]:
    """Call *act* with the name of each signal that comes within the block."""
    loop = asyncio.get_running_loop()
    handled = []
    for number in signals:
        try:
            loop.add_signal_handler(number, act, number.name)
        except (NotImplementedError, RuntimeError, ValueError) as error:
            # On Windows, or in another thread than the main one.
            LOGGER.debug("Not handling %s: %s", number.name, error)
        else:
            handled.append(number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


def _set_up_logging(level: int | str) -> None:
    if logging.getLogger().handlers:
        return
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # It warns about messages that are pending when a client is closed. They come again.
    logging.getLogger("aiocometd").setLevel(logging.ERROR)


async def _cancelled_by_sigterm(main: Coroutine[Any, Any, object]) -> None:
    task = asyncio.current_task()
    assert task is not None
    with suppress(NotImplementedError, RuntimeError, ValueError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await main
