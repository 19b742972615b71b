"""What a flow does otherwise than the others, as an object that each class of authenticators is given.

Not as methods of the class, whose names a subclass may have for something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from ..exceptions import AuthenticationError

__all__ = ["Flow", "flow_of", "has_flow"]

AuthenticatorT = TypeVar("AuthenticatorT", bound=type)


class Flow:
    """What most flows do. Keeps nothing: what there is to keep belongs to the authenticator."""

    #: Whether a log-in that nobody waits for any more is finished rather than ended.
    finishes_when_cancelled = False

    def asks_nobody(self, authenticator: Any) -> bool:
        """Say whether a log-in need not be shared, nor limited in time."""
        return False

    async def keep(self, authenticator: Any, reply: dict[str, Any]) -> AuthenticationError | None:
        """Keep what else comes with a token, before that is used.

        :return: why it could not be kept
        """
        return None

    def doubt(self, authenticator: Any, reply: dict[str, Any]) -> str | None:
        """Give the reason not to use an answer, if there is one."""
        return None

    def hint(self, authenticator: Any, reply: dict[str, Any]) -> str:
        """Give advice on a refusal that goes beyond that for all flows."""
        return ""

    def failure(self, authenticator: Any, error: Exception) -> AuthenticationError | None:
        """Give the error for an exception for which the flow has a sentence of its own."""
        return None

    def before_renewal(self, authenticator: Any) -> AuthenticationError | None:
        """Say why there can be no other token than the refused one, if so."""
        return None

    def after_renewal(self, authenticator: Any) -> AuthenticationError | None:
        """Say what it means that the log-in has given the refused token once more."""
        return None


_FLOWS: Final[dict[type, Flow]] = {object: Flow()}


def has_flow(flow: Flow) -> Callable[[AuthenticatorT], AuthenticatorT]:
    """Decorate a class of authenticators with its flow. Subclasses inherit it.

    :param flow: the flow
    """

    def register(kind: AuthenticatorT) -> AuthenticatorT:
        _FLOWS[kind] = flow
        return kind

    return register


def flow_of(authenticator: object) -> Flow:
    """Give the flow of an authenticator.

    :param authenticator: the authenticator
    """
    return next(_FLOWS[kind] for kind in type(authenticator).__mro__ if kind in _FLOWS)
