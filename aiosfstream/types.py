"""What events look like, for type checkers and editors.

:meth:`Client.receive() <aiosfstream.Client.receive>` returns messages as plain dictionaries, exactly as the
server sent them. Nothing is converted or checked, so an event of a new shape is delivered like any other. These
types describe the four known kinds. The functions say which kind a message is, and narrow its type::

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

#: What happened to a record. The ``GAP_`` kinds mean that you must read the record in the org.
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
    """What the server says about an event.

    :ivar replayId: the position of the event in its channel. It is opaque: compare it for equality only
    :ivar EventUuid: the unique id of a platform event, since API version 52.0
    """

    EventUuid: str


class DatedReplay(_ReplayId):
    """Like :class:`Replay`, for the kinds of events that have their date here.

    :ivar createdDate: when the event was created, in ISO 8601
    """

    createdDate: str


class PushTopicReplay(DatedReplay):
    """Like :class:`DatedReplay`, for PushTopics.

    :ivar type: what happened to the record
    """

    type: Literal["created", "updated", "deleted", "undeleted"]


class _Channel(TypedDict):
    channel: str


class Envelope(_Channel):
    """An event of any shape. Use ``cast`` with it for an event that is none of the four kinds.

    :ivar channel: the channel that the event was delivered on
    :ivar data: the event
    """

    data: dict[str, Any]


class PlatformEventData(TypedDict):
    """The data of a platform event.

    :ivar schema: the id of the event definition, which differs for each version
    :ivar payload: the fields of the event, including ``CreatedDate`` and ``CreatedById``
    :ivar event: what the server says about the event
    """

    schema: str
    payload: dict[str, Any]
    event: Replay


class PlatformEventMessage(_Channel):
    """A standard or custom platform event, from a channel below ``/event/``.

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
    """What a change event says about the change.

    :ivar entityName: the API name of the object
    :ivar recordIds: the ids of the records; several if equal changes in one transaction were merged
    :ivar changeType: what happened to the records
    :ivar changeOrigin: what made the change, as ``com/salesforce/api/<api>/<version>;client=<id>``; may be empty
    :ivar transactionKey: the same for all changes in one transaction
    :ivar sequenceNumber: the position within the transaction, starting with 1
    :ivar commitTimestamp: when the change was committed, in milliseconds since the epoch
    :ivar commitUser: the id of the user who made the change
    :ivar commitNumber: the position among all transactions
    :ivar changedFields: the fields that an update changed
    :ivar nulledFields: the fields that an update cleared. Salesforce does not send this to CometD clients: a
        cleared field is in the payload with the value None
    :ivar diffFields: the fields that are sent as a difference. Salesforce does not send this to CometD clients
    """

    commitNumber: int
    changedFields: list[str]
    nulledFields: list[str]
    diffFields: list[str]


class ChangeEventPayload(TypedDict):
    """The payload of a change event: the header, and the fields of the record that changed.

    To type the fields of your object, derive a class from this one with ``total=False``, and ``cast`` to it.

    :ivar ChangeEventHeader: what the event says about the change
    """

    ChangeEventHeader: ChangeEventHeader


class ChangeEventData(TypedDict):
    """The data of a change event.

    :ivar schema: the id of the object definition, which differs for each version
    :ivar payload: the header and the changed fields
    :ivar event: what the server says about the event
    """

    schema: str
    payload: ChangeEventPayload
    event: Replay


class ChangeEventMessage(_Channel):
    """A change event (Change Data Capture), from a channel below ``/data/``.

    :ivar data: the event
    """

    data: ChangeEventData


class PushTopicData(TypedDict):
    """The data of a PushTopic event.

    :ivar event: what the server says about the event
    :ivar sobject: the fields of the record that the PushTopic's query selects
    """

    event: PushTopicReplay
    sobject: dict[str, Any]


class PushTopicMessage(_Channel):
    """A PushTopic event, from a channel below ``/topic/``.

    :ivar data: the event
    """

    data: PushTopicData


class GenericEventData(TypedDict):
    """The data of a generic event.

    :ivar event: what the server says about the event
    :ivar payload: the text that was published
    """

    event: DatedReplay
    payload: str


class GenericEventMessage(_Channel):
    """A generic event, from a channel below ``/u/``.

    :ivar data: the event
    """

    data: GenericEventData


#: A message of any of the four kinds.
Message = PlatformEventMessage | ChangeEventMessage | PushTopicMessage | GenericEventMessage


def is_platform_event(message: Mapping[str, Any]) -> TypeGuard[PlatformEventMessage]:
    """Say whether *message* is a platform event.

    :param message: a message as received
    :return: whether it has the shape of one. The channel is not checked
    """
    payload = _part(message, "payload")
    return isinstance(payload, dict) and "ChangeEventHeader" not in payload


def is_change_event(message: Mapping[str, Any]) -> TypeGuard[ChangeEventMessage]:
    """Say whether *message* is a change event (Change Data Capture).

    :param message: a message as received
    :return: whether it has the shape of one. The channel is not checked
    """
    payload = _part(message, "payload")
    return isinstance(payload, dict) and isinstance(payload.get("ChangeEventHeader"), dict)


def is_push_topic_event(message: Mapping[str, Any]) -> TypeGuard[PushTopicMessage]:
    """Say whether *message* is a PushTopic event.

    :param message: a message as received
    :return: whether it has the shape of one. The channel is not checked
    """
    return isinstance(_part(message, "sobject"), dict)


def is_generic_event(message: Mapping[str, Any]) -> TypeGuard[GenericEventMessage]:
    """Say whether *message* is a generic event.

    :param message: a message as received
    :return: whether it has the shape of one. The channel is not checked
    """
    return isinstance(_part(message, "payload"), str)


def _part(message: Mapping[str, Any], name: str) -> Any:
    data = message.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("event"), dict):
        return None
    return data.get(name)
