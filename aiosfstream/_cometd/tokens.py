"""Tokens that are refused, and instances that the org has left: when to log in again, when to give up."""

from __future__ import annotations

from copy import copy
from typing import Final

from .._http.failures import Failure, Trouble
from ..exceptions import AuthenticationError
from .retry import RetryPolicy
from .states import Host

#: Seconds for which tokens that are refused are asked for again, if the application has set no limit.
PATIENCE: Final = 60.0


class Refusals:
    """The refusals of tokens since the last connection.

    A token that was issued a moment ago may be refused for a while, where servers copy it to one
    another. So another one is asked for, with backoff, until ``connection_timeout`` has passed.

    :param host: whose tokens they are
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        #: The first refusal, which says what has happened.
        self.first: Exception | None = None
        #: The last one.
        self.last: Exception | None = None
        self._since = 0.0

    def note(self, error: Exception, now: float) -> None:
        """Note that a token was refused.

        :param error: the refusal
        :param now: the time, in seconds
        """
        self.last = error
        if self.first is None:
            self.first, self._since = error, now

    def is_enough(self, error: Exception, due: float) -> bool:
        """Say whether only a person can help.

        :param error: the last refusal
        :param due: when the next token would be asked for, by the same clock as :meth:`note`
        """
        patience = self._host.connection_timeout or PATIENCE
        return self.first is not error and due - self._since >= patience

    def allow_one(self, error: Exception) -> None:
        """Have the next refusal be the last one: a person has asked for another attempt.

        :param error: what that person was told
        """
        # The first reason is kept: errors that quote one another would grow without end.
        self.first, self._since = self.first or error, float("-inf")

    def forget(self) -> None:
        """Note that a token is good."""
        self.first = self.last = None

    def explained(self, error: Exception) -> Exception:
        """Make the error that tells a person why a token was asked for in the first place.

        :param error: the last refusal of a token, or of a log-in
        """
        if self.first is None or self.first is error:
            return error
        if isinstance(error, AuthenticationError):
            return _told(error, self.first)
        return token_refused(error, self.first)


def token_refused(error: Exception, first: Exception) -> AuthenticationError:
    """Make the error that tells that a token is refused although a new one was asked for.

    :param error: the last refusal
    :param first: the first one
    """
    refused = AuthenticationError(
        "Authentication failed: the server refuses the token, also after logging in again; check that the"
        f" user may use the API and the Streaming API, and the session settings. {first}"
    )
    refused.__cause__ = first
    refused.status = getattr(error, "status", None)
    return refused


def _told(error: AuthenticationError, first: Exception) -> AuthenticationError:
    """Add to the error of a refused log-in why a new one was needed."""
    told = copy(error)
    text, *rest = error.args
    told.args = (f"{text.rstrip('.')}. A new log-in was needed because of: {first}", *rest)
    told.__cause__ = error.__cause__ or first
    return told


class Instance:
    """The org's instance: whether it answers, and how often it was looked for elsewhere.

    :param host: whose instance it is
    :param policy: how long it is waited for
    """

    def __init__(self, host: Host, policy: RetryPolicy) -> None:
        self._host = host
        self._policy = policy
        #: Whether it has said that the org is not there.
        self.is_gone = False
        self._silent_since: float | None = None
        self._looked_for_at: float | None = None
        self._times = 0

    def is_silent(self, failure: Failure, now: float) -> bool:
        """Note a failure; say whether it has been out of reach for so long that the org may have moved.

        :param failure: why a request has no answer
        :param now: the time, in seconds
        """
        if failure.trouble not in (Trouble.NOT_SENT, Trouble.LOST) or failure.status is not None:
            return False
        if self._silent_since is None:
            self._silent_since = now
        since = max(self._silent_since, self._looked_for_at or self._silent_since)
        patience = self._host.connection_timeout or self._policy.relocation
        return now - since >= min(patience * 2.0**self._times, self._policy.refused_cap)

    def answers(self) -> None:
        """Note that it has answered, whatever it said."""
        self._silent_since = None

    def look_for(self, now: float) -> None:
        """Note that the login host is asked where it is.

        :param now: the time, in seconds
        """
        self._looked_for_at = now
        self._times += 1

    def found(self) -> None:
        """Note that there is a connection to it."""
        self.is_gone = False
        self._looked_for_at = None
        self._times = 0
