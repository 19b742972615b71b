"""What the scripted server sends: platform events, encoded before anybody asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Final

CHANNEL: Final = "/event/Low_Ink__e"
#: Up to so many events the bodies are all made beforehand; beyond, each one while the client is busy
#: with the one before.
READY_MADE: Final = 100_000

_FIRST: Final = datetime(2026, 4, 9, 18, 31, 40, 517_000, tzinfo=timezone.utc)
_STEP: Final = timedelta(milliseconds=7)
# The shape of the sample in the Platform Events Developer Guide, about 330 bytes.
_EVENT: Final = (
    '{"data":{"schema":"dffQ2QLzDNHqwB8_sHMxdA","payload":{"CreatedDate":"%s",'
    '"CreatedById":"005D0000001cSZs","Printer_Model__c":"XZO-5","Serial_Number__c":"12345",'
    '"Sent__c":%d,"Ink_Percentage__c":0.2},'
    '"event":{"EventUuid":"2ec0e371-1395-457f-9275-%012x","replayId":%d}},'
    '"channel":"/event/Low_Ink__e"}'
)


def event(number: int, sent: int = 0) -> str:
    """Encode an event.

    :param number: its place in the stream, from 1; its replay id
    :param sent: when it was published, in nanoseconds of the monotonic clock
    """
    date = (_FIRST + number * _STEP).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return _EVENT % (date, sent, number, number)


def bodies(events: int, batch: int) -> Iterator[bytes]:
    """Encode a stream of events, so many to a response.

    :param events: how many there are in all
    :param batch: how many are sent in one response
    :return: the events of each response, separated by commas
    """
    for first in range(1, events + 1, batch):
        last = min(first + batch, events + 1)
        yield ",".join([event(number) for number in range(first, last)]).encode()
