"""When a marker that several subscriptions share may move on."""

from __future__ import annotations

from copy import deepcopy

from aiosfstream._cometd.sharing import Sharing
from aiosfstream._holds import Hold
from tests.table import Message, event

FIRST, SECOND = event("/topic/T", 1), event("/topic/T", 2)


class Sharer:
    """A subscription, as far as it matters."""

    def __init__(self, *, current: bool = True, owed: bool = False) -> None:
        self.current = current
        self.owed = owed


def begun(*received: Message) -> Hold:
    """Make one of which something has come."""
    hold = Hold()
    hold.begin()
    for message in received:
        hold.received(message)
    return hold


def test_it_is_over_when_what_came_until_the_end_is_taken() -> None:
    hold = begun(FIRST, SECOND)
    hold.taken(FIRST)
    hold.end()
    assert not hold.is_over
    assert hold.would_be_over(SECOND)
    # Asking changes nothing.
    assert not hold.is_over
    hold.taken(deepcopy(SECOND))
    assert hold.is_over


def test_it_is_not_over_before_the_end_though_all_is_taken() -> None:
    hold = begun(FIRST)
    assert not hold.would_be_over(FIRST)
    hold.taken(FIRST)
    hold.nothing_left()
    assert not hold.is_over
    hold.received(SECOND)
    hold.end()
    assert not hold.is_over


def test_what_comes_after_the_end_does_not_count() -> None:
    hold = begun(FIRST)
    hold.end()
    hold.received(SECOND)
    hold.taken(FIRST)
    assert hold.is_over
    hold.taken(SECOND)
    assert hold.is_over


def test_where_nothing_has_come_the_end_is_enough() -> None:
    hold = begun()
    hold.end()
    assert hold.is_over


def test_who_waits_for_more_has_taken_all() -> None:
    hold = begun(FIRST, SECOND)
    hold.end()
    hold.nothing_left()
    assert hold.is_over


def test_it_may_begin_again_at_any_time() -> None:
    hold = begun(FIRST)
    hold.end()
    hold.begin()
    hold.taken(FIRST)
    assert not hold.is_over
    hold.end()
    assert hold.is_over


def test_a_key_of_one_subscription_is_never_held() -> None:
    sharing = Sharing({"/topic/T": [Sharer(owed=True)]})
    sharing.added("/topic/T")
    sharing.begin("/topic/T")
    sharing.received("/topic/T", FIRST)
    assert sharing.holds == {}
    assert sharing.unshared == sharing.keys == {"/topic/T"}


def test_a_key_that_was_shared_stays_out_of_the_ordinary() -> None:
    sharers = {"/topic/T": [Sharer()]}
    sharing = Sharing(sharers)
    for count in (1, 2, 1):
        sharers["/topic/T"] = [Sharer()] * count
        sharing.added("/topic/T")
    assert sharing.unshared == set()
    assert sharing.keys == {"/topic/T"}


def test_all_that_share_a_key_must_be_subscribed_and_have_their_backlogs() -> None:
    for other in (Sharer(current=False), Sharer(owed=True)):
        sharing = Sharing({"/topic/T": [Sharer(), other], "/u/x": [Sharer(), Sharer()]})
        sharing.added("/topic/T")
        sharing.added("/u/x")
        sharing.review()
        assert not sharing.holds["/topic/T"].is_over
        assert sharing.holds["/u/x"].is_over
        other.current, other.owed = True, False
        sharing.review()
        assert sharing.holds["/topic/T"].is_over


def test_the_end_of_one_subscription_lets_the_marker_of_the_other_go() -> None:
    sharers = {"/topic/T": [Sharer(owed=True), Sharer()]}
    sharing = Sharing(sharers)
    sharing.added("/topic/T")
    sharers["/topic/T"].pop()
    sharing.review()
    assert sharing.holds["/topic/T"].is_over
