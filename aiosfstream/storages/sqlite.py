"""Replay markers in an SQLite file."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Literal

from aiocometd.typing import JsonObject

from .._internals import Slot
from ..exceptions import ReplayError
from ..replay import (
    DefaultReplayIdMixin,
    DurableStorage,
    Hooks,
    ReplayMarker,
    attachment_of,
    follows,
    usual_marker,
)
from ._groups import GROUP_DELAY, Groups, Pending
from ._marker_file import MarkerFile
from ._presence import Presence, describe
from ._values import as_json

__all__ = ["SQLiteStorage"]

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class _State:
    """What a storage keeps under no name that a subclass could have.

    :ivar path: the file's name
    :ivar groups: the markers to be committed, and the file
    :ivar commit_each: whether every marker is committed by itself
    :ivar may_start_anew: whether the markers of another org may be forgotten
    :ivar presence: the note that tells others that a consumer is using the file
    """

    path: str
    groups: Groups
    commit_each: bool
    may_start_anew: bool
    presence: Presence = field(default_factory=Presence)


_STATES: Final[Slot[_State | None]] = Slot("SQLite file", lambda: None)


def _state_of(storage: SQLiteStorage) -> _State:
    state = _STATES.of(storage)
    if state is None:
        raise RuntimeError(
            f"{type(storage).__name__} has no file: call super().__init__(path) in its constructor"
        )
    return state


def groups_of(storage: SQLiteStorage) -> Groups:
    """Give the markers of a storage that are to be committed, and its file.

    :param storage: the storage
    """
    return _state_of(storage).groups


async def _note_presence(state: _State) -> None:
    """Leave a note in the file that a consumer is using it."""
    presence = state.presence
    note = functools.partial(state.groups.file.note_consumer, presence.name, presence.write())
    await state.groups.in_thread(note)


class SQLiteStorage(DefaultReplayIdMixin, DurableStorage):
    """Keeps markers in an SQLite file, safe across crashes and processes.

    The file has one row for each channel. A thread commits markers in groups, so that neither the disk
    nor another process holds up the event loop. A group is what was stored in one turn of the event
    loop, or in 50 milliseconds if a turn takes longer. It is committed at the latest before the client's
    next request, before ``receive()`` waits, and at ``close()``.

    A stored marker never runs ahead of the application. If the program is killed, the next run receives
    again what was handed over since the last commit: at most 50 milliseconds' worth, plus the time of one
    commit. If the machine loses power, the file stays intact, but the last commit may be lost as well.
    With *commit_each*, every marker is on the disk before its message is handed over, or before its block
    ends. Then nothing is received again, but each message waits for the disk. Committed markers are in
    this one file, which can be mounted or copied on its own.

    Only the owner may read or write the file (mode 600). The permissions of an existing file are changed
    to that. Symbolic links are not followed. A forked process opens the file again.

    :param path: the file, which is created if it does not exist
    :param default_id: a replay option or replay id for channels without a marker; None: new events
    :param commit_each: commit each marker on its own, and wait until it is on the disk
    :param other_org: what to do if a client of another org uses the file, whose markers mean nothing
        there: ``"refuse"`` raises :exc:`~aiosfstream.ReplayError`, ``"start-anew"`` ignores the markers. A
        refreshed sandbox is another org
    :raises ValueError: if *path* is not the name of a file, or *other_org* is neither of the two
    """

    buffers = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        default_id: int | None = None,
        commit_each: bool = False,
        other_org: Literal["refuse", "start-anew"] = "refuse",
    ) -> None:
        super().__init__(default_id)
        if other_org not in ("refuse", "start-anew"):
            raise ValueError(f"other_org should be 'refuse' or 'start-anew', not {other_org!r}")
        name = _name_of_file(path)
        groups = Groups(MarkerFile(name, survives_power_loss=commit_each))
        _STATES.put(self, _State(name, groups, commit_each, other_org == "start-anew"))

    def __repr__(self) -> str:
        """Name the file."""
        return f"{type(self).__name__}({_state_of(self).path!r}, default_id={self.default_id!r})"

    async def __aenter__(self) -> SQLiteStorage:
        """Open the file.

        :raises ReplayError: if it cannot be used
        """
        groups = groups_of(self)
        await groups.in_thread(groups.file.open)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Commit what is pending and close the file; see :meth:`close`."""
        await self.close()

    async def open_for(self, org_id: str | None) -> None:
        """Open the file, unless it is open, and note whose markers it has.

        :param org_id: the id of the org; None if it is not known
        :raises ReplayError: if the file cannot be used, or has markers of another org
        """
        # What is pending belongs to the org of an earlier opening.
        await self.flush()
        state = _state_of(self)
        file = state.groups.file
        if org_id is None:
            await state.groups.in_thread(file.open)
            await _note_presence(state)
            return
        await state.groups.in_thread(
            functools.partial(file.note_org, org_id, may_start_anew=state.may_start_anew)
        )
        await _note_presence(state)

    async def flush(self) -> None:
        """Commit what is pending.

        :raises ReplayError: if that fails; it stays pending and is tried again with the next group
        """
        state = _state_of(self)
        await state.groups.flush()
        if state.presence.is_due:
            try:
                await _note_presence(state)
            except ReplayError as error:
                # Only a marker that cannot be stored is an error.
                LOGGER.warning("%s", error)

    def begin_flush(self) -> bool:
        """Begin to commit what is pending, without waiting for the end.

        :return: whether it is not necessary to wait for :meth:`flush` as well
        :raises ReplayError: the failure of the last attempt; another one has begun
        """
        state = _state_of(self)
        state.groups.begin()
        # If it is due, flush() renews the note about this consumer.
        return not state.presence.is_due

    async def close(self) -> None:
        """Commit what is pending and close the file. It is opened again when it is needed.

        :raises ReplayError: if something cannot be committed; the file is closed nevertheless
        """
        state = _state_of(self)
        try:
            await self.flush()
            if state.presence.is_left:
                state.presence.withdraw()
                forget = functools.partial(state.groups.file.forget_consumer, state.presence.name)
                await state.groups.in_thread(forget)
        finally:
            await state.groups.close()

    async def markers(self) -> dict[str, ReplayMarker]:
        """Give every stored marker, by channel.

        :raises ReplayError: if the file cannot be read
        """
        await self.flush()
        groups = groups_of(self)
        return await groups.in_thread(groups.file.read_all)

    async def delete_replay_marker(self, subscription: str) -> None:
        """Delete a marker, so that its channel starts anew. Without one, nothing happens.

        :param subscription: the channel, without a PushTopic filter's query
        :raises ReplayError: if the file cannot be written
        """
        await self.flush()
        groups = groups_of(self)
        await groups.in_thread(functools.partial(groups.file.delete, subscription))

    async def consumers(self) -> list[str]:
        """Say which programs are using the file: which process, on which machine, seen when.

        A program counts from the opening of a client until the storage is closed. If it was killed, it
        no longer counts: at once if it ran on this machine, and after some minutes otherwise.

        :raises ReplayError: if the file cannot be read
        """
        groups = groups_of(self)
        notes = await groups.in_thread(groups.file.consumers)
        return [text for note in notes if (text := describe(note)) is not None]

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        """Give the last marker, committed or not.

        :param subscription: the channel, without a PushTopic filter's query
        :return: the marker, or None if there is none
        :raises ReplayError: if the file cannot be read
        """
        return await groups_of(self).read(subscription)

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Store a marker whatever is stored, and commit it.

        :param subscription: the channel, without a PushTopic filter's query
        :param replay_marker: the marker
        :raises ReplayError: if it is nothing that JSON can express, or cannot be committed
        """
        as_json(subscription, replay_marker)
        groups_of(self).add(subscription, Pending(replay_marker, overwrites=True))
        await self.flush()

    async def set_unless_newer(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Store a marker, unless the stored one is newer; committed with its group.

        :param subscription: the channel, without a PushTopic filter's query
        :param replay_marker: the marker
        :raises ReplayError: if it is nothing that JSON can express, or each is to be committed by itself
            and that fails
        """
        if replay_marker.replay_id.__class__ is not int:
            as_json(subscription, replay_marker)
        state = _state_of(self)
        state.groups.add(subscription, Pending(replay_marker))
        if state.commit_each:
            await self.flush()

    def direct_store(self) -> Callable[[JsonObject], bool] | None:
        """Give what puts a marker into the group, unless each is committed or storing is replaced."""
        state = _state_of(self)
        if state.commit_each or not _HOOKS.are_those_of(self):
            return None
        groups, client, clock = state.groups, attachment_of(self), time.monotonic

        def store(message: JsonObject) -> bool:
            usual = usual_marker(client, message)
            if usual is None:
                return False
            channel, marker = usual
            waiting = groups.pending.get(channel)
            if (
                waiting is not None
                and follows(waiting.marker, marker)
                and clock() - groups.pending_since < GROUP_DELAY
            ):
                waiting.marker = marker
                return True
            if marker.date[-1:] != "Z" and not marker.date.isdigit():
                return False
            groups.add(channel, Pending(marker))
            return True

        return store

    def __del__(self) -> None:
        state = _STATES.of(self)
        if state is not None:
            state.groups.drop()


_HOOKS: Final = Hooks(SQLiteStorage, "set_unless_newer")


def _name_of_file(path: str | os.PathLike[str]) -> str:
    name = os.fsdecode(path)
    if name in ("", ":memory:"):
        # SQLite takes both for "keep nothing".
        raise ValueError(
            f"path should be the name of a file, not {name!r}: to keep markers for as long as the program runs,"
            " give the client a dict as replay=."
        )
    return name
