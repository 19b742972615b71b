"""Where a session stands, and what follows."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, NamedTuple, Protocol

from aiocometd.typing import JsonObject

from .._text import Secret
from .salesforce import ReplayId


class State(Enum):
    """Where the session stands."""

    #: There is none yet, or it was lost: a handshake comes next.
    NO_SESSION = auto()
    #: The token was refused: logging in comes next.
    NO_TOKEN = auto()
    #: The server knows this client; channels of the session before are subscribed again.
    RESUBSCRIBING = auto()
    #: The channels are subscribed; no connect has been answered since.
    CONNECTING = auto()
    #: The last connect was successful.
    CONNECTED = auto()
    #: Going on would not help; waiting until the application asks for another attempt.
    PARKED = auto()
    #: It has ended for good.
    STOPPED = auto()


class Action(Enum):
    """What the transport can do for the session."""

    AUTHENTICATE = auto()
    HANDSHAKE = auto()
    SUBSCRIBE = auto()
    CONNECT = auto()
    PARK = auto()
    STOP = auto()


ACTIONS: Final = {
    State.NO_SESSION: Action.HANDSHAKE,
    State.NO_TOKEN: Action.AUTHENTICATE,
    State.RESUBSCRIBING: Action.SUBSCRIBE,
    State.CONNECTING: Action.CONNECT,
    State.CONNECTED: Action.CONNECT,
    State.PARKED: Action.PARK,
    State.STOPPED: Action.STOP,
}


class Step(NamedTuple):
    """What comes next.

    :ivar action: what to do
    :ivar delay: seconds to wait before
    """

    action: Action
    delay: float = 0.0


class Sequel(Enum):
    """What follows the answer to a request beside the connect."""

    #: Nothing.
    DONE = auto()
    #: It is sent again, with the fallback.
    AT_ONCE = auto()
    #: It may be sent again once the session is renewed.
    RENEWED = auto()


class Host(Protocol):
    """What the engine needs of the client that it belongs to."""

    @property
    def connection_timeout(self) -> float | None:
        """Seconds that the connection may be lost; None or 0: for ever."""

    def fallback_for(self, channel: str) -> ReplayId:
        """Give the id to use in place of one that is refused, or None to report the refusal.

        :param channel: the channel whose id is refused
        """

    def first_after_fallback(self, message: JsonObject) -> None:
        """Have the marker of *message* replace the stored one, which the server has refused."""

    async def log_in(self, refused: Secret | None) -> str:
        """Get a new token, unless a newer one than the refused one is in use by now.

        :param refused: the ``Authorization`` header that was refused; None: there is none yet
        :return: the URL to go on with
        """
