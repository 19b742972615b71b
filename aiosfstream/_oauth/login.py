"""One log-in: asking, judging what comes back, and keeping it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from .._frames import without_frames
from ..exceptions import AuthenticationError
from .answers import FIELDS, failed, fields_of, problem_of, refusal, unreachable, useless
from .flight import in_time
from .flows import flow_of
from .state import STATE, assign, is_hidden, read, secrets_of, timeout_of

__all__ = ["LogIn", "forget"]


class LogIn:
    """A log-in of an authenticator. No method raises: an error that does has frames, and these have secrets.

    :param authenticator: the authenticator
    :param ask: asks the token endpoint, as its ``_authenticate()`` does
    :param where: gives the token URL, for an error
    """

    __slots__ = ("_ask", "_authenticator", "_flow", "_state", "_where")

    def __init__(
        self,
        authenticator: object,
        ask: Callable[[], Awaitable[Any]],
        where: Callable[[], str],
    ) -> None:
        self._authenticator = authenticator
        self._ask = ask
        self._where = where
        self._flow = flow_of(authenticator)
        self._state = STATE.of(authenticator)

    @property
    def where(self) -> str:
        """The token URL."""
        return self._where()

    @property
    def asks_nobody(self) -> bool:
        """Whether it need not be shared, nor limited in time."""
        return self._flow.asks_nobody(self._authenticator)

    @property
    def is_finished_when_cancelled(self) -> bool:
        """Whether it is finished rather than ended when nobody waits for it any more."""
        return self._flow.finishes_when_cancelled

    async def run(self) -> AuthenticationError | None:
        """Ask, check what comes back, and keep it.

        :return: why it has failed; or None
        """
        state = self._state
        state.asked = state.retry_after = None
        changes = state.changes
        try:
            asking = self._ask()
            if not self.asks_nobody:
                asking = in_time(asking, timeout_of(self._authenticator))
            outcome = await asking
            error = await self._judge(outcome, changes)
        except AuthenticationError as raised:
            error = raised
        except Exception as raised:  # noqa: BLE001 - a subclass may raise anything
            error = self._failure(raised)
        return error and without_frames(error, secrets=secrets_of(self._authenticator))

    def _failure(self, error: Exception) -> AuthenticationError:
        """Give the error for what asking has raised."""
        told = self._flow.failure(self._authenticator, error)
        if told is None and isinstance(error, asyncio.TimeoutError):
            told = unreachable(
                f"no answer of {self.where} within {timeout_of(self._authenticator):g} seconds; try again"
                " later"
            )
        if told is None:
            what = f"{type(self._authenticator).__name__}._authenticate()"
            return failed(what, error, secrets_of(self._authenticator))
        told.__cause__ = error
        return told

    async def _judge(self, outcome: object, changes: int) -> AuthenticationError | None:
        """Check what asking has given."""
        is_pair = isinstance(outcome, (tuple, list)) and len(outcome) == 2
        if not isinstance(outcome, (tuple, list)) or not is_pair or not isinstance(outcome[0], int):
            return AuthenticationError(
                f"Authentication failed: {type(self._authenticator).__name__}._authenticate() should return"
                f" an HTTP status and a dict, not {type(outcome).__name__!r}"
            )
        status, reply = outcome
        if not isinstance(reply, Mapping):
            return unreachable(
                f"the answer of {self.where}, with HTTP status {status:d}, is no JSON object; check"
                " login_url",
                status=status,
            )
        if status == 200:
            return await self._accept(dict(reply), changes)
        return self._refusal(status, dict(reply))

    def _refusal(self, status: int, reply: dict[str, Any]) -> AuthenticationError:
        error = refusal(
            self.where,
            status,
            reply,
            secrets=secrets_of(self._authenticator),
            retry_after=self._state.retry_after,
            hint=self._flow.hint(self._authenticator, reply),
        )
        if not error.retryable:
            forget(self._authenticator)
        return error

    async def _accept(self, reply: dict[str, Any], changes: int) -> AuthenticationError | None:
        """Keep a token, if it can be used."""
        # First of all: the answer may be of no use otherwise, but what it rotated is gone.
        error = await self._flow.keep(self._authenticator, reply)
        if error is not None:
            return error
        fields = self._assigned(changes) | fields_of(reply)
        if not fields.get("access_token") or not fields.get("instance_url"):
            return unreachable(
                f"the answer of {self.where} has no access_token or no instance_url; check login_url",
                status=200,
            )
        fields["token_type"] = fields.get("token_type") or "Bearer"
        problem = problem_of(fields, self._state.asked)
        problem = problem or self._flow.doubt(self._authenticator, reply)
        if problem is not None:
            return useless(self.where, problem)
        forget(self._authenticator)
        for name, value in fields.items():
            assign(self._authenticator, name, value)
        self._state.instance_url = fields["instance_url"]
        return None

    def _assigned(self, changes: int) -> dict[str, str]:
        """Give what ``_authenticate()`` has assigned to the attributes itself."""
        own: dict[str, Any] = {}
        token = read(self._authenticator, "access_token")
        if self._state.changes != changes or (
            token and not is_hidden(self._authenticator, "access_token")
        ):
            own = {name: read(self._authenticator, name) for name in FIELDS}
        elif self._state.asked is None:
            # An answer of its own may leave out what the application has said once.
            own["instance_url"] = (
                read(self._authenticator, "instance_url") or self._state.instance_url
            )
        return fields_of(own)


def forget(authenticator: object) -> None:
    """Take away the token and what came with it.

    :param authenticator: the authenticator
    """
    for name in FIELDS:
        assign(authenticator, name, None)
