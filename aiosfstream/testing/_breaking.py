"""Refusing, breaking and moving."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ._faults import Fault
from ._front import Front
from ._parts import Controlled, Done, control
from ._plan import Planned
from ._requests import Request


class Breaking(Controlled):
    """What can go wrong with an org."""

    #: What answers requests, while the server runs.
    front: Front | None = None

    # Refusing

    @control
    def deny(self, channel: str, error: str) -> None:
        """Refuse subscriptions to *channel* with the text *error*."""
        self.parts.bayeux.denied[channel] = error

    @control
    def allow(self, channel: str) -> None:
        """Take back :meth:`deny`."""
        self.parts.bayeux.denied.pop(channel, None)

    @control
    def limit_channels(self, *channels: str) -> None:
        """Let only these channels exist; without arguments all do."""
        self.parts.bayeux.known_channels = set(channels) or None

    @control
    def revoke_tokens(self) -> None:
        """Revoke every access token. Held connects are answered with the refusal."""
        self.parts.oauth.tokens.clear()
        self.parts.bayeux.release_all()

    @control
    def expire_sessions(self) -> None:
        """Forget every session. Held connects are answered with ``403::Unknown client``."""
        self.parts.bayeux.forget_sessions()
        self.parts.changes.notify()

    @control
    def disconnect_clients(self, reconnect: str = "handshake") -> None:
        """Send every client an unasked ``/meta/disconnect``, in the answer to a connect.

        :param reconnect: the advice that comes with it: ``handshake`` or ``none``
        """
        self.parts.bayeux.send_away(reconnect)
        self.parts.changes.notify()

    # Breaking

    @control
    def cut_connections(self) -> None:
        """Cut every connection now with a TCP reset, held connects included."""
        if self.front is not None:
            self.front.cut_all(reset=True)

    @control
    def pause(self) -> Awaitable[None]:
        """Refuse connections from now on, and cut those that there are.

        :return: nothing of interest; it may be awaited, so that clients notice
        """
        self._go_down()
        return Done()

    def _go_down(self) -> None:
        self.parts.addresses.running.pause()
        self.cut_connections()

    @control
    def resume(self) -> Awaitable[None]:
        """Accept connections again, at the same port.

        :return: nothing of interest; it may be awaited
        """
        self.parts.addresses.running.resume()
        return Done()

    @control
    def restart(self) -> Awaitable[None]:
        """Go down, forget every session, and come up again at the same port.

        :return: nothing of interest; it may be awaited, so that clients notice
        """
        self._go_down()
        self.expire_sessions()
        return self.resume()

    @control
    def move_instance(self, *, status: int = 404) -> Awaitable[None]:
        """Move the org: tokens issued from now on name another ``instance_url``.

        :param status: how the old one answers CometD requests; 3xx: with the new one as the location
        :return: nothing of interest; it may be awaited
        """
        self.parts.addresses.move(status)
        self.expire_sessions()
        return Done()

    @control
    def add_fault(
        self,
        *faults: Fault,
        on: str | None = None,
        when: Callable[[Request], bool] | None = None,
        times: int = 1,
    ) -> None:
        """Let the next matching requests meet with faults.

        :param faults: what goes wrong, put together, such as ``Delay(1), CutAfter()``
        :param on: ``token``, ``authorize``, or the channel of the request's first message; None: any
            request
        :param when: says whether a request matches
        :param times: how many requests
        """
        self.parts.plan.add(Planned(faults, on, when, times))

    @control
    def clear_faults(self) -> None:
        """Forget the faults that have not been met yet."""
        self.parts.plan.clear()
