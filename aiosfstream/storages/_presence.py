"""Who uses a store: so that nobody moves a marker while a consumer is running.

A consumer leaves a note in the store when a client opens it, renews the note while it polls, and takes it
away when the store is closed. A note that is not renewed expires; one of a process of this machine expires
when that process ends.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any, Final

__all__ = ["LIFETIME", "Presence", "describe"]

#: Seconds that a note counts. A client polls at least every 110 seconds.
LIFETIME: Final = 150.0
#: Seconds between two notes of a consumer that polls more often.
RENEWAL: Final = 30.0
#: Where Linux says which start of the machine this is.
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Presence:
    """A consumer's note about itself.

    :ivar name: tells it from those of other consumers
    """

    def __init__(self) -> None:
        self.name = secrets.token_hex(8)
        self._written_at: float | None = None

    @property
    def is_due(self) -> bool:
        """Whether the note has been left, and should be renewed."""
        left = self._written_at
        return left is not None and time.monotonic() - left >= RENEWAL

    @property
    def is_left(self) -> bool:
        """Whether there is a note."""
        return self._written_at is not None

    def write(self) -> str:
        """Give the text of the note."""
        self._written_at = time.monotonic()
        return json.dumps({**_here(), "pid": os.getpid(), "seen": time.time()})

    def withdraw(self) -> None:
        """Forget that a note was left, since it is being deleted."""
        self._written_at = None


def describe(note: str) -> str | None:
    """Say who left a note, or None if that one is gone.

    :param note: the text of the note
    """
    try:
        found: Any = json.loads(note)
        pid, host, seen = int(found["pid"]), str(found["host"]), float(found["seen"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    age = time.time() - seen
    is_from_here = {name: found.get(name) for name in ("host", "boot")} == _here()
    if age > LIFETIME or (is_from_here and not _runs(pid)):
        return None
    return f"process {pid} on {host!r:.80}, seen {max(age, 0):.0f} seconds ago"


def _here() -> dict[str, str]:
    """Say which machine this is, and which start of it."""
    try:
        boot = _BOOT_ID.read_text("ascii").strip()
    except OSError:
        boot = ""
    return {"host": socket.gethostname(), "boot": boot}


def _runs(pid: int) -> bool:
    """Say whether a process runs on this machine."""
    if os.name != "posix":
        # On Windows os.kill() would end it.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
