"""Running a command until it has ended or somebody ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

__all__ = ["run"]

#: What asks a command to end: Ctrl-C, ``kill``, and the terminal that is closed.
_ENDINGS: Final = ("SIGINT", "SIGTERM", "SIGHUP")


def run(command: Coroutine[Any, Any, int]) -> int:
    """Run *command*; being interrupted is an ordinary end, and so is a reader that has had enough.

    :param command: the command
    :return: its exit status
    """
    try:
        return asyncio.run(_interruptible(command))
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # Nothing more may be written, at exit neither.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


async def _interruptible(command: Coroutine[Any, Any, int]) -> int:
    """Run *command*, and cancel it when it is asked to end, so that it closes what it opened."""
    task = asyncio.ensure_future(command)
    loop = asyncio.get_running_loop()
    for name in _ENDINGS:
        number = getattr(signal, name, None)
        if number is None:
            continue
        # Whoever starts it with `nohup` wants it to outlive the terminal.
        if name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
            continue
        # Not on every platform; there, Ctrl-C arrives as KeyboardInterrupt.
        with suppress(NotImplementedError):
            loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return 0
