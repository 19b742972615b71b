"""What a person sees on the standard error: messages, log records, and a line that changes."""

from __future__ import annotations

import logging
import shutil
import sys
from contextlib import suppress

from .words import in_words

__all__ = [
    "CommandError",
    "LogHandler",
    "UsageError",
    "clear_status",
    "printable",
    "say",
    "show_status",
]


class CommandError(Exception):
    """The command cannot do what it was asked to do; the text says why and what to do."""

    #: The exit status.
    status = 1


class UsageError(CommandError):
    """What was asked for, or what the environment says, cannot be understood."""

    status = 2


class _StandardError:
    """The standard error, whose last line may be one that changes."""

    def __init__(self) -> None:
        self._status = ""

    def say(self, text: str) -> None:
        """Write lines of their own."""
        shown = "\n".join(map(printable, text.splitlines()))
        self._write(f"{self._take_away()}{shown}\n")

    def show(self, status: str) -> None:
        """Put a line at the end that the next one takes the place of."""
        # A longer one would take two lines, of which only the second could be taken away.
        width = shutil.get_terminal_size().columns
        shown = printable(status)[: width - 1]
        text = self._take_away() + shown
        self._status = shown
        self._write(text)

    def clear(self) -> None:
        """Take that line away."""
        self._write(self._take_away())

    def _take_away(self) -> str:
        visible, self._status = bool(self._status), ""
        return "\r\x1b[K" if visible else ""

    @staticmethod
    def _write(text: str) -> None:
        if text and sys.stderr is not None:
            # The terminal may be gone, and that must not end the command.
            with suppress(OSError, ValueError):
                print(text, end="", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Leave out what would control the terminal.

    :param text: one line
    """
    return "".join(character if character.isprintable() else " " for character in text)


_STANDARD_ERROR = _StandardError()


def say(text: str) -> None:
    """Tell the person, apart from the output.

    :param text: one or more lines
    """
    _STANDARD_ERROR.say(text)


def show_status(text: str) -> None:
    """Show a line that the next call of this replaces. Only for terminals.

    :param text: the line; it is cut to the terminal's width
    """
    _STANDARD_ERROR.show(text)


def clear_status() -> None:
    """Take that line away, to make room for output."""
    _STANDARD_ERROR.clear()


class LogHandler(logging.Handler):
    """Shows log records among the messages, in the words of the command line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record.

        :param record: the record
        """
        try:
            say(in_words(self.format(record)))
        except Exception:  # noqa: BLE001 - as the handlers of the standard library do it
            self.handleError(record)
