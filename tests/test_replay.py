"""Markers: which one is stored, where it is read from, and that it never runs ahead."""

import asyncio
import collections
import logging
import pickle
import shelve
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiosfstream import replay
from aiosfstream._dates import instant
from aiosfstream.exceptions import ReplayError
from aiosfstream.replay import (
    ConstantReplayId,
    DefaultMappingStorage,
    DefaultReplayIdMixin,
    MappingStorage,
    ReplayMarker,
    ReplayMarkerStorage,
    ReplayOption,
    attach,
    direct_store_of,
    flush,
    open_for,
    overwrite_with,
    read_marker,
    should_store,
    store_marker,
)
from tests.markers import (
    CHANNEL,
    MIDDLE,
    NEW,
    OLD,
    TOPIC,
    SlowStorage,
    change,
    generic,
    notes_of,
    platform,
    push_topic,
    store_directly,
)

DATA = Path(__file__).parent / "data"

Message = dict[str, Any]


class BareStorage(ReplayMarkerStorage):
    """A storage whose author forgot to call the inherited constructor."""

    def __init__(self, marker: ReplayMarker | None = None, error: BaseException | None = None):
        self.marker, self.error = marker, error

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        if self.error is not None:
            raise self.error
        return self.marker

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        self.marker = replay_marker


# The rule


@pytest.mark.parametrize(
    ("stored", "new", "expected"),
    [
        (OLD, NEW, True),
        (NEW, OLD, False),
        (OLD, OLD, True),
        ("2017-04-09T18:31:40Z", "2017-04-09T18:31:40.000Z", True),
        ("2017-04-09T18:31:40.000Z", "2017-04-09T18:31:40Z", True),
        ("2017-04-09T18:31:40.517Z", "2017-04-09T18:31:40Z", False),
        ("2017-04-09T18:31:40Z", "2017-04-09T18:31:40.517Z", True),
        ("2017-04-09T18:31:40.517+0000", "2017-04-09T18:31:40.517Z", True),
        ("2017-04-09T18:31:40.517Z", "2017-04-09T18:31:40.516+0000", False),
        ("2017-04-09T19:31:40.517+0100", "2017-04-09T18:31:40.518+0000", True),
        ("2017-04-09T18:31:40.517+0000", "2017-04-09T19:31:40.516+0100", False),
        ("2017-04-09T18:31:40.517+00:00", "2017-04-09T13:31:40.518-05:00", True),
        ("1501010206653", "1501010206654", True),
        ("1501010206654", "1501010206653", False),
        ("999999999999", "1000000000000", True),
        ("1000000000000", "999999999999", False),
        # An epoch and a date: 1501010206653 is 2017-07-25T19:16:46.653Z.
        ("1501010206653", "2017-07-25T19:16:46.652Z", False),
        ("1501010206653", "2017-07-25T19:16:46.654Z", True),
        ("2017-07-25T19:16:46.654Z", "1501010206653", False),
        ("2017-07-25T19:16:46.652Z", "1501010206653", True),
        # Dates that nobody can understand are older than any other, and than nothing.
        ("", OLD, True),
        ("None", "1501010206653", True),
        ("yesterday", OLD, True),
        (OLD, "", False),
        (OLD, "yesterday", False),
        ("yesterday", "", True),
        ("", "yesterday", True),
        ("", "", True),
    ],
)
def test_a_marker_is_stored_unless_the_stored_one_is_newer(
    stored: str, new: str, expected: bool
) -> None:
    assert should_store(ReplayMarker(stored, 1), ReplayMarker(new, 2)) is expected


@pytest.mark.parametrize(
    ("stored", "new", "expected"),
    [
        ((OLD, 180), (OLD, 181), True),
        ((OLD, 181), (OLD, 180), False),
        ((OLD, 9), (OLD, 10), True),
        ((OLD, 10), (OLD, 9), False),
        ((OLD, 2**64), (OLD, 2**63), False),
        ((OLD, 5), (OLD, 5), True),
        # The same moment, written in another way.
        ((OLD, 181), ("2017-04-09T18:31:40.517+0000", 180), False),
        ((OLD, 180), ("2017-04-09T18:31:40.517+0000", 181), True),
        (("1501010206653", 7), ("1501010206653", 6), False),
        # Ids that are no numbers have no order: the last one counts.
        ((OLD, "b"), (OLD, "a"), True),
        ((OLD, 7), (OLD, "a"), True),
        ((OLD, "a"), (OLD, 7), True),
        ((OLD, -2), (OLD, 7), True),
        ((OLD, 7), (OLD, -2), True),
        ((OLD, True), (OLD, 0), True),
        # Ids begin again after a migration: dates count first.
        ((OLD, 181), (NEW, 1), True),
        ((NEW, 1), (OLD, 181), False),
        # Of what has no date nothing is known.
        (("", 181), ("", 180), True),
        (("?", 181), ("", 180), True),
    ],
)
def test_events_of_one_moment_are_in_the_order_of_their_ids(
    stored: tuple[str, Any], new: tuple[str, Any], expected: bool
) -> None:
    assert should_store(ReplayMarker(*stored), ReplayMarker(*new)) is expected


@pytest.mark.parametrize("form", ["iso", "offset", "milliseconds"])
def test_a_date_in_the_far_future_counts_as_unknown(form: str) -> None:
    def dated(seconds: float) -> str:
        moment = datetime.fromtimestamp(time.time() + seconds, timezone.utc)
        if form == "milliseconds":
            return str(int(moment.timestamp() * 1000))
        return moment.strftime("%Y-%m-%dT%H:%M:%S.000" + ("Z" if form == "iso" else "+0000"))

    now, clock_is_wrong, forged = dated(0), dated(80_000), dated(90_000)
    assert instant(forged) == float("-inf")
    assert should_store(ReplayMarker(now, 1), ReplayMarker(clock_is_wrong, 2))
    assert not should_store(ReplayMarker(now, 1), ReplayMarker(forged, 2))
    assert should_store(ReplayMarker(forged, 1), ReplayMarker(now, 2))
    assert should_store(ReplayMarker("9999-12-31T23:59:59.000Z", 1), ReplayMarker(now, 2))
    assert not should_store(ReplayMarker(now, 1), ReplayMarker("9999-12-31T23:59:59.000Z", 2))


async def test_a_forged_date_does_not_stop_the_marker() -> None:
    storage = MappingStorage({})
    for number, date in enumerate([OLD, "9999-12-31T23:59:59.999Z", MIDDLE, NEW]):
        await store_directly(storage, platform(number, date))
    assert storage.mapping[CHANNEL] == ReplayMarker(NEW, 3)


def test_the_first_marker_is_stored() -> None:
    assert should_store(None, ReplayMarker("", 1))


dates = st.one_of(
    st.datetimes(timezones=st.timezones()).map(lambda d: d.isoformat(timespec="milliseconds")),
    st.datetimes().map(lambda d: d.isoformat(timespec="milliseconds") + "Z"),
    st.datetimes().map(lambda d: d.isoformat(timespec="seconds") + "Z"),
    st.datetimes().map(lambda d: d.isoformat(timespec="milliseconds") + "+0000"),
    st.datetimes().map(lambda d: d.isoformat(timespec="milliseconds") + "-0800"),
    st.integers(0, 2**45).map(str),
    st.sampled_from(["", "None", "?"]),
)


@given(dates, dates)
def test_the_rule_is_the_order_of_the_instants_whatever_short_cut_it_takes(a: str, b: str) -> None:
    assert should_store(ReplayMarker(a, 1), ReplayMarker(b, 2)) is (instant(a) <= instant(b))


# The date of an event


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (platform(1, OLD), OLD),
        (push_topic(1, OLD), OLD),
        (generic(1, OLD), OLD),
        (change(1), "1501010206653"),
        (change(1, "1501010206653"), "1501010206653"),
        (platform(1, 5), "5"),
    ],
)
def test_the_date_of_an_event(message: Message, expected: str) -> None:
    assert ReplayMarkerStorage.get_message_date(message) == expected
    assert MappingStorage({}).get_message_date(message) == expected


@pytest.mark.parametrize(
    "message",
    [
        {"channel": CHANNEL},
        {"channel": CHANNEL, "data": None},
        {"channel": CHANNEL, "data": []},
        {"channel": CHANNEL, "data": {"event": {"replayId": 1}}},
        {"channel": CHANNEL, "data": {"event": {"createdDate": None}}},
        {"channel": CHANNEL, "data": {"event": {"createdDate": True}}},
        {"channel": CHANNEL, "data": {"event": [], "payload": "text"}},
        platform(1, None),
        platform(1, ""),
        platform(1, {}),
        # The date of the record is not that of its change.
        change(1, None),
        change(1, {}),
        {"channel": CHANNEL, "data": {"payload": {"ChangeEventHeader": {}, "CreatedDate": OLD}}},
        {"channel": CHANNEL, "data": {"payload": {"ChangeEventHeader": 1, "CreatedDate": OLD}}},
    ],
)
def test_a_message_without_a_date(message: Message) -> None:
    with pytest.raises(
        ReplayError, match=f"No message creation date found .* {message['channel']}"
    ):
        ReplayMarkerStorage.get_message_date(message)


# Asking for a replay


async def test_a_handshake_announces_the_extension() -> None:
    message: Message = {"channel": "/meta/handshake", "ext": {"other": 1}}
    bare: Message = {"channel": "/meta/handshake"}
    await ConstantReplayId(-1).outgoing([message, bare], {})
    assert message["ext"] == {"other": 1, "replay": True}
    assert bare["ext"] == {"replay": True}


@pytest.mark.parametrize("channel", ["/meta/connect", "/meta/unsubscribe", CHANNEL])
async def test_other_messages_are_left_alone(channel: str) -> None:
    message: Message = {"channel": channel, "subscription": CHANNEL}
    await ConstantReplayId(-1).outgoing([message], {})
    await ConstantReplayId(-1).incoming([message])
    assert message == {"channel": channel, "subscription": CHANNEL}


@pytest.mark.parametrize("replay_id", [12, 0, -1, "AAAB", "", 1.5, [1]])
async def test_a_subscription_starts_after_the_marker(replay_id: Any) -> None:
    message: Message = {"channel": "/meta/subscribe", "subscription": CHANNEL, "ext": {"other": 1}}
    await MappingStorage({CHANNEL: ReplayMarker(OLD, replay_id)}).outgoing([message], {})
    assert message["ext"] == {"other": 1, "replay": {CHANNEL: replay_id}}


async def test_a_filter_is_no_part_of_the_name_of_a_channel() -> None:
    message: Message = {"channel": "/meta/subscribe", "subscription": f"{TOPIC}?Status='?'"}
    await MappingStorage({TOPIC: 7}).outgoing([message], {})
    assert message["ext"] == {"replay": {TOPIC: 7}}


async def test_a_slash_at_the_end_is_no_part_of_the_name_of_a_channel() -> None:
    message: Message = {"channel": "/meta/subscribe", "subscription": f"{CHANNEL}/"}
    storage = MappingStorage({CHANNEL: 7})
    await storage.outgoing([message], {})
    assert message["ext"] == {"replay": {CHANNEL: 7}}
    await storage.extract_replay_id(platform(8, channel=f"{CHANNEL}/"))
    assert storage.mapping == {CHANNEL: ReplayMarker(NEW, 8)}


def subscription(channel: str = CHANNEL) -> Message:
    """Return a subscribe message."""
    return {"channel": "/meta/subscribe", "subscription": channel}


async def test_a_fallback_that_the_application_sets_is_used_once() -> None:
    storage = MappingStorage({CHANNEL: ReplayMarker(NEW, 90), TOPIC: ReplayMarker(NEW, 91)})
    storage.replay_fallback = ReplayOption.ALL_EVENTS
    messages = [subscription(), subscription(TOPIC)]
    await storage.outgoing(messages, {})
    assert [message["ext"]["replay"] for message in messages] == [{CHANNEL: -2}, {TOPIC: 91}]
    assert type(messages[0]["ext"]["replay"][CHANNEL]) is int
    assert storage.replay_fallback is None
    # The marker that was of no use does not outlast the events that come now.
    for number, date in ((1, MIDDLE), (2, OLD)):
        await store_marker(storage, platform(number, date))
    assert storage.mapping[CHANNEL] == ReplayMarker(MIDDLE, 1)


@pytest.mark.parametrize("value", ["mine", True, object(), lambda: 3, {"a": 1}])
async def test_what_a_subclass_keeps_under_that_name_is_left_alone(value: Any) -> None:
    class Storage(MappingStorage):
        replay_fallback = value

    storage, message = Storage({CHANNEL: 7}), subscription()
    await storage.outgoing([message], {})
    assert message["ext"]["replay"] == {CHANNEL: 7}
    assert Storage.replay_fallback is value

    class Property(MappingStorage):
        @property
        def replay_fallback(self) -> Any:  # type: ignore[override]
            return -2

    message = subscription()
    await Property({CHANNEL: 7}).outgoing([message], {})
    assert message["ext"]["replay"] == {CHANNEL: 7}


async def test_without_a_marker_nothing_is_asked_for() -> None:
    message: Message = {"channel": "/meta/subscribe", "subscription": CHANNEL}
    await MappingStorage({}).outgoing([message], {})
    assert "ext" not in message


async def test_options_are_sent_as_numbers() -> None:
    message: Message = {"channel": "/meta/subscribe", "subscription": CHANNEL}
    await ConstantReplayId(ReplayOption.ALL_EVENTS).outgoing([message], {})
    assert type(message["ext"]["replay"][CHANNEL]) is int
    assert message["ext"]["replay"] == {CHANNEL: -2}


async def test_an_overridden_get_replay_id_is_honoured() -> None:
    class Storage(MappingStorage):
        async def get_replay_id(self, subscription: str) -> int:
            return 99

    message: Message = {"channel": "/meta/subscribe", "subscription": CHANNEL}
    await Storage({}).outgoing([message], {})
    assert message["ext"]["replay"] == {CHANNEL: 99}


async def test_a_storage_that_cannot_be_read_is_a_replay_error() -> None:
    message: Message = {"channel": "/meta/subscribe", "subscription": CHANNEL}
    with pytest.raises(
        ReplayError, match=f"channel {CHANNEL} could not be read: OSError"
    ) as caught:
        await BareStorage(error=OSError("disk")).outgoing([message], {})
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("error", [ReplayError("own words"), asyncio.CancelledError()])
async def test_our_errors_and_cancellation_pass_through_reading(error: BaseException) -> None:
    message: Message = {"channel": "/meta/subscribe", "subscription": CHANNEL}
    with pytest.raises(type(error)) as caught:
        await BareStorage(error=error).outgoing([message], {})
    assert caught.value is error


# Storing


@pytest.mark.parametrize(
    ("message", "marker"),
    [
        (platform(3, OLD), ReplayMarker(OLD, 3)),
        (push_topic("abc", OLD), ReplayMarker(OLD, "abc")),  # type: ignore[arg-type]
        (generic(0, OLD), ReplayMarker(OLD, 0)),
        (change(4), ReplayMarker("1501010206653", 4)),
    ],
)
async def test_the_marker_of_a_message_is_stored(message: Message, marker: ReplayMarker) -> None:
    storage = MappingStorage({})
    await storage.extract_replay_id(message)
    assert storage.mapping == {message["channel"]: marker}
    assert type(storage.mapping[message["channel"]]) is ReplayMarker


async def test_a_replayed_message_does_not_move_the_marker_back() -> None:
    storage = MappingStorage({})
    for message in (platform(5, NEW), platform(3, OLD)):
        await storage.extract_replay_id(message)
    assert storage.mapping == {CHANNEL: ReplayMarker(NEW, 5)}


async def test_a_message_without_a_date_is_the_oldest(caplog: pytest.LogCaptureFixture) -> None:
    storage = MappingStorage({})
    for replay_id in (1, 2):
        await storage.extract_replay_id(platform(replay_id, None))
    assert storage.mapping == {CHANNEL: ReplayMarker("", 2)}
    await storage.extract_replay_id(platform(3, OLD))
    await storage.extract_replay_id(platform(4, None))
    assert storage.mapping == {CHANNEL: ReplayMarker(OLD, 3)}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"A message on {CHANNEL} has no date" in caplog.text


@pytest.mark.parametrize(
    "message",
    [
        platform(None),
        {"channel": CHANNEL},
        {"channel": CHANNEL, "data": {"event": 3}},
        {"data": {"event": {"replayId": 1}}},
        platform(1, OLD, channel=None),
        platform(1, OLD, channel=[]),
    ],
)
async def test_a_message_without_id_or_channel_is_passed_over(
    message: Message, caplog: pytest.LogCaptureFixture
) -> None:
    storage = MappingStorage({})
    for _ in range(3):
        await storage.extract_replay_id(message)
    assert storage.mapping == {}
    assert len(caplog.records) == 1
    assert "is not stored" in caplog.text


async def test_warnings_are_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(replay, "MAX_NAMES", 3)
    storage = MappingStorage({})
    for number in range(10):
        await storage.extract_replay_id(platform(None, channel=f"/event/{number}"))
    assert len(caplog.records) == 3


ODD = "/event/A__e\x1b[2J\nERROR forged\u2028" + "x" * 100_000


async def test_whatever_a_channel_is_called_is_one_short_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A server can write no line of its own into a log, and nothing that controls a terminal."""
    storage = SlowStorage()
    texts: list[str] = []
    await storage.extract_replay_id(platform(1, date=None, channel=ODD))
    with pytest.raises(ReplayError) as no_date:
        storage.get_message_date(platform(1, date=None, channel=ODD))
    with pytest.raises(ZeroDivisionError):
        async with storage(platform(2, channel=ODD)):
            raise ZeroDivisionError
    storage.failures = [OSError(ODD)]
    with pytest.raises(ReplayError) as not_stored:
        async with storage(platform(3, channel=ODD)):
            pass
    abandoned = storage(platform(4, channel=ODD))
    await abandoned.__aenter__()
    with pytest.raises(ReplayError) as once:
        await abandoned.__aenter__()
    await abandoned.__aexit__(asyncio.CancelledError, asyncio.CancelledError(), None)
    texts = [str(error.value) for error in (no_date, not_stored, once)]
    texts += [record.getMessage() for record in caplog.records]
    assert len(texts) >= 6
    for text in texts:
        assert text.isprintable(), text
        assert len(text) < 1000
        assert "/event/A__e" in text


async def test_a_marker_belongs_to_the_subscription() -> None:
    storage = MappingStorage({})
    attach(storage, {"/event/A": "/event/*"})
    await storage.extract_replay_id(platform(1, channel="/event/A"))
    await storage.extract_replay_id(platform(2, channel=f"{TOPIC}?a=b"))
    assert storage.mapping == {"/event/*": ReplayMarker(NEW, 1), TOPIC: ReplayMarker(NEW, 2)}


async def test_the_first_message_behind_a_fallback_overwrites_and_no_other() -> None:
    storage = MappingStorage({CHANNEL: ReplayMarker(NEW, 90)})
    before, first, second = platform(91, OLD), platform(1, MIDDLE), platform(2, OLD)
    overwrite_with(storage, first)
    await storage.extract_replay_id(before)
    assert storage.mapping[CHANNEL] == ReplayMarker(NEW, 90)
    await storage.extract_replay_id(platform(7, OLD, channel="/event/Other__e"))
    await storage.extract_replay_id(dict(first))
    assert storage.mapping[CHANNEL] == ReplayMarker(MIDDLE, 1)
    await storage.extract_replay_id(second)
    assert storage.mapping[CHANNEL] == ReplayMarker(MIDDLE, 1)


async def test_overwriting_waits_until_it_has_succeeded() -> None:
    storage = SlowStorage()
    storage.markers[CHANNEL] = ReplayMarker(NEW, 90)
    storage.failures = [OSError("disk"), asyncio.CancelledError()]
    message = platform(1, OLD)
    overwrite_with(storage, message)
    with pytest.raises(ReplayError, match=f"channel {CHANNEL} could not be stored: OSError"):
        await storage.extract_replay_id(message)
    with pytest.raises(asyncio.CancelledError):
        await storage.extract_replay_id(message)
    await storage.extract_replay_id(message)
    assert storage.markers[CHANNEL] == ReplayMarker(OLD, 1)


async def test_a_storage_that_fails_is_a_replay_error() -> None:
    storage = SlowStorage()
    storage.failures = [KeyError("k" * 5000)]
    with pytest.raises(ReplayError, match=f"channel {CHANNEL} could not be stored") as caught:
        await storage.extract_replay_id(platform(1))
    assert isinstance(caught.value.__cause__, KeyError)
    assert len(str(caught.value)) < 500
    storage.failures = [ReplayError("own words")]
    with pytest.raises(ReplayError, match=r"^own words$"):
        await storage.extract_replay_id(platform(1))


async def test_a_subclass_need_not_call_the_constructor() -> None:
    storage = BareStorage()
    await storage.extract_replay_id(platform(1))
    async with storage(platform(2)):
        assert storage.marker == ReplayMarker(NEW, 1)
    assert storage.marker == ReplayMarker(NEW, 2)
    assert await storage.get_replay_id(CHANNEL) == 2
    await flush(storage)
    assert direct_store_of(storage) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["event", "payload", "ChangeEventHeader", "replayId", "createdDate"])
            | st.sampled_from(["CreatedDate", "commitTimestamp"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
messages = st.fixed_dictionaries(
    {}, optional={"channel": st.just(CHANNEL) | json_values, "data": json_values, "id": json_values}
)


@given(st.lists(messages, max_size=4))
def test_no_message_is_too_strange_to_be_stored(received: list[Message]) -> None:
    storage = MappingStorage({})
    store = direct_store_of(storage)
    assert store is not None

    async def extract() -> None:
        for message in received:
            await storage.extract_replay_id(message)
            async with storage(message):
                pass

    asyncio.run(extract())
    for message in received:
        if not store(message):
            asyncio.run(storage.extract_replay_id(message))
    assert all(isinstance(marker, ReplayMarker) for marker in storage.mapping.values())


# The mapping


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (ReplayMarker(OLD, 5), ReplayMarker(OLD, 5)),
        ((OLD, 5), ReplayMarker(OLD, 5)),
        ([OLD, 5], ReplayMarker(OLD, 5)),
        ([None, 5], ReplayMarker("", 5)),
        (5, ReplayMarker("", 5)),
        (0, ReplayMarker("", 0)),
        ("abc", ReplayMarker("", "abc")),  # type: ignore[arg-type]
        (ReplayOption.ALL_EVENTS, ReplayMarker("", -2)),
        ({"date": OLD, "replay_id": 5}, ReplayMarker(OLD, 5)),
        ({"date": None, "replay_id": "x", "more": 1}, ReplayMarker("", "x")),  # type: ignore[arg-type]
        ({"replay_id": 0}, ReplayMarker("", 0)),
        ((1401010206653, 5), ReplayMarker("1401010206653", 5)),
        (None, None),
    ],
)
async def test_what_a_mapping_may_hold(value: Any, expected: ReplayMarker | None) -> None:
    storage = MappingStorage({CHANNEL: value})
    assert await storage.get_replay_marker(CHANNEL) == expected
    assert await storage.get_replay_id(CHANNEL) == (expected.replay_id if expected else None)
    await storage.extract_replay_id(platform(6, OLD))
    assert storage.mapping[CHANNEL] == ReplayMarker(OLD, 6)


@pytest.mark.parametrize(
    "value",
    [
        b"5",
        bytearray(b"5"),
        [1, 2, 3],
        [OLD],
        [],
        (OLD, None),
        (OLD, [1]),
        (["x"], 5),
        {},
        {"date": OLD},
        {"date": OLD, "replay_id": None},
        {"replayId": 5},
        {5},
        object(),
        True,
        False,
        float("nan"),
        float("inf"),
    ],
)
async def test_what_is_no_marker_is_an_error_that_names_it(value: Any) -> None:
    storage = MappingStorage({CHANNEL: value})
    for attempt in (
        storage.get_replay_marker(CHANNEL),
        storage.get_replay_id(CHANNEL),
        storage.outgoing([subscription()], {}),
        store_directly(storage, platform(6)),
    ):
        with pytest.raises(ReplayError, match="no replay marker") as caught:
            await attempt
        assert CHANNEL in str(caught.value)
        assert repr(value)[:40] in str(caught.value)
    assert storage.mapping[CHANNEL] is value


def test_the_error_is_short_however_deep_or_long_the_value_is() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, b"x" * 10**7, {"replay_id": deep}, ["x" * 10**7] * 3):
        with pytest.raises(ReplayError, match="no replay marker") as caught:
            read_marker(CHANNEL, value)
        assert len(str(caught.value)) < 1000


async def test_a_mapping_answers_by_its_own_means() -> None:
    class Asking(dict[str, Any]):
        def __missing__(self, key: str) -> Any:
            if key == CHANNEL:
                return 17
            raise KeyError(key)

    class Inventing(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            return ReplayMarker(OLD, len(key))

    defaults = collections.defaultdict[str, Any](lambda: ReplayOption.ALL_EVENTS)
    assert await MappingStorage(defaults).get_replay_id(CHANNEL) == -2
    assert await MappingStorage(Asking()).get_replay_id(CHANNEL) == 17
    assert await MappingStorage(Asking()).get_replay_id(TOPIC) is None
    assert await MappingStorage(Inventing()).get_replay_id(TOPIC) == len(TOPIC)
    await store_directly(MappingStorage(defaults), platform(5, OLD))
    assert defaults[CHANNEL] == ReplayMarker(OLD, 5)


async def test_a_mapping_that_cannot_be_asked_is_an_error_with_its_cause() -> None:
    class Broken(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            raise OSError("disk")

    with pytest.raises(ReplayError, match=f"channel {CHANNEL} could not be read: OSError: disk"):
        await MappingStorage(Broken()).outgoing([subscription()], {})


@pytest.mark.parametrize("mapping", [None, [], "text", MappingProxyType({})])
def test_a_mapping_must_be_mutable(mapping: Any) -> None:
    expected = "mapping parameter should be an instance of MutableMapping"
    with pytest.raises(TypeError, match=expected):
        MappingStorage(mapping)
    with pytest.raises(TypeError, match=expected):
        DefaultMappingStorage(mapping, -1)


async def test_a_default_serves_channels_without_a_marker() -> None:
    storage = DefaultMappingStorage({CHANNEL: ReplayMarker(OLD, 0)}, ReplayOption.ALL_EVENTS)
    assert isinstance(storage, DefaultReplayIdMixin)
    assert storage.default_id == -2
    assert await storage.get_replay_id(CHANNEL) == 0
    assert await storage.get_replay_id("/event/Other__e") == -2
    assert await storage.get_replay_marker("/event/Other__e") is None


async def test_a_constant_stores_nothing_and_fails_never() -> None:
    storage = ConstantReplayId(default_id=17)
    for message in ({}, platform(None), platform(3, None), platform(4)):
        await storage.extract_replay_id(message)
        async with storage(message):
            pass
    await storage.set_replay_marker(CHANNEL, ReplayMarker(NEW, 5))
    assert await storage.get_replay_marker(CHANNEL) is None
    assert await storage.get_replay_id(CHANNEL) == 17


async def test_the_mixin_gives_any_storage_a_default() -> None:
    class Storage(DefaultReplayIdMixin, SlowStorage):
        pass

    assert await Storage(default_id=-2).get_replay_id(CHANNEL) == -2


async def test_the_mixin_needs_no_get_replay_id_beside_it() -> None:
    assert await DefaultReplayIdMixin(7).get_replay_id(CHANNEL) == 7

    class Alone(DefaultReplayIdMixin):
        pass

    assert await Alone(default_id=-2).get_replay_id(CHANNEL) == -2


async def test_a_constant_passes_on_what_a_subclass_adds() -> None:
    class Named:
        def __init__(self, name: str, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.name = name

    class Storage(ConstantReplayId, Named):
        pass

    storage = Storage(5, name="x")
    assert (storage.default_id, storage.name) == (5, "x")
    assert await storage.get_replay_id(CHANNEL) == 5
    with pytest.raises(TypeError):
        ConstantReplayId(5, other=1)


#: What a program written for an earlier release may call attributes and methods of its own.
TAKEN = [
    "_lines",
    "_warned",
    "_forced",
    "_forced_messages",
    "_aliases",
    "_buffered",
    "_abandoned",
    "_start",
    "_finish",
    "_storage",
    "_marker_of",
    "_subscription_of",
    "_is_forced",
    "_overwrite_with",
    "_warn_once",
    "_store_due",
    "_notes",
    "_place",
    "_message",
    "_entered",
    "_ended",
    "flush",
    "direct_store",
    "buffers",
    "set_unless_newer",
    "open_for",
    "attach",
    "release",
    "hold_back",
    "store_marker",
    "notes",
    "special",
    "replay_storage_policy",
]


async def test_a_subclass_may_use_any_name_for_its_own() -> None:
    namespace: dict[str, Any] = dict.fromkeys(TAKEN, "mine")
    mapping: dict[str, Any] = {CHANNEL: ReplayMarker(OLD, 1)}

    async def get_replay_marker(self: Any, subscription: str) -> ReplayMarker | None:
        return mapping.get(subscription)

    async def set_replay_marker(self: Any, subscription: str, replay_marker: ReplayMarker) -> None:
        mapping[subscription] = replay_marker

    namespace |= {
        "__init__": lambda self: None,
        "get_replay_marker": get_replay_marker,
        "set_replay_marker": set_replay_marker,
    }
    storage: ReplayMarkerStorage = type("Taken", (ReplayMarkerStorage,), namespace)()
    attach(storage, {"/event/A": CHANNEL}, subscribed={CHANNEL})
    message = subscription()
    await storage.outgoing([message], {})
    assert message["ext"]["replay"] == {CHANNEL: 1}
    assert direct_store_of(storage) is None
    await open_for(storage, "00D000000000001")
    overwrite_with(storage, platform(0, OLD, "/event/A"))
    await store_marker(storage, platform(0, OLD, "/event/A"))
    assert mapping[CHANNEL] == ReplayMarker(OLD, 0)
    async with storage(platform(5, NEW)):
        pass
    await flush(storage)
    assert mapping[CHANNEL] == ReplayMarker(NEW, 5)
    assert all(getattr(storage, name) == "mine" for name in TAKEN)


def test_reprs_are_bounded() -> None:
    assert repr(ConstantReplayId(-1)) == "ConstantReplayId(default_id=-1)"
    assert repr(MappingStorage({})) == "MappingStorage(mapping={})"
    assert repr(DefaultMappingStorage({}, -2)) == "DefaultMappingStorage(mapping={}, default_id=-2)"
    many = {f"/event/{number}": ReplayMarker(NEW, number) for number in range(10_000)}
    assert "/event/0" in repr(MappingStorage(many))
    assert len(repr(MappingStorage(many))) < 500
    assert len(repr(DefaultMappingStorage(many, 3))) < 500


async def test_an_empty_mapping_is_a_mapping(tmp_path: Path) -> None:
    with shelve.open(str(tmp_path / "markers")) as markers:
        storage = MappingStorage(markers)
        await storage.extract_replay_id(platform(8))
    with shelve.open(str(tmp_path / "markers")) as markers:
        assert await MappingStorage(markers).get_replay_id(CHANNEL) == 8


# The direct way

# Dates that differ by little, in forms that differ by little.
near_dates = st.sampled_from(
    [
        OLD,
        MIDDLE,
        NEW,
        "2017-04-09T18:31:40.517+0000",
        "2017-04-09T19:31:40.516+0100",
        "2017-04-09T18:31:40Z",
        "1501010206653",
        "1501010206654",
        "999999999999",
    ]
)
odd_dates = st.sampled_from([None, "", "?", 5, 1501010206655, True])
ids = st.integers() | st.text(max_size=3)
kinds = st.sampled_from([platform, push_topic, generic, change])
stored_values = st.builds(ReplayMarker, near_dates | odd_dates.map(str), ids)
odd_values = ids | st.tuples(near_dates, ids) | st.none()


@settings(max_examples=500)
@example(
    [(platform, 2, "2017-04-09T19:31:40.516+0100")],
    {CHANNEL: ReplayMarker("2017-04-09T18:31:40.517+0000", 1)},
    {},
    9,
)
@example([(platform, 2, "abc")], {CHANNEL: "abc"}, {}, 9)
@given(
    st.lists(st.tuples(kinds, ids | st.none(), near_dates | odd_dates), min_size=1, max_size=6),
    st.dictionaries(st.just(CHANNEL), stored_values | odd_values),
    st.sampled_from([{}, {}, {CHANNEL: "/event/*"}]),
    st.integers(0, 5),
)
def test_the_direct_way_has_the_same_results(
    events: list[tuple[Callable[..., Message], Any, Any]],
    stored: dict[str, Any],
    aliases: dict[str, str],
    forced: int,
) -> None:
    received = [make(replay_id, date, CHANNEL) for make, replay_id, date in events]
    # An id belongs to one message only.
    for number, message in enumerate(received):
        message["id"] = number
    direct, extracting = MappingStorage(dict(stored)), MappingStorage(dict(stored))
    for storage in (direct, extracting):
        attach(storage, aliases)
        for message in received[forced : forced + 1]:
            overwrite_with(storage, message)
    store = direct_store_of(direct)
    assert store is not None

    async def extract() -> None:
        for message in received:
            if not store(message):
                await store_marker(direct, message)
            await store_marker(extracting, message)

    asyncio.run(extract())
    assert direct.mapping == extracting.mapping
    assert set(notes_of(direct).overwriting) == set(notes_of(extracting).overwriting)


@pytest.mark.parametrize("make", [platform, push_topic, generic, change])
def test_the_usual_events_take_the_direct_way(make: Callable[..., Message]) -> None:
    def date(number: int) -> Any:
        return 1501010206653 + number if make is change else f"2017-04-09T18:31:40.{number:03}Z"

    first, *others = (make(number, date(number), CHANNEL) for number in (1, 2, 2, 3))
    storage = MappingStorage({})
    asyncio.run(storage.extract_replay_id(first))
    store = direct_store_of(storage)
    assert store is not None
    assert [store(message) for message in others] == [True] * 3
    assert storage.mapping[CHANNEL] == ReplayMarker(str(date(3)), 3)
    # Out of order within a moment, or without an id: with a second look.
    assert not store(make(2, date(3), CHANNEL))
    assert not store(make(None, date(4), CHANNEL))


def test_the_direct_way_reports_a_mapping_that_fails() -> None:
    class Full(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            raise OSError("disk full")

    store = direct_store_of(MappingStorage(Full({CHANNEL: ReplayMarker(OLD, 1)})))
    assert store is not None
    with pytest.raises(OSError, match="disk full"):
        store(platform(2))


@pytest.mark.parametrize(
    "hook", ["extract_replay_id", "get_replay_marker", "set_replay_marker", "get_message_date"]
)
@pytest.mark.parametrize("where", ["subclass", "instance", "class"])
def test_there_is_no_direct_way_around_a_hook(
    hook: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replacement(*args: Any) -> Any:
        raise AssertionError

    storage = MappingStorage({})
    if where == "subclass":
        storage = type("Storage", (MappingStorage,), {hook: replacement})({})
    elif where == "instance":
        monkeypatch.setattr(storage, hook, replacement)
    else:
        monkeypatch.setattr(MappingStorage, hook, replacement)
    assert direct_store_of(storage) is None


def test_what_stores_nothing_has_a_direct_way_too() -> None:
    class Counting(ConstantReplayId):
        async def extract_replay_id(self, message: Message) -> None:
            raise AssertionError

    store = direct_store_of(ConstantReplayId(-1))
    assert store is not None
    store({})
    assert direct_store_of(Counting(-1)) is None


# Compatibility


def test_the_path_that_old_shelves_name() -> None:
    marker = ReplayMarker(date=OLD, replay_id=5)
    assert ReplayMarker.__module__ == "aiosfstream.replay"
    assert b"aiosfstream.replay" in pickle.dumps(marker)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        copy = pickle.loads(pickle.dumps(marker, protocol))
        assert copy == marker
        assert type(copy) is ReplayMarker


@pytest.fixture
def old_shelf() -> Iterator[shelve.Shelf[Any]]:
    """Open a shelf in the form that release 0.5.0 wrote on Python 3.7 (pickle protocol 3)."""
    import dbm.dumb

    files: Any = dbm.dumb.open(str(DATA / "markers-0.5.0"), "r")  # noqa: SIM115
    with shelve.Shelf[Any](files) as shelf:
        yield shelf


async def test_a_shelf_of_an_old_release_is_read(old_shelf: shelve.Shelf[Any]) -> None:
    storage = MappingStorage(old_shelf)
    assert await storage.get_replay_marker("/topic/InvoiceStatementUpdates") == ReplayMarker(
        "2017-05-16T23:06:11.529Z", 2
    )
    assert await storage.get_replay_marker("/data/ChangeEvents") == ReplayMarker(
        "1501010206653", 6421
    )
    assert await storage.get_replay_id("/event/Other__e") is None


def test_options_are_the_numbers_of_the_protocol() -> None:
    assert (ReplayOption.NEW_EVENTS, ReplayOption.ALL_EVENTS) == (-1, -2)
    assert replay.ReplayMarkerStorageContextManager.__module__ == "aiosfstream.replay"
    assert set(replay.__all__) <= set(vars(replay))
    assert replay.__all__ == sorted(replay.__all__)


def test_a_storage_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ReplayMarkerStorage()  # type: ignore[abstract]


def test_importing_markers_imports_no_database() -> None:
    assert logging.getLogger("aiosfstream.replay") is replay.LOGGER
    source = Path(sys.modules["aiosfstream.replay"].__file__ or "").read_text(encoding="utf-8")
    assert "sqlite3" not in source
