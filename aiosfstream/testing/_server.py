"""A Salesforce-like org on loopback."""

from __future__ import annotations

import asyncio
import os
import ssl as ssl_module
import threading
from pathlib import Path
from types import TracebackType

from ._bayeux import Bayeux
from ._breaking import Breaking
from ._credentials import LoggingIn
from ._event_file import EventFile
from ._events import EventBus
from ._front import Front
from ._looking import Looking
from ._oauth import OAuth
from ._parts import Parts
from ._ports import Addresses
from ._publishing import Publishing
from ._waiting import Changes


class StreamingServer(LoggingIn, Publishing, Breaking, Looking):
    """An org to test against: token endpoint, Streaming API with replay, and faults on demand.

    An async context manager::

        async with StreamingServer() as server:
            client = SalesforceStreamingClient(**server.credentials)
            ...
            server.publish("/event/Low_Ink__e", {"Ink_Percentage__c": 0.2})

    It behaves as the Streaming API Developer Guide says that Salesforce does. Everything that controls
    it is an ordinary function, which takes effect before it returns and may be called from any
    thread. What fails in the server is raised at the end of the block.

    The arguments are also attributes, which may be changed while it runs unless it says otherwise.

    :param session_timeout: seconds after an answer until a session without a request is deleted
    :param hold_timeout: seconds that a connect is held without events
    :param max_batch: events in one answer at the most
    :param max_clients: sessions at the most; further handshakes are denied
    :param ssl_context: serve https with this context
    :param rotate_refresh_tokens: whether each refresh ends the refresh token used and gives a new
        one; later ``server.oauth.rotate``
    :param jwt_public_key: the public key that verifies JWT assertions, PEM; later
        ``server.oauth.public_key``
    :param text_replay_ids: whether replay ids are text
    :param slash: whether ``instance_url`` ends with a slash
    :param http_401: answer refused tokens with HTTP status 401 and a page, as older versions do
    :param advise_multiple_clients: give sessions that share a browser cookie the advice to poll slowly
    :param my_domain: whether it is a My Domain host; the client credentials flow works on no other.
        Later ``server.oauth.my_domain``
    :param advised_timeout: the seconds that clients are told a connect may be held; None:
        *hold_timeout*
    :param keepalive_timeout: seconds after an answer until its connection is closed; None: aiohttp's
        default. Only an argument
    :param port: the port to listen at; 0: any that is free. Only an argument
    :param events_file: a file that keeps the events when the program ends, so that another one can
        start with them; None: nothing does. Only an argument
    """

    def __init__(
        self,
        *,
        session_timeout: float = 40.0,
        hold_timeout: float = 110.0,
        max_batch: int = 1000,
        max_clients: int = 2000,
        ssl_context: ssl_module.SSLContext | None = None,
        rotate_refresh_tokens: bool = False,
        jwt_public_key: str | bytes | None = None,
        text_replay_ids: bool = False,
        slash: bool = False,
        http_401: bool = False,
        advise_multiple_clients: bool = True,
        my_domain: bool = True,
        advised_timeout: float | None = None,
        keepalive_timeout: float | None = None,
        port: int = 0,
        events_file: str | os.PathLike[str] | None = None,
    ) -> None:
        self.session_timeout = session_timeout
        self.hold_timeout = hold_timeout
        self.max_batch = max_batch
        self.max_clients = max_clients
        self.slash = slash
        self.http_401 = http_401
        self.advise_multiple_clients = advise_multiple_clients
        self.advised_timeout = advised_timeout
        self._keepalive_timeout = keepalive_timeout
        #: Who may log in, and with what.
        self.oauth = OAuth(
            rotate=rotate_refresh_tokens, public_key=jwt_public_key, my_domain=my_domain
        )
        #: Mistakes of clients, in words: what Salesforce forbids or objects to.
        self.violations: list[str] = []
        file = None if events_file is None else EventFile(Path(events_file))
        bus, changes = EventBus(text_ids=text_replay_ids, file=file), Changes()
        bayeux = Bayeux(self, bus, self.oauth.tokens, self.violations, changes.notify)
        addresses = Addresses(ssl_context, port)
        super().__init__(Parts(self.oauth, bus, bayeux, addresses, self.violations, changes))

    # Running

    async def __aenter__(self) -> StreamingServer:
        """Start serving on 127.0.0.1.

        :raises OSError: if the port is in use
        """
        self.parts.loop, self.parts.thread = asyncio.get_running_loop(), threading.get_ident()
        self.front = Front(self.parts, self, self._keepalive_timeout)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Stop serving.

        :raises Exception: what a handler raised, if the block did not
        """
        front, self.front = self.front, None
        if front is not None:
            await front.stop()
        self.parts.loop = self.parts.thread = None
        if exc_val is None and self.parts.errors:
            raise self.parts.errors[0]
