"""Running the examples as programs of their own, to be killed at any moment."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from aiosfstream.testing import StreamingServer

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
#: Seconds for a program to get something done on a busy machine.
PATIENCE = 90


class Programs:
    """Programs that write what they do into one file each, whose lines outlive them."""

    def __init__(self, folder: Path, server: StreamingServer, **environment: object) -> None:
        self._folder = folder
        self._environment = {
            **os.environ,
            "SALESFORCE_CONSUMER_KEY": server.credentials["consumer_key"],
            "SALESFORCE_CONSUMER_SECRET": server.credentials["consumer_secret"],
            "SALESFORCE_LOGIN_URL": server.login_url,
            **{name: str(value) for name, value in environment.items()},
        }
        self._running: list[Program] = []

    def start(self, example: str, name: str = "", *, command: Sequence[str] = ()) -> Program:
        """Start an example; one of the same name goes on writing into the same file.

        :param command: the arguments for Python, where it is more than the example's file
        """
        output = self._folder / f"{name or example}.out"
        program = Program(example, output, self._environment, command)
        self._running.append(program)
        return program

    def set(self, name: str, value: object) -> None:
        """Set a variable in the environment of those that are started from now on."""
        self._environment[name] = str(value)

    async def stop(self) -> None:
        """Kill all that are left."""
        for program in self._running:
            await program.end(signal.SIGKILL)

    def lines(self) -> list[str]:
        """Return what all of them have written."""
        return [line for path in sorted(self._folder.glob("*.out")) for line in lines_of(path)]

    def processed(self) -> Counter[int]:
        """Return how many times each event was processed."""
        words = [line.split() for line in self.lines()]
        # The last line of a program that was killed may be torn, with what is noted behind it.
        return Counter(
            int(words[1]) for words in words if words[0] == "processed" and words[1].isdigit()
        )

    async def until_processed(self, count: int) -> None:
        """Wait until so many different events have been processed."""
        await wait_until(lambda: len(self.processed()) >= count)


class Program:
    """One example that runs in the folder of its output."""

    def __init__(
        self,
        example: str,
        output: Path,
        environment: dict[str, str],
        command: Sequence[str] = (),
    ) -> None:
        self.output = output
        self._errors = output.with_suffix(".err")
        with output.open("ab") as sink, self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *(command or [str(EXAMPLES / f"{example}.py")])],
                cwd=output.parent,
                env=environment,
                stdout=sink,
                stderr=errors,
            )

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll()

    @property
    def errors(self) -> str:
        """What it, and those of the same name before it, had to complain about."""
        return self._errors.read_text("utf-8")

    def lines(self) -> list[str]:
        """Return what it, and those of the same name before it, have written."""
        return lines_of(self.output)

    def note(self, line: str) -> None:
        """Write a line among those of the program."""
        with self.output.open("a", encoding="utf-8") as output:
            output.write(f"{line}\n")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def end(self, number: signal.Signals) -> None:
        """Send it a signal and wait until it has ended."""
        if self.running:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
        await asyncio.to_thread(self._process.wait, PATIENCE)


def lines_of(path: Path) -> list[str]:
    """Return the lines of a file that are complete: another process may be writing it."""
    return path.read_text("utf-8").split("\n")[:-1]


async def wait_until(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds, which other processes make true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.02)


def repeated(processed: Counter[int]) -> int:
    """Return how often something was done again."""
    return sum(processed.values()) - len(processed)
