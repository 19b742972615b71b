"""What the log and the observer hear of a connection."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import FrozenInstanceError

import pytest

from aiosfstream.events import ConnectionEvent, ConnectionEventKind, Reporter
from aiosfstream.exceptions import AuthenticationError, ServerError, TransportError

LOGGER = "aiosfstream.client"
CHANNEL = "/event/Low_Ink__e"
REFUSED = ServerError("Subscribe request failed.", {"error": "403::No access on channel"})

#: An event of each kind as the client makes it, its level, and what its record must say.
RECORDS: list[tuple[ConnectionEvent, int, list[str]]] = [
    (ConnectionEvent(ConnectionEventKind.CONNECTED), logging.INFO, ["Connected"]),
    (
        ConnectionEvent(ConnectionEventKind.CONNECTION_LOST, error=TransportError("cut off")),
        logging.INFO,
        ["lost", "cut off"],
    ),
    (
        ConnectionEvent(
            ConnectionEventKind.RETRYING, error=TransportError("cut off"), attempt=7, delay=12.34
        ),
        logging.INFO,
        ["12.3 s", "7 failures", "cut off"],
    ),
    (ConnectionEvent(ConnectionEventKind.REAUTHENTICATED), logging.INFO, ["Logged in again"]),
    (
        ConnectionEvent(
            ConnectionEventKind.AUTHENTICATION_FAILED, error=AuthenticationError("expired")
        ),
        logging.ERROR,
        ["Logging in again failed", "receive()", "expired"],
    ),
    (
        ConnectionEvent(ConnectionEventKind.STORAGE_FAILED, error=TransportError("locked")),
        logging.ERROR,
        ["storage", "receive()", "locked"],
    ),
    (ConnectionEvent(ConnectionEventKind.SESSION_RENEWED), logging.INFO, ["renewed"]),
    (
        ConnectionEvent(ConnectionEventKind.CHANNEL_RESUMED, channel=CHANNEL, replay_id="7"),
        logging.INFO,
        [CHANNEL, "'7'"],
    ),
    (
        ConnectionEvent(
            ConnectionEventKind.FALLBACK_USED, channel=CHANNEL, replay_id=-2, error=REFUSED
        ),
        logging.WARNING,
        [CHANNEL, "-2", "403::No access on channel"],
    ),
    (
        ConnectionEvent(ConnectionEventKind.CHANNEL_LOST, channel=CHANNEL, error=REFUSED),
        logging.ERROR,
        [CHANNEL, "cannot be resumed", "403::No access on channel"],
    ),
    (ConnectionEvent(ConnectionEventKind.FETCHING_SUSPENDED), logging.DEBUG, ["suspended"]),
    (ConnectionEvent(ConnectionEventKind.FETCHING_RESUMED), logging.DEBUG, ["has resumed"]),
    (ConnectionEvent(ConnectionEventKind.CLOSED), logging.INFO, ["Closed"]),
    (
        ConnectionEvent(ConnectionEventKind.CLOSED, error=TransportError("a bug")),
        logging.ERROR,
        ["for good", "a bug"],
    ),
]


def test_the_table_has_every_kind() -> None:
    assert {event.kind for event, _, _ in RECORDS} == set(ConnectionEventKind)


@pytest.mark.parametrize(("event", "level", "words"), RECORDS)
def test_each_event_is_one_record_of_its_level(
    event: ConnectionEvent, level: int, words: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    Reporter(None)(event)
    [record] = caplog.records
    assert (record.name, record.levelno, record.exc_info) == (LOGGER, level, None)
    text = record.getMessage()
    assert all(word in text for word in words), text
    assert "{" not in text


def test_a_message_of_a_server_is_no_template(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    odd = "100 % {error} {0} %s %(x)s"
    Reporter(None)(ConnectionEvent(ConnectionEventKind.CONNECTION_LOST, error=TransportError(odd)))
    assert odd in caplog.records[0].getMessage()


def test_what_nobody_logs_is_not_put_into_words(caplog: pytest.LogCaptureFixture) -> None:
    class Unspeakable(TransportError):
        def __str__(self) -> str:
            raise AssertionError("nobody has asked")

    caplog.set_level(logging.CRITICAL, LOGGER)
    seen: list[ConnectionEvent] = []
    event = ConnectionEvent(ConnectionEventKind.CONNECTION_LOST, error=Unspeakable())
    Reporter(seen.append)(event)
    assert seen == [event]
    assert caplog.records == []


def test_the_observer_gets_the_event_itself() -> None:
    seen: list[ConnectionEvent] = []
    reporter = Reporter(seen.append)
    for event, _, _ in RECORDS:
        reporter(event)
    assert all(one is event for one, (event, _, _) in zip(seen, RECORDS, strict=True))


def test_a_failing_observer_harms_nothing_and_is_asked_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[ConnectionEventKind] = []

    def observer(event: ConnectionEvent) -> None:
        asked.append(event.kind)
        raise ZeroDivisionError

    reporter = Reporter(observer)
    caplog.set_level(logging.WARNING, LOGGER)
    reporter(ConnectionEvent(ConnectionEventKind.SESSION_RENEWED))
    reporter(ConnectionEvent(ConnectionEventKind.CONNECTED))
    assert asked == [ConnectionEventKind.SESSION_RENEWED, ConnectionEventKind.CONNECTED]
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].exc_info[0] is ZeroDivisionError
    assert "session renewed" in caplog.records[0].getMessage()


def test_a_cancellation_out_of_the_observer_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def observer(event: ConnectionEvent) -> None:
        raise asyncio.CancelledError

    Reporter(observer)(ConnectionEvent(ConnectionEventKind.CONNECTED))
    assert any("The observer failed" in record.getMessage() for record in caplog.records)


def test_events_compare_and_do_not_change() -> None:
    event = ConnectionEvent(ConnectionEventKind.CONNECTED)
    assert event == ConnectionEvent(ConnectionEventKind.CONNECTED)
    assert event != ConnectionEvent(ConnectionEventKind.CLOSED)
    with pytest.raises(FrozenInstanceError):
        event.attempt = 3  # type: ignore[misc]
    assert ConnectionEventKind("connection lost") is ConnectionEventKind.CONNECTION_LOST
