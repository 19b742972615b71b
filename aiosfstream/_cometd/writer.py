"""The messages that a session sends."""

from __future__ import annotations

from typing import Any, Protocol

from aiocometd.typing import JsonObject

from .messages import CONNECT, DISCONNECT, HANDSHAKE, SUBSCRIBE, UNSUBSCRIBE


class Client(Protocol):
    """Whose messages they are.

    :ivar client_id: the id that the server gave to the present session, or None
    """

    client_id: str | None


class Writer:
    """Builds messages, each with an id of its own.

    :param client: whose messages they are
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._last_id = 0

    def handshake(self, connection_types: list[str]) -> JsonObject:
        """Build a handshake.

        :param connection_types: what is offered
        """
        return self._message(
            HANDSHAKE,
            version="1.0",
            minimumVersion="1.0",
            supportedConnectionTypes=connection_types,
        )

    def connect(self, hold: float | None) -> JsonObject:
        """Build a connect.

        :param hold: seconds that the server is asked to hold it; None: its own choice
        """
        message = self._with_client(CONNECT, connectionType="long-polling")
        if hold is not None:
            message["advice"] = {"timeout": round(hold * 1000)}
        return message

    def subscribe(self, channel: str) -> JsonObject:
        """Build a subscribe, without the replay id.

        :param channel: the channel
        """
        return self._with_client(SUBSCRIBE, subscription=channel)

    def unsubscribe(self, channel: str) -> JsonObject:
        """Build an unsubscribe.

        :param channel: the channel
        """
        return self._with_client(UNSUBSCRIBE, subscription=channel)

    def publish(self, channel: str, data: JsonObject) -> JsonObject:
        """Build a publish.

        :param channel: the channel
        :param data: what to publish
        """
        return self._with_client(channel, data=data)

    def disconnect(self, client_id: str) -> JsonObject:
        """Build a disconnect.

        :param client_id: the session to end, which may be one that was left
        """
        return self._message(DISCONNECT, clientId=client_id)

    def _with_client(self, channel: str, **fields: Any) -> JsonObject:
        return self._message(channel, clientId=self._client.client_id, **fields)

    def _message(self, channel: str, **fields: Any) -> JsonObject:
        # Never reset: an answer of an earlier session must not fit a request of this one.
        self._last_id += 1
        return {"channel": channel, "id": str(self._last_id), **fields}
