"""The command line: ``aiosfstream`` and ``python -m aiosfstream``."""

from __future__ import annotations

import argparse
import logging
import math
import platform
import sys
from pathlib import Path
from typing import Any, Final

import aiohttp

from . import __version__
from ._cli.check import run_check
from ._cli.console import CommandError, LogHandler, say
from ._cli.demo import run_demo
from ._cli.import_markers import run_import
from ._cli.listen import run_listen
from ._cli.login import run_login
from ._cli.markers import run_export, run_reset, run_set, run_show
from ._cli.running import run
from ._cli.words import in_words
from .exceptions import AiosfstreamException

DESCRIPTION: Final = """\
Receive events from the Salesforce Streaming API.

  aiosfstream demo                            see it work, without an org
  aiosfstream check /event/My_Event__e        try the credentials, and channels
  aiosfstream listen /event/My_Event__e       print events, one JSON document to a line
  aiosfstream login                           get a refresh token in the browser
  aiosfstream markers show state.db           look at the stored positions, and move them
"""

CREDENTIALS: Final = """\
Credentials come from environment variables. Those that are set decide how to log in. The first
that fits is used:

  SALESFORCE_ACCESS_TOKEN, SALESFORCE_INSTANCE_URL        a token that was obtained elsewhere
  SALESFORCE_REFRESH_TOKEN, and key and secret            refresh token flow
  SALESFORCE_PRIVATE_KEY, SALESFORCE_USERNAME, key        JWT bearer flow
  SALESFORCE_USERNAME, SALESFORCE_PASSWORD, key, secret   username-password flow
  SALESFORCE_LOGIN_URL, and key and secret                client credentials flow

  SALESFORCE_CONSUMER_KEY, SALESFORCE_CONSUMER_SECRET     key and secret of the app
  SALESFORCE_LOGIN_URL                                    My Domain or Experience Cloud URL
  SALESFORCE_SANDBOX=1                                    log in at test.salesforce.com
  SALESFORCE_AUDIENCE                                     audience of the JWT bearer flow

Each of them can be in a file, which the variable with _FILE at its end names:
SALESFORCE_PASSWORD_FILE=/run/secrets/password. Then no secret is in a shell's history.
HTTPS_PROXY and NO_PROXY are respected.

Exit status: 0 if all went well or it was interrupted, 1 after an error, 2 if the command or its
environment could not be understood.
"""

LEVELS: Final = ("debug", "info", "warning", "error", "critical")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    :param arguments: what follows the command's name; None: that of the process
    :return: the exit status
    """
    options = parse(arguments)
    set_up_logging(getattr(options, "log_level", "warning"), getattr(options, "verbose", False))
    try:
        return run(options.command(options))
    except CommandError as error:
        say(f"aiosfstream: {error}")
        return error.status
    except (AiosfstreamException, OSError, ImportError) as error:
        say(f"aiosfstream: {_explained(error)}")
        return 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Understand the command line; the program ends here if it cannot be understood.

    :param arguments: what follows the command's name; None: that of the process
    """
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    # Channels may stand before and after options, which argparse itself does not allow for.
    if rest and hasattr(options, "channels") and not any(text.startswith("-") for text in rest):
        options.channels = [*options.channels, *rest]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _explained(error: BaseException) -> str:
    """Say on one line, in the words of the command line, what went wrong."""
    text = in_words(" ".join(str(error).split()))
    if isinstance(error.__cause__, CommandError):
        text = f"{text} The reason: {error.__cause__}"
    return text


def set_up_logging(level: str, verbose: bool) -> None:
    """Show log records on the standard error.

    :param level: the name of the lowest level that is shown
    :param verbose: whether every record of this package is shown, whatever the level is
    """
    handler = LogHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # Its one warning is that messages are pending when a client is closed, as at every end of `listen`.
    logging.getLogger("aiocometd").setLevel(logging.ERROR)
    if verbose:
        logging.getLogger("aiosfstream").setLevel(logging.DEBUG)


def make_parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    parser = argparse.ArgumentParser(
        prog="aiosfstream",
        description=DESCRIPTION,
        epilog=CREDENTIALS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_logging_options()],
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_demo(commands)
    add_check(commands)
    add_listen(commands)
    add_login(commands)
    add_markers(commands)
    add_import(commands)
    return parser


def _version() -> str:
    python = f"Python {platform.python_version()}"
    return f"aiosfstream {__version__} ({python}, aiohttp {aiohttp.__version__})"


def _logging_options() -> argparse.ArgumentParser:
    """Describe the options that may stand before the command and after it."""
    options = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    options.add_argument(
        "--log-level",
        choices=LEVELS,
        help="which records to show on standard error (default: warning)",
    )
    options.add_argument(
        "--verbose", action="store_true", help="show everything that this program does"
    )
    return options


def _network_options() -> argparse.ArgumentParser:
    """Describe the options of commands that connect to an org."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--proxy", metavar="URL", help="the HTTP proxy to use, instead of HTTPS_PROXY's"
    )
    options.add_argument(
        "--cacert",
        type=Path,
        metavar="FILE",
        help="trust the certificate authorities in FILE as well",
    )
    return options


def _org_options() -> argparse.ArgumentParser:
    """Describe the options of commands that log in with what the environment has."""
    options = argparse.ArgumentParser(add_help=False, parents=[_network_options()])
    options.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="take the refresh token from FILE, as login --output writes it, and keep new ones there",
    )
    options.add_argument("--api-version", metavar="NN.0", help="the Salesforce API version")
    return options


def _add(commands: Any, name: str, *parents: argparse.ArgumentParser, **texts: Any) -> Any:
    """Add a command, with the options that all of them have."""
    return commands.add_parser(
        name,
        parents=[_logging_options(), *parents],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **texts,
    )


def add_demo(commands: Any) -> None:
    """Describe ``demo``."""
    demo = _add(
        commands,
        "demo",
        help="show events arriving from a test server, through faults",
        description="Start a Salesforce-like server on this machine, publish sample events on it, break\n"
        "the connection on the way, and print the events as they arrive.",
    )
    demo.add_argument("--events", type=positive, default=20, metavar="N", help="how many (20)")
    demo.set_defaults(command=run_demo)


def add_check(commands: Any) -> None:
    """Describe ``check``."""
    check = _add(
        commands,
        "check",
        _org_options(),
        help="try the credentials, and whether channels can be subscribed to",
        description="Log in, say who that is, and try to subscribe to each channel. The exit status is 0 if\n"
        "all of that works.",
        epilog=CREDENTIALS,
    )
    check.add_argument(
        "channels", nargs="*", metavar="CHANNEL[@ID]", help="such as /event/My_Event__e"
    )
    check.set_defaults(command=run_check)


def add_listen(commands: Any) -> None:
    """Describe ``listen``."""
    listen = _add(
        commands,
        "listen",
        _org_options(),
        help="print the events of channels, one JSON document to a line",
        description="Print the events of channels, one JSON document to a line, until interrupted.",
        epilog=CREDENTIALS,
    )
    listen.add_argument(
        "channels",
        nargs="+",
        metavar="CHANNEL[@ID]",
        help="such as /event/My_Event__e or /data/AccountChangeEvent; with @ID: start after that replay id",
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
        help="remember in FILE what was printed, and continue after it next time; takes precedence over --replay",
    )
    _add_endings(listen)
    listen.add_argument(
        "--pretty", action="store_true", help="print each event on several lines, indented"
    )
    listen.set_defaults(command=run_listen)


def _add_endings(listen: argparse.ArgumentParser) -> None:
    """Describe when ``listen`` ends by itself."""
    listen.add_argument("--count", type=positive, metavar="N", help="end after N events")
    listen.add_argument(
        "--timeout",
        type=seconds,
        default=0.0,
        metavar="SECONDS",
        help="fail when the connection is lost for so long (default: keep trying)",
    )


def add_login(commands: Any) -> None:
    """Describe ``login``."""
    login = _add(
        commands,
        "login",
        _network_options(),
        help="get a refresh token by authorizing the app in the browser",
        description="Open the browser to authorize the app, and print a refresh token for\n"
        "SALESFORCE_REFRESH_TOKEN, or write it into a file for --token-file. Needs\n"
        "SALESFORCE_CONSUMER_KEY, and SALESFORCE_CONSUMER_SECRET if the app requires it.\n"
        "http://localhost:PORT/callback must be among the app's callback URLs.",
    )
    login.add_argument("--port", type=port, default=1717, help="port of the callback (1717)")
    login.add_argument(
        "--output", type=Path, metavar="FILE", help="write the token to FILE, readable by you only"
    )
    login.add_argument("--no-browser", action="store_true", help="only print the URL to open")
    login.set_defaults(command=run_login)


def add_markers(commands: Any) -> None:
    """Describe ``markers`` and what it can do."""
    markers = _add(
        commands,
        "markers",
        help="look at the stored positions of a consumer, and move them",
        description="Look at the stored positions of a consumer, and move them. STORE is the file of\n"
        "listen --state and SQLiteStorage; or a Redis server as RedisStorage uses it:\n"
        "redis://HOST:PORT/DB, or redis: for the URL in REDIS_URL, with --prefix.",
    )
    actions = markers.add_subparsers(title="actions", required=True, metavar="ACTION")
    show = _add_action(actions, "show", "print them as a table", run_show)
    show.add_argument("channels", nargs="*", metavar="CHANNEL", help="only of these")
    export = _add_action(actions, "export", "print them as a JSON document", run_export)
    export.add_argument("channels", nargs="*", metavar="CHANNEL", help="only of these")
    change = _add_action(actions, "set", "put others in their place", run_set)
    change.add_argument(
        "channels", nargs="*", metavar="CHANNEL@ID", help="continue after that replay id"
    )
    change.add_argument("--date", metavar="DATE", help="when the event with that id was created")
    change.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="take them from a JSON document, as export prints it; - is the standard input",
    )
    reset = _add_action(actions, "reset", "take them away: their channels start anew", run_reset)
    reset.add_argument("channels", nargs="*", metavar="CHANNEL", help="of which channels")
    reset.add_argument("--all", action="store_true", help="of every channel")
    for action in (change, reset):
        action.add_argument(
            "--force", action="store_true", help="even while a consumer uses the store"
        )


def _add_action(actions: Any, name: str, text: str, command: Any) -> Any:
    """Add what ``markers`` can do."""
    action = _add(actions, name, help=text, description=text.capitalize() + ".")
    action.add_argument("store", metavar="STORE", help="a file, or redis://HOST:PORT/DB")
    action.add_argument(
        "--prefix", metavar="TEXT", help="what stands before the channels in the keys of Redis"
    )
    action.set_defaults(command=command)
    return action


def add_import(commands: Any) -> None:
    """Describe ``import-markers``."""
    importer = _add(
        commands,
        "import-markers",
        help="carry replay markers over from a shelf or a JSON file",
        description="Copy the replay markers of a shelf, as aiosfstream programs write it, or of a JSON\n"
        "file of channels and replay ids, into a file for listen --state and SQLiteStorage.",
    )
    importer.add_argument("source", type=Path, help="the shelf or JSON file")
    importer.add_argument("--state", type=Path, required=True, metavar="FILE", help="where to")
    importer.set_defaults(command=run_import)


def positive(text: str) -> int:
    """Parse a whole number above zero."""
    number = int(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{number} should be a whole number above zero")
    return number


def port(text: str) -> int:
    """Parse the number of a port."""
    number = int(text)
    if not 0 < number < 65536:
        raise argparse.ArgumentTypeError(f"{number} should be the number of a port, 1 to 65535")
    return number


def seconds(text: str) -> float:
    """Parse a time that can be waited."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} should be seconds, and not less than zero")
    return number


if __name__ == "__main__":
    sys.exit(main())
