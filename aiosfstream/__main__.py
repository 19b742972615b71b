"""The command line: ``aiosfstream`` and ``python -m aiosfstream``."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .auth import AuthenticatorBase
    from .client import Client
    from .events import ConnectionEvent
    from .replay import ReplayMarkerStorage

DESCRIPTION: Final = """\
Receive events from the Salesforce Streaming API.

  aiosfstream demo                            see it work, without an org
  aiosfstream listen /event/My_Event__e       print events, one JSON document a line
  aiosfstream login                           get a refresh token in the browser
"""

CREDENTIALS: Final = """\
Credentials come from environment variables. Which of them are set decides how to log in; the first
that fits:

  SALESFORCE_ACCESS_TOKEN, SALESFORCE_INSTANCE_URL        a token that was obtained elsewhere
  SALESFORCE_REFRESH_TOKEN, and key and secret            refresh token flow
  SALESFORCE_PRIVATE_KEY_FILE, SALESFORCE_USERNAME, key   JWT bearer flow
  SALESFORCE_USERNAME, SALESFORCE_PASSWORD, key, secret   username-password flow
  SALESFORCE_LOGIN_URL, and key and secret                client credentials flow

  SALESFORCE_CONSUMER_KEY, SALESFORCE_CONSUMER_SECRET     key and secret of the app
  SALESFORCE_LOGIN_URL                                    My Domain or Experience Cloud URL
  SALESFORCE_SANDBOX=1                                    log in at test.salesforce.com

Exit status: 0 if all went well or it was interrupted, 1 after an error, 2 if the command or its
environment is not understood.
"""

DEMO_CHANNEL: Final = "/event/Low_Ink__e"
#: Seconds between two writes of the status line.
STATUS_INTERVAL: Final = 0.5


class UsageError(Exception):
    """What was asked for cannot be understood; the text says what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    :param arguments: what follows the command's name; None: that of the process
    :return: the exit status
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.CRITICAL,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    from .exceptions import AiosfstreamException

    try:
        return run(options.command(options))
    except UsageError as error:
        say(f"aiosfstream: {error}")
        return 2
    except (AiosfstreamException, OSError, ImportError) as error:
        say(f"aiosfstream: {' '.join(str(error).split())}")
        return 1


def run(command: Coroutine[Any, Any, int]) -> int:
    """Run *command*; being interrupted is an ordinary end."""
    try:
        return asyncio.run(interruptible(command))
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # Whoever read the output has had enough. Nothing more may be written, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


async def interruptible(command: Coroutine[Any, Any, int]) -> int:
    """Run *command*, and cancel it on SIGINT and SIGTERM, so that it closes what it opened."""
    task = asyncio.ensure_future(command)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not on every platform; there, Ctrl-C arrives as KeyboardInterrupt.
        with suppress(NotImplementedError):
            loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return 0


def make_parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    parser = argparse.ArgumentParser(
        prog="aiosfstream",
        description=DESCRIPTION,
        epilog=CREDENTIALS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--verbose", action="store_true", help="log to the standard error")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_demo(commands)
    add_listen(commands)
    add_login(commands)
    add_import(commands)
    return parser


def add_demo(commands: Any) -> None:
    """Describe ``demo``."""
    demo = commands.add_parser(
        "demo",
        help="show events arriving from a test server, through faults",
        description="Start a Salesforce-like server on this machine, publish sample events on it, break"
        " the connection on the way, and print the events as they arrive.",
    )
    demo.add_argument("--events", type=positive, default=20, metavar="N", help="how many (20)")
    demo.set_defaults(command=run_demo)


def add_listen(commands: Any) -> None:
    """Describe ``listen``."""
    listen = commands.add_parser(
        "listen",
        help="print the events of channels, one JSON document a line",
        description="Print the events of channels, one JSON document a line, until interrupted.",
        epilog=CREDENTIALS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    listen.add_argument(
        "channels",
        nargs="+",
        metavar="CHANNEL[@ID]",
        help="such as /event/My_Event__e or /data/AccountChangeEvent; with @ID: start behind that replay id",
    )
    listen.add_argument(
        "--replay", default="new", metavar="new|all|ID", help="where channels start (new)"
    )
    listen.add_argument(
        "--fallback",
        choices=["new", "all"],
        help="where to start a channel whose replay id is not known any more (default: fail)",
    )
    listen.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="remember in FILE what was printed and go on behind it next time; stronger than --replay",
    )
    listen.add_argument("--count", type=positive, metavar="N", help="end after N events")
    listen.add_argument("--api-version", metavar="NN.0", help="the Salesforce API version")
    listen.add_argument(
        "--timeout",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="fail when the connection is lost for so long (default: keep trying)",
    )
    listen.set_defaults(command=run_listen)


def add_login(commands: Any) -> None:
    """Describe ``login``."""
    login = commands.add_parser(
        "login",
        help="get a refresh token by authorizing the app in the browser",
        description="Open the browser to authorize the app, and print a refresh token for"
        " SALESFORCE_REFRESH_TOKEN. Needs SALESFORCE_CONSUMER_KEY, and SALESFORCE_CONSUMER_SECRET if the app"
        " requires it. http://localhost:PORT/callback must be among the app's callback URLs.",
    )
    login.add_argument("--port", type=positive, default=1717, help="port of the callback (1717)")
    login.add_argument(
        "--output", type=Path, metavar="FILE", help="write the token to FILE, readable by you only"
    )
    login.add_argument("--no-browser", action="store_true", help="only print the URL to open")
    login.set_defaults(command=run_login)


def add_import(commands: Any) -> None:
    """Describe ``import-markers``."""
    importer = commands.add_parser(
        "import-markers",
        help="carry replay markers over from a shelf or a JSON file",
        description="Copy the replay markers of a shelf, as aiosfstream programs write it, or of a JSON"
        " file of channels and replay ids, into a file for listen --state and SQLiteStorage.",
    )
    importer.add_argument("source", type=Path, help="the shelf or JSON file")
    importer.add_argument("--state", type=Path, required=True, metavar="FILE", help="where to")
    importer.set_defaults(command=run_import)


def positive(text: str) -> int:
    """Parse a whole number above zero."""
    number = int(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{number} should be above zero")
    return number


def say(text: str) -> None:
    """Tell the person, apart from the output."""
    print(text, file=sys.stderr, flush=True)


def emit(message: Mapping[str, Any]) -> None:
    """Print an event and let whoever reads it have it at once."""
    print(json.dumps(message), flush=True)


# listen


async def run_listen(options: argparse.Namespace) -> int:
    """Print events until interrupted, or until there were enough."""
    from .client import API_VERSION, Client, ReplayMarkerStoragePolicy

    starts = [parse_channel(text) for text in options.channels]
    authenticator = authenticator_from(os.environ)
    async with AsyncExitStack() as stack:
        storage = await open_storage(options, stack)
        status = StatusLine(len(starts))
        stack.callback(status.clear)
        try:
            client = Client(
                authenticator,
                replay=storage,
                replay_fallback=None
                if options.fallback is None
                else parse_replay(options.fallback),
                replay_storage_policy=ReplayMarkerStoragePolicy.MANUAL,
                connection_timeout=options.timeout,
                api_version=options.api_version or API_VERSION,
                observer=status.observe,
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
        await stack.enter_async_context(client)
        for channel, start in starts:
            await client.subscribe(channel, replay=start)
        await print_events(client, status, options.count)
    return 0


async def print_events(client: Client, status: StatusLine, count: int | None) -> None:
    """Print events, and store the marker of each behind it."""
    printed = 0
    async for message in client:
        async with client.replay_storage(message):
            status.clear()
            emit(message)
        printed += 1
        status.count(printed)
        if count is not None and printed >= count:
            return


def parse_channel(text: str) -> tuple[str, Any]:
    """Split ``CHANNEL@ID``; a ``@`` in the channel's name is none before an id."""
    channel, at, start = text.rpartition("@")
    if not at:
        channel, start = text, ""
    if not channel.startswith("/"):
        raise UsageError(
            f"{text!r} is no channel: it should start with a slash, as in /event/My_Event__e"
        )
    return channel, parse_replay(start) if start else None


def parse_replay(text: str) -> Any:
    """Understand ``new``, ``all`` or a replay id, which is a number or else text."""
    from .replay import ReplayOption

    options = {"new": ReplayOption.NEW_EVENTS, "all": ReplayOption.ALL_EVENTS}
    if text in options:
        return options[text]
    try:
        return int(text)
    except ValueError:
        return text


async def open_storage(options: argparse.Namespace, stack: AsyncExitStack) -> ReplayMarkerStorage:
    """Make the storage that ``--state`` and ``--replay`` ask for."""
    from .replay import ConstantReplayId

    default = parse_replay(options.replay)
    if options.state is None:
        return ConstantReplayId(default)
    from .storages.sqlite import SQLiteStorage

    return await stack.enter_async_context(SQLiteStorage(options.state, default_id=default))


class StatusLine:
    """One line on a terminal that tells how it goes; nothing where there is no terminal.

    :param channels: how many channels are listened to
    """

    def __init__(self, channels: int) -> None:
        self._shown = sys.stderr.isatty()
        self._channels = channels
        self._state = "connecting"
        self._printed = 0
        self._visible = False
        self._written_at = 0.0
        self._window: tuple[float, int] = (time.monotonic(), 0)

    def observe(self, event: ConnectionEvent) -> None:
        """Take up a change of the connection."""
        if event.channel is None:
            self._state = event.kind.value
        self._write(at_once=True)

    def count(self, printed: int) -> None:
        """Take up that an event was printed."""
        self._printed = printed
        self._write(at_once=False)

    def _write(self, *, at_once: bool) -> None:
        now = time.monotonic()
        if not self._shown or (not at_once and now - self._written_at < STATUS_INTERVAL):
            return
        since, before = self._window
        rate = (self._printed - before) / max(now - since, 0.001)
        if now - since > 5:
            self._window = (now, self._printed)
        self.clear()
        channels = f"{self._channels} channel{'s' * (self._channels != 1)}"
        text = f"{self._printed} events, {rate:.1f}/s, {channels}, {self._state}"
        print(text, end="", file=sys.stderr, flush=True)
        self._visible = True
        self._written_at = now

    def clear(self) -> None:
        """Take the line away, to make room for an event."""
        if self._visible:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._visible = False


def authenticator_from(environment: Mapping[str, str]) -> AuthenticatorBase:
    """Choose the flow that the environment has the credentials for.

    :raises UsageError: if it has them for none
    """
    from . import auth

    def get(name: str) -> str:
        return environment.get(f"SALESFORCE_{name}", "")

    key, secret, username = get("CONSUMER_KEY"), get("CONSUMER_SECRET"), get("USERNAME")
    login_url = get("LOGIN_URL") or None
    sandbox = get("SANDBOX").lower() in ("1", "true", "yes")
    try:
        if get("ACCESS_TOKEN") and get("INSTANCE_URL"):
            return auth.AccessTokenAuthenticator(get("INSTANCE_URL"), get("ACCESS_TOKEN"))
        if key and get("REFRESH_TOKEN"):
            return auth.RefreshTokenAuthenticator(
                key, secret, get("REFRESH_TOKEN"), sandbox, login_url=login_url
            )
        if key and username and get("PRIVATE_KEY_FILE"):
            pem = Path(get("PRIVATE_KEY_FILE")).read_bytes()
            return auth.JWTBearerAuthenticator(key, username, pem, sandbox, login_url=login_url)
        if key and secret and username and get("PASSWORD"):
            return auth.PasswordAuthenticator(
                key, secret, username, get("PASSWORD"), sandbox, login_url=login_url
            )
        if key and secret and login_url:
            return auth.ClientCredentialsAuthenticator(key, secret, login_url=login_url)
    except ValueError as error:
        raise UsageError(str(error)) from error
    raise UsageError(
        "no credentials: set SALESFORCE_CONSUMER_KEY, SALESFORCE_CONSUMER_SECRET, SALESFORCE_USERNAME and"
        " SALESFORCE_PASSWORD, or those of another flow; see aiosfstream listen --help"
    )


# demo


async def run_demo(options: argparse.Namespace) -> int:
    """Show what the client does when things go wrong."""
    from .client import SalesforceStreamingClient
    from .replay import ReplayOption
    from .testing import StreamingServer

    async with StreamingServer(advise_multiple_clients=False) as server:
        say(f"A test server stands in for Salesforce at {server.url}")
        client = SalesforceStreamingClient(
            **server.credentials, replay=ReplayOption.ALL_EVENTS, observer=narrate
        )
        async with client:
            await client.subscribe(DEMO_CHANNEL)
            publisher = asyncio.create_task(publish_samples(server, options.events))
            received = []
            try:
                async for message in client:
                    emit(message)
                    received.append(message["data"]["event"]["replayId"])
                    if len(received) == options.events:
                        break
                sent = await publisher
            finally:
                publisher.cancel()
    say(f"{len(sent)} events published, {len(received)} received")
    if sent != received:
        say("aiosfstream: not every event arrived once and in order; please report this")
        return 1
    say("Every event arrived once and in order. To connect to an org: aiosfstream listen --help")
    return 0


async def publish_samples(server: Any, count: int) -> list[Any]:
    """Publish events, and break something every few of them."""
    from .testing import CutAfter

    async def cut() -> None:
        say("-- the connection is cut while an answer with events is under way")
        server.add_fault(CutAfter(), on="/meta/connect")

    async def expire() -> None:
        say("-- the server forgets the session")
        server.expire_sessions()

    async def revoke() -> None:
        say("-- the access token is revoked")
        server.revoke_tokens()

    async def restart() -> None:
        say("-- the server restarts")
        await server.restart()

    troubles = {0.2: cut, 0.4: expire, 0.6: revoke, 0.8: restart}
    due = {max(1, int(count * share)): trouble for share, trouble in troubles.items()}
    sent = []
    for number in range(count):
        if number in due:
            await due[number]()
        ink = round(0.2 - 0.2 * number / count, 3)
        sent.append(
            server.publish(DEMO_CHANNEL, {"Printer_Model__c": "XZO-5", "Ink_Percentage__c": ink})
        )
        await asyncio.sleep(0.05)
        # One trouble at a time, for those who read along.
        await server.wait_for(lambda server: server.held_connects, 30)
    return sent


def narrate(event: ConnectionEvent) -> None:
    """Tell what the client does about it."""
    from .events import ConnectionEventKind

    told = {
        ConnectionEventKind.CONNECTION_LOST,
        ConnectionEventKind.REAUTHENTICATED,
        ConnectionEventKind.SESSION_RENEWED,
        ConnectionEventKind.CHANNEL_RESUMED,
    }
    if event.kind in told:
        behind = "" if event.replay_id is None else f", behind replay id {event.replay_id}"
        say(f"   client: {event.kind.value}{behind}")


# login and import-markers


async def run_login(options: argparse.Namespace) -> int:
    """Let a person authorize the app."""
    from ._cli.login import log_in

    environment = os.environ
    key = environment.get("SALESFORCE_CONSUMER_KEY", "")
    if not key:
        raise UsageError("set SALESFORCE_CONSUMER_KEY to the consumer key of the app")
    sandbox = environment.get("SALESFORCE_SANDBOX", "").lower() in ("1", "true", "yes")
    default = "https://test.salesforce.com" if sandbox else "https://login.salesforce.com"

    def show(url: str) -> None:
        say(f"Open this URL to authorize the app:\n{url}")
        if not options.no_browser:
            import webbrowser

            webbrowser.open(url)

    try:
        tokens = await log_in(
            key,
            environment.get("SALESFORCE_CONSUMER_SECRET", ""),
            login_url=environment.get("SALESFORCE_LOGIN_URL") or default,
            port=options.port,
            show=show,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    if options.output is None:
        print(tokens.refresh_token, flush=True)
    else:
        write_secret(options.output, tokens.refresh_token)
        say(f"The refresh token is in {options.output}")
    return 0


def write_secret(path: Path, text: str) -> None:
    """Write a file that nobody else can read, from its first moment on."""
    with suppress(FileNotFoundError):
        path.unlink()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text + "\n")


async def run_import(options: argparse.Namespace) -> int:
    """Carry markers over."""
    from ._cli.import_markers import import_markers
    from .storages.sqlite import SQLiteStorage

    async with SQLiteStorage(options.state) as storage:
        imported = await import_markers(options.source, storage)
    if not imported.stored and not imported.kept:
        say(f"aiosfstream: {options.source} holds no replay markers of channels")
        return 1
    say(f"{len(imported.stored)} markers are in {options.state}")
    if imported.kept:
        say(f"Newer ones were kept of: {', '.join(imported.kept)}")
    if imported.skipped:
        say(f"No markers of channels, passed over: {', '.join(imported.skipped)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
