"""What a marker storage remembers of the messages of its clients, in addition to the markers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Mapping
from types import MappingProxyType
from typing import Final

from aiocometd.typing import JsonObject

from ._channels import key_of
from ._in_flight import InFlight, channel_of

__all__ = ["ANY", "Attachment", "Notes"]

#: Backlogs of one channel that are remembered. More are there only if the application stores no markers.
MAX_HOLDS: Final = 50
#: Stands for the next message of a channel, whichever that will be.
ANY: Final[JsonObject] = {}


class _Everything(Container[str]):
    """Contains every key: for clients that do not say what they are subscribed to."""

    def __contains__(self, channel: object) -> bool:
        return isinstance(channel, str) and key_of(channel) == channel


EVERYTHING: Final = _Everything()


class Attachment:
    """What one client has told the storage.

    :ivar aliases: delivered channel -> subscribed key, where they differ
    :ivar subscribed: the keys of which markers are stored
    :ivar client: whose these are, or None
    :ivar timeout: seconds that storing a marker may take, or None
    :ivar ordinary: those of *subscribed* whose markers may be stored without a second look: all of
        them, or none while anything is out of the ordinary
    """

    __slots__ = ("aliases", "client", "ordinary", "subscribed", "timeout")

    def __init__(
        self,
        aliases: Mapping[str, str] = MappingProxyType({}),
        subscribed: Container[str] = EVERYTHING,
        client: weakref.ref[object] | None = None,
        timeout: float | None = None,
    ) -> None:
        self.aliases = aliases
        self.timeout = timeout
        self.subscribed = self.ordinary = subscribed
        self.client = client

    def is_of_another(self, client: object | None) -> bool:
        """Say whether this belongs to a client that still exists and is not *client*."""
        owner = None if self.client is None else self.client()
        return owner is not None and owner is not client


class _Hold:
    """Messages of a channel that came ahead of others, whose markers therefore wait.

    :ivar early: the messages, by their identity: another message with the same id is another one
    :ivar kept: of those handed over already, the one whose marker is to be stored in the end
    :ivar until: the message that ends the wait; None while that is not known
    :ivar is_over: whether the client has begun anew, so that nothing of it is stored any more
    """

    __slots__ = ("early", "is_over", "kept", "until")

    def __init__(self) -> None:
        self.early: dict[int, JsonObject] = {}
        self.kept: JsonObject | None = None
        self.until: JsonObject | None = None
        self.is_over = False


class _Special:
    """What is out of the ordinary about the next markers of a channel.

    :ivar overwriting: the message whose marker is stored whatever is stored already
    :ivar holds: messages that came ahead of others, oldest first
    """

    __slots__ = ("holds", "overwriting")

    def __init__(self) -> None:
        self.overwriting: JsonObject | None = None
        self.holds: list[_Hold] = []


class Notes:
    """All that a storage remembers beside markers.

    :ivar attached: its clients; never empty
    :ivar special: what is out of the ordinary, by key; empty nearly always
    :ivar warned: of which channels and troubles a warning has been written
    """

    __slots__ = ("_in_flight", "_warned", "attached", "special")

    def __init__(self) -> None:
        self.attached = [Attachment()]
        self.special: dict[str, _Special] = {}
        self._in_flight: InFlight | None = None
        self._warned: set[tuple[str, str]] | None = None

    # Made when they are needed: thousands of storages never are.

    @property
    def in_flight(self) -> InFlight:
        """The messages that are being processed."""
        if self._in_flight is None:
            self._in_flight = InFlight()
        return self._in_flight

    @property
    def warned(self) -> set[tuple[str, str]]:
        """Of which channels and troubles a warning has been written."""
        if self._warned is None:
            self._warned = set()
        return self._warned

    # Clients and their channels

    def attach(self, attachment: Attachment) -> None:
        """Take note of what a client says at its opening."""
        client = None if attachment.client is None else attachment.client()
        others = [other for other in self.attached if other.is_of_another(client)]
        replaced = [old for old in self.attached if old not in others]
        self.attached = [*others, attachment]
        if not others:
            self._begin_anew()
        self._decide_what_is_ordinary(*replaced)

    def _decide_what_is_ordinary(self, *replaced: Attachment) -> None:
        """Decide anew which channels are ordinary."""
        simple = not self.special and len(self.attached) == 1
        for client in (*self.attached, *replaced):
            client.ordinary = client.subscribed if simple and client in self.attached else ()

    def _begin_anew(self) -> None:
        """Forget the order in which the messages of an earlier opening came.

        They come again. But those that are being processed are still not to be stored ahead of others.
        """
        running = set() if self._in_flight is None else self._in_flight.messages()
        for key, special in list(self.special.items()):
            for hold in special.holds:
                hold.early = {mark: m for mark, m in hold.early.items() if mark in running}
                hold.kept, hold.until, hold.is_over = None, None, True
            self._tidy(key, special)

    def key_of(self, message: JsonObject) -> str:
        """Give the key that the marker of *message* is stored under."""
        channel = channel_of(message)
        if not isinstance(channel, str):
            return ""
        for client in self.attached:
            if channel in client.aliases:
                return client.aliases[channel]
        return key_of(channel)

    def is_subscribed(self, key: str) -> bool:
        """Say whether markers are stored under *key*."""
        if key in self.attached[0].subscribed:
            return True
        return any(key in client.subscribed for client in self.attached)

    # A marker that replaces whatever is stored

    def overwrite_with(self, key: str, message: JsonObject) -> None:
        """Have the marker of *message* stored whatever is stored."""
        self.special.setdefault(key, _Special()).overwriting = message
        self._decide_what_is_ordinary()

    def overwrites(self, key: str, message: JsonObject) -> bool:
        """Say whether the marker of *message* is stored whatever is stored."""
        special = self.special.get(key)
        return special is not None and _is(special.overwriting, message)

    def overwritten(self, key: str, message: JsonObject) -> None:
        """Take note that the marker of *message* has been stored."""
        special = self.special.get(key)
        if special is not None and _is(special.overwriting, message):
            special.overwriting = None
            self._tidy(key, special)

    # Markers that wait for messages which should have come before

    def hold_back(self, key: str, message: JsonObject) -> None:
        """Keep the marker of *message* back until :meth:`release`."""
        special = self.special.setdefault(key, _Special())
        if not special.holds or special.holds[-1].until is not None or special.holds[-1].is_over:
            special.holds.append(_Hold())
            del special.holds[:-MAX_HOLDS]
        special.holds[-1].early[id(message)] = message
        self._decide_what_is_ordinary()

    def release(self, key: str, until: JsonObject) -> None:
        """Let what is held back be stored once the marker of *until* has been."""
        special = self.special.get(key)
        if special is None:
            return
        for hold in special.holds:
            if until is ANY:
                hold.early.clear()
            if hold.until is None or until is ANY:
                hold.until = until
        self._tidy(key, special)

    def set_aside(self, key: str, message: JsonObject, furthest: _Furthest) -> bool:
        """Keep *message* for later if it is held back, and say so."""
        special = self.special.get(key)
        if special is None:
            return False
        for hold in special.holds:
            if id(message) in hold.early:
                if not hold.is_over:
                    hold.kept = message if hold.kept is None else furthest(hold.kept, message)
                    return True
                del hold.early[id(message)]
                self._tidy(key, special)
                return True
        return False

    def due_after(self, key: str, message: JsonObject) -> list[JsonObject]:
        """Give what has been kept and may be stored once the marker of *message* has been."""
        special = self.special.get(key)
        holds = () if special is None else special.holds
        return [hold.kept for hold in holds if _is(hold.until, message) and hold.kept is not None]

    def due_now(self) -> dict[str, list[JsonObject]]:
        """Give what has been kept and waits for no certain message, by key."""
        found = {key: self.due_after(key, ANY) for key in self.special}
        return {key: due for key, due in found.items() if due}

    def settled(self, key: str, message: JsonObject) -> None:
        """Take note that the marker of *message*, and what was due after it, have been stored."""
        special = self.special.get(key)
        if special is not None:
            ended = [hold for hold in special.holds if _is(hold.until, message)]
            for hold in ended:
                special.holds.remove(hold)
            self._tidy(key, special)

    # Messages whose marker is stored by another's, or not at all

    def passed_over(self, key: str, message: JsonObject) -> None:
        """Have the next message do what *message*, which will not be stored, was to do."""
        self.hand_on(key, message, ANY)

    def hand_on(self, key: str, message: JsonObject, other: JsonObject) -> None:
        """Have *other* do what *message* was to do."""
        special = self.special.get(key)
        if special is None:
            return
        if _is(special.overwriting, message):
            special.overwriting = other
        for hold in special.holds:
            if _is(hold.until, message):
                hold.until = other

    def _tidy(self, key: str, special: _Special) -> None:
        special.holds = [hold for hold in special.holds if hold.early or hold.kept is not None]
        if special.overwriting is None and not special.holds and self.special.get(key) is special:
            del self.special[key]
            self._decide_what_is_ordinary()


_Furthest = Callable[[JsonObject, JsonObject], JsonObject]


def _is(waiting: JsonObject | None, message: JsonObject) -> bool:
    # Equal is enough: under MANUAL a program may hand in a copy.
    return waiting is not None and (waiting is ANY or message is waiting or waiting == message)
