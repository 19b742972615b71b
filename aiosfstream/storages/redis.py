"""Replay markers in Redis."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from ..exceptions import ReplayError
from ..replay import DefaultReplayIdMixin, DurableStorage, ReplayMarker, instant

try:
    from redis import exceptions as redis_exceptions
except ImportError as error:
    raise ImportError(
        "RedisStorage needs redis-py: install it with pip install 'aiosfstream[redis]'"
    ) from error

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["RedisStorage"]

# Compares and stores in one step, so that two consumers cannot move a marker back. Sent with every
# call and not by its hash: after a restart Redis does not know the hash any more.
_STORE: Final = """
local stored = redis.call('HGET', KEYS[1], 'instant')
if ARGV[4] == '0' and stored and tonumber(stored) > tonumber(ARGV[2]) then
    return 0
end
redis.call('HSET', KEYS[1], 'date', ARGV[1], 'instant', ARGV[2], 'replay_id', ARGV[3])
return 1
"""
#: Older than any date, and a number that Lua understands.
_NO_DATE: Final = -1e300


class RedisStorage(DefaultReplayIdMixin, DurableStorage):
    """Keeps markers in Redis, a hash a channel, for programs that run on more than one machine.

    Each marker is compared with the stored one and stored in a single step, so it is never moved
    back, not even while two consumers overlap. It is stored before its message is handed over or its
    block has ended: one round trip a message.

    A broken connection is tried once more at once, so a restart of Redis goes unnoticed if it is quick.
    What lasts longer is a :exc:`~aiosfstream.ReplayError`, behind which the next ``receive()`` tries
    again; more attempts are a matter of the client's own ``retry``. What a crash of Redis itself can
    cost depends on its persistence: with ``appendonly yes`` and ``appendfsync everysec``, the markers
    of about a second. A marker that is lost or too old means that messages are delivered again.

    :param client: a :class:`redis.asyncio.Redis` or a client with the same commands, which stays yours
        to close
    :param prefix: stands in front of the channels in the names of the keys, such as
        ``"orders:markers:"``; give each application of an org its own
    :param default_id: a replay option or replay id for channels without a marker; None: new events
    """

    def __init__(self, client: Redis, *, prefix: str, default_id: int | None = None) -> None:
        self._client = client
        self._prefix = prefix
        super().__init__(default_id)

    def __repr__(self) -> str:
        """Show the prefix; the client may hold a password."""
        return f"{type(self).__name__}(prefix={self._prefix!r}, default_id={self.default_id!r})"

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        """Give the stored marker, or None.

        :raises ReplayError: if Redis cannot be reached, or has something else there
        """
        key = self._key(subscription)
        found = await self._ask(lambda: self._client.hmget(key, "date", "replay_id"))
        date, replay_id = map(_text, found)
        if date is None or replay_id is None:
            return None
        try:
            return ReplayMarker(date, json.loads(replay_id))
        except ValueError as error:
            raise ReplayError(
                f"The Redis key {key!r} holds no replay marker: {error}. Delete it, or use another prefix."
            ) from error

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Store a marker, whatever is stored.

        :raises ReplayError: if Redis cannot be reached or refuses it
        """
        await self._store(subscription, replay_marker, forced=True)

    async def set_unless_newer(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Store a marker, unless the stored one is newer, in a single step.

        :raises ReplayError: if Redis cannot be reached or refuses it
        """
        await self._store(subscription, replay_marker, forced=False)

    async def _store(self, subscription: str, marker: ReplayMarker, *, forced: bool) -> None:
        try:
            replay_id = json.dumps(marker.replay_id)
        except (TypeError, ValueError) as error:
            raise ReplayError(
                f"A replay id of {subscription} cannot be stored: {error}. It should be something that JSON has."
            ) from error
        key, date = self._key(subscription), _sound(marker.date)
        moment = repr(max(instant(marker.date), _NO_DATE))
        values = (date, moment, replay_id, str(int(forced)))
        await self._ask(lambda: self._client.eval(_STORE, 1, key, *values))

    async def _ask(self, command: Callable[[], Any]) -> Any:
        """Send a command, twice if the connection breaks: none of ours does harm when repeated."""
        try:
            try:
                return await _cancellable(command())
            except redis_exceptions.ConnectionError:
                return await _cancellable(command())
        except (redis_exceptions.RedisError, OSError) as error:
            raise ReplayError(
                f"The replay markers in Redis cannot be used: {type(error).__name__}: {error!s:.300}."
                " Look whether it is reachable and accepts commands."
            ) from error

    def _key(self, subscription: str) -> str:
        return self._prefix + _sound(subscription)


async def _cancellable(command: Coroutine[Any, Any, Any]) -> Any:
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


def _sound(text: object) -> str:
    """Give *text* without what cannot be written as UTF-8."""
    return str(text).encode("utf-8", "replace").decode("utf-8")
