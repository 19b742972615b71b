"""The pytest plugin, in tests that pytest runs in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aiosfstream.testing import serve_in_thread

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent

SETTINGS = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""

KINDS_OF_TESTS = """
import asyncio, json, unittest, urllib.error, urllib.request
import aiosfstream
import pytest


def ask(url):
    body = json.dumps([{"channel": "/meta/handshake"}]).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        [reply] = json.load(answer)
    return reply["error"]


def test_without_an_event_loop(salesforce_server):
    server = salesforce_server
    url = server.url + "/cometd/66.0"
    assert ask(url) == "403::Handshake denied"
    server.pause()
    with pytest.raises(urllib.error.URLError, match="refused"):
        ask(url)
    server.resume()
    assert ask(url) == "403::Handshake denied"
    server.restart()
    assert ask(url) == "403::Handshake denied"
    server.move_instance()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        ask(url)
    server.wait_until(lambda server: server.count("/meta/handshake") == 4)
    assert [request.status for request in server.requests] == [200, 200, 200, 404]


def test_new_for_each_test(salesforce_server):
    assert salesforce_server.requests == []


def test_with_an_event_loop_of_its_own(salesforce_server):
    async def use():
        async with aiosfstream.SalesforceStreamingClient(**salesforce_server.credentials) as client:
            await client.subscribe("/event/A__e")
            wanted = salesforce_server.publish("/event/A__e")
            message = await client.receive()
            assert message["data"]["event"]["replayId"] == wanted

    asyncio.run(use())
    assert salesforce_server.sessions == []


async def test_asynchronous(salesforce_server):
    server = salesforce_server
    async with aiosfstream.SalesforceStreamingClient(**server.credentials) as client:
        await client.subscribe("/event/A__e")
        await server.wait_for(lambda server: server.held_connects)
        server.expire_sessions()
        await server.wait_for(lambda server: server.subscriptions == {"/event/A__e"})
        wanted = server.publish("/event/A__e")
        message = await client.receive()
        assert message["data"]["event"]["replayId"] == wanted


class TestUnittest(unittest.IsolatedAsyncioTestCase):
    @pytest.fixture(autouse=True)
    def org(self, salesforce_server):
        self.server = salesforce_server

    async def test_it(self):
        async with aiosfstream.SalesforceStreamingClient(**self.server.credentials) as client:
            await client.subscribe("/event/A__e")
            self.assertEqual(self.server.subscriptions, {"/event/A__e"})


class TestOptions:
    @pytest.fixture
    def salesforce_server_options(self):
        return {"text_replay_ids": True}

    def test_it(self, salesforce_server):
        assert isinstance(salesforce_server.publish("/event/A__e"), str)
"""

FAILURES = """
import urllib.error, urllib.request
import pytest
from aiosfstream.testing import Delay


def test_a_failure_in_the_server(salesforce_server):
    salesforce_server.add_fault(Delay(0), when=lambda request: 1 / 0)
    with pytest.raises(urllib.error.HTTPError, match="500"):
        urllib.request.urlopen(salesforce_server.url + "/cometd/66.0", b"[]", timeout=5)


class TestAServerThatCannotStart:
    @pytest.fixture
    def salesforce_server_options(self):
        return {"nonsense": True}

    def test_it(self, salesforce_server):
        raise AssertionError("it must not come to that")
"""


def run(pytester: pytest.Pytester, program: str) -> pytest.RunResult:
    pytester.makeini(SETTINGS)
    pytester.makepyfile(program)
    return pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider")


def test_every_kind_of_test_can_use_it(pytester: pytest.Pytester) -> None:
    run(pytester, KINDS_OF_TESTS).assert_outcomes(passed=6)


def test_what_fails_in_the_server_fails_the_test(pytester: pytest.Pytester) -> None:
    result = run(pytester, FAILURES)
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines_random(["*ZeroDivisionError*", "*TypeError*nonsense*"])


def test_the_fixture_is_on_the_list(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--fixtures", "-p", "no:cacheprovider")
    result.stdout.fnmatch_lines(["salesforce_server -- *", "*org on loopback*"])


def test_the_example_that_kills_its_program(pytester: pytest.Pytester) -> None:
    example = ROOT / "docs" / "examples" / "test_kill.py"
    pytester.makeini("[pytest]")
    pytester.makepyfile(example.read_text(encoding="utf-8"))
    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)


NOTHING_IMPORTED = """
import sys


def test_what_is_imported():
    ours = {name for name in sys.modules if name.partition(".")[0] == "aiosfstream"}
    assert ours == set()
    assert {"aiohttp", "aiocometd", "asyncio", "ssl", "multidict"} & set(sys.modules) == set()


def test_the_fixture(salesforce_server):
    assert salesforce_server.sessions == []
    assert "aiohttp" in sys.modules
"""


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a pytest in a process of its own load this plugin and no other."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name in [name for name in os.environ if name.startswith("COV")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTEST_PLUGINS", "aiosfstream_pytest")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.usefixtures("alone")
def test_it_costs_nothing_until_its_fixture_is_used(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(NOTHING_IMPORTED)
    pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider").assert_outcomes(passed=2)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("broken", ["aiohttp", "aiocometd"])
def test_a_broken_dependency_breaks_only_the_tests_that_use_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    folder = pytester.mkdir("broken")
    (folder / f"{broken}.py").write_text("raise ImportError('it is broken')\n")
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{ROOT}")
    pytester.makepyfile(
        "def test_one(): pass\ndef test_two(salesforce_server): pass\ndef test_three(): pass\n"
    )
    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ImportError: it is broken*"])


@pytest.mark.usefixtures("alone")
def test_it_is_there_under_its_name_in_the_package_as_well(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_PLUGINS", "aiosfstream.pytest_plugin")
    pytester.makepyfile("def test_it(salesforce_server): assert salesforce_server.url")
    pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_pytest_loads_the_module_that_imports_nothing() -> None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert '"pytest11": ["aiosfstream = aiosfstream_pytest"]' in setup
    assert 'py_modules=["aiosfstream_pytest"]' in setup


def test_a_server_in_a_thread_without_pytest() -> None:
    with serve_in_thread(text_replay_ids=True) as server:
        assert isinstance(server.publish("/event/A__e"), str)
    with pytest.raises(KeyError, match="block"), serve_in_thread():
        raise KeyError("block")
