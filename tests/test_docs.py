"""The documentation tells the truth: its examples run, and it has every public name."""

import asyncio
import importlib.util
import json
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest
import trustme

import aiosfstream
from aiosfstream.testing import OAuthError, StreamingServer
from tests.proxy import Proxy

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"
PAGES = sorted(path for path in DOCS.rglob("*.rst") if "_build" not in path.parts)
CHANNEL = "/event/Low_Ink__e"
PATIENCE = 20
#: Characters that fit into the column of a page.
WIDTH = 88

ResultT = TypeVar("ResultT")


class Run:
    """An example that runs in this event loop, and what it prints."""

    def __init__(self, name: str, server: StreamingServer) -> None:
        self.server = server
        self.lines: asyncio.Queue[str] = asyncio.Queue()
        self.module = load(name)
        vars(self.module)["print"] = self.print
        self.task: asyncio.Task[None] = asyncio.create_task(self.module.main())

    async def __aenter__(self) -> "Run":
        return self

    async def __aexit__(self, *exception: object) -> None:
        """End the example as Ctrl-C does."""
        self.task.cancel()
        await asyncio.wait({self.task}, timeout=PATIENCE)
        if self.task.done() and not self.task.cancelled():
            self.task.exception()

    def print(self, *values: object, flush: bool = False) -> None:
        """Stand in for the example's ``print``."""
        self.lines.put_nowait(" ".join(map(str, values)))

    async def line(self, start: str = "") -> str:
        """Return the next line that the example prints and that begins with *start*."""
        while True:
            line = await self.before_its_end(self.lines.get())
            if line.startswith(start):
                return line

    async def subscribed(self, channel: str = CHANNEL) -> None:
        """Wait until the example is subscribed to *channel* and waits for events."""
        await self.before_its_end(
            self.server.wait_for(
                lambda server: channel in server.subscriptions and server.held_connects, PATIENCE
            )
        )

    async def before_its_end(self, awaitable: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Wait for *awaitable*; raise what ends the example before."""
        waiting = asyncio.create_task(awaitable)
        await asyncio.wait(
            {waiting, self.task}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED
        )
        if waiting.done():
            return waiting.result()
        waiting.cancel()
        await asyncio.wait({waiting})
        if self.task.done():
            self.task.result()
        raise AssertionError("the example does not come to that")


def load(name: str) -> ModuleType:
    """Import an example afresh."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[StreamingServer]:
    """Start an org whose credentials are in the environment, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    async with StreamingServer() as server:
        set_credentials(monkeypatch, server)
        yield server
        assert server.violations == []


def set_credentials(monkeypatch: pytest.MonkeyPatch, server: StreamingServer) -> None:
    """Put the credentials for *server* where the examples look for them."""
    for name in ("consumer_key", "consumer_secret", "login_url"):
        monkeypatch.setenv(f"SALESFORCE_{name.upper()}", server.credentials[name])


def ink(level: float | None) -> dict[str, Any]:
    """Return the fields of a sample event."""
    return {"Ink_Percentage__c": level}


def test_every_example_that_a_page_shows_exists() -> None:
    shown = set()
    for page in PAGES:
        for target in re.findall(r"literalinclude:: (\S+)", page.read_text(encoding="utf-8")):
            path = (page.parent / target).resolve()
            assert path.is_file(), f"{page.name} shows {target}, which is not there"
            assert EXAMPLES in path.parents
            shown.add(path)
    assert shown == {*EXAMPLES.glob("*.py"), *EXAMPLES.glob("deploy/*")}, (
        "an example is shown nowhere"
    )


def test_every_example_is_run_by_a_test() -> None:
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")]
    for example in EXAMPLES.glob("*.py"):
        assert any(f'"{example.stem}"' in text or f"{example.name}" in text for text in tests), (
            f"no test runs {example.name}"
        )


@pytest.mark.parametrize("name", aiosfstream.__all__)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    pages = [path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.rst")]
    pattern = re.compile(rf"^\.\. (auto\w+|data):: {name}$", re.MULTILINE)
    assert any(map(pattern.search, pages)), f"the reference lacks {name}"


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the documentation, with warnings as errors."""
    output = tmp_path_factory.mktemp("html")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, str(DOCS), str(output)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@dataclass
class Found(HTMLParser):
    """What a built page shows.

    :ivar tables: of each table the number of cells of each row
    :ivar blocks: the text of each block of code
    """

    tables: list[list[int]] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    in_block: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append(0)
        elif tag in {"td", "th"}:
            self.tables[-1][-1] += 1
        elif tag == "pre":
            self.in_block = True
            self.blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "pre":
            self.in_block = False

    def handle_data(self, data: str) -> None:
        if self.in_block:
            self.blocks[-1] += data


def built(html: Path, page: Path) -> Found:
    """Return what the built *page* shows."""
    found = Found()
    name = page.relative_to(DOCS).with_suffix(".html")
    found.feed((html / name).read_text(encoding="utf-8"))
    return found


def included(page: Path) -> str:
    """Return the source of *page* with what it includes."""

    def read(match: re.Match[str]) -> str:
        return (page.parent / match[1]).read_text(encoding="utf-8")

    return re.sub(r"^\.\. include:: (\S+)$", read, page.read_text(encoding="utf-8"), flags=re.M)


def tables_of(source: str) -> list[list[int]]:
    """Return of each table in *source* the number of cells of each row."""
    tables: list[list[int]] = []
    rows: list[int] | None = None
    rules = 0
    for line in source.splitlines():
        if re.match(r" *\.\. list-table::", line):
            tables.append([])
            rows, rules = tables[-1], 0
        elif re.fullmatch(r"=+(  +=+)+", line):
            # A table of figures that a program has written: three rules, one line to a row.
            rules += 1
            if rules == 1:
                tables.append([])
                rows = tables[-1]
            elif rules == 3:
                rows, rules = None, 0
        elif rules and rows is not None:
            rows.append(len(re.split(r"  +", line.strip())))
        elif rows is not None and re.match(r" +\* -( |$)", line):
            rows.append(1)
        elif rows and re.match(r" +  -( |$)", line):
            rows[-1] += 1
        elif line and not line.startswith(" "):
            rows = None
    return tables


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_table_shows_the_rows_and_cells_of_its_source(html: Path, page: Path) -> None:
    assert built(html, page).tables == tables_of(included(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_table_that_a_person_writes_is_a_list(page: Path) -> None:
    """In a simple table a first column that goes on in the next line begins another row."""
    source = page.read_text(encoding="utf-8")
    assert re.search(r"^ *=+(  +=+)+ *$|^ *\+[-=+]+\+$", source, re.MULTILINE) is None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_block_of_code_fits_into_its_column(html: Path, page: Path) -> None:
    for block in built(html, page).blocks:
        for line in block.splitlines():
            assert len(line) <= WIDTH, f"{len(line)} characters: {line}"


def test_the_addresses_of_the_old_documentation_lead_somewhere(html: Path) -> None:
    for old in ("install", "guide", "changes", "quickstart", "advanced", "api", "index"):
        page = (html / f"{old}.html").read_text(encoding="utf-8")
        moved = re.search(r'http-equiv="refresh" content="0; url=([^"]+)"', page)
        assert moved is None or (html / moved[1]).is_file(), f"{old} leads nowhere"


@pytest.mark.parametrize("word", ["reconnect", "troubleshoot", "fastapi"])
def test_the_search_finds_what_people_look_for(html: Path, word: str) -> None:
    index = (html / "searchindex.js").read_text(encoding="utf-8")
    found = json.loads(index.removeprefix("Search.setIndex(").removesuffix(")"))
    assert word in {**found["terms"], **found["titleterms"]}


def test_a_signature_shows_defaults_that_the_reader_knows(html: Path) -> None:
    for page in (html / "reference").glob("*.html"):
        text = re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))
        unknown = re.search(
            r"\w=(_[A-Z]\w+|&lt;(?:function|class)|[A-Z]+_[A-Z_]+(?<!API_VERSION)\b)", text
        )
        assert unknown is None, f"{page.name} shows {unknown}"


def test_an_option_is_not_broken_after_its_hyphens(html: Path) -> None:
    page = (html / "commandline.html").read_text(encoding="utf-8")
    assert '<span class="pre whole">--replay</span>' in page
    assert '<span class="pre">--' not in page


def test_the_program_in_the_readme_is_the_quickstart() -> None:
    readme = (ROOT / "README.rst").read_text(encoding="utf-8")
    blocks = re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", readme)
    short, whole = (re.sub(r"^    ", "", block, flags=re.MULTILINE).strip() for block in blocks)
    quickstart = (EXAMPLES / "quickstart.py").read_text(encoding="utf-8")
    assert whole == quickstart.strip()
    assert re.sub(r"^", "    ", short, flags=re.MULTILINE) in quickstart


def test_the_files_that_the_readme_names_exist() -> None:
    readme = (ROOT / "README.rst").read_text(encoding="utf-8")
    named = re.findall(r"[\w./-]+\.(?:py|rst)\b", readme)
    assert {"scripts/test.py", "docs/howto/authentication.rst"} <= set(named)
    for name in named:
        assert (ROOT / name).is_file(), f"README.rst names {name}, which is not there"


def test_each_promise_about_security_names_tests_that_exist() -> None:
    page = (DOCS / "security.rst").read_text(encoding="utf-8")
    promises = page.count("\n   * - ") - page.count("\n   * - Promise\n")
    rows = re.findall(r"(?m)^     - (``tests/(?:[^\n]|\n(?!   \* |\n))*)", page)
    assert len(rows) == promises > 15
    for row in rows:
        for name in re.findall(r"``([^`]+)``", row):
            assert (ROOT / name).is_file(), f"security.rst names {name}, which is not there"


async def test_quickstart(server: StreamingServer) -> None:
    async with Run("quickstart", server) as run:
        await run.subscribed()
        server.publish(CHANNEL, ink(0.2))
        assert "0.2" in await run.line()
    assert not server.sessions, "it left without a goodbye"


@pytest.mark.parametrize("name", ["resume", "mapping"])
async def test_a_later_run_goes_on_where_the_one_before_stopped(
    server: StreamingServer, name: str
) -> None:
    async with Run(name, server) as run:
        await run.subscribed()
        server.publish(CHANNEL, ink(0.1))
        assert "0.1" in await run.line()
    server.publish(CHANNEL, ink(0.2))
    async with Run(name, server) as run:
        assert "0.2" in await run.line()


async def test_resume_starts_anew_when_the_marker_is_too_old(server: StreamingServer) -> None:
    async with Run("resume", server) as run:
        await run.subscribed()
        server.publish(CHANNEL, ink(0.1))
        assert "0.1" in await run.line()
    server.publish(CHANNEL, ink(0.2))
    server.discard_events()
    server.publish(CHANNEL, ink(0.3))
    async with Run("resume", server) as run:
        assert "0.3" in await run.line()


async def test_manual_policy_repeats_what_was_not_processed(server: StreamingServer) -> None:
    async with Run("manual_policy", server) as run:
        await run.subscribed()
        server.publish(CHANNEL, ink(0.1))
        assert "0.1" in await run.line()
        server.publish(CHANNEL, ink(None))
        with pytest.raises(ValueError, match="no ink level"):
            await asyncio.wait_for(run.task, PATIENCE)
    async with Run("manual_policy", server) as run:
        with pytest.raises(ValueError, match="no ink level"):
            await asyncio.wait_for(run.task, PATIENCE)
        assert run.lines.empty(), "what was processed is not repeated"


async def test_start_points(server: StreamingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    change = {"ChangeEventHeader": {"entityName": "Account", "changeType": "CREATE"}}
    server.publish(CHANNEL, ink(0.1))
    seen = server.publish("/event/Order__e", {"Number__c": 1})
    missed = server.publish("/event/Order__e", {"Number__c": 2})
    retained = server.publish("/data/AccountChangeEvent", change)
    monkeypatch.setenv("LAST_ORDER", str(seen))
    async with Run("start_points", server) as run:
        lines = {await run.line(), await run.line()}
        assert lines == {f"/event/Order__e {missed}", f"/data/AccountChangeEvent {retained}"}
        await run.subscribed()
        new = server.publish(CHANNEL, ink(0.2))
        assert await run.line() == f"{CHANNEL} {new}"


async def test_from_simple_salesforce(server: StreamingServer) -> None:
    header = {"entityName": "Account", "changeType": "UPDATE", "recordIds": ["001"]}
    async with Run("from_simple_salesforce", server) as run:
        await run.subscribed("/data/AccountChangeEvent")
        payload = {"ChangeEventHeader": header, "Name": "Acme"}
        server.publish("/data/AccountChangeEvent", payload)
        assert await run.line() == "UPDATE ['001'] Acme"


async def test_errors_tells_of_a_lost_connection_and_goes_on(server: StreamingServer) -> None:
    async with Run("errors", server) as run:
        await run.subscribed()
        first = server.publish(CHANNEL, ink(0.1))
        assert await run.line() == f"event {first}"
        await server.pause()
        assert (await run.line()).startswith("no connection: ")
        await server.resume()
        second = server.publish(CHANNEL, ink(0.2))
        assert await run.line("event") == f"event {second}"


async def test_errors_ends_with_the_channel_that_is_lost(server: StreamingServer) -> None:
    async with Run("errors", server) as run:
        await run.subscribed()
        server.publish(CHANNEL, ink(0.1))
        assert (await run.line()).startswith("event")
        server.discard_events()
        server.expire_sessions()
        with pytest.raises(aiosfstream.ServerError, match=CHANNEL):
            await asyncio.wait_for(run.task, PATIENCE)


async def test_errors_ends_when_only_a_person_can_help(server: StreamingServer) -> None:
    async with Run("errors", server) as run:
        await run.subscribed()
        server.add_fault(OAuthError("invalid_client", "invalid client credentials"), on="token")
        server.revoke_tokens()
        with pytest.raises(aiosfstream.AuthenticationError, match="invalid client credentials"):
            await asyncio.wait_for(run.task, PATIENCE)


async def test_timeout(server: StreamingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATIENCE", "0.1")
    async with Run("timeout", server) as run:
        assert await run.line() == "nothing new, connected"
        server.publish(CHANNEL, ink(0.2))
        assert "0.2" in await run.line("{")


async def test_observe(server: StreamingServer) -> None:
    async with Run("observe", server) as run:
        await run.subscribed()
        server.publish(CHANNEL, ink(0.1))
        assert await run.line() == "connected"
        assert "0.1" in await run.line()
        server.expire_sessions()
        assert await run.line("session renewed") == "session renewed"
        assert await run.line("channel resumed") == f"channel resumed {CHANNEL}"
    assert await run.line("closed") == "closed"


async def test_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with Proxy() as proxy, StreamingServer(ssl_context=context) as server:
        assert server.login_url.startswith("https://")
        set_credentials(monkeypatch, server)
        monkeypatch.setenv("PROXY", f"http://{proxy.address}")
        monkeypatch.setenv("CA_FILE", str(tmp_path / "ca.pem"))
        async with Run("network", server) as run:
            await run.subscribed()
            server.publish(CHANNEL, ink(0.2))
            assert "0.2" in await run.line()
        assert set(proxy.targets) == {server.url.partition("://")[2]}
        assert server.violations == []


def test_test_application(tmp_path: Path) -> None:
    example = tmp_path / "test_application.py"
    example.write_text((EXAMPLES / "test_application.py").read_text(encoding="utf-8"))
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-o", "asyncio_default_fixture_loop_scope=function"]
    done = subprocess.run(
        [*command, str(example)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
