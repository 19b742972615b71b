"""What events look like, for type checkers and editors.

:meth:`Client.receive() <aiosfstream.Client.receive>` gives messages as plain dictionaries, as the server sent
them: nothing is converted and nothing is checked, so that an event of a new shape is delivered like any other.
These types describe the four known kinds. The functions beside them tell which kind a message is, and narrow
its type::

    async for message in client:
        if is_change_event(message):
            header = message["data"]["payload"]["ChangeEventHeader"]
            print(header["changeType"], header["recordIds"])

Sources: Streaming API Developer Guide ("PushTopic Events", "Generic Events"), Platform Events Developer Guide
("Platform Event Fields"), Change Data Capture Developer Guide ("Change Event Header Fields").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict, TypeGuard

__all__ = [
    "ChangeEventData",
    "ChangeEventHeader",
    "ChangeEventMessage",
    "ChangeEventPayload",
    "ChangeType",
    "DatedReplay",
    "Envelope",
    "GenericEventData",
    "GenericEventMessage",
    "Message",
    "PlatformEventData",
    "PlatformEventMessage",
    "PushTopicData",
    "PushTopicMessage",
    "PushTopicReplay",
    "Replay",
    "is_change_event",
    "is_generic_event",
    "is_platform_event",
    "is_push_topic_event",
]

#: What has happened to a record. The ``GAP_`` kinds tell of changes that have to be looked up in the org.
ChangeType = Literal[
    "CREATE",
    "UPDATE",
    "DELETE",
    "UNDELETE",
    "SNAPSHOT",
    "GAP_CREATE",
    "GAP_UPDATE",
    "GAP_DELETE",
    "GAP_UNDELETE",
    "GAP_OVERFLOW",
]


class _ReplayId(TypedDict):
    replayId: int


class Replay(_ReplayId, total=False):
    """What the server says of an event itself.

    :ivar replayId: its place in the stream; larger ones are newer, and there are gaps
    :ivar EventUuid: what identifies a platform event, from API version 52.0 on
    """

    EventUuid: str


class DatedReplay(_ReplayId):
    """As :class:`Replay`, of a kind of event that has its date here.

    :ivar createdDate: when it was created, in ISO 8601
    """

    createdDate: str


class PushTopicReplay(DatedReplay):
    """As :class:`DatedReplay`, of a PushTopic.

    :ivar type: what has happened to the record
    """

    type: Literal["created", "updated", "deleted", "undeleted"]


class _Channel(TypedDict):
    channel: str


class Envelope(_Channel):
    """An event of any shape, to ``cast`` to where it fits none of the four kinds.

    :ivar channel: the channel that it was delivered on
    :ivar data: the event
    """

    data: dict[str, Any]


class PlatformEventData(TypedDict):
    """The data of a platform event.

    :ivar schema: the id of the version of the event's definition
    :ivar payload: its fields, ``CreatedDate`` and ``CreatedById`` among them
    :ivar event: what the server says of it
    """

    schema: str
    payload: dict[str, Any]
    event: Replay


class PlatformEventMessage(_Channel):
    """A platform event, standard or custom, from a channel below ``/event/``.

    :ivar data: the event
    """

    data: PlatformEventData


class _ChangeEventHeader(TypedDict):
    entityName: str
    recordIds: list[str]
    changeType: ChangeType
    changeOrigin: str
    transactionKey: str
    sequenceNumber: int
    commitTimestamp: int
    commitUser: str


class ChangeEventHeader(_ChangeEventHeader, total=False):
    """What a change event says of the change.

    :ivar entityName: the API name of the object
    :ivar recordIds: the records; several if equal changes of one transaction were merged
    :ivar changeType: what has happened to them
    :ivar changeOrigin: who has changed them, as ``com/salesforce/api/<api>/<version>;client=<id>``; may be empty
    :ivar transactionKey: the same for all changes of one transaction
    :ivar sequenceNumber: the place within the transaction, from one
    :ivar commitTimestamp: when the change was committed, in milliseconds since the epoch
    :ivar commitUser: the id of the user
    :ivar commitNumber: the place among all transactions
    :ivar changedFields: the fields that an update has changed
    :ivar nulledFields: the fields that an update has emptied; Salesforce does not send it to CometD clients: here
        such a field is in the payload, with the value None
    :ivar diffFields: the fields that are sent as a difference; not sent to CometD clients either
    """

    commitNumber: int
    changedFields: list[str]
    nulledFields: list[str]
    diffFields: list[str]


class ChangeEventPayload(TypedDict):
    """The payload of a change event: the header, and beside it those of the record's fields that were changed.

    Derive a class from it that names the fields of your object, with ``total=False``, and ``cast`` to that.

    :ivar ChangeEventHeader: what is said of the change
    """

    ChangeEventHeader: ChangeEventHeader


class ChangeEventData(TypedDict):
    """The data of a change event.

    :ivar schema: the id of the version of the object's definition
    :ivar payload: header and changed fields
    :ivar event: what the server says of it
    """

    schema: str
    payload: ChangeEventPayload
    event: Replay


class ChangeEventMessage(_Channel):
    """A change event of Change Data Capture, from a channel below ``/data/``.

    :ivar data: the event
    """

    data: ChangeEventData


class PushTopicData(TypedDict):
    """The data of a PushTopic's event.

    :ivar event: what the server says of it
    :ivar sobject: the fields of the record that the PushTopic's query selects
    """

    event: PushTopicReplay
    sobject: dict[str, Any]


class PushTopicMessage(_Channel):
    """An event of a PushTopic, from a channel below ``/topic/``.

    :ivar data: the event
    """

    data: PushTopicData


class GenericEventData(TypedDict):
    """The data of a generic event.

    :ivar event: what the server says of it
    :ivar payload: the text that was published
    """

    event: DatedReplay
    payload: str


class GenericEventMessage(_Channel):
    """A generic event, from a channel below ``/u/``.

    :ivar data: the event
    """

    data: GenericEventData


#: Any message that :meth:`aiosfstream.Client.receive` is known to give.
Message = PlatformEventMessage | ChangeEventMessage | PushTopicMessage | GenericEventMessage


def is_platform_event(message: Mapping[str, Any]) -> TypeGuard[PlatformEventMessage]:
    """Say whether *message* is a platform event.

    :param message: a message as received
    :return: whether it has the shape of one; the channel is not looked at
    """
    payload = _part(message, "payload")
    return isinstance(payload, dict) and "ChangeEventHeader" not in payload


def is_change_event(message: Mapping[str, Any]) -> TypeGuard[ChangeEventMessage]:
    """Say whether *message* is a change event of Change Data Capture.

    :param message: a message as received
    :return: whether it has the shape of one; the channel is not looked at
    """
    payload = _part(message, "payload")
    return isinstance(payload, dict) and isinstance(payload.get("ChangeEventHeader"), dict)


def is_push_topic_event(message: Mapping[str, Any]) -> TypeGuard[PushTopicMessage]:
    """Say whether *message* is an event of a PushTopic.

    :param message: a message as received
    :return: whether it has the shape of one; the channel is not looked at
    """
    return isinstance(_part(message, "sobject"), dict)


def is_generic_event(message: Mapping[str, Any]) -> TypeGuard[GenericEventMessage]:
    """Say whether *message* is a generic event.

    :param message: a message as received
    :return: whether it has the shape of one; the channel is not looked at
    """
    return isinstance(_part(message, "payload"), str)


def _part(message: Mapping[str, Any], name: str) -> Any:
    data = message.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("event"), dict):
        return None
    return data.get(name)
