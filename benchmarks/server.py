"""The scripted server: a CometD endpoint in a process of its own that costs the client nothing.

It answers with bodies that are encoded beforehand, checks nothing and knows one channel, so that what
is measured is the client. ``python -m benchmarks.server --help`` lists what it can be told to do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Final

from benchmarks.processes import ROOT, allow_many_files
from benchmarks.script import READY_MADE, bodies, event

_ADVICE: Final = b'"advice":{"interval":0,"timeout":110000,"reconnect":"retry"},'
_END_OF_HEAD: Final = b"\r\n\r\n"


@dataclass(frozen=True)
class Script:
    """What the server does with a session once it has subscribed.

    :ivar events: how many events it gets in all
    :ivar batch: how many of them in one response
    :ivar period: seconds between two events, which then come one by one and carry the time at which
        they were sent; 0: all of them as fast as they are asked for
    :ivar hold: seconds that a connect is held when there is nothing to send
    """

    events: int = 20_000
    batch: int = 200
    period: float = 0.0
    hold: float = 110.0


@dataclass
class Session:
    """A Bayeux session.

    :ivar feed: the bodies that are still to be sent, while events come as fast as they are asked for
    :ivar queue: events that nobody has asked for yet, while they come one by one
    """

    client_id: str
    number: int
    subscribed: bool = False
    feed: Iterator[bytes] = field(default_factory=lambda: iter(()))
    ahead: bytes | None = None
    queue: deque[bytes] = field(default_factory=deque)
    held: Held | None = None


@dataclass
class Held:
    """A connect without an answer."""

    connection: Connection
    message_id: str
    replies: list[bytes]
    timer: asyncio.TimerHandle


class Server:
    """Sessions, and what they are sent."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.sessions: dict[str, Session] = {}
        self.base_url = ""
        self._opened = 0
        self._ready_made = (
            list(bodies(script.events, script.batch))
            if not script.period and script.events <= READY_MADE
            else None
        )

    def token(self) -> bytes:
        """Answer a request for a token."""
        reply = {
            "access_token": "00Dx0000000BV7z!token",
            "instance_url": self.base_url,
            "id": f"{self.base_url}/id/00Dx0000000BV7z/005x00000012Q9P",
            "token_type": "Bearer",
            "issued_at": "1278448832702",
            "signature": "0CmxinZir53Yex7nE0TD",
        }
        return json.dumps(reply).encode()

    def stats(self) -> bytes:
        """Say how many sessions there are, and how many connects are held."""
        held = sum(session.held is not None for session in self.sessions.values())
        return json.dumps({"sessions": len(self.sessions), "held": held}).encode()

    def handle(self, connection: Connection, body: bytes) -> None:
        """Answer the messages of a request."""
        messages = json.loads(body)
        if isinstance(messages, dict):
            messages = [messages]
        replies: list[bytes] = []
        connect: dict[str, Any] | None = None
        cookie = False
        for message in messages:
            if not self._is_known(message):
                replies.append(_refusal(message))
            elif message["channel"] == "/meta/connect":
                connect = message
            else:
                cookie = cookie or message["channel"] == "/meta/handshake"
                replies.append(self._reply(message))
        if connect is None:
            connection.answer(b"[" + b",".join(replies) + b"]", cookie=cookie)
        else:
            self._connect(connection, connect, replies)

    def _is_known(self, message: dict[str, Any]) -> bool:
        # A disconnect may overtake a connect that was sent before it on another connection.
        return message["channel"] == "/meta/handshake" or message.get("clientId") in self.sessions

    def _reply(self, message: dict[str, Any]) -> bytes:
        channel = message["channel"]
        reply = {"channel": channel, "id": message.get("id"), "successful": True}
        if channel == "/meta/handshake":
            session = self._open()
            reply |= {"version": "1.0", "supportedConnectionTypes": ["long-polling"]}
            reply |= {"clientId": session.client_id, "ext": {"replay": True}}
            return json.dumps(reply).encode()
        session = self.sessions[message["clientId"]]
        reply["clientId"] = session.client_id
        if channel == "/meta/subscribe":
            reply["subscription"] = message["subscription"]
            asyncio.get_running_loop().call_soon(self._start, session)
        elif channel == "/meta/unsubscribe":
            reply["subscription"] = message["subscription"]
            session.subscribed = False
        elif channel == "/meta/disconnect":
            self._end(session)
        return json.dumps(reply).encode()

    def _open(self) -> Session:
        self._opened += 1
        session = Session(f"1cyu4session{self._opened:012}", self._opened)
        self.sessions[session.client_id] = session
        return session

    def _end(self, session: Session) -> None:
        self.sessions.pop(session.client_id, None)
        session.subscribed = False
        if session.held is not None:
            self._release(session, b"")

    def _start(self, session: Session) -> None:
        """Begin to send events, now that the subscription has been answered."""
        session.subscribed = True
        script = self.script
        if not script.period:
            made = self._ready_made
            session.feed = iter(bodies(script.events, script.batch) if made is None else made)
            session.ahead = next(session.feed, None)
            self._feed(session)
        elif script.events:
            # Sessions that are opened together must not all be sent to at the same time.
            offset = script.period * (session.number * 0.618 % 1)
            loop = asyncio.get_running_loop()
            loop.call_later(offset, self._pulse, session, 1, loop.time() + offset)

    def _pulse(self, session: Session, number: int, due: float) -> None:
        if not session.subscribed:
            return
        session.queue.append(event(number, time.monotonic_ns()).encode())
        self._feed(session)
        if number < self.script.events:
            loop = asyncio.get_running_loop()
            due += self.script.period
            loop.call_at(due, self._pulse, session, number + 1, due)

    def _connect(
        self, connection: Connection, message: dict[str, Any], replies: list[bytes]
    ) -> None:
        session, message_id = self.sessions[message["clientId"]], str(message.get("id"))
        if message.get("advice", {}).get("timeout") == 0:
            replies.append(_connect_reply(session.client_id, message_id, _ADVICE))
            connection.answer(b"[" + b",".join(replies) + b"]")
            return
        timer = asyncio.get_running_loop().call_later(self.script.hold, self._release, session, b"")
        session.held = Held(connection, message_id, replies, timer)
        if session.subscribed:
            self._feed(session)

    def _feed(self, session: Session) -> None:
        """Answer the held connect if there are events for it, then prepare the next answer."""
        if session.held is None:
            return
        if session.queue:
            events = b",".join(session.queue)
            session.queue.clear()
            self._release(session, events)
        elif session.ahead is not None:
            self._release(session, session.ahead)
            session.ahead = next(session.feed, None)

    def _release(self, session: Session, events: bytes) -> None:
        held, session.held = session.held, None
        assert held is not None
        held.timer.cancel()
        reply = _connect_reply(session.client_id, held.message_id)
        parts = [*held.replies, events, reply] if events else [*held.replies, reply]
        held.connection.answer(b"[" + b",".join(parts) + b"]")


def _refusal(message: dict[str, Any]) -> bytes:
    return json.dumps(
        {
            "channel": message["channel"],
            "id": message.get("id"),
            "successful": False,
            "error": "403::Unknown client",
            "advice": {"reconnect": "none", "interval": 0},
        }
    ).encode()


def _connect_reply(client_id: str, message_id: str, advice: bytes = b"") -> bytes:
    return b'{"clientId":"%b",%b"channel":"/meta/connect","id":"%b","successful":true}' % (
        client_id.encode(),
        advice,
        message_id.encode(),
    )


class Connection(asyncio.Protocol):
    """As much of HTTP/1.1 as the clients need: one request after another."""

    _transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self._server = server
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head, separator, rest = self._buffer.partition(_END_OF_HEAD)
            if not separator:
                return
            body, length = _read_body(head, rest)
            if body is None:
                return
            self._buffer = rest[length:]
            self._handle(head, body)

    def _handle(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path.endswith(b"/services/oauth2/token"):
            self.answer(self._server.token())
        elif path == b"/stats":
            self.answer(self._server.stats())
        else:
            self._server.handle(self, body)

    def answer(self, body: bytes, *, cookie: bool = False) -> None:
        """Send a response."""
        # Salesforce does not work without cookies, so clients have to carry one here as well.
        cookies = b"Set-Cookie: BAYEUX_BROWSER=47a3-1x; Path=/; HttpOnly\r\n" if cookie else b""
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json;charset=UTF-8\r\n"
            b"Cache-Control: no-cache\r\n%bContent-Length: %d\r\n\r\n%b"
            % (cookies, len(body), body)
        )


def _read_body(head: bytes, rest: bytes) -> tuple[bytes | None, int]:
    """Give the body, or None if it is not there yet, and how much of *rest* it takes."""
    headers = head.lower()
    if b"transfer-encoding: chunked" in headers:
        return _read_chunks(rest)
    _, name, value = headers.partition(b"\r\ncontent-length:")
    length = int(value.partition(b"\r\n")[0]) if name else 0
    return (rest[:length] if len(rest) >= length else None), length


def _read_chunks(rest: bytes) -> tuple[bytes | None, int]:
    body, position = b"", 0
    while True:
        end = rest.find(b"\r\n", position)
        if end < 0:
            return None, 0
        size = int(rest[position:end], 16)
        position = end + 2 + size + 2
        if len(rest) < position:
            return None, 0
        if not size:
            return body, position
        body += rest[end + 2 : position - 2]


class ServerProcess:
    """The server in a process of its own, while the block runs."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def __enter__(self) -> ServerProcess:
        options = [f"--{name}={value}" for name, value in asdict(self._script).items()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.server", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError("the scripted server did not start")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()


async def serve(script: Script) -> None:
    """Serve until standard input is closed, as it is when the parent ends, however it does."""
    loop = asyncio.get_running_loop()
    server = Server(script)
    listener = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0, backlog=4096)
    server.base_url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    print(server.base_url, flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    listener.close()


def main() -> None:
    """Serve what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server", description=__doc__)
    for name, value in asdict(Script()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    allow_many_files()
    asyncio.run(serve(Script(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
