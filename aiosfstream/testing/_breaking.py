"""Refusing, breaking and moving."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from ._faults import Fault
from ._front import Front
from ._names import check_channel
from ._parts import Controlled, Done, control
from ._plan import PlannedFaults, check
from ._requests import Request

if TYPE_CHECKING:
    from ._server import StreamingServer


class Breaking(Controlled):
    """What can go wrong with an org."""

    #: What answers requests, while the server runs.
    front: Front | None = None

    # Refusing

    @control
    def deny(self, channel: str, error: str) -> None:
        """Refuse subscriptions to *channel* with the text *error*.

        :raises ValueError: if no channel has such a name
        """
        self.parts.bayeux.denied[check_channel(channel)] = error

    @control
    def allow(self, channel: str) -> None:
        """Undo :meth:`deny`."""
        self.parts.bayeux.denied.pop(channel, None)

    @control
    def limit_channels(self, *channels: str) -> None:
        """Let only these channels exist. Without arguments, all exist.

        :raises ValueError: if no channel has one of the names
        """
        for channel in channels:
            check_channel(channel)
        self.parts.bayeux.known_channels = set(channels) or None

    @control
    def revoke_tokens(self) -> None:
        """Revoke every access token. Held connects are answered with the refusal."""
        self.parts.oauth.tokens.clear()
        self.parts.bayeux.sessions.release_all()

    @control
    def expire_sessions(self) -> None:
        """Forget every session. Held connects are answered with ``403::Unknown client``."""
        self.parts.bayeux.forget_sessions()
        self.parts.changes.notify()

    @control
    def disconnect_clients(
        self,
        reconnect: str = "handshake",
        *,
        on: str = "/meta/connect",
        successful: bool = False,
        connect_first: bool = True,
    ) -> None:
        """Send every client an unasked ``/meta/disconnect``.

        :param reconnect: the advice that the connect is answered with: ``handshake`` or ``none``
        :param on: the request whose answer brings it: ``/meta/connect`` or ``/meta/subscribe``
        :param successful: whether that request and the connect succeed
        :param connect_first: with ``on="/meta/subscribe"``, whether a held connect is answered now,
            or after the subscription
        :raises ValueError: if an argument is none of these
        """
        _check_choice("reconnect", reconnect, ("handshake", "none", "retry"))
        _check_choice("on", on, ("/meta/connect", "/meta/subscribe"))
        self.parts.bayeux.sessions.send_away(
            reconnect=reconnect,
            on=on,
            successful=successful,
            connect_first=connect_first or on == "/meta/connect",
        )
        self.parts.changes.notify()

    @control
    def replace_org(self, org_id: str | None = None) -> None:
        """Replace this org with another one. Tokens, sessions and events are gone.

        The replay ids begin again, and the identity URL names another org.

        :param org_id: the id of the new org; None: a new one
        """
        oauth = self.parts.oauth
        oauth.org_id = org_id or f"00D{int(oauth.org_id[3:15]) + 1:012}AAA"
        self.parts.bus.discard(None, 0)
        self.parts.bus.reset_ids()
        self.revoke_tokens()
        self.expire_sessions()

    # Breaking

    @control
    def cut_connections(self) -> None:
        """Cut every connection now with a TCP reset, held connects included."""
        if self.front is not None:
            self.front.cut_all(reset=True)

    @control
    def pause(self) -> Awaitable[None]:
        """Refuse connections from now on, and cut the open ones.

        :return: nothing of interest. Await it to let clients notice
        """
        self._go_down()
        return Done()

    def _go_down(self) -> None:
        self.parts.addresses.running.pause()
        self.cut_connections()

    @control
    def resume(self) -> Awaitable[None]:
        """Accept connections again, at the same port.

        :return: nothing of interest. It may be awaited
        """
        self.parts.addresses.running.resume()
        return Done()

    @control
    def restart(self) -> Awaitable[None]:
        """Go down, forget every session, and come up again at the same port.

        :return: nothing of interest. Await it to let clients notice
        """
        self._go_down()
        self.expire_sessions()
        return self.resume()

    @control
    def move_instance(
        self, to: StreamingServer | None = None, *, status: int | None = 404
    ) -> Awaitable[None]:
        """Move the org: tokens issued from now on name another ``instance_url``.

        :param to: another server, whose events and sessions are its own; None: this one at another
            port
        :param status: how the old one answers CometD requests; 3xx: with the new one as the location;
            None: not at all
        :return: nothing of interest. It may be awaited
        :raises ValueError: if *status* is not that of a refusal
        """
        if status is not None and not 300 <= status <= 599:
            raise ValueError(
                f"status should be from 300 to 599, or None for no answer, not {status}"
            )
        if to is None:
            self.parts.addresses.move(status)
        else:
            self.parts.addresses.leave(status)
        self.parts.successor = to
        self.expire_sessions()
        return Done()

    @control
    def add_fault(
        self,
        *faults: Fault,
        on: str | None = None,
        when: Callable[[Request], bool] | None = None,
        answering: Callable[[Any], bool] | None = None,
        times: int | None = 1,
    ) -> PlannedFaults:
        """Plan faults for the next matching requests.

        :param faults: what goes wrong, in this order, such as ``Delay(1), CutAfter()``
        :param on: ``token``, ``authorize``, ``identity``, or the channel of the request's first
            message; None: any request
        :param when: says whether a request matches
        :param answering: called with the answer as parsed from JSON, says whether it matches; a
            connect that is held already can meet such faults
        :param times: how many requests; None: every one, until :meth:`clear_faults`
        :return: the plan, which counts how often it was used
        :raises TypeError: if one of *faults* is not a fault
        :raises ValueError: if *on* is not the name of a request, or the faults cannot happen to it
        """
        planned = check(PlannedFaults(faults, on, when, answering, times))
        self.parts.plan.add(planned)
        return planned

    @control
    def clear_faults(self, *planned: PlannedFaults) -> None:
        """Forget planned faults.

        :param planned: what :meth:`add_fault` gave; without arguments, all of them
        """
        self.parts.plan.remove(*planned)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} should be one of {', '.join(choices)}, not {value!r}")
