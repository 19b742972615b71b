"""The command line: ``aiosfstream`` and ``python -m aiosfstream``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ._cli.console import UsageError, say
from ._cli.demo import run_demo
from ._cli.import_markers import run_import
from ._cli.listen import run_listen
from ._cli.login import run_login

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


if __name__ == "__main__":
    sys.exit(main())
