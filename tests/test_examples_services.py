"""Every example that streams, as a program of its own, through what a service meets.

Each goes through a lost connection, a lost session, an event that is lost for good, refused
credentials and SIGTERM.
"""

from __future__ import annotations

import asyncio
import re
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from aiosfstream.testing import OAuthError, StreamingServer
from tests.postgres_server import PostgresServer
from tests.programs import EXAMPLES
from tests.redis_server import RedisServer
from tests.services import CHANGE, INK, ORDER, Example, Scene, account, order, scene


def orders(name: str, word: str, **more: Any) -> Example:
    """Make an example that prints a word and the number of each order."""
    return Example(name, ORDER, order, word + " {number}", **more)


def bare(name: str, **more: Any) -> Example:
    """Make an example with a loop of its own: a lost event ends it, and SIGTERM cancels it."""
    return Example(name, goes_on=False, stopped=CANCELLED, **more)


#: Of a process that ended by the signal itself, as uvicorn's does.
BY_SIGTERM = -signal.SIGTERM
CANCELLED = 128 + signal.SIGTERM

SERVICES = [
    Example("resume"),
    Example("health"),
    Example("metrics_prometheus"),
    Example("metrics_opentelemetry"),
    Example("logging_json"),
    Example("network", goes_on=False),
    Example("observe", goes_on=False),
    orders("service", "order"),
    orders("fan_out_forwarder", "forwarded", needs="redis"),
    orders("celery_orders", "handed over", needs="redis"),
    orders("sql_orders", "stored", needs="postgres"),
    orders("django_stream_orders", "saved", command=("-m", "django", "stream_orders")),
    Example(
        "fastapi_app",
        shown="noted P-{number}-",
        command=("-m", "uvicorn", "fastapi_app:app", "--log-level=warning"),
        stopped=BY_SIGTERM,
        refused=BY_SIGTERM,
    ),
    Example("snapshot", CHANGE, account, "CREATE R-{number}-", recovers="snapshot"),
    bare("quickstart"),
    bare("timeout"),
    bare("errors", shown="event {replay_id}"),
    bare("auth_client_credentials"),
    bare("auth_password"),
    bare("mapping"),
    bare("manual_policy"),
    bare("storage_redis", needs="redis"),
    orders("storage_workers", "processed", goes_on=False, stopped=CANCELLED),
    orders("tutorial_consumer", "order", goes_on=False),
    Example(
        "from_simple_salesforce",
        CHANGE,
        account,
        "CREATE ['R-{number}-']",
        goes_on=False,
    ),
    Example("start_points", shown=INK + " {replay_id}", goes_on=False),
]


#: Those that other tests run, since they need more than an org, or end in another way on purpose.
ELSEWHERE = {
    "auth_access_token",
    "auth_errors",
    "auth_jwt",
    "auth_refresh_token",
    "standby",
    "storage_own",
}


def test_no_example_is_left_out() -> None:
    streaming = {
        path.stem
        for path in EXAMPLES.glob("*.py")
        if "ClientCredentials" in path.read_text("utf-8")
    }
    tried = {example.name for example in SERVICES}
    assert streaming <= tried | ELSEWHERE
    assert not tried & ELSEWHERE


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_program_shows_its_warnings(path: Path) -> None:
    """A library writes nothing by itself: a program has to say where its log goes."""
    source = path.read_text("utf-8")
    if "import Client" in source or "    Client,\n" in source:
        is_a_test = path.stem.startswith("test_")
        assert is_a_test or "run_program(" in source or "logging.basicConfig(" in source


#: How many examples run at the same time: most of the time they wait.
AT_A_TIME = 4


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, BaseException | None]:
    """Run all examples whose tests are selected, several at a time, and give what was raised."""
    selected: list[Example] = [
        cast(Example, item.callspec.params["example"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_what_a_service_meets"
    ]
    folder = tmp_path_factory.mktemp("services")
    with ExitStack() as servers:
        urls = {}
        needs = {example.needs for example in selected}
        if "redis" in needs:
            urls["REDIS_URL"] = servers.enter_context(RedisServer(folder)).url
        if "postgres" in needs:
            urls["DATABASE_URL"] = servers.enter_context(PostgresServer()).url
        found = asyncio.run(run_all(selected, folder, urls))
    return dict(zip((example.name for example in selected), found, strict=True))


async def run_all(
    examples: list[Example], folder: Path, urls: dict[str, str]
) -> list[BaseException | None]:
    """Run examples, and give what each has raised."""
    places = asyncio.Semaphore(AT_A_TIME)

    async def run_one(example: Example) -> None:
        async with places:
            await asyncio.gather(
                stays_alive(example, folder / f"{example.name}-lives", urls),
                is_refused(example, folder / f"{example.name}-refused", urls),
            )

    return await asyncio.gather(*map(run_one, examples), return_exceptions=True)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("example", SERVICES, ids=lambda example: example.name)
def test_what_a_service_meets(example: Example, outcomes: dict[str, BaseException | None]) -> None:
    error = outcomes[example.name]
    if error is not None:
        raise error


async def stays_alive(example: Example, folder: Path, urls: dict[str, str]) -> None:
    async with scene(example, folder, urls) as it:
        await it.streaming()
        await it.shows(it.publish())
        # A lost connection.
        await it.org.pause()
        text = it.publish()
        await it.org.resume()
        await it.shows(text)
        # A lost session, and a token that is not valid any more.
        it.org.expire_sessions()
        it.org.revoke_tokens()
        await it.shows(it.publish())
        assert "Traceback" not in it.program.errors
        await it.program.end(signal.SIGTERM)
        assert it.program.status == example.stopped, it.program.errors
        assert "Traceback" not in it.program.errors
        assert it.org.sessions == [], "it left without a goodbye"
        it.start()
        await it.streaming()
        await it.shows(it.publish())
        await loses_an_event(it)


async def loses_an_event(it: Scene) -> None:
    """Let the events be gone that it would resume behind: it has to say so."""
    await it.streaming()
    it.org.discard_events()
    it.org.expire_sessions()
    if it.example.recovers:
        await it.shows(it.example.recovers, times=2)
    if it.example.goes_on:
        await it.shows(it.publish())
        assert re.search(f"WARNING.*{it.example.channel}.*fallback", it.program.errors)
    else:
        assert await it.ended() == 69
        assert re.search(f"ERROR.*{it.example.channel}", it.program.errors)
    assert "Traceback" not in it.program.errors


async def is_refused(example: Example, folder: Path, urls: dict[str, str]) -> None:
    """Ends with one log-in: too many lock the user."""
    async with StreamingServer() as org:
        org.add_fault(
            OAuthError("invalid_client", "invalid client credentials"), on="token", times=99
        )
        it = Scene(example, org, folder, urls)
        try:
            assert await it.ended() == example.refused, it.program.errors
        finally:
            await it.stop()
        assert "ERROR" in it.program.errors
        assert "invalid client credentials" in it.program.errors
        assert "Traceback" not in it.program.errors
        assert org.count("token") == 1
