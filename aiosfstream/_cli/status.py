"""The line on a terminal that tells how it goes."""

from __future__ import annotations

import sys
import time
from typing import Final

from ..events import ConnectionEvent, ConnectionEventKind
from .console import clear_status, say, show_status
from .output import Output

__all__ = ["StatusLine"]

#: Seconds between two writes of the status line.
INTERVAL: Final = 0.5
#: Seconds that the rate is counted over.
WINDOW: Final = 5.0
#: What is no state to show: the first two come and go where the reader of the output is slow.
_PASSING: Final = (
    ConnectionEventKind.FETCHING_SUSPENDED,
    ConnectionEventKind.FETCHING_RESUMED,
    ConnectionEventKind.CLOSED,
)


class StatusLine:
    """One line on a terminal that tells how it goes; nothing where there is no terminal.

    Where the output goes to another program, that one may write to the same terminal at any time. So it
    is no line that changes then: each change of the connection is told on a line of its own.

    :param channels: how many channels are listened to
    :param output: where events go
    """

    def __init__(self, channels: int, output: Output) -> None:
        self._shown = sys.stderr is not None and sys.stderr.isatty()
        self._channels = f"{channels} channel{'s' * (channels != 1)}"
        self._output = output
        self._state = "connecting"
        self._printed = 0
        self._written_at = 0.0
        self._window: tuple[float, int] = (time.monotonic(), 0)

    def observe(self, event: ConnectionEvent) -> None:
        """Take up a change of the connection."""
        passing = event.channel is not None or event.kind in _PASSING
        if passing or event.kind.value == self._state:
            return
        self._state = event.kind.value
        if self._output.is_read:
            if self._shown:
                say(self._text(time.monotonic()))
        else:
            self._write(at_once=True)

    def count(self, printed: int) -> None:
        """Take up that an event was printed."""
        self._printed = printed
        if not self._output.is_read:
            self._write(at_once=False)

    def make_room(self) -> None:
        """Take the line away, to make room for an event."""
        if self._shown:
            clear_status()

    def _write(self, *, at_once: bool) -> None:
        now = time.monotonic()
        due = at_once or now - self._written_at >= INTERVAL
        if self._shown and due and not self._output.is_in_line:
            show_status(self._text(now))
            self._written_at = now

    def _text(self, now: float) -> str:
        since, before = self._window
        rate = (self._printed - before) / max(now - since, 0.001)
        if now - since > WINDOW:
            self._window = (now, self._printed)
        events = f"{self._printed} event{'s' * (self._printed != 1)}"
        return f"{events}, {rate:.1f}/s, {self._channels}, {self._state}"
