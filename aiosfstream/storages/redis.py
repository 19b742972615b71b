"""Replay markers in Redis."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal

from .._dates import AHEAD
from ..exceptions import ReplayError
from ..replay import DefaultReplayIdMixin, DurableStorage, ReplayMarker
from ._presence import Presence, describe
from ._values import NO_DATE, as_json, moment_of, short_id, sound

try:
    import redis
    from redis import exceptions as redis_exceptions
except ImportError as error:
    raise ImportError(
        "RedisStorage needs redis-py: install it with pip install 'aiosfstream[redis]'"
    ) from error

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

__all__ = ["RedisStorage"]

LOGGER = logging.getLogger(__name__)

# Compares and stores in one step, so that two consumers cannot move a marker back; the rule is that of
# should_store(). Sent with every call and not by its hash: after a restart Redis does not know the hash
# any more. Ids are JSON, and those that are whole numbers are compared by length and text, since numbers
# in Lua are not exact.
_STORE: Final = """
local date, moment, id, overwrites = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local latest, unknown, org, started_anew = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7], ARGV[8]
local found = redis.call('HMGET', KEYS[1], 'instant', 'replay_id', 'org')
local function is_whole(text)
    return text and not string.find(text, '[^0-9]')
end
local function stays()
    local before, known, its_org = tonumber(found[1] or ''), found[2], found[3] or ''
    if overwrites == '1' or not before then return false end
    if org ~= '' and its_org ~= org and (its_org ~= '' or started_anew == '1') then return false end
    if before > latest then before = unknown end
    if before ~= moment then return before > moment end
    if before == unknown or not is_whole(known) or not is_whole(id) then return false end
    if #known ~= #id then return #known > #id end
    return known > id
end
if stays() then return 0 end
redis.call('HSET', KEYS[1], 'date', date, 'instant', ARGV[2], 'replay_id', id, 'org', org)
return 1
"""
# Notes whose markers these are. Writes in any case, so that missing rights are found when the client is opened.
_OPEN: Final = """
local org, may_start_anew = ARGV[1], ARGV[2]
local found = redis.call('HMGET', KEYS[1], 'org', 'started_anew')
local known, started_anew = found[1] or '', found[2] or '0'
redis.call('HSET', KEYS[1], 'format', '1')
if org ~= '' and known == '' then
    redis.call('HSET', KEYS[1], 'org', org)
elseif org ~= '' and known ~= org then
    if may_start_anew == '0' then return {'refused', known} end
    redis.call('HSET', KEYS[1], 'org', org, 'started_anew', '1')
    return {'anew', known}
end
return {'known', started_anew}
"""
#: What one more attempt, on a new connection, may get past.
_PASSING: Final = (
    redis_exceptions.ConnectionError,
    redis_exceptions.ReadOnlyError,
    redis_exceptions.BusyLoadingError,
    redis_exceptions.MovedError,
    redis_exceptions.ClusterDownError,
    redis_exceptions.MasterDownError,
    OSError,
)


#: What the notes of consumers are called after the prefix. The names of channels begin with a slash.
CONSUMERS: Final = "consumers"


class RedisStorage(DefaultReplayIdMixin, DurableStorage):
    """Keeps markers in Redis, for programs that run on more than one machine.

    There is one hash for each channel. A marker is compared with the stored one and stored in a single
    step, so it is never moved back, even if two consumers overlap. It is stored before its message is
    handed over, or before its block ends: one round trip for each message.

    If a connection is broken, or leads to a server that takes no writes any more, it is dropped, and the
    command is sent once more, so a quick restart or failover goes unnoticed. If Redis stays away, you get
    :exc:`~aiosfstream.ReplayError`, and the next ``receive()`` tries again. The ``retry`` of your Redis client
    may make more attempts. Redis's own settings decide what a crash of Redis costs: with ``appendonly yes``
    and ``appendfsync everysec``, the markers of about a second. If a marker is lost, messages are delivered
    again.

    The Redis user needs the commands ``EVAL``, ``HMGET`` and ``HSET`` on keys that begin with the prefix.
    Opening a client checks whether it may use them.

    :param client: a :class:`redis.asyncio.Redis`, a :class:`redis.asyncio.RedisCluster`, or a client with the
        same commands. Closing it is up to you
    :param prefix: the beginning of the keys' names, such as ``"orders:markers:"``. Give each application
        its own
    :param default_id: a replay option or replay id for channels without a marker; None: new events
    :param other_org: what to do if a client of another org uses the prefix, whose markers mean nothing
        there: ``"refuse"`` raises :exc:`~aiosfstream.ReplayError`, ``"start-anew"`` ignores the markers. A
        refreshed sandbox is another org
    :raises TypeError: if *client* is a synchronous one
    :raises ValueError: if *other_org* is neither of the two
    """

    def __init__(
        self,
        client: Redis | RedisCluster,
        *,
        prefix: str,
        default_id: int | None = None,
        other_org: Literal["refuse", "start-anew"] = "refuse",
    ) -> None:
        super().__init__(default_id)
        if isinstance(client, (redis.Redis, redis.RedisCluster)):
            raise TypeError(
                f"client should be one of redis.asyncio, not the synchronous {type(client).__name__!r}"
            )
        if other_org not in ("refuse", "start-anew"):
            raise ValueError(f"other_org should be 'refuse' or 'start-anew', not {other_org!r}")
        self._client: Any = client
        self._prefix = prefix
        self._other_org = other_org
        # The org of the client; empty if it is not known. Markers that name no org are another's once the
        # store has been started anew.
        self._org = ""
        self._started_anew = False
        self._presence = Presence()

    def __repr__(self) -> str:
        """Show the prefix; the client may hold a password."""
        return f"{type(self).__name__}(prefix={self._prefix!r}, default_id={self.default_id!r})"

    async def open_for(self, org_id: str | None) -> None:
        """Note whose markers these are, and find out whether they can be written.

        :param org_id: the id of the org; None if it is not known
        :raises ReplayError: if Redis cannot be used, or has markers of another org
        """
        org = "" if org_id is None else short_id(org_id)
        may_start_anew = self._other_org == "start-anew"
        key = self._prefix + "org"
        answer = await self._ask(
            key, lambda: self._client.eval(_OPEN, 1, key, org, str(int(may_start_anew)))
        )
        what, value = map(_text, answer)
        if what == "refused":
            raise ReplayError(
                f"The replay markers in Redis with prefix {self._prefix!r} belong to the org {value}, and this client"
                f" is of {org}: they mean nothing there. Give each org a prefix of its own, or pass"
                " other_org='start-anew' to leave the old markers alone, for example after a sandbox was"
                " refreshed."
            )
        if what == "anew":
            LOGGER.warning(
                "Left the markers of the org %s with prefix %r alone: from now on it belongs to %s",
                value,
                self._prefix,
                org,
            )
        self._org, self._started_anew = org, what == "anew" or value == "1"
        # A user of Redis may lack the rights for these. If a marker cannot be stored, that is an error.
        with suppress(ReplayError):
            await self._note_presence()
            await self._forget_the_gone()

    # Consumers

    async def flush(self) -> None:
        """Renew the note about this consumer, now and then. Markers are stored already."""
        if self._presence.is_due:
            with suppress(ReplayError):
                await self._note_presence()

    async def _note_presence(self) -> None:
        key, note = self._prefix + CONSUMERS, self._presence.write()
        await self._ask(key, lambda: self._client.hset(key, self._presence.name, note))

    async def _notes(self) -> dict[str, str]:
        key = self._prefix + CONSUMERS
        found = await self._ask(key, lambda: self._client.hgetall(key))
        return {_text(name) or "": _text(note) or "" for name, note in found.items()}

    async def _forget_the_gone(self) -> None:
        key = self._prefix + CONSUMERS
        gone = [name for name, note in (await self._notes()).items() if describe(note) is None]
        if gone:
            await self._ask(key, lambda: self._client.hdel(key, *gone))

    async def consumers(self) -> list[str]:
        """Say which programs are using these markers: which process, on which machine, seen when.

        A program counts from the opening of a client until some minutes after its last request. If it
        ran on this machine, it counts until it ends.

        :raises ReplayError: if Redis cannot be reached or refuses it
        """
        notes = (await self._notes()).values()
        return [text for note in notes if (text := describe(note)) is not None]

    # Markers

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        """Return the stored marker.

        :param subscription: the channel, without a PushTopic filter's query
        :return: the marker, or None if there is none
        :raises ReplayError: if Redis cannot be reached, or has something else there
        """
        key = self._key(subscription)
        found = await self._ask(key, lambda: self._client.hmget(key, "date", "replay_id", "org"))
        date, replay_id, org = map(_text, found)
        if date is None or replay_id is None or self._is_of_another_org(org or ""):
            return None
        try:
            return ReplayMarker(date, json.loads(replay_id))
        except ValueError as error:
            raise ReplayError(
                f"The Redis key {key!r} holds no replay marker: {error}. Delete it, or use another prefix."
            ) from error

    def _is_of_another_org(self, org: str) -> bool:
        return bool(self._org) and org != self._org and (bool(org) or self._started_anew)

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Store a marker, whatever is stored.

        :param subscription: the channel, without a PushTopic filter's query
        :param replay_marker: the marker
        :raises ReplayError: if Redis cannot be reached or refuses it
        """
        await self._store(subscription, replay_marker, overwrites=True)

    async def set_unless_newer(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Store a marker, unless the stored one is newer, in a single step.

        :param subscription: the channel, without a PushTopic filter's query
        :param replay_marker: the marker
        :raises ReplayError: if Redis cannot be reached or refuses it
        """
        await self._store(subscription, replay_marker, overwrites=False)

    async def markers(self) -> dict[str, ReplayMarker]:
        """Give every stored marker, by channel.

        :raises ReplayError: if Redis cannot be reached, or has something else there
        """
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", self._prefix) + "/*"
        keys = await self._ask(pattern, functools.partial(self._keys, pattern))
        names = sorted({(_text(key) or "")[len(self._prefix) :] for key in keys})
        found = {name: await self.get_replay_marker(name) for name in names}
        return {name: marker for name, marker in found.items() if marker is not None}

    async def _keys(self, pattern: str) -> list[bytes | str]:
        return [key async for key in self._client.scan_iter(match=pattern, count=1000)]

    async def delete_replay_marker(self, subscription: str) -> None:
        """Delete a marker, so that its channel starts anew. Without one, nothing happens.

        :param subscription: the channel, without a PushTopic filter's query
        :raises ReplayError: if Redis cannot be reached or refuses it
        """
        key = self._key(subscription)
        await self._ask(key, lambda: self._client.delete(key))

    async def _store(self, subscription: str, marker: ReplayMarker, *, overwrites: bool) -> None:
        key = self._key(subscription)
        values = (
            sound(marker.date),
            repr(moment_of(marker.date)),
            as_json(subscription, marker),
            str(int(overwrites)),
            repr(time.time() + AHEAD),
            repr(NO_DATE),
            self._org,
            str(int(self._started_anew)),
        )
        await self._ask(key, lambda: self._client.eval(_STORE, 1, key, *values))

    async def _ask(self, key: str, command: Callable[[], Any]) -> Any:
        """Send a command, and once more if the connection fails: repeating these does no harm."""
        try:
            try:
                return await _cancellable(command())
            except _PASSING:
                await self._drop_connections()
                return await _cancellable(command())
        except (redis_exceptions.RedisError, OSError) as error:
            raise ReplayError(explain(key, error)) from error

    async def _drop_connections(self) -> None:
        # The next connection may lead to another server. A cluster's client looks for it by itself.
        pool = getattr(self._client, "connection_pool", None)
        if pool is not None:
            await pool.disconnect(inuse_connections=False)

    def _key(self, subscription: str) -> str:
        return self._prefix + sound(subscription)


async def _cancellable(command: Any) -> Any:
    """Wait for a command of redis-py so that a cancellation comes through.

    redis-py waits with :func:`asyncio.wait_for`, which before Python 3.12 swallows a cancellation that
    arrives together with the answer.
    """
    task = asyncio.ensure_future(command)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise
    return task.result()


def _text(value: bytes | str | None) -> str | None:
    """Give what Redis answers as text, whether or not the client decodes it already."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


_RIGHTS: Final = (
    "Allow the user of Redis the commands EVAL, HMGET and HSET on the keys with this prefix."
)
#: What a text of Redis means for the person who reads it.
ADVICE: Final = {
    "wrongtype": "There is something else at that key: give the storage a prefix of its own.",
    "noperm": _RIGHTS,
    "permission": _RIGHTS,
    "acl failure": _RIGHTS,
    "user executing the script": _RIGHTS,
    "moved": "It is a cluster: give the storage a redis.asyncio.RedisCluster.",
    "readonly": "It is a replica: give the storage the address of the primary.",
    "read only replica": "It is a replica: give the storage the address of the primary.",
    "loading": "It is starting: the next attempt asks it again.",
    "wrongpass": "Look at the username and the password.",
    "noauth": "Give the client of Redis a password.",
}


def explain(key: str, error: Exception) -> str:
    """Say what happened at a key, and what to do.

    :param key: the key
    :param error: what redis-py has raised
    """
    said = f"{type(error).__name__}: {error!s:.300}"
    found = [text for part, text in ADVICE.items() if part in said.lower()]
    step = [*found, "Look whether it is reachable and accepts commands."][0]
    return f"The replay markers in Redis cannot be used: {said} (key {key!r}). {step}"
