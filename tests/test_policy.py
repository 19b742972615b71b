"""What a client does about Salesforce, seen from its engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiosfstream import (
    AccessTokenAuthenticator,
    Client,
    DurableStorage,
    ReplayError,
    ReplayMarker,
    ReplayMarkerStorage,
    ReplayMarkerStoragePolicy,
    ReplayOption,
)
from aiosfstream._cometd.mailbox import Mailbox
from aiosfstream._http.cookies import CookieJar
from aiosfstream._policy import Policy, plain_id
from aiosfstream.client import policy_of
from aiosfstream.exceptions import ClientError
from tests.support import until
from tests.table import A, event

URL = "https://example.my.salesforce.com"


def make(**options: Any) -> tuple[Client, Policy]:
    """Make a client and give its policy."""
    client = Client(AccessTokenAuthenticator(URL, "token"), **options)
    return client, policy_of(client)


@pytest.mark.parametrize(
    ("replay", "sent"),
    [
        (ReplayOption.ALL_EVENTS, -2),
        (ReplayOption.NEW_EVENTS, -1),
        (ReplayMarker("2026-01-01T00:00:00.000Z", 7), 7),
        ("x", "x"),
        (0, 0),
        (None, None),
    ],
)
def test_what_is_sent_for_a_start(replay: Any, sent: Any) -> None:
    assert plain_id(replay) == sent
    assert not isinstance(plain_id(replay), ReplayOption)


def test_the_fallback_is_that_of_the_moment() -> None:
    client, policy = make(replay_fallback=ReplayOption.ALL_EVENTS)
    assert policy.fallback_for(A) == -2
    client.replay_fallback = None
    assert policy.fallback_for(A) is None


async def test_the_session_of_a_client() -> None:
    _, policy = make()
    async with policy.make_http_session() as http_session:
        assert isinstance(http_session.cookie_jar, CookieJar)
    given: list[Any] = []

    def own(**options: Any) -> Any:
        given.append(options)
        return None

    _, policy = make(session_factory=own)
    with pytest.raises(ClientError, match="NoneType"):
        policy.make_http_session()
    assert [set(one) for one in given] == [{"cookie_jar"}]


async def test_unverified_tls_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    _, policy = make(ssl=False)
    for _ in range(2):
        await policy.make_http_session().close()
    assert len([one for one in caplog.records if "ssl=False" in one.getMessage()]) == 1


class Slow(ReplayMarkerStorage):
    """Answers as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs = False
        self.error: Exception | None = None
        self.calls = 0

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        """Answer."""
        await self._answer()
        return None

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Answer."""
        await self._answer()

    async def _answer(self) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error
        if self.hangs:
            await asyncio.sleep(60)


MESSAGE = event(A, 1)
MESSAGE["data"]["event"]["createdDate"] = "2026-01-01T00:00:00.000Z"


async def test_a_storage_that_does_not_answer_in_time() -> None:
    storage = Slow()
    _, policy = make(replay=storage, storage_timeout=0.01)
    await policy.store(MESSAGE)
    storage.hangs = True
    with pytest.raises(ReplayError, match=r"Slow.*storage_timeout, 0.01") as caught:
        await policy.store(MESSAGE)
    assert isinstance(caught.value.__cause__, asyncio.TimeoutError)
    storage.hangs, storage.error = False, ZeroDivisionError("a mistake")
    with pytest.raises(ReplayError) as caught:
        await policy.store(MESSAGE)
    assert "a mistake" in str(caught.value)


async def test_a_storage_may_fail_before_there_is_anything_to_await() -> None:
    class Strict(Slow):
        def extract_replay_id(self, message: Any) -> Any:
            if "extra" in message:
                raise ZeroDivisionError("extra")
            return super().extract_replay_id(message)

    _, policy = make(replay=Strict())
    await policy.store(MESSAGE)
    with pytest.raises(ReplayError, match="ZeroDivisionError: extra"):
        await policy.store({**MESSAGE, "extra": True})


async def test_an_extension_is_the_storage_in_time_and_others_as_they_are() -> None:
    storage = Slow()
    client, policy = make(replay=storage, storage_timeout=0.01)
    [timed] = policy._extensions()
    storage.hangs = True
    message = {"channel": "/meta/subscribe", "subscription": A, "id": "1"}
    with pytest.raises(ReplayError, match="could not be read"):
        await timed.outgoing([message], {})
    await timed.incoming([{"channel": "/meta/connect", "successful": True}], {})
    other = Slow()
    assert client.extensions is not None
    client.extensions.append(other)
    assert policy._extensions()[1] is other


async def test_another_storage_takes_the_place_of_the_first() -> None:
    first, second = Slow(), Slow()
    client, policy = make(replay=first)
    client.replay_storage = second
    assert client.extensions == [second]
    assert policy.storage is second
    await policy.store(MESSAGE)
    assert (first.calls > 0, second.calls > 0) == (False, True)


async def test_another_storage_learns_the_channels_of_the_session() -> None:
    storage = Slow()
    client, policy = make(replay={})
    async with policy.make_http_session() as http_session:
        policy.make_transport(URL, Mailbox(0), http_session)
    client.replay_storage = storage
    # Nothing is subscribed.
    await policy.store(MESSAGE)
    assert storage.calls == 0


class Flushing(DurableStorage):
    """Counts how often it has to store what waits."""

    buffers = True
    begins = False
    flushes = 0

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:
        """There is none."""
        return None

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """Nothing to do."""

    def begin_flush(self) -> bool:
        """Begin, or not."""
        return self.begins

    async def flush(self) -> None:
        """Count."""
        self.flushes += 1


async def test_a_poll_waits_for_markers_only_where_storing_them_cannot_be_begun() -> None:
    storage = Flushing()
    _, policy = make(replay=storage)
    storing = policy.before_poll()
    assert storing is not None
    await storing
    assert storage.flushes == 1
    storage.begins = True
    assert policy.before_poll() is None
    assert storage.flushes == 1
    storing = policy.before_waiting()
    assert storing is not None
    await storing
    assert storage.flushes == 2


def test_with_markers_that_never_wait_there_is_nothing_to_do_before_waiting() -> None:
    _, policy = make(replay={})
    assert policy.before_poll() is None
    assert policy.before_waiting() is None


@pytest.mark.parametrize(("in_groups", "turns"), [(False, 1), (True, 0)])
async def test_fetching_has_its_turn_once_there_is_room(*, in_groups: bool, turns: int) -> None:
    client, policy = make(replay=Flushing() if in_groups else {})
    mailbox = Mailbox(2)
    client._incoming_queue = mailbox  # type: ignore[assignment]
    mailbox.extend([MESSAGE, dict(MESSAGE)])
    waiting = asyncio.create_task(mailbox.room())
    await until(lambda: mailbox.suspended is not None)
    mailbox.take()
    await waiting
    assert mailbox.has_room_again
    seen: list[str] = []
    asyncio.get_running_loop().call_soon(seen.append, "a turn")
    assert await policy.receive() == MESSAGE
    assert len(seen) == turns
    assert not mailbox.has_room_again


async def test_what_stores_a_marker_at_once() -> None:
    markers: dict[str, Any] = {}
    client, policy = make(replay=markers)
    store = policy.direct
    assert store is not None
    # The first marker of a channel is out of the ordinary.
    assert not store(MESSAGE)
    await policy.store(MESSAGE)
    assert markers[A].replay_id == 1
    assert policy.direct is store
    client.replay_storage_policy = ReplayMarkerStoragePolicy.MANUAL
    assert not policy.stores_on_receipt
    store = policy.direct
    assert store is not None
    markers.clear()
    assert store(MESSAGE)
    assert markers == {}
    client.replay_storage_policy = ReplayMarkerStoragePolicy.AUTOMATIC
    client.replay_storage = Slow()
    assert policy.direct is None
