"""Markers: which one is stored, where it is read from, and that it never runs ahead."""

import asyncio
import gc
import logging
import pickle
import shelve
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiosfstream import replay
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
    instant,
    overwrite_with,
    should_store,
    store_marker,
)
from tests.markers import lines_of, notes_of

CHANNEL = "/event/Low_Ink__e"
TOPIC = "/topic/Invoices"
OLD, MIDDLE, NEW = (
    "2017-04-09T18:31:40.517Z",
    "2017-04-09T18:31:40.518Z",
    "2018-01-01T00:00:00.000Z",
)
DATA = Path(__file__).parent / "data"

Message = dict[str, Any]


def platform(replay_id: Any, date: Any = NEW, channel: Any = CHANNEL) -> Message:
    """Return a platform event."""
    data = {"payload": {"CreatedDate": date, "Ink__c": 1}, "event": {"replayId": replay_id}}
    return {"channel": channel, "data": data}


def push_topic(replay_id: Any, date: Any = NEW, channel: Any = TOPIC) -> Message:
    """Return a notification of a PushTopic."""
    event = {"createdDate": date, "replayId": replay_id, "type": "updated"}
    return {"channel": channel, "data": {"event": event, "sobject": {"Id": "a00"}}}


def generic(replay_id: Any, date: Any = NEW, channel: Any = "/u/News") -> Message:
    """Return a generic event."""
    data = {"event": {"createdDate": date, "replayId": replay_id}, "payload": "CreatedDate"}
    return {"channel": channel, "data": data}


def change(replay_id: Any, stamp: Any = 1501010206653, channel: Any = "/data/Account") -> Message:
    """Return a change event, whose record is far older than the change."""
    header = {"commitTimestamp": stamp, "changeType": "UPDATE"}
    payload = {"ChangeEventHeader": header, "CreatedDate": "2001-01-01T00:00:00Z"}
    return {"channel": channel, "data": {"payload": payload, "event": {"replayId": replay_id}}}


class SlowStorage(ReplayMarkerStorage):
    """A storage as users write them, which waits, and fails on demand."""

    def __init__(self) -> None:
        self.markers: dict[str, ReplayMarker] = {}
        self.failures: list[BaseException] = []
        self.writes: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        await asyncio.sleep(0)
        return self.markers.get(subscription)

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.markers[subscription] = replay_marker
        self.writes.append(replay_marker.replay_id)


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


def test_the_first_marker_is_stored() -> None:
    assert should_store(None, ReplayMarker("", 1))


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("1970-01-01T00:00:01.500Z", 1.5),
        ("1970-01-01T00:00:01.5z", 1.5),
        ("1970-01-01T00:00:01.500000Z", 1.5),
        ("1970-01-01T00:00:01.500000999Z", 1.5),
        ("1970-01-01T01:00:01.500+0100", 1.5),
        ("1969-12-31T23:00:01.500-0100", 1.5),
        ("1970-01-01T01:00:01.500+01:00", 1.5),
        ("1970-01-01T00:00:01.500", 1.5),
        ("1500", 1.5),
        (1500, 1.5),
        ("0", 0.0),
        ("", float("-inf")),
        (None, float("-inf")),
        ("None", float("-inf")),
        ("-5", float("-inf")),
        ("1" * 5000, float("-inf")),
        ("٣", float("-inf")),
        ("2017-13-45T00:00:00Z", float("-inf")),
        ("20170409T183140Z", float("-inf")),
        ("0001-01-01T00:00:00+2359", -62135683140.0),
        ("2017-04-09T18:31:40.Z!", float("-inf")),
    ],
)
def test_a_date_is_an_instant(date: object, expected: float) -> None:
    assert instant(date) == expected


@given(st.text())
def test_any_text_has_an_instant(text: str) -> None:
    assert isinstance(instant(text), float)


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
async def test_a_subscription_starts_behind_the_marker(replay_id: Any) -> None:
    message: Message = {"channel": "/meta/subscribe", "subscription": CHANNEL, "ext": {"other": 1}}
    await MappingStorage({CHANNEL: ReplayMarker(OLD, replay_id)}).outgoing([message], {})
    assert message["ext"] == {"other": 1, "replay": {CHANNEL: replay_id}}


async def test_a_filter_is_no_part_of_the_name_of_a_channel() -> None:
    message: Message = {"channel": "/meta/subscribe", "subscription": f"{TOPIC}?Status='?'"}
    await MappingStorage({TOPIC: 7}).outgoing([message], {})
    assert message["ext"] == {"replay": {TOPIC: 7}}


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
        (None, None),
    ],
)
async def test_what_a_mapping_may_hold(value: Any, expected: ReplayMarker | None) -> None:
    storage = MappingStorage({CHANNEL: value})
    assert await storage.get_replay_marker(CHANNEL) == expected
    assert await storage.get_replay_id(CHANNEL) == (expected.replay_id if expected else None)
    await storage.extract_replay_id(platform(6, OLD))
    assert storage.mapping[CHANNEL] == ReplayMarker(OLD, 6)


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
    assert set(notes_of(direct).special) == set(notes_of(extracting).special)


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


# After processing


class Job:
    """A message in flight, which a test ends."""

    def __init__(self, storage: ReplayMarkerStorage, message: Message) -> None:
        self._manager = storage(message)

    async def begin(self) -> "Job":
        await self._manager.__aenter__()
        return self

    async def succeed(self) -> None:
        await self._manager.__aexit__(None, None, None)

    async def fail(self, error: BaseException | None = None) -> None:
        error = error or ValueError("processing")
        await self._manager.__aexit__(type(error), error, None)


def places(storage: ReplayMarkerStorage) -> int:
    """Count what is kept of the messages of a channel, one place for what is due included."""
    place: Any = lines_of(storage)[CHANNEL].front
    count = 0
    while place is not None:
        place, count = place.next, count + 1
    return count


async def jobs(storage: ReplayMarkerStorage, *received: Message) -> list[Job]:
    """Put messages in flight, in this order."""
    return [await Job(storage, message).begin() for message in received]


async def test_the_marker_is_stored_behind_the_processing() -> None:
    storage = SlowStorage()
    async with storage(platform(1)):
        assert storage.writes == []
    assert storage.writes == [1]


async def test_a_failed_message_is_not_stored_and_its_error_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = SlowStorage()
    with pytest.raises(ValueError, match="processing"):
        async with storage(platform(1)):
            raise ValueError("processing of a secret")
    assert storage.writes == []
    assert f"{CHANNEL} failed with ValueError" in caplog.text
    assert "secret" not in caplog.text
    async with storage(platform(2)):
        pass
    assert storage.writes == [2]


async def test_what_finishes_early_is_held_back() -> None:
    storage = SlowStorage()
    first, second, third = await jobs(storage, platform(1), platform(2), platform(3))
    await second.succeed()
    await third.succeed()
    assert storage.writes == []
    await first.succeed()
    assert storage.writes == [3]


async def test_a_message_is_in_flight_from_the_call_on() -> None:
    storage = SlowStorage()
    first, second = storage(platform(1)), storage(platform(2))
    async with second:
        pass
    assert storage.writes == []
    async with first:
        pass
    assert storage.writes == [2]


async def test_channels_do_not_wait_for_each_other() -> None:
    storage = SlowStorage()
    slow, quick = await jobs(storage, platform(1), push_topic(1))
    await quick.succeed()
    assert storage.markers == {TOPIC: ReplayMarker(NEW, 1)}
    await slow.succeed()


async def test_channels_of_one_subscription_wait_for_each_other() -> None:
    storage = SlowStorage()
    attach(storage, {"/event/A": "/event/*", "/event/B": "/event/*"})
    slow, quick = await jobs(
        storage, platform(1, channel="/event/A"), platform(2, channel="/event/B")
    )
    await quick.succeed()
    assert storage.markers == {}
    await slow.succeed()
    assert storage.markers == {"/event/*": ReplayMarker(NEW, 2)}


async def test_a_failure_lets_those_behind_it_pass() -> None:
    storage = SlowStorage()
    first, second, third = await jobs(storage, platform(1), platform(2), platform(3))
    await third.succeed()
    await first.succeed()
    assert storage.writes == [1]
    await second.fail()
    assert storage.writes == [1, 3]


async def test_what_is_held_back_is_what_one_after_the_other_would_have_left() -> None:
    storage = SlowStorage()
    slow, newer, older, bare = await jobs(
        storage, platform(1, OLD), platform(3, NEW), platform(2, MIDDLE), platform(None)
    )
    for job in (bare, older, newer):
        await job.succeed()
    assert storage.writes == []
    await slow.succeed()
    assert storage.markers == {CHANNEL: ReplayMarker(NEW, 3)}


async def test_a_context_manager_is_entered_once() -> None:
    manager = MappingStorage({})(platform(1))
    async with manager:
        with pytest.raises(ReplayError, match="once only"):
            await manager.__aenter__()


async def test_a_storage_that_fails_at_the_end_of_a_block() -> None:
    storage = SlowStorage()
    storage.markers[CHANNEL] = ReplayMarker(OLD, 0)
    storage.failures = [OSError("disk")]
    with pytest.raises(ReplayError, match="could not be stored"):
        async with storage(platform(1)):
            pass
    assert storage.markers == {CHANNEL: ReplayMarker(OLD, 0)}
    async with storage(platform(2)):
        pass
    assert storage.writes == [2]
    assert lines_of(storage) == {}


async def test_what_could_not_be_stored_goes_along_with_a_failed_message() -> None:
    storage = SlowStorage()
    storage.failures = [OSError("disk")]
    with pytest.raises(ReplayError):
        async with storage(platform(1)):
            pass
    with pytest.raises(ValueError, match="processing"):
        async with storage(platform(2)):
            raise ValueError("processing")
    assert storage.writes == [1]


async def test_the_error_of_a_block_is_stronger_than_that_of_the_storage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = SlowStorage()
    first, second = await jobs(storage, platform(1), platform(2))
    await second.succeed()
    storage.failures = [OSError("disk")]
    await first.fail()
    assert "could not be stored" in caplog.text
    async with storage(platform(3)):
        pass
    assert storage.writes == [3]


async def test_stores_of_a_channel_follow_each_other() -> None:
    storage = SlowStorage()
    storage.gate.clear()
    ended = []

    async def process(number: int) -> None:
        async with storage(platform(number)):
            pass
        ended.append(number)
        assert storage.writes[-1] >= number, "the block has ended and the marker is not stored"

    tasks = [asyncio.create_task(process(number)) for number in range(1, 6)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert ended == []
    storage.gate.set()
    await asyncio.gather(*tasks)
    assert storage.markers == {CHANNEL: ReplayMarker(NEW, 5)}
    assert storage.writes == sorted(storage.writes)
    assert lines_of(storage) == {}


async def test_a_slow_store_does_not_end_behind_a_later_one() -> None:
    class FirstWaits(SlowStorage):
        async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
            if replay_marker.replay_id == 1:
                await self.gate.wait()
            self.markers[subscription] = replay_marker

    storage = FirstWaits()
    storage.gate.clear()
    first, second = await jobs(storage, platform(1), platform(2))
    tasks = [asyncio.create_task(job.succeed()) for job in (first, second)]
    for _ in range(10):
        await asyncio.sleep(0)
    storage.gate.set()
    await asyncio.gather(*tasks)
    assert storage.markers == {CHANNEL: ReplayMarker(NEW, 2)}


async def test_cancelled_while_storing_it_is_stored_with_the_next() -> None:
    storage = SlowStorage()
    storage.gate.clear()

    async def process() -> None:
        async with storage(platform(1)):
            pass

    task = asyncio.create_task(process())
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    storage.gate.set()
    with pytest.raises(ValueError, match="processing"):
        async with storage(platform(2)):
            raise ValueError("processing")
    assert storage.writes == [1]


async def test_a_message_that_nobody_processes_does_not_block_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = SlowStorage()
    forgotten: Any = storage(platform(1))
    second = storage(platform(2))
    del forgotten
    gc.collect()
    assert "cancelled or never begun" in caplog.text
    async with second:
        pass
    assert storage.writes == [2]


async def test_a_forgotten_message_in_the_middle() -> None:
    storage = SlowStorage()
    first, middle, last = storage(platform(1)), storage(platform(2)), storage(platform(3))
    async with last:
        pass
    del middle
    gc.collect()
    async with first:
        pass
    assert storage.writes == [1], "what nobody processed was passed by what had finished before"
    async with storage(platform(4)):
        pass
    assert storage.writes == [1, 4]


async def test_a_program_that_is_shut_down_passes_nothing_unfinished() -> None:
    storage = SlowStorage()
    begun, end = asyncio.Event(), asyncio.Event()

    async def process(number: int, manager: Any) -> None:
        async with manager:
            if number not in {0, 3}:
                begun.set()
                await end.wait()

    # Number 5 is never begun.
    managers = [storage(platform(number)) for number in range(6)]
    tasks = [asyncio.create_task(process(number, managers[number])) for number in range(5)]
    await begun.wait()
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    managers.clear()
    gc.collect()
    assert storage.writes == [0]
    assert [task.cancelled() for task in tasks] == [False, True, True, False, True]


async def test_a_program_that_goes_on_behind_a_cancelled_message() -> None:
    storage = SlowStorage()
    cancelled, done = await jobs(storage, platform(1), platform(2))
    await done.succeed()
    await cancelled.fail(asyncio.CancelledError())
    assert storage.writes == []
    async with storage(platform(3)):
        pass
    assert storage.writes == [3]
    assert lines_of(storage) == {}


async def test_a_coroutine_that_is_thrown_away_gives_its_place_back() -> None:
    storage = SlowStorage()

    async def process() -> None:
        async with storage(platform(1)):
            await asyncio.get_running_loop().create_future()

    coroutine = process()
    coroutine.send(None)
    coroutine.close()
    async with storage(platform(2)):
        pass
    assert storage.writes == [2]


async def test_a_coroutine_that_is_thrown_away_stores_nothing_on_its_way_out() -> None:
    storage = SlowStorage()

    async def process() -> None:
        async with storage(platform(1)):
            await asyncio.get_running_loop().create_future()

    coroutine = process()
    coroutine.send(None)
    async with storage(platform(2)):
        pass
    storage.gate.clear()
    coroutine.close()
    storage.gate.set()
    async with storage(platform(3)):
        pass
    assert storage.writes == [3]


async def test_a_block_that_was_never_left_does_not_block_for_ever() -> None:
    storage = SlowStorage()
    manager: Any = storage(platform(1))
    await manager.__aenter__()
    del manager
    gc.collect()
    async with storage(platform(2)):
        pass
    assert storage.writes == [2]


async def test_memory_is_not_for_what_was_forgotten() -> None:
    storage = SlowStorage()
    stuck = (await jobs(storage, platform(0)))[0]
    for number in range(1, 200):
        storage(platform(number))
    assert len(notes_of(storage).in_flight.abandoned) <= 1
    assert places(storage) <= 3
    await stuck.succeed()
    assert lines_of(storage) == {}


async def test_the_first_message_behind_a_fallback_fails_and_the_next_overwrites() -> None:
    storage = SlowStorage()
    storage.markers[CHANNEL] = ReplayMarker(NEW, 90)
    first, second, third = platform(1, MIDDLE), platform(2, MIDDLE), platform(3, OLD)
    overwrite_with(storage, first)
    with pytest.raises(ValueError, match="processing"):
        async with storage(first):
            raise ValueError("processing")
    for message in (second, third):
        async with storage(message):
            pass
    assert storage.markers == {CHANNEL: ReplayMarker(MIDDLE, 2)}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)])
async def test_overwriting_behind_a_fallback_in_any_order(order: tuple[int, ...]) -> None:
    storage = SlowStorage()
    storage.markers[CHANNEL] = ReplayMarker(NEW, 90)
    received = [platform(1, NEW), platform(2, OLD), platform(3, MIDDLE)]
    overwrite_with(storage, received[1])
    running = await jobs(storage, *received)
    for index in order:
        await running[index].succeed()
    assert storage.markers == {CHANNEL: ReplayMarker(MIDDLE, 3)}
    async with storage(platform(4, OLD)):
        pass
    assert storage.markers == {CHANNEL: ReplayMarker(MIDDLE, 3)}


async def test_memory_is_for_what_is_in_flight() -> None:
    storage = SlowStorage()
    stuck = (await jobs(storage, platform(0)))[0]
    for number in range(1, 2000):
        async with storage(platform(number)):
            pass
    assert places(storage) == 2
    await stuck.succeed()
    assert storage.writes == [1999]
    assert lines_of(storage) == {}


@given(
    st.permutations(range(6)),
    st.lists(st.sampled_from([None, ValueError("x"), asyncio.CancelledError()]), min_size=6),
)
def test_cancelling_moves_no_marker(order: list[int], outcomes: list[BaseException | None]) -> None:
    async def run() -> None:
        storage = SlowStorage()
        running = await jobs(storage, *[platform(number) for number in range(6)])
        ended: set[int] = set()
        for number in order:
            error, before = outcomes[number], dict(storage.markers)
            ended.add(number)
            await (running[number].succeed() if error is None else running[number].fail(error))
            if isinstance(error, asyncio.CancelledError):
                assert storage.markers == before
            for marker in storage.markers.values():
                assert ended.issuperset(range(marker.replay_id)), "it ran ahead"
                assert outcomes[marker.replay_id] is None

    asyncio.run(run())


@given(st.data())
def test_a_stored_marker_never_passes_a_message_in_flight(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8), "messages")
    order = data.draw(st.permutations(range(count)), "order in which they finish")
    succeeds = data.draw(st.lists(st.booleans(), min_size=count, max_size=count), "succeed")
    store_fails = data.draw(st.lists(st.booleans(), min_size=count, max_size=count), "stores fail")
    asyncio.run(finish_in_order(order, succeeds, store_fails))


async def finish_in_order(order: list[int], succeeds: list[bool], store_fails: list[bool]) -> None:
    """Finish messages and compare what is stored with the plain statement of what should be."""
    storage = SlowStorage()
    running = await jobs(storage, *[platform(number) for number in range(len(order))])
    finished: set[int] = set()
    for step, number in enumerate(order):
        finished.add(number)
        storage.failures = [OSError("disk")] if store_fails[step] else []
        try:
            await (running[number].succeed() if succeeds[number] else running[number].fail())
            failed = bool(store_fails[step] and not storage.failures)
        except ReplayError:
            failed = True
        passed = 0
        while passed in finished:
            passed += 1
        due = [done for done in range(passed) if succeeds[done]]
        stored = storage.markers.get(CHANNEL)
        if stored is not None:
            assert stored.replay_id in due, "it ran ahead"
        if due and not failed:
            assert stored == ReplayMarker(NEW, due[-1]), "it lags behind"


def test_messages_in_flight_in_one_loop_may_finish_in_another() -> None:
    storage = SlowStorage()

    async def contend(*running: Job) -> None:
        storage.gate = asyncio.Event()
        tasks = [asyncio.create_task(job.succeed()) for job in running]
        for _ in range(5):
            await asyncio.sleep(0)
        storage.gate.set()
        await asyncio.gather(*tasks)

    async def first_loop() -> Job:
        *early, last = await jobs(storage, platform(1), platform(2), platform(3))
        await contend(*early)
        return last

    async def second_loop(leftover: Job) -> None:
        await contend(leftover, *await jobs(storage, platform(4), platform(5)))

    leftover = asyncio.run(first_loop())
    assert storage.markers == {CHANNEL: ReplayMarker(NEW, 2)}
    asyncio.run(second_loop(leftover))
    assert storage.markers == {CHANNEL: ReplayMarker(NEW, 5)}


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
