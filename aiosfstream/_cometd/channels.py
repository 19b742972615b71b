"""What each channel has received, and where it resumes.

A session that is renewed has no subscriptions; each channel is subscribed again from the last replay
id that was *received*. Events whose answer was lost come again that way, and what comes twice is
dropped here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from aiocometd.typing import JsonObject

from .._channels import LONGEST, key_of, shown
from .._text import fit
from .backlog import Backlog
from .messages import is_event
from .once import Once
from .salesforce import NEW_EVENTS, ReplayId, is_broad, may_deliver
from .sharing import Sharing

LOGGER = logging.getLogger(__name__)

#: How many events of a channel are remembered at least, to recognise duplicates.
MIN_MEMORY: Final = 1000
#: Names of channels that are remembered at most: a server could make up names without end.
MAX_NAMES: Final = 1000


@dataclass(eq=False, slots=True)
class Subscription:
    """A channel that the application wants, and how far its events have been received.

    :ivar channel: as subscribed, a PushTopic filter's query included
    :ivar key: its name in replay maps and in events
    :ivar start: where the first subscription started, as it was sent; None: the server's choice
    :ivar stamp: the replay id to send in place of what the extensions say; None: theirs stands
    :ivar fell_back: whether the present attempt uses the fallback already
    :ivar resume: the last replay id in order of arrival, or the id that the subscription started
        from; None: no id is known yet
    :ivar seen: a digest of each of the last events, oldest first
    :ivar current: whether the server has accepted it in the present session
    :ivar backlog: the stored events that the server sends first; None once they have all come
    :ivar owed: whether such events may still come, also while it is not current
    :ivar reached: the last replay id of a backlog that comes together with that of another
        subscription of the channel: it becomes the resume point once both are complete
    :ivar overwrite: whether the marker of the next event replaces the stored one even if that is
        newer, because the server has refused it
    :ivar previous: the subscription of the same channel that this one replaces
    """

    channel: str
    key: str
    start: ReplayId = None
    stamp: ReplayId = None
    fell_back: bool = False
    resume: ReplayId = None
    seen: dict[int, None] = field(default_factory=dict)
    current: bool = False
    backlog: Backlog | None = None
    owed: bool = False
    reached: ReplayId = None
    overwrite: bool = False
    previous: Subscription | None = None

    @property
    def sent_start(self) -> ReplayId:
        """The replay id in the last message, or None."""
        return self.start if self.stamp is None else self.stamp

    def stamp_resume_point(self) -> None:
        """Have the next message ask for what comes after the last event."""
        self.stamp = self.start if self.resume is None else self.resume

    def fall_back(self, replay_id: ReplayId) -> None:
        """Start again from *replay_id*; nothing that was received before counts any more."""
        self.fell_back = True
        self.stamp = self.start = replay_id
        self.resume = None
        self.seen = {}
        self.overwrite = True


@dataclass(eq=False, slots=True)
class Ticket:
    """A request under way.

    :ivar request: the message sent
    :ivar epoch: the session it belongs to
    :ivar points: the resume points when it was sent. If its answer is lost, events in it may be older
        than what other answers brought meanwhile, so these are what must be resumed from
    """

    request: JsonObject
    epoch: int
    points: dict[Subscription, ReplayId]


class Channels:
    """The channels of one client, from opening to closing.

    :param limit: the mailbox's limit; the memory for duplicates is sized by it
    :param overwrite: called with the first event after a fallback, whose marker is stored whatever
        is stored
    """

    def __init__(self, limit: int, overwrite: Callable[[JsonObject], None]) -> None:
        self._limit = limit
        self._overwrite = overwrite
        #: What the server has accepted: channel -> subscription.
        self.subscriptions: dict[str, Subscription] = {}
        #: Delivered channel -> subscribed key, where they differ.
        self.aliases: dict[str, str] = {}
        self._active: dict[str, Subscription] = {}
        # Those that the server has refused to resume: a new subscription continues where they were.
        self._given_up: dict[str, Subscription] = {}
        self._by_key: dict[str, list[Subscription]] = {}
        #: What is known of keys, as far as stored markers are concerned.
        self.sharing = Sharing(self._by_key)
        # Those that may bring events of other channels than their own.
        self._broad: list[Subscription] = []
        # Delivered channel -> its subscriptions.
        self._owners: dict[str, tuple[Subscription, ...]] = {}
        # The same for the hot path: where it is just one, which needs no further checks.
        self._sole_owner: dict[str, Subscription] = {}
        # Events that the backlog comes before, in the order of their arrival.
        self._early: list[JsonObject] = []
        self._strangers = Once()
        self._tickets: list[Ticket] = []
        self._largest_response = 0

    # Subscribing

    def add(self, channel: str, replay_id: ReplayId) -> Subscription:
        """Start an explicit subscription; what is remembered of the channel is set aside.

        :param channel: the channel
        :param replay_id: where it starts; None: as the extensions say
        :return: the subscription, to be accepted or restored once the server has answered
        """
        subscription = Subscription(channel, key_of(channel), start=replay_id, stamp=replay_id)
        subscription.previous = self._active.get(channel)
        lost = self._given_up.get(channel)
        if replay_id is None and lost is not None:
            subscription.stamp = subscription.start = lost.resume
            subscription.seen = lost.seen
        self._active[channel] = subscription
        self._index()
        self.sharing.added(subscription.key)
        return subscription

    def accept(self, subscription: Subscription) -> None:
        """Note that the server has accepted *subscription*."""
        self.subscriptions[subscription.channel] = subscription
        self._given_up.pop(subscription.channel, None)
        subscription.previous = None
        self.resumed(subscription)

    def resumed(self, subscription: Subscription) -> None:
        """Note that the server has accepted *subscription* in the present session.

        :param subscription: the channel
        """
        subscription.current = True
        self.sharing.review()

    def restore(self, subscription: Subscription) -> None:
        """Take up again what *subscription*, which has failed, was to replace."""
        if self._active.get(subscription.channel) is not subscription:
            return
        previous, subscription.previous = subscription.previous, None
        if previous is None:
            del self._active[subscription.channel]
        else:
            self._active[subscription.channel] = previous
            self._take_over(subscription, previous)
        self._index()
        self.sharing.review()

    def _take_over(self, meanwhile: Subscription, previous: Subscription) -> None:
        """Continue *previous* with what *meanwhile* knows beyond where that started."""
        start = meanwhile.sent_start
        for ticket in self._tickets:
            point = ticket.points.pop(meanwhile, None)
            known = previous.resume if point in (None, start) else point
            if known is not None:
                ticket.points.setdefault(previous, known)
        if meanwhile.resume not in (None, start):
            previous.resume = meanwhile.resume
        previous.seen.update(meanwhile.seen)

    def forget(self, channel: str) -> None:
        """Remove a channel that the application does not want any more.

        :param channel: as subscribed
        """
        self.subscriptions.pop(channel, None)
        self._given_up.pop(channel, None)
        if self._active.pop(channel, None) is not None:
            self._index()
            self.sharing.review()

    def give_up(self, subscription: Subscription) -> None:
        """Give up a channel that the server refuses. A new subscription continues where it was.

        :param subscription: the channel
        """
        self.forget(subscription.channel)
        if subscription.resume is not None:
            self._given_up[subscription.channel] = subscription

    def fall_back(self, subscription: Subscription, replay_id: ReplayId) -> None:
        """Start *subscription* again from *replay_id*."""
        subscription.fall_back(replay_id)
        self._index()

    def stamp(
        self, message: JsonObject, subscription: Subscription, time: float | None = None
    ) -> None:
        """Put the replay id of *subscription* into *message*, or note the one that is there.

        :param message: a subscribe message
        :param subscription: what it is for
        :param time: the time, in seconds since the epoch
        """
        ext = message.get("ext")
        replay = ext.get("replay") if isinstance(ext, dict) else None
        known = replay if isinstance(replay, dict) else {}
        start = subscription.stamp
        if start is None:
            others = self._by_key.get(subscription.key, ())
            start = _start_beside(others, known.get(subscription.key))
            subscription.start = start
        if start is not None and known.get(subscription.key) != start:
            if not isinstance(ext, dict):
                ext = message["ext"] = {}
            ext["replay"] = {**known, subscription.key: start}
        subscription.current = False
        self._note_start(subscription, time)

    def _note_start(self, subscription: Subscription, time: float | None) -> None:
        """Make what a subscription starts from its resume point, until an event brings a later one.

        "New events" is no resume point: starting from there again would not bring what was missed.
        """
        start = subscription.sent_start
        subscription.backlog = None
        subscription.owed = False
        if start is None or start == NEW_EVENTS:
            return
        if time is not None:
            subscription.backlog = Backlog(time)
            subscription.owed = True
            self.sharing.begin(subscription.key)
        if subscription.resume is None:
            subscription.resume = start
        # The first events may come in the answer to a request that is under way already.
        for ticket in self._tickets:
            ticket.points.setdefault(subscription, start)

    # Requests under way

    def send(self, request: JsonObject, epoch: int) -> Ticket:
        """Note that *request* is about to be sent.

        :param request: the message
        :param epoch: the session that it belongs to
        :return: the ticket to report its outcome with, by receive() or abandon()
        """
        points = {
            subscription: subscription.resume
            for subscription in self._active.values()
            if subscription.resume is not None
        }
        ticket = Ticket(request, epoch, points)
        self._tickets.append(ticket)
        return ticket

    def abandon(self, ticket: Ticket, *, lost: bool) -> None:
        """Note that a request brought no answer.

        :param ticket: the request
        :param lost: whether the server may have put events into an answer that is gone
        """
        sent_later = self._tickets[self._tickets.index(ticket) + 1 :]
        self._tickets.remove(ticket)
        if lost:
            _rewind(ticket)
            # Their points may be later than what was lost, and are resumed from if they are lost too.
            for other in sent_later:
                other.points.update(ticket.points)

    def rewind(self, epoch: int) -> None:
        """Go back to where each request under way started, since the session is given up.

        Requests of earlier sessions do not count: this was done for them when those were given up.

        :param epoch: the session that is given up
        """
        # They come again as well.
        self._early.clear()
        for subscription in self._active.values():
            subscription.current = False
            subscription.backlog = subscription.reached = None
        # The oldest request last, as its points are the ones furthest back.
        for ticket in reversed(self._tickets):
            if ticket.epoch == epoch:
                _rewind(ticket)

    # Events

    def receive(
        self, messages: list[JsonObject], ticket: Ticket, *, left: int = 0
    ) -> tuple[list[JsonObject], list[JsonObject]]:
        """Take the events out of the messages of an answer.

        :param messages: the messages
        :param ticket: the request that they answer, of the present session
        :param left: how many messages of the same answer are still to be taken
        :return: the events to deliver, and the other messages
        """
        if not left:
            self._tickets.remove(ticket)
        # A reply to a publish may look like an event.
        publishing = "data" in ticket.request
        sole_owner = {} if publishing else self._sole_owner
        events: list[JsonObject] = []
        others: list[JsonObject] = []
        for message in messages:
            # The common case in as few operations as can be: this loop is the hot path.
            try:
                channel = message["channel"]
                subscription = sole_owner[channel]
                data = message["data"]
                event = data["event"]
                replay_id = event["replayId"]
                identity = event.get("EventUuid") or event.get("createdDate") or _identity_of(data)
                # As in digest_of(): calling that would take a tenth of the time of an event.
                digest = hash(f"{channel} {replay_id!r} {identity}")
                backlog = subscription.backlog
                if (
                    replay_id is not None
                    and digest not in subscription.seen
                    and (backlog is None or not backlog.is_before(data))
                ):
                    subscription.seen[digest] = None
                    subscription.resume = replay_id
                    events.append(message)
                    continue
            except (KeyError, TypeError):
                pass
            if not is_event(message) or (publishing and "successful" in message):
                others.append(message)
            elif self._is_news(message):
                events.append(message)
        if events:
            self._limit_memory(len(events) + left)
        return events, others

    def _is_news(self, message: JsonObject) -> bool:
        """Say whether an event is to be delivered, and move the resume points of its subscriptions on."""
        channel = message.get("channel")
        if not isinstance(channel, str):
            if self._strangers.is_new(channel):
                LOGGER.warning(
                    "Ignored a message with data whose channel is %s and no name; look at what is published",
                    shown(channel),
                )
            return False
        owners = self._owners_of(channel)
        if not owners:
            self._note_stranger(channel)
            return True
        data = message["data"]
        replay_id = _replay_id_of(data)
        if replay_id is None:
            return True
        if any(owner.backlog is not None and owner.backlog.is_before(data) for owner in owners):
            self._early.append(message)
            return False
        digest = digest_of(channel, replay_id, data)
        is_duplicate = any(digest in owner.seen for owner in owners)
        for owner in owners:
            owner.seen[digest] = None
        # Of a duplicate as well: after a resume point was set back, it is how that moves on again.
        _move_on(owners, replay_id)
        if is_duplicate:
            if LOGGER.isEnabledFor(logging.DEBUG):
                what = shown(channel), fit(repr(replay_id), limit=100)
                LOGGER.debug("Dropped a duplicate on %s: replay id %s", *what)
            return False
        self.sharing.received(key_of(channel), message)
        self._overwrite_marker(message, owners)
        return True

    @property
    def has_backlog(self) -> bool:
        """Whether events of a backlog may still come before others."""
        return any(
            one.backlog is not None or (one.owed and one.current) for one in self._active.values()
        )

    @property
    def early(self) -> int:
        """How many events wait for a backlog."""
        return len(self._early)

    def settle(self) -> list[JsonObject]:
        """Note that the backlogs are complete, and give the events that have waited for them."""
        for subscription in self._active.values():
            subscription.backlog = None
            if subscription.current:
                subscription.owed = False
                if subscription.reached is not None:
                    subscription.resume = subscription.reached
            subscription.reached = None
        self.sharing.review()
        early, self._early = self._early, []
        return [message for message in early if self._is_news(message)]

    def _overwrite_marker(self, message: JsonObject, owners: tuple[Subscription, ...]) -> None:
        waiting = [owner for owner in owners if owner.overwrite]
        if waiting:
            for owner in waiting:
                owner.overwrite = False
            self._overwrite(message)
            self._index()

    def _owners_of(self, channel: str) -> tuple[Subscription, ...]:
        """Give the subscriptions that an event may belong to."""
        if len(channel) > LONGEST:
            # Remembering it would let a server fill the memory with names.
            return tuple(self._find_owners(key_of(channel)))
        if channel not in self._owners:
            if len(self._owners) >= MAX_NAMES:
                self._owners.clear()
            self._owners[channel] = owners = tuple(self._find_owners(key_of(channel)))
            if owners:
                self._note_alias(channel, owners)
        return self._owners[channel]

    def _find_owners(self, key: str) -> list[Subscription]:
        broad = [one for one in self._broad if one.key != key and may_deliver(one.key, key)]
        # Of several custom channels or wildcards nobody can say which has brought it.
        return self._by_key.get(key, []) + (broad if len(broad) == 1 else [])

    def _note_alias(self, channel: str, owners: tuple[Subscription, ...]) -> None:
        """Note under which key the marker of an event is stored: that of its own channel, if any."""
        keys = {owner.key for owner in owners}
        if key_of(channel) in keys:
            return
        # The newest last, and the oldest forgotten.
        self.aliases.pop(channel, None)
        self.aliases[channel] = owners[0].key
        if len(self.aliases) > MAX_NAMES:
            del self.aliases[next(iter(self.aliases))]

    def _note_stranger(self, channel: str) -> None:
        if self._strangers.is_new(channel):
            LOGGER.warning(
                "An event arrived on %s, which belongs to no subscription: it is delivered, but"
                " cannot be resumed from; subscribe to its channel",
                shown(channel),
            )

    def _limit_memory(self, count: int) -> None:
        self._largest_response = max(self._largest_response, count)
        size = max(MIN_MEMORY, self._limit + self._largest_response)
        for subscription in self._active.values():
            excess = len(subscription.seen) - size
            # In bulk, so that the cost of an event does not grow with the memory.
            if excess > size:
                subscription.seen = dict.fromkeys(islice(subscription.seen, excess, None))

    def _index(self) -> None:
        """Build the look-up tables anew."""
        self._owners.clear()
        self._by_key.clear()
        for subscription in self._active.values():
            self._by_key.setdefault(subscription.key, []).append(subscription)
        self._broad = [one for one in self._active.values() if is_broad(one.key)]
        self._sole_owner = {}
        for key in self._by_key:
            first, *others = self._find_owners(key)
            if not others and not first.overwrite:
                self._sole_owner[key] = first
        for channel in self.aliases.keys() & self._by_key.keys():
            del self.aliases[channel]


def _start_beside(others: Iterable[Subscription], stored: ReplayId) -> ReplayId:
    """Give the id that a subscription starts from: the stored one, or where another of its key has started.

    While the backlog of another comes and is consumed, the stored marker moves on, and passes events
    that only the new one brings.
    """
    for other in others if stored is not None else ():
        if other.owed and other.stamp is None:
            return other.start
    return stored


def _move_on(owners: tuple[Subscription, ...], replay_id: ReplayId) -> None:
    """Move the resume points of subscriptions on, with an event that may belong to any of them."""
    backlogs = [owner for owner in owners if owner.backlog is not None]
    if len(backlogs) > 1:
        # Nobody can say which backlog it is part of, so none may move past it yet.
        for owner in backlogs:
            owner.reached = replay_id
        return
    # It must not set back a subscription whose backlog is complete, nor move one that has none yet.
    for owner in backlogs or [owner for owner in owners if owner.current] or owners:
        owner.resume = replay_id


def _rewind(ticket: Ticket) -> None:
    for subscription, resume in ticket.points.items():
        subscription.resume = resume


def _replay_id_of(data: Any) -> ReplayId:
    event = data.get("event") if isinstance(data, dict) else None
    return event.get("replayId") if isinstance(event, dict) else None


def digest_of(channel: str, replay_id: ReplayId, data: JsonObject) -> int:
    """Give a number that is the same for two copies of an event, and for no two events.

    Replay ids are no identity by themselves: they begin again after an org was migrated or restored
    (Streaming API Developer Guide, "Message Durability"). A digest, since ids may be long.

    :param channel: the channel that it was delivered on
    :param replay_id: its replay id
    :param data: the event's ``data``, with a dict under ``event``
    """
    return hash(f"{channel} {replay_id!r} {_identity_of(data)}")


def _identity_of(data: JsonObject) -> object:
    """Give what identifies an event beside its replay id."""
    event = data["event"]
    identity = event.get("EventUuid") or event.get("createdDate")
    if identity:
        return identity
    payload = data.get("payload")
    if payload.__class__ is not dict:
        return data
    header = payload.get("ChangeEventHeader")
    if header.__class__ is dict:
        # The CreatedDate beside it is that of the record.
        date = header.get("commitTimestamp")
        return date or (header.get("transactionKey"), header.get("sequenceNumber"))
    return payload.get("EventUuid") or payload.get("CreatedDate") or data
