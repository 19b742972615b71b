"""What a failure leads to: the one place where that is decided."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Final

from .._http.failures import Failure
from ..events import ConnectionEvent, ConnectionEventKind
from ..exceptions import AuthenticationError, ReplayError
from .retry import Delays, RetryPolicy
from .salesforce import Verdict, judge_failure
from .states import ACTIONS, Host, State, Step
from .tokens import Instance, Refusals

LOGGER = logging.getLogger(__name__)

#: Renewals in a row because of refused cookies.
MAX_COOKIE_RENEWALS: Final = 3
#: Attempts to read the storage during one renewal before the application hears of it.
MAX_STORAGE_ATTEMPTS: Final = 3

_RENEWS: Final = (Verdict.RENEW, Verdict.RENEW_COOKIES, Verdict.FAREWELL)


class Recovery:
    """The states of a session, and the way back to a connection.

    :param host: is asked what cannot be decided here
    :param report: called with every change that an observer should know of
    :param policy: delays
    :param rng: where the jitter comes from
    :param leave: called when the session is given up
    """

    def __init__(
        self,
        host: Host,
        report: Callable[[ConnectionEvent], None],
        policy: RetryPolicy,
        rng: random.Random,
        leave: Callable[[], None],
    ) -> None:
        self.report = report
        self.delays = Delays(policy, rng)
        self.instance = Instance(host, policy)
        self.refusals = Refusals(host)
        self.state = State.NO_SESSION
        #: Whether a failure ends the attempt, since the application waits for the outcome.
        self.opening = True
        self.client_id: str | None = None
        #: When the connection was lost, by the caller's clock; None while all is well.
        self.lost_since: float | None = None
        self.last_error: Exception | None = None
        #: Errors for the application, until the transport takes them.
        self.errors: list[Exception] = []
        #: The end of the session, once it has ended for good.
        self.stop_error: Exception | None = None
        #: The ids of sessions that were given up from this side: the server still keeps them.
        self.left_behind: list[str] = []
        self.clear_cookies = False
        #: Seconds that the server's advice asks to wait before a request is repeated.
        self.interval = 0.0
        #: Whether the application has been told that only a person can help, and has asked to go on.
        self.waits_for_person = False
        self._policy = policy
        self._leave = leave
        self._delay = 0.0
        # When the attempt began whose time counts as waiting; None: if it fails, it does not count.
        self._waiting_since: float | None = None
        self._renewed_while_opening = False
        self._connected_at: float | None = None
        self._cookie_renewals = 0
        self._storage_attempts = 0
        self._times_told = 0

    def next_step(self, now: float) -> Step:
        """Give the next step and the delay before it, which is given once.

        :param now: the time, in seconds
        """
        delay, self._delay = self._delay, 0.0
        # What is tried while the connection is lost, and takes the whole request_timeout, has paused
        # for long enough. The time of a connect that was held does not count: the connections of
        # thousands of clients may be cut in one moment, and only the delay keeps them apart.
        is_attempt = self.lost_since is not None and self.state is not State.CONNECTED
        self._waiting_since = now + delay if is_attempt else None
        return Step(ACTIONS[self.state], delay)

    def connect_after(self, delay: float) -> None:
        """Have the next step wait, though nothing has failed.

        :param delay: seconds
        """
        self._delay = delay

    def enter(self, state: State, reason: object) -> None:
        """Enter a state, and log why.

        :param state: the state
        :param reason: for the log
        """
        if state is not self.state:
            LOGGER.debug("session: %s -> %s: %s", self.state.name, state.name, reason)
            self.state = state

    # Success

    def begun(self, client_id: str) -> None:
        """Note that there is a new session.

        :param client_id: its id
        """
        self.client_id = client_id
        self.clear_cookies = False
        if not self.opening:
            self.report(ConnectionEvent(ConnectionEventKind.SESSION_RENEWED))

    def connected(self, now: float, *, events: int, complete: bool) -> None:
        """Note that a connect was successful.

        :param now: the time, in seconds
        :param events: how many events came with it
        :param complete: whether all channels are subscribed
        """
        if self._connected_at is None:
            self._connected_at = now
        if events or now - self._connected_at >= self._policy.settled:
            self.delays.reset()
        self._times_told = self._cookie_renewals = 0
        self.waits_for_person = False
        self.refusals.forget()
        self.instance.found()
        was_connected = self.state is State.CONNECTED
        self.enter(State.CONNECTED, "connect answered")
        if complete:
            self.recovered(report=not was_connected or self.lost_since is not None)

    def recovered(self, *, report: bool = True) -> None:
        """Note that all is well.

        :param report: whether the observer should know, since it was not so before
        """
        self.last_error = None
        self.lost_since = None
        if report:
            self.report(ConnectionEvent(ConnectionEventKind.CONNECTED))

    def storage_answered(self) -> None:
        """Note that the storage could be read."""
        self._storage_attempts = 0

    # Failure

    def failed(self, failure: Failure, now: float) -> None:
        """Take a request without a usable answer.

        :param failure: why there is none
        :param now: the time, in seconds
        """
        silent = self.instance.is_silent(failure, now)
        if silent and not self.opening:
            self.note_loss(failure.error, now)
            self._relocate(failure.error, now)
        else:
            self.recover(judge_failure(failure), failure.error, now, failure.retry_after)

    def note_loss(self, error: Exception, now: float) -> None:
        """Note that not all is well any more.

        :param error: why
        :param now: the time, in seconds
        """
        self.last_error = error
        self._connected_at = None
        if self.lost_since is None:
            self.lost_since = now
            if not self.opening:
                self.report(ConnectionEvent(ConnectionEventKind.CONNECTION_LOST, error=error))

    def recover(
        self, verdict: Verdict, error: Exception, now: float, retry_after: float | None = None
    ) -> None:
        """Decide what a failure leads to.

        :param verdict: what it asks for
        :param error: the failure
        :param now: the time, in seconds
        :param retry_after: seconds that the server asked to wait
        """
        kind = (self.state, verdict)
        self.note_loss(error, now)
        if self.opening and not self._worth_another_try(verdict):
            self.stop(self.refusals.explained(error) if verdict is Verdict.LOG_IN else error)
        elif verdict is Verdict.STOP:
            self.stop(error)
        elif verdict is Verdict.LOG_IN:
            self._log_in_again(error, now, kind)
        elif verdict is Verdict.RELOCATE and self.instance.is_gone:
            # The new answer says the same.
            self.stop(error)
        elif verdict is Verdict.RELOCATE:
            self.instance.is_gone = True
            self._relocate(error, now)
        elif verdict in (Verdict.RETRY, Verdict.WAIT):
            self._try_again(verdict, error, now, kind, retry_after)
        else:
            self._renew(verdict, error, now, kind, retry_after)

    def _worth_another_try(self, verdict: Verdict) -> bool:
        """While it opens, a client makes up for one refused token and for one lost session only."""
        if verdict is Verdict.LOG_IN:
            return self.refusals.first is None
        if verdict in _RENEWS and not self._renewed_while_opening:
            self._renewed_while_opening = True
            return True
        return False

    def _try_again(
        self,
        verdict: Verdict,
        error: Exception,
        now: float,
        kind: object,
        retry_after: float | None,
    ) -> None:
        if self.state is State.CONNECTED:
            self.enter(State.CONNECTING, error)
        if verdict is Verdict.WAIT:
            delay = self.delays.busy(kind)
        else:
            delay = self._left_of(self.delays.network(kind), now)
        self._retry_after(max(delay, self.interval, retry_after or 0.0), error)

    def _log_in_again(self, error: Exception, now: float, kind: object) -> None:
        self.refusals.note(error, now)
        self._give_up(notify=True)
        delay = self.delays.first_at_once(kind)
        if self.refusals.is_enough(error, now + delay):
            self.park(self.refusals.explained(error))
        else:
            self.enter(State.NO_TOKEN, error)
            self._retry_after(delay, error)

    def _relocate(self, error: Exception, now: float) -> None:
        """Log in again to learn where the org is now."""
        self.instance.look_for(now)
        self._give_up(notify=False)
        self.enter(State.NO_TOKEN, error)
        self._retry_after(self._left_of(self.delays.first_at_once("relocation"), now), error)

    def _renew(
        self,
        verdict: Verdict,
        error: Exception,
        now: float,
        kind: object,
        retry_after: float | None,
    ) -> None:
        # A server that has ended the session, or does not know it, need not be told that it is left.
        self._give_up(notify=verdict in (Verdict.RENEW_LOST, Verdict.RENEW_LATER))
        if verdict is Verdict.RENEW_COOKIES:
            self._cookie_renewals += 1
            if self._cookie_renewals > MAX_COOKIE_RENEWALS:
                self.stop(error)
                return
            self.clear_cookies = True
        self.enter(State.NO_SESSION, error)
        delay = self._delay_of_renewal(verdict, kind, now)
        self._retry_after(max(delay, retry_after or 0.0), error)

    def _delay_of_renewal(self, verdict: Verdict, kind: object, now: float) -> float:
        if verdict is Verdict.RENEW_LATER:
            return self.delays.busy(kind)
        if verdict is Verdict.FAREWELL:
            # The server may end many sessions at once, whose clients should not all be back at once.
            first = self.delays.attempts == 0
            delay = self.delays.network(kind)
            return min(delay, self._policy.farewell) if first else delay
        if verdict is Verdict.RENEW_LOST:
            return self._left_of(self.delays.network(kind), now)
        return self._left_of(self.delays.first_at_once(kind), now)

    def _left_of(self, delay: float, now: float) -> float:
        """Give what is left of a delay, which counts from the beginning of the attempt that has failed.

        :param delay: seconds; not what the server, or the org, has asked for
        :param now: the time, in seconds
        """
        if self._waiting_since is None or now < self._waiting_since:
            # An attempt may be given up before its own delay has passed.
            return delay
        return max(delay - (now - self._waiting_since), 0.0)

    def _retry_after(self, delay: float, error: Exception) -> None:
        self._delay = delay
        self.report_retry(delay, error)

    def report_retry(self, delay: float, error: Exception, channel: str | None = None) -> None:
        """Tell the observer that another attempt follows.

        :param delay: seconds until then
        :param error: why it is needed
        :param channel: the channel that is concerned, if it is one
        """
        if not self.opening:
            self.report(
                ConnectionEvent(
                    ConnectionEventKind.RETRYING,
                    channel=channel,
                    error=error,
                    attempt=self.delays.attempts,
                    delay=delay,
                )
            )

    # Logging in

    @property
    def is_refused(self) -> bool:
        """Whether new tokens are refused as well, as far as is known."""
        refusals = self.refusals
        return refusals.last is self.last_error is not refusals.first

    def authenticated(self, now: float) -> None:
        """Note that there is a new token.

        :param now: the time, in seconds
        """
        if self.waits_for_person:
            # The application knows why it took so long.
            self.lost_since = now
        self.waits_for_person = False
        self.enter(State.NO_SESSION, "logged in")
        self.report(ConnectionEvent(ConnectionEventKind.REAUTHENTICATED))

    def authentication_failed(self, error: AuthenticationError, now: float) -> None:
        """Take the failure of a new log-in.

        :param error: the failure
        :param now: the time, in seconds
        """
        looks_for_instance = error.retryable and self.refusals.first is None
        # Why the instance does not answer says more than that the login host does not either.
        known = self.last_error if looks_for_instance else None
        self.note_loss(known or error, now)
        if self.opening:
            self.stop(error)
        elif not error.retryable:
            self.park(self.refusals.explained(error))
        else:
            self.waits_for_person = False
            if looks_for_instance:
                # The token may still be good: the instance is asked again as well. If it still says
                # that the org is gone, nobody has said yet where it is.
                self.instance.is_gone = False
                self.enter(State.NO_SESSION, error)
            is_limited = error.retry_after is not None or _is_rate_limit(error)
            if is_limited:
                delay = self.delays.busy("login")
            else:
                delay = self._left_of(self.delays.network("login"), now)
            self._retry_after(max(delay, error.retry_after or 0.0), error)

    def storage_failed(self, error: ReplayError, now: float) -> None:
        """Take the failure of a marker storage that was read for a channel without a resume point.

        :param error: the failure
        :param now: the time, in seconds
        """
        self.note_loss(error, now)
        self._storage_attempts += 1
        if self._storage_attempts % MAX_STORAGE_ATTEMPTS == 0:
            self.park(error)
        else:
            self._retry_after(self._left_of(self.delays.network("storage"), now), error)

    # The end

    def _give_up(self, *, notify: bool) -> None:
        """Give the session up; what its requests under way will bring is not used.

        :param notify: whether the server may still keep the session, which takes one of the org's
            client slots
        """
        if notify and self.client_id is not None:
            self.left_behind.append(self.client_id)
        self.client_id = None
        self._leave()

    def park(self, error: Exception) -> None:
        """Wait until the application, which is told *error*, asks for another attempt."""
        self.last_error = error
        self._times_told += 1
        self._give_up(notify=True)
        self.enter(State.PARKED, error)
        self.errors.append(error)
        self.report(ConnectionEvent(_kind_of(error), error=error))

    def unpark(self) -> None:
        """Try again, since the application asks for it."""
        if self.state is not State.PARKED:
            return
        error = self.last_error
        needs_token = isinstance(error, AuthenticationError)
        self.waits_for_person = needs_token or isinstance(error, ReplayError)
        if self.waits_for_person:
            self._delay = self.delays.refused(self._times_told)
        if error is not None and needs_token:
            self.refusals.allow_one(error)
        self.enter(
            State.NO_TOKEN if needs_token else State.NO_SESSION, "the application asks again"
        )

    def stop(self, error: Exception) -> None:
        """End for good.

        :param error: why
        """
        # What requests under way bring must not set the session going again.
        self._give_up(notify=False)
        self.last_error = self.stop_error = error
        self.enter(State.STOPPED, error)
        if not self.opening:
            self.report(ConnectionEvent(ConnectionEventKind.CLOSED, error=error))


def _kind_of(error: Exception) -> ConnectionEventKind:
    if isinstance(error, ReplayError):
        return ConnectionEventKind.STORAGE_FAILED
    if isinstance(error, AuthenticationError):
        return ConnectionEventKind.AUTHENTICATION_FAILED
    return ConnectionEventKind.CONNECTION_LOST


def _is_rate_limit(error: AuthenticationError) -> bool:
    return "rate" in f"{error.error} {error.error_description}".lower()
