"""What a marker storage remembers of the messages of its clients, in addition to the markers."""

from __future__ import annotations

import weakref
from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import Final

from aiocometd.typing import JsonObject

from ._channels import key_of
from ._holds import Hold
from ._in_flight import InFlight, channel_of

__all__ = ["ANY", "Attachment", "Notes"]

#: Stands for the next message of a channel.
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
    :ivar holds: by key, what keeps the stored marker from moving on
    :ivar client: the client, or None if it is not known
    :ivar timeout: seconds that storing a marker may take; None: no limit
    :ivar ordinary: the keys whose markers may be stored by the direct way: all of *direct*, or none
        while a marker is to be overwritten or another client uses the storage as well
    :ivar direct: the keys that belong to one subscription each, so that nothing ever holds their markers
    """

    def __init__(
        self,
        aliases: Mapping[str, str] = MappingProxyType({}),
        subscribed: Container[str] = EVERYTHING,
        client: weakref.ref[object] | None = None,
        timeout: float | None = None,
        direct: Container[str] | None = None,
        holds: dict[str, Hold] | None = None,
    ) -> None:
        self.aliases = aliases
        self.timeout = timeout
        self.subscribed = subscribed
        self.ordinary = self.direct = subscribed if direct is None else direct
        self.holds = {} if holds is None else holds
        self.client = client

    def is_of_another(self, client: object | None) -> bool:
        """Say whether this belongs to a client that still exists and is not *client*."""
        owner = None if self.client is None else self.client()
        return owner is not None and owner is not client


class Notes:
    """All that a storage remembers beside markers.

    :ivar attached: what its clients have said; never empty
    :ivar in_flight: the messages that are being processed
    :ivar warned: what a warning has been written about: channels, and what is wrong with their messages
    :ivar overwriting: by key, the message whose marker replaces the stored one even if that is newer
    """

    def __init__(self) -> None:
        self.attached = [Attachment()]
        self.in_flight = InFlight()
        self.warned: set[tuple[str, str]] = set()
        self.overwriting: dict[str, JsonObject] = {}

    # Clients and their channels

    def attach(self, attachment: Attachment) -> None:
        """Note what a client says when it is opened.

        :param attachment: takes the place of what the same client has said before
        """
        client = None if attachment.client is None else attachment.client()
        others = [other for other in self.attached if other.is_of_another(client)]
        replaced = [old for old in self.attached if old not in others]
        self.attached = [*others, attachment]
        self._decide_what_is_ordinary(*replaced)

    def _decide_what_is_ordinary(self, *replaced: Attachment) -> None:
        simple = not self.overwriting and len(self.attached) == 1
        for client in (*self.attached, *replaced):
            client.ordinary = client.direct if simple and client in self.attached else ()

    def key_of(self, message: JsonObject) -> str:
        """Give the key that the marker of a message is stored under.

        :param message: an event
        :return: the key; empty if the message names no channel
        """
        channel = channel_of(message)
        if not isinstance(channel, str):
            return ""
        for client in self.attached:
            if channel in client.aliases:
                return client.aliases[channel]
        return key_of(channel)

    def is_subscribed(self, key: str) -> bool:
        """Say whether markers are stored under a key.

        :param key: the key of a channel
        """
        if key in self.attached[0].subscribed:
            return True
        return any(key in client.subscribed for client in self.attached)

    # Markers that must not move on

    @property
    def has_holds(self) -> bool:
        """Whether the marker of any key is held."""
        return any(client.holds for client in self.attached)

    def hold_of(self, key: str) -> Hold | None:
        """Give what holds the marker of a key; None if nothing does.

        :param key: the key of a channel
        """
        for client in reversed(self.attached):
            if key in client.subscribed:
                return client.holds.get(key)
        return None

    def is_over(self, key: str, hold: Hold) -> bool:
        """Say whether a marker may move on: all that was to come first is consumed.

        :param key: the key of a channel
        :param hold: what holds its marker
        """
        return hold.is_over and not self.in_flight.has_part_of(key, hold)

    def let_go(self, key: str, hold: Hold) -> None:
        """Forget what has held a marker, unless it is to be held again.

        :param key: the key of a channel
        :param hold: what has held its marker
        """
        if hold.withheld is None and self.is_over(key, hold):
            for client in self.attached:
                if client.holds.get(key) is hold:
                    del client.holds[key]

    # A marker that replaces the stored one even if that is newer

    def overwrite_with(self, key: str, message: JsonObject) -> None:
        """Have a marker replace the stored one, whichever is newer.

        :param key: the key of the channel
        :param message: the message of the marker; :data:`ANY`: the next one of the channel
        """
        self.overwriting[key] = message
        self._decide_what_is_ordinary()

    def overwrites(self, key: str, message: JsonObject) -> bool:
        """Say whether the marker of a message replaces the stored one, whichever is newer.

        :param key: the key of the channel
        :param message: the message
        """
        expected = self.overwriting.get(key)
        # Equal is enough: under MANUAL a program may hand in a copy.
        return expected is not None and (
            expected is ANY or expected is message or expected == message
        )

    def overwritten(self, key: str, message: JsonObject) -> None:
        """Note that the marker of a message has been stored.

        :param key: the key of the channel
        :param message: the message
        """
        if self.overwrites(key, message):
            del self.overwriting[key]
            self._decide_what_is_ordinary()

    def hand_on(self, key: str, message: JsonObject, other: JsonObject) -> None:
        """Have another marker overwrite, if that of *message* was to.

        :param key: the key of the channel
        :param message: a message whose marker is not stored
        :param other: the message whose marker is stored in its place; :data:`ANY`: the next one
        """
        if self.overwrites(key, message):
            self.overwriting[key] = other
