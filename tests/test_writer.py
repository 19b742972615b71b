"""The messages that a session sends."""

from __future__ import annotations

from aiosfstream._cometd.writer import Writer


class Client:
    """Somebody with an id."""

    client_id: str | None = "client"


def test_what_each_message_says() -> None:
    writer = Writer(Client())
    messages = [
        writer.handshake(["long-polling"]),
        writer.connect(None),
        writer.connect(2.5),
        writer.connect(0.0),
        writer.subscribe("/event/A__e"),
        writer.unsubscribe("/event/B__e"),
        writer.publish("/x", {"a": 1}),
        writer.disconnect("old"),
    ]
    ids = [message.pop("id") for message in messages]
    assert ids == ["1", "2", "3", "4", "5", "6", "7", "8"]
    known = {"clientId": "client"}
    connect = {"channel": "/meta/connect", **known, "connectionType": "long-polling"}
    assert messages == [
        {
            "channel": "/meta/handshake",
            "version": "1.0",
            "minimumVersion": "1.0",
            "supportedConnectionTypes": ["long-polling"],
        },
        connect,
        {**connect, "advice": {"timeout": 2500}},
        {**connect, "advice": {"timeout": 0}},
        {"channel": "/meta/subscribe", **known, "subscription": "/event/A__e"},
        {"channel": "/meta/unsubscribe", **known, "subscription": "/event/B__e"},
        {"channel": "/x", **known, "data": {"a": 1}},
        {"channel": "/meta/disconnect", "clientId": "old"},
    ]


def test_the_present_id_is_sent() -> None:
    client = Client()
    writer = Writer(client)
    client.client_id = "another"
    assert writer.publish("/x", {})["clientId"] == "another"
