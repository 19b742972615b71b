"""The person's browser, and the URL that it ends at where it cannot bring it here itself."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Final

__all__ = ["Person"]

#: What the names of variables with credentials begin with.
_CREDENTIALS: Final = "SALESFORCE_"


class Person:
    """Somebody with a browser, on this machine or elsewhere.

    :param has_browser: whether the browser of this machine is opened
    """

    def __init__(self, *, has_browser: bool) -> None:
        self._has_browser = has_browser
        #: The lines that are pasted.
        self.pasted: asyncio.Queue[str] = asyncio.Queue()

    def open(self, url: str) -> None:
        """Open *url* in the browser, and listen for what is pasted; neither is waited for.

        :param url: what to open
        """
        loop = asyncio.get_running_loop()
        # A thread that nothing waits for at the end: a browser on the terminal stays open.
        threading.Thread(target=self._attend, args=(url, loop), daemon=True).start()

    def _attend(self, url: str, loop: asyncio.AbstractEventLoop) -> None:
        if self._has_browser:
            open_browser(url)
        # Not before: until then the terminal may belong to the browser.
        if may_read_input():
            self._read_lines(loop)

    def _read_lines(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not by way of sys.stdin, whose lock would be held when Python ends.
        text = b""
        while piece := _read():
            *lines, text = (text + piece).split(b"\n")
            for line in lines:
                # The log-in may have ended.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(self.pasted.put_nowait, line.decode(errors="replace"))


def open_browser(url: str) -> None:
    """Open *url*, and wait as long as the browser wants that: one on the terminal, until it is left.

    It gets none of the credentials in the environment, and does not write to the standard output.

    :param url: what to open
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(_CREDENTIALS)
    }
    # Isolated, so that a module in the working directory cannot take the place of the true one.
    command = [sys.executable, "-I", "-m", "webbrowser", url]
    with suppress(OSError):
        subprocess.run(  # noqa: S603
            command,
            env=environment,
            stdout=subprocess.DEVNULL if sys.stderr is None else sys.stderr,
            check=False,
        )


def may_read_input() -> bool:
    """Say whether the standard input can be read: a job in the background would be stopped."""
    if sys.stdin is None:
        return False
    try:
        descriptor = sys.stdin.fileno()
        return not os.isatty(descriptor) or os.tcgetpgrp(descriptor) == os.getpgrp()
    except (OSError, ValueError, AttributeError):
        return False


def _read() -> bytes:
    try:
        return os.read(sys.stdin.fileno(), 4096)
    except (OSError, ValueError):
        return b""
